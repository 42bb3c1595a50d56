"""The vision tower of MiniCPM-V 2.0: timm's SigLIP without its pooling head, positions resampled to each slice's grid.

Reference: `vit_so400m_patch14_siglip_384` of timm 0.9.10 (vision_transformer.py, layers/pos_embed.py), its parameter
names, and `get_vision_embedding` in modeling_minicpmv.py of the model repository, which encodes one slice at a time.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from handlens.config import VisionConfig
from handlens.errors import InputError
from handlens.model.configuration import MiniCPMVConfig

# N slices, L patches of the longest, p side of a patch, H heads, d width of a head, D width


class TimmVisionTower(nn.Module):
    """Turns the patches of slices into features. A slice has the features that it has alone."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__()
        sizes = config.model_config().vision
        width, patch = sizes.hidden_size, sizes.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, kernel_size=patch, stride=patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.position_side**2, width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=sizes.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor, tgt_sizes: torch.Tensor, slice_request: torch.Tensor) -> torch.Tensor:
        """The features [N, L, D] of slices [N, 3, p, p * L] of sizes [N, 2] in (rows, columns).

        Features of padding mean nothing. Which requests the slices are of makes no difference.
        """
        proj = self.patch_embed["proj"]
        x = proj(pixel_values.to(proj.weight.dtype)).flatten(2).transpose(1, 2)  # [N, L, D]
        sizes, longest = tgt_sizes.tolist(), x.shape[1]
        lengths = [rows * cols for rows, cols in sizes]
        if min(map(min, sizes)) < 1 or max(lengths) > longest:
            raise InputError(f"slices of {sizes} patches (rows, columns) do not fit into pixel values for {longest}")
        positions = {size: self.positions(*size) for size in set(map(tuple, sizes))}
        x = x + torch.stack([F.pad(positions[tuple(size)], (0, 0, 0, longest - n)) for size, n in zip(sizes, lengths)])
        mask = None
        if min(lengths) < longest:
            real = torch.arange(longest) < torch.tensor(lengths)[:, None]  # [N, L]
            mask = real[:, None, None].to(x.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def positions(self, rows: int, cols: int) -> torch.Tensor:
        """The position table [rows * cols, D] resampled from the square one."""
        side = math.isqrt(self.pos_embed.shape[1])
        table = self.pos_embed.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # [1, D, side, side]
        table = F.interpolate(table, size=(rows, cols), mode="bicubic", antialias=True)
        return table.flatten(2)[0].T.to(self.pos_embed.dtype)


class Block(nn.Module):
    """A layer: attention and a feed-forward part, each behind a norm and added."""

    def __init__(self, sizes: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)
        self.attn = Attention(sizes.hidden_size, sizes.num_attention_heads)
        self.norm2 = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "fc1": nn.Linear(sizes.hidden_size, sizes.intermediate_size),
                "fc2": nn.Linear(sizes.intermediate_size, sizes.hidden_size),
            }
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x [N, L, D] after the layer; `mask` [N, 1, 1, L] is true for patches that are no padding."""
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Attention(nn.Module):
    """Attention with q, k and v in one matrix."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What each patch of x [N, L, D] reads from all."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [N, H, L, d] each
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
