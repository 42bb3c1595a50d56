"""`handlens quantize`: a model in fewer bits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.options import Debug, Quiet
from handlens.cli.terminal import tell, writing

if TYPE_CHECKING:
    from handlens.quant.importance import Importance

EXAMPLES = """
\b
Examples:
  handlens quantize minicpm-f16.gguf minicpm-q4.gguf Q4_K_M
  handlens quantize MiniCPM-Llama3-V-2_5 minicpm-q4.gguf Q4_K_M
      from a checkpoint folder; also writes minicpm-q4.mmproj.gguf
  handlens quantize minicpm.mmproj.gguf minicpm-q8.mmproj.gguf Q8_0
  handlens quantize minicpm-f16.gguf small.gguf Q2_K --mmproj minicpm.mmproj.gguf --calibrate scans/

\b
Types, from the largest to the smallest: F16, BF16, Q8_0, Q6_K, Q5_1, Q5_K_M, Q5_K_S, Q5_0, Q4_1, Q4_K_M,
Q4_K_S, IQ4_NL, Q4_0, IQ4_XS, Q3_K_L, Q3_K_M, Q3_K_S, Q2_K. Names and contents are those of llama.cpp.
Nothing is written before the model was checked, and every file appears whole or not at all.
"""


def quantize(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A GGUF file, or a checkpoint folder (safetensors).")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The GGUF file to write.")],
    type: Annotated[str, typer.Argument(metavar="TYPE", help="One of the types below.")],
    *,
    mmproj: Annotated[Path | None, typer.Option(metavar="PATH", help="Projector file that is quantised too.")] = None,
    mmproj_out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The projector to write. Default: NAME.mmproj.gguf beside OUT.")
    ] = None,
    vision_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Type of the vision side. Default: Q8_0, or TYPE if it is F16 or BF16."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images and texts that show which columns of the weights matter."),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="File with that, to read, or to write with --calibrate (GGUF, llama.cpp's)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a model with fewer bits a weight."""
    from handlens.quant.quantize import quantize_model

    def measured() -> "Importance":
        from handlens.quant.importance import read_importance

        return read_importance(imatrix) if calibrate is None else _calibrated(source, mmproj, calibrate, imatrix, quiet)

    options = {"mmproj": mmproj, "mmproj_out": mmproj_out, "vision_type": vision_type}
    options["importance"] = measured if calibrate or imatrix else None
    with writing(f"writing {out.name}", quiet) as progress:
        written = quantize_model(source, out, type, **options, overwrite=force, progress=progress)
    if not quiet:
        for notice in written.notices:
            tell(f"handlens: {notice}")
        names = " and ".join(map(str, written.paths))
        tell(f"handlens: wrote {names}: {written.nbytes_before / 1e6:.1f} MB became {written.nbytes / 1e6:.1f} MB")


def _calibrated(source: Path, mmproj: Path | None, folder: Path, imatrix: Path | None, quiet: bool) -> "Importance":
    """The importance from the examples in a folder, which is also saved if a file is named."""
    from handlens.chat import load
    from handlens.quant.importance import measure, save_importance

    def told(done: int, total: int) -> None:
        if not quiet:
            tell(f"handlens: looked at {done} of {total} examples")

    importance = measure(load(source, mmproj), folder, told)
    if imatrix is not None:
        save_importance(imatrix, importance)
    return importance
