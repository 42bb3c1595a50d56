"""Pictures of things from drawing styles that training never saw: their names, numbers, places and colours."""

from collections.abc import Iterator
from pathlib import Path

from handlens.data.make import draw
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Sources
from handlens.eval.metrics import counted, field
from handlens.eval.suite import Bar, Drawn, Item, Scores, Suite

#: The makers, by the groups of the suite.
GROUPS = {"name": "name", "count": "count", "locate": "locate", "colour and shape": "shapes"}


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    for i in range(n):
        group, task = list(GROUPS.items())[i % len(GROUPS)]
        language = sources.languages[i // len(GROUPS) % len(sources.languages)]
        sample = draw(sources, task, language, seed, i, HELD_OUT, strength=0)
        yield Drawn(sample.image, sample.question, sample.answer, group, language)


def score(item: Item, answer: str) -> Scores:
    return {"right": (counted if item.truth.isdecimal() else field)(item.truth, answer)}


SUITE = Suite(
    name="scenes",
    about="naming, counting and finding things drawn in held-out styles",
    score=score,
    measures={"right": "more"},
    bars=(Bar("right", "count", 0.85, 0.5),),
    asks=True,
    build=build,
)
