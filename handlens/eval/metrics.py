"""What an answer is worth: the one home of every score.

A score is a `Ratio`: hits out of so many. Ratios add up, so a suite's score is the sum of its items': its character
error rate is all edits by all characters, its accuracy all right answers by all questions.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """`hits` out of `of`: edits of characters, right answers of questions, a share of one item."""

    hits: float
    of: float = 1

    def __add__(self, other: "Ratio") -> "Ratio":
        return Ratio(self.hits + other.hits, self.of + other.of)

    @property
    def value(self) -> float:
        """NaN for nothing out of nothing."""
        return self.hits / self.of if self.of else math.nan


def total(ratios: Iterable[Ratio]) -> Ratio:
    return sum(ratios, Ratio(0, 0))


# ------------------------------------------------------------------------------------------------------------ texts

#: Marks of Markdown that a reader of plain text does not write: of headings, lists, quotes and bold, and below heads.
MARKS = re.compile(
    r"^\s{0,3}(?:#{1,6}\s+|[-*+•]\s+|>\s+)|\*\*|__|^\s*\|?(?:\s*:?-{2,}:?\s*\|)+(?:\s*:?-{2,}:?\s*)?$", re.M
)
#: fi, fl and the like, as typeset documents hold them.
LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}


def normalised(text: str) -> str:
    """NFC, ligatures as letters, no soft hyphens, and one space wherever there is white space; case stays."""
    text = unicodedata.normalize("NFC", text).translate(LIGATURES | {0xAD: None})
    return " ".join(text.split())


def unmarked(text: str) -> str:
    """The text without its Markdown marks, so that who writes none loses nothing."""
    return MARKS.sub("", text)


def edits(one: Sequence, other: Sequence) -> int:
    """The Levenshtein distance: insertions, deletions and replacements that make one of the other."""
    if len(one) < len(other):
        one, other = other, one
    if not other:
        return len(one)
    codes: dict = {}
    one, other = ([codes.setdefault(sign, len(codes)) for sign in text] for text in (one, other))
    columns, places = np.asarray(one), np.arange(len(one) + 1)
    row = places
    for done, sign in enumerate(other, 1):
        below = np.minimum(row[1:] + 1, row[:-1] + (columns != sign))
        # Insertions run along the row: the least of all that stand to the left, each a step further.
        row = np.minimum.accumulate(np.concatenate(([done], below)) - places) + places
    return int(row[-1])


def character_errors(truth: str, answer: str) -> Ratio:
    """Edits by the characters of the truth, both normalised; more than 1 if much was invented."""
    truth, answer = normalised(truth), normalised(answer)
    return Ratio(edits(truth, answer), len(truth))


def exact(truth: str, answer: str) -> Ratio:
    """Whether both are the same when normalised; case counts."""
    return Ratio(float(normalised(truth) == normalised(answer)))


def similarity(one: str, other: str) -> float:
    """1 less the edits by the longer length; 1 for two empty texts."""
    return 1 - edits(one, other) / max(len(one), len(other), 1)


def anls(references: Sequence[str], answer: str) -> Ratio:
    """The highest similarity to one of the references, 0 if it is below 0.5; case does not count (DocVQA)."""
    best = max(similarity(normalised(reference).lower(), normalised(answer).lower()) for reference in references)
    return Ratio(best if best >= 0.5 else 0)


# --------------------------------------------------------------------------------------------------------- numbers

_NUMBER = re.compile(r"[-−–]?\s?\d(?:[\d.,'’]|[\s\u00a0\u202f](?=\d{3}(?!\d)))*")
#: What may stand around a number without changing it: signs of currencies and units. Letters may not, but for these.
_UNITS = re.compile(r"[€$£¥₺₽₴₫%\s]|\b(?:eur|usd|chf|pln|czk|vnd|tl|zł|kč|грн|руб|р|r|kg|km)\b\.?|(?<![^\W\d])đ(?!\w)")


def number(text: str) -> float | None:
    """The number that a text is, however its country writes it and whatever its unit; None if it is none.

    Of "." and "," the last one is the decimal mark, unless it is there twice, or three digits follow and more than a
    lone zero goes before: 1,234.50 and 1.234,50 and 1 234.5 are the same, 1,234 is a thousand, 0,125 is an eighth.
    """
    bare = _UNITS.sub(" ", normalised(text).lower()).strip(" .:;")
    found = _NUMBER.fullmatch(bare)
    if not found:
        return None
    digits = re.sub(r"[\s'’]", "", found[0])
    negative = digits[0] in "-−–"
    digits = digits.lstrip("-−–").rstrip(".,")
    mark = max(digits.rfind("."), digits.rfind(","))
    if mark >= 0:
        whole, rest = digits[:mark], digits[mark + 1 :]
        sign, other = digits[mark], {".": ",", ",": "."}[digits[mark]]
        if digits.count(sign) > 1:
            if other in digits or any(len(group) != 3 for group in digits.split(sign)[1:]):
                return None  # a date, a version
            whole, rest = digits.replace(sign, ""), ""
        elif len(rest) == 3 and other not in whole and whole not in ("", "0"):
            whole, rest = whole + rest, ""
        digits = f"{whole.replace(other, '')}.{rest}"
    value = float(digits)
    return -value if negative else value


def field(truth: str, answer: str) -> Ratio:
    """Whether the answer is the printed value: the same text but for case and punctuation around it, or the same
    number in whatever notation, with or without its unit."""
    if _plain(truth) == _plain(answer):
        return Ratio(1.0)
    wanted, given = number(truth), number(answer)
    return Ratio(float(wanted is not None and wanted == given))


def _plain(text: str) -> str:
    return normalised(text).casefold().strip(" .,:;!?\"'“”„«»")


def relaxed(truth: str, answer: str, tolerance: float = 0.05) -> Ratio:
    """Whether a number is within 5 % of the true one; what is no number must be the same (ChartQA)."""
    wanted, given = number(truth), number(answer)
    if wanted is None or given is None:
        return field(truth, answer)
    return Ratio(float(abs(given - wanted) <= tolerance * abs(wanted)))


def counted(truth: str, answer: str) -> Ratio:
    """Whether the first number in the answer, in digits, is the true one."""
    found = re.search(r"\d+", answer)
    return Ratio(float(found is not None and int(found[0]) == int(truth)))


# ---------------------------------------------------------------------------------------------------------- tables


def table_of(markdown: str) -> list[list[str]]:
    """The cells, row by row, of the lines with pipes in an answer; the line below the head is none of them."""
    rows = []
    for line in markdown.splitlines():
        line = line.strip()
        if "|" not in line or not line.strip("|:- "):
            continue
        cells = re.split(r"(?<!\\)\|", line.removeprefix("|").removesuffix("|"))
        rows.append([_plain(cell.replace("\\|", "|")) for cell in cells])
    return rows


def table_cells(truth: str, answer: str) -> Ratio:
    """F1 of the cells that are not empty, as (row, column, text), between two Markdown tables.

    Rows are matched in order so that most cells agree: one that is missing or too much does not spoil those below. In
    the first row a cell that repeats the one to its left counts as empty: a head over two columns is written both ways.
    """
    wanted, given = (_spanned(table_of(text)) for text in (truth, answer))
    cells = sum(bool(cell) for row in wanted + given for cell in row)
    best = np.zeros((len(wanted) + 1, len(given) + 1), int)
    for i, j in itertools.product(range(len(wanted)), range(len(given))):
        same = sum(bool(one) and one == other for one, other in zip(wanted[i], given[j]))
        best[i + 1, j + 1] = max(best[i, j] + same, best[i, j + 1], best[i + 1, j])
    return Ratio(2 * int(best[-1, -1]) / cells if cells else 1.0)


def _spanned(rows: list[list[str]]) -> list[list[str]]:
    if not rows:
        return rows
    head = [cell if column == 0 or cell != rows[0][column - 1] else "" for column, cell in enumerate(rows[0])]
    return [head, *rows[1:]]


def table_shape(truth: str, answer: str) -> Ratio:
    """Whether the answer has as many rows as the truth, and each as many columns."""
    return Ratio(float([len(row) for row in table_of(truth)] == [len(row) for row in table_of(answer)]))


# -------------------------------------------------------------------------------------------------------- refusals

#: How people, and models that were not made here, say in English that something is not there or cannot be read.
_FREE = re.compile(
    r"\b(?:no|not|none|nothing)\b.{0,40}\b(?:text|writing|in the (?:picture|image|document|table|chart)|present|visible"
    r"|shown|listed|found|mentioned|legible|readable)\b|\b(?:is|appears) (?:completely )?(?:blank|empty)\b"
    r"|\b(?:illegible|unreadable)\b|\b(?:can ?not|can't|unable to) (?:be )?(?:read|see|find)\b"
    r"|\b(?:does not|doesn't) (?:contain|appear|show|have)\b",
    re.I | re.S,
)
#: How alike a sentence has to be to one that is known; words of a refusal in free words at most.
_CLOSE, _SHORT = 0.8, 30


def refuses(answer: str, sentences: Iterable[str]) -> bool:
    """Whether an answer says that there is nothing to answer with: it is one of these sentences, but for one character
    in five, or a short English text that says so in other words."""
    plain = _plain(answer)
    if any(similarity(_plain(sentence), plain) >= _CLOSE for sentence in sentences):
        return True
    return len(plain.split()) <= _SHORT and _FREE.search(plain) is not None


# ------------------------------------------------------------------------------------------------------- intervals

#: Of the normal distribution, for 95 %.
_Z = 1.959963984540054


def wilson(hits: float, of: float) -> tuple[float, float]:
    """The 95 % interval of a share of independent yes or no (Wilson 1927)."""
    if of == 0:
        return 0.0, 1.0
    share, spread = hits / of, _Z * _Z / of
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(ratios: Sequence[Ratio], seed: int = 0, rounds: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the sum of ratios: between percentiles of sums over items drawn anew, with replacement."""
    table = np.array([(ratio.hits, ratio.of) for ratio in ratios], float)
    picks = np.random.default_rng(seed).integers(0, len(table), (rounds, len(table)))
    sums = table[picks].sum(axis=1)  # [rounds, 2]
    low, high = np.percentile(sums[:, 0] / np.maximum(sums[:, 1], 1e-12), (2.5, 97.5))
    return float(low), float(high)


def interval(ratios: Sequence[Ratio]) -> tuple[float, float]:
    """The 95 % interval of a suite's score: Wilson's where each item is right or wrong, else by bootstrap."""
    if all(ratio.of == 1 and ratio.hits in (0, 1) for ratio in ratios):
        whole = total(ratios)
        return wilson(whole.hits, whole.of)
    return bootstrap(ratios)
