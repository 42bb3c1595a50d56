"""Makers of pictures without readable text: blank sheets, text beyond reading, and what looks like a photograph.

Their answers say so, in the words of questions.py. They have no glyphs to learn from.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from handlens.data.questions import phrases
from handlens.data.raster import Canvas, Colour
from handlens.data.sample import Sample
from handlens.data.sources import Sources, load, pick
from handlens.data.structured import PAPERS, STRONG, mix
from handlens.data.text import content, ink

SHAPES = ((448, 448), (448, 448), (336, 448), (448, 336), (448, 112), (300, 300), (224, 224), (448, 60), (560, 400))


def blank(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """A sheet with nothing on it: plain, ruled, squared, framed, or a form that nobody printed."""
    width, height = pick(rng, SHAPES)
    paper = pick(rng, PAPERS) if rng.random() < 0.8 else pick(rng, STRONG)
    canvas = Canvas(width, height, paper)
    pick(rng, SHEETS)(
        rng, canvas, mix(paper, pick(rng, ((0, 0, 0), (255, 255, 255), (60, 90, 190))), rng.uniform(0.15, 0.6))
    )
    return Sample(canvas.finish()[0], "", phrases(language).blank, "blank", language)


def plain(rng: np.random.Generator, canvas: Canvas, colour: Colour) -> None:
    """Nothing."""


def ruled(rng: np.random.Generator, canvas: Canvas, colour: Colour) -> None:
    """Lines to write on, and a margin."""
    step = int(rng.integers(14, 40))
    for y in range(int(rng.integers(5, 60)), canvas.height, step):
        canvas.line(0, y, canvas.width, y, colour)
    if rng.random() < 0.5:
        x = int(rng.integers(10, 80))
        canvas.line(x, 0, x, canvas.height, (220, 120, 120))


def squared(rng: np.random.Generator, canvas: Canvas, colour: Colour) -> None:
    step = int(rng.integers(8, 50))
    for x in range(int(rng.integers(0, step)), canvas.width, step):
        canvas.line(x, 0, x, canvas.height, colour)
    for y in range(int(rng.integers(0, step)), canvas.height, step):
        canvas.line(0, y, canvas.width, y, colour)


def framed(rng: np.random.Generator, canvas: Canvas, colour: Colour) -> None:
    gap = int(rng.integers(2, 24))
    canvas.box(gap, gap, canvas.width - 1 - gap, canvas.height - 1 - gap, colour, None, int(rng.integers(1, 5)))


def unfilled(rng: np.random.Generator, canvas: Canvas, colour: Colour) -> None:
    """Empty fields."""
    y, gap = 12, int(rng.integers(8, 30))
    while y < canvas.height - 20:
        high = int(rng.integers(14, 40))
        canvas.box(12, y, int(rng.uniform(0.3, 1) * (canvas.width - 13)), min(y + high, canvas.height - 4), colour)
        y += high + gap


SHEETS: tuple[Callable[[np.random.Generator, Canvas, Colour], None], ...] = (
    plain,
    plain,
    plain,
    ruled,
    squared,
    framed,
    unfilled,
)


def unreadable(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Lines of text that nobody can read: far too small, out of focus, in mosaic, or under noise."""
    width, height = pick(rng, SHAPES)
    colours, face, size = ink(rng), sources.face(rng, language, split), int(rng.integers(12, 26))
    font = load(face.path, size)
    canvas = Canvas(width, height, colours.paper)
    step = round(size * rng.uniform(1.2, 1.8))
    text = content(rng, sources, language, split, int(rng.integers(40, 600)))
    for row, line in enumerate(Canvas.wrap(text, font, width - 24)[: max((height - 16) // step, 1)]):
        canvas.text(12, 8 + row * step, line, font, colours.text)
    picture = pick(rng, RUINS)(rng, canvas.picture, size)
    return Sample(np.array(picture), "", phrases(language).unreadable, "unreadable", language)


def tiny(rng: np.random.Generator, picture: Image.Image, size: int) -> Image.Image:
    """Drawn with about two pixels an em, and shown larger."""
    factor = rng.uniform(1.2, 2.2) / size
    small = picture.resize([max(round(side * factor), 8) for side in picture.size], Image.Resampling.BILINEAR)
    return small.resize(
        picture.size, pick(rng, (Image.Resampling.BILINEAR, Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    )


def unfocused(rng: np.random.Generator, picture: Image.Image, size: int) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.38, 0.7)))


def moved(rng: np.random.Generator, picture: Image.Image, size: int) -> Image.Image:
    """Smeared along the lines, so that letters run into each other."""
    return picture.filter(ImageFilter.BoxBlur((size * rng.uniform(0.8, 1.6), size * rng.uniform(0.1, 0.3))))


def noisy(rng: np.random.Generator, picture: Image.Image, size: int) -> Image.Image:
    """Out of focus, faint, and under noise that is stronger than the rest of the ink."""
    faint = np.asarray(picture.filter(ImageFilter.BoxBlur(0.2 * size)), np.float32)
    faint = 128 + (faint - faint.mean()) * rng.uniform(0.06, 0.15)
    noise = rng.normal(0, rng.uniform(35, 70), (*faint.shape[:2], 1)).astype(np.float32)
    return Image.fromarray((faint + noise).clip(0, 255).astype(np.uint8))


RUINS = (tiny, tiny, unfocused, unfocused, moved, noisy)


def photo(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Something like a photograph: clouds, ground, blurred shapes; no text."""
    width, height = pick(rng, SHAPES)
    octaves = sum(
        np.asarray(clouds(rng, width, height, cells), np.float32) * np.float32(strength)
        for cells, strength in zip((3, 6, 14, 40), rng.uniform(0, 1, 4) * (1, 0.6, 0.35, 0.2))
    )
    octaves = (octaves - octaves.min()) / max(float(np.ptp(octaves)), 1e-6)  # [H, W]
    palette = rng.uniform(0, 255, (4, 3))
    palette += (palette.mean(axis=1, keepdims=True) - palette) * rng.uniform(0.1, 0.95)  # photographs are seldom bright
    place = octaves * 3
    ramp = np.stack([np.interp(place, range(4), palette[:, channel]) for channel in range(3)], axis=2)
    if rng.random() < 0.5:  # sky and ground
        horizon = np.linspace(0, 1, height)[:, None, None] > rng.uniform(0.3, 0.7)
        ramp = np.where(horizon, ramp * rng.uniform(0.3, 0.8), ramp)
    canvas = Canvas(width, height)
    canvas.paste(0, 0, ramp.clip(0, 255).astype(np.uint8))
    for _ in range(int(rng.integers(0, 9))):
        x, y, w, h = rng.uniform(0, 1, 4) * (width, height, width / 2, height / 2)
        colour = tuple(int(part) for part in rng.integers(0, 256, 3))
        draw = pick(rng, (canvas.ellipse, canvas.box))
        draw(x, y, x + w, y + h, None, colour)
    picture = canvas.picture.filter(ImageFilter.BoxBlur(float(rng.uniform(0.5, 9))))
    image = np.asarray(picture, np.int16) + rng.integers(-8, 9, (height, width, 1), np.int8)
    return Sample(image.clip(0, 255).astype(np.uint8), "", phrases(language).no_text, "photo", language)


def clouds(rng: np.random.Generator, width: int, height: int, cells: int) -> Image.Image:
    """Smooth noise, mode L, with this many cells a side."""
    field = Image.fromarray(rng.integers(0, 256, (cells, cells), np.uint8))
    return field.resize((width, height), Image.Resampling.BICUBIC)
