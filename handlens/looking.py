"""How many things there are in a picture: they are counted, where a small model would guess.

What a thing is called the model that ships does not know (recipes/default/LOG.md), so those of which there are the most
are taken for those that are asked for.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from handlens.data.questions import asks
from handlens.processor import Processor, read_messages
from handlens.reading import Texts
from handlens.things import find_things

#: Where more things look different they are no few kinds of things.
MOST = 12


class Looks(Protocol):
    """Who is asked: what of `chat.Chat` is needed here."""

    processor: Processor
    texts: Texts


def count_things(chat: Looks, msgs: Any) -> Iterator[str] | None:
    """The answer to messages about one image without text, if the last one asks how many there are of something; None
    for other questions, and where no things stand apart from a calm ground: ask about the image then."""
    messages, images = read_messages(msgs, chat.processor.limits)
    if len(images) != 1 or not asks("how_many", messages[-1].words) or chat.texts.of(chat, images[0]):
        return None
    things = find_things(images[0])
    if things is None or len(things.groups) > MOST:
        return None
    return iter([str(max(map(len, things.groups)))])
