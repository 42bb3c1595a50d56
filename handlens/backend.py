"""What a backend is: the model's arithmetic, without any idea of prompts, sampling or requests.

The device side has one (`cpu/backend.py`); anything that offers these methods can stand in its place.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from handlens.config import ModelConfig
from handlens.images import SlicedImage

#: Called after each encoded slice with (slices done, slices in all).
Progress = Callable[[int, int], None]


class Cache(Protocol):
    """Keys and values of one sequence. `length` positions are filled; a failed forward leaves it as it was."""

    length: int

    @property
    def nbytes(self) -> int: ...

    def copy(self, length: int | None = None) -> "Cache": ...

    def truncate(self, length: int) -> None: ...


class Backend(Protocol):
    """n positions of new input, D the width of the language model, V the vocabulary, Q queries a slice."""

    config: ModelConfig
    #: Whether a position's results have the same bits whatever other positions are in the call.
    row_independent: bool
    #: Whether a position's results have other bits as a prompt's than as one of an answer.
    prompts_differ: bool
    #: All that vectors of images depend on besides the image: the weights and the way of computing.
    vision_key: str

    def encode(self, images: Sequence[SlicedImage], longest: int, progress: Progress | None = None) -> list[np.ndarray]:
        """The vectors of each image, [its slices * Q, D] float32. `longest` is the patch count of the longest slice of
        the whole request, which the position mode `reference` depends on."""

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """The embeddings [n, D] of token ids [n]."""

    def new_cache(self) -> Cache:
        """An empty cache for one sequence."""

    def forward(
        self,
        inputs: Sequence[np.ndarray],
        caches: Sequence[Cache],
        tails: Sequence[int] | None = None,
        prompt: bool = False,
    ) -> np.ndarray:
        """The logits [sequences, V] after the last position of each sequence's new inputs [n_i, D]; with `tails`, those
        after the last so many positions of each, one behind the other. `prompt`: the new positions are a prompt's and
        not those of an answer."""
