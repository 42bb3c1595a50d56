"""What is asked about an image, and the short answers that are not read from it, in every language.

The sentences are the table `questions.toml`, beside this file.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from handlens.errors import InputError

if TYPE_CHECKING:
    import numpy as np

#: The languages of the table, BCP-47.
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "tr", "vi", "ru", "uk", "el", "zh", "ja", "ko")
#: The order of the lists of names in the table; the English names are the keys in `Phrases`.
COLOURS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SHAPES = ("circle", "square", "rectangle", "triangle", "star", "diamond", "cross", "ring")


@dataclass(frozen=True)
class Phrases:
    """The short answers of one language, and words of its questions."""

    absent: str
    blank: str
    unreadable: str
    no_text: str
    yes: str
    no: str
    how_many: tuple[str, ...]  # what asks for a number of things, see `asks`
    when: tuple[str, ...]
    positions: tuple[str, ...]  # nine, row by row from the top left
    colours: dict[str, str]  # by COLOURS
    shapes: dict[str, str]  # by SHAPES
    languages: dict[str, str]  # by LANGUAGES: the names of languages in this language


def kinds() -> tuple[str, ...]:
    """The kinds of questions there are."""
    return tuple(kind for kind in _table() if kind != "answers")


def templates(kind: str, language: str) -> tuple[str, ...]:
    """The sentences of one kind in one language, with slots in braces."""
    if kind not in kinds():
        raise InputError(f"there is no kind of question {kind!r}; there are {', '.join(kinds())}")
    return tuple(_table()[kind][checked(language)])


def ask(rng: "np.random.Generator", kind: str, language: str, **slots: str) -> str:
    """A question of this kind, in words drawn by `rng`, with its slots filled in as they are."""
    choices = templates(kind, language)
    return choices[rng.integers(len(choices))].format(**slots)


def asks(what: str, question: str) -> bool:
    """Whether a question, in any language, asks for "how_many" things there are or "when" something was: whether it has
    words for that, of which those for a number often ask for a price as well."""
    return _asking(what).search(question) is not None


@cache
def _asking(what: str) -> re.Pattern:
    said = (re.escape(words) for language in LANGUAGES for words in getattr(phrases(language), what))
    return re.compile("|".join(_LETTER.sub(lambda _: r"\b", words) for words in said), re.IGNORECASE)


#: The ends of what is said in letters that blanks part into words, which Chinese, Japanese and Korean ones are not.
_LETTER = re.compile(r"^(?=[^\W\u3000-\uffff])|(?<=[^\W\u3000-\uffff])$")


@cache
def phrases(language: str) -> Phrases:
    """The short answers in this language."""
    row = _table()["answers"][checked(language)]
    named = {"colours": COLOURS, "shapes": SHAPES, "languages": LANGUAGES}
    lists = {name: dict(zip(keys, row[name], strict=True)) for name, keys in named.items()}
    return Phrases(**row | lists | {name: tuple(row[name]) for name in ("how_many", "when", "positions")})


def language_of(name: str) -> str | None:
    """The language that a name stands for: BCP-47, or what it is called in English or in itself; None for others."""
    name = name.strip().casefold()
    for code in LANGUAGES:
        if name in (code, phrases("en").languages[code].casefold(), phrases(code).languages[code].casefold()):
            return code
    return None


def checked(language: str) -> str:
    """The language itself; InputError with the languages there are if it is none of them."""
    if language not in LANGUAGES:
        raise InputError(f"there are no questions in the language {language!r}; there are {', '.join(LANGUAGES)}")
    return language


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("questions.toml").read_text(encoding="utf-8"))
