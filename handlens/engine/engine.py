"""The only generation loop of the device side: requests come in, `step()` moves all of them on by one token.

Every caller drives the loop from its own thread while it waits for its next token, so callers that stream at the same
time are batched into the same steps, and nothing runs when nobody waits.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from handlens.backend import Backend, Cache, Progress
from handlens.engine.beam import BeamSearch
from handlens.engine.cache import ImageCache, longest_slice
from handlens.engine.lookup import Lookup
from handlens.engine.prefix import Context, PrefixCache
from handlens.engine.sampling import Sampling, SamplingParams
from handlens.engine.store import ImageStore
from handlens.errors import ModelFileError
from handlens.processor import Inputs

#: Prompts are read in pieces of this many positions: their activations stay small, and other streams keep moving.
PREFILL_CHUNK = 512
#: Guesses are added to a step up to this many rows; further rows would take as long as steps of their own.
STEP_ROWS = 9


@dataclass
class Sequence:
    """One sequence of tokens in the model: what it has read, the inputs [n, D] that it has not read yet, the positions
    at which the pieces end that these are read in, and which of its first positions belong to an answer, as all behind
    them do."""

    cache: Cache
    unread: np.ndarray
    ends: tuple[int, ...]
    answered: np.ndarray

    @property
    def in_prompt(self) -> bool:
        """Whether the next piece is read as a prompt's."""
        return self.cache.length < len(self.answered) and not self.answered[self.cache.length]

    def piece(self) -> np.ndarray:
        """The inputs that are read next."""
        return self.unread[: next((end - self.cache.length for end in self.ends if end > self.cache.length), None)]

    def read(self, count: int) -> None:
        self.unread = self.unread[count:]


@dataclass
class Request:
    """One answer in the making: its live sequences (beam search has several) and how they go on.

    `prompt` says what its sequences began with, if their caches may serve other requests; `lookup` guesses its tokens.
    """

    live: list[Sequence]
    strategy: Sampling | BeamSearch
    prompt: Context | None = None
    lookup: Lookup | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return not self.live


class Engine:
    """Runs requests on one backend. Safe to call from many threads.

    Vectors of images and the keys and values of finished requests are remembered, within `image_cache_bytes` and
    `prefix_cache_bytes`, and vectors also in a `store`; an answer has the same bits with and without them. Tokens that
    the prompt or the answer may show in advance are guessed and verified (`lookup.py`), by default where verifying
    gives the same bits as well.
    """

    def __init__(
        self,
        backend: Backend,
        image_cache_bytes: int = 256 << 20,
        prefix_cache_bytes: int = 1 << 30,
        lookup: bool | None = None,
        store: ImageStore | None = None,
    ):
        self.backend = backend
        self.lookup = backend.row_independent if lookup is None else lookup
        self.images = ImageCache(backend, image_cache_bytes, store)
        self.prefixes = PrefixCache(prefix_cache_bytes, backend.row_independent)
        self.requests: list[Request] = []
        self.lock = threading.RLock()

    def generate(
        self, inputs: Inputs, params: SamplingParams, stop_ids: tuple[int, ...], progress: Progress | None = None
    ) -> Iterator[int]:
        """The ids of one answer as they become certain, without the stop token that ends it.

        Beam search knows its answer only at the end. Closing the iterator frees the request.
        """
        request = self.admit(inputs, params, stop_ids, progress)
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

    def embeddings(self, inputs: Inputs, progress: Progress | None = None, start: int = 0) -> np.ndarray:
        """The prompt from a position on [n - start, D]: token embeddings with the slices' vectors in their places.

        Images that end before `start` are not looked at.
        """
        embeddings = self.backend.embed(inputs.input_ids[start:])
        spans = image_positions(inputs)
        wanted = [index for index, span in enumerate(spans) if span[-1] >= start]
        if wanted:
            images = [inputs.images[index] for index in wanted]
            encoded = self.images.encode(images, progress, longest_slice(inputs.images))
            for index, vectors in zip(wanted, encoded, strict=True):
                rest = spans[index] >= start
                embeddings[spans[index][rest] - start] = vectors[rest]
        return embeddings

    def context(self, inputs: Inputs) -> Context:
        """What tells this prompt from all others."""
        longest = longest_slice(inputs.images) if inputs.images else 0
        keys = [self.images.key(image, longest) for image in inputs.images]
        starts = [int(span[0]) for span in image_positions(inputs)]
        answered = np.zeros(len(inputs.input_ids), bool)
        for start, end in inputs.answers:
            answered[start:end] = True
        return Context(inputs.input_ids, answered, tuple(zip(starts, keys, strict=True)))

    def admit(
        self, inputs: Inputs, params: SamplingParams, stop_ids: tuple[int, ...], progress: Progress | None = None
    ) -> Request:
        """A request for the answer to a prompt; it moves on with each `step()`, from where an earlier one can help."""
        if inputs.once:
            return self.submit(self.embeddings(inputs, progress), params, stop_ids, inputs.input_ids)
        prompt = self.context(inputs)
        # The question starts a piece of its own where that is needed to meet it again, and so does what is computed in
        # another way.
        cuts = [] if self.backend.row_independent else [int(span[-1]) + 1 for span in image_positions(inputs)]
        edges = inputs.answers.flatten().tolist() if self.backend.prompts_differ else []
        ends = piece_ends(len(prompt), sorted({*cuts, *edges}))
        cache = self.prefixes.take(prompt, ends) or self.backend.new_cache()
        try:
            unread = self.embeddings(inputs, progress, cache.length)
        except BaseException:
            self.prefixes.keep(prompt.first(cache.length), cache, ends)
            raise
        return self._enter(Sequence(cache, unread, ends, prompt.answered), params, stop_ids, prompt, prompt.ids)

    def submit(
        self,
        embeddings: np.ndarray,
        params: SamplingParams,
        stop_ids: tuple[int, ...],
        ids: np.ndarray | None = None,
    ) -> Request:
        """A request for what follows `embeddings` [n, D]; it moves on with each `step()`. Tokens are guessed where the
        `ids` [n] that these are of are given."""
        answered = np.zeros(len(embeddings), bool)
        sequence = Sequence(self.backend.new_cache(), embeddings, piece_ends(len(embeddings)), answered)
        return self._enter(sequence, params, stop_ids, ids=ids)

    def _enter(
        self,
        sequence: Sequence,
        params: SamplingParams,
        stop_ids: tuple[int, ...],
        prompt: Context | None = None,
        ids: np.ndarray | None = None,
    ) -> Request:
        strategy = (BeamSearch if params.num_beams > 1 else Sampling)(params, stop_ids)
        request = Request([sequence], strategy, prompt)
        if self.lookup and ids is not None and params.num_beams == 1:
            request.lookup = Lookup(ids.tolist())
        with self.lock:
            self.requests.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Forgets a request; what it has read may serve others."""
        with self.lock:
            self._remember(request)
            request.live = []
            self.requests = [other for other in self.requests if other is not request]

    def step(self) -> None:
        """Moves every request on: by one token and those guessed after it, or by one piece of its prompt."""
        requests = [request for request in self.requests if not request.done]
        guesses = self._guesses(requests)
        logits = self._forward(requests, guesses)
        for request, guess in zip(requests, guesses):
            count = len(request.live) + len(guess)
            rows, logits = logits[:count], logits[count:]
            if not len(request.live[0].unread):
                self._advance(request, rows, guess)

    def _guesses(self, requests: list[Request]) -> list[list[int]]:
        """What may follow the next token of each request, as far as there is room in a step."""
        room = STEP_ROWS - sum(len(sequence.piece()) for request in requests for sequence in request.live)
        guesses = []
        for request in requests:
            guess = []
            if request.lookup and request.strategy.ids:
                left = request.strategy.params.max_new_tokens - len(request.strategy.ids)
                guess = request.lookup.guess(min(room, left - 1))
            room -= len(guess)
            guesses.append(guess)
        return guesses

    def _forward(self, requests: list[Request], guesses: list[list[int]]) -> np.ndarray:
        """The logits after the last position of each sequence and, before it, after those with a guess behind them."""
        sequences = [sequence for request in requests for sequence in request.live]
        pieces = [sequence.piece() for sequence in sequences]
        guessed = [guess for request, guess in zip(requests, guesses) for _ in request.live]
        inputs = [
            np.concatenate([piece, self.backend.embed(np.array(guess, np.int32))]) if guess else piece
            for piece, guess in zip(pieces, guessed)
        ]
        tails = [1 + len(guess) for guess in guessed]
        found: dict[int, np.ndarray] = {}
        for prompt, places in self._calls(sequences):
            caches, sizes = [sequences[place].cache for place in places], [tails[place] for place in places]
            logits = self.backend.forward([inputs[place] for place in places], caches, sizes, prompt)
            for place, end in zip(places, accumulate(sizes)):
                sequences[place].read(len(pieces[place]))
                found[place] = logits[end - tails[place] : end]
        return np.concatenate([found[place] for place in range(len(sequences))])

    def _calls(self, sequences: list[Sequence]) -> list[tuple[bool, list[int]]]:
        """Which sequences go to the backend together, and whether as prompts: all, or prompts apart from answers."""
        kinds = [sequence.in_prompt for sequence in sequences]
        if not self.backend.prompts_differ:
            return [(any(kinds), list(range(len(sequences))))]
        return [(kind, [place for place, other in enumerate(kinds) if other == kind]) for kind in sorted(set(kinds))]

    def _advance(self, request: Request, logits: np.ndarray, guess: list[int]) -> None:
        if not np.isfinite(logits).all():
            # One poisoned request must not take the others with it.
            request.error = ModelFileError(
                "the model computed values that are not numbers; its file is damaged or made for another design"
            )
            request.live = []
            return
        choices = self._chosen(request, logits, guess)
        if not choices:
            self._remember(request)
        request.live = self._continued(request.live, choices)

    def _chosen(self, request: Request, logits: np.ndarray, guess: list[int]) -> list[tuple[int, int]]:
        """How the request goes on after the part of the guess that was right; the rest of it is forgotten."""
        if request.lookup is None:
            return request.strategy.advance(logits)
        known, right = len(request.strategy.ids), 0
        choices = request.strategy.advance(logits[:1])
        while right < len(guess) and choices == [(0, guess[right])]:
            right += 1
            choices = request.strategy.advance(logits[right : right + 1])
        cache = request.live[0].cache
        cache.truncate(cache.length - len(guess) + right)
        request.lookup.learn(len(guess), right)
        request.lookup.follow(request.strategy.ids[known:])
        return choices

    def _remember(self, request: Request) -> None:
        """Keeps what a request that goes on no more has read."""
        if request.prompt is None or not request.live:
            return
        sequence = request.live[0]
        known = request.prompt.then(request.strategy.ids)
        length = min(sequence.cache.length, len(known))
        sequence.cache.truncate(length)
        self.prefixes.keep(known.first(length), sequence.cache, sequence.ends)

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
        first = live[0]
        return [Sequence(cache, embeddings[i : i + 1], first.ends, first.answered) for i, cache in enumerate(caches)]


def image_positions(inputs: Inputs) -> list[np.ndarray]:
    """The query positions [slices * Q] of each image of a request."""
    bounds = [np.arange(start, end) for start, end in inputs.image_bound]
    lasts = accumulate(len(image.plan.sizes) for image in inputs.images)
    return [
        np.concatenate(bounds[last - len(image.plan.sizes) : last])
        for last, image in zip(lasts, inputs.images, strict=True)
    ]


def piece_ends(length: int, cuts: list[int] | tuple = ()) -> tuple[int, ...]:
    """Where the pieces end in which a prompt is read: at each cut, and PREFILL_CHUNK positions apart from there."""
    ends, start = [], 0
    for cut in (*cuts, length):
        ends += [*range(start + PREFILL_CHUNK, cut, PREFILL_CHUNK), cut]
        start = cut
    return tuple(ends)
