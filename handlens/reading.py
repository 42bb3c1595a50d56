"""An image -> its text as Markdown, line by line, and answers out of that text: for models that read lines better than
pages.
"""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import chain, count
from typing import Any, Protocol

from PIL import Image

from handlens.cpu.threads import thread_count
from handlens.data.alphabets import language_like
from handlens.data.questions import LANGUAGES, phrases, templates
from handlens.engine.loops import repeats
from handlens.engine.sampling import SamplingParams
from handlens.errors import ContextError
from handlens.layout import Box, Layout, Table, find_layout
from handlens.markdown import table_lines
from handlens.passages import as_written, passages
from handlens.plotted import find_plotted
from handlens.processor import Inputs, Processor, read_messages
from handlens.prompts import Message
from handlens.tokenizer import Tokenizer

log = logging.getLogger("handlens")

#: Lines are shown in parts that are at most this many times as wide as high, as in training.
ASPECT = 16.0
#: Which of the questions for text lines are asked with: in English the first has as many tokens as a line has vectors.
QUESTION = 1
#: The most tokens of a part, and of one that is only tried.
LONGEST, TRIAL = 128, 24
#: The texts of so many images are remembered.
REMEMBERED = 16
#: So many lines are read at a time: their tokens are computed together.
TOGETHER = 8
#: So many of the longest lines are tried, to tell whether there is text at all and its language, asked in a language of
#: each script: a small model answers in letters of the language that it is asked in, and in the wrong ones that makes
#: no words. Of the languages in Latin letters it is one with accents, for asked in English it leaves them out.
TRIED, SCRIPTS = 3, ("pt", "ru", "el")

#: Of so few lines all are read before the first is shown: they may be those of a chart (plotted.py).
FEW = 40

#: What the decoder says of text that it is asked about instead of an answer: that the image has to be looked at, and
#: that all of the text is the answer.
LOOK, READ = "?", "="

Progress = Callable[[int, int], None]  # lines read, lines in all


class Reads(Protocol):
    """Who is asked: what of `chat.Chat` is needed here."""

    processor: Processor
    tokenizer: Tokenizer
    texts: "Texts"

    def prepare(self, msgs: Any, params: SamplingParams, *, system_prompt: str = "") -> Inputs: ...

    def look(self, image: Image.Image) -> None: ...

    def run(self, inputs: Inputs, params: SamplingParams, *, warns: bool = True) -> Iterator[str]: ...


def read_by_lines(
    chat: Reads,
    image: Image.Image,
    language: str | None = None,
    longest: int = LONGEST,
    progress: Progress | None = None,
) -> Iterator[str]:
    """The text of an image, piece by piece: paragraphs apart, tables in Markdown.

    Each line is a request of its own, answered greedily with at most `longest` tokens, and asked in `language`
    (`questions.LANGUAGES`), for a small model reads best what it is asked about in the language of the text; None is
    the language that the longest lines look like (`SCRIPTS`). Nothing comes where no lines were found, or where the
    model can read none of the longest: ask it about the whole image then.
    """
    layout = find_layout(image)
    lines = layout.lines
    if not lines:
        return
    parts = {line: [layout.picture(part) for part in layout.parts(line, ASPECT)] for line in lines}
    wide = sorted(lines, key=lambda line: line.height - line.width)[:TRIED]
    first = [parts[line][0] for line in wide]
    # Pictures are encoded in the order in which they are wanted, as many at a time as there are threads, and read when
    # they are: else all would be encoded at first, and then all would be read by one thread, for that is done together.
    with _together(min(thread_count(), TOGETHER)) as look, _together(TOGETHER) as submit:
        pictures = {id(part): part for part in chain(first, *parts.values())}
        seen = {number: look(chat.look, part) for number, part in pictures.items()}

        def reply(picture: Image.Image, longest: int, language: str) -> "Future[str | None]":
            return submit(_read, chat, picture, seen[id(picture)], longest, language)

        tried = [[reply(part, TRIAL, asked) for part in first] for asked in ([language] if language else SCRIPTS)]
        said = [text for answers in tried if (text := _joined(" ", map(_said, answers)))]
        # Leaves and tiles look like lines as well.
        if not said:
            return
        if language is None:
            language = language_like(min(said, key=lambda text: pieces_a_character(chat, text)))
        answers = {line: [reply(part, longest, language) for part in parts[line]] for line in lines}
        done, unread = count(1), 0

        def read(line: Box) -> str:
            nonlocal unread
            unread += any(answer.result() is None for answer in answers[line])
            if progress:
                progress(next(done), len(lines))
            return _joined(" ", map(_said, answers[line]))

        if len(lines) <= FEW:
            texts = {line: read(line) for line in lines}
            chart = find_plotted(texts)
            yield from [chart.markdown] if chart else markdown(layout, texts.__getitem__)
        else:
            yield from markdown(layout, read)
        if unread:
            log.warning("%d of %d lines could not be read and were left out", unread, len(lines))


def _read(chat: Reads, picture: Image.Image, seen: Future, longest: int, language: str) -> str | None:
    """The text of a picture of one line; None where the answer only repeats itself or is the frame of a table."""
    seen.result()
    params = SamplingParams.greedy(max_new_tokens=longest)
    inputs = chat.prepare([{"role": "user", "content": [picture, templates("read", language)[QUESTION]]}], params)
    # No other request begins like this one.
    text = " ".join("".join(chat.run(replace(inputs, once=True), params, warns=False)).split())
    return None if "| |" in text or repeats(chat.tokenizer.encode(text)) else text


def _said(answer: "Future[str | None]") -> str:
    """The text of a part; none for a speck, or a line of a drawing, which is answered with a sentence that says so."""
    text = answer.result()
    return "" if text is None or text in _refusals() else text


@contextmanager
def _together(count: int) -> Iterator[Callable[..., Future]]:
    """So many threads that ask at the same time; what was not begun when the block ends is not asked any more."""
    pool = ThreadPoolExecutor(count, "handlens-line")
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def answer_by_lines(
    chat: Reads, msgs: Any, params: SamplingParams, system_prompt: str = "", progress: Progress | None = None
) -> Iterator[str] | None:
    """Pieces of the answer to messages about one image, out of the text that was read there; None where there is no
    text, or where the text does not tell: ask about the image then.

    The text stands in the image's place, so what was said before is known, and it is read once for all questions.
    """
    messages, images = read_messages(msgs, chat.processor.limits)
    text = chat.texts.of(chat, images[0], progress) if len(images) == 1 else ""
    if not text:
        return None
    questions = [message.words for message in messages if message.role == "user"]
    if is_reading(questions[-1]):
        return iter([text])
    found = passages(text, *filter(None, questions))
    written = [{"role": message.role, "content": _in_words(message, found)} for message in messages]
    try:
        inputs = chat.prepare(written, params, system_prompt=system_prompt)
    except ContextError:
        return None
    said = "".join(chat.run(inputs, params))
    if said == LOOK:
        return None
    return iter([text if said == READ else as_written(found, said)])


def _in_words(message: Message, text: str) -> str:
    """The content of a message with a text instead of its image, if it has one."""
    words = message.words
    return words if all(isinstance(part, str) for part in message.parts) else asked_of(text, words)


def is_reading(question: str) -> bool:
    """Whether a question is one of those that ask for all text (`data/questions.toml`), in any language."""
    return question.strip() in _reading()


@cache
def _reading() -> frozenset[str]:
    return frozenset(question for language in LANGUAGES for question in templates("read", language))


class Texts:
    """What was read in the latest images, so that a conversation about one reads it once. Safe for many threads."""

    def __init__(self, most: int = REMEMBERED):
        self.most = most
        self.known: OrderedDict[bytes, str] = OrderedDict()
        self.lock = threading.Lock()

    def of(self, chat: Reads, image: Image.Image, progress: Progress | None = None) -> str:
        """The text of an image; "" where there is none."""
        image = image.convert("RGB")
        key = self.key(image)
        with self.lock:
            text = self.known.pop(key, None)
        if text is None:
            text = "".join(read_by_lines(chat, image, progress=progress))
        with self.lock:
            self.known[key] = text
            while len(self.known) > self.most:
                self.known.popitem(last=False)
        return text

    @staticmethod
    def key(image: Image.Image) -> bytes:
        """What tells an image from all others."""
        return hashlib.blake2b(image.tobytes(), salt=repr(image.size).encode()[:16]).digest()


def asked_of(text: str, question: str) -> str:
    """The message that asks something of the text of an image."""
    return f"{text}\n\n{question}"


def markdown(layout: Layout, read: Callable[[Box], str]) -> Iterator[str]:
    """The text of a page, piece by piece, of what `read` says of each line: paragraphs apart, tables as tables."""
    started, between = False, ""
    for before, text in _pieces(layout, read):
        between = max(between, before, key=len)  # what stands between two pieces also if one between them is empty
        if text:
            yield between + text if started else text
            started, between = True, ""


def _pieces(layout: Layout, read: Callable[[Box], str]) -> Iterator[tuple[str, str]]:
    """What parts a piece from the one before, and the piece: a line, or a row of a table."""
    for block in layout.blocks:
        if isinstance(block, Table):
            for number, row in enumerate(_table(block, read)):
                yield "\n" if number else "\n\n", row
        else:
            for paragraph in block.paragraphs:
                for number, line in enumerate(paragraph):
                    yield "\n" if number else "\n\n", read(line)


def _table(table: Table, read: Callable[[Box], str]) -> Iterator[str]:
    """The rows of a table in Markdown; the first one is its head. Nothing where no cell could be read."""
    rows = [[_joined(" ", map(read, cell)) for cell in row] for row in table.rows]
    if any(cell for row in rows for cell in row):
        yield from table_lines(rows[0], rows[1:])


def pieces_a_character(chat: Reads, text: str) -> float:
    """How many tokens a text takes for its length: few for words that the tokenizer knows."""
    return len(chat.tokenizer.encode(text)) / max(len(text), 1)


@cache
def _refusals() -> frozenset[str]:
    spoken = map(phrases, LANGUAGES)
    return frozenset(
        sentence for language in spoken for sentence in (language.blank, language.unreadable, language.no_text)
    )


def _joined(between: str, texts: Iterable[str]) -> str:
    return between.join(filter(None, texts))
