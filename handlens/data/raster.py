"""Drawing with Pillow that knows where every glyph is: the canvas of all makers.

Sizes and places are in pixels, x to the right and y down. Glyphs are drawn one by one at whole pixels, without kerning,
from a cache of their bitmaps, which is much faster than line by line and tells the exact centre of the ink. A canvas
that is drawn larger and reduced in `finish` has glyphs at fractions of pixels, as a scanner or a PDF viewer shows them.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

#: Marks that combine with the character before them ...
MARKS = "[\u0300-\u036f\u1dc0-\u1dff\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f]"
COMBINING = re.compile(MARKS)
#: ... and so are one visible character with it.
CLUSTER = re.compile(f".{MARKS}*", re.DOTALL)
#: Characters of scripts without spaces between words: a line may end after each of them ...
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff65\u3000-\u303f]")
#: ... but does not start with these, and does not end with those.
NOT_FIRST = frozenset("、。，．：；？！）」』】〉》〕・ー々ゝヽぁぃぅぇぉっゃゅょァィゥェォッャュョ％%)]}.,:;?!»”’")
NOT_LAST = frozenset("（「『【〈《〔([{«“‘￥¥$€£")


class Glyph(NamedTuple):
    """How a font draws one cluster: places are counted from the pen on the baseline."""

    mask: object  # Pillow's inner image, mode L; None for blanks
    left: int
    top: int
    advance: float
    x: float  # the middle of the ink
    y: float
    ink: tuple[int, int, int, int]  # left, top, right, bottom

    @property
    def bitmap(self) -> bytes:
        return bytes(self.mask) if self.mask else b""


class Face(dict[str, Glyph]):
    """The glyphs of one font at one size by cluster, each drawn when it is first asked for."""

    def __init__(self, font: ImageFont.FreeTypeFont):
        self.font = font
        self.ascent, self.descent = font.getmetrics()

    def __missing__(self, cluster: str) -> Glyph:
        # What ImageDraw.text asks for the mask and its place; the public way to both takes three times as long.
        mask, (left, top) = self.font.getmask2(cluster, "L", anchor="ls")
        advance = self.font.getlength(cluster)
        box = mask.getbbox() if mask.size[0] and mask.size[1] else None
        if box is None:
            glyph = Glyph(None, 0, 0, advance, 0.0, 0.0, (0, 0, 0, 0))
        else:
            ink = (left + box[0], top + box[1], left + box[2], top + box[3])
            glyph = Glyph(mask, left, top, advance, (ink[0] + ink[2]) / 2, (ink[1] + ink[3]) / 2, ink)
        self[cluster] = glyph
        return glyph

    def glyphs(self, text: str) -> list[Glyph]:
        """The glyphs of the clusters of a text."""
        return [self[cluster] for cluster in clusters(text)]

    def width(self, text: str) -> float:
        return sum(glyph.advance for glyph in self.glyphs(text))

    def covers(self, text: str) -> bool:
        """Whether every visible cluster has a glyph of its own, not the font's box for what it lacks."""
        lacking = self["\uffff"].bitmap
        return all(
            cluster.isspace() or self[cluster].bitmap not in (b"", lacking) for cluster in clusters("".join(set(text)))
        )


def clusters(text: str) -> Sequence[str]:
    """The visible characters of a text and its blanks, each with the marks that combine with it."""
    if text.isascii() or not COMBINING.search(text):
        return text
    return CLUSTER.findall(unicodedata.normalize("NFC", text))


@lru_cache(maxsize=1024)
def face(font: ImageFont.FreeTypeFont) -> Face:
    """The glyphs of a font; those of the fonts used last are kept."""
    return Face(font)


def covers(text: str, font: ImageFont.FreeTypeFont) -> bool:
    """Whether the font has a glyph for every visible character of the text."""
    return face(font).covers(text)


def x_height(font: ImageFont.FreeTypeFont) -> int:
    """The height in pixels of a lower-case x: what decides whether small text can be read."""
    _, top, _, bottom = face(font)["x"].ink
    return bottom - top


class Canvas:
    """A picture to draw on, that remembers each visible glyph and the centre of its ink."""

    def __init__(self, width: int, height: int, background: Colour = (255, 255, 255)):
        self.width, self.height = width, height
        self.picture = Image.new("RGB", (width, height), background)
        self._draw = ImageDraw.Draw(self.picture)
        self.characters: list[str] = []
        self.centres: list[tuple[float, float]] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        font: ImageFont.FreeTypeFont,
        colour: Colour = (0, 0, 0),
        anchor: str = "la",
        tracking: float = 0,
    ) -> float:
        """The width of the line of text, which is drawn at (x, y); `tracking` is added between characters.

        Anchors are Pillow's: l, m or r for the left, middle or right; a, m, s or d for the top of the font, its middle,
        its baseline or its bottom.
        """
        known, parts = face(font), clusters(text)
        pen = float(x)  # numpy's own floats are ten times as slow
        if anchor[0] != "l":
            width = known.width(text) + tracking * max(len(parts) - 1, 0)
            pen -= width / 2 if anchor[0] == "m" else width
        ascent, descent = known.ascent, known.descent
        base = round(y + {"a": ascent, "m": (ascent - descent) / 2, "s": 0, "d": -descent}[anchor[1]])
        # ImageDraw.bitmap converts the colour anew for each glyph; this is the call inside of it.
        draw, shade = self._draw.draw.draw_bitmap, self._draw.draw.draw_ink(colour)
        start, first = pen, len(self.characters)
        for cluster in parts:
            mask, left, top, advance, middle_x, middle_y, _ = known[cluster]
            if mask is None:
                if len(self.characters) > first and not self.characters[-1].endswith(" "):
                    self.characters[-1] += " "
            else:
                place = round(pen)
                draw((place + left, base + top), mask, shade)
                self.characters.append(cluster)
                self.centres.append((place + middle_x, base + middle_y))
            pen += advance + tracking
        if len(self.characters) > first:
            self.characters[-1] = self.characters[-1].rstrip() + " "
        return pen - start - (tracking if parts else 0)

    @staticmethod
    def measure(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, int, int]:
        """(width, ascent, descent) of one line: the height of every line of a font is ascent + descent."""
        known = face(font)
        return known.width(text), known.ascent, known.descent

    @staticmethod
    def ink(text: str, font: ImageFont.FreeTypeFont, tracking: float = 0) -> tuple[float, int, float, int]:
        """(left, top, right, bottom) of what a line shows, counted from the pen on the baseline where it starts."""
        pen, edges = 0.0, []
        for glyph in face(font).glyphs(text):
            if glyph.mask is not None:
                left, top, right, bottom = glyph.ink
                edges.append((round(pen) + left, top, round(pen) + right, bottom))
            pen += glyph.advance + tracking
        if not edges:
            return 0.0, 0, 0.0, 0
        left, top, right, bottom = zip(*edges)
        return min(left), min(top), max(right), max(bottom)

    @staticmethod
    def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
        """The text in lines at most `width` wide; a word wider than that is broken."""
        known = face(font)
        blank = known[" "].advance
        lines, line, used = [], "", 0.0
        for piece in _pieces(text):
            word = piece.rstrip()
            size = known.width(word)
            if line and used + size > width:
                lines.append(line.rstrip())
                line, used = "", 0.0
            if size > width:
                *full, word = _broken(word, known, width)
                lines += full
                size = known.width(word)
            line += word + " " * (len(piece) > len(piece.rstrip()))
            used = used + size + blank * (line[-1:] == " ")
        if line.strip():
            lines.append(line.rstrip())
        return lines

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: Colour = (0, 0, 0), width: int = 1) -> None:
        self._draw.line((x0, y0, x1, y1), fill=colour, width=width)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        outline: Colour | None = None,
        fill: Colour | None = None,
        width: int = 1,
    ) -> None:
        """Draws a rectangle; its corners belong to it."""
        self._draw.rectangle((x0, y0, x1, y1), fill=fill, outline=outline, width=width)

    def ellipse(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        outline: Colour | None = None,
        fill: Colour | None = None,
        width: int = 1,
    ) -> None:
        self._draw.ellipse((x0, y0, x1, y1), fill=fill, outline=outline, width=width)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour, outline: Colour | None = None) -> None:
        self._draw.polygon(list(points), fill=fill, outline=outline)

    def paste(self, x: float, y: float, picture: np.ndarray) -> None:
        """Lays a picture, uint8 [h, w, 4] with alpha or [h, w, 3], over the canvas with its corner at (x, y)."""
        picture = Image.fromarray(np.ascontiguousarray(picture))
        self.picture.paste(picture, (round(x), round(y)), picture if picture.mode == "RGBA" else None)

    def finish(self, scale: float = 1) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
        """(image uint8 [H, W, 3], characters, centres float32 [n, 2]), without glyphs centred outside the picture."""
        picture, centres = self.picture, np.array(self.centres, np.float32).reshape(-1, 2)
        if scale == 0.5 and self.width % 2 == self.height % 2 == 0:  # the same and five times as fast
            picture, centres = picture.reduce(2), centres / 2
        elif scale != 1:
            size = (max(round(self.width * scale), 1), max(round(self.height * scale), 1))
            picture = picture.resize(size, Image.Resampling.BILINEAR)
            centres = centres * np.float32([size[0] / self.width, size[1] / self.height])
        return np.array(picture), *inside(self.characters, centres, picture.size)


def inside(characters: Iterable[str], centres: np.ndarray, size: tuple[int, int]) -> tuple[tuple[str, ...], np.ndarray]:
    """The characters whose centres lie in a picture of this size (width, height), and those centres [n, 2]."""
    kept = ((centres >= 0) & (centres < size)).all(axis=1)
    if kept.all():
        return tuple(characters), centres
    return tuple(character for character, keep in zip(characters, kept) if keep), centres[kept]


def _pieces(text: str) -> list[str]:
    """What a line may be cut into: words with the blanks behind them, single characters of unspaced scripts."""
    words = re.findall(r"\S+\s*", text)
    if not UNSPACED.search(text):
        return words
    pieces: list[str] = []
    for word in words:
        last = ""
        for character in word:
            glued = last and (
                character in NOT_FIRST
                or character.isspace()
                or last in NOT_LAST
                or not (UNSPACED.match(character) or UNSPACED.match(last))
            )
            if glued:
                pieces[-1] += character
            else:
                pieces.append(character)
            last = character
    return pieces


def _broken(word: str, known: Face, width: float) -> list[str]:
    """The word in parts that are at most `width` wide, each at least one cluster."""
    parts, used = [""], 0.0
    for cluster in clusters(word):
        advance = known[cluster].advance
        if parts[-1] and used + advance > width:
            parts.append("")
            used = 0.0
        parts[-1] += cluster
        used += advance
    return parts
