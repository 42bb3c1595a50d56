"""The part "fonts" of the prepared folder: fonts cut down to the characters of the languages read."""

from pathlib import Path

from handlens.data.alphabets import LANGUAGES, characters, every_character
from handlens.data.packages import Rows, files

#: Tables that drawing single glyphs does not need.
UNUSED = [
    *("GPOS", "GSUB", "GDEF", "BASE", "MATH", "kern", "FFTM", "DSIG", "prop", "morx", "feat"),
    *("TeX ", "BDF ", "Silt", "Silf", "Sill", "Feat", "Gloc", "Glat", "PfEd", "TTFA"),
]


def write_fonts(rows: Rows, folder: Path, out: Path) -> dict:
    """One file a font in `folder`; returns the table of them."""
    table = []
    for row, package in rows:
        for source in files(package, (f"**/{name}" for name in row["files"])):
            target = folder / source.name.replace(" ", "-")
            kept = {key: row[key] for key in ("family", "outlines", "style", "split")}
            table.append({"path": f"fonts/{target.name}", **kept, **subset(source, target)})
    return {"fonts": table}


def subset(source: Path, target: Path) -> dict:
    """Writes the cut font to `target`; returns its weight and slope, its languages and its characters.

    Outlines stay; hinting, ligatures and kerning go: samples are drawn glyph by glyph, from a larger canvas.
    """
    from fontTools import subset as cutter
    from fontTools.ttLib import TTFont

    options = cutter.Options(hinting=False, layout_features=[], name_IDs=[0, 1, 2, 13], notdef_outline=True)
    options.drop_tables += UNUSED
    options.ignore_missing_unicodes = True
    with TTFont(source, recalcTimestamp=False) as font:  # the same bytes every time
        cut = cutter.Subsetter(options)
        cut.populate(unicodes=map(ord, every_character()))
        cut.subset(font)
        drawn = _drawn(font)
        bold = bool(font["head"].macStyle & 1) or font["OS/2"].usWeightClass >= 600
        italic = bool(font["head"].macStyle & 2) or font["post"].italicAngle != 0
        font.save(target)
    return {
        "weight": 700 if bold else 400,
        "italic": italic,
        "languages": [language for language in LANGUAGES if characters(language) <= drawn | {" "}],
        "characters": _ranges(drawn),
    }


def _drawn(font) -> frozenset[str]:
    """The characters whose glyphs have ink: some fonts map characters to empty glyphs."""
    from fontTools.pens.boundsPen import ControlBoundsPen

    glyphs = font.getGlyphSet()
    found = set()
    for code, name in font.getBestCmap().items():
        pen = ControlBoundsPen(glyphs)
        glyphs[name].draw(pen)
        if pen.bounds and pen.bounds[0] < pen.bounds[2]:
            found.add(chr(code))
    return frozenset(found)


def _ranges(found: frozenset[str]) -> list[list[int]]:
    """Runs of code points, [first, last] each."""
    runs: list[list[int]] = []
    for code in sorted(map(ord, found)):
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return runs
