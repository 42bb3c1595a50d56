"""How long a model takes to load and to its first token, and how much memory the process takes beside the weights.

    python -m benchmarks.memory --model FILE [--cache-dir FOLDER]

prints a Markdown table. The bound of the peak is the bytes of the weights in memory, those of the keys and values, and
600 MiB. The peak is that of the whole process, pages of mapped files included. With a folder, packed weights are kept
there: run it twice, and the second run shows what a start without packing takes.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np

from handlens.cpu.backend import CpuBackend
from handlens.cpu.ops import PackedWeight
from handlens.measure import peak_memory
from handlens.weights import find_files, load_model, open_pair

PROMPT, DECODE = 8, 16
ROOM = 600 << 20


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path)
    args = parser.parse_args()
    before = peak_memory()
    start = time.perf_counter()
    open_pair(find_files(args.model))
    opened = time.perf_counter()
    backend = load_model(args.model, cache_dir=args.cache_dir).generator.backend
    loaded, loaded_peak = time.perf_counter(), peak_memory()
    cache = backend.new_cache()
    logits = backend.forward([backend.embed(np.arange(PROMPT))], [cache], prompt=True)
    first = time.perf_counter()
    for _ in range(DECODE):
        logits = backend.forward([backend.embed(logits.argmax(axis=-1))], [cache])
    weights, peak = weight_bytes(backend), peak_memory()
    bound = weights + cache.nbytes + ROOM
    files = sum(os.path.getsize(path) for path in args.model.parent.glob("*.gguf"))
    print("| what | measured |\n|---|---:|")
    for what, value in {
        "GGUF files in the folder": size(files),
        "weights in memory": size(weights),
        "keys and values": size(cache.nbytes),
        "open the files, read the vocabulary": f"{opened - start:.2f} s",
        "the same and bring the weights into memory": f"{loaded - opened:.2f} s",
        f"prompt of {PROMPT} tokens": f"{first - loaded:.2f} s",
        f"{DECODE} tokens more": f"{time.perf_counter() - first:.2f} s",
        "peak before, with the imports": size(before),
        "peak after loading": size(loaded_peak),
        "peak at the end": f"{size(peak)}, {peak / bound:.0%} of the bound",
    }.items():
        print(f"| {what} | {value} |")


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.0f} MiB"


def weight_bytes(backend: CpuBackend) -> int:
    """The bytes of the weights that are computed with."""
    eyes = backend.open_eyes() or ()
    modules = [module for part in (backend.llama, *eyes) for module in part_modules(part)]
    weights = [weight for module in modules for weight in module] + [backend.llama.output]
    return sum(weight.packed.nbytes if isinstance(weight, PackedWeight) else weight.nbytes for weight in weights)


def part_modules(part: object) -> list:
    """The modules of the language model, the tower or the resampler."""
    layers = getattr(part, "layers", [])
    return [module for layer in layers for module in layer.values()] + list(getattr(part, "modules", {}).values())


if __name__ == "__main__":
    main()
