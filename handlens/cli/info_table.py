"""The report of `handlens info` as tables for people."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from handlens.cli.terminal import harmless

#: Rows of the first table: label, and what stands beside it, from parts of the report that are there.
ROWS = (
    ("handlens", ("handlens",), "{}"),
    ("Python", ("python",), "{}"),
    ("CPU", ("cpu",), "{}"),
    ("arithmetic", ("arithmetic",), "{}"),
    ("instruction sets", ("instruction_sets",), "{}"),
    ("kind", ("kind",), "{}"),
    ("family", ("title", "family"), "{} ({})"),
)


def tables(report: dict[str, Any]) -> str:
    """The report as text, with colours if standard output is a terminal."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    with console.capture() as captured:
        console.print(overview(report))
        if plan := report.get("plan"):
            console.print(plan_table(plan))
            console.print(map_table(plan["device_map"]))
        for file in report["files"]:
            console.print(harmless(file["path"]), style="bold", soft_wrap=True)
            console.print(file_table(file))
        for style, label in (("yellow", "notices"), ("red", "faults")):
            for sentence in report[label]:
                console.print(f"{label[:-1]}: {harmless(sentence)}", style=style, soft_wrap=True)
        console.print("usable" if report["usable"] else "not usable", style="green" if report["usable"] else "red")
    return captured.get()


def overview(report: dict[str, Any]) -> Table:
    """What the model is, one fact a row."""
    table = Table(show_header=False, box=box.SIMPLE)
    for label, value in [*identity(report), *sizes(report)]:
        table.add_row(label, harmless(value))
    return table


def identity(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """The facts that are texts already."""
    for label, keys, pattern in ROWS:
        values = [report.get(key) for key in keys]
        if all(values):
            yield label, pattern.format(*values)
    for key, value in report.get("keys", {}).items():
        yield key, str(value)


def sizes(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """The facts that are numbers."""
    if llm := report.get("language"):
        yield "parameters", count(sum(file["parameters"] for file in report["files"]))
        yield (
            "language model",
            "{num_hidden_layers} layers, width {hidden_size}, inner {intermediate_size}, {num_attention_heads} heads "
            "of {head_dim} ({num_key_value_heads} for keys and values)".format(**llm),
        )
        yield "vocabulary", f"{llm['vocab_size']} tokens"
        yield "context", f"{llm['max_position_embeddings']} tokens"
    if vision := report.get("vision"):
        yield (
            "vision tower",
            "{num_hidden_layers} layers, width {hidden_size}, inner {intermediate_size}, {num_attention_heads} heads, "
            "patches of {patch_size} pixels".format(**vision),
        )
        yield "position mode", vision["position_mode"]
        yield (
            "resampler",
            "{query_num} tokens a slice, width {embed_dim}, {num_heads} heads".format(**report["resampler"]),
        )
        yield (
            "slices",
            "{scale_resolution} pixels a side, at most {max_slice_nums} and an overview".format(**report["slices"]),
        )
    if needed := report.get("memory"):
        yield "memory", f"{size(needed['weights'])} for weights, {size(needed['full_context'])} for a full context"


def file_table(file: dict[str, Any]) -> Table:
    """One file: its block types with what they take."""
    table = Table(show_footer=True, box=box.SIMPLE)
    table.add_column("type", "together")
    for header, total in (
        ("tensors", str(file["tensors"])),
        ("parameters", count(file["parameters"])),
        ("bytes", size(file["bytes"])),
    ):
        table.add_column(header, total, justify="right")
    for name, held in file["types"].items():
        table.add_row(name, str(held["tensors"]), count(held["parameters"]), size(held["bytes"]))
    return table


def plan_table(plan: dict[str, Any]) -> Table:
    """What each device would hold."""
    devices = plan["devices"]
    table = Table(title=f"for {plan['context_length']} tokens", show_footer=True, box=box.SIMPLE)
    table.add_column("GPU", "together")
    table.add_column("layers", str(sum(device["layers"] for device in devices)), justify="right")
    columns = {"weights": "weights", "cache": "keys and values", "scratch": "scratch", "total": "all", "limit": "of"}
    for key, header in columns.items():
        table.add_column(header, size(sum(device[key] for device in devices)), justify="right")
    for device in devices:
        table.add_row(str(device["device"]), str(device["layers"]), *(size(device[key]) for key in columns))
    return table


def map_table(device_map: dict[str, int]) -> Table:
    """Which modules go to which device; a run of layers is one row."""
    table = Table(box=box.SIMPLE)
    table.add_column("module")
    table.add_column("GPU")
    runs: list[tuple[str, str, int]] = []
    for module, device in device_map.items():
        parent, _, last = module.rpartition(".")
        if last.isdigit() and runs and runs[-1][2] == device and runs[-1][0].startswith(f"{parent}."):
            runs[-1] = runs[-1][0], f" to {last}", device
        else:
            runs.append((module, "", device))
    for module, more, device in runs:
        table.add_row(module + more, str(device))
    return table


def count(number: int) -> str:
    """A count in thousands, millions or billions, three digits."""
    return _scaled(number, 1000, ("", " thousand", " million", " billion", " trillion"))


def size(number: int) -> str:
    """Bytes in the units of memory."""
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _scaled(number: float, step: int, units: tuple[str, ...]) -> str:
    power = 0
    while number >= step and power < len(units) - 1:
        number /= step
        power += 1
    return f"{number:.3g}{units[power]}" if number < 999.5 else f"{number:.0f}{units[power]}"
