"""`handlens convert`: a checkpoint folder to GGUF files, and back."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from handlens.cli.options import Debug, Mmproj, Quiet
from handlens.cli.terminal import tell, writing
from handlens.errors import InputError

EXAMPLES = """
\b
Examples:
  handlens convert MiniCPM-Llama3-V-2_5 --out minicpm.gguf
      writes minicpm.gguf and minicpm.mmproj.gguf, in the type of the checkpoint
  handlens convert MiniCPM-Llama3-V-2_5 --out minicpm-q8.gguf --type Q8_0
  handlens convert MiniCPM-Llama3-V-2_5 --out minicpm.gguf --single
  handlens convert minicpm.gguf --out my-checkpoint
  handlens convert mmproj-model-f16.gguf --repair --out mmproj-repaired.gguf

\b
The type F32, BF16 or Q8_0 is that of the matrices; vectors are F32, the patch kernel is F16, and so are
matrices whose rows are not whole blocks of Q8_0. A checkpoint made of GGUF files keeps F32, F16 and BF16
as they are and has F16 for all other block types, unless --type says otherwise.
Nothing is written before the model was checked, and every file appears whole or not at all.
"""

FileType = StrEnum("FileType", [(name, name) for name in ("F32", "F16", "BF16", "Q8_0")])


def convert_model(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A checkpoint folder (safetensors), or a language file (GGUF).")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="The GGUF file, or the new folder.")],
    mmproj: Mmproj = None,
    mmproj_out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The projector file. Default: NAME.mmproj.gguf beside --out.")
    ] = None,
    single: Annotated[bool, typer.Option("--single", help="Language model and projector in one GGUF file.")] = False,
    type: Annotated[
        FileType | None,
        typer.Option(metavar="|".join(FileType), help="Type of the numbers. Default: as they are stored."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace GGUF files that are there already.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Write MODEL, a GGUF file, without the faults that such files are known for."),
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint folder to GGUF files, or GGUF files to a checkpoint folder."""
    from handlens.conversion import to_checkpoint, to_gguf
    from handlens.weights import find_files

    if repair:
        given = {"--mmproj": mmproj, "--mmproj-out": mmproj_out, "--single": single, "--type": type}
        if idle := [option for option, value in given.items() if value]:
            raise InputError(f"--repair rewrites the keys of one file, so {', '.join(idle)} cannot go with it")
        repair_file(source, out, force, quiet)
        return
    files = find_files(source, mmproj)
    of_gguf = {"--mmproj-out": mmproj_out is not None, "--single": single, "--force": force}
    if not files.model.is_dir() and any(of_gguf.values()):
        options = ", ".join(option for option, given in of_gguf.items() if given)
        raise InputError(f"{options} is for writing GGUF files, but {source} is one and becomes a folder; leave it out")
    with writing(f"writing {out.name}", quiet) as progress:
        if files.model.is_dir():
            options = {"mmproj_out": mmproj_out, "single": single, "overwrite": force}
            written = to_gguf(files.model, out, type=type and type.value, progress=progress, **options)
        else:
            written = to_checkpoint(files.model, files.mmproj, out, type=type and type.value, progress=progress)
    if not quiet:
        for notice in written.notices:
            tell(f"handlens: {notice}")
        names = " and ".join(map(str, written.paths))
        tell(f"handlens: wrote {names}, most of it as {written.type}")


def repair_file(source: Path, out: Path, force: bool, quiet: bool) -> None:
    """Writes a GGUF file without its known faults and tells what they were."""
    from handlens.repair import repair

    changes = repair(source, out, overwrite=force)
    if quiet:
        return
    for change in changes:
        tell(f"handlens: repaired: {change}")
    tell(f"handlens: wrote {out}" if changes else f"handlens: {source} has no known fault; nothing was written")
