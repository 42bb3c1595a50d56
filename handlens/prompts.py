"""Messages -> the parts of a prompt: plain text, special tokens and image slots, kept apart.

A prompt is never one string in which special tokens are searched for again: what a user types, or what is read out of a
document, stays text even if it says `<image>` or `<|eot_id|>`. One row of `TEMPLATES` is one published chat format.

Facts: chat templates of MiniCPM-Llama3-V 2.5 and MiniCPM-V 2.0 (`chat()` in modeling_minicpmv.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from handlens.config import TokenNames
from handlens.errors import InputError


@dataclass(frozen=True)
class Special:
    """A special token, by its text."""

    name: str


@dataclass(frozen=True)
class ImageSlot:
    """The place of one image; `index` counts the images of the whole conversation from 0."""

    index: int


class Answer(str):
    """Text of an earlier answer."""


Part = str | Special | ImageSlot


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `parts` are joined by newlines, as the original does."""

    role: str
    parts: tuple[str | ImageSlot, ...]

    @property
    def words(self) -> str:
        """The content without its images."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True)
class Turn:
    """What stands before and after the content of a message."""

    before: tuple[str | Special, ...]
    after: tuple[str | Special, ...] = ()


@dataclass(frozen=True)
class Template:
    """How each role's message is written; the answer begins after `turns["assistant"].before`."""

    turns: Mapping[str, Turn]
    trims: bool  # whether white space around a content is removed


def _llama3_turn(role: str) -> Turn:
    header = (Special("<|start_header_id|>"), role, Special("<|end_header_id|>"), "\n\n")
    return Turn(header, (Special("<|eot_id|>"),))


TEMPLATES = {
    "llama3": Template({role: _llama3_turn(role) for role in ("system", "user", "assistant")}, trims=True),
    "minicpm": Template({"user": Turn(("<用户>",)), "assistant": Turn(("<AI>",))}, trims=False),
}


def render(messages: Sequence[Message], template: Template, names: TokenNames) -> list[Part]:
    """The parts of the prompt that asks for the next answer, from the one bos to the open assistant turn; the text of
    earlier answers is an `Answer`.

    The first message after an optional system message must be the user's; InputError says which message is wrong.
    """
    _check_order(messages, template)
    parts: list[Part] = [Special(names.bos)]
    for message in messages:
        turn = template.turns[message.role]
        content = _joined(message.parts)
        content = _trimmed(content) if template.trims else content
        if message.role == "assistant":
            content = [Answer(part) if isinstance(part, str) else part for part in content]
        parts += [*turn.before, *content, *turn.after]
    return [*parts, *template.turns["assistant"].before]


def _check_order(messages: Sequence[Message], template: Template) -> None:
    if not messages:
        raise InputError("there are no messages; give at least one of the form {'role': 'user', 'content': ...}")
    for position, message in enumerate(messages):
        if message.role not in template.turns:
            known = ", ".join(template.turns)
            raise InputError(f"message {position} has the role {message.role!r}; this model knows {known}")
        if message.role == "system" and position > 0:
            raise InputError(f"message {position} is a system message; only the first may be one")
    first = next((message for message in messages if message.role != "system"), None)
    if first is None or first.role != "user":
        raise InputError("the first message must be the user's")


def _joined(parts: Iterable[str | ImageSlot]) -> list[str | ImageSlot]:
    """The parts with a newline between neighbours."""
    joined: list[str | ImageSlot] = []
    for part in parts:
        joined += ["\n", part] if joined else [part]
    return joined


def _trimmed(parts: list[str | ImageSlot]) -> list[str | ImageSlot]:
    """The parts without white space at either end. Text beside an image, which is none, keeps its newline."""
    parts = list(parts)
    while parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
        if parts[0]:
            break
        parts.pop(0)
    while parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
        if parts[-1]:
            break
        parts.pop()
    return parts
