"""How many samples of each kind one core draws a second, as drawn and degraded.

    python -m benchmarks.data --sources DIR

prints a Markdown table. Seconds are of processor time, so what else runs on the machine counts little. DIR is what
`handlens data prepare --out DIR` wrote. "448x448 a second" counts pixels: how many pictures of that size the same
pixels would be.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from handlens.data.degrade import degrade
from handlens.data.raster import Canvas
from handlens.data.sources import Sources
from handlens.data.tasks import KEEP, TASKS

PAGE = (448, 448)


@dataclass
class Times:
    """Seconds of each sample, and its pixels."""

    drawing: list[float] = field(default_factory=list)
    degrading: list[float] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)

    def add(self, drawing: float, degrading: float, image: np.ndarray) -> None:
        self.drawing.append(drawing)
        self.degrading.append(degrading)
        self.pixels.append(image.shape[0] * image.shape[1])

    def row(self, name: str) -> str:
        drawing, degrading = np.mean(self.drawing), np.mean(self.degrading)
        pages = np.mean(self.pixels) / (PAGE[0] * PAGE[1])
        cells = (1 / drawing, pages / drawing, 1 / (drawing + degrading))
        return (
            f"| {name} | {len(self.drawing)} | {drawing * 1000:.2f} | "
            + " | ".join(f"{cell:.0f}" for cell in cells)
            + " |"
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", required=True, help="the prepared folder")
    parser.add_argument("--task", action="append", choices=[*TASKS], help="only these; may be repeated")
    parser.add_argument("--samples", type=int, default=300, help="of each task")
    args = parser.parse_args()
    sources = Sources.open(args.sources)
    print("| task | n | ms a sample | a second | 448x448 a second | a second, degraded |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, draw in {"20 plain lines on 448x448": by_canvas, "the same by ImageDraw.text": by_pillow}.items():
        times = Times()
        for seed in range(args.samples):
            rng = np.random.default_rng([seed, 20])
            language = sources.languages[seed % len(sources.languages)]
            lines = [sources.lines(language, "train")[seed + row][:52] for row in range(20)]
            drawing, image = seconds(draw, lines, sources.font(rng, language, "train", 14))
            degrading, _ = seconds(degrade, image, np.zeros((0, 2)), rng)
            times.add(drawing, degrading, image)
        print(times.row(name), flush=True)
    for task in args.task or TASKS:
        all_sizes, square = Times(), Times()
        for seed in range(args.samples):
            rng = np.random.default_rng([seed, 448])
            language = sources.languages[seed % len(sources.languages)]
            drawing, sample = seconds(TASKS[task], rng, sources, language, "train")
            degrading, _ = seconds(degrade, sample.image, sample.centres, rng, 1.0, KEEP.get(task, ()))
            if seed < len(sources.languages):
                continue  # reads the corpora
            for times in (all_sizes, square) if sample.image.shape[:2] == PAGE else (all_sizes,):
                times.add(drawing, degrading, sample.image)
        print(all_sizes.row(task), flush=True)
        if task == "page":
            print(square.row("page of 448x448"), flush=True)


def by_canvas(lines: list[str], font: FreeTypeFont) -> np.ndarray:
    """A page of these lines, drawn as the makers draw."""
    canvas = Canvas(*PAGE)
    for row, line in enumerate(lines):
        canvas.text(8, 8 + 21 * row, line, font)
    return canvas.finish()[0]


def by_pillow(lines: list[str], font: FreeTypeFont) -> np.ndarray:
    """The same page without the centres of glyphs: the yardstick, for machines that are busy."""
    picture = Image.new("RGB", PAGE, (255, 255, 255))
    for row, line in enumerate(lines):
        ImageDraw.Draw(picture).text((8, 8 + 21 * row), line, (0, 0, 0), font)
    return np.array(picture)


def seconds(call: Callable, *args) -> tuple[float, object]:
    """The processor time that a call takes, and what it returns."""
    start = time.process_time()
    result = call(*args)
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
