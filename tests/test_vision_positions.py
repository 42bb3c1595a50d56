"""Which learned position each patch gets, in the three position modes, and the sin-cos positions of the resampler."""

import platform
from dataclasses import replace

import numpy as np
import pytest
import torch

from handlens.cpu.vision import VisionTower
from handlens.errors import InputError
from handlens.gguf.names import fix_ffn_names, to_gguf_vision
from handlens.positions import grid_positions, patch_position_ids
from tests import tiny


def original_ids(count, side):
    """The published expressions; the count of patches is a tensor there, so its reciprocal is a float32."""
    fractions = torch.arange(0, 1 - 1e-6, 1 / torch.tensor(count))
    return torch.bucketize(fractions, torch.arange(1 / side, 1.0, 1 / side), right=True).numpy()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="torch.arange rounds by the vector width")
@pytest.mark.parametrize("side", [70, 27])
def test_ids_equal_the_original_for_every_count(side):
    for count in range(1, 2049):
        np.testing.assert_array_equal(patch_position_ids("masked_1d", 1, count, 0, side), original_ids(count, side))


def test_ids_are_exact_fractions_but_for_known_counts():
    """floor(70 i / n), which llama.cpp computes, is the same for most counts; `grid_2d` follows that one."""
    different = {}
    for count in range(1, 101):
        moved = np.flatnonzero(patch_position_ids("masked_1d", 1, count, 0, 70) != 70 * np.arange(count) // count)
        assert np.all(70 * moved % count == 0)  # only where a patch lies on an edge
        if moved.size:
            different[count] = moved.size
    assert different == {25: 4, 49: 4, 50: 6, 55: 4, 58: 1, 77: 1, 82: 1, 86: 1, 94: 1, 98: 7, 100: 5}


def test_true_grid_ids_are_exact_fractions_of_both_axes():
    """As llama.cpp has them, also where the published rounding differs (25) and past the table (100)."""
    for rows, cols in [(25, 37), (32, 32), (1, 1), (100, 10), (1, 1000)]:
        ids = patch_position_ids("grid_2d", rows, cols, 2000, 70)
        wanted = [70 * (70 * y // rows) + 70 * x // cols for y in range(rows) for x in range(cols)]
        assert ids.tolist() == wanted


def test_reference_mode_spreads_one_row_over_the_longest_slice():
    ids = patch_position_ids("reference", 20, 30, 1036, 70)
    assert len(ids) == 1036 and ids[0] == 0 and ids[-1] == 69
    np.testing.assert_array_equal(ids, patch_position_ids("masked_1d", 28, 37, 5000, 70))


@pytest.fixture(scope="module")
def tower():
    config = tiny.config()
    tensors = to_gguf_vision(tiny.official_tensors(config))
    weights = fix_ffn_names(tensors, config.vision.hidden_size, config.vision.intermediate_size)
    return lambda mode: VisionTower(replace(config.vision, position_mode=mode), weights)


@pytest.fixture(scope="module")
def slices():
    rng = np.random.default_rng(3)
    tgt_sizes = [(3, 5), (6, 4), (2, 9)]
    return [rng.uniform(-1, 1, (rows * cols, 588)).astype(np.float32) for rows, cols in tgt_sizes], tgt_sizes


def test_reference_features_depend_on_the_longest_slice_only(tower, slices):
    patches, tgt_sizes = slices
    together = tower("reference").forward(patches, tgt_sizes)
    assert [features.shape for features in together] == [(15, 64), (24, 64), (18, 64)]
    alone = tower("reference").encode(patches[0], tgt_sizes[0], 15)
    assert np.abs(together[0] - alone).max() > 0.1
    np.testing.assert_array_equal(tower("reference").encode(patches[0], tgt_sizes[0], 24), together[0])


def test_masked_features_are_those_of_a_slice_alone(tower, slices):
    patches, tgt_sizes = slices
    together = tower("masked_1d").forward(patches, tgt_sizes)
    for features, cells, tgt_size in zip(together, patches, tgt_sizes, strict=True):
        np.testing.assert_array_equal(features, tower("reference").encode(cells, tgt_size, len(cells)))


def test_true_grid_tells_a_slice_from_its_transposed_layout(tower, slices):
    patches, _ = slices
    wide, high = (tower("grid_2d").encode(patches[0], tgt_size, 15) for tgt_size in ((3, 5), (5, 3)))
    assert np.abs(wide - high).max() > 0.1


def test_progress_is_told_after_each_slice(tower, slices):
    told = []
    tower("grid_2d").forward(*slices, on_slice=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert tower("grid_2d").forward([], []) == []


@pytest.mark.parametrize("tgt_size, longest", [((3, 4), 24), ((5, 3), 14), ((0, 15), 24)])
def test_patches_that_do_not_fit_their_grid_are_refused(tower, slices, tgt_size, longest):
    with pytest.raises(InputError, match=f"{tgt_size[0]} x {tgt_size[1]} patches"):
        tower("reference").encode(slices[0][0], tgt_size, longest)


def test_grid_positions_tell_the_column_first():
    rows, cols, width = 3, 80, 32
    table = grid_positions(rows, cols, width).reshape(rows, cols, width)
    omega = 10000.0 ** (-np.arange(8) / 8)
    for y, x in [(0, 0), (2, 0), (0, 79), (1, 33)]:
        wanted = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)])
        np.testing.assert_allclose(table[y, x], wanted, atol=1e-5)


def test_grid_positions_of_a_part_are_part_of_the_whole():
    whole = grid_positions(70, 70, 64).reshape(70, 70, 64)
    np.testing.assert_array_equal(grid_positions(5, 44, 64).reshape(5, 44, 64), whole[:5, :44])
