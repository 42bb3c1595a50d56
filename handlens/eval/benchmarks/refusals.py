"""Questions that have no answer in the picture, and as many that look alike and have one: a model has to refuse the
former and must not refuse the latter. What a twin is answered does not matter here, only that it is."""

from collections.abc import Callable, Iterator
from pathlib import Path

from handlens.data.make import draw
from handlens.data.questions import phrases
from handlens.data.sample import HELD_OUT, Sample
from handlens.data.sources import Sources
from handlens.eval.benchmarks.lines import read
from handlens.eval.metrics import Ratio, refuses
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
    return {getattr(phrases(l), key) for l in (language, "en") for key in ("absent", "blank", "unreadable", "no_text")}


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    for i in range(n):
        group, pair = list(PAIRS.items())[i // 2 % len(PAIRS)]
        language = sources.languages[i // 2 // len(PAIRS) % len(sources.languages)]
        refused = i % 2 == 0
        task, strength = pair[0 if refused else 1]
        sample = drawn(sources, task, language, seed, i, strength, lambda answer: (answer in sentences(language)) == refused)
        # Reading is asked for in the same words on both sides.
        question = sample.question if task == "absent" else read(language)
        yield Drawn(sample.image, question, sample.answer if refused else "", group, language)


def drawn(
    sources: Sources, task: str, language: str, seed: int, i: int, strength: float, wanted: Callable[[str], bool]
) -> Sample:
    """The first sample from number 1000 i on whose answer is wanted."""
    number = 1000 * i
    while not wanted((sample := draw(sources, task, language, seed, number, HELD_OUT, strength)).answer):
        number += 1
    return sample


def score(item: Item, answer: str) -> Scores:
    refused = float(refuses(answer, sentences(item.language)))
    return {"refused rightly" if item.truth else "refused wrongly": Ratio(refused)}


SUITE = Suite(
    name="refusals",
    about="questions without an answer in the picture, and as many with one",
    score=score,
    measures={"refused rightly": "more", "refused wrongly": "less"},
    bars=(Bar("refused rightly", "", 0.9, 0.8), Bar("refused wrongly", "", 0.05, 0.05)),
    build=build,
)
