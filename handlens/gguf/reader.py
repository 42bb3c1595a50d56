"""Reads GGUF files, which come from strangers: whatever a file says is checked before it is believed.

A file is mapped read-only. Its head (metadata, then one entry a tensor) is read through a `_Cursor` that cannot leave
the file, and no length is used before it was compared with the bytes that are there. Tensors are views of the map.

Format: docs/gguf.md of ggml. What llama.cpp refuses is refused here too, save gaps between tensors and longer names.
"""

import itertools
import math
import mmap
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from handlens.errors import ModelFileError
from handlens.gguf.blocks import BLOCKS, Tensor, tensor_bytes

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 2 and 3 differ only in that 3 may be big-endian, which is refused
DEFAULT_ALIGNMENT = 32

#: Published language files have some 30 keys and 300 tensors, the largest mixtures of experts about 2,000 tensors.
MAX_KEYS = 65_536
MAX_TENSORS = 65_536
#: The format's own limit.
MAX_KEY_BYTES = 65_535
#: llama.cpp allows 63; other programs wrote longer ones.
MAX_TENSOR_NAME_BYTES = 127
#: One token or merge. The longest real ones have a few hundred bytes.
MAX_ARRAY_STRING_BYTES = 65_536
#: Strings of an array. The largest vocabularies have 0.3 million tokens and 0.5 million merges.
MAX_ARRAY_STRINGS = 4_194_304
#: Metadata and tensor entries together: some 8 MB for Llama 3, and 20 MB more where a tokenizer.json is embedded.
#: Python objects take up to seven times the bytes of short strings, so this bounds what a hostile file can make us use.
MAX_HEAD_BYTES = 64 << 20
MAX_DIMENSIONS = 4
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 20

#: Value types of the metadata: name -> (number in the file, numpy type). Strings and arrays have no fixed size.
SCALARS = {
    "u8": (0, np.dtype("u1")),
    "i8": (1, np.dtype("i1")),
    "u16": (2, np.dtype("<u2")),
    "i16": (3, np.dtype("<i2")),
    "u32": (4, np.dtype("<u4")),
    "i32": (5, np.dtype("<i4")),
    "f32": (6, np.dtype("<f4")),
    "bool": (7, np.dtype("?")),
    "u64": (10, np.dtype("<u8")),
    "i64": (11, np.dtype("<i8")),
    "f64": (12, np.dtype("<f8")),
}
STRING, ARRAY = 8, 9

_SCALAR_NAMES = {number: name for name, (number, _) in SCALARS.items()}
_TENSOR_TYPES = {block.ggml_type: name for name, block in BLOCKS.items()}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

#: What people give instead of a GGUF file: how the first bytes look, what to say. Safetensors come first because they
#: begin with a length, whose bytes may be those of any other mark.
_IMPOSTORS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (
        lambda head: len(head) > 8 and head[8:9] == b"{" and _U64.unpack_from(head)[0] < 1 << 32,
        "is a safetensors file, not GGUF; convert the checkpoint first (`handlens convert`)",
    ),
    (
        lambda head: head.startswith(b"version https://git-lfs"),
        "is a Git LFS pointer, the note that stands for the model in a repository, not the model itself; "
        "fetch the file with `git lfs pull` or download it from the model page",
    ),
    (
        lambda head: head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")),
        "is a web page (HTML), probably an error page saved under the model's name; download the model again",
    ),
    (
        lambda head: head.lstrip().startswith(b'{"'),
        "is JSON text, perhaps a server's error message saved under the model's name; download the model again",
    ),
    (
        lambda head: head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")),
        "is a pickle or a zip archive, as PyTorch's .bin and .pt files are; pickle can run code when it is read, so it "
        "is refused; give a GGUF file, or the safetensors files of the same model",
    ),
    (
        lambda head: head.startswith((b"lmgg", b"fmgg", b"tjgg")),
        "is in one of the formats that came before GGUF (2023), which are not read; download a GGUF file of the model",
    ),
    (
        lambda head: head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"(\xb5/\xfd", b"7z\xbc\xaf")),
        "is compressed; unpack it first",
    ),
)


class GGUFFile:
    """An open GGUF file: `path`, `version`, `alignment`, and three mappings in the file's order.

    `metadata`  key -> str, int, float, bool, list[str], or a read-only numpy array of the stored type
    `types`     key -> name of the value's type ("u32", "str", "arr[f32]"), as `write_gguf` wants it
    `tensors`   name -> Tensor, a read-only view of the mapped file; nothing is read until it is used

    Raises ModelFileError for anything that is not a whole and sound GGUF file. Closing gives up the views held here;
    the file stays mapped as long as a tensor taken from it lives.

    `up_to` a key: nothing behind that key is read, to tell many files apart quickly.
    """

    def __init__(self, path, *, up_to: str | None = None):
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.types: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        mapped = self._map()
        try:
            start, entries = self._read(mapped, up_to)
        except BaseException:
            mapped.close()
            raise
        data = np.frombuffer(mapped, np.uint8)
        for entry in entries:
            view = data[start + entry.offset :][: entry.nbytes].reshape(math.prod(entry.shape[:-1]), -1)
            self.tensors[entry.name] = Tensor(entry.type, entry.shape, view)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        """Gives up the tensors; the file is unmapped with the last of them."""
        self.tensors = {}

    def require(self, key: str, kind: type | str) -> Any:
        """The value of `key`, which must be there and be a `kind`.

        `kind` is a Python type (str, int, float, bool, list, np.ndarray) or, exactly, a stored type ("arr[f32]").
        """
        wanted = kind if isinstance(kind, str) else kind.__name__
        if key not in self.metadata:
            self._refuse(f"has no metadata key {key!r} ({wanted}), which is needed; is it a file of this model?")
        value = self.metadata[key]
        # isinstance() would let a bool pass for an int.
        if (self.types[key] if isinstance(kind, str) else type(value)) != kind:
            self._refuse(f"metadata key {key!r} holds {self.types[key]}, but {wanted} is wanted")
        return value

    def get(self, key: str, kind: type | str, default: Any) -> Any:
        """The value of `key`, `default` when it is missing; a value of another type is still an error."""
        return self.require(key, kind) if key in self.metadata else default

    def _refuse(self, reason: str) -> NoReturn:
        raise ModelFileError(f"{self.path}: {reason}")

    def _map(self) -> mmap.mmap:
        try:
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):  # asked before opening, which would wait forever on a named pipe
                self._refuse("is not a file" + (" but a folder" if stat.S_ISDIR(status.st_mode) else ""))
            if status.st_size == 0:
                self._refuse("is empty; download it again")
            with self.path.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror or error}")
        except ValueError as error:  # a NUL in the path, or emptied since it was asked
            self._refuse(f"cannot be read: {error}")

    def _read(self, mapped: mmap.mmap, up_to: str | None) -> tuple[int, list["_Entry"]]:
        """Where the tensors' data begin, and the entries, all of them sound."""
        self._check_start(mapped)
        cursor = _Cursor(self.path, mapped, len(MAGIC) + _U32.size)
        tensor_count = cursor.count("tensor count", MAX_TENSORS)
        key_count = cursor.count("key count", MAX_KEYS)
        for _ in range(key_count):
            self._read_key(cursor)
            if up_to in self.metadata:
                return 0, []
        self.alignment = self._checked_alignment()
        entries = [self._read_entry(cursor) for _ in range(tensor_count)]
        start = -(-cursor.position // self.alignment) * self.alignment
        self._check_places(entries, start, len(mapped))
        return start, entries

    def _check_start(self, mapped: mmap.mmap) -> None:
        head = mapped[:256]
        if head[:4] != MAGIC:
            for looks_like, sentence in _IMPOSTORS:
                if looks_like(head):
                    self._refuse(sentence)
            self._refuse(f"is not a GGUF file: it begins with {head[:4]!r} instead of {MAGIC!r}")
        if len(head) < 8:
            self._refuse("ends after the first bytes of its header; download it again")
        self.version = _U32.unpack_from(head, 4)[0]
        if self.version in VERSIONS:
            return
        if int.from_bytes(head[4:8], "big") in VERSIONS:
            self._refuse("is a big-endian GGUF file; only little-endian ones are read")
        self._refuse(f"is GGUF version {self.version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")

    def _read_key(self, cursor: "_Cursor") -> None:
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        what = f"metadata key {key[:80]!r}"
        if not key:
            self._refuse("has a metadata key without a name")
        if key in self.metadata:
            self._refuse(f"has the {what} twice")
        kind = cursor.unpack(_U32, f"the type of {what}")
        if kind == STRING:
            self.types[key], self.metadata[key] = "str", cursor.string(what, MAX_HEAD_BYTES)
        elif kind != ARRAY:
            name = self._scalar_name(kind, what)
            self.types[key], self.metadata[key] = name, cursor.numbers(SCALARS[name][1], 1, what).item()
        elif (element := cursor.unpack(_U32, f"the element type of {what}")) == STRING:
            self.types[key], self.metadata[key] = "arr[str]", cursor.strings(what)
        else:
            name = self._scalar_name(element, what)
            length = cursor.unpack(_U64, f"the length of {what}")
            self.types[key], self.metadata[key] = f"arr[{name}]", cursor.numbers(SCALARS[name][1], length, what)

    def _scalar_name(self, number: int, what: str) -> str:
        if number == ARRAY:
            self._refuse(f"{what} holds arrays of arrays, which are not read")
        if number not in _SCALAR_NAMES:
            self._refuse(f"{what} holds values of type {number}, which GGUF does not have")
        return _SCALAR_NAMES[number]

    def _checked_alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        type_name = self.types.get("general.alignment", "u32")
        if type_name != "u32":
            self._refuse(f"general.alignment is stored as {type_name}, but u32 is wanted")
        if not is_alignment(alignment):
            self._refuse(
                f"general.alignment is {alignment}; a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT} is wanted"
            )
        return alignment

    def _read_entry(self, cursor: "_Cursor") -> "_Entry":
        name = cursor.string("a tensor name", MAX_TENSOR_NAME_BYTES)
        what = f"tensor {name!r}"
        dimensions = cursor.unpack(_U32, f"the dimensions of {what}")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            self._refuse(f"{what} has {dimensions} dimensions; from 1 to {MAX_DIMENSIONS} are allowed")
        shape = tuple(cursor.unpack(_U64, f"the shape of {what}") for _ in range(dimensions))[::-1]
        number = cursor.unpack(_U32, f"the type of {what}")
        offset = cursor.unpack(_U64, f"the offset of {what}")
        if number not in _TENSOR_TYPES:
            self._refuse(
                f"{what} holds blocks of ggml type {number}, which handlens does not read; it reads {', '.join(BLOCKS)}"
            )
        entry = _Entry(name, _TENSOR_TYPES[number], shape, offset)
        if 0 in shape:
            self._refuse(f"{what} has shape {shape}: it is empty")
        if shape[-1] % BLOCKS[entry.type].weights:
            self._refuse(
                f"{what} has rows of {shape[-1]} numbers, which are not whole {entry.type} blocks of "
                f"{BLOCKS[entry.type].weights}"
            )
        return entry

    def _check_places(self, entries: list["_Entry"], start: int, size: int) -> None:
        """Every tensor lies in the file, is aligned, has a name of its own and no byte that is another's."""
        names = set()
        for entry in entries:
            if not entry.name or entry.name in names:
                self._refuse(f"has the tensor {entry.name!r} twice" if entry.name else "has a tensor without a name")
            names.add(entry.name)
            if entry.offset % self.alignment:
                self._refuse(f"tensor {entry.name!r} starts at {entry.offset}, not at a multiple of {self.alignment}")
            if start + entry.end > size:
                self._refuse(
                    f"tensor {entry.name!r} of shape {entry.shape} ends at byte {start + entry.end}, but the file has "
                    f"{size}; it is damaged or was not downloaded to its end"
                )
        for first, second in itertools.pairwise(sorted(entries, key=lambda entry: entry.offset)):
            if first.end > second.offset:
                self._refuse(f"tensors {first.name!r} and {second.name!r} overlap")


@dataclass(frozen=True)
class _Entry:
    """What the head says of one tensor: `shape` in numpy's order, `offset` from the start of the data section."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return tensor_bytes(self.type, self.shape)

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


class _Cursor:
    """A place in the head of a mapped file. Every read first checks that the bytes are there."""

    def __init__(self, path: Path, mapped: mmap.mmap, position: int):
        self.path = path
        self.mapped = mapped
        self.position = position
        self.end = min(len(mapped), MAX_HEAD_BYTES)

    def unpack(self, layout: struct.Struct, what: str) -> int:
        """The next number."""
        return layout.unpack(self._take(layout.size, what))[0]

    def count(self, what: str, limit: int) -> int:
        """The next u64, at most `limit`."""
        count = self.unpack(_U64, f"the {what}")
        if count > limit:
            raise ModelFileError(f"{self.path}: the {what} is {count}; at most {limit} are accepted")
        return count

    def string(self, what: str, limit: int) -> str:
        """The next string, at most `limit` bytes of UTF-8."""
        length = self.unpack(_U64, f"the length of {what}")
        if length > limit:
            raise ModelFileError(f"{self.path}: {what} has {length} bytes; at most {limit} are accepted")
        try:
            return self._take(length, what).decode()
        except UnicodeDecodeError:
            raise ModelFileError(f"{self.path}: {what} is not UTF-8 text") from None

    def numbers(self, dtype: np.dtype, length: int, what: str) -> np.ndarray:
        """The next `length` numbers, a read-only array that holds its own bytes."""
        data = self._take(length * dtype.itemsize, what)
        if dtype.kind == "b" and data.strip(b"\0\1"):
            raise ModelFileError(f"{self.path}: {what} holds a truth value that is neither 0 nor 1")
        return np.frombuffer(data, dtype)

    def strings(self, what: str) -> list[str]:
        """The next array of strings. Vocabularies have some 400,000 of them, so this loop is written out."""
        count = self.count(f"length of {what}", MAX_ARRAY_STRINGS)
        mapped, end, unpack_length = self.mapped, self.end, _U64.unpack_from
        position = self.position
        found = []
        try:
            for _ in range(count):
                start = position + 8
                if start > end:
                    self._cut_short(start, what)
                position = start + unpack_length(mapped, position)[0]
                if position - start > MAX_ARRAY_STRING_BYTES:
                    raise ModelFileError(
                        f"{self.path}: string {len(found)} of {what} has {position - start} bytes; "
                        f"at most {MAX_ARRAY_STRING_BYTES} are accepted"
                    )
                if position > end:
                    self._cut_short(position, what)
                found.append(mapped[start:position].decode())
        except UnicodeDecodeError:
            raise ModelFileError(f"{self.path}: string {len(found)} of {what} is not UTF-8 text") from None
        self.position = position
        return found

    def _take(self, size: int, what: str) -> bytes:
        start, stop = self.position, self.position + size
        if stop > self.end:
            self._cut_short(stop, what)
        self.position = stop
        return self.mapped[start:stop]

    def _cut_short(self, stop: int, what: str) -> NoReturn:
        if stop <= len(self.mapped):
            raise ModelFileError(f"{self.path}: more than {MAX_HEAD_BYTES} bytes of metadata, which is not accepted")
        raise ModelFileError(
            f"{self.path}: {what} would end at byte {stop}, but the file has {len(self.mapped)}; "
            "it is damaged or was not downloaded to its end"
        )


def is_alignment(value: int) -> bool:
    """Whether tensors may be aligned to `value` bytes: a power of two, large enough for every number type."""
    return MIN_ALIGNMENT <= value <= MAX_ALIGNMENT and value & (value - 1) == 0


def release(data: np.ndarray) -> None:
    """Gives back the memory of a mapped file, of which this is a view; what is read again is mapped again."""
    while isinstance(data, np.ndarray):
        data = data.base
    mapped = data.obj if isinstance(data, memoryview) else data
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
