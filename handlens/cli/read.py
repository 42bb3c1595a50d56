"""`handlens read`: the text in an image as Markdown."""

from pathlib import Path
from typing import Annotated

import typer

from handlens.atomic import replacing
from handlens.cli.opening import answer, open_chat, open_pictures, tell_if_cut
from handlens.cli.options import ModelOptions
from handlens.cli.terminal import print_streamed
from handlens.errors import InputError

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
        int, typer.Option(metavar="N", help="Most tokens of the transcription, as far as the context has room.")
    ] = 2048,
    model_options: ModelOptions,
) -> None:
    """Transcribe an image to Markdown. Standard output gets the transcription and nothing else."""
    pictures = open_pictures([image], model_options)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} to write {out.name} to")
    chat = open_chat(model_options)
    from handlens.engine.sampling import SamplingParams

    question = f"{INSTRUCTION} The text is in {lang}." if lang else INSTRUCTION
    msgs = [{"role": "user", "content": [*pictures, question]}]
    inputs = chat.prepare(msgs, SamplingParams.greedy(max_new_tokens=1))
    room = chat.context_length - len(inputs.input_ids)
    params = SamplingParams.greedy(max_new_tokens=min(max_new_tokens, room))
    if out is None:
        print_streamed(answer(chat, inputs, params), [])
    else:
        with replacing(out, InputError, encoding="utf-8", newline="\n") as file:
            file.writelines(answer(chat, inputs, params))
            file.write("\n")
    tell_if_cut(chat, params, model_options)
