"""How close the kernels come to the machine: one layer of Llama 3 8B in each type, beside the limits of the same run.

    python -m benchmarks.cpu
    python -m benchmarks.cpu --llama-bench build/bin/llama-bench --model model-Q4_K_M.gguf

prints Markdown tables. Decoding (1 token) is judged by the bytes of packed weights it reads, prefill (512 tokens) by
its operations, a multiplication and its addition counting as two. Each round measures the limits and then the kernels,
and shares are medians of the rounds' ratios, because other work on the machine slows both alike. The peaks, of the
numbers that are multiplied fastest and of floats, come from loops that stay in registers, the read bandwidth from
summing 1 GiB.
"""

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np

from handlens.cpu import ops, reference
from handlens.cpu.threads import thread_count
from handlens.gguf.blocks import BLOCKS, Tensor
from handlens.measure import READ_BYTES, READ_PASSES, fastest_numbers, machine_limits, seconds

#: Types, and where in a block their float16 scales lie.
TYPES = {"Q4_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,), "Q8_0": (0,)}
#: The calls of one layer: rows of each matrix that the same x goes through, and its columns.
LAYER = (((4096, 1024, 1024), 4096), ((4096,), 4096), ((14336, 14336), 4096), ((4096,), 14336))
PREFILL = 512
WEIGHTS = sum(sum(rows) * columns for rows, columns in LAYER)

Calls = list[tuple[np.ndarray, tuple]]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--isa", choices=ops.native.isas(), default=ops.native.isas()[0])
    parser.add_argument("--threads", type=int, default=thread_count())
    parser.add_argument("--no-numpy", action="store_true", help="leave numpy out, which takes a minute")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's program of that name; needs --model")
    parser.add_argument("--model", type=Path, help="the GGUF file that llama-bench runs")
    args = parser.parse_args()
    if (args.llama_bench is None) != (args.model is None):
        parser.error("--llama-bench and --model go together")
    limits, lines = [], []
    for name in TYPES:
        tensors = random_layer(name)
        ops.native.set_threads(args.threads)
        layers = [packed(tensors, args.isa)]
        nbytes = sum(weight.packed.nbytes for call in layers[0] for weight in call)
        # As many bytes as the limit was measured with, or caches would hold some of them.
        layers += [packed(tensors, args.isa) for _ in range(READ_BYTES // nbytes)]
        decode = [call for weights in layers for call in layer_calls(weights, 1)]
        prefill = layer_calls(layers[0], PREFILL)
        rounds = []
        for _ in range(args.rounds):
            limits.append(machine_limits(args.isa))
            decoded = nbytes * len(layers) / min(seconds(run, decode, ops.linears) for _ in range(READ_PASSES))
            read = operations() / seconds(run, prefill, ops.linears, True)
            rounds.append((decoded, decoded / limits[-1].read, read, read / limits[-1].fastest))
        lines.append((name, *np.median(rounds, axis=0), *([] if args.no_numpy else numpy_rates(tensors, nbytes))))
    show(args, np.array([astuple(each) for each in limits]), lines)
    if args.llama_bench:
        show_llama_cpp(args)


def random_layer(name: str) -> list[list[Tensor]]:
    """The matrices of each call of a layer, of random blocks."""
    rng = np.random.default_rng(0)
    block = BLOCKS[name]

    def matrix(rows: int, columns: int) -> Tensor:
        data = rng.integers(0, 256, (rows, columns // block.weights, block.nbytes), dtype=np.uint8)
        for place in TYPES[name]:
            data[..., place : place + 2] = np.array([0.01], np.float16).view(np.uint8)
        return Tensor(name, (rows, columns), data.reshape(rows, -1))

    return [[matrix(rows, columns) for rows in call] for call, columns in LAYER]


def packed(tensors: list[list[Tensor]], isa: str) -> list[list[ops.PackedWeight]]:
    return [[ops.pack(tensor, isa) for tensor in tensors_of_call] for tensors_of_call in tensors]


def layer_calls(weights: list[list], n: int) -> Calls:
    """Random x [n, columns] for each call of a layer, and the call's weights."""
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal((n, columns), dtype=np.float32), tuple((weight,) for weight in call))
        for call, (_, columns) in zip(weights, LAYER, strict=True)
    ]


def run(calls: Calls, linears: Callable, prompt: bool = False) -> None:
    """Multiplies with one layer's matrices."""
    for x, layers in calls:
        linears(x, *layers, bf16=prompt)


def operations() -> float:
    return 2 * PREFILL * WEIGHTS


def numpy_rates(tensors: list[list[Tensor]], nbytes: int) -> tuple[float, float]:
    """The bytes a second of decoding and operations a second of prefill in numpy."""
    decode, prefill = (seconds(run, layer_calls(tensors, rows), reference.linears) for rows in (1, PREFILL))
    return nbytes / decode, operations() / prefill


def show(args: argparse.Namespace, limits: np.ndarray, lines: list[tuple]) -> None:
    """Prints what was measured; `limits` is [rounds, 3]."""
    read, fastest, floating = np.median(limits, axis=0) / 1e9
    numbers = fastest_numbers(args.isa)
    print(f"{args.isa}, {args.threads} threads, medians of {args.rounds} rounds a type\n")
    print(f"| limit | measured |\n|---|---:|\n| memory read | {read:.1f} GB/s |")
    print(f"| {numbers} peak | {fastest:.0f} GOPS |\n| fp32 peak | {floating:.0f} GFLOPS |\n")
    print(
        f"| type | decode | of the read bandwidth | prefill 512 | of the {numbers} peak | numpy: decode | prefill 512 |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, decode, decode_share, prefill, prefill_share, *plain in lines:
        numpy = f"{plain[0] / 1e9:.2f} GB/s | {plain[1] / 1e9:.0f} GOPS" if plain else " | "
        print(
            f"| {name} | {decode / 1e9:.1f} GB/s | {decode_share:.0%} "
            f"| {prefill / 1e9:.0f} GOPS | {prefill_share:.0%} | {numpy} |"
        )


def show_llama_cpp(args: argparse.Namespace) -> None:
    """Runs llama-bench on a whole model and prints its speeds in the same units."""
    command = [args.llama_bench, "-m", args.model, "-t", args.threads, "-p", PREFILL, "-n", 64, "-o", "json"]
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    print("\n| llama.cpp | tokens/s | as above |\n|---|---:|---:|")
    for test in json.loads(ran.stdout):
        speed = test["avg_ts"]
        if test["n_gen"]:
            rate = f"{speed * test['model_size'] / 1e9:.1f} GB/s"
        else:
            rate = f"{2 * speed * test['model_n_params'] / 1e9:.0f} GOPS"
        print(f"| {'decode' if test['n_gen'] else f'prefill {PREFILL}'} | {speed:.2f} | {rate} |")


if __name__ == "__main__":
    main()
