"""A checkpoint folder in the official layout: config.json, safetensors, tokenizer.json. Data only, read without torch.

The safetensors library checks a file's header (ranges, sizes, overlaps); the tensors are then views of the mapped file,
in whatever type they are stored, because numpy has no bfloat16.
"""

import json
import math
import mmap
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from handlens.config import ModelConfig, official_config
from handlens.errors import ModelFileError
from handlens.gguf.blocks import Tensor
from handlens.gguf.names import fix_ffn_names, to_gguf_language, to_gguf_vision

MAX_JSON_BYTES = 16 << 20
#: The official index has 741 tensors; a header of many more is refused before it is parsed any further.
MAX_TENSORS = 65_536
MAX_HEADER_BYTES = 32 << 20

#: safetensors type -> block type, and the numpy type that carries its bits.
_TYPES = {"F32": ("F32", np.dtype("<f4")), "F16": ("F16", np.dtype("<f2")), "BF16": ("BF16", np.dtype("<u2"))}

#: Files whose format can run code when it is read.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds. The tensors have the names and the layout of GGUF files, and their stored types."""

    config: ModelConfig
    language: dict[str, Tensor]
    vision: dict[str, Tensor]


def open_checkpoint(folder: Path, *, position_mode: str | None = None) -> Checkpoint:
    """The checkpoint in a folder; ModelFileError names what is missing or wrong. `position_mode` replaces its own."""
    preprocessor = folder / "preprocessor_config.json"
    config = official_config(
        read_json(folder / "config.json"), read_json(preprocessor) if preprocessor.exists() else None
    )
    if position_mode is not None:
        config = replace(config, vision=replace(config.vision, position_mode=position_mode))
    stored = {}
    for path in weight_files(folder):
        for name, tensor in read_safetensors(path).items():
            if name in stored:
                raise ModelFileError(f"{folder}: tensor {name!r} stands in more than one file")
            stored[name] = tensor
    llm = config.llm
    return Checkpoint(
        config,
        _regrouped(
            stored, ("llm.",), lambda part: to_gguf_language(part, llm.num_attention_heads, llm.num_key_value_heads)
        ),
        _regrouped(stored, ("vpm.", "resampler."), to_gguf_vision),
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; a folder that has only pickles is refused with the reason."""
    files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if not files and pickles:
        raise ModelFileError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when they are read; "
            "handlens reads safetensors and GGUF only"
        )
    if not files:
        raise ModelFileError(f"{folder} holds no *.safetensors files")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of bounded size."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are accepted")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds a {type(content).__name__}; a JSON object is wanted")
    return content


def read_safetensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> (block type, array in the stored shape): read-only views of the mapped file, bfloat16 as its bits."""
    header, start = _header(path)
    try:
        with safe_open(path, framework="numpy") as checked:
            names = set(checked.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a sound safetensors file: {error}") from None
    with path.open("rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    tensors = {}
    for name, entry in header.items():
        if name not in names:  # the __metadata__ of strings
            continue
        if entry["dtype"] not in _TYPES:
            raise ModelFileError(f"{path}: tensor {name!r} holds {entry['dtype']}; {', '.join(_TYPES)} are read")
        kind, dtype = _TYPES[entry["dtype"]]
        first, last = entry["data_offsets"]
        tensors[name] = kind, data[start + first : start + last].view(dtype).reshape(entry["shape"])
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data starts; duplicate names are refused, which JSON allows."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else math.inf
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ModelFileError(
                    f"{path} is not a sound safetensors file: its header says {length} bytes, the file has {size} and "
                    f"at most {MAX_HEADER_BYTES} are accepted"
                )
            text = file.read(int(length))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise ModelFileError(f"{path} has more than {MAX_TENSORS} tensors")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not a sound safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise ModelFileError(f"{path} is not a sound safetensors file: its header is no JSON object")
    return header, 8 + int(length)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("its header has a name twice")
    return dict(pairs)


def _regrouped(stored, prefixes, rename) -> dict[str, Tensor]:
    """The tensors under `prefixes` with GGUF's names and layout. Renaming permutes and splits but never computes, so it
    works on arrays of any type; each type goes through on its own."""
    regrouped = {}
    part = {name: value for name, value in stored.items() if name.startswith(prefixes)}
    kinds = {kind for kind, _ in part.values()}
    for kind in kinds:
        arrays = rename({name: array for name, (stored_kind, array) in part.items() if stored_kind == kind})
        for name, array in arrays.items():
            rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
            regrouped[name] = Tensor(kind, array.shape, rows.view(np.uint8))
    return regrouped
