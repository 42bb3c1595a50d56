"""What is asked about an image, and the short answers that are not read from it, in every language.

The sentences are the table `questions.toml`, beside this file.
"""

import re
import tomllib
from collections.abc import Sequence
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
#: What COLOURS look like, of 255 levels of red, green and blue.
SHADES: dict[str, tuple[int, int, int]] = {
    "black": (15, 15, 15),
    "white": (250, 250, 250),
    "grey": (128, 128, 128),
    "red": (215, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 220, 40),
    "green": (40, 150, 60),
    "blue": (35, 80, 205),
    "purple": (120, 45, 150),
    "pink": (250, 140, 185),
    "brown": (115, 70, 35),
}


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
    where: tuple[str, ...]
    what_colour: tuple[str, ...]
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


def asks(what: str, question: str, language: str | None = None) -> bool:
    """Whether a question, in any language or in this one, asks for "how_many" things there are, "when" something was,
    "where" it is or "what_colour" it has: whether it has words for that, of which those for a number often ask for a
    price as well."""
    return _asking(what, language).search(question) is not None


@dataclass(frozen=True)
class Asked:
    """A question that was understood: its kind, its language, and what its slots hold."""

    kind: str
    language: str
    slots: dict[str, str]


def understood(question: str, asked: Sequence[str]) -> list[Asked]:
    """The question as each of the kinds `asked` and in each language that has it; none where it is in other words than
    the table's. The sentences that say most themselves, and so leave least to the slots, come first. Case, blanks,
    kinds of quotation marks and the last mark do not matter."""
    question = " ".join(question.split())
    found = [
        Asked(kind, language, match.groupdict())
        for kind in asked
        for language in LANGUAGES
        for pattern in _patterns(kind, language)
        if (match := pattern.fullmatch(question))
    ]
    return sorted(found, key=lambda asked: sum(map(len, asked.slots.values())))


#: What quotes a thing, and what may end a sentence.
QUOTES, ENDS = "\"“”„«»‘’'「」", "?!.。？；;:"


@cache
def _patterns(kind: str, language: str) -> tuple[re.Pattern, ...]:
    """What matches the sentences of one kind in one language."""
    patterns = []
    for template in templates(kind, language):
        pattern = ""
        for part in re.split(r"(\{\w+\}|\s+)", template.rstrip(ENDS + " ")):
            if part.startswith("{"):
                pattern += f"(?P<{part[1:-1]}>.+?)"
            elif part.strip():
                # Quotation marks may be others, or none, and so may the blanks inside of them.
                pattern += re.sub(f"[{QUOTES}]+", lambda _: f"[{QUOTES} ]*", re.escape(part))
            else:
                pattern += " ?"
        patterns.append(re.compile(f"{pattern}[{ENDS} ]*", re.IGNORECASE))
    return tuple(patterns)


@cache
def _asking(what: str, language: str | None) -> re.Pattern:
    languages = LANGUAGES if language is None else (language,)
    said = (re.escape(words) for language in languages for words in getattr(phrases(language), what))
    return re.compile("|".join(_LETTER.sub(lambda _: r"\b", words) for words in said), re.IGNORECASE)


#: The ends of what is said in letters that blanks part into words, which Chinese, Japanese and Korean ones are not.
_LETTER = re.compile(r"^(?=[^\W\u3000-\uffff])|(?<=[^\W\u3000-\uffff])$")


@cache
def phrases(language: str) -> Phrases:
    """The short answers in this language."""
    row = _table()["answers"][checked(language)]
    named = {"colours": COLOURS, "shapes": SHAPES, "languages": LANGUAGES}
    lists = {name: dict(zip(keys, row[name], strict=True)) for name, keys in named.items()}
    words = ("how_many", "when", "where", "what_colour", "positions")
    return Phrases(**row | lists | {name: tuple(row[name]) for name in words})


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
