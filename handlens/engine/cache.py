"""Encoded images kept for the next question about them: bounded bytes, least recently used out first."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from handlens.backend import Backend, Progress
from handlens.engine.store import ImageStore
from handlens.images import SlicedImage


class ImageCache:
    """Encodes images with a backend and remembers their vectors.

    The key holds everything that the vectors depend on: the digest of the image's pixels and slicing and, where the
    position mode looks at it, the longest slice of the request. A cache belongs to one backend, so to one model. What
    is not remembered may lie in a store on the disk, where the key names the model too.
    """

    def __init__(self, backend: Backend, max_bytes: int, store: ImageStore | None = None):
        self.backend = backend
        self.max_bytes = max_bytes
        self.store = store
        self.bytes = 0
        self.entries: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self.coming: dict[tuple, threading.Event] = {}  # what other requests are computing
        self.lock = threading.Lock()

    def encode(
        self, images: Sequence[SlicedImage], progress: Progress | None = None, longest: int | None = None
    ) -> list[np.ndarray]:
        """The vectors of each image, [slices * Q, D] float32; what is remembered is not computed, and what another
        request computes is waited for.

        `longest` is the patch count of the longest slice of the request; it must be given if `images` are not all.
        """
        longest = longest or longest_slice(images)
        keys = [self.key(image, longest) for image in images]
        found = {key: self._recall(key, image) for key, image in zip(keys, images, strict=True)}
        missing = {key: image for key, image in zip(keys, images) if found[key] is None}
        with self.lock:
            own = {key: image for key, image in missing.items() if key not in self.coming}
            others = {key: self.coming[key] for key in missing.keys() - own.keys()}
            self.coming |= {key: threading.Event() for key in own}
        try:
            if own:
                vectors = self.backend.encode(list(own.values()), longest, progress)
                for key, vector in zip(own, vectors):
                    found[key] = vector
                    self._remember(key, vector)
                    if self.store:
                        self.store.put(self._name(key), vector)
        finally:
            with self.lock:
                arrived = [self.coming.pop(key) for key in own]
            for event in arrived:
                event.set()
        for key, event in others.items():
            event.wait()
            # Again, for the other request may have failed.
            (found[key],) = self.encode([missing[key]], progress, longest)
        return [found[key] for key in keys]

    def key(self, image: SlicedImage, longest: int) -> tuple:
        """All that the vectors of an image depend on."""
        mode = self.backend.config.vision.position_mode
        return image.digest, longest if mode == "reference" else None

    def _name(self, key: tuple) -> str:
        return f"{self.backend.vision_key} {key}"

    def _recall(self, key: tuple, image: SlicedImage) -> np.ndarray | None:
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
                return self.entries[key]
        if self.store is None:
            return None
        resampler = self.backend.config.resampler
        vectors = self.store.get(self._name(key), (len(image.plan.sizes) * resampler.query_num, resampler.embed_dim))
        if vectors is not None:
            self._remember(key, vectors)
        return vectors

    def _remember(self, key: tuple, vectors: np.ndarray) -> None:
        with self.lock:
            if key in self.entries:
                return
            self.entries[key] = vectors
            self.bytes += vectors.nbytes
            while self.bytes > self.max_bytes:
                self.bytes -= self.entries.popitem(last=False)[1].nbytes


def longest_slice(images: Sequence[SlicedImage]) -> int:
    """The patch count of the longest slice of these images."""
    return max(rows * cols for image in images for rows, cols in image.plan.tgt_sizes)
