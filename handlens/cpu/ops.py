"""The functions of `reference` with the arithmetic of quantised linear layers in kernels (`native/`).

The module has every function of `reference`, with the same signature; what has no kernel yet is the reference's own. A
kernel quantises activations to int8 in groups of 32 and sums integers, so its results differ from the reference's by a
bound that `tests/test_kernels.py` states. They have the same bits on every instruction set and for any thread count.
"""

import os
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from handlens.cpu import reference
from handlens.cpu.reference import (  # noqa: F401
    attention,
    causal_attention,
    dense,
    embedding,
    gelu,
    gelu_tanh,
    layer_norm,
    require_tensors,
    rms_norm,
    rope,
    rope_frequencies,
    rope_table,
    silu,
    softmax,
)
from handlens.cpu.threads import thread_count
from handlens.errors import InputError
from handlens.gguf.blocks import BLOCKS, Tensor

try:
    from handlens.cpu import _native as native
except ImportError:  # an install without a compiler
    native = None

#: The instruction set to use, of those that the processor has; otherwise the fastest.
ISA_VARIABLE = "HANDLENS_ISA"
#: Types whose numbers are no small integers: they are multiplied in float32.
FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
#: Other types become Q8_0 on the way to a kernel, this many float32 bytes at a time.
REQUANTIZED_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A quantised matrix in the layout of the kernels. `tensor` is the file's own, which embeddings are read from."""

    tensor: Tensor
    packed: "native.Packed"

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    def dequantize(self, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """float32 of rows start:stop, as `Tensor.dequantize`."""
        return self.tensor.dequantize(start, stop)


Weight = reference.Weight | PackedWeight


def packs(tensor: Tensor) -> bool:
    """Whether `pack` takes the tensor: a matrix of a quantised type. Rows of all of these are whole groups of 32."""
    return tensor.type not in FLOAT_TYPES and len(tensor.shape) == 2


def pack(tensor: Tensor, isa: str | None = None) -> PackedWeight:
    """A weight for `linear`, `linears` and `embedding`. This is done once, when a model is loaded."""
    _start()
    if tensor.type in native.types():
        type, data = tensor.type, tensor.data
    else:
        type, data = "Q8_0", _as_q8_0(tensor)
    return PackedWeight(tensor, native.pack(type, np.ascontiguousarray(data), tensor.shape[1], isa or _isa()))


def linear(x: np.ndarray, weight: Weight, bias: np.ndarray | None = None) -> np.ndarray:
    """x [n, in] through one linear layer [n, out]: weight [out, in], bias [out]."""
    return linears(x, (weight, bias))[0]


def linears(x: np.ndarray, *layers: tuple) -> list[np.ndarray]:
    """x through several linear layers, each given as (weight,) or (weight, bias); x is quantised once for all."""
    packed = [layer[0].packed for layer in layers if isinstance(layer[0], PackedWeight)]
    made = [np.empty((len(x), weight.shape[0]), np.float32) for weight in packed]
    if packed:
        native.linears(np.ascontiguousarray(x), packed, made)
    quantized = iter(made)
    outs = []
    for weight, *bias in layers:
        if isinstance(weight, PackedWeight):
            out = next(quantized)
            if bias and bias[0] is not None:
                out += bias[0]
        else:
            out = reference.linear(x, weight, *bias)
        outs.append(out)
    return outs


def patch_embed(patches: np.ndarray, kernel: Weight, bias: np.ndarray) -> np.ndarray:
    """The embeddings of patches, as `reference.patch_embed`: kernels of convolutions are never packed."""
    return reference.patch_embed(patches, kernel, bias)


def description() -> str:
    """How the kernels run here, for people."""
    return f"kernels {_isa()}, {thread_count()} threads"


@cache
def _start() -> None:
    """Sets the thread count, once."""
    native.set_threads(thread_count())


def _isa() -> str:
    """The name of the instruction set that weights are packed for."""
    usable = native.isas()
    wanted = os.environ.get(ISA_VARIABLE) or usable[0]
    if wanted not in usable:
        raise InputError(f"{ISA_VARIABLE} is {wanted!r}, but this processor has kernels for {', '.join(usable)}")
    return wanted


def _as_q8_0(tensor: Tensor) -> np.ndarray:
    """The rows of a tensor of any type as blocks of Q8_0, uint8 [rows, bytes of a row]."""
    rows, columns = tensor.shape
    block = BLOCKS["Q8_0"]
    made = np.empty((rows, columns // block.weights * block.nbytes), np.uint8)
    step = max(1, REQUANTIZED_BYTES // (4 * columns))
    for start in range(0, rows, step):
        made[start : start + step] = block.quantize(tensor.dequantize(start, min(start + step, rows)))
    return made


def quantize(type: str, plain: str, data: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Rows of F32, F16 or BF16 numbers (`plain`), uint8 [rows, bytes of a row], as rows of blocks of a type, and the
    largest magnitude among them. The bytes are those of `quant.encode`; `importance` is a number a column."""
    _start()
    columns = data.shape[1] // BLOCKS[plain].nbytes
    block = BLOCKS[type]
    made = np.empty((len(data), columns // block.weights * block.nbytes), np.uint8)
    largest = native.quantize(type, np.ascontiguousarray(data), plain, columns, importance, made, _isa())
    return made, largest
