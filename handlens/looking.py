"""Answers about the things in a picture: what each is called, how many there are, where they are, and their colours.

A small model names nothing that it sees and counts nothing. So the things are found first (things.py), the names of
each are read off what the vision tower makes of it (naming.py), and number, place and colour are then measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from handlens.data.questions import COLOURS, LANGUAGES, SHADES, SHAPES, Asked, asks, phrases, understood
from handlens.layout import Box
from handlens.naming import Names, Readout, sureness
from handlens.processor import Processor, read_messages
from handlens.reading import Texts
from handlens.things import Things, find_things

#: The kinds of questions that are answered so.
KINDS = ("name", "count", "locate", "colour", "shape", "present")
#: What is asked for in other words than those of questions.toml, told by some of them (`questions.asks`), and the kind.
FREELY = {"how_many": "count", "what_colour": "colour", "where": "locate"}
#: Where more things look different they are no few kinds of things.
MOST = 12
#: Of so many parts that stand apart, which look like several things, a thing may be that is named.
PARTS = 3
#: So many things of a group are looked at: alike ones have the same name.
EACH = 3
#: What scores at least this share of what fits a name best is meant by it as well, if it scores as what is there does.
AS_WELL = 0.6


class Looks(Protocol):
    """Who is asked: what of `chat.Chat` is needed here."""

    processor: Processor
    texts: Texts
    names: Names


def answer_by_things(chat: Looks, msgs: Any) -> Iterator[str] | None:
    """The answer to messages about one image without text, if the last one is a question of one of the KINDS, in the
    words of questions.toml, or asks in other words how many there are of something, where it is or which colour it
    has. None for other questions, for images in which no things stand apart from a calm ground, and where things are
    not known: ask about the image then."""
    messages, images = read_messages(msgs, chat.processor.limits)
    if len(images) != 1:
        return None
    question = messages[-1].words
    asked = understood(question, KINDS)
    if not (asked or any(asks(words, question) for words in FREELY)) or chat.texts.of(chat, images[0]):
        return None
    things = find_things(images[0])
    if things is None or len(things.groups) > MOST:
        return None
    readout = chat.names.readout
    answer = _Scene(things, chat.names, readout).answer(question, asked) if readout else None
    if answer is None and asks("how_many", question):
        # Which are meant is not known: those of which there are the most.
        answer = str(max(map(len, things.groups)))
    return None if answer is None else iter([answer])


@dataclass(frozen=True, eq=False)
class _Scene:
    """The things in a picture, and what names them."""

    things: Things
    names: Names
    readout: Readout

    def answer(self, question: str, asked: Sequence[Asked]) -> str | None:
        """The answer to a question, of whose readings the first is taken whose words are known."""
        # Some sentences are those of several languages, and so are some names, but for capitals.
        for reading in sorted(asked, key=self._is_spelled_otherwise):
            if reading.kind == "name":
                return self._name(reading.language)
            if reading.kind == "shape":
                colour = _colour_called(reading.slots["colour"], reading.language)
                if colour is not None:
                    return self._shape(colour, reading.language)
            elif meant := self.readout.meant(reading.slots["thing"], reading.language):
                return self._about(reading.kind, meant, reading.language)
        for words, kind in FREELY.items():
            languages = [language for language in LANGUAGES if asks(words, question, language)]
            if spoken := self.readout.spoken_of(question, languages):
                language, meant = spoken
                return self._about(kind, meant, language)
        return None

    def _is_spelled_otherwise(self, reading: Asked) -> bool:
        return reading.slots.get("thing", "") not in ("", *self.readout.names(reading.language))

    def _name(self, language: str) -> str | None:
        """What the thing in the picture is called; None where it is not clear."""
        first, *others = self.things.groups
        if others and len(self.things.boxes) > PARTS:
            return None
        shown = [range(len(self.things.boxes))] if others else [[place] for place in first[:EACH]]
        scores = self.names.scores([self.things.cut_out(*places) for places in shown]).mean(axis=0)
        if sureness(scores[None])[0] < self.readout.limits.named:
            return None
        return self.readout.names(language)[int(scores.argmax())] or None

    def _about(self, kind: str, meant: Sequence[int], language: str) -> str:
        """The answer to a question of a kind about the things that have one of the names."""
        scores = self._scores()[:, meant].max(axis=1)
        words, limits = phrases(language), self.readout.limits
        best = int(scores.argmax())
        if kind == "present":
            return words.yes if scores[best] >= limits.there else words.no
        if scores[best] < limits.absent:
            return words.absent
        if kind == "count":
            least = max(limits.there, AS_WELL * scores[best])
            chosen = [place for place, score in enumerate(scores) if place == best or score >= least]
            return str(sum(len(self.things.groups[place]) for place in chosen))
        first = self.things.groups[best][0]
        if kind == "locate":
            return words.positions[_part(self.things.boxes[first], self.things.image)]
        return words.colours[COLOURS[_colour(self.things, first)]]

    def _shape(self, colour: int, language: str) -> str:
        """What shape the things of a colour have."""
        words = phrases(language)
        coloured = [group for group in self.things.groups if _colour(self.things, group[0]) == colour]
        if not coloured:
            return words.absent
        largest = max(coloured, key=lambda group: sum(self.things.boxes[place].width for place in group))
        scores = self.names.scores([self.things.cut_out(place) for place in largest[:EACH]])
        return words.shapes[SHAPES[int(scores[:, self.readout.shapes].mean(axis=0).argmax())]]

    def _scores(self) -> np.ndarray:
        """How well the names fit each group, float32 [groups, names]."""
        shown = [group[:EACH] for group in self.things.groups]
        scores = iter(self.names.scores([self.things.cut_out(place) for group in shown for place in group]))
        return np.stack([np.mean([next(scores) for _ in group], axis=0) for group in shown])


def _part(box: Box, image: Image.Image) -> int:
    """In which of nine parts of an image the middle of a box lies, row by row from the top left."""
    column = 3 * (box.left + box.right) // (2 * image.width)
    row = 3 * (box.top + box.bottom) // (2 * image.height)
    return 3 * min(row, 2) + min(column, 2)


def _colour(things: Things, place: int) -> int:
    """Which of COLOURS most of a thing's pixels are nearest to."""
    thing = things.cut_out(place)
    pixels = thing[thing[..., 3] > 0][:, :3].astype(np.float32)
    far = ((pixels[:, None] - np.float32([SHADES[colour] for colour in COLOURS])) ** 2).sum(axis=2)
    return int(np.bincount(far.argmin(axis=1)).argmax())


def _colour_called(word: str, language: str) -> int | None:
    """Which of COLOURS a word means; None where it means none."""
    names = [name.casefold() for name in phrases(language).colours.values()]
    word = word.strip().casefold()
    return names.index(word) if word in names else None
