"""From patches to query vectors: the SigLIP vision tower and the resampler of MiniCPM-V.

Upstream: transformers' Idefics2 vision modules and resampler.py of the MiniCPM-Llama3-V 2.5 model repository. Tensors
have the names of mmproj files, with `ffn_up` the layer that widens and `ffn_down` the one that narrows (files of the
2.5 family swap the two names; the loader swaps them back). Letters: L patches, Q queries, H heads, d width of a head,
D width of the tower or of the resampler.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from handlens.config import ResamplerConfig, VisionConfig
from handlens.cpu import reference
from handlens.errors import InputError, ModelFileError
from handlens.positions import grid_positions, patch_position_ids, resampled_table

#: `VisionConfig.hidden_act` -> the function of `ops`.
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


class VisionTower:
    """The vision transformer. `weights` holds arrays or quantised tensors by name, `ops` the functions that compute."""

    def __init__(self, config: VisionConfig, weights: Mapping[str, reference.Weight], ops=reference):
        _check_heads("vision tower", config.hidden_size, config.num_attention_heads)
        self.config = config
        self.ops = ops
        width, patch = config.hidden_size, config.patch_size
        table = {"position_embd.weight": (config.position_side**2, width)}
        ends = _with_bias({"patch_embd": (width, 3, patch, patch), "post_ln": (width,)}) | table
        self.ends = reference.require_tensors(weights, ends, "v.")
        self.layers = [
            reference.require_tensors(weights, _layer_shapes(config), f"v.blk.{index}.")
            for index in range(config.num_hidden_layers)
        ]

    def forward(
        self,
        patches: Sequence[np.ndarray],
        tgt_sizes: Sequence[tuple[int, int]],
        on_slice: Callable[[int, int], None] | None = None,
    ) -> list[np.ndarray]:
        """The features [L_i, D] of all slices of a request; `on_slice(done, total)` is called after each.

        One slice is computed at a time: attention never crosses them, so this is the same as a batch, in less memory.
        """
        longest = max(map(len, patches), default=0)
        features = []
        for slice_patches, tgt_size in zip(patches, tgt_sizes, strict=True):
            features.append(self.encode(slice_patches, tgt_size, longest))
            if on_slice is not None:
                on_slice(len(features), len(patches))
        return features

    def encode(self, patches: np.ndarray, tgt_size: tuple[int, int], longest: int) -> np.ndarray:
        """The features [L, D] of one slice of (rows, cols) patches [L, 3 * p * p], pixels channel first.

        `longest` is the patch count of the longest slice of the request; only the position mode `reference` heeds it.
        """
        rows, cols = tgt_size
        wanted = rows * cols, 3 * self.config.patch_size**2
        if patches.shape != wanted or not 0 < rows * cols <= longest:
            raise InputError(
                f"a slice of {rows} x {cols} patches, the longest of {longest}, has patches of shape {patches.shape}; "
                f"{wanted} and no more patches than the longest slice are wanted"
            )
        position_ids = patch_position_ids(self.config.position_mode, rows, cols, longest, self.config.position_side)
        padding = len(position_ids) - len(patches)  # mid grey; attends and is attended to, as in the original
        x = self.embed(np.pad(patches, ((0, padding), (0, 0))), position_ids, self.position_table(tgt_size))
        for index in range(self.config.num_hidden_layers):
            x = self.layer(x, index)
        return self.post_norm(x[: len(patches)])

    def position_table(self, tgt_size: tuple[int, int]) -> reference.Weight:
        """The table whose rows are the positions of a slice's patches: the learned one, or one made of it."""
        (table,) = self.ends["position_embd"]
        if self.config.position_mode == "interpolated":
            return resampled_table(reference.dense(table), *tgt_size)
        return table

    def embed(self, patches: np.ndarray, position_ids: np.ndarray, table: reference.Weight | None = None) -> np.ndarray:
        """The input of the first layer [L, D]; positions are rows of `table`, by default of the learned one."""
        (table,) = (table,) if table is not None else self.ends["position_embd"]
        return self.ops.patch_embed(patches, *self.ends["patch_embd"]) + self.ops.embedding(position_ids, table)

    def layer(self, x: np.ndarray, index: int) -> np.ndarray:
        """x [L, D] after one layer; x itself may be overwritten."""
        ops, w, eps = self.ops, self.layers[index], self.config.layer_norm_eps
        attended = w["attn_q"], w["attn_k"], w["attn_v"], w["attn_out"]
        x = ops.self_attention(x, w["ln1"], eps, self.config.num_attention_heads, *attended)
        return ops.feed_forward(x, w["ln2"], eps, w["ffn_up"], ACTIVATIONS[self.config.hidden_act], w["ffn_down"])

    def post_norm(self, x: np.ndarray) -> np.ndarray:
        """The features [L, D] from the output of the last layer."""
        return self.ops.layer_norm(x, *self.ends["post_ln"], self.config.layer_norm_eps)


class Resampler:
    """One layer of cross-attention through which a fixed number of learned queries reads the patches of a slice."""

    def __init__(self, config: ResamplerConfig, weights: Mapping[str, reference.Weight], ops=reference):
        _check_heads("resampler", config.embed_dim, config.num_heads)
        if config.embed_dim % 4:
            raise ModelFileError(f"the resampler is {config.embed_dim} wide; its positions need a multiple of 4")
        self.config = config
        self.ops = ops
        width = config.embed_dim
        queries = {"query": (config.query_num, width)}
        if config.query_position:
            queries["pos_embed"] = config.query_num, width
        plain = {"kv.weight": (width, config.kv_dim), "proj.weight": (width, width)}
        attention = dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.out"), (width, width))
        norms = dict.fromkeys(("ln_q", "ln_kv", "ln_post"), (width,))
        shapes = queries | plain | _with_bias(attention | norms)
        self.modules = reference.require_tensors(weights, shapes, "resampler.")

    @cached_property
    def queries(self) -> np.ndarray:
        """The queries as the attention takes them [Q, H, d]: they are the same for every slice."""
        ops, w = self.ops, self.modules
        q = ops.layer_norm(reference.dense(*w["query"]), *w["ln_q"], self.config.layer_norm_eps)
        if self.config.query_position:
            q = q + reference.dense(*w["pos_embed"])
        return ops.linear(q, *w["attn.q"]).reshape(self.config.query_num, self.config.num_heads, -1)

    def forward(self, features: np.ndarray, tgt_size: tuple[int, int]) -> np.ndarray:
        """The query vectors [Q, D] of one slice from its features [L, kv_dim] and its (rows, cols).

        Features behind the first rows * cols belong to padding patches and are not read.
        """
        rows, cols = tgt_size
        if not 0 < rows * cols <= len(features):
            raise InputError(f"a slice of {rows} x {cols} patches cannot have {len(features)} features")
        ops, w, eps = self.ops, self.modules, self.config.layer_norm_eps
        heads = rows * cols, self.config.num_heads, -1
        kv = ops.layer_norm(ops.linear(features[: rows * cols], *w["kv"]), *w["ln_kv"], eps)  # [L, D]
        k = ops.linear(kv + grid_positions(rows, cols, self.config.embed_dim), *w["attn.k"])
        v = ops.linear(kv, *w["attn.v"])  # positions are in the keys only
        read = ops.attention(self.queries, k.reshape(heads), v.reshape(heads))  # [Q, H, d]
        out = ops.linear(read.reshape(self.config.query_num, -1), *w["attn.out"])
        (projected,) = ops.norm_linears(out, w["ln_post"], eps, w["proj"])
        return projected


def _with_bias(modules: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights and biases of modules, from the shapes of their weights."""
    shapes = {}
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _layer_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of one layer of the tower."""
    width, inner = config.hidden_size, config.intermediate_size
    norms = {"ln1": (width,), "ln2": (width,)}
    attention = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (width, width))
    return _with_bias(norms | attention | {"ffn_up": (inner, width), "ffn_down": (width, inner)})


def _check_heads(part: str, width: int, heads: int) -> None:
    """ModelFileError where a width cannot be shared by the heads."""
    if width % heads:
        raise ModelFileError(f"the {part} is {width} wide, which {heads} heads cannot share evenly")
