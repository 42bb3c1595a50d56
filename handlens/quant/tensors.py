"""One tensor in another type, piece by piece, by the kernels where they were built."""

from collections.abc import Iterator

import numpy as np

from handlens.cpu import ops
from handlens.cpu.backend import choose_arithmetic
from handlens.errors import ModelFileError
from handlens.gguf.blocks import BLOCKS, PLAIN, Tensor, block_named
from handlens.gguf.reader import release
from handlens.quant.encode import TYPES, encode

#: The most numbers that are worked on at a time by the kernels; numpy makes many float32 arrays of as many.
PIECE = 1 << 22
NUMPY_PIECE = 1 << 18

#: The largest number where scales are float16; the types that have room for every number of float32.
LARGEST = 65504.0
WIDE = ("F32", "BF16")
#: What a column counts at least, as a share of the mean: columns that no example used must not become anything at all.
LEAST_IMPORTANCE = 1e-6


def quantize_tensor(name: str, tensor: Tensor, type: str, importance: np.ndarray | None = None) -> Tensor:
    """The tensor as `type`, made so that the squares of the errors, times the importance [columns], add up to little.

    ModelFileError names the tensor when its rows are not whole blocks, or when its numbers cannot be stored so.
    """
    block = block_named(type)
    rows, columns = tensor.data.shape[0], tensor.shape[-1]
    if type not in (*PLAIN, *TYPES):
        raise ModelFileError(f"tensor {name} cannot be {type}, which is read but not written")
    if columns % block.weights:
        raise ModelFileError(
            f"tensor {name} cannot be {type}: its rows of {columns} numbers are not whole blocks of {block.weights}"
        )
    weighted = None if importance is None else _scaled(name, importance, columns)
    made = np.empty((rows, columns // block.weights * block.nbytes), np.uint8)
    done = 0
    for plain, numbers in _pieces(tensor, type):
        data, largest = _encoded(type, plain, numbers, weighted)
        if not np.isfinite(largest):
            raise ModelFileError(f"tensor {name} cannot be {type}: it holds numbers that are infinite or not a number")
        if type not in WIDE and largest > LARGEST:
            raise ModelFileError(
                f"tensor {name} cannot be {type}: it holds {largest:g}, and float16 ends at {LARGEST:g}; take BF16"
            )
        made[done : done + len(data)] = data
        done += len(data)
    return Tensor(type, tensor.shape, made)


def _scaled(name: str, importance: np.ndarray, columns: int) -> np.ndarray | None:
    """The importance in float32 with a mean of 1; None where it says nothing."""
    if importance.shape != (columns,):
        raise ModelFileError(f"tensor {name} has {columns} columns, but importance is given for {importance.size}")
    if not np.isfinite(importance).all() or (importance < 0).any():
        raise ModelFileError(f"tensor {name}: its importance holds numbers that are negative or not finite")
    mean = importance.mean(dtype=np.float64)
    return np.maximum(importance / mean, LEAST_IMPORTANCE).astype(np.float32) if mean > 0 else None


def _pieces(tensor: Tensor, type: str) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of a tensor with the plain type that they are stored in, uint8 [rows, bytes of a row]."""
    by_kernels = choose_arithmetic() is ops and type in TYPES
    step = max(1, (PIECE if by_kernels else NUMPY_PIECE) // tensor.shape[-1])
    for start in range(0, tensor.data.shape[0], step):
        if by_kernels and tensor.type in PLAIN:
            yield tensor.type, tensor.data[start : start + step]
        else:
            yield "F32", tensor.dequantize(start, start + step).view(np.uint8)
        release(tensor.data)


def _encoded(type: str, plain: str, data: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Rows of blocks, and the largest magnitude among the numbers, not a number if there is one."""
    if type in TYPES and choose_arithmetic() is ops:
        return ops.quantize(type, plain, data, importance)
    x = data.view(np.float32)
    largest = float(np.abs(x).max())
    if not largest <= LARGEST and type not in WIDE:
        return data, largest
    return encode(type, x, importance) if type in TYPES else BLOCKS[type].quantize(x), largest
