"""Vectors of encoded images on the disk, so that the next process need not look at a picture again.

One safetensors file an image, written whole or not at all. A file holds vectors, never the picture, and its name is a
hash; but who has the model can read from the vectors what the picture shows, so the folder is as private as pictures.
What is read is not trusted: a file with another key, another size or damaged numbers counts as none.
"""

import hashlib
import logging
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from handlens.atomic import replacing
from handlens.errors import InputError

log = logging.getLogger("handlens")

#: The only files that are read or removed in the folder.
NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
#: What a file may take besides the numbers: its header with the key.
MAX_HEADER_BYTES = 1 << 14


class ImageStore:
    """A folder of vectors, at most `max_bytes` of files; those that were not used for the longest time go first.

    Several processes may share a folder.
    """

    def __init__(self, folder: Path, max_bytes: int = 1 << 30):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be used to keep encoded images: {error.strerror or error}") from None
        self.folder = folder
        self.max_bytes = max_bytes

    def get(self, key: str, shape: tuple[int, int]) -> np.ndarray | None:
        """The vectors that were kept under a key, float32 of this shape; None if there are none that can be used."""
        path = self._path(key)
        try:
            size = path.stat().st_size
        except OSError:
            return None
        try:
            vectors = _read(path, key, shape, size)
            path.touch()
        except (SafetensorError, OSError, ValueError) as error:
            log.warning("%s is not used, the image is encoded again: %s", path, error)
            return None
        return vectors

    def put(self, key: str, vectors: np.ndarray) -> None:
        """Keeps vectors. If that fails there is a notice, and nothing else."""
        path = self._path(key)
        data = save({"vectors": vectors}, {"key": key, "sha256": _checksum(vectors)})
        if len(data) > self.max_bytes:
            return
        try:
            with replacing(path, InputError) as file:
                file.write(data)
            self._make_room()
        except (InputError, OSError) as error:
            log.warning("an encoded image is not kept: %s", error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _make_room(self) -> None:
        files = []
        for path in self.folder.iterdir():
            if NAME.fullmatch(path.name):
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _read(path: Path, key: str, shape: tuple[int, int], size: int) -> np.ndarray:
    """The vectors in a file; ValueError says what is wrong with it."""
    wanted = 4 * shape[0] * shape[1]
    if not wanted < size <= wanted + MAX_HEADER_BYTES:
        raise ValueError(f"it has {size} bytes, and the vectors alone take {wanted}")
    with safe_open(path, framework="numpy") as file:
        facts = file.metadata() or {}
        if facts.get("key") != key:
            raise ValueError("it belongs to another image or another model")
        vectors = file.get_tensor("vectors")
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ValueError(f"it holds {vectors.dtype} {vectors.shape}; float32 {shape} is wanted")
    if facts.get("sha256") != _checksum(vectors):
        raise ValueError("its numbers are damaged")
    return vectors


def _checksum(vectors: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors)).hexdigest()
