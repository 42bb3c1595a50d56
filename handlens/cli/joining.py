"""`handlens join` and `handlens split`: a pair of files as one, and back."""

from pathlib import Path
from typing import Annotated

import typer

from handlens.cli.options import Debug, Mmproj, Quiet
from handlens.cli.terminal import tell
from handlens.errors import InputError

EXAMPLES = """
\b
Example:
  handlens join minicpm-Q4_K_M.gguf --out minicpm.gguf --seal --card card.md

\b
The file holds language model, vision side and tokenizer; handlens opens it alone. Other programs want the pair,
which `handlens split` gives back byte for byte if handlens wrote it, and without loss in any case.
"""

SPLIT_EXAMPLES = """
\b
Example:
  handlens split minicpm.gguf --out language.gguf
      writes language.gguf and language.mmproj.gguf
"""

Force = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]


def join_files(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The language file.")],
    *,
    mmproj: Mmproj = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")],
    card: Annotated[
        Path | None, typer.Option("--card", metavar="FILE", help="A quality card in Markdown, to keep in the file.")
    ] = None,
    seal: Annotated[bool, typer.Option("--seal", help="Seal the new file, as `handlens seal` does.")] = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Join a language file and its projector to one GGUF file."""
    from handlens.cli.check import waiting
    from handlens.joining import join
    from handlens.proof.sealing import seal_files
    from handlens.weights import ModelFiles, find_files

    files = find_files(model, mmproj)
    if files.mmproj is None:
        raise InputError(f"{files.model} has no projector (mmproj) file beside it; name it with --mmproj")
    with waiting(quiet) as said:
        said(f"writing {out.name}")
        join(files.model, files.mmproj, out, card=card and card.read_text(encoding="utf-8"), overwrite=force)
        if seal:
            seal_files(ModelFiles(out, None), said)
    if not quiet:
        tell(f"handlens: wrote {out}")


def split_file(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file with both sides of a model.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The language file to write.")],
    mmproj_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The projector to write. Default: NAME.mmproj.gguf beside it.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Split a GGUF file with both sides of a model into a language file and its projector."""
    from handlens.joining import split

    mmproj_out = mmproj_out or out.with_name(f"{out.name.removesuffix('.gguf')}.mmproj.gguf")
    split(source, out, mmproj_out, overwrite=force)
    if not quiet:
        tell(f"handlens: wrote {out} and {mmproj_out}")
