"""`handlens read`: the text in an image as Markdown."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.atomic import replacing
from handlens.cli.opening import answer, open_chat, open_pictures, tell_if_cut
from handlens.cli.options import ByLines, ModelOptions
from handlens.cli.terminal import print_streamed, working
from handlens.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from handlens.chat import Chat

EXAMPLES = """
\b
Examples:
  handlens read page.png > page.md
  handlens read page.png --out page.md --lang German
"""

INSTRUCTION = (
    "Transcribe this image to Markdown. Write down all of its text in reading order, exactly as it stands there: "
    "headings as headings, lists as lists, tables as tables, formulas in LaTeX. Write nothing else."
)


def transcribe(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file, or - for standard input.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write to a file, whole or not at all.")
    ] = None,
    lang: Annotated[str, typer.Option(metavar="TEXT", help="Language of the text, as a hint.")] = "",
    max_new_tokens: Annotated[
        int,
        typer.Option(
            metavar="N", help="Most tokens of the transcription (by lines, of each) that the context has room for."
        ),
    ] = 2048,
    by_lines: ByLines = None,
    model_options: ModelOptions,
) -> None:
    """Transcribe an image to Markdown. Standard output gets the transcription and nothing else."""
    pictures = open_pictures([image], model_options)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to write {out.name} to")
    chat = open_chat(model_options)
    if chat.reads_by_lines(by_lines) and _write(
        out, _by_lines(chat, pictures[0], lang, max_new_tokens, shown=out is None)
    ):
        return
    from handlens.engine.sampling import SamplingParams

    question = f"{INSTRUCTION} The text is in {lang}." if lang else INSTRUCTION
    msgs = [{"role": "user", "content": [*pictures, question]}]
    inputs = chat.prepare(msgs, SamplingParams.greedy(max_new_tokens=1))
    room = chat.context_length - len(inputs.input_ids)
    params = SamplingParams.greedy(max_new_tokens=min(max_new_tokens, room))
    _write(out, answer(chat, msgs, params, by_lines=False))
    tell_if_cut(chat, params, model_options)


def _by_lines(chat: "Chat", image: "Image.Image", lang: str, longest: int, shown: bool) -> Iterator[str]:
    """The pieces of the text; where they aren't shown as they come, a terminal shows how many lines were read."""
    from handlens.data.questions import language_of
    from handlens.reading import LONGEST, read_by_lines

    with working("finding the lines", "lines") as progress:
        pieces = read_by_lines(chat, image, language_of(lang), min(longest, LONGEST), progress)
        if not shown:
            pieces = iter(list(pieces))
        first = next(pieces, None)
    if first is not None:
        yield first
        yield from pieces


def _write(out: Path | None, pieces: Iterator[str]) -> bool:
    """Prints the pieces, or writes them to a file that appears whole; False, and nothing written, where none come."""
    first = next(pieces, None)
    if first is None:
        return False
    pieces = chain([first], pieces)
    if out is None:
        print_streamed(pieces, [])
    else:
        with replacing(out, InputError, encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
            file.write("\n")
    return True
