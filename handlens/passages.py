"""The lines of a text that a question speaks of: a small model finds things in a few lines, and gets lost in many."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import takewhile

from handlens.data.questions import LANGUAGES, asks, kinds, templates
from handlens.data.words import LABELS

#: So many lines are taken of those that are about as good as the best one: worth at least this share of it.
MOST, SHARE = 2, 0.8
#: What a word counts that questions have in common, such as "price" or "form", beside others.
COMMON = 0.15
#: Words alike by less than this are different ones; letters of a word that count.
ALIKE, LETTERS = 0.55, 6
#: The least that the best line has to be worth: one word of two letters.
LEAST = 1.5
#: A text of so few lines is left as it is.
FEW = 4
#: So many cells are taken from the column of a label: those below it, or those above a label that is the last.
BELOW, ABOVE = 2, 4
#: The fields of forms whose labels are known (`data/words.py`), and how alike a cell and one of them are.
FIELDS = ("name", "first_name", "last_name", "date_of_birth", "street", "address", "postal_code", "city", "country")
FIELDS += ("company", "occupation", "language", "phone", "email", "signature")
SAME = 0.8
#: An answer this much like a cell, and not in the text as it is, was copied from there with a mistake.
COPIED = 0.75
WORD = re.compile(r"[^\W_]+")
#: What a day looks like.
DAY = re.compile(r"\b\d{1,4}([./-])\s?\d{1,2}\1\s?\d{1,4}\b")
RULE = re.compile(r"\|( ?-+ ?\|)+")


@dataclass(frozen=True)
class _Line:
    cells: tuple[str, ...]  # one where it is no row of a table
    table: int  # the number of its table, -1 outside of any

    @property
    def text(self) -> str:
        return " ".join(self.cells)


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
        # "When was this bought?" has no word of the line that says it.
        days = enumerate(map(_dated, lines)) if asks("when", question) else ()
        dated = [(place, cells) for place, cells in days if cells][:MOST]
        for place, cells in dated:
            found.setdefault(place, []).append(cells)
        if dated:
            continue
        wanted = {word: (COMMON if word in _common() else 1.0) * min(len(word), LETTERS) for word in _words(question)}
        chosen = _best(lines, wanted)
        if not chosen:
            return text
        # A row and a column are often asked for together.
        said = {word for place in chosen for word in wanted if _worth(lines[place].text, {word: 1.0})}
        others = _best(lines, {word: weight for word, weight in wanted.items() if word not in said}, 1)
        for place in {*chosen, *others}:
            parts = found.setdefault(place, [])
            crossing = chosen if place in others else others
            parts += [part for part in _around(lines, place, crossing, wanted) if part not in parts]
    return "\n".join(part for place in sorted(found) for part in found[place])


def as_written(text: str, answer: str) -> str:
    """An answer out of a text in the text's own letters: small models misspell rare words that they copy."""
    if not answer or answer.casefold() in text.casefold():
        return answer
    cells = {part.strip() for line in _lines(text) for cell in line.cells for part in (cell, cell.rpartition(":")[2])}
    alike = {cell: _likeness(answer.casefold(), cell.casefold()) for cell in cells}
    best = max(alike, key=alike.__getitem__, default="")
    return best if alike.get(best, 0) >= COPIED else answer


def _dated(line: "_Line") -> str:
    """The cells of a line that say a day, each with what stands before it where it says nothing else."""
    found = []
    for number, cell in enumerate(line.cells):
        if match := DAY.search(cell):
            before = next(filter(None, reversed(line.cells[:number])), "") if match[0] == cell.strip() else ""
            found.append(" ".join(filter(None, (before, cell))))
    return " | ".join(found)


def _best(lines: Sequence["_Line"], wanted: dict[str, float], most: int = MOST) -> list[int]:
    """The places of the lines that are worth most for the wanted words; [] where none is."""
    worth = [_worth(line.text, wanted) for line in lines]
    best = max(worth)
    places = sorted(range(len(lines)), key=lambda place: -worth[place])[:most]
    return [place for place in places if worth[place] >= max(SHARE * best, LEAST)]


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


def _around(lines: Sequence[_Line], place: int, crossing: Sequence[int], wanted: dict[str, float]) -> list[str]:
    """A line, and what stands below its words or in their column where its own words have no value beside them: in the
    `crossing` lines, or next to it."""
    line = lines[place]
    if line.table < 0:
        alone = len(_words(line.cells[0])) <= sum(_worth(word, wanted) > 0 for word in _words(line.cells[0])) + 1
        below = lines[place + 1 : place + 2] if alone else []
        return [line.cells[0], *(_row(other) for other in below)]
    cell = max(range(len(line.cells)), key=lambda number: _worth(line.cells[number], wanted))
    beside = next(filter(None, line.cells[cell + 1 :]), "")
    if _is_label(beside):  # each value stands below its label
        beside = ""
    inside = any(character.isdigit() for character in line.cells[cell])
    if inside or any(character.isdigit() for character in beside):
        return [_row(line)]
    column = {
        number: other.cells[cell]
        for number, other in enumerate(lines)
        if other.table == line.table and len(other.cells) > cell and other.cells[cell]
    }
    crossed = [column[number] for number in crossing if number in column and number != place]
    below = [text for number, text in column.items() if number > place][:BELOW]
    above = [text for number, text in column.items() if number < place][-ABOVE:] if not below else []
    below = list(takewhile(lambda text: not _is_label(text), below))
    beneath = [line.cells[cell], *crossed] if crossed else [*above, line.cells[cell], *below]
    more = any(not _worth(word, wanted) for word in _words(line.cells[cell]))
    row = [_row(line)] if beside or more or beneath == [line.cells[cell]] else []
    return [*row, *([" | ".join(beneath)] if len(beneath) > 1 else [])]


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


@lru_cache(maxsize=1 << 12)
def _is_label(text: str) -> bool:
    """Whether a cell says what stands in another one: it is a usual label of a form, in any language."""
    plain = text.casefold().strip(" :")
    return any(_likeness(plain, label) > SAME for label in _labels())


@cache
def _labels() -> frozenset[str]:
    return frozenset(words[key].casefold() for words in LABELS.values() for key in FIELDS)


@cache
def _common() -> frozenset[str]:
    """The words of all questions that ask for something by its name."""
    sentences = (sentence for kind in kinds() for language in LANGUAGES for sentence in templates(kind, language))
    named = (re.sub(r"\{\w+\}", " ", sentence) for sentence in sentences if "{" in sentence)
    return frozenset(word for sentence in named for word in _words(sentence))
