"""What a suite is, and how one lies in a folder.

A suite loads items (an image, a question, the truth) and scores answers. Benchmarks of others fit the same shape: a
file in `benchmarks/` with a SUITE whose `load` reads their files. The suites made here lie in folders that `write` has
written: pictures, `items.jsonl`, and `suite.json`, which says how they were made.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlens.atomic import appearing
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Font, Sources, pick
from handlens.errors import HandlensError, InputError
from handlens.eval.metrics import Ratio

FACTS, ROWS = "suite.json", "items.jsonl"


class Missing(HandlensError):
    """A suite that cannot be made here; the message says what is missing."""


@dataclass(frozen=True)
class Item:
    """One question about one image. Items with the same `unit` belong together and are scored together as well."""

    id: str
    image: Path
    question: str
    truth: Any  # what the suite's `score` compares with: text, or whatever JSON holds
    group: str
    language: str = "en"
    unit: str = ""

    def digest(self) -> str:
        """What an answer depends on: the pixels' file and the question."""
        return hashlib.sha256(self.image.read_bytes() + self.question.encode()).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class Drawn:
    """An item that a builder has drawn."""

    image: np.ndarray  # uint8 [H, W, 3]
    question: str
    truth: Any
    group: str
    language: str
    unit: str = ""


@dataclass(frozen=True)
class Bar:
    """What a measure of a group has to reach: with a GPU to train on, and with a CPU only (None: nothing)."""

    measure: str
    group: str  # a group's name, or "" for all of the suite
    at: float
    without_gpu: float | None = None


Scores = dict[str, Ratio]  # by the names of the measures
Progress = Callable[[int, int], None]  # items done, items in all


def load_items(folder: Path) -> list[Item]:
    """The items of a suite's folder."""
    try:
        lines = (folder / ROWS).read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no suite; make it with: handlens eval build pocketdocs --sources DIR --out {folder.parent}"
        ) from None
    rows = map(json.loads, lines)
    return [Item(**row | {"image": folder / row["image"]}) for row in rows]


@dataclass(frozen=True, eq=False)
class Suite:
    """Questions of one kind. `measures` says of each measure whether "more" or "less" of it is better."""

    name: str
    about: str  # a sentence for the report
    score: Callable[[Item, str], Scores]
    measures: dict[str, str]
    load: Callable[[Path], list[Item]] = load_items
    #: Of the items of one unit and their answers, what a single answer does not tell; {} where there is no such thing.
    score_unit: Callable[[Sequence[tuple[Item, str]]], Scores] | None = None
    bars: tuple[Bar, ...] = ()
    max_new_tokens: int = 64
    #: Whether items ask for all text, or for something that a text may tell: a model that reads lines is then shown
    #: them one by one, as by `handlens read` and `handlens ask`.
    transcribes: bool = False
    asks: bool = False
    #: How other readers are asked, who only transcribe: "line", "text" or "table"; "" where they have no part in it.
    peers: str = ""
    #: Draws items number 0, 1, 2 ... with the seed: called as build(sources, n, seed, packages).
    build: Callable[..., Iterator[Drawn]] | None = field(default=None, repr=False)


def write(suite: Suite, folder: Path, drawn: Iterator[Drawn], facts: dict, tell: Callable[[int], None]) -> int:
    """Writes a suite's folder, which appears whole or not at all, and returns how many items it has."""
    with appearing(folder, InputError) as temporary:
        with (temporary / ROWS).open("w", encoding="utf-8", newline="\n") as rows:
            number = 0
            for item in drawn:
                name = f"{number:04}.png"
                Image.fromarray(item.image).save(temporary / name, compress_level=6)
                row = {"id": f"{suite.name}-{number:04}", "image": name}
                row |= {key: getattr(item, key) for key in ("question", "truth", "group", "language", "unit")}
                rows.write(json.dumps(row, ensure_ascii=False) + "\n")
                number += 1
                tell(number)
        (temporary / FACTS).write_text(json.dumps({"suite": suite.name, "n": number} | facts, indent=1) + "\n")
    return number


def facts_of(folder: Path) -> dict:
    """How a suite was made; {} for one that says nothing."""
    path = folder / FACTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def face_to_read(rng: np.random.Generator, sources: Sources, language: str) -> Font:
    """A held-out font at random, none that is made for posters: at the sizes of text its hairlines vanish."""
    faces = sources.fonts(language, HELD_OUT)
    faces = [face for face in faces if not face.family.endswith("Display")] or faces
    family = pick(rng, sorted({face.family for face in faces}))
    return pick(rng, [face for face in faces if face.family == family])


def seeded(seed: int, name: str, number: int) -> np.random.Generator:
    """The random numbers of one item, whatever other items are drawn."""
    return np.random.default_rng([seed, *name.encode(), number])
