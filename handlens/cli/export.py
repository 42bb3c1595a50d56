"""`handlens export`: what other programs need to run a model."""

from pathlib import Path
from typing import Annotated

import typer

from handlens.cli.options import Debug, Mmproj, Quiet
from handlens.cli.terminal import put_raw, tell
from handlens.errors import ModelFileError

EXAMPLES = """
\b
Example:
  handlens export ollama minicpm-Q4_K_M.gguf --out Modelfile
  ollama create minicpm -f Modelfile
"""

app = typer.Typer(help="Write what other programs need to run a model.", rich_markup_mode=None, no_args_is_help=True)


def export_ollama(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The language file.")],
    *,
    mmproj: Mmproj = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write. Default: standard output.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of prompt and answer. Default: 4096, if the model can.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the Modelfile for ollama: the right template, stops and context length."""
    from handlens.atomic import replacing
    from handlens.gguf import GGUFFile
    from handlens.gguf.keys import read_config
    from handlens.ollama import modelfile
    from handlens.weights import ModelFiles, find_files

    files = find_files(model, mmproj)
    config = read_config(GGUFFile(files.model), GGUFFile(files.mmproj) if files.mmproj else None)
    text = modelfile(
        config, ModelFiles(files.model.absolute(), files.mmproj and files.mmproj.absolute()), context_length
    )
    if out is None:
        put_raw(text)
        return
    with replacing(out, ModelFileError, encoding="utf-8", newline="\n") as file:
        file.write(text)
    if not quiet:
        tell(f"handlens: wrote {out}; next: ollama create NAME -f {out}")
