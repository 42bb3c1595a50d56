"""The weights that training begins with.

Most are drawn at random. The resampler begins with what it would take long to find out by itself: each query looks at
a place. In every other head query i looks at field i of an 8 x 8 grid over a slice of 16 x 16 patches, in the heads
between at column i of whatever slice. So the decoder finds the features of a page, and of a single line, in reading
order from the first step on. Nothing of it is fixed: it is all learned further.
"""

import math

import torch
from torch import nn

from handlens.positions import grid_positions
from recipes.default.model import DenseHead, Mini, Resampler, VisionTower

#: Patches along a side of the slices that the grid of queries is spread over.
GRID_SIDE = 16


@torch.no_grad()
def initialise(model: Mini, head: DenseHead, seed: int = 0) -> None:
    """Gives a new model and its dense head their first weights, the same for the same seed."""
    torch.manual_seed(seed)
    for part in (model, head):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for layers, outputs in (
        (model.vpm.encoder["layers"], ("self_attn.out_proj", "mlp.fc2")),
        (model.language.layers, ("self_attn.o_proj", "mlp.down_proj")),
    ):
        for layer in layers:
            for name in outputs:  # the more layers add to the stream, the less each does
                layer.get_submodule(name).weight.mul_(1 / math.sqrt(2 * len(layers)))
    _begin_tower(model.vpm)
    _begin_resampler(model.resampler)


def _begin_tower(tower: VisionTower) -> None:
    kernel, table = tower.embeddings["patch_embedding"], tower.embeddings["position_embedding"]
    nn.init.normal_(kernel.weight, std=1 / math.sqrt(kernel.weight[0].numel()))
    nn.init.zeros_(kernel.bias)
    # A row of this table is rarely used, so what is near to what is told from the start.
    side = math.isqrt(len(table.weight))
    table.weight.copy_(0.3 * torch.from_numpy(grid_positions(side, side, table.embedding_dim)))


def _begin_resampler(resampler: Resampler) -> None:
    """See the head of this file. A query compares places as `cos(w * (x - x'))`, summed over frequencies w."""
    width, heads = resampler.query.shape[1], resampler.heads
    quarter, head = width // 4, width // heads
    # Frequencies that turn noticeably along a slice, as many as a head has room for in two directions.
    useful = sum(GRID_SIDE / 10000 ** (k / quarter) > 0.25 for k in range(quarter))
    chosen = torch.arange(0, useful, math.ceil(useful / (head // 4)))
    columns = torch.cat([chosen, quarter + chosen])  # sines and cosines of the column, then those of the row
    rows = columns + 2 * quarter
    others = torch.ones(width, dtype=torch.bool)
    others[torch.cat([columns, rows])] = False
    free = others.nonzero()[:, 0]
    line = free[: len(columns)]  # where queries keep the column that they look at in a line

    q, k, v = resampler.attn.in_proj_weight.view(3, heads, head, width)
    q.zero_()
    nn.init.normal_(k, std=0.02)
    nn.init.orthogonal_(v.view(width, width))
    nn.init.zeros_(resampler.attn.in_proj_bias)
    nn.init.orthogonal_(resampler.attn.out_proj.weight)
    nn.init.orthogonal_(resampler.proj).mul_(0.1)
    # Features stay out of the dimensions that places are compared in.
    resampler.kv_proj.weight.zero_()
    features = torch.empty(len(free), resampler.kv_proj.in_features)
    resampler.kv_proj.weight[free] = nn.init.orthogonal_(features)

    gain = head**0.25  # of both sides: the scale of attention takes it away again
    for number in range(heads):
        compared, kept = (torch.cat([columns, rows]),) * 2 if number % 2 == 0 else (columns, line)
        places = torch.arange(len(compared))
        q[number, places, kept] = gain
        k[number, places, compared] += gain
    _place_queries(resampler, columns, rows, line)
    # The norm of the queries would divide by their deviation.
    q.mul_(resampler.query.std(dim=1, correction=0).mean())


def _place_queries(resampler: Resampler, columns: torch.Tensor, rows: torch.Tensor, line: torch.Tensor) -> None:
    count = len(resampler.query)
    side = math.isqrt(count)
    number = torch.arange(count)
    step = GRID_SIDE / side
    query = torch.zeros_like(resampler.query)
    for places, dimensions, source in (
        (number % side * step + (step - 1) / 2, columns, columns),
        (number // side * step + (step - 1) / 2, rows, columns),
        (number * 1.0, line, columns),
    ):
        query[:, dimensions] = axis(places, resampler.query.shape[1])[:, source]
    spare = (query == 0).all(dim=0)
    query[:, spare] = -query.sum(dim=1, keepdim=True) / spare.sum()  # so that the norm has no mean to take away
    resampler.query.copy_(query)


def axis(places: torch.Tensor, width: int) -> torch.Tensor:
    """The sines and cosines [n, width / 2] of places [n] along an axis, which need not be whole."""
    quarter = width // 4
    angles = places[:, None] * 10000 ** (-torch.arange(quarter) / quarter)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
