"""What charts say: labels, values that can be known from the picture, and the facts that can be asked."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from handlens.data.sources import Sources, pick
from handlens.data.structured import (
    DAYS,
    MONTHS,
    PLACES,
    Fact,
    between,
    captions,
    chance,
    clear,
    phrase,
)
from handlens.markdown import markdown_table


@dataclass(frozen=True)
class Chart:
    """What a chart says. Values are whole, in units of 10^-decimals; `write` gives them as printed."""

    kind: str
    title: str
    axis: str  # the name of the value axis, or ""
    labels: tuple[str, ...]
    series: dict[str, tuple[int, ...]]  # by name; "" where there is one
    shown: bool  # values are printed beside the marks
    step: int  # between two ticks of the value axis
    top: int  # where it ends
    write: Callable[[int], str]

    @property
    def values(self) -> tuple[int, ...]:
        """Those of the first series."""
        return next(iter(self.series.values()))

    @property
    def ticks(self) -> range:
        return range(0, self.top + 1, self.step)

    def reading(self) -> str:
        columns = zip(*self.series.values())
        rows = [(label, *map(self.write, values)) for label, values in zip(self.labels, columns)]
        header = ("", self.axis) if len(self.series) == 1 else ("", *self.series)
        return (f"# {self.title}\n\n" if self.title else "") + markdown_table(header, rows)

    def facts(self) -> tuple[Fact, ...]:
        several = len(self.series) > 1
        facts = [
            Fact("chart-value", self.write(value), {"label": f"{label}, {name}" if several else label})
            for name, values in self.series.items()
            for label, value in zip(self.labels, values)
        ]
        if not several:  # all values differ
            facts.append(Fact("chart-highest", self.labels[int(np.argmax(self.values))]))
            facts.append(Fact("chart-lowest", self.labels[int(np.argmin(self.values))]))
        if self.title:
            facts.append(Fact("chart-title", self.title))
        return clear(facts)


TOPICS = ("sales", "profit", "costs", "population", "temperature", "share", "average", "total", "messages", "quantity")
UNITS = ("", "", "", "%", " kg", " km", " €")


def invent(rng: np.random.Generator, sources: Sources, language: str, split: str, kinds: tuple[str, ...]) -> Chart:
    """A chart whose values can be known: printed at the marks, or on or halfway between the ticks of the axis."""
    kind = pick(rng, kinds)
    round_ = kind in ("pie", "donut")
    labels = categories(rng, sources, language, split, between(rng, 3, 6 if round_ else 8))
    place = PLACES[language]
    decimals = 0 if round_ else pick(rng, (0, 0, 0, 1))
    shown = round_ or chance(rng, 0.6)
    step = pick(rng, (2, 4, 10, 10, 20, 50, 100, 200, 500, 1000))
    ticks = between(rng, 4, 7)
    unit = pick(rng, UNITS)
    if round_ and chance(rng, 0.7):
        unit = "%"
    elif unit == "%" and (round_ or step * ticks > 100 * 10**decimals):
        unit = ""
    several = not round_ and kind in ("bar", "line") and len(labels) <= 5 and chance(rng, 0.25)
    names = [phrase(rng, sources, language, split, 1, 12) for _ in range(2)] if several else [""]
    grain = max(1, step // 20) if shown else step // 2
    series = {}
    for name in names:
        if round_ and unit == "%":
            series[name] = shares(rng, len(labels))
        else:
            count = step * ticks // grain
            series[name] = tuple(distinct(rng, count, len(labels), grain))
    title = phrase(rng, sources, language, split, 4, 30) if chance(rng, 0.8) else ""
    topic = captions(sources, language)[pick(rng, TOPICS)]
    if title and chance(rng, 0.3):
        title = pick(rng, (topic, f"{topic} {between(rng, 1980, 2035)}"))
    axis = topic if not round_ and chance(rng, 0.3) else ""
    return Chart(
        kind,
        title,
        axis,
        labels,
        series,
        shown,
        step,
        max(step * ticks, max(max(values) for values in series.values())),
        lambda value: place.number(value, decimals) + unit,
    )


def categories(rng: np.random.Generator, sources: Sources, language: str, split: str, count: int) -> tuple[str, ...]:
    """Different names, as few as two where a list of names is short."""
    kind = pick(rng, ("year", "quarter", "city", "city", "words", "words", "words", "letter", "month", "day"))
    if kind == "year":
        start = between(rng, 1950, 2030)
        return tuple(str(start + index) for index in range(count))
    if kind == "quarter":
        return tuple(f"Q{index + 1}" for index in range(min(count, 4)))
    if kind in ("month", "day"):
        keys = MONTHS if kind == "month" else DAYS
        start = between(rng, 0, len(keys) - 3)
        words = captions(sources, language)
        return tuple(dict.fromkeys(words[key] for key in keys[start : start + count]))
    if kind == "letter":
        return tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[between(rng, 0, 18) :][:count])
    names: dict[str, None] = {}
    for turn in itertools.count():
        if len(names) == count:
            break
        # Some languages have fewer cities than a chart has marks, small sources fewer words.
        name = sources.name(rng, language, split, "city") if kind == "city" and turn < 4 * count else ""
        if not 0 < len(name) <= 14:
            name = phrase(rng, sources, language, split, 1, 12)
        names[name if turn < 50 * count else f"{name} {turn}"] = None
    return tuple(names)


def distinct(rng: np.random.Generator, count: int, needed: int, grain: int) -> list[int]:
    """Different multiples of `grain`, none of them 0."""
    return [int(index + 1) * grain for index in rng.permutation(count)[:needed]]


def shares(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """Different whole percentages of 4 and more that sum to 100."""
    while True:
        parts = rng.dirichlet(np.full(count, 2.0)) * 100
        values = [round(part) for part in parts[:-1]]
        values.append(100 - sum(values))
        if min(values) >= 4 and len(set(values)) == count:
            return tuple(values)
