"""`handlens card`: what each size of a model costs and what it still can, as a table and a picture."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from handlens.atomic import replacing
from handlens.cli.check import waiting
from handlens.cli.options import Debug, Mmproj, Quiet
from handlens.cli.terminal import put_raw, tell
from handlens.errors import InputError

EXAMPLES = """
\b
Examples:
  handlens card minicpm-f16.gguf --text book.txt --types Q8_0,Q4_K_M,Q2_K
  handlens card minicpm-f16.gguf minicpm-Q4_K_M.gguf --text book.txt --set pocketdocs --suite receipts,charts
      --out card.md --picture card.png

\b
The first model is the reference: the text is read by all of them, and their predictions are compared with its own.
With --types it is quantised to each of them, into a folder that is removed afterwards. Answers are kept in
FOLDER/answers as by `handlens eval`, so the same command goes on where it was stopped.
"""

#: Where `handlens eval pocketdocs` keeps answers, too.
ANSWERS = "answers"


def make_card(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="Language files; the first is the reference.")
    ],
    *,
    mmproj: Mmproj = None,
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="A text (UTF-8) that the models read.")],
    types: Annotated[
        str | None, typer.Option(metavar="TYPE,...", help="File types to quantise the reference to, or: all.")
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option("--set", metavar="FOLDER", help="Suites of `handlens eval build`, or a set of `data make`."),
    ] = None,
    suite: Annotated[str, typer.Option(metavar="NAMES", help="Suites of that folder, with commas between.")] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Ask at most N items of each.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the table goes. Default: standard output.")
    ] = None,
    picture_out: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw quality over bytes (PNG; needs matplotlib).")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers as JSON.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure what each size of a model costs and what it still can."""
    from handlens.quant.card import as_json, markdown, measure_card, picture, read_exams
    from handlens.quant.mixes import MIXES
    from handlens.quant.quantize import quantize_model
    from handlens.weights import find_files

    wanted = list(MIXES) if types == "all" else types.split(",") if types else []
    files = [find_files(model, mmproj) for model in models]
    if any(file.model.is_dir() for file in files):
        raise InputError("a card is made of GGUF files; convert a checkpoint folder first")
    if suite and questions is None:
        raise InputError(f"--suite {suite} is of the folder that --set names; give it too")
    names = [name.strip() for name in suite.split(",") if name.strip()]
    exams = read_exams(questions, names, limit) if questions else []
    words = read_text(text)
    with TemporaryDirectory() as scratch, waiting(quiet) as said:
        named = [(file.model.stem, file) for file in files]
        for kind in wanted:
            said(f"quantising to {kind}")
            path = Path(scratch) / f"{kind}.gguf"
            made = quantize_model(files[0].model, path, kind, mmproj=files[0].mmproj)
            named.append((kind, type(files[0])(path, made.paths[1] if len(made.paths) > 1 else None)))
        kept = questions / ANSWERS if questions and os.access(questions, os.W_OK) else Path(scratch)
        rows = measure_card(named, words, exams, kept, said)
    if picture_out is not None:
        picture(rows, picture_out)
    for path, content in ((out, markdown(rows)), (json_out, as_json(rows))):
        if path is not None:
            with replacing(path, InputError, encoding="utf-8") as file:
                file.write(content)
    if out is None:
        put_raw(markdown(rows))
    elif not quiet:
        tell(f"handlens: wrote {out}")


def read_text(path: Path) -> str:
    """The text of a file; InputError if it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
