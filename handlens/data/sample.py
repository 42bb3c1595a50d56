"""One drawn example with its exact answer, and what draws such examples."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from handlens.data.sources import Sources

TRAIN = "train"
HELD_OUT = "held-out"
SPLITS = (TRAIN, HELD_OUT)


def no_centres() -> np.ndarray:
    """float32 [0, 2]: the centres of a sample without glyphs."""
    return np.zeros((0, 2), np.float32)


@dataclass(frozen=True, eq=False)
class Sample:
    """An image, what is asked of it, and the answer.

    An empty question means plain transcription: who trains or measures picks one of the templates for reading.
    """

    image: np.ndarray  # uint8 [H, W, 3], RGB
    question: str
    answer: str
    task: str  # the name of its maker: "line", "page", "table", ...
    language: str  # BCP-47 language of question and answer
    characters: tuple[str, ...] = ()  # every visible glyph, with a blank where a word ends ...
    centres: np.ndarray = field(default_factory=no_centres)  # ... and its centre, float32 [n, 2]: (x, y) in pixels
    more: tuple[tuple[str, str], ...] = ()  # further questions about the image, each with its answer


class Maker(Protocol):
    """Draws one kind of sample. A pure function: the same generator state and sources give the same bytes."""

    def __call__(self, rng: np.random.Generator, sources: "Sources", language: str, split: str) -> Sample: ...
