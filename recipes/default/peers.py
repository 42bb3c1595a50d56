"""Several processes that train one model: `torchrun --standalone --nproc-per-node N -m recipes.default.train ...`.

Each draws its own batches and computes their gradients; all take the mean of them, and so the same step. On a CPU that
is faster than as many threads of one process, which wait for each other in every layer.
"""

import os
from collections.abc import Sequence

import torch
from torch import distributed, nn


class Peers:
    """The processes of a run, under the variables that torchrun sets; without them there is one."""

    def __init__(self):
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if self.count > 1:
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes the log and the weights."""
        return self.rank == 0

    def highest(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The highest of each value over all processes."""
        if self.count == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
        return numbers.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gives the parameters, the same ones in every process, the mean of all processes' gradients."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # In one piece, for each exchange costs about as much as a megabyte.
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for parameter, part in zip(
            parameters, flat.div_(self.count).split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = part.view_as(parameter)

    def close(self) -> None:
        if self.count > 1:
            distributed.destroy_process_group()
