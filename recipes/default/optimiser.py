"""How weights change: Muon for the matrices of layers, AdamW for everything else.

Muon (K. Jordan and others, 2024) makes every update of a matrix orthogonal, so that no direction is left behind; here
it needs a quarter of AdamW's steps to begin to read (LOG.md). The iteration runs in bfloat16 where that is fast.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from recipes.default.precision import has_matrix_units

WEIGHT_DECAY = 0.05
MOMENTUM = 0.95
BETAS = (0.9, 0.98)
#: AdamW's learning rate as a share of Muon's.
SHARE = 1 / 3
#: An orthogonal update has this root mean square, times the learning rate: about that of AdamW's updates.
UPDATE_RMS = 0.2
#: The quintic iteration that moves all singular values to about 1, and how often it is done.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
#: Layers whose matrices Muon changes: parts of names. The projections of the resampler's attention begin with a
#: structure (start.py) that orthogonal updates would wash away.
MATRICES = ("encoder.layers.", "llm.model.layers.", "resampler.kv_proj", "resampler.attn.out_proj", "resampler.proj")


class Optimiser:
    """Changes the parameters that have gradients; those of frozen parts have none."""

    def __init__(self, *modules: nn.Module):
        matrices, others = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                muon = parameter.ndim == 2 and any(part in name for part in MATRICES)
                (matrices if muon else others).append(parameter)
        self.parameters = [*matrices, *others]
        self.muon = Muon(matrices)
        self.adamw = torch.optim.AdamW(others, lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)

    def step(self, rate: float, clip: float) -> Tensor:
        """One step at this learning rate; returns the norm of the gradient, which is cut to `clip` before."""
        norm = nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], clip)
        self.muon.step(rate)
        for group in self.adamw.param_groups:
            group["lr"] = SHARE * rate
        self.adamw.step()
        for parameter in self.parameters:
            parameter.grad = None
        return norm


class Muon:
    """Momentum whose updates are orthogonal matrices. Matrices of one shape are computed together."""

    def __init__(self, matrices: list[nn.Parameter]):
        self.matrices = matrices
        self.momenta = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        groups = defaultdict(list)
        for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
            if matrix.grad is not None:
                groups[matrix.shape].append((matrix, matrix.grad, momentum))
        # Lists are handed over whole: on a GPU a call for each matrix would take longer than the work.
        for (rows, columns), group in groups.items():
            matrices, gradients, momenta = (list(part) for part in zip(*group, strict=True))
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            updates = orthogonal(torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM)))
            torch._foreach_mul_(matrices, 1 - rate * WEIGHT_DECAY)
            torch._foreach_add_(matrices, list(updates), alpha=-rate * UPDATE_RMS * max(rows, columns) ** 0.5)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrix to each of [k, rows, columns], by Newton and Schulz' iteration."""
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16) if matrices.is_cuda or has_matrix_units() else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
