"""`handlens card`: what each size of a model costs and what it still can, as a table and a picture."""

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
  handlens card minicpm-f16.gguf minicpm-Q4_K_M.gguf --text book.txt --set receipts --out card.md --picture card.png

\b
The first model is the reference: the text is read by all of them, and their predictions are compared with its own.
With --types it is quantised to each of them, into a folder that is removed afterwards.
"""


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
        Path | None, typer.Option("--set", metavar="FOLDER", help="Questions, as `handlens data make` writes them.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Ask at most N of them.")] = None,
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
    from handlens.quant.card import as_json, markdown, measure_card, picture, read_questions
    from handlens.quant.mixes import MIXES
    from handlens.quant.quantize import quantize_model
    from handlens.weights import find_files

    wanted = list(MIXES) if types == "all" else types.split(",") if types else []
    files = [find_files(model, mmproj) for model in models]
    if any(file.model.is_dir() for file in files):
        raise InputError("a card is made of GGUF files; convert a checkpoint folder first")
    asked = read_questions(questions, limit) if questions else []
    words = text.read_text(encoding="utf-8")
    with TemporaryDirectory() as scratch, waiting(quiet) as said:
        named = [(file.model.stem, file) for file in files]
        for kind in wanted:
            said(f"quantising to {kind}")
            path = Path(scratch) / f"{kind}.gguf"
            made = quantize_model(files[0].model, path, kind, mmproj=files[0].mmproj)
            named.append((kind, type(files[0])(path, made.paths[1] if len(made.paths) > 1 else None)))
        rows = measure_card(named, words, asked, said)
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
