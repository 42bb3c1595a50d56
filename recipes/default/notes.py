"""Short texts that were never drawn, with questions that each have their answer in them.

To look a thing up in a text is learned from very many questions about very short ones; drawn documents are long, and
take a hundred times as long to make (transcripts.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from handlens.data import strings
from handlens.data.questions import ask, phrases
from handlens.data.sample import TRAIN, Sample
from handlens.data.sources import Sources, pick
from handlens.data.structured import PLACES, between, captions, chance, date, phrase, price
from handlens.markdown import markdown_table
from recipes.default.transcripts import misread

#: The least and the most lines of a note, and the most columns of one that is a table.
LINES, COLUMNS = (2, 14), 4
#: How often something is asked that is not there, and how often what is asked for was misread in the text.
ABSENT, MISREAD = 0.12, 0.15
#: Questions about a note with two columns.
KINDS = ("form-field", "receipt-field", "invoice-field", "screen-setting", "menu-price", "receipt-item-price")
KINDS += ("chart-value",)
#: What a label is called in questions of a kind, where that is not "field".
SLOTS = {"menu-price": "item", "receipt-item-price": "item", "chart-value": "label", "screen-setting": "name"}
#: What stands between a label and its value where they are no table.
BETWEEN = (": ", " ", " - ", ":\n", "\n", " ... ")


@dataclass(frozen=True)
class Note:
    """A text, and what is asked about it with the answers."""

    text: str
    asked: list[tuple[str, str]]

    def sample(self, language: str) -> Sample:
        """The note as a sample without a picture."""
        question, answer = self.asked[0]
        nothing = np.zeros((0, 0, 3), np.uint8)
        return Sample(nothing, question, answer, "writing", language, more=tuple(self.asked[1:]))


def note(rng: np.random.Generator, sources: Sources, language: str) -> Note:
    """A note in a language, out of the words for training."""
    labels = list(dict.fromkeys(_label(rng, sources, language) for _ in range(between(rng, *LINES) + 1)))
    *labels, missing = labels if len(labels) > 1 else [*labels, "?"]
    columns = between(rng, 2, COLUMNS) if chance(rng, 0.25) else 1
    heads = list(dict.fromkeys(_label(rng, sources, language) for _ in range(columns)))
    kinds = [pick(rng, VALUES) for _ in heads]
    alike = chance(rng, 0.5)  # the values of a column
    rows = {}
    for label in labels:
        ways = kinds if alike else [pick(rng, VALUES) for _ in heads]
        rows[label] = [way(rng, sources, language) for way in ways]
    title = [phrase(rng, sources, language, TRAIN, 4, 30)] if chance(rng, 0.6) else []
    asked = _questions(rng, language, rows, heads, missing)
    if title and chance(rng, 0.3):
        asked.append((ask(rng, pick(rng, ("title", "chart-title")), language), title[0]))
    letters = [letter for label in labels for letter in label if not letter.isspace()]
    shown = {label: misread(label, letters, rng) if chance(rng, MISREAD) else label for label in labels}
    lines = [(shown[label], *values) for label, values in rows.items()]
    text = "\n\n".join([*title, _written(rng, lines, ["", *heads] if len(heads) > 1 else None)])
    return Note(text, [asked[place] for place in rng.permutation(len(asked))])


def _questions(
    rng: np.random.Generator, language: str, rows: dict[str, list[str]], heads: Sequence[str], missing: str
) -> list[tuple[str, str]]:
    """A question about each line, and now and then one about a line that is not there."""
    kind, asked = pick(rng, KINDS), []
    for label, values in rows.items():
        place = int(rng.integers(len(values)))
        answer = values[place]
        if chance(rng, ABSENT):
            label, answer = missing, phrases(language).absent
        slots = {SLOTS.get(kind, "field"): label} if len(heads) == 1 else {"row": label, "column": heads[place]}
        asked.append((ask(rng, kind if len(heads) == 1 else "table-cell", language, **slots), answer))
    return asked


def _written(rng: np.random.Generator, lines: Sequence[Sequence[str]], heads: Sequence[str] | None) -> str:
    """The lines as a table, as lines of a label and its value, or as a row of labels over one of values."""
    if heads:
        return markdown_table(heads, lines)
    way = rng.random()
    if way < 0.4:
        return markdown_table(lines[0], lines[1:])
    if way < 0.55 and len(lines) <= 6:
        labels, values = zip(*lines, strict=True)
        first, second = (labels, values) if chance(rng, 0.5) else (values, labels)
        return markdown_table(first, [second])
    if way < 0.65:
        # Values stand at different heights over their labels, as in a chart.
        count = len(lines)
        cells = [[value if column == row else "" for column in range(count)] for row, (_, value) in enumerate(lines)]
        cells = [cells[place] for place in rng.permutation(count)][:6]
        if count <= 6:
            return markdown_table(cells[0], [*cells[1:], [label for label, _ in lines]])
    return _joined(rng, lines)


def _joined(rng: np.random.Generator, lines: Sequence[Sequence[str]]) -> str:
    between_, apart = pick(rng, BETWEEN), pick(rng, ("\n", "\n", "\n\n"))
    return apart.join(f"{label}{between_}{value}" for label, value in lines)


def _label(rng: np.random.Generator, sources: Sources, language: str) -> str:
    if chance(rng, 0.3):
        return pick(rng, _captions(sources, language))
    return phrase(rng, sources, language, TRAIN, 3, 24)


@cache
def _captions(sources: Sources, language: str) -> tuple[str, ...]:
    return tuple(captions(sources, language).values())


Value = Callable[[np.random.Generator, Sources, str], str]


def _money(rng: np.random.Generator, sources: Sources, language: str) -> str:
    place = PLACES[language]
    currency = pick(rng, place.currencies)
    return place.money(price(rng, currency), currency)


def _day(rng: np.random.Generator, sources: Sources, language: str) -> str:
    return date(rng).strftime(pick(rng, [way for way in PLACES[language].dates if "%b" not in way]))


def _number(rng: np.random.Generator, sources: Sources, language: str) -> str:
    unit = pick(rng, ("", "", "%", " kg", " km", " €"))
    return PLACES[language].number(int(np.exp(rng.uniform(0, np.log(9999)))), int(chance(rng, 0.3))) + unit


def _phrase(rng: np.random.Generator, sources: Sources, language: str) -> str:
    return phrase(rng, sources, language, TRAIN, 3, 30)


def _name(rng: np.random.Generator, sources: Sources, language: str) -> str:
    return sources.name(rng, language, TRAIN, pick(rng, ("person", "company", "city", "street")))


def _code(rng: np.random.Generator, sources: Sources, language: str) -> str:
    return pick(rng, (strings.number, strings.serial, strings.phone, strings.time))(rng)


VALUES: tuple[Value, ...] = (_money, _money, _number, _number, _day, _phrase, _phrase, _name, _code)
