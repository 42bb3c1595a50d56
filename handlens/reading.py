"""An image -> its text as Markdown, line by line: for models that read lines better than pages."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from PIL import Image

from handlens.chat import Chat
from handlens.data.alphabets import language_like
from handlens.data.questions import LANGUAGES, phrases, templates
from handlens.engine.sampling import SamplingParams
from handlens.layout import Box, Layout, Table, find_layout

#: Lines are shown in parts that are at most this many times as wide as high, as in training.
ASPECT = 16.0
#: The most tokens of a part, and of the answer that says whether there is anything to read.
LONGEST, GLANCE = 128, 24
#: So many of the longest lines are read to tell the language of all, asked in a language of each script: a small model
#: answers in letters of the language that it is asked in, and in the wrong ones that makes no words. Of the languages
#: in Latin letters it is one with accents, for asked in English it leaves them out.
TRIED, SCRIPTS = 3, ("pt", "ru", "el")

Progress = Callable[[int, int], None]  # lines read, lines in all


def read_by_lines(
    chat: Chat,
    image: Image.Image,
    language: str | None = None,
    longest: int = LONGEST,
    progress: Progress | None = None,
) -> Iterator[str]:
    """The text of an image, piece by piece: paragraphs apart, tables in Markdown.

    Each line is a request of its own, answered greedily with at most `longest` tokens, and asked in `language`
    (`questions.LANGUAGES`), for a small model reads best what it is asked about in the language of the text; None is
    the language that the longest lines look like (`SCRIPTS`). Nothing comes where no lines were found, or where the
    model says of the whole image that it can read nothing there: ask it about that then.
    """
    layout = find_layout(image)
    total, done = len(layout.lines), 0

    def reply(picture: Image.Image, longest: int, language: str) -> str:
        msgs = [{"role": "user", "content": [picture, templates("read", language)[0]]}]
        return chat.reply(msgs, SamplingParams.greedy(max_new_tokens=longest)).strip()

    # Leaves and tiles look like lines as well.
    if not total or reply(image, GLANCE, language or "en") in _refusals():
        return
    if language is None:
        wide = sorted(layout.lines, key=lambda line: line.height - line.width)[:TRIED]
        parts = [part for line in wide for part in layout.pictures(line, ASPECT)[:1]]
        texts = (" ".join(reply(part, longest, asked) for part in parts) for asked in SCRIPTS)
        language = language_like(min(texts, key=lambda text: pieces_a_character(chat, text)))

    def read(line: Box) -> str:
        nonlocal done
        answers = [reply(part, longest, language) for part in layout.pictures(line, ASPECT)]
        done += 1
        if progress:
            progress(done, total)
        # A speck, or a line of a drawing, is answered with a sentence that says so.
        return _joined(" ", (answer for answer in answers if answer not in _refusals()))

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
    rows = [[_joined(" ", map(read, cell)).replace("|", "\\|") for cell in row] for row in table.rows]
    if any(cell for row in rows for cell in row):
        head, *others = (f"| {' | '.join(row)} |" for row in rows)
        yield from (head, "|" + " --- |" * len(table.rows[0]), *others)


def pieces_a_character(chat: Chat, text: str) -> float:
    """How many tokens a text takes for its length: few for words that the tokenizer knows."""
    return len(chat.model.tokenizer.encode(text)) / max(len(text), 1)


@cache
def _refusals() -> frozenset[str]:
    spoken = map(phrases, LANGUAGES)
    return frozenset(
        sentence for language in spoken for sentence in (language.blank, language.unreadable, language.no_text)
    )


def _joined(between: str, texts: Iterable[str]) -> str:
    return between.join(filter(None, texts))
