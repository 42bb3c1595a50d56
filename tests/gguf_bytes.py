"""Raw GGUF bytes, put together by hand: for files that no honest writer writes.

It shares no code with the package, so that a fault in our writer cannot hide the same fault in our reader.
"""

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
FORMATS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string(text, length=None) -> bytes:
    """A string with its length in front, or with another length than its own."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def key(name, kind: int, payload: bytes) -> bytes:
    """One metadata pair; `payload` is the value as it lies in the file."""
    return string(name) + struct.pack("<I", kind) + payload


def scalar(name, kind: int, value) -> bytes:
    return key(name, kind, string(value) if kind == STR else struct.pack("<" + FORMATS[kind], value))


def array(name, kind: int, values, length=None) -> bytes:
    """A metadata array, or one that claims another length than its own."""
    items = [string(value) if kind == STR else struct.pack("<" + FORMATS[kind], value) for value in values]
    return key(name, ARR, struct.pack("<IQ", kind, len(items) if length is None else length) + b"".join(items))


def entry(name, dims, kind: int = 0, offset: int = 0, n_dims=None) -> bytes:
    """One tensor entry; `dims` in the file's order, the length of a row first."""
    count = len(dims) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def gguf(keys=(), entries=(), data=b"", *, version=3, n_keys=None, n_tensors=None, alignment=32, order="<") -> bytes:
    """A whole file. Counts, version and byte order may lie."""
    counts = (len(entries) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
    head = b"GGUF" + struct.pack(order + "IQQ", version, *counts) + b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


def small() -> bytes:
    """A sound file with every value type in its metadata and two tensors; the data end with the last byte."""
    keys = [
        scalar("general.architecture", STR, "test"),
        scalar("a.bool", BOOL, True),
        *(scalar(f"a.{FORMATS[kind]}", kind, 7) for kind in FORMATS if kind != BOOL),
        *(array(f"a.array.{FORMATS[kind]}", kind, [1, 0, 1]) for kind in FORMATS),
        array("a.tokens", STR, ["a", "", "ä", "\U0001f50d", "longer text"]),
        array("a.nothing", F32, []),
    ]
    entries = [entry("first", [8, 2], 0, 0), entry("second", [32, 16], 8, 64)]
    return gguf(keys, entries, bytes(range(64)) + bytes(i * 7 % 256 for i in range(16 * 34)))
