"""An image -> its text as Markdown, line by line: for models that read lines better than pages."""

from collections.abc import Callable, Iterator
from functools import cache

from PIL import Image

from handlens.chat import Chat
from handlens.data.questions import LANGUAGES, phrases
from handlens.engine.sampling import SamplingParams
from handlens.layout import Box, Layout, Table, find_layout

#: The question about a line.
QUESTION = "Read the text."
#: Lines are shown in parts that are at most this many times as wide as high, as in training.
ASPECT = 16.0
#: The most tokens of a part.
LONGEST = 128

Progress = Callable[[int, int], None]  # lines read, lines in all


def read_by_lines(
    chat: Chat, image: Image.Image, longest: int = LONGEST, progress: Progress | None = None
) -> Iterator[str]:
    """The text of an image, piece by piece: paragraphs apart, tables in Markdown.

    Each line is a request of its own, answered greedily with at most `longest` tokens. Nothing comes where no lines
    were found, or where the model says of all that nothing can be read there; ask about the whole image then.
    """
    layout = find_layout(image)
    total, done = len(layout.lines), 0

    def read(line: Box) -> str:
        nonlocal done
        text = _read(chat, layout, line, longest)
        done += 1
        if progress:
            progress(done, total)
        return text

    between = ""
    for block in layout.blocks:
        if isinstance(block, Table):
            pieces = _table(block, read)
        else:
            pieces = (_joined("\n", map(read, paragraph)) for paragraph in block.paragraphs)
        for text in filter(None, pieces):
            yield between + text
            between = "\n" if isinstance(block, Table) else "\n\n"
        between = "\n\n" if between else ""


def _table(table: Table, read: Callable[[Box], str]) -> Iterator[str]:
    """The rows of a table in Markdown; the first one is its head. Nothing where no cell could be read."""
    rows = [[_joined(" ", map(read, cell)).replace("|", "\\|") for cell in row] for row in table.rows]
    if any(cell for row in rows for cell in row):
        head, *others = (f"| {' | '.join(row)} |" for row in rows)
        yield from (head, "|" + " --- |" * len(table.rows[0]), *others)


def _read(chat: Chat, layout: Layout, line: Box, longest: int) -> str:
    params = SamplingParams.greedy(max_new_tokens=longest)
    parts = layout.pictures(line, ASPECT)
    return _joined(" ", (_said(chat.reply([{"role": "user", "content": [part, QUESTION]}], params)) for part in parts))


def _said(answer: str) -> str:
    """The answer, or nothing where it says that there is nothing to read: a speck, or a line of a drawing."""
    return "" if answer.strip() in _refusals() else answer.strip()


@cache
def _refusals() -> frozenset[str]:
    spoken = map(phrases, LANGUAGES)
    return frozenset(
        sentence for language in spoken for sentence in (language.blank, language.unreadable, language.no_text)
    )


def _joined(between: str, texts: Iterator[str]) -> str:
    return between.join(filter(None, texts))
