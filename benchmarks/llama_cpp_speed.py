"""handlens beside llama.cpp on the same files, in one run: prompts, answers, one slice, a large image.

    python -m benchmarks.make_model cut --type Q4_0 --layers 4
    python -m benchmarks.llama_cpp_speed --bin build/bin --model cut/model.gguf --mmproj cut/model.mmproj.gguf

`--bin` is the folder with llama-bench and llama-mtmd-cli of a native build. A round runs one after the other, so other
work on the machine slows both; ratios are medians of the rounds'. Times of images are from the request to the first
token, as each program's own clock tells them: cutting, encoding and reading, but no loading.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from handlens import load
from handlens.cpu import ops
from handlens.cpu.threads import thread_count
from handlens.engine.cache import longest_slice
from handlens.engine.engine import Engine
from handlens.measure import decode_seconds, first_token_seconds, prefill_seconds, read_bandwidth, seconds, weight_bytes

PREFILL, DECODE = 512, 64
QUESTION = "What?"
ENCODED = re.compile(r"batch encoding done in (\d+) ms")
READ = re.compile(r"prompt eval time =\s*([\d.]+) ms")
#: Measure -> how it is shown; more is better for those in tokens a second.
UNITS = {"prefill": "tokens/s", "decode": "tokens/s", "slice": "s", "first token, 448": "s", "first token, 1344": "s"}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="the folder of llama.cpp's programs")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--mmproj", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=thread_count())
    parser.add_argument(
        "--large", action="store_true", help="also an image of 1344 x 1344, which takes llama.cpp minutes"
    )
    args = parser.parse_args()
    chat = load(args.model, args.mmproj, threads=args.threads)
    found = []
    with TemporaryDirectory() as folder:
        images = {side: noise(side, Path(folder)) for side in ([448, 1344] if args.large else [448])}
        for _ in range(args.rounds):
            before, ours, after = read_bandwidth(), our_round(chat, images), read_bandwidth()
            share = weight_bytes(chat.generator.backend) * ours["decode"] / max(before, after)
            found.append((ours, their_round(args, images), share))
    show(args, found)


def noise(side: int, folder: Path) -> Path:
    """A square picture in a file."""
    path = folder / f"{side}.png"
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return path


def our_round(chat, images: dict[int, Path]) -> dict[str, float]:
    """What we take."""
    backend = chat.generator.backend
    found = {
        "prefill": PREFILL / prefill_seconds(backend, PREFILL),
        "decode": DECODE / decode_seconds(backend, 1, DECODE),
        "slice": 0.0,
    }
    for side, path in images.items():
        image = Image.open(path).convert("RGB")
        found[f"first token, {side}"] = first_token_seconds(chat, Engine(backend), image, QUESTION)
        if side == 448:
            sliced = chat.prepare([{"role": "user", "content": [image, QUESTION]}]).images
            found["slice"] = seconds(backend.encode, sliced, longest_slice(sliced))
    return found


def their_round(args: argparse.Namespace, images: dict[int, Path]) -> dict[str, float]:
    """What llama.cpp takes."""
    threads = ["-t", str(args.threads)]
    command = [args.bin / "llama-bench", "-m", args.model, *threads, "-p", PREFILL, "-n", DECODE, "-r", 1, "-o", "json"]
    tests = json.loads(run(command).stdout)
    found = {"decode" if test["n_gen"] else "prefill": test["avg_ts"] for test in tests}
    for side, path in images.items():
        command = [
            args.bin / "llama-mtmd-cli",
            "-m",
            args.model,
            "--mmproj",
            args.mmproj,
            "--image",
            path,
            "-p",
            QUESTION,
        ]
        command += ["-n", 1, *threads, "--temp", 0, "-c", 4096, "--no-warmup", "--chat-template", "llama3", "-v"]
        said = run(command).stderr
        found[f"first token, {side}"] = float(READ.search(said)[1]) / 1000
        if side == 448:
            found["slice"] = sum(map(int, ENCODED.findall(said))) / 1000
    return found


def run(command: list) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)


def show(args: argparse.Namespace, found: list[tuple[dict, dict, float]]) -> None:
    """The table; a ratio above 1 says that ours is faster."""
    print(f"{args.model.name}, {args.threads} threads, medians of {len(found)} rounds; {ops.description()}\n")
    print("| | handlens | llama.cpp | times as fast |\n|---|---:|---:|---:|")
    for name in (name for name in UNITS if name in found[0][0]):
        rate = UNITS[name] == "tokens/s"
        ratios = [ours[name] / theirs[name] if rate else theirs[name] / ours[name] for ours, theirs, _ in found]
        ours, theirs = (np.median([each[side][name] for each in found]) for side in (0, 1))
        print(f"| {name} | {ours:.3g} {UNITS[name]} | {theirs:.3g} {UNITS[name]} | {np.median(ratios):.2f} |")
    print(f"\ndecode: {np.median([share for *_, share in found]):.0%} of the read bandwidth of the same round")


if __name__ == "__main__":
    main()
