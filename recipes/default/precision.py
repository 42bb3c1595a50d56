"""Which numbers a step computes with: bfloat16 where the machine has matrix units for it, float32 elsewhere.

On a GPU torch.autocast does it. On a CPU its casts cost more than they save, so there the whole model has a copy in
bfloat16, and the weights that are learned stay in float32.
"""

import copy

import torch
from torch import nn

PRECISIONS = ("auto", "bfloat16", "float32")


def has_matrix_units() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 several times as fast as in float32 (AMX)."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and supported()


class Twins:
    """Copies of modules in bfloat16: they compute, and the originals learn."""

    def __init__(self, *modules: nn.Module):
        self.copies = tuple(copy.deepcopy(module).bfloat16() for module in modules)
        for module, twin in zip(modules, self.copies, strict=True):
            for name, buffer in module.named_buffers():  # positions and frequencies keep their digits
                owner, _, last = name.rpartition(".")
                twin.get_submodule(owner).register_buffer(last, buffer, persistent=False)
        self.pairs = [
            (original, twin)
            for module, other in zip(modules, self.copies, strict=True)
            for original, twin in zip(module.parameters(), other.parameters(), strict=True)
        ]

    def hand_over_gradients(self) -> None:
        """Moves the gradients of the copies to the originals."""
        for original, twin in self.pairs:
            original.grad = None if twin.grad is None else twin.grad.float()
            twin.grad = None

    @torch.no_grad()
    def take_weights(self) -> None:
        """Gives the copies the weights of the originals, rounded."""
        for original, twin in self.pairs:
            twin.copy_(original)
