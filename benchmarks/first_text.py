"""How long somebody waits for the first text of the model that ships, after loading, in processes that answer once.

    python -m benchmarks.first_text
    python -m benchmarks.first_text --image receipt.png --question "What is the total?" -- --vision-precision f32

asks `handlens ask --json` again and again about a page that it draws, 672 pixels a side with thirty lines of text, or
about the given image; what stands behind -- are further options of `ask`. Each way of showing the image is tried in
every round, so that what else the machine does falls on all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from itertools import cycle
from pathlib import Path
from statistics import median

from PIL import Image, ImageDraw, ImageFont

from examples.make_lines import LINES
from handlens.cpu.backend import describe_arithmetic

SIDE, MARGIN, COUNT, SIZE = 672, 24, 30, 14
WAYS = {"line by line": (), "whole": ("--whole",)}


def page() -> Image.Image:
    """A page of the shipped pictures' words in Latin letters; each line has its number and as many words as fit."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(SIZE)
    words = cycle(word for text, *_ in LINES.values() if text.isascii() for word in text.split())
    for number in range(1, COUNT + 1):
        line, longer = "", f"{number}."
        while draw.textlength(longer, font) < SIDE - 2 * MARGIN:
            line, longer = longer, f"{longer} {next(words)}"
        draw.text((MARGIN, MARGIN + (number - 1) * (SIDE - 2 * MARGIN) / COUNT), line, "black", font)
    return image


def times(image: Path, question: str, options: list[str]) -> tuple[float, float]:
    """Seconds to load, and from there to the first text."""
    command = [sys.executable, "-m", "handlens", "ask", str(image), question, "--json", "--quiet", *options]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    loaded = told["seconds_to_load"]
    return loaded, told["seconds_to_first_text"] - loaded


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--question", default="What is the total?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("options", nargs="*", help="of `handlens ask`")
    args = parser.parse_args()
    print(f"{date.today()}, {os.cpu_count()} cores, {describe_arithmetic()}\n")
    with tempfile.TemporaryDirectory() as folder:
        image = args.image or Path(folder) / "page.png"
        if args.image is None:
            page().save(image)
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, shown in WAYS.items():
                found[way].append(times(image, args.question, [*shown, *args.options]))
    print(f"| {args.rounds} processes | load, median | first text, median | least | most |")
    print("| --- | --: | --: | --: | --: |")
    for way, measured in found.items():
        loads, firsts = zip(*measured, strict=True)
        numbers = median(loads), median(firsts), min(firsts), max(firsts)
        print(f"| {way} | {' | '.join(f'{seconds:.2f} s' for seconds in numbers)} |")


if __name__ == "__main__":
    main()
