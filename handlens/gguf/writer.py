"""Writes GGUF files (version 3), whole or not at all.

The bytes go to a temporary file beside the target, which replaces it only when everything is on the disk: a reader
never sees half a file, and an old file survives every failure. Tensors are written one at a time, so one that is made
when it is asked for (`DeferredTensor`) costs memory only while it is written.
"""

import reprlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from handlens.atomic import replacing
from handlens.errors import InputError, ModelFileError
from handlens.gguf.blocks import BLOCKS, Tensor, tensor_bytes
from handlens.gguf.reader import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_DIMENSIONS,
    MAX_KEY_BYTES,
    MIN_ALIGNMENT,
    SCALARS,
    STRING,
    is_alignment,
    release,
)

#: Bytes that are written at a time.
PIECE_BYTES = 1 << 24

#: llama.cpp refuses longer tensor names.
MAX_TENSOR_NAME_BYTES = 63


@dataclass(frozen=True)
class DeferredTensor:
    """A tensor that is made when its turn to be written comes; type and shape are needed before, for the head."""

    type: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.type, self.shape)

    @property
    def data(self) -> np.ndarray:
        tensor = self.make()
        if (tensor.type, tensor.shape) != (self.type, self.shape):
            raise InputError(
                f"a tensor was announced as {self.type} {self.shape}, but {tensor.type} {tensor.shape} was made"
            )
        return tensor.data


def write_gguf(
    path,
    metadata: Mapping[str, tuple[str, Any]],
    tensors: Mapping[str, Tensor | DeferredTensor],
    alignment: int = DEFAULT_ALIGNMENT,
) -> None:
    """Writes `path` anew. `metadata` is key -> (type, value) with the type names that `GGUFFile.types` gives."""
    with replacing(Path(path), ModelFileError) as file:
        write_into(file, metadata, tensors, alignment)


def write_into(
    file: BinaryIO,
    metadata: Mapping[str, tuple[str, Any]],
    tensors: Mapping[str, Tensor | DeferredTensor],
    alignment: int = DEFAULT_ALIGNMENT,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Writes a GGUF file into an open, empty one. `progress` is told the bytes of each tensor when it was written."""
    if not is_alignment(alignment):
        raise InputError(f"alignment is {alignment}; a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT} is wanted")
    metadata = dict(metadata)
    if metadata.get("general.alignment", ("u32", DEFAULT_ALIGNMENT)) != ("u32", alignment):
        if "general.alignment" in metadata:
            raise InputError(f"general.alignment says {metadata['general.alignment']}, but alignment is {alignment}")
        metadata["general.alignment"] = ("u32", alignment)
    head = _head(metadata, tensors, alignment)
    file.write(head)
    _pad(file, alignment)
    for tensor in tensors.values():
        _put(file, np.ascontiguousarray(tensor.data))
        _pad(file, alignment)
        progress(tensor.nbytes)


def _put(file: BinaryIO, data: np.ndarray) -> None:
    """Writes rows; of a mapped file only some of them are in memory at a time."""
    step = max(1, PIECE_BYTES // max(1, data[:1].nbytes))
    for start in range(0, len(data), step):
        file.write(data[start : start + step])
        release(data)


def _head(metadata: Mapping, tensors: Mapping, alignment: int) -> bytes:
    """Everything before the tensors' data: counts, metadata, one entry a tensor."""
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, (type_name, value) in metadata.items():
        parts += [_name(key, "metadata key", MAX_KEY_BYTES), _value(key, type_name, value)]
    offset = 0
    for name, tensor in tensors.items():
        dimensions = len(tensor.shape)
        if not 1 <= dimensions <= MAX_DIMENSIONS or 0 in tensor.shape:
            raise InputError(
                f"tensor {name!r} has shape {tensor.shape}; from 1 to {MAX_DIMENSIONS} dimensions above 0 are wanted"
            )
        parts += [
            _name(name, "tensor name", MAX_TENSOR_NAME_BYTES),
            struct.pack(f"<I{dimensions}Q", dimensions, *reversed(tensor.shape)),
            struct.pack("<IQ", BLOCKS[tensor.type].ggml_type, offset),
        ]
        offset += -(-tensor.nbytes // alignment) * alignment
    return b"".join(parts)


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _name(text: str, what: str, limit: int) -> bytes:
    data = _string(text, what)
    if not 1 <= len(data) - 8 <= limit:
        raise InputError(f"the {what} {reprlib.repr(text)} has {len(data) - 8} bytes; from 1 to {limit} are allowed")
    return data


def _string(text: str, what: str) -> bytes:
    try:
        data = text.encode()
    except (AttributeError, UnicodeEncodeError):
        raise InputError(f"the {what} holds {reprlib.repr(text)}, which is not text of valid characters") from None
    return struct.pack("<Q", len(data)) + data


def _value(key: str, type_name: str, value: Any) -> bytes:
    """The type and value of one key as the file holds them."""
    what = f"metadata key {key!r}"
    if type_name == "str":
        return struct.pack("<I", STRING) + _string(value, what)
    if type_name == "arr[str]":
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_string(text, what) for text in value)
    is_array = type_name.startswith("arr[")
    element = type_name[4:-1] if is_array else type_name
    if element not in SCALARS:
        names = ", ".join(["str", *SCALARS])
        raise InputError(f"the {what} has type {type_name!r}; there are {names} and arr[...] of these")
    number, dtype = SCALARS[element]
    data = _exact(value, dtype)
    if data is None or data.ndim != is_array:
        raise InputError(f"the {what} holds {reprlib.repr(value)}, which cannot be written as {type_name}")
    head = struct.pack("<IIQ", ARRAY, number, data.size) if is_array else struct.pack("<I", number)
    return head + data.tobytes()


def _exact(value: Any, dtype: np.dtype) -> np.ndarray | None:
    """Numbers as `dtype`; None if they are no numbers, or whole numbers and truth values would not stay as they are."""
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            data = np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError):
        return None
    if dtype.kind == "f":
        return None if np.asarray(value).dtype.kind in "US" else data  # numpy would read numbers from text
    given = value.tolist() if isinstance(value, np.ndarray) else list(value) if data.ndim else value
    return data if data.tolist() == given else None
