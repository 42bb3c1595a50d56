"""How near handlens and stock llama.cpp are on the same files, and what llama.cpp does differently on purpose.

    python -m benchmarks.llama_cpp_agreement

prints Markdown tables for tiny random models of our small family (slices of 224 pixels). Both programs go through
llama.cpp's tokens; an error is the largest difference between the logarithms of chances of its 20 likeliest tokens at
all steps. Needs xllamacpp; tests/test_interop_llama_cpp.py holds the same comparisons to a bound.
"""

import argparse
import math
import os
import platform
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from handlens.chat import Chat, load
from handlens.config import FAMILIES, POSITION_MODES, SliceOptions
from handlens.images import SlicePlan, count_tokens, plan_slices
from tests import tiny
from tests.llama_cpp import Comparison, LlamaCpp, compare, picture, round_as_llama_cpp
from tests.multilingual import SENTENCES, lines

SIDE = 224
QUESTION = "What is in the picture?"

#: One sentence in each language, and how many tokens are compared after a text and after a picture.
PROMPTS = lines()[: 3 * len(SENTENCES) : 3]
TEXT_STEPS, IMAGE_STEPS = 24, 12

#: Shapes that both programs cut alike: single slices, grids that need no resizing, and grids that do.
SHAPES = [
    *[(30, 30), (57, 57), (100, 100), (180, 180), (224, 224)],
    *[(448, 224), (224, 448), (448, 448), (672, 224), (224, 672), (672, 448), (448, 672), (672, 672)],
    *[(896, 224), (224, 896), (1120, 224), (224, 1120), (896, 448), (448, 896)],
    *[(436, 408), (677, 240), (404, 534), (586, 345), (306, 268), (259, 485), (138, 415), (172, 688), (625, 625)],
    *[(675, 149), (500, 300), (597, 306)],
]

#: Shapes that they do not.
OTHER_SHAPES = [
    (300, 300),
    (320, 240),
    (333, 777),
    (640, 480),
    (900, 100),
    (300, 200),
    (100, 60),
    (60, 100),
    (150, 200),
]

#: Random sizes whose slices are compared, and how many of them are also shown to both programs.
RANDOM_SIZES, RANDOM_PICTURES = 2000, 100


@dataclass(frozen=True)
class Cut:
    """How llama.cpp cuts an image. `drawn` is the size of the picture inside the refined image, smaller than that where
    black bars are."""

    plan: SlicePlan
    drawn: tuple[int, int] | None = None


def llama_cpp_cut(width: int, height: int, options: SliceOptions) -> Cut:
    """llama.cpp's rule, told anew from what it does; some ratios are float32 there, which decides ties otherwise.

    An image that fits into a slice is stretched to a square, any other is cut. Halves are rounded up, and the picture
    keeps its shape inside the refined image.
    """
    side, patch = options.scale_resolution, options.patch_size

    def whole(length: float, unit: int) -> int:
        return max(math.floor(length / unit + 0.5), 1) * unit

    def fitted(w: float, h: float, grow: bool) -> tuple[int, int]:
        if grow or w * h > side * side:
            ratio = w / h
            h = int(side / math.sqrt(ratio))
            w = int(h * ratio)
        return whole(w, patch), whole(h, patch)

    if max(width, height) <= side:
        return Cut(SlicePlan((side, side), None, None, patch))
    wanted = min(math.ceil(width * height / side**2), options.max_slice_nums)
    counts = [count for count in (wanted - 1, wanted, wanted + 1) if 1 < count <= options.max_slice_nums]
    grids = [(cols, count // cols) for count in counts for cols in range(1, count + 1) if count % cols == 0]
    cols, rows = min(grids, key=lambda grid: abs(math.log(width / height) - math.log(grid[0] / grid[1])))
    cell = fitted(whole(width, cols) // cols, whole(height, rows) // rows, grow=True)
    plan = SlicePlan(fitted(width, height, grow=False), (cols, rows), cell, patch)
    scale = min(plan.refined[0] / width, plan.refined[1] / height)
    drawn = min(math.ceil(width * scale), plan.refined[0]), min(math.ceil(height * scale), plan.refined[1])
    return Cut(plan, drawn)


def difference(ours: SlicePlan, theirs: Cut) -> str:
    """What kind of difference there is between the two ways to cut an image."""
    if ours.grid is None and theirs.plan.grid is None:
        return "identical pixels" if ours == theirs.plan else "stretched to a square there"
    if ours.grid is None:
        return "one slice here, several there"
    if ours.grid != theirs.plan.grid:
        return "another grid"
    if ours != theirs.plan:
        return "same grid, slices a patch larger or smaller there"
    return "identical pixels" if theirs.drawn == ours.refined else "same slices, black bars there"


def kind(size: tuple[int, int], options: SliceOptions) -> str:
    return difference(plan_slices(*size, options), llama_cpp_cut(*size, options))


def random_sizes(side: int) -> list[tuple[int, int]]:
    """Sizes with sides from 20 pixels to those of four and a half slices, all equally likely."""
    rng = random.Random(0)
    return [(rng.randint(20, 9 * side // 2), rng.randint(20, 9 * side // 2)) for _ in range(RANDOM_SIZES)]


def texts(chat: Chat, llama_cpp: LlamaCpp) -> list[Comparison]:
    return [compare(chat, llama_cpp, prompt, [], TEXT_STEPS) for prompt in PROMPTS]


def pictures(chat: Chat, llama_cpp: LlamaCpp, shapes: Sequence[tuple[int, int]]) -> list[Comparison]:
    return [compare(chat, llama_cpp, QUESTION, [picture(*shape)], IMAGE_STEPS) for shape in shapes]


def tally(comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """How many tokens are equal, and the largest error."""
    steps = sum(len(comparison.theirs.tokens) for comparison in comparisons)
    changed = sum(comparison.changed for comparison in comparisons)
    return f"{steps - changed} of {steps}", f"{max(comparison.error for comparison in comparisons):.1e}"


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a Markdown table, row by row."""
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)


def by_type(folder: Path) -> Iterable[tuple]:
    """Text, and pictures that both cut alike, for each type of weights and both of llama.cpp's ways to attend."""
    for type in ("F32", "F16", "BF16", "Q8_0"):
        made = write(folder, type)
        chat = load(made.model, made.mmproj, vision_precision="f32")
        for exact, setting in ((True, "float32, plain"), (False, "its default: float16 keys and values, flash")):
            llama_cpp = LlamaCpp(made.model, made.mmproj, exact=exact)
            yield type, setting, *tally(texts(chat, llama_cpp)), *tally(pictures(chat, llama_cpp, SHAPES))


def by_shape(chat: Chat, rounded: Chat, llama_cpp: LlamaCpp) -> Iterable[tuple]:
    """Each shape by itself; the last column has llama.cpp's float16 roundings done here, too."""
    for shape in SHAPES + OTHER_SHAPES:
        (plain,), (other,) = pictures(chat, llama_cpp, [shape]), pictures(rounded, llama_cpp, [shape])
        grid = plan_slices(*shape, chat.config.slices).grid or (1, 1)
        same_grid = "yes" if plain.same_length else "no"
        named = kind(shape, chat.config.slices)
        yield f"{shape[0]}x{shape[1]}", f"{grid[0]}x{grid[1]}", same_grid, named, *tally([plain]), f"{other.error:.1e}"


def by_position_mode(made: tiny.TinyModel, llama_cpp: LlamaCpp) -> Iterable[tuple]:
    """What the numbering of the patches alone changes, on pictures that both cut alike."""
    for mode in POSITION_MODES:
        yield (
            mode,
            *tally(
                pictures(load(made.model, made.mmproj, position_mode=mode, vision_precision="f32"), llama_cpp, SHAPES)
            ),
        )


def by_kind(chat: Chat, llama_cpp: LlamaCpp) -> Iterable[tuple]:
    """How common each kind of difference is, and what it changes in those of the random sizes that were shown."""
    options, queries = chat.config.slices, chat.config.resampler.query_num
    sizes = random_sizes(SIDE)
    shown: dict[str, list[Comparison]] = {}
    for size in sizes[:RANDOM_PICTURES]:
        (comparison,) = pictures(chat, llama_cpp, [size])
        told = count_tokens(llama_cpp_cut(*size, options).plan, queries)
        ours = count_tokens(plan_slices(*size, options), queries)
        if comparison.theirs.prompt_tokens - len(comparison.inputs.input_ids) != told - ours:
            raise RuntimeError(f"llama.cpp cut an image of {size[0]}x{size[1]} pixels otherwise than described here")
        shown.setdefault(kind(size, options), []).append(comparison)
    here = Counter(kind(size, options) for size in sizes)
    wide = Counter(kind(size, SliceOptions()) for size in random_sizes(SliceOptions().scale_resolution))
    for name in sorted(here | wide, key=lambda name: -wide[name]):
        shares = (f"{100 * counted[name] / RANDOM_SIZES:.1f} %" for counted in (wide, here))
        yield name, *shares, len(shown.get(name, [])), *(tally(shown[name]) if name in shown else ("", ""))


def write(folder: Path, type: str) -> tiny.TinyModel:
    return tiny.write(folder, tiny.config(FAMILIES["handlens-mini"], SIDE), type=type, name=type)


def main() -> None:
    """Prints the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{date.today()}, {os.cpu_count()}-core {platform.machine()}, xllamacpp {version('xllamacpp')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = write(folder, "F32")
        chat, rounded = (load(made.model, made.mmproj, vision_precision="f32") for _ in range(2))
        round_as_llama_cpp(rounded)
        llama_cpp = LlamaCpp(made.model, made.mmproj)
        table(
            "Same files, same slices",
            ("weights", "attention in llama.cpp", "text: equal tokens", "error", "pictures: equal tokens", "error"),
            by_type(folder),
        )
        table(
            "Each shape, F32 and plain attention",
            ("picture", "grid", "same grid", "slices", "equal tokens", "error", "error with its roundings"),
            by_shape(chat, rounded, llama_cpp),
        )
        table(
            "Position modes, F32 and plain attention",
            ("mode here (llama.cpp: grid_2d)", "equal tokens", "error"),
            by_position_mode(made, llama_cpp),
        )
        table(
            "Random sizes, F32 and plain attention",
            ("slices", "share at 448", f"share at {SIDE}", "shown", "equal tokens", "error"),
            by_kind(chat, llama_cpp),
        )


if __name__ == "__main__":
    main()
