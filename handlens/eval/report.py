"""What a run says: scores by suite, measure and group, with intervals and bars, as Markdown; pictures of answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

import handlens
from handlens.data.sheet import Cell, contact_sheet
from handlens.data.sources import Sources
from handlens.eval.metrics import Ratio, interval, total
from handlens.eval.run import Answered
from handlens.eval.suite import Bar, Suite

ALL = "all"
RIGHT, WRONG, GREY, BLUE = (0, 110, 40), (180, 20, 20), (140, 140, 140), (20, 60, 160)


@dataclass(frozen=True)
class Row:
    """One score: of a reader in a measure, for one group of a suite or all of it."""

    suite: str
    measure: str
    group: str
    reader: str
    n: int
    value: float
    low: float
    high: float
    seconds: float  # an item, on average
    bar: Bar | None = None
    verdict: str = ""


@dataclass(frozen=True, eq=False)
class Result:
    """The answers of one reader to one suite."""

    suite: Suite
    reader: str
    answered: Sequence[Answered]
    is_model: bool = True


def rows(result: Result) -> Iterator[Row]:
    """The scores of a suite: measure by measure, all items first, then each group. Bars are for models."""
    suite, scored = result.suite, []
    for one in result.answered:
        scored += [(one, one.item.group, measure, r) for measure, r in suite.score(one.item, one.answer).items()]
    if suite.score_unit:
        units: dict[str, list[Answered]] = {}
        for one in result.answered:
            units.setdefault(one.item.unit, []).append(one)
        for unit in units.values():
            scores = suite.score_unit([(one.item, one.answer) for one in unit])
            scored += [(unit[0], ALL, measure, ratio) for measure, ratio in scores.items()]
    for measure in suite.measures:
        groups = dict.fromkeys([ALL, *(group for _, group, name, _ in scored if name == measure)])
        for group in groups:
            chosen = [(one, r) for one, own, name, r in scored if name == measure and group in (ALL, own)]
            if not chosen or (group != ALL and len(groups) == 2):
                continue  # the only group is all there is
            bar = next((b for b in suite.bars if b.measure == measure and (b.group or ALL) == group), None)
            yield _row(result, measure, group, chosen, bar if result.is_model else None)


def _row(result: Result, measure: str, group: str, chosen: Sequence[tuple[Answered, Ratio]], bar: Bar | None) -> Row:
    ratios = [ratio for _, ratio in chosen]
    value = total(ratios).value
    seconds = float(np.mean([one.seconds for one, _ in chosen]))
    verdict = _verdict(value, bar, result.suite.measures[measure]) if bar else ""
    return Row(
        result.suite.name, measure, group, result.reader, len(chosen), value, *interval(ratios), seconds, bar, verdict
    )


def _verdict(value: float, bar: Bar, better: str) -> str:
    def reaches(at: float | None) -> bool:
        return at is not None and (value >= at if better == "more" else value <= at)

    return "reached" if reaches(bar.at) else "reached for a CPU" if reaches(bar.without_gpu) else "missed"


def markdown(results: Sequence[Result], facts: Sequence[tuple[str, str]], lacking: dict[str, str]) -> str:
    """The report: facts about the run, a table for each suite, and what could not be measured."""
    lines = ["# Pocketdocs", ""]
    lines += [f"- {name}: {value}" for name, value in (("date", f"{datetime.now(UTC):%Y-%m-%d}"), *facts)]
    lines.append(f"- handlens {handlens.__version__}; intervals are 95 %")
    for suite in dict.fromkeys(result.suite for result in results):
        lines += ["", f"## {suite.name}: {suite.about}", ""]
        lines += ["| measure | group | reader | n | score | 95 % | bar (GPU / CPU) | | s/item |"]
        lines += ["|---|---|---|--:|--:|---|---|---|--:|"]
        own = [row for result in results if result.suite is suite for row in rows(result)]
        places = {key: place for place, key in enumerate(dict.fromkeys((row.measure, row.group) for row in own))}
        for row in sorted(own, key=lambda row: places[row.measure, row.group]):
            lines.append("| " + " | ".join(_cells(row, suite)) + " |")
    if lacking:
        lines += ["", "## Not measured", "", *(f"- {name}: {reason}" for name, reason in lacking.items())]
    return "\n".join(lines) + "\n"


def _cells(row: Row, suite: Suite) -> list[str]:
    sign = "≥" if suite.measures[row.measure] == "more" else "≤"
    bars = [] if row.bar is None else [row.bar.at] + ([] if row.bar.without_gpu is None else [row.bar.without_gpu])
    bar = f"{sign} " + " / ".join(percent(at) for at in bars) if bars else ""
    spread = f"{percent(row.low)} – {percent(row.high)}"
    scores = [row.measure, row.group, row.reader, str(row.n), percent(row.value), spread]
    return [*scores, bar, row.verdict, f"{row.seconds:.2f}"]


def percent(share: float) -> str:
    return f"{100 * share:.3g} %" if abs(share) < 10 else f"{100 * share:.0f} %"


def pictures(result: Result, sources: Sources, most: int = 20) -> Image.Image:
    """A contact sheet of answers, as many right as wrong as far as there are: question, truth, answer."""
    suite = result.suite
    first = next(iter(suite.measures))

    def goodness(one: Answered) -> float:
        scores = suite.score(one.item, one.answer)
        name = first if first in scores else next(iter(scores))
        value = scores[name].value
        return value if suite.measures[name] == "more" else 1 - value

    ranked = sorted(result.answered, key=goodness, reverse=True)
    half = most // 2
    chosen = ranked if len(ranked) <= most else ranked[:half] + ranked[-half:]
    return contact_sheet((_cell(one, goodness(one)) for one in chosen), sources, columns=5)


def _cell(one: Answered, goodness: float) -> Cell:
    item = one.item
    with Image.open(item.image) as image:
        pixels = np.asarray(image.convert("RGB"))
    truth = item.truth if isinstance(item.truth, str) else item.truth["answer"]
    colour = RIGHT if goodness > 0.9 else WRONG
    texts = [(f"{item.id} · {item.group} · {item.language} · {percent(goodness)}", GREY, "en")]
    texts += [(item.question, BLUE, item.language), (truth, (0, 0, 0), item.language)]
    return Cell(pixels, [*texts, (one.answer or "(nothing)", colour, item.language)])


def write_pictures(results: Sequence[Result], sources: Sources, report: Path) -> list[Path]:
    """A sheet for each suite that a model answered, beside the report and named after it."""
    written = []
    for result in results:
        if result.is_model and result.answered:
            path = report.with_name(f"{report.stem}-{result.suite.name}.png")
            pictures(result, sources).save(path, "png")
            written.append(path)
    return written
