"""The resampler: learned queries read the patches of a slice through one layer of cross-attention.

Reference: resampler.py of the MiniCPM-Llama3-V 2.5 model repository; its parameter names.
"""

import torch
import torch.nn.functional as F
from torch import nn

from handlens.config import ResamplerConfig
from handlens.positions import grid_positions

# B slices, L patches of the longest, Q queries, H heads, d width of a head, D width


class Resampler(nn.Module):
    """Turns the features of a slice, however many patches it has, into a fixed number of vectors."""

    def __init__(self, config: ResamplerConfig):
        super().__init__()
        width, eps = config.embed_dim, config.layer_norm_eps
        self.query = nn.Parameter(torch.empty(config.query_num, width))
        self.pos_embed = nn.Parameter(torch.empty(config.query_num, width)) if config.query_position else None
        self.kv_proj = nn.Linear(config.kv_dim, width, bias=False)
        self.attn = CrossAttention(width, config.num_heads)
        self.ln_q = nn.LayerNorm(width, eps=eps)
        self.ln_kv = nn.LayerNorm(width, eps=eps)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(torch.empty(width, width))

    def forward(self, features: torch.Tensor, tgt_sizes: torch.Tensor) -> torch.Tensor:
        """The query vectors [B, Q, D] of slices with features [B, L, kv_dim] and sizes [B, 2] of (rows, columns).

        Features behind the first rows * columns of a slice belong to padding and are not read.
        """
        tgt_sizes = tgt_sizes.to(features.device)
        kv = self.ln_kv(self.kv_proj(features))  # [B, L, D]
        positions, real = patch_positions(tgt_sizes, kv)
        q = self.ln_q(self.query)  # [Q, D]
        if self.pos_embed is not None:
            q = q + self.pos_embed
        mask = None if bool(real.all()) else real[:, None, None]  # [B, 1, 1, L]
        out = self.attn(q, kv + positions, kv, mask)  # [B, Q, D]
        return self.ln_post(out) @ self.proj


class CrossAttention(nn.Module):
    """Multi-head attention under the names of `nn.MultiheadAttention`, which would bypass the module of its output
    projection: quantisers and sharded training need that module to be called."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # q, k, v one above the other
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What the queries [Q, D], the same for every slice, read of keys and values [B, L, D]: [B, Q, D].

        `mask` [B, 1, 1, L] is true for the keys that count.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for x, weight, bias in zip((q, k, v), weights, biases, strict=True)
        )  # [H, Q, d], [B, H, L, d], [B, H, L, d]
        out = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=mask)  # [B, H, Q, d]
        return self.out_proj(out.transpose(1, 2).flatten(2))


def patch_positions(tgt_sizes: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sin-cos positions [B, L, D] of the patches of slices of these sizes [B, 2], in the type of `like` [B, L, D],
    and which of the L patches are real [B, L]."""
    _, length, width = like.shape
    rows, cols = tgt_sizes[:, :1], tgt_sizes[:, 1:]  # [B, 1]
    index = torch.arange(length, device=like.device)
    real = index < rows * cols  # [B, L]
    y = torch.where(real, index // cols, 0)
    x = torch.where(real, index % cols, 0)
    # A row of the grid has the positions of its columns in the first half of each vector; rows are encoded alike.
    longest_side = int(tgt_sizes.max())
    axis = torch.from_numpy(grid_positions(1, longest_side, width)[:, : width // 2]).to(like.device, like.dtype)
    return torch.cat([axis[x], axis[y]], dim=-1), real
