"""The model in plain torch, with the parameter names of an official checkpoint, and the head that is thrown away.

It computes what `handlens.cpu` computes (a test compares the logits), so what is trained here is what runs there.
Letters: S slices, L patches, Q queries, B sequences, n tokens, H heads, K key-value heads, d width of a head, D width,
W width of the language model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.config import LlamaConfig, ModelConfig, ResamplerConfig, VisionConfig
from handlens.positions import grid_positions

#: Cells of a patch that the dense head labels, across and down: of 3.5 x 7 pixels each.
CELLS = (4, 2)
#: The most patches a slice may have along one side.
LONGEST_SIDE = 512
#: How many scores of an attention a CPU computes at a time.
CACHED_SCORES = 1 << 21


class Mini(nn.Module):
    """The whole model. The logits' matrix is the embedding's: there is no `llm.lm_head`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.llm = nn.ModuleDict({"model": Llama(config.llm)})
        self.vpm = VisionTower(config.vision)
        self.resampler = Resampler(config.resampler)
        # Buffers, for a tensor that is made in a step has to be copied to a GPU, which waits for all that came before.
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(config.vision, name), dtype=torch.float32)
            self.register_buffer(name, values[:, None], persistent=False)

    def features(self, pixels: Tensor, position_ids: Tensor, patch_mask: Tensor | None) -> Tensor:
        """The tower's features [S, L, D] of patches uint8 [S, L, 3 * p * p]; the mask [S, L] is False at padding."""
        colours = pixels.unflatten(-1, (3, -1)).float() / 255
        patches = ((colours - self.image_mean) / self.image_std).flatten(-2)
        return self.vpm(patches.to(self.vpm.post_layernorm.weight.dtype), position_ids, patch_mask)

    def features_after(self, layers: int, hidden: Tensor, patch_mask: Tensor | None) -> Tensor:
        """The tower's features [S, L, D] from what stands behind so many of its layers [S, L, D] (frozen.py)."""
        return self.vpm.finish(hidden, patch_mask, layers)

    def vectors(self, features: Tensor, places: Tensor, patch_mask: Tensor | None) -> Tensor:
        """The query vectors [S, Q, W] of features [S, L, D] at places [S, L, 2], the (row, column) of each patch."""
        return self.resampler(features, places, patch_mask)

    def embeddings(self, input_ids: Tensor, vectors: Tensor | None, chosen: Tensor, index: Tensor) -> Tensor:
        """The embeddings [B, n, W] of ids [B, n] with vectors [S, Q, W] among them: those `chosen` [v], counted through
        S * Q, at `index` [v], counted through B * n. None are the vectors where there are no slices."""
        embedded = self.language.embed_tokens(input_ids)
        if vectors is None:
            return embedded
        flat = embedded.flatten(0, 1).index_copy(0, index, vectors.flatten(0, 1)[chosen].to(embedded.dtype))
        return flat.view_as(embedded)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.language.embed_tokens.weight)

    @property
    def language(self) -> "Llama":
        return self.llm["model"]


class VisionTower(nn.Module):
    """The SigLIP tower of Idefics2 under its names: `vpm.*`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.embeddings = nn.ModuleDict(
            {
                "patch_embedding": nn.Conv2d(3, width, patch, stride=patch),
                "position_embedding": nn.Embedding(config.position_side**2, width),
            }
        )
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))}
        )
        self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, position_ids: Tensor, patch_mask: Tensor | None) -> Tensor:
        kernel = self.embeddings["patch_embedding"]
        # A patch is a whole stride of the convolution, so that is a matrix product.
        x = F.linear(patches, kernel.weight.flatten(1), kernel.bias)
        return self.finish(x + self.embeddings["position_embedding"](position_ids), patch_mask)

    def finish(self, x: Tensor, patch_mask: Tensor | None, first: int = 0) -> Tensor:
        """The features from the input of layer `first` on, both [S, L, D]."""
        mask = None if patch_mask is None else patch_mask[:, None, None]  # [S, 1, 1, L]
        for layer in self.encoder["layers"][first:]:
            x = layer(x, mask)
        return self.post_layernorm(x)


class VisionLayer(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attn, normed = self.self_attn, self.layer_norm1(x)
        q, k, v = (_split(attn[name](normed), self.heads) for name in ("q_proj", "k_proj", "v_proj"))  # [S, H, L, d]
        x = x + attn["out_proj"](_join(_attend(q, k, v, mask)))
        return x + self.mlp["fc2"](_gelu(self.mlp["fc1"](self.layer_norm2(x))))


class Resampler(nn.Module):
    """The cross-attention of MiniCPM-V 2.5 under its names: `resampler.*`."""

    def __init__(self, config: ResamplerConfig):
        super().__init__()
        width, eps = config.embed_dim, config.layer_norm_eps
        self.heads = config.num_heads
        self.query = nn.Parameter(torch.zeros(config.query_num, width))
        self.kv_proj = nn.Linear(config.kv_dim, width, bias=False)
        self.attn = nn.MultiheadAttention(width, config.num_heads, batch_first=True)  # for its parameters
        self.ln_q = nn.LayerNorm(width, eps=eps)
        self.ln_kv = nn.LayerNorm(width, eps=eps)
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(torch.zeros(width, width))
        # The two halves of a position tell the column and the row, each as the first half of a one-row grid does.
        axis = torch.from_numpy(grid_positions(1, LONGEST_SIDE, width)[:, : width // 2].copy())
        self.register_buffer("axis", axis, persistent=False)

    def forward(self, features: Tensor, places: Tensor, patch_mask: Tensor | None) -> Tensor:
        kv = self.ln_kv(self.kv_proj(features))  # [S, L, W]
        positions = torch.cat([self.axis[places[..., 1]], self.axis[places[..., 0]]], dim=-1)
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        read = (self.ln_q(self.query)[None], kv + positions.to(kv.dtype), kv)  # positions are in the keys only
        q, k, v = (_split(F.linear(x, *layer), self.heads) for x, *layer in zip(read, weights, biases, strict=True))
        mask = None if patch_mask is None else patch_mask[:, None, None]
        q = q.expand(len(features), -1, -1, -1)  # [S, H, Q, d]
        out = self.attn.out_proj(_join(_attend(q, k, v, mask)))
        return self.ln_post(out) @ self.proj


class Llama(nn.Module):
    """The decoder under transformers' names: `llm.model.*`. Padding stands on the right, so it needs no mask."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
        self.register_buffer("frequencies", config.rope_theta**-exponents, persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None, caches=None, mask: Tensor | None = None) -> Tensor:
        """The hidden states [B, n, W] of embeddings [B, n, W], causal from position 0 on. With `caches`, one a layer,
        `positions` [B, n] say where the rows stand and `mask` [B, 1, n, m] what they see."""
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
        angles = positions[..., None] * self.frequencies  # [B or 1, n, d / 2]
        rotation = angles.cos()[:, None], angles.sin()[:, None]  # [., 1, n, d / 2]
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, None if caches is None else caches[index], mask)
        return self.norm(x)


class LlamaLayer(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        width, inner, eps = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        kv_width = self.kv_heads * config.head_dim
        sizes = {
            "q_proj": (width, width),
            "k_proj": (width, kv_width),
            "v_proj": (width, kv_width),
            "o_proj": (width, width),
        }
        self.input_layernorm = nn.RMSNorm(width, eps=eps)
        self.self_attn = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})
        self.post_attention_layernorm = nn.RMSNorm(width, eps=eps)
        sizes = {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cache, mask: Tensor | None) -> Tensor:
        attn, normed = self.self_attn, self.input_layernorm(x)
        q = _turn(_split(attn["q_proj"](normed), self.heads), *rotation)  # [B, H, n, d]
        k = _turn(_split(attn["k_proj"](normed), self.kv_heads), *rotation)  # [B, K, n, d]
        v = _split(attn["v_proj"](normed), self.kv_heads)
        if cache is not None:
            k, v = cache.update(k, v)
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        x = x + attn["o_proj"](_join(_attend(q, k, v, mask, causal=mask is None)))
        normed = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed))


class DenseHead(nn.Module):
    """Which character has its centre in which cell of a patch: for training the tower, not part of the model.

    A cell is projected to a narrow vector before the characters are told apart, so that only the cells that count
    cost much.
    """

    def __init__(self, width: int, characters: int, narrow: int = 96):
        super().__init__()
        self.project = nn.Linear(width, CELLS[0] * CELLS[1] * narrow)
        self.classify = nn.Linear(narrow, characters)

    def forward(self, features: Tensor, cells: Tensor) -> Tensor:
        """The logits [m, characters] of some cells [m], counted through features [S, L, D] with its cells inside."""
        narrow = self.project(features).view(-1, self.classify.in_features)
        return self.classify(narrow[cells])


def _split(x: Tensor, heads: int) -> Tensor:
    """[., n, H * d] -> [., H, n, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    """[., H, n, d] -> [., n, H * d]"""
    return x.transpose(1, 2).flatten(2)


def _gelu(x: Tensor) -> Tensor:
    """The approximation that the tower is defined with. A CPU is much faster with the exact function in bfloat16, which
    cannot tell the two apart: they differ by less than 0.0005."""
    exact = x.dtype == torch.bfloat16 and not x.is_cuda
    return F.gelu(x, approximate="none" if exact else "tanh")


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """What queries [., H, n, d] read from keys and values [., H, m, d] where the mask is True."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return _attend_on_cpu(q, k, v, mask)


@torch.compiler.disable  # how many products there are depends on sizes: each new one would be compiled
def _attend_on_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    # On a CPU torch's own attention takes several times as long to go back through as these products do, and so do they
    # where their scores do not fit into a cache.
    together = max(CACHED_SCORES // (q.shape[1] * q.shape[2] * k.shape[2]), 1)
    parts = [part.split(together) for part in (q * q.shape[-1] ** -0.5, k, v)]
    if mask is None:
        return torch.cat([(q @ k.mT).softmax(dim=-1).to(v.dtype) @ v for q, k, v in zip(*parts, strict=True)])
    # Added and not filled in, which would copy the scores once more on both ways.
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf).expand(len(q), 1, -1, -1)
    parts.append(bias.split(together))
    return torch.cat([(q @ k.mT + b).softmax(dim=-1).to(v.dtype) @ v for q, k, v, b in zip(*parts, strict=True)])


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [., H, n, d] turned to their positions; element i is paired with i + d / 2, as in official weights."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
