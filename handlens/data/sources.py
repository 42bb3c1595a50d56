"""The prepared folder, opened: fonts, text, words, names and pictures, each with its training and held-out side.

`handlens data prepare` writes the folder (prepare.py), `index.json` in it says what is where and the SHA-256 of each
file. Everything is read when it is first asked for, and kept.
"""

import hashlib
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

from handlens.data.sample import SPLITS
from handlens.data.words import LABELS
from handlens.errors import HandlensError

INDEX = "index.json"
VERSION = 1
ADVICE = "make it with: handlens data prepare --out DIR"


class SourcesError(HandlensError):
    """A prepared folder that is missing, damaged, or without what was asked for."""


@dataclass(frozen=True, eq=False)
class Font:
    """One font file. `outlines` names the drawings: families that share them are on the same side of the split."""

    family: str
    outlines: str
    style: str  # "sans", "serif", "mono", "display" or "hand"
    weight: int  # 400 is regular, 700 bold
    italic: bool
    split: str
    path: Path
    languages: frozenset[str]
    characters: frozenset[str]

    def covers(self, text: str) -> bool:
        """Whether the font draws every character of `text` but white space."""
        return self.characters.issuperset(character for character in text if not character.isspace())


@dataclass(frozen=True, eq=False)
class Sprites:
    """Pictures of things. `images` is uint8 [set, thing, side, side, 4], RGBA; the rest goes along its axes."""

    sets: tuple[str, ...]
    keys: tuple[str, ...]  # the emoji itself: the same key is the same thing on both sides
    categories: tuple[str, ...]
    names: dict[str, tuple[str, ...]]  # language -> the name of each thing
    images: np.ndarray


class Sources:
    """A prepared folder."""

    def __init__(self, folder: Path, index: dict):
        self.folder = folder
        self.languages: tuple[str, ...] = tuple(index["languages"])
        self.faces: tuple[Font, ...] = tuple(_font(folder, row) for row in index.get("fonts", ()))
        self._files: frozenset[str] = frozenset(index["files"])
        self._cache: dict[tuple, object] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Sources":
        """The sources in a folder that `handlens data prepare` wrote; every file is checked against its digest."""
        folder = Path(path)
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SourcesError(f"{folder} is no prepared folder: it has no {INDEX}; {ADVICE}") from None
        except (OSError, ValueError) as failure:
            raise SourcesError(f"{folder / INDEX} cannot be read ({failure}); {ADVICE}") from None
        if not isinstance(index, dict) or index.get("version") != VERSION:
            raise SourcesError(f"{folder} was prepared by another version of handlens; {ADVICE}")
        for name, digest in index["files"].items():
            try:
                data = (folder / name).read_bytes()
            except OSError as failure:
                raise SourcesError(f"{folder / name} is missing or unreadable ({failure}); {ADVICE}") from None
            if hashlib.sha256(data).hexdigest() != digest:
                raise SourcesError(f"{folder / name} is not the file that was prepared; {ADVICE}")
        return cls(folder, index)

    def fonts(self, language: str, split: str) -> tuple[Font, ...]:
        """The fonts of one side that can write the language."""
        key = ("fonts", language, split)
        if key not in self._cache:
            self._check(language, split)
            found = tuple(face for face in self.faces if face.split == split and language in face.languages)
            self._cache[key] = self._wanted(found, f"{split} fonts for {language!r}", "fonts")
        return self._cache[key]

    def face(self, rng: np.random.Generator, language: str, split: str) -> Font:
        """A font at random: each family is as likely as any other."""
        key = ("families", language, split)
        if key not in self._cache:
            families: dict[str, list[Font]] = {}
            for font in self.fonts(language, split):
                families.setdefault(font.family, []).append(font)
            self._cache[key] = tuple(map(tuple, families.values()))
        return pick(rng, pick(rng, self._cache[key]))

    def font(self, rng: np.random.Generator, language: str, split: str, size: int) -> ImageFont.FreeTypeFont:
        """A font at random that covers the language, at `size` pixels an em."""
        return load(self.face(rng, language, split).path, size)

    def lines(self, language: str, split: str) -> tuple[str, ...]:
        """Lines of running prose, one or more whole sentences each."""
        return self._list("text", language, split)

    def text(self, language: str, split: str) -> str:
        """All lines as one text."""
        return "\n".join(self.lines(language, split))

    def words(self, language: str, split: str) -> Sequence[str]:
        """Words, the frequent ones first, in the case in which texts write them most often."""
        return self._list("words", language, split)

    def names(self, language: str, split: str, kind: str) -> Sequence[str]:
        """All names of a kind: person, first, last, company, street, city, country, language, job, product."""
        return self._list("names", f"{language}.{kind}", split)

    def name(self, rng: np.random.Generator, language: str, split: str, kind: str) -> str:
        """A name of a kind at random."""
        return pick(rng, self.names(language, split, kind))

    def labels(self, language: str) -> dict[str, str]:
        """Short words of receipts, forms, charts and screens by their English keys (words.py)."""
        return LABELS[language]

    def sprites(self, split: str) -> Sprites:
        """The pictures of one side: sets are split, things are not."""
        key = ("sprites", split)
        if key not in self._cache:
            name = f"sprites/{split}.npz"
            self._wanted(name in self._files, f"{split} pictures", "sprites")
            with np.load(self.folder / name) as file:
                images = file["images"]
            table = json.loads((self.folder / "sprites/names.json").read_text(encoding="utf-8"))
            names = {language: tuple(things) for language, things in table["names"].items()}
            things = (tuple(table[key]) for key in ("keys", "categories"))
            self._cache[key] = Sprites(tuple(table["sets"][split]), *things, names, images)
        return self._cache[key]

    def _list(self, part: str, name: str, split: str) -> tuple[str, ...]:
        key = (part, name, split)
        if key not in self._cache:
            self._check(name.split(".")[0], split)
            path = f"{part}/{name}.{split}.xz"
            self._wanted(path in self._files, f"{split} {part} of {name!r}", part)
            data = (self.folder / path).read_bytes()
            self._cache[key] = tuple(lzma.decompress(data).decode("utf-8").splitlines())
        return self._cache[key]

    def _check(self, language: str, split: str) -> None:
        if language not in self.languages:
            raise SourcesError(
                f"no sources for the language {language!r}; {self.folder} has {', '.join(self.languages)}"
            )
        if split not in SPLITS:
            raise SourcesError(f"the split {split!r} is not one of {', '.join(SPLITS)}")

    def _wanted(self, found, what: str, part: str):
        if not found:
            raise SourcesError(f"{self.folder} has no {what}; add them with: handlens data prepare --parts {part}")
        return found


def pick(rng: np.random.Generator, options: Sequence):
    """One of them, each as likely."""
    return options[int(rng.integers(len(options)))]


@lru_cache(maxsize=512)
def load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font file at a size. The basic layout: the prepared fonts hold no tables for a richer one."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _font(folder: Path, row: dict) -> Font:
    return Font(
        *(row[key] for key in ("family", "outlines", "style", "weight", "italic", "split")),
        path=folder / row["path"],
        languages=frozenset(row["languages"]),
        characters=frozenset(chr(code) for first, last in row["characters"] for code in range(first, last + 1)),
    )
