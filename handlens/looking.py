"""Answers about the things in a picture: what each is called, how many there are and where.

A small model names one thing better than it counts many, so the things are found first (things.py), each that looks
different is shown to it alone, and it says how likely each is what was asked for. Number and place are then known.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from PIL import Image

from handlens.data.questions import Asked, phrases, templates, understood
from handlens.engine.sampling import SamplingParams
from handlens.layout import Box
from handlens.processor import Inputs, Processor, read_messages
from handlens.things import Things, find_things
from handlens.tokenizer import Tokenizer

#: The kinds of questions that are answered so.
KINDS = ("name", "count", "locate", "present", "colour")
#: More things that look different are no few separate things.
MOST = 12
#: Things of which the model says that they are what is asked for with at least so much of the chance that it gives the
#: likeliest of them (in natural logarithms) are what is asked for as well: a circle in another colour.
AS_LIKELY = 3.0
#: Nothing of what is there is what is asked for where the likeliest thing has less than this chance beside what the
#: model itself would call it (in natural logarithms, a token of the name).
UNLIKELY = 4.0
#: The most tokens of a name.
LONGEST = 24


class Looks(Protocol):
    """Who is asked: what of `chat.Chat` is needed here."""

    processor: Processor
    tokenizer: Tokenizer

    def prepare(self, msgs: Any, params: SamplingParams) -> Inputs: ...

    def run(self, inputs: Inputs, params: SamplingParams, *, warns: bool = True) -> Iterator[str]: ...

    def log_chance(self, inputs: Inputs, answer: str) -> float: ...


def answer_by_things(chat: Looks, msgs: Any) -> Iterator[str] | None:
    """The answer to messages about one image, if the last of them is a question of one of the KINDS; None for others,
    and for pictures in which no things stand apart from a calm ground: ask about the whole image then."""
    messages, images = read_messages(msgs, chat.processor.limits)
    answer = _answer(chat, images[0], messages[-1].words) if len(images) == 1 else None
    return None if answer is None else iter([answer])


def _answer(chat: Looks, image: Image.Image, question: str) -> str | None:
    asked = understood(question, KINDS)
    things = find_things(image) if asked else None
    if things is None or len(things.groups) > MOST:
        return None
    if asked.kind == "name":
        # A thing in parts that stand apart looks like several things, and is named as a whole.
        return _said(chat, things.picture(0), question) if len(things.boxes) == 1 else None
    chosen = _meant(chat, things, asked)
    words = phrases(asked.language)
    if asked.kind == "present":
        return words.yes if chosen else words.no
    if not chosen:
        return words.absent
    if asked.kind == "count":
        return str(len(chosen))
    if asked.kind == "locate":
        return words.positions[_place(things.boxes[chosen[0]], things.image)]
    return _said(chat, things.picture(chosen[0]), question)


def _meant(chat: Looks, things: Things, asked: Asked) -> list[int]:
    """The places of the things that the question speaks of, the likeliest first."""
    question, name = templates("name", asked.language)[0], asked.slots["thing"]
    likely = []
    for group in things.groups:
        inputs = _inputs(chat, things.picture(group[0]), question)
        likely.append((chat.log_chance(inputs, name), group, inputs))
    likely.sort(key=lambda found: -found[0])
    best, _, inputs = likely[0]
    own = "".join(chat.run(inputs, SamplingParams.greedy(max_new_tokens=LONGEST), warns=False))
    tokens = len(chat.tokenizer.encode(name)) + 1
    if best < chat.log_chance(inputs, own) - UNLIKELY * tokens:
        return []
    return [place for chance, group, _ in likely if chance >= best - AS_LIKELY for place in group]


def _said(chat: Looks, picture: Image.Image, question: str) -> str:
    return "".join(chat.run(_inputs(chat, picture, question), SamplingParams.greedy(max_new_tokens=LONGEST)))


def _inputs(chat: Looks, picture: Image.Image, question: str) -> Inputs:
    return chat.prepare(
        [{"role": "user", "content": [picture, question]}], SamplingParams.greedy(max_new_tokens=LONGEST)
    )


def _place(box: Box, image: Image.Image) -> int:
    """In which of nine parts of an image the middle of a box lies, row by row from the top left."""
    column = 3 * (box.left + box.right) // (2 * image.width)
    row = 3 * (box.top + box.bottom) // (2 * image.height)
    return 3 * min(row, 2) + min(column, 2)
