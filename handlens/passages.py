"""The lines of a text that a question speaks of: a small model finds things in a few lines, and gets lost in many."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from handlens.data.questions import LANGUAGES, kinds, templates

#: So many lines are taken, each at least this share as good as the best one.
MOST, SHARE = 3, 0.6
#: What a word counts that questions have in common, such as "price" or "form", beside others.
COMMON = 0.15
#: Words alike by less than this are different ones; letters of a word that count.
ALIKE, LETTERS = 0.55, 6
#: The least that the best line has to be worth: one word of two letters.
LEAST = 1.5
#: A text of so few lines is left as it is.
FEW = 4
#: So many cells are taken from the column of a label, above it and below it.
ABOVE, BELOW = 4, 2
WORD = re.compile(r"[^\W_]+")
RULE = re.compile(r"\|( ?-+ ?\|)+")


@dataclass(frozen=True)
class _Line:
    cells: tuple[str, ...]  # one where it is no row of a table
    table: int  # the number of its table, -1 outside of any


def passages(text: str, *questions: str) -> str:
    """The lines of a text that questions speak of, in their order, with what belongs to them: the value below a label,
    the column of a table. The whole text where it is short, or where no line has words of one of the questions.

    Words need not be alike to the letter, for texts are misread. Rare words count, and hardly those that questions of
    all kinds have in common (`data/questions.toml`).
    """
    lines = _lines(text)
    if len(lines) <= FEW:
        return text
    found: dict[int, list[str]] = {}
    for question in questions:
        wanted = {word: (COMMON if word in _common() else 1.0) * min(len(word), LETTERS) for word in _words(question)}
        worth = [_worth(" ".join(line.cells), wanted) for line in lines]
        best = max(worth)
        if best < LEAST:
            return text
        places = sorted(range(len(lines)), key=lambda place: -worth[place])[:MOST]
        chosen = [place for place in places if worth[place] >= SHARE * best]
        for place in chosen:
            parts = found.setdefault(place, [])
            parts += [part for part in _around(lines, place, chosen, wanted) if part not in parts]
    return "\n".join(part for place in sorted(found) for part in found[place])


def _lines(text: str) -> list[_Line]:
    found, table, inside = [], -1, False
    for line in text.split("\n"):
        is_row = line.startswith("|") and line.rstrip().endswith("|")
        table += is_row and not inside
        inside = is_row
        if line.strip() and not RULE.fullmatch(line.strip()):
            cells = tuple(cell.strip() for cell in line.strip()[1:-1].split("|")) if is_row else (line,)
            found.append(_Line(cells, table if is_row else -1))
    return found


def _around(lines: Sequence[_Line], place: int, chosen: Sequence[int], wanted: dict[str, float]) -> list[str]:
    """A line, and what stands below its words or in their column where its own words have no value beside them."""
    line = lines[place]
    if line.table < 0:
        alone = len(_words(line.cells[0])) <= sum(_worth(word, wanted) > 0 for word in _words(line.cells[0])) + 1
        below = lines[place + 1 : place + 2] if alone else []
        return [line.cells[0], *(_row(other) for other in below)]
    cell = max(range(len(line.cells)), key=lambda number: _worth(line.cells[number], wanted))
    beside = next(filter(None, line.cells[cell + 1 :]), "")
    inside = any(character.isdigit() for character in line.cells[cell])
    if inside or any(character.isdigit() for character in beside):
        return [_row(line)]
    column = {
        number: other.cells[cell]
        for number, other in enumerate(lines)
        if other.table == line.table and len(other.cells) > cell and other.cells[cell]
    }
    over = [text for number, text in column.items() if number < place][-ABOVE:]
    under = [text for number, text in column.items() if number > place][:BELOW]
    crossing = [column[number] for number in chosen if number in column and number != place]
    found = [_row(line)] if beside else []
    found += [" | ".join([line.cells[cell], *crossing])] if crossing else []
    return [*found, " | ".join([*over, line.cells[cell], *under])]


def _row(line: _Line) -> str:
    return " | ".join(filter(None, line.cells))


def _words(text: str) -> list[str]:
    return [word.casefold() for word in WORD.findall(text)]


@lru_cache(maxsize=1 << 16)
def _pairs(word: str) -> frozenset[str]:
    """The neighbouring letters of a word, and its ends."""
    return frozenset(map("".join, zip(f" {word}", f"{word} ", strict=True)))


def _likeness(one: str, other: str) -> float:
    """How alike two words are, from 0 to 1: the share of neighbouring letters that they have in common (Dice)."""
    if one == other:
        return 1.0
    if min(len(one), len(other)) < 3:
        return 0.0
    first, second = _pairs(one), _pairs(other)
    share = 2 * len(first & second) / (len(first) + len(second))
    return share if share >= ALIKE else 0.0


def _worth(text: str, wanted: dict[str, float]) -> float:
    words = _words(text)
    return sum(
        weight * max((_likeness(word, other) for other in words), default=0.0) for word, weight in wanted.items()
    )


@cache
def _common() -> frozenset[str]:
    sentences = (sentence for kind in kinds() for language in LANGUAGES for sentence in templates(kind, language))
    return frozenset(word for sentence in sentences for word in _words(re.sub(r"\{\w+\}", " ", sentence)))
