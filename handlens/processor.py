"""Messages and images -> what a backend is fed: token ids, slices, and where each slice's vectors go.

This is the only way anything is fed to any backend: chat, server, training and evaluation make the same ids.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from handlens.config import ModelConfig
from handlens.decode import Limits, check_request, open_image
from handlens.errors import ContextError, InputError
from handlens.images import SlicedImage, SlicePlan, count_tokens, cut, placeholder, plan_slices
from handlens.prompts import TEMPLATES, Answer, ImageSlot, Message, Part, Special, render
from handlens.tokenizer import Tokenizer

Span = tuple[int, int]


@dataclass(frozen=True)
class Inputs:
    """One request as a backend takes it.

    `input_ids` int32 [n]; `image_bound` int32 [N, 2], [start, end) of the query positions of each of the N slices;
    `images` one SlicedImage an image, so that N is the number of all their slices, in order; `answers` int32 [A, 2],
    [start, end) of the texts of earlier answers. Of a request that comes `once` nothing is kept for later ones.
    """

    input_ids: np.ndarray
    image_bound: np.ndarray
    images: tuple[SlicedImage, ...]
    answers: np.ndarray
    once: bool = False


class Processor:
    """Turns conversations into `Inputs` for one model."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, limits: Limits = Limits()):
        self.config = config
        self.tokenizer = tokenizer
        self.limits = limits
        self.names = config.family.tokens
        self.stop_ids = tuple(tokenizer.id(name) for name in self.names.stop if name in tokenizer.special)
        self.shown_ids = frozenset(tokenizer.special[name] for name in self.names.shown if name in tokenizer.special)
        if not self.stop_ids:
            tokenizer.id(self.names.stop[0])  # raises the error that names what is missing
        if config.vision is not None:
            names = self.names
            for name in (names.image_open, names.image_close, names.slice_open, names.slice_close, names.filler):
                tokenizer.id(name)

    def __call__(self, msgs: Any, max_tokens: int | None = None) -> Inputs:
        """The inputs of a conversation whose next turn is the assistant's.

        Raises ContextError when they come to more than `max_tokens`, before any pixel is touched.
        """
        messages, images = read_messages(msgs, self.limits)
        parts = render(messages, TEMPLATES[self.config.family.template], self.names)
        return self.inputs(parts, images, max_tokens)

    def inputs(self, parts: Sequence[Part], images: Sequence[Image.Image], max_tokens: int | None = None) -> Inputs:
        """The inputs of a prompt in parts, whose image slots count through `images`; raises as a call does."""
        plans = self._plan(images)
        ids, bounds, answers = self.encode(parts, plans)
        if max_tokens is not None and len(ids) > max_tokens:
            raise ContextError(self._too_long(len(ids), max_tokens, plans))
        return Inputs(
            input_ids=np.array(ids, dtype=np.int32),
            image_bound=np.array(bounds, dtype=np.int32).reshape(-1, 2),
            images=tuple(map(self.cut, images)),
            answers=np.array(answers, dtype=np.int32).reshape(-1, 2),
        )

    def cut(self, image: Image.Image) -> SlicedImage:
        """An image in the slices that the model sees."""
        vision = self.config.vision
        return cut(image, self.config.slices, vision.image_mean, vision.image_std)

    def _plan(self, images: Sequence[Image.Image]) -> list[SlicePlan]:
        if images and self.config.vision is None:
            raise InputError(
                f"the request holds {len(images)} image(s), but only a language file is loaded; "
                "give the projector (mmproj) file as well"
            )
        return [plan_slices(*image.size, self.config.slices) for image in images]

    def encode(self, parts: Sequence[Part], plans: Sequence[SlicePlan]) -> tuple[list[int], list[Span], list[Span]]:
        """Ids of the parts, the query positions of each slice, for which the plans are enough, and where the texts of
        earlier answers stand.

        Text is encoded in stretches between special tokens, so that neighbouring pieces merge as they do in one. An
        answer begins where a prompt that asks for it ends.
        """
        ids: list[int] = []
        bounds: list[Span] = []
        edges: list[int] = []
        text: list[str] = []

        def encoded() -> list[int]:
            return self.tokenizer.encode("".join(text)) if text else []

        for part in (*self._with_placeholders(parts, plans), None):
            in_answer = len(edges) % 2 == 1
            if isinstance(part, Answer) != in_answer:
                edges.append(len(ids) + len(encoded()))
            if isinstance(part, str):
                text.append(part)
                continue
            ids += encoded()
            text.clear()
            if part is not None:
                ids.append(self.tokenizer.id(part.name))
                if part.name == self.names.image_open:
                    bounds.append((len(ids), len(ids) + self.config.resampler.query_num))
        return ids, bounds, list(zip(edges[::2], edges[1::2], strict=True))

    def _with_placeholders(self, parts: Sequence[Part], plans: Sequence[SlicePlan]):
        for part in parts:
            if isinstance(part, ImageSlot):
                pieces = placeholder(plans[part.index], self.config.resampler.query_num, self.names)
                yield from (piece if piece == "\n" else Special(piece) for piece in pieces)
            else:
                yield part

    def _too_long(self, tokens: int, limit: int, plans: Sequence[SlicePlan]) -> str:
        message = f"the prompt needs {tokens} tokens, {limit} fit"
        if plans:
            counts = [count_tokens(plan, self.config.resampler.query_num) for plan in plans]
            each = " + ".join(map(str, counts))
            message += f"; its {len(counts)} image(s) take {each} = {sum(counts)} of them"
        return message + ". Ask for a shorter answer, raise the context length, or send fewer images or less text."


def as_messages(msgs: Any) -> list[Mapping[str, Any]]:
    """The messages as a list of {"role", "content"}; `msgs` may also be a JSON string of one, as in the original."""
    if isinstance(msgs, str):
        try:
            msgs = json.loads(msgs)
        except json.JSONDecodeError as error:
            raise InputError(f"the messages are a string that is not JSON: {error}") from None
    if not isinstance(msgs, Sequence):
        raise InputError(f"the messages are of type {type(msgs).__name__}; a list of {{'role', 'content'}} is wanted")
    for position, msg in enumerate(msgs):
        if not isinstance(msg, Mapping) or not {"role", "content"} <= msg.keys():
            raise InputError(f"message {position} is not of the form {{'role': ..., 'content': ...}}")
    return list(msgs)


def read_messages(msgs: Any, limits: Limits = Limits()) -> tuple[list[Message], list[Image.Image]]:
    """The messages, and their images in order. The caller's objects are not changed.

    A content is a string or a list that mixes strings with images: PIL images, `pathlib.Path`s, or
    {"type": "text", "text": ...} and {"type": "image", "image": ...}.
    """
    messages, images = [], []
    for position, msg in enumerate(as_messages(msgs)):
        content = msg["content"] if isinstance(msg["content"], list | tuple) else [msg["content"]]
        parts: list[str | ImageSlot] = []
        for item in content:
            found = _text_or_image(item, position, limits)
            if isinstance(found, Image.Image):
                parts.append(ImageSlot(len(images)))
                images.append(found)
                check_request(images, limits)  # after each, so that a request of too many is never in memory as a whole
            else:
                parts.append(found)
        messages.append(Message(msg["role"], tuple(parts)))
    return messages, images


def _text_or_image(item: Any, position: int, limits: Limits) -> str | Image.Image:
    if isinstance(item, Mapping) and item.get("type") in ("text", "image"):
        item = item.get(item["type"])
        if isinstance(item, bytes):
            return open_image(item, limits)
    if isinstance(item, str):
        return item
    if isinstance(item, Image.Image | Path):
        return open_image(item, limits)
    raise InputError(
        f"message {position} holds a {type(item).__name__}; text, PIL images and pathlib.Path of an image are accepted"
    )
