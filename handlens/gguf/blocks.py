"""The block types of GGUF tensors: one row a type, and a tensor as it lies in a file.

A row of a tensor is a run of blocks. A block holds `weights` numbers in `nbytes` bytes: small integers, packed below
the byte, and the scales that make numbers of them. Each type is a numpy record (what lies where in a block) and a
function from records [n] to numbers [n, weights]; the layouts and formulas are those of ggml-common.h and
ggml-quants.c, and the results equal those of the `gguf` package bit for bit.

This is the slow truth beside the kernels: plain numpy, in float32, a bounded number of blocks at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from handlens.errors import InputError
from handlens.gguf import codebooks

#: Weights that are worked on at once: scratch stays at a few MB, inside the cache, however large the tensor.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Block:
    """One block type. `dequantize` maps uint8 [..., n * nbytes] to float32 [..., n * weights], `quantize` back.

    `quantize` is there for types whose bytes follow from the numbers at once; the others need a search, see
    `quant.encode`. `layout` is the numpy record of a block.
    """

    ggml_type: int
    weights: int
    layout: np.dtype
    dequantize: Callable[[np.ndarray], np.ndarray]
    quantize: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of a block."""
        return self.layout.itemsize


def _unpack(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """The `bits`-wide fields of packed bytes, uint8 [n, bytes] -> [n, bytes * 8 / bits].

    Of each `run` bytes all lowest fields come first, then all next ones, and so on: ggml's order throughout, because a
    vector register of `run` bytes gives them with one shift. A run of 1 reads the fields byte by byte.
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed.reshape(len(packed), -1, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _scaled(scales: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` [n, weights] times `scales` [n, groups], each for an equal share of a block: [n, groups, share]."""
    return scales[:, :, None] * values.reshape(*scales.shape, -1).astype(np.float32, copy=False)


def _f32(column: np.ndarray) -> np.ndarray:
    """One float16 number of each block as float32 [n, 1]."""
    return column.astype(np.float32)[:, None]


# Plain numbers


_F32 = np.dtype("<f4")
_F16 = np.dtype("<f2")
_BF16 = np.dtype("<u2")


def _decode_float(records: np.ndarray) -> np.ndarray:
    return records[:, None]


def _decode_bf16(records: np.ndarray) -> np.ndarray:
    return (records.astype(np.uint32) << 16).view(np.float32)[:, None]


def _encode_f32(values: np.ndarray) -> np.ndarray:
    return values


def _encode_f16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)


def _encode_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    rounded = bits + (0x7FFF + (bits >> 16 & 1))  # to the nearest, ties to even
    quiet_nan = bits | 0x400000  # rounding could carry a NaN over into an infinity
    return (np.where(np.isnan(values), quiet_nan, rounded) >> 16).astype(np.uint16)


# 32 weights with one scale


_Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
_Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
_IQ4_NL = _Q4_0


def _decode_q4_0(b: np.ndarray) -> np.ndarray:
    return _f32(b["d"]) * (_unpack(b["qs"], 4, 16).astype(np.float32) - 8)


def _decode_q4_1(b: np.ndarray) -> np.ndarray:
    return _f32(b["d"]) * _unpack(b["qs"], 4, 16) + _f32(b["m"])


def _five_bits(b: np.ndarray) -> np.ndarray:
    return _unpack(b["qs"], 4, 16) | _unpack(b["qh"], 1, 1) << 4


def _decode_q5_0(b: np.ndarray) -> np.ndarray:
    return _f32(b["d"]) * (_five_bits(b).astype(np.float32) - 16)


def _decode_q5_1(b: np.ndarray) -> np.ndarray:
    return _f32(b["d"]) * _five_bits(b) + _f32(b["m"])


def _decode_q8_0(b: np.ndarray) -> np.ndarray:
    return _f32(b["d"]) * b["qs"]


def _encode_q8_0(values: np.ndarray) -> np.ndarray:
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = values * inverse
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    whole += np.floor(2 * (magnitude - whole))  # halves away from zero, as C's roundf; np.round takes them to even
    blocks = np.empty(len(values), _Q8_0)
    blocks["d"] = scale[:, 0]
    blocks["qs"] = np.sign(scaled) * whole
    return blocks


def _decode_iq4_nl(b: np.ndarray) -> np.ndarray:
    return _f32(b["d"]) * codebooks.iq4_levels()[_unpack(b["qs"], 4, 16)]


# 256 weights with scales of scales


_Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
_Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
_Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
_Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
_Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
_IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "u1", 2), ("scales_l", "u1", 4), ("qs", "u1", 128)])


def _decode_q2_k(b: np.ndarray) -> np.ndarray:
    scales = _f32(b["d"]) * (b["scales"] & 15)
    minima = _f32(b["dmin"]) * (b["scales"] >> 4)
    return _scaled(scales, _unpack(b["qs"], 2, 32)) - minima[:, :, None]


def _decode_q3_k(b: np.ndarray) -> np.ndarray:
    low, high = b["scales"][:, :8], b["scales"][:, 8:]
    scales = (_unpack(low, 4, 8) | _unpack(high, 2, 4) << 4).astype(np.float32) - 32
    # A clear bit of hmask takes 4 away: the third bit, of a range that is centred at zero.
    q = (_unpack(b["qs"], 2, 32) | _unpack(b["hmask"], 1, 32) << 2).astype(np.float32) - 4
    return _scaled(_f32(b["d"]) * scales, q)


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K, uint8 [n, 12] -> two uint8 [n, 8].

    The first four of each lie in the low six bits of bytes 0-3 and 4-7. The last four have their low halves in bytes
    8-11 and their high bits on top of the first eight bytes.
    """
    first_scales, first_minima, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first_scales & 63, low & 15 | first_scales >> 2 & 48], axis=1)
    minima = np.concatenate([first_minima & 63, low >> 4 | first_minima >> 2 & 48], axis=1)
    return scales, minima


def _decode_with_minima(b: np.ndarray, q: np.ndarray) -> np.ndarray:
    scales, minima = _scales_and_minima(b["scales"])
    return _scaled(_f32(b["d"]) * scales, q) - (_f32(b["dmin"]) * minima)[:, :, None]


def _decode_q4_k(b: np.ndarray) -> np.ndarray:
    return _decode_with_minima(b, _unpack(b["qs"], 4, 32))


def _decode_q5_k(b: np.ndarray) -> np.ndarray:
    return _decode_with_minima(b, _unpack(b["qs"], 4, 32) | _unpack(b["qh"], 1, 32) << 4)


def _decode_q6_k(b: np.ndarray) -> np.ndarray:
    q = (_unpack(b["ql"], 4, 64) | _unpack(b["qh"], 2, 32) << 4).astype(np.float32) - 32
    return _scaled(_f32(b["d"]) * b["scales"], q)


def _decode_iq4_xs(b: np.ndarray) -> np.ndarray:
    scales = (_unpack(b["scales_l"], 4, 1) | _unpack(b["scales_h"], 2, 1) << 4).astype(np.float32) - 32
    return _scaled(_f32(b["d"]) * scales, codebooks.iq4_levels()[_unpack(b["qs"], 4, 16)])


# 256 weights through a codebook: an index tells the magnitudes of four or eight weights at once, signs lie apart


_IQ2_S = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("signs", "u1", 32), ("qh", "u1", 8), ("scales", "u1", 8)])
_IQ3_XXS = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("signs_and_scales", "<u4", 8)])
_IQ3_S = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)])


def _signs(b: np.ndarray) -> np.ndarray:
    return 1 - 2 * _unpack(b["signs"], 1, 1).astype(np.float32)


def _decode_iq2_s(b: np.ndarray) -> np.ndarray:
    index = b["qs"] | _unpack(b["qh"], 2, 1).astype(np.uint16) << 8
    magnitudes = codebooks.iq2_s_grid()[index].reshape(len(b), 256)
    scales = _f32(b["d"]) * (_unpack(b["scales"], 4, 1) + np.float32(0.5)) * np.float32(0.25)
    return _scaled(scales, magnitudes * _signs(b))


def _decode_iq3_xxs(b: np.ndarray) -> np.ndarray:
    # A word of 32 weights: four 7-bit indices of signs, then the 4-bit scale on top.
    words = b["signs_and_scales"]
    signs = codebooks.even_signs()[words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & 127].reshape(len(b), 256)
    magnitudes = codebooks.iq3_xxs_grid()[b["qs"]].reshape(len(b), 256)
    scales = _f32(b["d"]) * ((words >> 28).astype(np.float32) + np.float32(0.5)) * np.float32(0.5)
    return _scaled(scales, magnitudes * signs)


def _decode_iq3_s(b: np.ndarray) -> np.ndarray:
    index = b["qs"] | _unpack(b["qh"], 1, 1).astype(np.uint16) << 8
    magnitudes = codebooks.iq3_s_grid()[index].reshape(len(b), 256)
    scales = _f32(b["d"]) * (2 * _unpack(b["scales"], 4, 1) + 1)
    return _scaled(scales, magnitudes * _signs(b))


def _dequantize(layout: np.dtype, weights: int, decode: Callable, data: np.ndarray) -> np.ndarray:
    """The numbers of uint8 [..., n * nbytes] as float32 [..., n * weights]."""
    blocks = np.ascontiguousarray(data).reshape(-1).view(layout)
    numbers = np.empty((len(blocks), weights), np.float32)
    step = _CHUNK // weights
    # A damaged file may hold scales that are infinite or not a number; what comes of them is for the caller to judge.
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(blocks), step):
            chunk = decode(blocks[start : start + step])
            numbers[start : start + step] = chunk.reshape(-1, weights)
    return numbers.reshape(*data.shape[:-1], data.shape[-1] // layout.itemsize * weights)


def _quantize(layout: np.dtype, weights: int, encode: Callable, array: np.ndarray) -> np.ndarray:
    """The blocks of numbers [..., n * weights] as uint8 [..., n * nbytes]."""
    numbers = array.reshape(-1, weights)
    blocks = np.empty(len(numbers), layout)
    step = _CHUNK // weights
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(numbers), step):
            chunk = encode(np.ascontiguousarray(numbers[start : start + step], np.float32))
            blocks[start : start + step] = chunk.reshape(-1)
    return blocks.view(np.uint8).reshape(*array.shape[:-1], array.shape[-1] // weights * layout.itemsize)


def _block(ggml_type: int, weights: int, layout: np.dtype, decode: Callable, encode: Callable | None = None) -> Block:
    return Block(
        ggml_type,
        weights,
        layout,
        partial(_dequantize, layout, weights, decode),
        encode and partial(_quantize, layout, weights, encode),
    )


BLOCKS = {
    "F32": _block(0, 1, _F32, _decode_float, _encode_f32),
    "F16": _block(1, 1, _F16, _decode_float, _encode_f16),
    "BF16": _block(30, 1, _BF16, _decode_bf16, _encode_bf16),
    "Q4_0": _block(2, 32, _Q4_0, _decode_q4_0),
    "Q4_1": _block(3, 32, _Q4_1, _decode_q4_1),
    "Q5_0": _block(6, 32, _Q5_0, _decode_q5_0),
    "Q5_1": _block(7, 32, _Q5_1, _decode_q5_1),
    "Q8_0": _block(8, 32, _Q8_0, _decode_q8_0, _encode_q8_0),
    "Q2_K": _block(10, 256, _Q2_K, _decode_q2_k),
    "Q3_K": _block(11, 256, _Q3_K, _decode_q3_k),
    "Q4_K": _block(12, 256, _Q4_K, _decode_q4_k),
    "Q5_K": _block(13, 256, _Q5_K, _decode_q5_k),
    "Q6_K": _block(14, 256, _Q6_K, _decode_q6_k),
    "IQ3_XXS": _block(18, 256, _IQ3_XXS, _decode_iq3_xxs),
    "IQ4_NL": _block(20, 32, _IQ4_NL, _decode_iq4_nl),
    "IQ3_S": _block(21, 256, _IQ3_S, _decode_iq3_s),
    "IQ2_S": _block(22, 256, _IQ2_S, _decode_iq2_s),
    "IQ4_XS": _block(23, 256, _IQ4_XS, _decode_iq4_xs),
}


#: The types whose numbers stand alone, and the numpy type that carries their bits: numpy has no bfloat16.
PLAIN = {"F32": _F32, "F16": _F16, "BF16": _BF16}
_PLAIN_NAMES = {dtype: name for name, dtype in PLAIN.items()}


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as it lies in a file: `data` is uint8 [rows, bytes of a row], often a read-only view of a mapped file.

    `shape` is in numpy's order, rows first; all but the last dimension are flattened to rows.
    """

    type: str
    shape: tuple[int, ...]
    data: np.ndarray

    def __post_init__(self):
        block = block_named(self.type)
        if not self.shape or self.shape[-1] % block.weights:
            raise InputError(
                f"shape {self.shape} has no rows that can be cut into {self.type} blocks of {block.weights} numbers; "
                "F32 and F16 take any row"
            )
        wanted = (math.prod(self.shape[:-1]), self.shape[-1] // block.weights * block.nbytes)
        if self.data.shape != wanted or self.data.dtype != np.uint8:
            raise InputError(
                f"{self.type} data of shape {self.shape} is uint8 {wanted}, "
                f"but {self.data.dtype} {self.data.shape} was given"
            )

    @classmethod
    def from_array(cls, array: np.ndarray, type: str = "F32") -> "Tensor":
        """`array` as a tensor of one of the types that can be written: F32, F16, BF16, Q8_0."""
        quantize = block_named(type).quantize
        if quantize is None:
            able = ", ".join(name for name, block in BLOCKS.items() if block.quantize)
            raise InputError(f"numbers cannot be written as {type}; they can as {able}")
        if array.ndim == 0 or array.shape[-1] % BLOCKS[type].weights:
            raise InputError(
                f"an array of shape {array.shape} has no rows that can be cut into {type} blocks of "
                f"{BLOCKS[type].weights} numbers; F32 and F16 take any row"
            )
        data = quantize(array)
        return cls(type, array.shape, data.reshape(-1, data.shape[-1]))

    @classmethod
    def from_bits(cls, array: np.ndarray) -> "Tensor":
        """The numbers of `array` as they are stored in it, see `PLAIN`; a view if its rows lie one behind the other."""
        rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
        return cls(_PLAIN_NAMES[array.dtype], array.shape, rows.view(np.uint8))

    @property
    def bits(self) -> np.ndarray:
        """A view of a tensor of a plain type as `from_bits` takes it."""
        return self.data.view(PLAIN[self.type]).reshape(self.shape)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def dequantize(self, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """float32 of rows start:stop, [rows, shape[-1]], or of all of them in `shape` when neither is given."""
        numbers = BLOCKS[self.type].dequantize(self.data[start:stop])
        return numbers.reshape(self.shape) if start is None and stop is None else numbers


def tensor_bytes(type: str, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor. Computed in Python's integers, which do not wrap whatever a file claims."""
    block = BLOCKS[type]
    return math.prod(shape) // block.weights * block.nbytes


def block_named(name: str) -> Block:
    """The block type of this name; InputError lists the names there are."""
    try:
        return BLOCKS[name]
    except KeyError:
        raise InputError(f"no tensor type is called {name!r}; there are {', '.join(BLOCKS)}") from None
