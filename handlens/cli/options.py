"""The options that several commands share, in groups, and what they mean together.

A command takes a group as one parameter; `unfolded` shows typer the options inside.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from handlens.config import POSITION_MODES
from handlens.errors import InputError

if TYPE_CHECKING:
    from handlens.engine.sampling import SamplingParams

PositionMode = StrEnum("PositionMode", [(mode, mode) for mode in POSITION_MODES])
Backend = StrEnum("Backend", [(name, name) for name in ("cpu", "torch")])  # those of `weights`, which loads numpy
#: Those of `cpu.backend`, which loads numpy.
VisionPrecision = StrEnum("VisionPrecision", [(name, name) for name in ("bf16", "int8", "f32")])


@dataclass
class Settings:
    """What the whole program needs to know; typer carries it as the context's `obj`."""

    debug: bool = False


def _set_debug(context: typer.Context, value: bool) -> bool:
    context.obj.debug |= value
    return value


#: Takes effect when it is parsed, before or after the command's name; commands only declare it.
Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show a traceback when something fails.")]
Mmproj = Annotated[
    Path | None,
    typer.Option("--mmproj", metavar="PATH", help="Projector file. Default: NAME.mmproj.gguf, or the only one."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notices on standard error.")]
System = Annotated[
    str, typer.Option("--system", metavar="TEXT", help="Instructions that stand before the conversation.")
]
ByLines = Annotated[
    bool | None,
    typer.Option(
        "--by-lines/--whole",
        help="Find the lines and tables in the image and show the model one line at a time, or the whole image at "
        "once. Default: by lines for the small model that ships with handlens, else whole.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model answers, and how it is set up."""

    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH",
            help="Language file (GGUF), folder with one, or a name below $HANDLENS_MODELS. Default: the shipped model.",
        ),
    ] = None
    mmproj: Mmproj = None
    context_length: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most tokens of prompt and answer together. Default: what the model can."),
    ] = None
    position_mode: Annotated[
        PositionMode | None,
        typer.Option(
            metavar="|".join(POSITION_MODES),
            help="How patches are numbered in the vision tower. Default: the model's own.",
        ),
    ] = None
    backend: Annotated[
        Backend | None,
        typer.Option(metavar="|".join(Backend), help="What computes. Default: cpu, unless a GPU is asked for."),
    ] = None
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where torch computes: cpu, cuda, cuda:1 ... A GPU needs handlens[torch]."),
    ] = None
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads that compute. Default: one for each physical core.")
    ] = None
    vision_precision: Annotated[
        VisionPrecision | None,
        typer.Option(
            metavar="|".join(VisionPrecision),
            help="What the vision tower computes in. Default: bf16 where the processor has it (AMX), else int8 where "
            "it has dot products of bytes (not for the shipped model), else f32.",
        ),
    ] = None
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Keep the vision tower in memory only while images are encoded.")
    ] = False
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep vectors of encoded images there (not the images; up to 1 GiB), so that they are encoded once, "
            "and the model's weights as the kernels want them (as large as the model), so that it starts faster.",
        ),
    ] = None
    max_pixels: Annotated[
        int | None, typer.Option(metavar="N", help="Refuse images of more pixels. Default: 67108864 (8192x8192).")
    ] = None
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the answer is chosen. None stands for the default of the chosen way: drawn, greedy or beam search."""

    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Most tokens of an answer.")] = 1024
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="Higher is more varied, 0 is greedy. Default: 0.7.")
    ] = None
    top_p: Annotated[
        float | None, typer.Option(metavar="X", help="Draw from the likeliest tokens of this chance. Default: 0.8.")
    ] = None
    top_k: Annotated[
        int | None, typer.Option(metavar="N", help="Draw from this many tokens, 0 is all. Default: 100.")
    ] = None
    repetition_penalty: Annotated[
        float | None,
        typer.Option(metavar="X", help="Above 1 discourages repeating. Default: 1.05; 1.2 with beams; 1 if greedy."),
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Start of the random numbers. Default: 0, so answers repeat.")
    ] = None
    beams: Annotated[int | None, typer.Option(metavar="N", help="Beam search with N beams instead of drawing.")] = None
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token instead of drawing.")] = False

    def params(self) -> "SamplingParams":
        """The sampling parameters; InputError for options that contradict each other."""
        from handlens.engine.sampling import SamplingParams

        drawing = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "seed")}
        given = {name: value for name, value in drawing.items() if value is not None}
        if self.repetition_penalty is not None:
            given["repetition_penalty"] = self.repetition_penalty
        ways = [name for name, taken in {"--greedy": self.greedy, "--beams": self.beams is not None}.items() if taken]
        if len(ways) > 1:
            raise InputError("--greedy and --beams exclude each other; give one of them")
        if idle := [f"--{name.replace('_', '-')}" for name in drawing if ways and name in given]:
            raise InputError(
                f"{ways[0]} draws nothing, so it cannot go with {', '.join(idle)}; leave one or the other out"
            )
        if self.greedy:
            return SamplingParams.greedy(max_new_tokens=self.max_new_tokens, **given)
        if self.beams is not None:
            return SamplingParams.beam(max_new_tokens=self.max_new_tokens, num_beams=self.beams, **given)
        return SamplingParams(max_new_tokens=self.max_new_tokens, **{"seed": 0, **given})


def unfolded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with each parameter that is an option group replaced by the options of the group."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        parameters += signature(groups[name]).parameters.values() if name in groups else [parameter]

    @wraps(command)
    def call(**values):
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        return command(**values)

    call.__signature__ = Signature([parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters])
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
