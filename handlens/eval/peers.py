"""Other readers of text, measured beside a model in the same run: tesseract 5 and RapidOCR (the extra `eval`).

They only transcribe. Where a table is asked for, the words that they find are put into rows and columns by place.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import NamedTuple

from handlens.errors import HandlensError, InputError
from handlens.eval.run import Reader
from handlens.eval.suite import Item, Missing, Suite
from handlens.markdown import markdown_table

#: BCP-47 -> tesseract's name for a language.
TESSERACT = {
    "en": "eng", "de": "deu", "fr": "fra", "es": "spa", "it": "ita", "pt": "por", "nl": "nld", "pl": "pol", "cs": "ces",
    "tr": "tur", "vi": "vie", "ru": "rus", "uk": "ukr", "el": "ell", "zh": "chi_sim", "ja": "jpn", "ko": "kor",
}  # fmt: skip


#: Languages in scripts that the recogniser inside of rapidocr was not trained for.
UNREAD = ("ru", "uk", "el")


class Word(NamedTuple):
    """A piece of text and its box in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    text: str


class Tesseract:
    """The program tesseract, told the language of each text; it sits out those whose data is not installed."""

    name = "tesseract"

    def __init__(self):
        if shutil.which("tesseract") is None:
            raise Missing("tesseract is not installed; on Debian: apt-get install tesseract-ocr tesseract-ocr-deu ...")
        listed = _run(["tesseract", "--list-langs"]).splitlines()[1:]
        self.languages = {language for language, name in TESSERACT.items() if name in listed}
        self.name = " ".join(_run(["tesseract", "--version"]).split()[:2])
        self.digest = _digest(self.name)

    def answers(self, suite: Suite, item: Item) -> bool:
        return bool(suite.peers) and item.language in self.languages

    def how(self, suite: Suite) -> str:
        return ""

    def answer(self, suite: Suite, item: Item) -> str:
        layout = "7" if suite.peers == "line" else "3"  # one line; a page
        command = ["tesseract", str(item.image), "-", "-l", TESSERACT[item.language], "--psm", layout]
        if suite.peers != "table":
            return _run(command)
        rows = [line.split("\t") for line in _run([*command, "tsv"]).splitlines()[1:]]
        words = [Word(*_box(row[6:10]), row[11]) for row in rows if len(row) == 12 and row[11].strip()]
        return table(joined(words))


def _box(texts: Sequence[str]) -> tuple[float, float, float, float]:
    left, top, width, height = map(float, texts)
    return left, top, left + width, top + height


class RapidOCR:
    """The package rapidocr with the models inside it; lines from top to bottom, the parts of each from the left."""

    def __init__(self):
        try:
            self.name = f"rapidocr {version('rapidocr')}"
            import rapidocr
        except ModuleNotFoundError:
            raise Missing("rapidocr is not installed: pip install 'handlens[eval]'") from None
        self._package = rapidocr
        self.digest = _digest(self.name)

    @cached_property
    def _engine(self):
        return self._package.RapidOCR(params={"Global.log_level": "error"})

    def answers(self, suite: Suite, item: Item) -> bool:
        return bool(suite.peers) and item.language not in UNREAD

    def how(self, suite: Suite) -> str:
        return ""

    def answer(self, suite: Suite, item: Item) -> str:
        if suite.peers == "line":
            found = self._engine(str(item.image), use_det=False, use_cls=False, use_rec=True)
            return " ".join(found.txts or ())
        found = self._engine(str(item.image), use_det=True, use_cls=False, use_rec=True)
        words = [
            Word(*box.min(axis=0).tolist(), *box.max(axis=0).tolist(), text)
            for box, text in zip(found.boxes if found.boxes is not None else (), found.txts or ())
        ]
        rows = in_rows(words)
        return table(words) if suite.peers == "table" else "\n".join(" ".join(w.text for w in row) for row in rows)


PEERS: dict[str, type] = {"tesseract": Tesseract, "rapidocr": RapidOCR}


def open_peers(names: Sequence[str]) -> list[Reader]:
    """The peers of these names; InputError for others, Missing for what is not installed."""
    for name in names:
        if name not in PEERS:
            raise InputError(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
    return [PEERS[name]() for name in names]


def in_rows(words: Sequence[Word]) -> list[list[Word]]:
    """The words in rows from top to bottom, those of a row from left to right."""
    rows: list[list[Word]] = []
    for word in sorted(words, key=lambda word: word.top + word.bottom):
        middle = (word.top + word.bottom) / 2
        if rows and min(w.top for w in rows[-1]) < middle < max(w.bottom for w in rows[-1]):
            rows[-1].append(word)
        else:
            rows.append([word])
    return [sorted(row, key=lambda word: word.left) for row in rows]


def joined(words: Sequence[Word]) -> list[Word]:
    """Words of a row that stand as close as words of a sentence, as one."""
    parts: list[Word] = []
    for row in in_rows(words):
        start = len(parts)
        for word in row:
            last = parts[-1] if len(parts) > start else None
            if last and word.left - last.right < 0.6 * (word.bottom - word.top):
                parts[-1] = Word(
                    last.left,
                    min(last.top, word.top),
                    word.right,
                    max(last.bottom, word.bottom),
                    f"{last.text} {word.text}",
                )
            else:
                parts.append(word)
    return parts


def table(words: Sequence[Word]) -> str:
    """The words as a Markdown table: whatever stands above one another is a column."""
    spans: list[list[float]] = []
    for word in sorted(words, key=lambda word: word.left):
        if spans and word.left < spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], word.right)
        else:
            spans.append([word.left, word.right])
    rows = []
    for row in in_rows(words):
        cells = [""] * len(spans)
        for word in row:
            column = next(i for i, span in enumerate(spans) if word.left < span[1])
            cells[column] = f"{cells[column]} {word.text}".strip()
        rows.append(cells)
    return markdown_table(rows[0], rows[1:]) if rows else ""


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _run(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if ran.returncode:
        raise HandlensError(f"{command[0]} failed: {(ran.stderr or '').strip()[-300:]}")
    return ran.stdout
