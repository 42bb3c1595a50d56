"""Our blocks beside llama.cpp's: the errors of both on the same tensors, and the time for a whole file.

python -m benchmarks.quantize LLAMA_CPP [--gguf FILE] [--speed FILE] [--type Q4_K_M] [--threads 2]
python -m benchmarks.quantize --peak MODEL [--type Q4_K_M,F16]

LLAMA_CPP is a folder with `llama-quantize` and `libggml-base.so` beside it, as llama.cpp's build makes it; the library
is asked for single tensors (`ggml_quantize_chunk`, which is what llama-quantize calls). The mean squares of the errors
are printed as parts of llama.cpp's: below 1 ours are smaller. With importance both sides are given the same, and errors
count times the importance of their column.

With --peak a model (a GGUF file or a checkpoint folder) is quantised by handlens alone, and the most memory that its
process holds is printed, pages of mapped files included, beside the largest tensor of what it wrote.
"""

import argparse
import ctypes
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from handlens.cpu.backend import describe_arithmetic
from handlens.cpu.threads import THREADS_VARIABLE
from handlens.gguf import GGUFFile
from handlens.gguf.blocks import BLOCKS, Tensor
from handlens.quant.encode import TYPES
from handlens.quant.tensors import quantize_tensor

ROWS, COLUMNS = 256, 2048
#: Below this share of the mean square an error is rounding of floats: the numbers can be stored as they are.
NOTHING = 1e-7


class LlamaCpp:
    """llama.cpp's quantisers."""

    def __init__(self, folder: Path):
        self.program = folder / "llama-quantize"
        self._chunk = ctypes.CDLL(str(folder / "libggml-base.so")).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        self._chunk.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]

    def blocks(self, x: np.ndarray, type: str, importance: np.ndarray | None) -> np.ndarray:
        """The rows of x as blocks, uint8 [rows, bytes of a row]."""
        block = BLOCKS[type]
        made = np.empty((len(x), x.shape[1] // block.weights * block.nbytes), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._chunk(block.ggml_type, x.ctypes.data, made.ctypes.data, 0, *x.shape, weights)
        return made


def samples(gguf: Path | None) -> dict[str, np.ndarray]:
    """Name -> numbers [rows, columns]."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32) * np.float32(0.02)
    columns = normal.copy()
    columns[:, rng.choice(COLUMNS, 20, replace=False)] *= 20
    found = {
        "normal": normal,
        "Student t, 3": (rng.standard_t(3, (ROWS, COLUMNS)) * 0.02).astype(np.float32),
        "20 large columns": columns,
    }
    if gguf is not None:
        matrices = []
        with GGUFFile(gguf) as file:
            for name, tensor in file.tensors.items():
                if len(tensor.shape) == 2 and name.endswith(".weight"):
                    numbers = tensor.dequantize(0, ROWS).reshape(-1)
                    matrices.append(numbers[: len(numbers) // COLUMNS * COLUMNS].reshape(-1, COLUMNS)[:16])
        found[gguf.name] = np.ascontiguousarray(np.concatenate(matrices))
    return found


def error(x: np.ndarray, data: np.ndarray, type: str, importance: np.ndarray | None) -> float:
    """The mean square of the errors over that of the numbers, in either times the importance."""
    weights = 1.0 if importance is None else importance
    wanted = x.astype(np.float64)
    errors = BLOCKS[type].dequantize(data) - wanted
    return float((errors**2 * weights).mean() / (wanted**2 * weights).mean())


def ratio(ours: float, theirs: float) -> str:
    """Ours as a part of theirs; where both are nothing but rounding they count as equal."""
    return (
        "both 0" if max(ours, theirs) < NOTHING else f"{ours / theirs:.3f}" if theirs >= NOTHING else f"{ours:.1e} / 0"
    )


def compare_errors(llama_cpp: LlamaCpp, gguf: Path | None) -> None:
    """Prints a table: for each type, without and with importance, ours over theirs on each sample."""
    numbers = samples(gguf)
    importance = np.exp(1.5 * np.random.default_rng(1).standard_normal(COLUMNS)).astype(np.float32)
    print("| type | " + " | ".join(f"{name} | with importance" for name in numbers) + " |")
    print("|---" * (1 + 2 * len(numbers)) + "|")
    for type in TYPES:
        cells = []
        for x in numbers.values():
            for weights in (None, importance):
                ours = quantize_tensor(type, Tensor.from_array(x), type, weights).data
                theirs = llama_cpp.blocks(x, type, weights)
                cells.append(ratio(error(x, ours, type, weights), error(x, theirs, type, weights)))
        print(f"| {type} | " + " | ".join(cells) + " |", flush=True)


def compare_speed(llama_cpp: LlamaCpp, source: Path, type: str, threads: int, rounds: int) -> None:
    """Prints the times for a whole file, by turns; the file is read once before."""
    with source.open("rb") as file:
        while file.read(1 << 24):
            pass
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        out = Path(scratch) / "out.gguf"
        commands = {
            "handlens": [sys.executable, "-m", "handlens", "quantize", source, out, type, "--force", "--quiet"],
            "llama-quantize": [llama_cpp.program, source, out, type, str(threads)],
        }
        taken = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                taken[name].append(_seconds(command, threads))
    middle = {name: np.median(times, axis=0) for name, times in taken.items()}
    for name, (wall, processor) in middle.items():
        print(f"{name:15} {wall:7.1f} s, {processor:7.1f} s of processor time")
    wall, processor = middle["llama-quantize"] / middle["handlens"]
    print(f"handlens is {wall:.1f} times as fast, and takes {processor:.1f} times less processor time")


def measure_peak(source: Path, types: list[str]) -> None:
    """Prints the peak of a process for each type."""
    print("| type | peak | largest tensor written | seconds |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        for type in types:
            out, start = Path(scratch) / "out.gguf", time.perf_counter()
            command = [sys.executable, "-m", "handlens", "quantize", source, out, type, "--force", "--quiet"]
            running = subprocess.Popen(command)
            _, status, used = os.wait4(running.pid, 0)
            if status:
                raise SystemExit(f"{type} failed")
            with GGUFFile(out) as file:
                largest = max(tensor.nbytes for tensor in file.tensors.values())
            taken = time.perf_counter() - start
            print(f"| {type} | {used.ru_maxrss >> 10} MiB | {largest >> 20} MiB | {taken:.0f} |", flush=True)


def _seconds(command: list, threads: int) -> tuple[float, float]:
    """Wall time and processor time of a program."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, THREADS_VARIABLE: str(threads)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_cpp", type=Path, nargs="?", help="folder with llama-quantize and libggml-base.so")
    parser.add_argument("--gguf", type=Path, help="a file whose matrices are a sample too")
    parser.add_argument("--speed", type=Path, help="a file in F16 that is quantised by both, instead of the errors")
    parser.add_argument("--peak", type=Path, metavar="MODEL", help="a model whose peak memory is measured instead")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.peak is not None:
        measure_peak(args.peak, args.type.split(","))
        return
    if args.llama_cpp is None:
        parser.error("LLAMA_CPP is missing")
    llama_cpp = LlamaCpp(args.llama_cpp)
    print(f"{platform.processor() or platform.machine()}, {describe_arithmetic()}")
    if args.speed is None:
        compare_errors(llama_cpp, args.gguf)
    else:
        compare_speed(llama_cpp, args.speed, args.type, args.threads, args.rounds)


if __name__ == "__main__":
    main()
