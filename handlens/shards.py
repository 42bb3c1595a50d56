"""Writes safetensors as a checkpoint has them: one file, or several of bounded size with an index.

The library's own writer wants all tensors of a file in memory; here one is made at a time. Format: the README of
safetensors (a length, a JSON header, the data) and transformers' model.safetensors.index.json.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from handlens.gguf.blocks import Tensor
from handlens.gguf.writer import DeferredTensor

#: Bytes of tensors in a file, at most, as transformers cuts them.
SHARD_BYTES = 5_000_000_000

Tensors = Mapping[str, Tensor | DeferredTensor]


def write_shards(
    folder: Path,
    tensors: Tensors,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Writes tensors of plain types into a folder. `progress` is told the bytes of each when it was written."""
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        _write(folder / "model.safetensors", tensors, progress)
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(folder / name, shard, progress)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": _nbytes(tensors)}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Tensors, shard_bytes: int) -> list[Tensors]:
    """The tensors in order, cut where a file would become too large; one that is too large has a file of its own."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _write(path: Path, tensors: Tensors, progress: Callable[[int], None]) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": tensor.type, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data begin at a multiple of 8
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.data))
            progress(tensor.nbytes)
        file.flush()
        os.fsync(file.fileno())
