"""`handlens bench`: how fast a model runs on this machine, beside what the machine could do."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handlens.cli.info import cpu_name
from handlens.cli.opening import open_chat
from handlens.cli.options import ModelOptions
from handlens.cli.terminal import put, put_raw, working
from handlens.errors import InputError

if TYPE_CHECKING:
    from handlens.chat import Chat

EXAMPLES = """
\b
Examples:
  handlens bench --quick
  handlens bench --model ggml-model-Q4_K_M.gguf --threads 4
  handlens bench --json > bench.json
"""

#: Side of the image that is asked about, where the model's slices are as large as the published ones.
IMAGE_SIDE = 1344
PREFILL, DECODE = 512, 128
QUICK_DECODE = 16

SPEED = "{:.1f} tokens/s"
#: Rows of the table: what was measured, key of the value and how it is shown, key of the share and of what it is one.
ROWS = (
    ("load the model", "load_seconds", "{:.2f} s", None, ""),
    (
        "read a prompt ({prefill_tokens} tokens)",
        "prefill_tokens_per_second",
        "{:.1f} tokens/s",
        "prefill_share",
        "peak",
    ),
    ("decode ({decode_tokens} tokens)", "decode_tokens_per_second", "{:.1f} tokens/s", "decode_share", "read"),
    ("encode one slice", "slice_seconds", "{:.3f} s", None, ""),
    ("first token, image of {image_side} x {image_side}", "first_token_seconds", "{:.2f} s", None, ""),
    ("first token, second question", "second_question_seconds", "{:.3f} s", "second_question_share", "first"),
    ("peak memory", "peak_memory_bytes", "", None, ""),
)
SHARES = {"peak": "of the {peak_numbers} peak", "read": "of the read bandwidth", "first": "of the first question"}


def bench(
    *,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds; medians of them are shown.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One round and fewer tokens.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    model_options: ModelOptions,
) -> None:
    """Measure how fast a model runs here, and how close that is to what the machine can do.

    Each round measures the machine's limits as well: other work slows both, so compare shares rather than speeds.
    """
    if model_options.backend == "torch" or model_options.device not in (None, "cpu"):
        raise InputError("bench measures the backend cpu; leave out --backend and --device")
    if model_options.cache_dir is not None:
        raise InputError("bench encodes images each time; leave out --cache-dir")
    started = time.perf_counter()
    chat = open_chat(model_options)
    loaded = time.perf_counter() - started
    measured = measure(chat, 1 if quick else rounds, QUICK_DECODE if quick else DECODE)
    report = {"machine": machine(), "model": about(chat), "results": {"load_seconds": loaded, **measured}}
    if as_json:
        put(json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    else:
        put_raw(tables(report))


def machine() -> dict[str, Any]:
    """The processor and what computes on it."""
    from handlens.cpu import ops
    from handlens.cpu.backend import choose_arithmetic, describe_arithmetic
    from handlens.measure import fastest_numbers

    kernels = choose_arithmetic() is ops
    return {
        "cpu": cpu_name(),
        "arithmetic": describe_arithmetic(),
        "kernels": kernels,
        "threads": ops.native.threads() if kernels else None,
        "peak_numbers": fastest_numbers() if kernels else None,
    }


def about(chat: "Chat") -> dict[str, Any]:
    """The model and what a token reads of it."""
    from handlens.measure import weight_bytes, weight_count

    backend = chat.generator.generator.backend
    return {
        "name": chat.model.files.model.stem,
        "family": chat.config.family.name,
        "weights": weight_count(backend),
        "bytes_per_token": weight_bytes(backend),
    }


def measure(chat: "Chat", rounds: int, decode: int) -> dict[str, Any]:
    """Medians over rounds: limits of the machine where kernels compute, speeds, and shares of the limits."""
    import numpy as np

    from handlens.cpu import ops
    from handlens.measure import peak_memory

    sizes = {"prefill_tokens": min(PREFILL, chat.context_length - decode), "decode_tokens": decode}
    if sizes["prefill_tokens"] < 1:
        raise InputError(f"a context of {chat.context_length} tokens has no room for {decode} tokens and a prompt")
    if chat.config.vision is not None:
        sizes["image_side"] = IMAGE_SIDE * chat.config.slices.scale_resolution // 448
    found, peaks = [], []
    with working("measuring") as progress:
        for number in range(rounds):
            found.append(measure_model(chat, sizes))
            peaks.append(peak_memory())
            if chat.generator.generator.backend.arithmetic is ops:
                found[-1] |= measure_limits(chat, found[-1])
            progress(number + 1, rounds + 1)
    medians = {name: float(np.median([each[name] for each in found])) for name in found[0]}
    # Later peaks hold what the limits were measured with.
    return {"rounds": rounds, **sizes, **medians, "peak_memory_bytes": peaks[0]}


def measure_model(chat: "Chat", sizes: dict[str, int]) -> dict[str, float]:
    """The speeds of one round."""
    from handlens.engine.engine import Engine
    from handlens.measure import decode_seconds, first_token_seconds, picture, prefill_seconds, slice_seconds

    backend = chat.generator.generator.backend
    found = {
        "prefill_tokens_per_second": sizes["prefill_tokens"] / prefill_seconds(backend, sizes["prefill_tokens"]),
        "decode_tokens_per_second": sizes["decode_tokens"]
        / decode_seconds(backend, sizes["prefill_tokens"], sizes["decode_tokens"]),
    }
    if "image_side" in sizes:
        engine, image = Engine(backend), picture(sizes["image_side"])
        first = first_token_seconds(chat, engine, image, "What is this?")
        second = first_token_seconds(chat, engine, image, "Which colours does it have?")
        found |= {
            "slice_seconds": slice_seconds(backend),
            "first_token_seconds": first,
            "second_question_seconds": second,
            "second_question_share": second / first,
        }
    return found


def measure_limits(chat: "Chat", found: dict[str, float]) -> dict[str, float]:
    """The limits of the machine, and the shares of them that the speeds of this round are."""
    from handlens.measure import machine_limits, weight_bytes, weight_count

    backend, limits = chat.generator.generator.backend, machine_limits()
    return {
        "read_bytes_per_second": limits.read,
        "peak_operations_per_second": limits.fastest,
        "fp32_operations_per_second": limits.floating,
        "prefill_share": 2 * weight_count(backend) * found["prefill_tokens_per_second"] / limits.fastest,
        "decode_share": weight_bytes(backend) * found["decode_tokens_per_second"] / limits.read,
    }


def tables(report: dict[str, Any]) -> str:
    """The report for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from handlens.cli.terminal import harmless

    results, model = report["results"], report["model"]
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    facts = Table(show_header=False, box=box.SIMPLE)
    facts.add_row("CPU", report["machine"]["cpu"])
    facts.add_row("arithmetic", report["machine"]["arithmetic"])
    if report["machine"]["kernels"]:
        facts.add_row("memory read", f"{results['read_bytes_per_second'] / 1e9:.1f} GB/s")
        peak = f"{results['peak_operations_per_second'] / 1e9:.0f} GOPS"
        facts.add_row(f"{report['machine']['peak_numbers']} peak", peak)
        facts.add_row("fp32 peak", f"{results['fp32_operations_per_second'] / 1e9:.0f} GFLOPS")
    else:
        facts.add_row("limits", "not measured: numpy computes, which is exact and slow")
    facts.add_row("model", f"{harmless(model['name'])} ({model['family']})")
    facts.add_row("a token reads", f"{model['weights'] / 1e6:.1f} M weights in {model['bytes_per_token'] / 1e6:.1f} MB")
    facts.add_row("rounds", str(results["rounds"]))
    table = Table(box=box.SIMPLE)
    for heading, justify in (("", "left"), ("median", "right"), ("share", "right")):
        table.add_column(heading, justify=justify)
    for label, key, pattern, share, of in ROWS:
        if (value := results.get(key)) is not None:
            shown = pattern.format(value) if pattern else f"{value / (1 << 20):.0f} MiB"
            part = f"{results[share]:.0%} {SHARES[of].format(**report['machine'])}" if share in results else ""
            table.add_row(label.format(**results), shown, part)
    with console.capture() as captured:
        console.print(facts)
        console.print(table)
    return captured.get()
