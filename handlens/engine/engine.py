"""The only generation loop of the device side: requests come in, `step()` moves all of them on by one token.

Every caller drives the loop from its own thread while it waits for its next token, so callers that stream at the same
time are batched into the same steps, and nothing runs when nobody waits.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from handlens.backend import Backend, Cache, Progress
from handlens.engine.beam import BeamSearch
from handlens.engine.cache import ImageCache
from handlens.engine.sampling import Sampling, SamplingParams
from handlens.errors import ModelFileError
from handlens.processor import Inputs

#: Prompts are read in pieces of this many positions: their activations stay small, and other streams keep moving.
PREFILL_CHUNK = 512


@dataclass
class Sequence:
    """One sequence of tokens in the model: what it has read, and the inputs [n, D] that it has not read yet."""

    cache: Cache
    unread: np.ndarray

    def read(self, count: int) -> None:
        self.unread = self.unread[count:]


@dataclass
class Request:
    """One answer in the making: its live sequences (beam search has several) and how they go on."""

    live: list[Sequence]
    strategy: Sampling | BeamSearch
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return not self.live


class Engine:
    """Runs requests on one backend. Safe to call from many threads."""

    def __init__(self, backend: Backend, image_cache_bytes: int = 256 << 20):
        self.backend = backend
        self.images = ImageCache(backend, image_cache_bytes)
        self.requests: list[Request] = []
        self.lock = threading.RLock()

    def generate(
        self, inputs: Inputs, params: SamplingParams, stop_ids: tuple[int, ...], progress: Progress | None = None
    ) -> Iterator[int]:
        """The ids of one answer as they become certain, without the stop token that ends it.

        Beam search knows its answer only at the end. Closing the iterator frees the request.
        """
        request = self.submit(self.embeddings(inputs, progress), params, stop_ids)
        try:
            while True:
                while request.strategy.certain:
                    yield request.strategy.certain.popleft()
                with self.lock:
                    if request.error:
                        raise request.error
                    if request.done and not request.strategy.certain:
                        return
                    if not request.strategy.certain:
                        self.step()
        finally:
            self.cancel(request)

    def embeddings(self, inputs: Inputs, progress: Progress | None = None) -> np.ndarray:
        """The prompt [n, D]: token embeddings with the slices' vectors put in their places."""
        embeddings = self.backend.embed(inputs.input_ids)
        if inputs.images:
            vectors = np.concatenate(self.images.encode(inputs.images, progress))
            positions = np.concatenate([np.arange(start, end) for start, end in inputs.image_bound])
            embeddings[positions] = vectors
        return embeddings

    def submit(self, embeddings: np.ndarray, params: SamplingParams, stop_ids: tuple[int, ...]) -> Request:
        """A request for what follows `embeddings` [n, D]; it moves on with each `step()`."""
        strategy = (BeamSearch if params.num_beams > 1 else Sampling)(params, stop_ids)
        request = Request([Sequence(self.backend.new_cache(), embeddings)], strategy)
        with self.lock:
            self.requests.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Forgets a request and frees its caches."""
        with self.lock:
            request.live = []
            self.requests = [other for other in self.requests if other is not request]

    def step(self) -> None:
        """Moves every request on: by one token, or by one piece of its prompt."""
        requests = [request for request in self.requests if not request.done]
        sequences = [sequence for request in requests for sequence in request.live]
        logits = self._forward(sequences)
        for request in requests:
            rows, logits = logits[: len(request.live)], logits[len(request.live) :]
            if not len(request.live[0].unread):
                self._advance(request, rows)

    def _forward(self, sequences: list[Sequence]) -> np.ndarray:
        pieces = [sequence.unread[:PREFILL_CHUNK] for sequence in sequences]
        logits = self.backend.forward(pieces, [sequence.cache for sequence in sequences])
        for sequence, piece in zip(sequences, pieces):
            sequence.read(len(piece))
        return logits

    def _advance(self, request: Request, logits: np.ndarray) -> None:
        if not np.isfinite(logits).all():
            # One poisoned request must not take the others with it.
            request.error = ModelFileError(
                "the model computed values that are not numbers; its file is damaged or made for another design"
            )
            request.live = []
            return
        request.live = self._continued(request.live, request.strategy.advance(logits))

    def _continued(self, live: list[Sequence], choices: list[tuple[int, int]]) -> list[Sequence]:
        """Sequences that go on as chosen, (parent, id) each; the last user of a parent's cache takes it uncopied."""
        if not choices:
            return []
        embeddings = self.backend.embed(np.array([token for _, token in choices], dtype=np.int32))
        last_use = {parent: position for position, (parent, _) in enumerate(choices)}
        caches = [
            live[parent].cache if last_use[parent] == position else live[parent].cache.copy()
            for position, (parent, _) in enumerate(choices)
        ]
        return [Sequence(cache, embeddings[i : i + 1]) for i, cache in enumerate(caches)]
