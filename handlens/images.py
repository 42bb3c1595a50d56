"""How an image is cut into slices, and what each slice costs in tokens.

PIL says (width, height), arrays say (height, width). Here every size is (width, height) in pixels and a grid is
(columns, rows); only `tgt_sizes`, (rows, columns) in patches, and pixel arrays [3, H, W] put the height first.

The rules are those of the published preprocessing of MiniCPM-Llama3-V 2.5 (report, section 3.2; image processor of the
model repository), float arithmetic and ties included, since one pixel of difference changes the tokens of an answer.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from handlens.config import SliceOptions, TokenNames
from handlens.errors import ImageError

#: The most patches that one slice may have. An ordinary slice has 1024; the shapes 1:16000 and 16000:1 still fit.
MAX_SLICE_PATCHES = 4096
#: The most pixels that all slices of one image may have together (201 MB as float32), however large the options are.
MAX_IMAGE_PIXELS = 16 * 2**20


@dataclass(frozen=True)
class SlicePlan:
    """The sizes of all slices of one image: an overview and, when there is a grid, its equal cells."""

    overview: tuple[int, int]
    grid: tuple[int, int] | None
    cell: tuple[int, int] | None
    patch_size: int

    @property
    def refined(self) -> tuple[int, int] | None:
        """The size of the image that the cells are cut from, None without a grid."""
        if self.grid is None:
            return None
        return self.cell[0] * self.grid[0], self.cell[1] * self.grid[1]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes of all slices: the overview, then the cells row by row."""
        return [self.overview] + ([self.cell] * math.prod(self.grid) if self.grid else [])

    @property
    def tgt_sizes(self) -> list[tuple[int, int]]:
        """(rows, columns) in patches of every slice, in the order of `sizes`."""
        return [(height // self.patch_size, width // self.patch_size) for width, height in self.sizes]


@dataclass(frozen=True, eq=False)
class SlicedImage:
    """One image as the vision tower takes it; `size` is that of the original.

    `digest` names the pixels and how they are cut; images with the same one have the same slices. The slices are made
    when they are asked for: an image whose vectors are remembered needs none.
    """

    size: tuple[int, int]
    plan: SlicePlan
    digest: str
    make: Callable[[], list[np.ndarray]]

    @cached_property
    def slices(self) -> list[np.ndarray]:
        """Float32 arrays [3, H, W]: the overview, then the cells row by row."""
        return self.make()


def _divisible(length: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `length`, at least `divisor` itself; Python rounds .5 to the even one."""
    return max(round(length / divisor) * divisor, divisor)


def fit_size(width: float, height: float, options: SliceOptions, upscale: bool) -> tuple[int, int]:
    """A size in whole patches, of the same shape and of about `scale_resolution` squared pixels.

    A smaller image grows to that area only if `upscale` is set. The width follows from the truncated height.
    """
    side = options.scale_resolution
    if width * height > side * side or upscale:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _divisible(width, options.patch_size), _divisible(height, options.patch_size)


def best_grid(width: int, height: int, options: SliceOptions) -> tuple[int, int] | None:
    """(columns, rows) of the grid whose shape is nearest to the image's, None for an image that stays whole."""
    side = options.scale_resolution
    multiple = min(math.ceil(width * height / (side * side)), options.max_slice_nums)
    if multiple <= 1:
        return None
    counts = [n for n in (multiple - 1, multiple, multiple + 1) if 1 < n <= options.max_slice_nums]
    grids = [(cols, n // cols) for n in counts for cols in range(1, n + 1) if n % cols == 0]
    shape = math.log(width / height)
    # Of equally near grids `min` returns the first, as the original does: 450x450 gets one column of two rows.
    return min(grids, key=lambda grid: abs(shape - math.log(grid[0] / grid[1])))


def plan_slices(width: int, height: int, options: SliceOptions) -> SlicePlan:
    """The plan for an image of this size. ImageError if it has no pixels or would need slices beyond the limits."""
    if min(width, height) <= 0:
        raise ImageError(f"an image of {width}x{height} pixels has nothing to look at; both sides must be at least 1")
    patch = options.patch_size
    if width > height * options.scale_resolution**2:
        raise _too_long(width, height, "a slice less than one pixel high")
    grid = best_grid(width, height, options)
    if grid is None:
        plan = SlicePlan(fit_size(width, height, options, upscale=True), None, None, patch)
    else:
        cols, rows = grid
        cell = fit_size(_divisible(width, cols) / cols, _divisible(height, rows) / rows, options, upscale=True)
        plan = SlicePlan(fit_size(width, height, options, upscale=False), grid, cell, patch)
    for rows, cols in plan.tgt_sizes:
        if rows * cols > MAX_SLICE_PATCHES:
            raise _too_long(width, height, f"a slice of {cols}x{rows} patches; at most {MAX_SLICE_PATCHES} are allowed")
    pixels = sum(w * h for w, h in plan.sizes)
    if pixels > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"an image of {width}x{height} pixels would be scaled to slices of {pixels} pixels together; at most "
            f"{MAX_IMAGE_PIXELS} are allowed: use a smaller scale_resolution ({options.scale_resolution}) "
            f"or max_slice_nums ({options.max_slice_nums})"
        )
    return plan


def _too_long(width: int, height: int, need: str) -> ImageError:
    """The error for an image whose shape or options lead to a slice that is too large."""
    shape = f"1:{height / width:.4g}" if height > width else f"{width / height:.4g}:1"
    return ImageError(
        f"an image of {width}x{height} pixels (shape {shape}) would need {need}: "
        "cut a very long image into pieces, or use the model's own slice options"
    )


def cut(image: Image.Image, options: SliceOptions, mean: Sequence[float], std: Sequence[float]) -> SlicedImage:
    """The overview and the cells of the image, normalised for the vision tower.

    The image is taken as the original takes one: converted to RGB by Pillow, EXIF orientation not applied (`decode.py`
    has applied it to a file). Each output is resized once, from the original pixels.
    """
    plan = plan_slices(*image.size, options)
    rgb = image.convert("RGB")  # a copy, which nobody changes before the slices are made

    def make() -> list[np.ndarray]:
        return [_normalise(picture, mean, std) for picture in pictures(rgb, plan)]

    return SlicedImage(image.size, plan, f"{digest(rgb)} {plan}", make)


def pictures(rgb: Image.Image, plan: SlicePlan) -> list[Image.Image]:
    """The overview and the cells of an RGB image as pictures."""
    made = [resize(rgb, plan.overview)]
    if plan.grid:
        refined = resize(rgb, plan.refined)
        (cols, rows), (width, height) = plan.grid, plan.cell
        corners = [(col * width, row * height) for row in range(rows) for col in range(cols)]
        made += [refined.crop((x, y, x + width, y + height)) for x, y in corners]
    return made


def resize(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at another size, widths first and heights second, each rounded to 8 bits.

    The original was fed by Pillow 10.1, which does it in that order. Since version 12 Pillow begins with the heights
    where that is faster, and pixels differ by up to six levels. Asked for one axis at a time, all versions agree.
    """
    width, height = size
    bicubic = Image.Resampling.BICUBIC
    return picture.resize((width, picture.height), bicubic).resize((width, height), bicubic)


def _normalise(picture: Image.Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(x / 255 - mean) / std of the pixels x, float32 [3, H, W], every step in float32 as in the original."""
    pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)  # [H, W, 3]
    pixels = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def patches(pixels: np.ndarray, patch_size: int) -> np.ndarray:
    """The patches of a slice [3, H, W], row by row: [L, 3 * patch_size**2].

    Inside a patch the channel comes first, then its rows: the order of a convolution kernel [D, 3, P, P] flattened to
    [D, 3 * P * P], so the patch embedding is one matrix product.
    """
    channels, height, width = pixels.shape
    rows, cols = height // patch_size, width // patch_size
    cells = pixels.reshape(channels, rows, patch_size, cols, patch_size).transpose(1, 3, 0, 2, 4)
    return cells.reshape(rows * cols, channels * patch_size * patch_size)


def placeholder(plan: SlicePlan, query_num: int, names: TokenNames) -> list[str]:
    """The pieces that stand for the image in a prompt: names of special tokens, and newlines between rows of cells.

    Each piece becomes one token; the vectors of the slices take the places of the fillers, in the order of the slices.
    """
    unit = [names.image_open, *[names.filler] * query_num, names.image_close]
    if plan.grid is None:
        return unit
    cols, rows = plan.grid
    cells = unit * cols + (["\n"] + unit * cols) * (rows - 1)
    return [*unit, names.slice_open, *cells, names.slice_close]


def count_tokens(plan: SlicePlan, query_num: int) -> int:
    """The number of tokens that the image takes in a prompt: the length of its placeholder."""
    if plan.grid is None:
        return query_num + 2
    cols, rows = plan.grid
    return (query_num + 2) * (cols * rows + 1) + 2 + (rows - 1)


def digest(image: Image.Image) -> str:
    """SHA-256, in hex, of mode, size and pixels of the RGB image that is fed: a safe key for a cache of images.

    Only what the model sees counts, so palettes are resolved first; the size keeps equal bytes of other shapes apart.
    """
    rgb = image.convert("RGB")
    head = f"{rgb.mode} {rgb.width}x{rgb.height}\n".encode()
    return hashlib.sha256(head + rgb.tobytes()).hexdigest()
