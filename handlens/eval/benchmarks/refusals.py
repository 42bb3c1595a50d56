"""Questions that have no answer in the picture, and as many that look alike and have one: a model has to refuse the
former and must not refuse the latter. What a twin is answered does not matter here, only that it is."""

import itertools
from collections.abc import Iterator
from pathlib import Path

from handlens.data.make import draw
from handlens.data.questions import phrases
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Sources
from handlens.eval.benchmarks.lines import read
from handlens.eval.metrics import Ratio, normalised, refuses, similarity
from handlens.eval.suite import Bar, Drawn, Item, Scores, Suite

#: Group: the task and how much it is degraded, of the question without an answer and of its twin; the half of the
#: samples of "absent" and "writing" that is wanted is told by the answer.
PAIRS: dict[str, tuple[tuple[str, float], tuple[str, float]]] = {
    "not in the picture": (("absent", 0), ("absent", 0)),
    "blank": (("blank", 1), ("paragraph", 0)),
    "unreadable": (("unreadable", 0), ("paragraph", 1)),
    "no text": (("photo", 0), ("notice", 1)),
    "no text in a scene": (("writing", 0), ("line", 0)),
}


def sentences(language: str) -> set[str]:
    """The refusals of a language and of English."""
    known = (phrases(language), phrases("en"))
    return {getattr(words, key) for words in known for key in ("absent", "blank", "unreadable", "no_text")}


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    for i in range(n):
        group, pair = list(PAIRS.items())[i // 2 % len(PAIRS)]
        language = sources.languages[i // 2 // len(PAIRS) % len(sources.languages)]
        refused = i % 2 == 0
        task, strength = pair[0 if refused else 1]
        for number in itertools.count(1000 * i):
            sample = draw(sources, task, language, seed, number, HELD_OUT, strength)
            if (sample.answer in sentences(language)) == refused:
                break
        # Reading is asked for in the same words on both sides.
        question = sample.question if task == "absent" else read(language)
        yield Drawn(sample.image, question, {"answer": sample.answer, "refused": refused}, group, language)


def score(item: Item, answer: str) -> Scores:
    """What reads a sentence such as "the file cannot be found" off a picture does not refuse."""
    read_off = not item.truth["refused"] and similarity(normalised(item.truth["answer"]), normalised(answer)) > 0.5
    refused = Ratio(float(refuses(answer, sentences(item.language)) and not read_off))
    return {"refused rightly" if item.truth["refused"] else "refused wrongly": refused}


SUITE = Suite(
    name="refusals",
    about="questions without an answer in the picture, and as many with one",
    score=score,
    measures={"refused rightly": "more", "refused wrongly": "less"},
    bars=(Bar("refused rightly", "", 0.9, 0.8), Bar("refused wrongly", "", 0.05, 0.05)),
    asks=True,
    build=build,
)
