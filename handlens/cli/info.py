"""`handlens info`: what a model file is, what it needs, and what is wrong with it."""

import json
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from handlens.cli.options import Debug, Mmproj
from handlens.cli.terminal import put, put_raw
from handlens.errors import HandlensError, InputError

EXAMPLES = """
\b
Examples:
  handlens info                              the shipped model, and this machine
  handlens info ggml-model-Q4_K_M.gguf       with the mmproj file beside it
  handlens info mmproj-model-f16.gguf        a projector alone
  handlens info models/minicpm --json
  handlens info models/minicpm --plan 12GiB,12GiB

\b
Exit codes:
  0  the files can be used; known faults, if any, are corrected and listed as notices
  2  they cannot, and the faults are listed
"""


def describe(
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE_OR_FOLDER", help="A model. Default: the shipped one.")
    ] = None,
    *,
    mmproj: Mmproj = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            "--plan",
            metavar="SIZE,SIZE,...",
            help="Show instead how the model would be spread over GPUs with so much memory each, and what each would "
            "hold. A config.json is enough for it.",
        ),
    ] = None,
    context_length: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --plan: tokens of a conversation. Default: what the model can."),
    ] = None,
    int4: Annotated[bool, typer.Option("--int4", help="With --plan: as if loaded in int4 (NF4).")] = False,
    debug: Debug = False,
) -> None:
    """Show what a model file is: family, sizes, block types, memory needed, and its faults."""
    if memory is None and (context_length is not None or int4):
        raise InputError("--context-length and --int4 say what to plan for; give --plan with the memory of the GPUs")
    program = about_program() if path is None and memory is None else {}
    try:
        report = program | look(path, mmproj, memory, context_length, int4)
    except HandlensError as error:
        if not as_json:
            raise
        report = program | {"files": [], "usable": False, "faults": [str(error)], "notices": []}
    if as_json:
        put(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    else:
        from handlens.cli.info_table import tables

        put_raw(tables(report))
    if not report["usable"]:
        raise typer.Exit(2)


def look(
    path: Path | None, mmproj: Path | None, memory: str | None, context_length: int | None, int4: bool
) -> dict[str, Any]:
    """The report that was asked for: on what the model is, or on where it would go."""
    if memory is None:
        from handlens.cli.examine import examine

        return examine(path, mmproj)
    from handlens.cli.plan import plan

    return plan(path, mmproj, memory, context_length, int4)


def about_program() -> dict[str, Any]:
    """Versions, and what computes on this machine."""
    import handlens
    from handlens.cpu.backend import describe_arithmetic, describe_instruction_sets

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "handlens": handlens.__version__,
        "python": platform.python_version(),
        "cpu": f"{cpu_name()}, {cores} cores",
        "arithmetic": describe_arithmetic(),
        "instruction_sets": describe_instruction_sets(),
    }


def cpu_name() -> str:
    """The processor's name as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
