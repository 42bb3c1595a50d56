"""The tower's first layers, where they stay as they are: computed as in use, by the engine of handlens.

On a CPU that takes less time than torch's layers do, and no gradient has to come back through them.
"""

from pathlib import Path

import numpy as np
import torch

from handlens.checkpoint import open_checkpoint
from handlens.cpu.backend import CpuBackend, use_threads
from recipes.default.precision import has_matrix_units


class FrozenLayers:
    """The first `count` layers of the tower of a checkpoint, on one thread."""

    def __init__(self, checkpoint: Path, count: int, threads: int = 1):
        opened = open_checkpoint(checkpoint)
        precision = "bf16" if has_matrix_units() else "f32"
        use_threads(threads)
        self.tower = CpuBackend(opened.config, opened.language, opened.vision, precision).tower
        self.count = count
        config = opened.config.vision
        self.mean, self.std = (np.float32(values)[:, None] for values in (config.image_mean, config.image_std))

    def __call__(self, pixels: np.ndarray, position_ids: np.ndarray, patch_mask: np.ndarray) -> torch.Tensor:
        """What stands behind the layers, bfloat16 [S, L, D], of the arrays of `batch.collate`; 0 at padding."""
        hidden = torch.zeros(*position_ids.shape, self.tower.config.hidden_size, dtype=torch.bfloat16)
        for slice_pixels, ids, known, out in zip(pixels, position_ids, patch_mask, hidden, strict=True):
            count = int(known.sum())
            colours = slice_pixels[:count].reshape(count, 3, -1) / np.float32(255)
            x = self.tower.embed(((colours - self.mean) / self.std).reshape(count, -1), ids[:count])
            for index in range(self.count):
                x = self.tower.layer(x, index)
            out[:count] = torch.from_numpy(x)
        return hidden
