"""A checkpoint folder in the official layout: config.json, safetensors, tokenizer.json. Data only, read without torch.

The safetensors library checks a file's header (ranges, sizes, overlaps); the tensors are then views of the mapped file,
in whatever type they are stored, because numpy has no bfloat16.
"""

import json
import math
import mmap
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from handlens.config import ModelConfig, Scaling, official_config
from handlens.errors import ModelFileError
from handlens.gguf.blocks import PLAIN, Tensor
from handlens.gguf.convert import convert, folded_factor
from handlens.gguf.names import fix_ffn_names, language_names, to_gguf_language, to_gguf_vision, vision_names

MAX_JSON_BYTES = 16 << 20
#: The official index has 741 tensors, and headers take some 120 bytes a tensor.
MAX_TENSORS = 8192
MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS = 4

#: Files whose format can run code when it is read.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds. The tensors have the names of GGUF files (ffn names by role), their layout, and their stored
    types."""

    config: ModelConfig
    language: dict[str, Tensor]
    vision: dict[str, Tensor]


def open_checkpoint(folder: Path, *, position_mode: str | None = None) -> Checkpoint:
    """The checkpoint in a folder; ModelFileError names what is missing or wrong. `position_mode` replaces its own."""
    config, stored = read_checkpoint(folder)
    if position_mode is not None:
        config = replace(config, vision=replace(config.vision, position_mode=position_mode))
    llm, vision = config.llm, config.vision
    stored = {name: _folded(name, array, config.scaling) for name, array in stored.items()}
    language = _as_tensors(to_gguf_language(stored, llm.num_attention_heads, llm.num_key_value_heads))
    tower = fix_ffn_names(
        _as_tensors(to_gguf_vision(stored, config.family.tower)), vision.hidden_size, vision.intermediate_size
    )
    return Checkpoint(replace(config, scaling=Scaling()), language, tower)


def _folded(name: str, array: np.ndarray, scaling: Scaling) -> np.ndarray:
    """The array, or in float32 its product with the factor of the weights of this name."""
    factor = folded_factor(scaling, name)
    return array if factor == 1.0 else convert(name, Tensor.from_bits(array), "F32", factor).bits


def read_checkpoint(folder: Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The config in a folder and the tensors under their official names, as `read_safetensors` reads them: none is
    missing, and none is there that the model does not have."""
    files = weight_files(folder)
    values = read_json(folder / "config.json")
    preprocessor = folder / "preprocessor_config.json"
    config = official_config(values, read_json(preprocessor) if os.path.exists(preprocessor) else None)
    stored: dict[str, np.ndarray] = {}
    for path in files:
        tensors = read_safetensors(path)
        if twice := stored.keys() & tensors.keys():
            raise ModelFileError(f"{folder}: tensor {min(twice)!r} stands in {path.name} and in another file")
        stored |= tensors
    tied = values.get("tie_word_embeddings") is True and "llm.lm_head.weight" not in stored
    language = language_names(config.llm.num_hidden_layers, tied=tied)
    vision = vision_names(config.vision.num_hidden_layers, config.family.tower)
    check_names(folder, stored, {*language.values(), *vision.values()})
    return config, stored


def check_names(where: Path, held: Collection[str], wanted: Collection[str]) -> None:
    """ModelFileError that names the tensors that a file or folder lacks, and those that have no place in the model."""
    missing, extra = sorted(set(wanted) - set(held)), sorted(set(held) - set(wanted))
    if missing or extra:
        problems = [f"lacks {_some(missing)}"] * bool(missing) + [f"holds {_some(extra)} of no known use"] * bool(extra)
        raise ModelFileError(f"{where} {' and '.join(problems)}; it is incomplete or of another model")


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; a folder that has only pickles is refused with the reason."""
    files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for suffix in PICKLE_SUFFIXES for path in folder.glob(f"*{suffix}"))
    if not files and pickles:
        raise ModelFileError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when they are read; "
            "handlens reads safetensors and GGUF only"
        )
    if not files:
        raise ModelFileError(f"{folder} holds no model: neither a GGUF file nor *.safetensors files")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of bounded size."""
    try:
        content = json.loads(_read(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds a {type(content).__name__}; a JSON object is wanted")
    return content


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Name -> array in the stored shape: read-only views of the mapped file, bfloat16 as its bits."""
    header, start = _read_header(path)
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening is the check
        with path.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a sound safetensors file: {error}") from None
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in PLAIN:  # safetensors and GGUF call them alike
            raise ModelFileError(f"{path}: tensor {name!r:.200} holds {entry['dtype']}; {', '.join(PLAIN)} are read")
        shape, (first, last) = entry["shape"], entry["data_offsets"]
        if not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
            raise ModelFileError(
                f"{path}: tensor {name!r:.200} has shape {shape}; from 1 to {MAX_DIMENSIONS} dimensions are wanted, "
                "none of them 0"
            )
        tensors[name] = data[start + first : start + last].view(PLAIN[entry["dtype"]]).reshape(shape)
    return tensors


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file by name, and where its data start.

    The library takes the last of two entries with one name; here they are refused.
    """
    head = _read(path, math.inf, 8 + MAX_HEADER_BYTES)
    if head.startswith(b"version https://git-lfs"):
        raise ModelFileError(
            f"{path} is a Git LFS pointer, the note that stands for the file in a repository; fetch the file with "
            "`git lfs pull`"
        )
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= len(head) - 8:
        raise ModelFileError(
            f"{path} is not a sound safetensors file: its header should have {length} bytes; from 2 to "
            f"{max(len(head) - 8, 2)} fit or are accepted"
        )
    try:
        header = json.loads(head[8 : 8 + length].decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not a sound safetensors file: {error}") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise ModelFileError(
            f"{path} is not a sound safetensors file: its header is no JSON object of at most {MAX_TENSORS} tensors"
        )
    header.pop("__metadata__", None)
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _read(path: Path, most: float, count: int = -1) -> bytes:
    """The first `count` bytes of a file, which may have `most` bytes in all."""
    if not os.path.isfile(path):  # asked before opening, which would wait forever on a named pipe
        raise ModelFileError(f"there is no file {path}")
    try:
        if path.stat().st_size > most:
            raise ModelFileError(f"{path} has {path.stat().st_size} bytes; at most {most} are accepted")
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None


def _as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The arrays as tensors of the types that they are stored in; nothing is copied but what was transposed."""
    return {name: Tensor.from_bits(array) for name, array in arrays.items()}
