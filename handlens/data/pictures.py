"""The part "sprites" of the prepared folder: emoji of several artists as small pictures, and their names."""

import io
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

from handlens.data.alphabets import LANGUAGES, characters
from handlens.data.packages import Rows
from handlens.data.sample import SPLITS

SIDE = 64
#: Groups of emoji that are things; of the others a few.
CATEGORIES = {"Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places"}
BESIDES = set("❤✅❌❗❓➕♻⚠🚫🔔⬆➡⬇⬅🔴🟢🔵🟡👁👂👃🦷🤖👻💀👑👞👕👖👗👓🎒")
#: Things that are told apart by a detail that 64 pixels do not show.
ALIKE = re.compile(r"o’clock|thirty|moon face|gibbous|quarter moon|mailbox|lowered|incoming|outbox|inbox|levels?$")


def write_sprites(rows: Rows, folder: Path, out: Path) -> dict:
    """A pile of pictures for each side of the split, and one table of what they show; a thing is in every set."""
    sets, names, categories = {}, {}, {}
    for row, package in rows:
        if row["reader"] == "names":
            names = {language: _names(package, language) for language in LANGUAGES}
        else:
            sets[row["set"]] = row["split"], _Set(package / "package")
            categories = categories or sets[row["set"]][1].categories
    keys = [
        key
        for key, category in categories.items()
        if (category in CATEGORIES or key in BESIDES)
        and all(key in each.icons for _, each in sets.values())
        and all(key in table for table in names.values())
        and not ALIKE.search(names["en"][key])
    ]
    for table in names.values():  # a name that two things share names neither
        seen = [table[key].casefold() for key in keys]
        keys = [key for key in keys if seen.count(table[key].casefold()) == 1]
    things = {key: (categories[key], {language: table[key] for language, table in names.items()}) for key in keys}
    drawn = {name: (split, np.array([each.draw(key) for key in keys])) for name, (split, each) in sets.items()}
    write_piles(folder, things, drawn)
    return {}


def write_piles(
    folder: Path, things: dict[str, tuple[str, dict[str, str]]], sets: dict[str, tuple[str, np.ndarray]]
) -> None:
    """Writes the files of the part.

    things: key -> (category, language -> name); sets: name -> (split, uint8 [thing, side, side, 4]).
    """
    for split in SPLITS:
        pile = [images for side, images in sets.values() if side == split]
        np.savez_compressed(folder / f"{split}.npz", images=np.array(pile))
    languages = next(iter(things.values()))[1]
    content = {
        "sets": {split: [name for name, (side, _) in sets.items() if side == split] for split in SPLITS},
        "keys": list(things),
        "categories": [category for category, _ in things.values()],
        "names": {language: [names[language] for _, names in things.values()] for language in languages},
    }
    (folder / "names.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _names(package: Path, language: str) -> dict[str, str]:
    """emoji -> its name, where the name is written in characters of the language."""
    found = {}
    for part, stem in (("annotations", "annotations"), ("annotationsDerived", "annotations")):
        path = package / f"package/{part}/{language}/{stem}.json"
        if path.exists():
            for emoji, entry in json.loads(path.read_text(encoding="utf-8"))[part]["annotations"].items():
                name = unicodedata.normalize("NFC", entry["tts"][0]) if "tts" in entry else ""
                if name and set(name) <= characters(language):
                    found[emoji] = name
    return found


class _Set:
    """One artist's emoji as SVG, in the files of an Iconify package."""

    def __init__(self, folder: Path):
        read = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in FILES}
        self.table = read["icons"]
        self.icons = {_emoji(code): name for code, name in read["chars"].items() if name in self.table["icons"]}
        category = {name: title for title, group in read["metadata"]["categories"].items() for name in group}
        self.categories = {key: category[name] for key, name in self.icons.items() if name in category}

    def draw(self, key: str) -> np.ndarray:
        """The picture, uint8 [SIDE, SIDE, 4], RGBA."""
        import resvg_py

        icon = self.table["icons"][self.icons[key]]
        left, top, width, height = (
            icon.get(field, self.table.get(field, default))
            for field, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        box = f'viewBox="{left} {top} {width} {height}" width="{SIDE}" height="{SIDE}"'
        links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        drawn = resvg_py.svg_to_bytes(svg_string=f"<svg {links} {box}>{icon['body']}</svg>", width=SIDE, height=SIDE)
        return np.asarray(Image.open(io.BytesIO(bytes(drawn))).convert("RGBA").resize((SIDE, SIDE)))


FILES = ("chars", "icons", "metadata")


def _emoji(code: str) -> str:
    """ "2764-fe0f" -> "❤": without variation selectors, as CLDR has them."""
    return "".join(chr(int(point, 16)) for point in code.split("-") if point != "fe0f")
