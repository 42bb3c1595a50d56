"""Where a patch is: its row in the vision tower's learned table, and its sin-cos position in the resampler.

Both follow from sizes alone, so the device side, the PyTorch side and the writer of projector files share them.
Upstream: transformers' Idefics2 vision embeddings and resampler.py of the MiniCPM-Llama3-V 2.5 model repository.
"""

import math
from functools import lru_cache

import numpy as np


def patch_position_ids(mode: str, rows: int, cols: int, longest: int, side: int) -> np.ndarray:
    """The row of the position table, which is side x side, for each patch of a slice of rows x cols patches.

    Mode `reference` numbers `longest` patches, the padding that follows a slice's own patches among them: there are as
    many as in the longest slice of the request. Mode `interpolated` numbers the rows of `resampled_table`. The modes
    are explained at `config.POSITION_MODES`.
    """
    if mode == "interpolated":
        return np.arange(rows * cols)
    if mode == "grid_2d":
        # In whole numbers, as llama.cpp does it. Python code of 2.6 has the roundings of `_buckets` here too.
        return (np.arange(rows)[:, None] * side // rows * side + np.arange(cols) * side // cols).ravel()
    return _buckets(longest if mode == "reference" else rows * cols, side)


def _buckets(count: int, side: int) -> np.ndarray:
    """For each i < count, which of `side` equal parts of [0, 1) holds i / count, as Idefics2 computes it.

    That is floor(side * i / count) but for roundings, which move some i that lie on an edge (count 1036, a common one)
    to the part below. The step is a float32 there because the count is a tensor.
    """
    step = float(np.float32(1) / np.float32(count))
    fractions = _torch_arange(0.0, 1 - 1e-6, step)
    return np.searchsorted(_torch_arange(1 / side, 1.0, 1 / side), fractions, side="right")


def _torch_arange(start: float, end: float, step: float) -> np.ndarray:
    """torch.arange(start, end, step) as float32, bit for bit as on x86.

    There eight numbers are made at a time: the first is rounded to float32, the others are added to it in double and
    rounded again. That holds for whole pairs of eights; the rest is computed one by one and rounded once.
    """
    count = math.ceil((end - start) / step)
    i = np.arange(count)
    first = (start + step * (i // 8 * 8)).astype(np.float32).astype(np.float64)
    return np.where(i < count // 16 * 16, first + step * (i % 8), start + step * i).astype(np.float32)


def resampled_table(table: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """The position table [side * side, D] of a square grid, resampled to a row for each patch of a slice
    [rows * cols, D], as timm's `resample_abs_pos_embed` does it: bicubic, smoothed where the grid gets coarser."""
    side = math.isqrt(len(table))
    by_row = _resampling(side, rows) @ table.reshape(side, -1)  # [rows, side * D]
    return (_resampling(side, cols) @ by_row.reshape(rows, side, -1)).reshape(rows * cols, -1)


@lru_cache(maxsize=64)
def _resampling(old: int, new: int) -> np.ndarray:
    """How much of each of `old` points is in each of `new` ones [new, old]: Keys' cubic with a = -0.5, which is that of
    torch's `interpolate(mode="bicubic", antialias=True)` and of Pillow."""
    scale = old / new
    width = max(scale, 1.0)  # the kernel is stretched where there are fewer points than before
    centres = scale * (np.arange(new) + 0.5)[:, None]
    x = np.abs((np.arange(old) + 0.5 - centres) / width)  # [new, old]
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.flags.writeable = False
    return weights


def grid_positions(rows: int, cols: int, width: int) -> np.ndarray:
    """The sin-cos positions [rows * cols, width] of a grid, row by row.

    The first half of a vector tells the column and the second half the row; either is its sines, then its cosines.
    """
    positions = np.empty((rows, cols, 2, width // 2), np.float32)
    positions[:, :, 0] = _axis_positions(cols, width // 4)
    positions[:, :, 1] = _axis_positions(rows, width // 4)[:, None]
    return positions.reshape(rows * cols, width)


@lru_cache(maxsize=8)  # two grids an image, and an axis of the longest slice takes 8 MB
def _axis_positions(count: int, quarter: int) -> np.ndarray:
    """The sines and cosines [count, 2 * quarter] of 0 .. count - 1 under falling frequencies, in float32."""
    frequencies = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter))
    angles = np.outer(np.arange(count, dtype=np.float32), frequencies)
    positions = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    positions.flags.writeable = False
    return positions
