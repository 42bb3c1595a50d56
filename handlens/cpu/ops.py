"""The functions of `reference` on the kernels in `native/`.

The module has every function of `reference`, with the same signature; what has no kernel is the reference's own. Linear
layers with quantised weights (and float weights that were packed as int8) quantise activations to int8 in groups of 32
(or 64) and sum integers; those with weights that were packed in bfloat16 round activations to it, and so do those with
quantised weights where a call allows it (`bf16`) and the processor can; everything else computes in float32. How far
results are from the reference's is stated and held by `tests/test_kernels.py`, `tests/test_float_kernels.py` and
`tests/test_attention_kernels.py`. They have the same bits for any thread count and, but for what is bfloat16, on every
instruction set.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

import numpy as np

from handlens.cpu import reference
from handlens.cpu.memory import let_go
from handlens.cpu.reference import (  # noqa: F401
    dense,
    require_tensors,
    rope_frequencies,
    rope_table,
    silu,
    softmax,
)
from handlens.cpu.threads import thread_count
from handlens.errors import InputError
from handlens.gguf import codebooks
from handlens.gguf.blocks import BLOCKS, Tensor

try:
    from handlens.cpu import _native as native
except ImportError:  # an install without a compiler
    native = None

#: The instruction set to use, of those that the processor has; otherwise the fastest.
ISA_VARIABLE = "HANDLENS_ISA"
#: Types whose numbers are no small integers: they are multiplied in float32 unless int8 is asked for.
FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
#: The magnitudes that an index of these types stands for.
GRIDS = {"IQ2_S": codebooks.iq2_s_grid, "IQ3_XXS": codebooks.iq3_xxs_grid, "IQ3_S": codebooks.iq3_s_grid}
#: Results from this size on are in memory that is used again.
RECYCLED_BYTES = 1 << 20
#: A matrix is packed so many numbers at a time, in whole blocks of rows.
STEP_NUMBERS, BLOCK_ROWS = 1 << 24, 16


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A matrix in the layout of the kernels. `tensor` is the file's own, which embeddings are read from."""

    tensor: Tensor
    packed: "native.Packed"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def dequantize(self, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """float32 of rows start:stop, as `Tensor.dequantize`."""
        return self.tensor.dequantize(start, stop)


Weight = reference.Weight | PackedWeight


def pack(tensor: Tensor, isa: str | None = None, precision: str | None = None) -> PackedWeight:
    """A weight for linear layers and `embedding`. This is done once, when a model is loaded. The pages of a mapped file
    that were packed are given up, so that a model is not in memory twice.

    By default the type decides: float numbers are multiplied in float32, quantised ones in int8. With the precision
    "int8" float numbers become int8 with a scale a row, with "f32" quantised ones become float32, and with "bf16" all
    become bfloat16, which only some instruction sets multiply (`multiplies_bf16`).
    """
    _start()
    packed = native.Packed(*packed_form(tensor, isa, precision))
    step = max(BLOCK_ROWS, STEP_NUMBERS // packed.shape[1] // BLOCK_ROWS * BLOCK_ROWS)
    for start in range(0, packed.shape[0], step):
        packed.fill(*_rows(tensor, start, start + step, precision))
        let_go(tensor.data[start * _file_rows(tensor) : (start + step) * _file_rows(tensor)])
    return PackedWeight(tensor, packed)


def packed_form(tensor: Tensor, isa: str | None = None, precision: str | None = None) -> tuple:
    """How `pack` packs a tensor: type of numbers, rows, columns, instruction set, what numbers become if not their
    own."""
    type = "F32" if _becomes_floats(tensor, precision) else tensor.type
    becomes = precision if precision == "bf16" or (precision == "int8" and tensor.type in FLOAT_TYPES) else ""
    return type, tensor.shape[0], math.prod(tensor.shape[1:]), isa or chosen_isa(), becomes


def _becomes_floats(tensor: Tensor, precision: str | None) -> bool:
    return precision in ("bf16", "f32") and tensor.type not in FLOAT_TYPES


def is_packed_as(weight: PackedWeight, start: int, precision: str | None = None) -> bool:
    """Whether `pack` would make of a block of rows, from `start` on, what is there."""
    return weight.packed.holds(*_rows(weight.tensor, start, start + BLOCK_ROWS, precision))


def _rows(tensor: Tensor, start: int, stop: int, precision: str | None) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Rows of a tensor as `Packed.fill` takes them."""
    each = _file_rows(tensor)
    data = tensor.data[start * each : stop * each]
    if _becomes_floats(tensor, precision):
        return BLOCKS[tensor.type].dequantize(data).view(np.uint8), start, None
    grid = GRIDS[tensor.type]().astype(np.uint8) if tensor.type in GRIDS else None
    return np.ascontiguousarray(data).reshape(-1, tensor.data.shape[1] * each), start, grid


def _file_rows(tensor: Tensor) -> int:
    """The rows in the file that a row of the matrix has: a kernel of a convolution is a row an output."""
    return math.prod(tensor.shape[1:-1])


def linear(
    x: np.ndarray,
    weight: Weight,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    bf16: bool = False,
) -> np.ndarray:
    """x [n, in] through one linear layer [n, out]: weight [out, in], bias [out]; a residual [n, out] is added."""
    return _linears(x, ((weight, bias),), residual, bf16=bf16)[0]


def linears(x: np.ndarray, *layers: tuple, bf16: bool = False) -> list[np.ndarray]:
    """x through several linear layers, each given as (weight,) or (weight, bias); x is quantised once for all."""
    return _linears(x, layers, bf16=bf16)


def norm_linears(x: np.ndarray, norm: tuple, eps: float, *layers: tuple, bf16: bool = False) -> list[np.ndarray]:
    """x, normalised, through several linear layers, as `reference.norm_linears`."""
    return _linears(x, layers, step=_norm(*norm, eps=eps), bf16=bf16)


def self_attention(
    x: np.ndarray, norm: tuple, eps: float, heads: int, query: tuple, key: tuple, value: tuple, out: tuple
) -> np.ndarray:
    """x [n, D] plus what attention among its rows makes of it, as `reference.self_attention`. With weights in bfloat16
    the attention is in it too, it takes one call and x is overwritten: fresh memory takes a while to get."""
    layers = query, key, value, out
    if not _in_bf16(*layers):
        q, k, v = (part.reshape(len(x), heads, -1) for part in norm_linears(x, norm, eps, query, key, value))
        return linear(attention(q, k, v).reshape(len(x), -1), *out, residual=x)
    weights, biases = zip(*layers, strict=True)
    native.self_attention(x, x, _norm(*norm, eps=eps), [weight.packed for weight in weights], list(biases), heads)
    return x


def feed_forward(x: np.ndarray, norm: tuple, eps: float, up: tuple, activation: str, down: tuple) -> np.ndarray:
    """x [n, D] plus what two linear layers make of it, as `reference.feed_forward`. With weights in bfloat16 it takes
    one call, what is between them is rounded to bfloat16 at once, as the second would do, and x is overwritten."""
    if not _in_bf16(up, down):
        (inner,) = norm_linears(x, norm, eps, up)
        return _linears(inner, (down,), x, native.Step(activation))[0]
    (wide, wide_bias), (narrow, narrow_bias) = up, down
    step = native.Step(activation)
    native.feed_forward(x, x, _norm(*norm, eps=eps), wide.packed, wide_bias, step, narrow.packed, narrow_bias)
    return x


def gated_feed_forward(
    x: np.ndarray, norm: tuple, eps: float, gate: tuple, up: tuple, down: tuple, bf16: bool = False
) -> np.ndarray:
    """x [n, D] plus what three linear layers make of it, as `reference.gated_feed_forward`. In bfloat16 it takes one
    call, what is between them is rounded at once, as the last would do, and x is overwritten."""
    if not _in_bf16(gate, up, down, wanted=bf16) or gate[0].tensor.type != up[0].tensor.type:
        gates, ups = norm_linears(x, norm, eps, gate, up, bf16=bf16)
        return _linears(gates, (down,), x, native.Step("swiglu", second=ups), bf16)[0]
    native.gated_feed_forward(x, x, _norm(*norm, eps=eps), *(layer[0].packed for layer in (gate, up, down)))
    return x


#: The matrices and the norms of a decoder's layer, as `native.Decoder` takes them.
DECODER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
DECODER_NORMS = ("attn_norm", "ffn_norm")


def decoder(
    layers: Sequence[Mapping[str, tuple]],
    norm: np.ndarray,
    output: Weight,
    heads: int,
    kv_heads: int,
    head_dim: int,
    eps: float,
) -> "native.Decoder | None":
    """What takes rows through all layers of a decoder and makes logits in one call, with the bits of the functions
    here; None where numpy multiplies with a matrix. `layers` are modules by their names in GGUF files."""
    matrices = [[layer[name][0] for name in DECODER_MATRICES] for layer in layers]
    if not all(isinstance(weight, PackedWeight) for weight in (output, *chain.from_iterable(matrices))):
        return None
    norms = [[np.ascontiguousarray(layer[name][0]) for name in DECODER_NORMS] for layer in layers]
    packed = [[weight.packed for weight in of_layer] for of_layer in matrices]
    ends = np.ascontiguousarray(norm), output.packed
    return native.Decoder(list(zip(packed, norms, strict=True)), *ends, heads, kv_heads, head_dim, eps)


def _in_bf16(*layers: tuple, wanted: bool = False) -> bool:
    """Whether all layers are multiplied in bfloat16; where that is `wanted`, quantised weights are if they can be."""
    return all(isinstance(layer[0], PackedWeight) and layer[0].packed.in_bf16(wanted) for layer in layers)


def embedding(ids: np.ndarray, table: Weight) -> np.ndarray:
    """The rows `ids` [n] of a table [V, D] as [n, D], as `reference.embedding`."""
    if not isinstance(table, PackedWeight):
        return reference.embedding(ids, table)
    out = _empty(len(ids), table.shape[1])
    table.packed.rows(np.ascontiguousarray(ids, np.int64), out)
    return out


def patch_embed(patches: np.ndarray, kernel: Weight, bias: np.ndarray) -> np.ndarray:
    """The embeddings [n, D] of patches [n, 3 * p * p], as `reference.patch_embed`."""
    if isinstance(kernel, PackedWeight):
        return linear(patches, kernel, bias)
    return reference.patch_embed(patches, kernel, bias)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, isa: str | None = None) -> np.ndarray:
    """x [n, D] with mean 0 and variance 1 in each row, scaled and shifted."""
    return _after(_norm(weight, bias, eps=eps), x, isa)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float, isa: str | None = None) -> np.ndarray:
    """x [n, D] with mean square 1 in each row, scaled."""
    return _after(_norm(weight, eps=eps), x, isa)


def gelu_tanh(x: np.ndarray, isa: str | None = None) -> np.ndarray:
    """GELU in its tanh form, of x [n, D]."""
    return _after(native.Step("gelu_tanh"), x, isa)


def gelu(x: np.ndarray, isa: str | None = None) -> np.ndarray:
    """GELU in its exact form, of x [n, D]."""
    return _after(native.Step("gelu"), x, isa)


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, isa: str | None = None) -> np.ndarray:
    """The heads x [n, H, d] turned to their positions, bit for bit as `reference.rope`."""
    out = _empty(*x.shape)
    native.rope(np.ascontiguousarray(x), cos, sin, out, isa or chosen_isa())
    return out


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, key_count: int | None = None, isa: str | None = None
) -> np.ndarray:
    """What each query reads from all keys [n, H, d]: q [n, H, d], k and v [m, H, d], of which the first count."""
    return _attend(q, k[:key_count].swapaxes(0, 1), v[:key_count].swapaxes(0, 1), False, isa)


def causal_attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, isa: str | None = None, bf16: bool = False
) -> np.ndarray:
    """What the n newest of m positions read [n, H, d] from themselves and those before them.

    q [n, H, d]; keys and values [K, m, d] as a cache holds them, the new ones last, float32 or float16. The products of
    float16 ones are those of bfloat16 numbers where `bf16` allows it and the processor can.
    """
    return _attend(q, keys, values, True, isa, bf16 and keys.dtype == np.float16 and multiplies_bf16(isa))


def _linears(
    x: np.ndarray,
    layers: tuple,
    residual: np.ndarray | None = None,
    step: "native.Step | None" = None,
    bf16: bool = False,
) -> list[np.ndarray]:
    """x after a step through layers of which some may have plain arrays as weights, which numpy multiplies."""
    x = np.ascontiguousarray(x)
    if any(isinstance(layer[0], np.ndarray | Tensor) for layer in layers):
        x = x if step is None else _after(step, x)
        return [_one_linear(x, *layer, residual=residual) for layer in layers]
    weights = [layer[0].packed for layer in layers]
    outs = [_empty(len(x), weight.shape[0]) for weight in weights]
    biases = [layer[1] if len(layer) > 1 else None for layer in layers]
    native.linears(x, weights, outs, biases, residual, step, bf16)
    return outs


def _empty(*shape: int) -> np.ndarray:
    """float32 that is not set; large arrays are in memory that is used again, for fresh memory takes a while to get."""
    if 4 * math.prod(shape) < RECYCLED_BYTES:
        return np.empty(shape, np.float32)
    return native.empty(shape[0], math.prod(shape[1:])).reshape(shape)


def _one_linear(x: np.ndarray, weight: Weight, bias: np.ndarray | None = None, *, residual: np.ndarray | None):
    function = linear if isinstance(weight, PackedWeight) else reference.linear
    return function(x, weight, bias, residual)


def _norm(weight: np.ndarray, bias: np.ndarray | None = None, *, eps: float) -> "native.Step":
    return native.Step("rms_norm" if bias is None else "layer_norm", weight, bias, eps)


def _after(step: "native.Step", x: np.ndarray, isa: str | None = None) -> np.ndarray:
    """x [n, D] after a step."""
    out = _empty(*x.shape)
    native.prepare(np.ascontiguousarray(x), out, step, isa or chosen_isa())
    return out


def multiplies_bf16(isa: str | None = None) -> bool:
    """Whether weights can be packed in bfloat16, and `attention` multiply in it."""
    return native.multiplies_bf16(isa or chosen_isa())


def is_quick_in_int8(isa: str | None = None) -> bool:
    """Whether matrices in int8 are multiplied much faster than in float32."""
    return native.has_dots(isa or chosen_isa())


def _attend(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, causal: bool, isa: str | None, bf16: bool = False
) -> np.ndarray:
    out = _empty(*q.shape)
    native.attend(np.ascontiguousarray(q), keys, values, out, causal, isa or chosen_isa(), bf16)
    return out


def description() -> str:
    """How the kernels run here, for people."""
    _start()
    return f"kernels {chosen_isa()}, {native.threads()} threads"


def describe_sets(lacking: Mapping[str, Sequence[str]]) -> str:
    """The instruction sets that this processor has and those it has not, for people: of each what it lacks for it, as
    `native.lacking()` gives it."""
    has = f"this processor has {', '.join(name for name, features in lacking.items() if not features)}"
    return "; ".join([has, *(f"for {name} it lacks {', '.join(lacks)}" for name, lacks in lacking.items() if lacks)])


def set_threads(count: int) -> None:
    """Sets how many threads compute, whatever the environment says."""
    _start()
    native.set_threads(count)


@cache
def _usable() -> list[str]:
    """The instruction sets with kernels that the processor has, the fastest first."""
    return native.isas()


@cache
def _start() -> None:
    """Sets the thread count, once."""
    native.set_threads(thread_count())


def chosen_isa() -> str:
    """The name of the instruction set to compute with."""
    usable = _usable()
    wanted = os.environ.get(ISA_VARIABLE) or usable[0]
    if wanted not in usable:
        raise InputError(f"{ISA_VARIABLE} is {wanted!r}, but this processor has kernels for {', '.join(usable)}")
    return wanted


def quantize(type: str, plain: str, data: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Rows of F32, F16 or BF16 numbers (`plain`), uint8 [rows, bytes of a row], as rows of blocks of a type, and the
    largest magnitude among them. The bytes are those of `quant.encode`; `importance` is a number a column."""
    _start()
    columns = data.shape[1] // BLOCKS[plain].nbytes
    block = BLOCKS[type]
    made = np.empty((len(data), columns // block.weights * block.nbytes), np.uint8)
    largest = native.quantize(type, np.ascontiguousarray(data), plain, columns, importance, made, chosen_isa())
    return made, largest
