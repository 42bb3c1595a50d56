"""The same text set in pictures of five shapes, each cut into slices in another way: do the answers agree?"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from handlens.data.raster import Canvas
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Sources, pick
from handlens.data.text import clean, passage, sized
from handlens.eval.benchmarks.lines import known, read
from handlens.eval.metrics import Ratio, character_errors, edits, normalised, total
from handlens.eval.suite import Drawn, Item, Scores, Suite, face_to_read, seeded

SHAPES = {"1:3": 1 / 3, "1:2": 1 / 2, "1:1": 1.0, "2:1": 2.0, "4:1": 4.0}  # width to height


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    languages = known(sources).get("Latin", sources.languages)
    for unit, i in itertools.product(range(-(-n // len(SHAPES))), range(len(SHAPES))):
        if unit * len(SHAPES) + i >= n:
            return
        rng = seeded(seed, "slicing", unit)  # all but the shape is the same
        language = pick(rng, languages)
        face = face_to_read(rng, sources, language)
        text = clean(face, passage(rng, sources, language, HELD_OUT, int(rng.integers(200, 480))))
        shape, ratio = list(SHAPES.items())[i]
        font = sized(face, rng.uniform(17, 24), text)
        yield Drawn(set_in(text, font, ratio), read(language), text, shape, language, f"text {unit}")


def set_in(text: str, font, ratio: float) -> np.ndarray:
    """The text in a picture whose width is `ratio` times its height, as small as it fits."""
    margin, step = font.size, round(1.4 * font.size)
    for height in range(3 * step, 4000, step // 2):
        width = round(height * ratio)
        lines = Canvas.wrap(text, font, width - 2 * margin)
        whole = " ".join(lines).split() == text.split()
        if whole and 2 * margin + len(lines) * step <= height:
            break
    canvas = Canvas(width, height)
    for row, line in enumerate(lines):
        canvas.text(margin, margin + row * step, line, font, (0, 0, 0))
    return canvas.finish()[0]


def score(item: Item, answer: str) -> Scores:
    return {"CER": character_errors(item.truth, answer)}


def agreement(answered: Sequence[tuple[Item, str]]) -> Scores:
    """1 less the edits between answers to the same text, over all pairs; answers to one shape tell nothing."""
    answers = [normalised(answer) for _, answer in answered]
    pairs = list(itertools.combinations(answers, 2))
    if not pairs:
        return {}
    apart = total(Ratio(edits(*pair), max(*map(len, pair), 1)) for pair in pairs)
    return {"agreement": Ratio(1 - apart.value)}


SUITE = Suite(
    name="slicing",
    about="the same text in pictures of five shapes",
    score=score,
    measures={"CER": "less", "agreement": "more"},
    score_unit=agreement,
    max_new_tokens=256,
    peers="text",
    build=build,
)
