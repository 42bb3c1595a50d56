"""The arithmetic of the model in numpy: slow, short and the truth that faster kernels are compared with.

Every function is pure, takes float32 and returns float32. Shapes stand in brackets: n rows (tokens, patches, queries),
m keys, H heads, K key-value heads (H / K query heads share one), d width of a head, D width of the model.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from handlens.errors import ModelFileError
from handlens.gguf.blocks import Tensor

#: A float32 array, or a tensor as it lies in a file, which is read in pieces of bounded size.
Weight = np.ndarray | Tensor

#: The most memory that the attention scores of one call take at a time.
SCORE_BYTES = 64 << 20
#: The most memory that one piece of a quantised weight takes as float32.
DEQUANTIZED_BYTES = 32 << 20


def dense(weight: Weight) -> np.ndarray:
    """A whole weight as a float32 array."""
    return weight if isinstance(weight, np.ndarray) else weight.dequantize()


def linear(
    x: np.ndarray,
    weight: Weight,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    bf16: bool = False,
) -> np.ndarray:
    """x [n, in] through one linear layer [n, out]: weight [out, in], bias [out]; a residual [n, out] is added.

    `bf16`, here and below, lets kernels multiply quantised weights in bfloat16; numpy computes in float32 all the same.
    """
    if isinstance(weight, np.ndarray):
        out = x @ weight.T
    else:
        rows, columns = weight.shape
        step = max(1, DEQUANTIZED_BYTES // (4 * columns))
        out = np.empty((len(x), rows), np.float32)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            out[:, start:stop] = x @ weight.dequantize(start, stop).T
    if bias is not None:
        out += bias
    if residual is not None:
        out += residual
    return out


def linears(x: np.ndarray, *layers: tuple, bf16: bool = False) -> list[np.ndarray]:
    """x through several linear layers, each given as (weight,) or (weight, bias).

    They stand in one call because kernels that quantise x do so once for all of them.
    """
    return [linear(x, *layer) for layer in layers]


def norm_linears(x: np.ndarray, norm: tuple, eps: float, *layers: tuple, bf16: bool = False) -> list[np.ndarray]:
    """x, normalised, through several linear layers; norm is (weight, bias) for a layer norm, (weight,) for an RMS norm.

    This function and the three below stand for one call each, so that kernels need not go through memory in between.
    """
    normalise = layer_norm if len(norm) == 2 else rms_norm
    return linears(normalise(x, *norm, eps), *layers)


def self_attention(
    x: np.ndarray, norm: tuple, eps: float, heads: int, query: tuple, key: tuple, value: tuple, out: tuple
) -> np.ndarray:
    """x [n, D] plus what attention among its rows, normalised, makes of it; the last four are linear layers."""
    q, k, v = (part.reshape(len(x), heads, -1) for part in norm_linears(x, norm, eps, query, key, value))
    return linear(attention(q, k, v).reshape(len(x), -1), *out, residual=x)


def feed_forward(x: np.ndarray, norm: tuple, eps: float, up: tuple, activation: str, down: tuple) -> np.ndarray:
    """x [n, D] plus x, normalised, through one linear layer, `gelu` or `gelu_tanh`, and another linear layer."""
    (inner,) = norm_linears(x, norm, eps, up)
    return linear({"gelu": gelu, "gelu_tanh": gelu_tanh}[activation](inner), *down, residual=x)


def gated_feed_forward(
    x: np.ndarray, norm: tuple, eps: float, gate: tuple, up: tuple, down: tuple, bf16: bool = False
) -> np.ndarray:
    """x [n, D] plus the linear layer `down` of silu(gate) * up, which are linear layers of x, normalised."""
    gates, ups = norm_linears(x, norm, eps, gate, up)
    return linear(silu(gates) * ups, *down, residual=x)


def decoder(layers: Sequence[Mapping[str, tuple]], norm: np.ndarray, output: Weight, *sizes: float) -> None:
    """What takes rows through all layers of a decoder in one call; numpy has nothing of the kind."""


def embedding(ids: np.ndarray, table: Weight) -> np.ndarray:
    """The rows `ids` [n] of a table [V, D] as [n, D]; of a quantised table only those rows are read."""
    if isinstance(table, np.ndarray):
        return table[ids]
    if len(ids) == 1:  # as each step of decoding
        return table.dequantize(int(ids[0]), int(ids[0]) + 1)
    rows, places = np.unique(ids, return_inverse=True)
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)  # neighbours are read in one go
    found = [table.dequantize(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]
    return np.concatenate([np.empty((0, table.shape[-1]), np.float32), *found])[places]


def patch_embed(patches: np.ndarray, kernel: Weight, bias: np.ndarray) -> np.ndarray:
    """The embeddings [n, D] of patches [n, 3 * p * p], pixels channel first, under a kernel [D, 3, p, p].

    The stride of the convolution is its width, so it is a linear layer on each patch.
    """
    return linear(patches, dense(kernel).reshape(kernel.shape[0], -1), bias)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """x [n, D] with mean 0 and variance 1 in each row, scaled and shifted."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x [n, D] with mean square 1 in each row, scaled."""
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """GELU in its tanh form, which SigLIP was trained with."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU in its exact form, x times the normal distribution up to x, as timm has it.

    numpy has no error function. This is formula 7.1.26 of Abramowitz and Stegun's Handbook of Mathematical Functions,
    which is off by 1.5e-7 at most; in float32 torch's own is further off.
    """
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    upper = 0.5 * series * np.exp(-z * z)  # the distribution beyond |x|
    return x * np.where(x < 0, upper, 1 - upper)


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x)."""
    with np.errstate(over="ignore"):  # exp overflows to infinity where the answer is 0
        return x / (1.0 + np.exp(-x))


def softmax(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The softmax over the last axis; `out` may be x itself."""
    out = np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=-1, keepdims=True)
    return out


def rope_frequencies(head_dim: int, theta: float, factors: np.ndarray | None = None) -> np.ndarray:
    """How fast each pair of a head turns [d / 2]; `factors` slow the pairs down (`rope_freqs.weight`).

    Rounded to float32 where torch does it: at position 8000 a unit in the last place turns a pair by 0.0005.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / (theta ** exponents.astype(np.float64)).astype(np.float32)
    return frequencies if factors is None else frequencies / factors


def rope_table(positions: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cosines and the sines [n, d / 2] that `rope` turns tokens at these positions [n] by."""
    angles = np.outer(positions.astype(np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """The heads x [n, H, d] turned to their positions.

    Elements 2i and 2i + 1 are a pair: GGUF files of the llama architecture hold the rows of q and k in that order,
    while transformers pairs i with i + d / 2.
    """
    cos, sin = cos[:, None], sin[:, None]  # [n, 1, d / 2]
    even, odd = x[..., 0::2], x[..., 1::2]  # [n, H, d / 2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, key_count: int | None = None) -> np.ndarray:
    """What each query reads from all keys [n, H, d]: q [n, H, d], k and v [m, H, d].

    With `key_count` only the first keys count; the rest is padding.
    """
    return _attend(q, k[:key_count].swapaxes(0, 1), v[:key_count].swapaxes(0, 1), causal=False)


def causal_attention(q: np.ndarray, keys: np.ndarray, values: np.ndarray, bf16: bool = False) -> np.ndarray:
    """What the n newest of m positions read [n, H, d] from themselves and those before them.

    q [n, H, d]; keys and values [K, m, d] as a cache holds them, the new ones last, float32 or float16.
    """
    keys, values = (array.astype(np.float32, copy=False) for array in (keys, values))
    return _attend(q, keys, values, causal=True)


def _attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, causal: bool) -> np.ndarray:
    """The attention [n, H, d] of q [n, H, d] over keys and values [K, m, d], as many queries at a time as fit."""
    n, heads, _ = q.shape
    m = keys.shape[1]
    out = np.empty_like(q)
    block = max(1, SCORE_BYTES // (4 * heads * m))
    for start in range(0, n, block):
        stop = min(start + block, n)
        seen = m - n + stop if causal else m  # keys behind the last query of the block
        out[start:stop] = _attend_block(q[start:stop], keys[:, :seen], values[:, :seen], causal)
    return out


def _attend_block(q: np.ndarray, keys: np.ndarray, values: np.ndarray, causal: bool) -> np.ndarray:
    """The attention [b, H, d] of q [b, H, d] over keys and values [K, m, d], with all scores in memory."""
    b, heads, head_dim = q.shape
    kv_heads, m, _ = keys.shape
    grouped = q.reshape(b, kv_heads, -1, head_dim).transpose(1, 2, 0, 3) * np.float32(head_dim**-0.5)  # [K, H/K, b, d]
    scores = grouped @ keys[:, None].swapaxes(-1, -2)  # [K, H/K, b, m]
    if causal:
        np.copyto(scores[..., m - b :], -np.inf, where=np.triu(np.ones((b, b), bool), 1))
    read = softmax(scores, out=scores) @ values[:, None]  # [K, H/K, b, d]
    return read.transpose(2, 0, 1, 3).reshape(b, heads, head_dim)


def require_tensors(
    weights: Mapping[str, Weight], shapes: Mapping[str, tuple[int, ...]], prefix: str = ""
) -> dict[str, tuple[Weight, ...]]:
    """The tensors of each module by its name: (weight,) or (weight, bias), ready to follow x in a call.

    `shapes` says the wanted shape of every tensor, under its name after the prefix. ModelFileError names the first
    tensor that is missing or has another shape; tensors that nobody asks for are left alone.
    """
    modules = {}
    for name, shape in shapes.items():
        tensor = weights.get(prefix + name)
        if tensor is None:
            raise ModelFileError(f"the model has no tensor {prefix}{name}; its config wants one of shape {list(shape)}")
        if tuple(tensor.shape) != shape:
            raise ModelFileError(
                f"tensor {prefix}{name} has shape {list(tensor.shape)}, but the model's config wants {list(shape)}; "
                "the file is damaged, or its metadata belongs to another model"
            )
        module = name.removesuffix(".weight").removesuffix(".bias")
        modules[module] = (*modules.get(module, ()), tensor)
    return modules
