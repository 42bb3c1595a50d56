"""Slicing: the golden table of the published rules, and what must hold for every shape."""

import dataclasses
import hashlib
import math
import random

import numpy as np
import pytest
from PIL import Image

from handlens.config import SliceOptions, TokenNames
from handlens.errors import HandlensError, ImageError
from handlens.images import (
    MAX_IMAGE_PIXELS,
    MAX_SLICE_PATCHES,
    best_grid,
    count_tokens,
    cut,
    digest,
    fit_size,
    patches,
    placeholder,
    plan_slices,
    resize,
)

OPTIONS = SliceOptions()
SMALL = SliceOptions(scale_resolution=224)
NAMES = TokenNames()
HALF = (0.5, 0.5, 0.5)

# size; overview, its patch grid (rows, cols); grid (cols, rows), cell, its patch grid; tokens with 96 queries.
GOLDEN = [
    ((448, 448), (448, 448), (32, 32), None, None, None, 98),
    ((50, 50), (448, 448), (32, 32), None, None, None, 98),
    ((1, 1), (448, 448), (32, 32), None, None, None, 98),
    ((640, 480), (518, 392), (28, 37), (2, 1), (364, 546), (39, 26), 296),
    ((449, 448), (448, 448), (32, 32), (2, 1), (322, 630), (45, 23), 296),
    ((450, 450), (448, 448), (32, 32), (1, 2), (630, 322), (23, 45), 297),
    ((896, 896), (448, 448), (32, 32), (2, 2), (448, 448), (32, 32), 493),
    ((1024, 768), (518, 392), (28, 37), (2, 2), (518, 392), (28, 37), 493),
    ((1344, 1344), (448, 448), (32, 32), (3, 3), (448, 448), (32, 32), 984),
    ((1920, 1080), (602, 336), (24, 43), (4, 2), (420, 476), (34, 30), 885),
    ((1080, 1920), (336, 602), (43, 24), (2, 4), (476, 420), (30, 34), 887),
    ((1170, 2532), (308, 658), (47, 22), (2, 4), (434, 462), (33, 31), 887),
    ((4000, 3000), (518, 392), (28, 37), (3, 3), (518, 392), (28, 37), 984),
    ((800, 4000), (196, 1008), (72, 14), (1, 8), (560, 350), (25, 40), 891),
    ((4480, 448), (1414, 140), (10, 101), (9, 1), (476, 420), (30, 34), 982),
    ((1000, 100), (1414, 140), (10, 101), None, None, None, 98),
    ((10000, 10), (14000, 14), (1, 1000), None, None, None, 98),
    # beyond the published table: a side is first made divisible by the grid, which moves the cell's width by a patch
    ((912, 879), (448, 434), (31, 32), (2, 2), (462, 434), (31, 33), 493),
    ((899, 1852), (308, 644), (46, 22), (2, 4), (448, 448), (32, 32), 887),
]


@pytest.mark.parametrize("size, overview, overview_patches, grid, cell, cell_patches, tokens", GOLDEN)
def test_golden_table_of_the_published_rules(size, overview, overview_patches, grid, cell, cell_patches, tokens):
    plan = plan_slices(*size, OPTIONS)
    assert (plan.overview, plan.grid, plan.cell) == (overview, grid, cell)
    assert best_grid(*size, OPTIONS) == grid
    cells = math.prod(grid) if grid else 0
    assert plan.sizes == [overview] + [cell] * cells
    assert plan.tgt_sizes == [overview_patches] + [cell_patches] * cells
    assert plan.refined == ((cell[0] * grid[0], cell[1] * grid[1]) if grid else None)
    assert count_tokens(plan, 96) == len(placeholder(plan, 96, NAMES)) == tokens


def test_most_tokens_are_those_of_one_column_of_nine_rows():
    plan = plan_slices(448, 4032, OPTIONS)
    assert plan.grid == (1, 9)
    assert count_tokens(plan, 96) == 990


def test_fit_size_truncates_first_and_takes_the_width_from_the_truncated_height():
    # 640x480: height int(448 / sqrt(4/3)) = 387, width int(387 * 4/3) = 516, then the nearest multiples of 14
    assert fit_size(640, 480, OPTIONS, upscale=False) == (518, 392)
    assert fit_size(100, 60, OPTIONS, upscale=False) == (98, 56)  # small: only made divisible
    assert fit_size(21, 35, OPTIONS, upscale=False) == (28, 28)  # 1.5 and 2.5 patches both round to the even 2
    assert fit_size(1, 1, OPTIONS, upscale=False) == (14, 14)


def shapes():
    """20,000 shapes up to 8000x8000: the corners, the extremes, and seeded ones, even over sides and over ratios."""
    yield from (
        (w, h) for w in (1, 2, 13, 14, 15, 447, 448, 449, 8000) for h in (1, 2, 13, 14, 15, 447, 448, 449, 8000)
    )
    yield from [(40, 8000), (8000, 40), (1, 200), (200, 1), (448, 4032), (4032, 448), (1084, 820), (820, 1084)]
    rng = random.Random(25)
    for _ in range(10_000):
        yield rng.randint(1, 8000), rng.randint(1, 8000)
        yield round(8000 ** rng.random()), round(8000 ** rng.random())


@pytest.mark.parametrize("options, query_num", [(OPTIONS, 96), (OPTIONS, 64), (SMALL, 96)])
def test_i04_placeholders_equal_slices_for_every_shape(options, query_num):
    for width, height in shapes():
        plan = plan_slices(width, height, options)
        pieces = placeholder(plan, query_num, NAMES)
        sizes = plan.sizes
        assert pieces.count(NAMES.filler) == query_num * len(sizes)
        assert pieces.count(NAMES.image_open) == pieces.count(NAMES.image_close) == len(sizes) == len(plan.tgt_sizes)
        assert len(pieces) == count_tokens(plan, query_num)
        assert len(sizes) <= options.max_slice_nums + 1
        assert all(side > 0 and side % options.patch_size == 0 for size in sizes for side in size), (width, height)
        assert all(rows * cols <= MAX_SLICE_PATCHES for rows, cols in plan.tgt_sizes)


def test_i04_transposed_twins_get_transposed_grids_unless_two_grids_are_equally_near():
    compared = 0
    for width, height in shapes():
        grid = best_grid(width, height, OPTIONS)
        twin = best_grid(height, width, OPTIONS)
        if grid is None:
            assert twin is None
        elif twin != grid[::-1]:  # then the two grids are a tie, up to the last bits of the logarithms
            shape = math.log(width / height)
            first, second = (abs(shape - math.log(cols / rows)) for cols, rows in (grid, twin[::-1]))
            assert first == pytest.approx(second, abs=1e-12), (width, height)
        else:
            compared += 1
    assert compared > 10_000


def test_placeholder_of_a_grid_has_newlines_only_between_rows():
    plan = plan_slices(1080, 1920, SliceOptions(max_slice_nums=4))
    assert plan.grid == (1, 3)
    unit = "<image><unk><unk></image>"
    assert "".join(placeholder(plan, 2, NAMES)) == f"{unit}<slice>{unit}\n{unit}\n{unit}</slice>"
    assert "".join(placeholder(plan_slices(640, 480, OPTIONS), 2, NAMES)) == f"{unit}<slice>{unit}{unit}</slice>"
    assert "".join(placeholder(plan_slices(9, 9, OPTIONS), 2, NAMES)) == unit


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(picture, mean=HALF, std=HALF):
    """What a slice must hold, channel by channel: float32 [3, H, W]."""
    bands = [np.asarray(band).astype(np.float32) for band in picture.split()]
    scaled = [
        (band / np.float32(255) - np.float32(m)) / np.float32(s) for band, m, s in zip(bands, mean, std, strict=True)
    ]
    return np.stack(scaled)


ODD = [
    (1, 1),
    (1, 50),
    (50, 1),
    (1, 8000),
    (8000, 1),
    (3, 600),
    (7, 7),
    (40, 8000),
    (448, 4032),
    (1084, 820),
    (450, 450),
]


#: (size, new size) -> the first digits of the SHA-256 of what Pillow 10.1 makes of `gradients(size)`.
PILLOW_10_1 = {
    ((640, 480), (518, 392)): "cce412a33a9b7b55",
    ((800, 4000), (196, 1008)): "8d08122c87f64c26",
    ((800, 4000), (560, 2800)): "ecb8881a71c2e006",
    ((1170, 2532), (308, 658)): "7c7e605c03e5b7f8",
    ((1170, 2532), (868, 1848)): "9d60509ab01cf9a0",
    ((50, 50), (448, 448)): "5f60ff7b5459ef8b",
    ((1920, 1080), (602, 336)): "5c59588e2bb63e91",
    ((300, 2000), (168, 1190)): "8912fea23220be2d",
    ((33, 701), (98, 2044)): "25eda50c891e7048",
}


def gradients(size):
    """A picture that every numpy makes alike."""
    y, x = np.mgrid[: size[1], : size[0]]
    return Image.fromarray(np.stack([x * 7 + y * 3, x * y, (x // 3) ^ (y // 5)], -1).astype(np.uint32).astype(np.uint8))


@pytest.mark.parametrize("size, new_size", PILLOW_10_1)
def test_pixels_equal_those_of_the_pillow_that_fed_the_original(size, new_size):
    """Newer versions of Pillow resize in another order; `Image.resize` of version 13 alone fails five of these."""
    made = resize(gradients(size), new_size)
    assert hashlib.sha256(made.tobytes()).hexdigest()[:16] == PILLOW_10_1[size, new_size]


@pytest.mark.parametrize("size", ODD + [(random.Random(n).randint(1, 900), 900 - 17 * n) for n in range(25)])
def test_slices_glued_equal_the_resized_image(size):
    image = noise(*size)
    sliced = cut(image, OPTIONS, HALF, HALF)
    plan = sliced.plan
    assert sliced.size == size and plan == plan_slices(*size, OPTIONS)
    assert [(pixels.shape[2], pixels.shape[1]) for pixels in sliced.slices] == plan.sizes
    assert all(part.dtype == np.float32 and part.flags.c_contiguous for part in sliced.slices)
    overview, *cells = sliced.slices
    assert np.array_equal(overview, pixels(resize(image, plan.overview)))
    if plan.grid:
        cols, rows = plan.grid
        glued = np.block([[cells[row * cols + col] for col in range(cols)] for row in range(rows)])
        assert np.array_equal(glued, pixels(resize(image, plan.refined)))


def test_slices_are_normalised_with_the_given_mean_and_std():
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    image = noise(448, 448)
    assert np.array_equal(cut(image, OPTIONS, mean, std).slices[0], pixels(image, mean, std))
    black_and_white = [
        cut(Image.new("RGB", (9, 9), colour), SMALL, HALF, HALF).slices[0] for colour in ("black", "white")
    ]
    assert [set(np.unique(part)) for part in black_and_white] == [{-1.0}, {1.0}]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_a_pil_image_of_any_mode_is_converted_as_pillow_does(mode):
    image = noise(60, 40).convert(mode)
    ours = cut(image, SMALL, HALF, HALF).slices[0]
    assert np.array_equal(ours, cut(image.convert("RGB"), SMALL, HALF, HALF).slices[0])


def test_patches_times_a_flattened_kernel_equal_the_convolution():
    rng = np.random.default_rng(1)
    image = rng.standard_normal((3, 6, 8)).astype(np.float32)
    kernel = rng.standard_normal((5, 3, 2, 2)).astype(np.float32)
    cells = patches(image, 2)
    assert cells.shape == (12, 12) and cells.dtype == np.float32
    for row in range(3):
        for col in range(4):
            window = image[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
            expected = (kernel * window).sum(axis=(1, 2, 3))
            assert np.allclose(cells[row * 4 + col] @ kernel.reshape(5, -1).T, expected, atol=1e-5)


def test_i05_different_pictures_have_different_digests():
    indices = bytes(range(16))
    images = []
    for palette in ([10, 20, 30], [30, 20, 10]):  # twins: equal bytes, other colours
        twin = Image.frombytes("P", (4, 4), indices)
        twin.putpalette(palette * 16)
        images.append(twin)
    images += [Image.frombytes("L", size, indices) for size in ((4, 4), (2, 8), (8, 2), (16, 1))]  # equal bytes
    images.append(Image.frombytes("L", (4, 4), indices[::-1]))
    digests = [digest(image) for image in images]
    assert len(set(digests)) == len(images)
    assert all(len(text) == 64 and int(text, 16) >= 0 for text in digests)


def test_i05_equal_pictures_have_equal_digests():
    grey = Image.frombytes("L", (4, 4), bytes(range(16)))
    palette = Image.frombytes("P", (4, 4), bytes(range(16)))
    palette.putpalette([level for level in range(256) for _ in range(3)])
    assert digest(grey) == digest(grey.copy()) == digest(grey.convert("RGB")) == digest(palette)


def test_i05_a_sliced_image_is_named_by_its_pixels_and_by_how_it_was_cut():
    image = noise(600, 500)
    names = [cut(image, options, HALF, HALF).digest for options in (OPTIONS, SMALL, SliceOptions(max_slice_nums=1))]
    names.append(cut(noise(600, 500, seed=1), OPTIONS, HALF, HALF).digest)
    assert len(set(names)) == 4
    assert cut(image.copy(), OPTIONS, HALF, HALF).digest == names[0]


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-3, 5), (0, 0)])
def test_sizes_without_pixels_are_refused(size):
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]}"):
        plan_slices(*size, OPTIONS)


@pytest.mark.parametrize(
    "size, shape",
    [((1, 20000), "1:2e"), ((20000, 1), "2e"), ((300_000, 1), "3e"), ((1, 10**7), "1:1e"), ((10**7, 1), "1e")],
)
def test_m11_an_extreme_shape_is_refused_with_its_size_and_ratio(size, shape):
    with pytest.raises(ImageError) as caught:
        plan_slices(*size, OPTIONS)
    assert f"{size[0]}x{size[1]}" in str(caught.value) and f"shape {shape}" in str(caught.value)


@pytest.mark.parametrize("patch_size, scale_resolution", [(4, 448), (4, 4096), (14, 4096), (63, 4096)])
def test_m11_tiny_patches_and_huge_slices_are_bounded(patch_size, scale_resolution):
    options = SliceOptions(patch_size=patch_size, scale_resolution=scale_resolution)
    for size in [(1, 1), (2, 2), (448, 448), (3000, 4000), (8000, 8000)]:
        with pytest.raises(ImageError, match=f"at most {MAX_SLICE_PATCHES}"):
            plan_slices(*size, options)


def test_m11_large_slices_are_bounded_together():
    options = SliceOptions(patch_size=64, scale_resolution=2048, max_slice_nums=64)
    with pytest.raises(ImageError, match=f"at most {MAX_IMAGE_PIXELS}.*scale_resolution"):
        plan_slices(8000, 8000, options)


@pytest.mark.parametrize("resolution", [46368, 4097, 4096, 1000])
def test_m12_options_that_would_upscale_a_small_image_without_bound_are_refused(resolution):
    with pytest.raises(HandlensError):
        plan_slices(2, 2, SliceOptions(scale_resolution=resolution))


def test_m12_no_options_at_all_lead_to_more_pixels_than_the_budget():
    rng = random.Random(12)
    planned = 0
    for _ in range(3000):
        patch = rng.randint(4, 64)
        options = SliceOptions(
            scale_resolution=rng.randint(patch, 4096), patch_size=patch, max_slice_nums=rng.randint(1, 64)
        )
        try:
            plan = plan_slices(round(8000 ** rng.random()), round(8000 ** rng.random()), options)
        except ImageError:
            continue
        planned += 1
        assert sum(w * h for w, h in plan.sizes) <= MAX_IMAGE_PIXELS
        assert max(rows * cols for rows, cols in plan.tgt_sizes) <= MAX_SLICE_PATCHES
    assert planned > 300


def test_a_plan_is_a_value():
    plan = plan_slices(640, 480, OPTIONS)
    assert plan == plan_slices(640, 480, OPTIONS) != plan_slices(641, 400, OPTIONS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.grid = None
