"""Makers of short texts: words, lines, paragraphs and notices. What is drawn is what the answer says.

Some pictures are drawn larger and reduced. No text has an x of less than seven pixels, so that about six are left after
degradation, and characters of many strokes have at least sixteen pixels an em.
"""

import re
from typing import NamedTuple

import numpy as np
from PIL.ImageFont import FreeTypeFont

from handlens.data import strings
from handlens.data.raster import Canvas, Colour, x_height
from handlens.data.sample import Sample
from handlens.data.sources import Font, Sources, load, pick
from handlens.data.structured import INKS, MAX_AREA, PAPERS, STRONG, WHITE, capital, mix

#: The least height of an x, in pixels of the finished picture.
LEAST_X = 7
#: Scripts whose characters have many strokes, and the least em in pixels for them.
DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
LEAST_DENSE = 16


class Ink(NamedTuple):
    """The colours of a text."""

    text: Colour
    paper: Colour


def ink(rng: np.random.Generator) -> Ink:
    """Colours that can be told apart: mostly dark on light."""
    kind = rng.random()
    if kind < 0.45:
        return Ink((0, 0, 0), WHITE)
    if kind < 0.8:
        return Ink(pick(rng, INKS), pick(rng, PAPERS))
    if kind < 0.9:
        return Ink(WHITE, pick(rng, STRONG))
    while True:  # any two colours with enough between them; two in five pairs have it
        text, paper = (tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(2))
        if abs(brightness(text) - brightness(paper)) > 90:
            return Ink(text, paper)


def brightness(colour: Colour) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def sized(face: Font, size: float, text: str, scale: float = 1) -> FreeTypeFont:
    """The font at `size` pixels an em or larger, so that this text can be read; all `scale` times as large."""
    if DENSE.search(text):
        size = max(size, LEAST_DENSE)
    font = load(face.path, round(size * scale))
    height = x_height(font)
    if height >= LEAST_X * scale:
        return font
    return load(face.path, int(np.ceil(font.size * LEAST_X * scale / max(height, 1))))


def scale_of(rng: np.random.Generator) -> float:
    """How much larger a picture is drawn than shown: mostly not at all."""
    kind = rng.random()
    return 1.0 if kind < 0.7 else 2.0 if kind < 0.8 else float(rng.uniform(1.25, 1.6))


def clean(face: Font, text: str) -> str:
    """The text without what the font has no glyphs for, and without blanks around it."""
    if not face.covers(text):
        text = "".join(character for character in text if character.isspace() or face.covers(character))
    return text.strip()


def passage(rng: np.random.Generator, sources: Sources, language: str, split: str, length: int) -> str:
    """Running text of about `length` characters, whole words, from the start of a line of the corpus."""
    lines = sources.lines(language, split)
    start = int(rng.integers(len(lines)))
    parts, size = [], 0
    while size < length:
        parts.append(lines[(start + len(parts)) % len(lines)])
        size += len(parts[-1]) + 1
    return shorten(" ".join(parts), length)


def shorten(text: str, length: int) -> str:
    """At most `length` characters of the text, up to the end of a word if it has words."""
    if len(text) <= length:
        return text
    end = text.rfind(" ", 0, length + 1)
    return text[: end if end > 0 else length]


def words(rng: np.random.Generator, sources: Sources, language: str, split: str, count: int) -> list[str]:
    """Words at random: half of them from all there are, half from the frequent ones."""
    known = sources.words(language, split)
    draws = rng.random((count, 2))
    return [known[int(share * len(known) if kind < 0.5 else len(known) ** share - 1e-9)] for kind, share in draws]


def content(rng: np.random.Generator, sources: Sources, language: str, split: str, length: int) -> str:
    """About `length` characters of any kind: running text, loose words, numbers and codes, letters in any order."""
    kind = rng.random()
    if kind < 0.5:
        text = passage(rng, sources, language, split, length + int(rng.integers(0, 40)))
        # Lines of a page start anywhere in a sentence, not only where it starts.
        cut = text.find(" ", int(rng.integers(0, 40))) if rng.random() < 0.7 else -1
        text = shorten(text[cut + 1 :], length)
    elif kind < 0.68:
        text = shorten(" ".join(words(rng, sources, language, split, length // 4 + 1)), length)
    elif kind < 0.78:
        known = words(rng, sources, language, split, 12)
        sizes = rng.integers(1, 11, length // 5 + 1)
        text = shorten(" ".join(strings.letters(rng, known, int(size)) for size in sizes), length)
    else:
        text = mixture(rng, sources, language, split, length)
    if rng.random() < 0.1:
        text = text.upper()
    return text


def mixture(rng: np.random.Generator, sources: Sources, language: str, split: str, length: int) -> str:
    """Words, numbers, codes and addresses side by side, as in forms and lists."""
    parts: list[str] = []
    while sum(map(len, parts)) + len(parts) < length:
        kind = rng.random()
        if kind < 0.35:
            parts.append(capital(words(rng, sources, language, split, 1)[0]) + pick(rng, ("", ":", ",", ".", " –")))
        elif kind < 0.45:
            parts.append(strings.address(rng, words(rng, sources, language, split, 4)))
        else:
            parts.append(strings.any_string(rng))
    return shorten(" ".join(parts), length)


def put(
    canvas: Canvas, x: float, y: float, width: float, text: str, font: FreeTypeFont, colour: Colour, align: str
) -> None:
    """Draws a line into the width from x on, with its baseline at y; `align` is left, centre, right or justified."""
    parts = text.split(" ")
    if align == "justified" and len(parts) > 2:
        gaps = len(parts) - 1
        space = canvas.measure(" ", font)[0] + (width - canvas.measure(text, font)[0]) / gaps
        if space < 1.2 * font.size:  # wider gaps look torn
            for part in parts:
                x += canvas.text(x, y, part, font, colour, "ls") + space
            return
    shift, anchor = {"centre": (width / 2, "ms"), "right": (width, "rs")}.get(align, (0, "ls"))
    canvas.text(x + shift, y, text, font, colour, anchor)


def transcription(canvas: Canvas, scale: float, answer: str, task: str, language: str) -> Sample:
    """The sample of a canvas that was drawn `scale` times as large as it is shown, to be read as it stands."""
    image, characters, centres = canvas.finish(1 / scale)
    return Sample(image, "", answer, task, language, characters, centres)


def word(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """One word, number or code, cut out closely."""
    if rng.random() < 0.6:
        text = words(rng, sources, language, split, 1)[0]
        text = pick(rng, (text, text, text, capital(text), text.upper()))
    elif rng.random() < 0.5:
        text = strings.any_string(rng)
    else:
        text = strings.letters(rng, words(rng, sources, language, split, 6), int(rng.integers(1, 12)))
    return strip(rng, sources, language, split, text, "word", 448)


def line(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """One line of a document, cut out with random margins."""
    text = content(rng, sources, language, split, int(rng.integers(6, 64)))
    return strip(rng, sources, language, split, text, "line", int(pick(rng, (448, 448, 560, 672))))


def strip(
    rng: np.random.Generator, sources: Sources, language: str, split: str, text: str, task: str, widest: int
) -> Sample:
    """The sample of one line of text, shortened to what fits into the widest picture."""
    face, scale, colours = sources.face(rng, language, split), scale_of(rng), ink(rng)
    text = clean(face, text) or "0"
    font = sized(face, rng.uniform(12, 22) if rng.random() < 0.7 else rng.uniform(12, 48), text, scale)
    tracking = float(rng.uniform(0.5, 4) * scale) if rng.random() < 0.06 else 0.0
    margins = 2 * scale + font.size * rng.uniform(0, (0.7, 0.4, 0.7, 0.4))
    room = widest * scale - margins[0] - margins[2]
    while (box := Canvas.ink(text, font, tracking))[2] - box[0] > room and len(text) > 1:
        text = shorten(text, min(int(len(text) * room / (box[2] - box[0])), len(text) - 1)).strip()
    left, top, right, bottom = np.array(box) + margins * (-1, -1, 1, 1)
    canvas = Canvas(int(right - left), int(bottom - top), colours.paper)
    y = max(box[3], 1) + 1 - top
    if rng.random() < 0.08 and y + 2 * scale < canvas.height:
        faint = mix(colours.text, colours.paper, rng.uniform(0, 0.6))
        canvas.line(pick(rng, (0, -left)), y, pick(rng, (canvas.width, box[2] - left)), y, faint, round(scale))
    canvas.text(-left, -top, text, font, colours.text, "ls", tracking)
    return transcription(canvas, scale, text, task, language)


def paragraph(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Two to eight lines of text."""
    return lines_of_text(rng, sources, language, split, "paragraph", (2, 9), (160, 440), (12, 60))


def block(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Two to ten lines as wide as a page, of which each stands in several slices side by side."""
    return lines_of_text(rng, sources, language, split, "block", (2, 11), (440, 1000), (60, 120))


def lines_of_text(
    rng: np.random.Generator,
    sources: Sources,
    language: str,
    split: str,
    task: str,
    counts: tuple[int, int],
    widths: tuple[int, int],
    lengths: tuple[int, int],
) -> Sample:
    """The sample of so many lines (low, high) of such a width in pixels, out of text of so many characters a line."""
    face, scale, colours = sources.face(rng, language, split), scale_of(rng), ink(rng)
    count, width = int(rng.integers(*counts)), rng.uniform(*widths) * scale
    maker = passage if rng.random() < 0.75 else content
    text = clean(face, maker(rng, sources, language, split, int(rng.integers(*(count * each for each in lengths)))))
    font = sized(face, rng.uniform(12, 20) if rng.random() < 0.7 else rng.uniform(12, 32), text, scale)
    lines = Canvas.wrap(text, font, width)[:count]
    align = pick(rng, ("left", "left", "left", "left", "justified", "justified", "centre", "right"))
    step = font.size * rng.uniform(1.1, 1.8)
    left, above = 3 * scale + font.size * rng.uniform(0.1, 1.2, 2)
    wide, room = int(width + 2 * left), 2 * above + 1.3 * font.size
    lines = lines[: max(int((MAX_AREA * scale**2 / wide - room) / step), 0) + 1]
    canvas = Canvas(wide, int(room + step * (len(lines) - 1)), colours.paper)
    for row, text in enumerate(lines):
        last = "left" if align == "justified" and row == len(lines) - 1 else align
        put(canvas, left, above + font.size + row * step, width, text, font, colours.text, last)
    return transcription(canvas, scale, "\n".join(lines), task, language)


def notice(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """A sign: a few large words, filling a board, often with smaller ones below."""
    face, colours = sources.face(rng, language, split), ink(rng)
    if rng.random() < 0.5:
        colours = Ink(WHITE, pick(rng, STRONG))
    width, height = (int(side) for side in rng.integers((200, 150), 449))
    text = passage(rng, sources, language, split, int(rng.integers(4, 40)))
    if rng.random() < 0.5:
        text = mixture(rng, sources, language, split, int(rng.integers(2, 20)))
    text = clean(face, pick(rng, (text, text.upper(), capital(text)))) or "0"
    room, small = 0.86 * width, []
    if rng.random() < 0.4:
        below = clean(face, content(rng, sources, language, split, int(rng.integers(10, 60))))
        small_font = sized(face, rng.uniform(13, 20), below)
        small = Canvas.wrap(below, small_font, room)[:2]
    high = 0.8 * height - sum(1.4 * small_font.size for _ in small)
    font, lines = largest(face, text, room, high)
    align = pick(rng, ("centre", "centre", "centre", "left"))
    canvas = Canvas(width, height, colours.paper)
    if rng.random() < 0.4:
        gap, thick = int(rng.integers(1, 8)), int(rng.integers(1, 6))
        canvas.box(gap, gap, width - 1 - gap, height - 1 - gap, colours.text, None, thick)
    rows = [(text, font) for text in lines] + [(text, small_font) for text in small]
    y = (height - sum(1.2 * font.size for _, font in rows)) / 2
    for text, font in rows:
        put(canvas, 0.07 * width, y + 0.95 * font.size, room, text, font, colours.text, align)
        y += 1.2 * font.size
    return transcription(canvas, 1, "\n".join(text for text, _ in rows), "notice", language)


def largest(face: Font, text: str, width: float, height: float) -> tuple[FreeTypeFont, list[str]]:
    """The largest font, of some sizes, in which the text fits, and its lines; what never fits is cut off."""
    for size in (110, 84, 64, 48, 36, 28, 22, 18, 15):
        font = sized(face, size, text)
        lines = Canvas.wrap(text, font, width)
        if 1.2 * font.size * len(lines) <= height and " ".join(lines).split() == text.split():
            return font, lines
    return font, lines[: max(int(height / (1.2 * font.size)), 1)]
