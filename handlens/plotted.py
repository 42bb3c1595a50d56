"""Charts whose values stand above what they belong to: bars and points, each with its value, over a row of labels."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from handlens.layout import Box
from handlens.markdown import markdown_table

#: A chart has at least so many labels in a row, and this share of them has one value above it.
FEWEST, FILLED = 3, 0.6
#: Labels stand in a row whose middles differ by less than this share of their height; a value stands above a label
#: where their middles differ by less than this share of the distance of two labels.
LEVEL, ABOVE = 0.6, 0.35
#: A chart has at most so many lines of text above it, and below its labels.
TITLES, BELOW = 4, 1
#: What a value looks like: a number, with a unit of a few letters.
VALUE = re.compile(r"\W*[^\W\d]{0,3}\W*\d[\d.,\s]*[^\d]{0,4}")


@dataclass(frozen=True)
class Plotted:
    """What a chart says: the text above it, and its labels from left to right, each with its value or ""."""

    titles: list[str]
    values: list[tuple[str, str]]

    @property
    def markdown(self) -> str:
        """The titles, each by itself, and a table with a row for each label."""
        return "\n\n".join([*self.titles, markdown_table(("", ""), self.values)])


def find_plotted(texts: Mapping[Box, str]) -> Plotted | None:
    """The chart that lines with these texts are; None where they are none, or one of another kind."""
    lines = [line for line, text in texts.items() if text]
    for row in _rows(lines):
        below = [line for line in lines if line.top >= row[0].bottom]
        if len(row) < FEWEST or len(below) > BELOW or _are_ticks([texts[line] for line in row]):
            continue
        step = (_middle(row[-1]) - _middle(row[0])) / (len(row) - 1)
        above = [line for line in lines if line.bottom <= row[0].top and _is_value(texts[line])]
        columns = [[line for line in above if abs(_middle(line) - _middle(label)) < ABOVE * step] for label in row]
        alone = [found[0] for found in columns if len(found) == 1]
        # Values side by side are those of a table.
        if len(alone) >= max(FILLED * len(row), 2) and len(_rows(alone)) > 1:
            highest = min(value.top for value in alone)
            titles = [texts[line] for line in lines if line.bottom <= highest and not _is_value(texts[line])]
            values = [texts[found[0]] if len(found) == 1 else "" for found in columns]
            if len(titles) > TITLES:
                return None
            return Plotted(titles, [(texts[label], value) for label, value in zip(row, values, strict=True)])
    return None


def _rows(lines: list[Box]) -> list[list[Box]]:
    """Lines that stand side by side, the lowest row first, each from left to right."""
    rows: list[list[Box]] = []
    for line in sorted(lines, key=_level, reverse=True):
        if rows and _level(rows[-1][0]) - _level(line) < LEVEL * min(line.height, rows[-1][0].height):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [sorted(row, key=_middle) for row in rows]


def _are_ticks(texts: list[str]) -> bool:
    """Whether these are the numbers along an axis: equally far from each other, and no years."""
    found = [re.sub(r"[^\d.,]", "", text).replace(",", ".") for text in texts]
    try:
        numbers = [float(text) for text in found]
    except ValueError:
        return False
    steps = {round(after - before, 6) for before, after in pairwise(numbers)}
    return len(steps) == 1 and not (steps == {1.0} and numbers[0] > 1000)


def _middle(line: Box) -> float:
    return (line.left + line.right) / 2


def _level(line: Box) -> float:
    return (line.top + line.bottom) / 2


def _is_value(text: str) -> bool:
    return VALUE.fullmatch(text) is not None
