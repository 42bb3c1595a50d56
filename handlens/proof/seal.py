"""The seal of a model file: what its tensors, its keys and its stages were when it was made, kept inside the file.

A GGUF file says nothing that shows a changed weight or a changed rule (another position mode, another RoPE base): it
loads, and answers worse. The seal holds a digest of each tensor and of the keys, and of each stage of the computation a
few numbers of its output on the probe, computed in numpy. Other programs skip its keys, which begin with PREFIX.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from handlens.errors import ModelFileError
from handlens.gguf.blocks import Tensor
from handlens.gguf.reader import GGUFFile

#: Metadata as the writer takes it: key -> (type, value).
Metadata = Mapping[str, tuple[str, Any]]

PREFIX = "handlens.seal."
#: Numbers that are kept of each stage's output.
SAMPLES = 64
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Seal:
    """What a file was: digests of tensors by name and of the keys, samples [SAMPLES] of the stages by name."""

    tensors: dict[str, bytes]
    keys: bytes
    stages: dict[str, np.ndarray]

    def metadata(self) -> Metadata:
        """The keys that hold it in a GGUF file whose tensors have the same order."""
        return {
            f"{PREFIX}tensors": ("arr[u8]", np.frombuffer(b"".join(self.tensors.values()), np.uint8)),
            f"{PREFIX}keys": ("arr[u8]", np.frombuffer(self.keys, np.uint8)),
            f"{PREFIX}stages": ("arr[str]", list(self.stages)),
            f"{PREFIX}samples": ("arr[f32]", np.concatenate([[], *self.stages.values()]).astype(np.float32)),
        }


def make_seal(metadata: Metadata, tensors: Mapping[str, Tensor], outputs: Iterable[tuple[str, np.ndarray]]) -> Seal:
    """The seal of a file with these keys and tensors; `outputs` are the names and outputs of its stages."""
    stages = {name: sample(output) for name, output in outputs}
    return Seal({name: digest(tensor) for name, tensor in tensors.items()}, digest_of_keys(metadata), stages)


def read_seal(file: GGUFFile) -> Seal | None:
    """The seal in a file, None if there is none. ModelFileError if it does not belong to a file of so many tensors."""
    if f"{PREFIX}keys" not in file.metadata:
        return None
    tensors = file.require(f"{PREFIX}tensors", "arr[u8]").tobytes()
    names = file.require(f"{PREFIX}stages", "arr[str]")
    samples = file.require(f"{PREFIX}samples", "arr[f32]")
    if len(tensors) != DIGEST_BYTES * len(file.tensors) or samples.size != SAMPLES * len(names):
        raise ModelFileError(
            f"{file.path}: its seal is of a file with {len(tensors) // DIGEST_BYTES} tensors, but it holds "
            f"{len(file.tensors)}; tensors were added or taken away since it was sealed"
        )
    digests = [tensors[start : start + DIGEST_BYTES] for start in range(0, len(tensors), DIGEST_BYTES)]
    return Seal(
        dict(zip(file.tensors, digests, strict=True)),
        file.require(f"{PREFIX}keys", "arr[u8]").tobytes(),
        dict(zip(names, samples.reshape(len(names), SAMPLES), strict=True)),
    )


def unsealed_metadata(file: GGUFFile) -> dict[str, tuple[str, Any]]:
    """The metadata of a file without its seal, as the writer takes it."""
    return {key: (file.types[key], value) for key, value in file.metadata.items() if not key.startswith(PREFIX)}


def digest(tensor: Tensor) -> bytes:
    """SHA-256 of a tensor's type, shape and bytes."""
    found = hashlib.sha256(f"{tensor.type} {tensor.shape}\n".encode())
    found.update(np.ascontiguousarray(tensor.data))
    return found.digest()


def digest_of_keys(metadata: Metadata) -> bytes:
    """SHA-256 of all keys with their types and values; their order does not count."""
    values = {
        key: (kind, value.tolist() if isinstance(value, np.ndarray) else value)
        for key, (kind, value) in metadata.items()
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()


def sample(output: np.ndarray) -> np.ndarray:
    """SAMPLES numbers of an array, evenly spread over it."""
    return output.ravel()[np.linspace(0, output.size - 1, SAMPLES).astype(np.int64)]
