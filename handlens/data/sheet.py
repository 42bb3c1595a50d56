"""Contact sheets: many samples on one picture, each with its question and answer, to look at."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from handlens.data.make import rows
from handlens.data.raster import Canvas, Colour
from handlens.data.sample import TRAIN
from handlens.data.sources import Sources, load
from handlens.errors import InputError

QUESTION, ANSWER, GREY = (20, 60, 160), (0, 0, 0), (140, 140, 140)
#: Pixels of a cell's picture, at most, and of an em of its text; lines of a text at most.
CELL, EM, LINES = 320, 14, 12
GAP = 8


@dataclass(frozen=True, eq=False)
class Cell:
    """A picture and what is written below it: texts, their colours, and the language of each."""

    image: np.ndarray  # uint8 [H, W, 3]
    texts: Sequence[tuple[str, Colour, str]]


def contact_sheet(cells: Iterable[Cell], sources: Sources, columns: int = 5) -> Image.Image:
    """The cells in rows of `columns`, their pictures not enlarged; texts are in fonts of `sources`."""
    blocks = [_block(cell, sources) for cell in cells]
    if not blocks:
        raise InputError("there are no samples to show")
    bands = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
    heights = [max(block.height for block in band) + GAP for band in bands]
    sheet = Image.new("RGB", (min(columns, len(blocks)) * (CELL + GAP) + GAP, sum(heights) + GAP), (225, 225, 225))
    top = GAP
    for band, height in zip(bands, heights):
        for column, block in enumerate(band):
            sheet.paste(block, (GAP + column * (CELL + GAP), top))
        top += height
    return sheet


def sheet_of_set(folder: str | Path, sources: Sources, most: int = 40, columns: int = 5) -> Image.Image:
    """The contact sheet of samples from all over a set that `generate` has made."""
    known = list(rows(folder))
    step = max(len(known) / most, 1)
    chosen = (known[int(place * step)] for place in range(min(most, len(known))))
    return contact_sheet((_cell(path, row) for path, row in chosen), sources, columns)


def _cell(path: Path, row: dict) -> Cell:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    head = (f"{row['task']} · {row['language']}", GREY, "en")
    return Cell(pixels, (head, (row["question"], QUESTION, row["language"]), (row["answer"], ANSWER, row["language"])))


def _block(cell: Cell, sources: Sources) -> Image.Image:
    """One picture with its texts below it."""
    picture = Image.fromarray(cell.image)
    picture.thumbnail((CELL, CELL))
    lines = []
    for text, colour, language in cell.texts:
        font = _font(text, language, sources)
        wrapped = [line for part in text.split("\n") for line in Canvas.wrap(part, font, CELL - GAP) or [""]]
        lines += [(line, colour, font) for line in islice(wrapped, LINES)]
        lines += [("…", colour, font)] * (len(wrapped) > LINES)
    block = Image.new("RGB", (CELL, picture.height + round(len(lines) * EM * 1.35) + GAP), (255, 255, 255))
    block.paste(picture, ((CELL - picture.width) // 2, 0))
    draw = ImageDraw.Draw(block)
    for row, (line, colour, font) in enumerate(lines):
        draw.text((GAP / 2, picture.height + GAP / 2 + row * EM * 1.35), line, colour, font)
    return block


def _font(text: str, language: str, sources: Sources) -> FreeTypeFont:
    """A plain font that can write the text, or as much of it as any."""
    fonts = sources.fonts(language if language in sources.languages else sources.languages[0], TRAIN)

    def rank(font) -> tuple:
        lacking = sum(not font.covers(character) for character in set(text))
        return lacking, font.style != "sans", font.weight != 400, font.italic, font.family

    return load(min(fonts, key=rank).path, EM)
