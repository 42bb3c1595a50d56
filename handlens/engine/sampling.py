"""How an answer is generated (`SamplingParams`) and how one next token is chosen from logits.

The order of operations is that of transformers' `generate`: repetition penalty, temperature, top-k, top-p, draw.
The penalty looks at generated tokens only: the original `chat()` starts from embeddings, so it knows no prompt ids.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator  # numpy loads it at first use, and a Ctrl-C then would be lost

from handlens.errors import InputError


def _number(low: float, high: float):
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    )


def _integer(low: int, high: int):
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


# name: (is it right, what is wanted)
_RULES = {
    "max_new_tokens": (_integer(1, 1 << 20), "an integer from 1 to 1048576"),
    "temperature": (_number(0, 100), "a number from 0 (greedy) to 100"),
    "top_p": (_number(1e-9, 1), "a number above 0 and up to 1 (1 = off)"),
    "top_k": (_integer(0, 1 << 24), "an integer from 0 (off)"),
    "repetition_penalty": (_number(1e-3, 1e3), "a number from 0.001 to 1000 (1 = off)"),
    "seed": (lambda value: value is None or _integer(0, (1 << 63) - 1)(value), "None or an integer from 0"),
    "num_beams": (_integer(1, 64), "an integer from 1 (no beam search) to 64"),
    "length_penalty": (_number(-100, 100), "a number from -100 to 100"),
    "stop": (
        lambda value: isinstance(value, tuple) and len(value) <= 16 and all(isinstance(s, str) and s for s in value),
        "a tuple of at most 16 strings that are not empty",
    ),
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Options of one answer. The defaults are those of the original for `sampling=True`.

    `temperature=0` is greedy. `num_beams` above 1 is beam search, which draws nothing: temperature, top_p and top_k are
    not used then. With a `seed` the same request gives the same text. Unknown names are a TypeError, wrong values an
    InputError.
    """

    max_new_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 100
    repetition_penalty: float = 1.05
    seed: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        for name, (right, wanted) in _RULES.items():
            if not right(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)!r}; {wanted} is wanted")

    @classmethod
    def greedy(cls, **options) -> "SamplingParams":
        """The most likely token at each step, no penalty."""
        return cls(**{"temperature": 0, "repetition_penalty": 1.0, **options})

    @classmethod
    def beam(cls, **options) -> "SamplingParams":
        """The original's `sampling=False`: three beams, repetition penalty 1.2."""
        return cls(**{"num_beams": 3, "repetition_penalty": 1.2, **options})


def penalised(scores: np.ndarray, ids: Sequence[int], penalty: float) -> np.ndarray:
    """`scores` [V] with those of `ids` made less likely: divided by the penalty if positive, multiplied if negative."""
    if penalty == 1.0 or not ids:
        return scores
    scores = scores.copy()
    seen = np.unique(np.asarray(ids))
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The distribution [V] (float64) that a token is drawn from: temperature, then top-k, then top-p."""
    logits = logits.astype(np.float64) / params.temperature
    if 0 < params.top_k < len(logits):
        smallest_kept = np.partition(logits, -params.top_k)[-params.top_k]
        logits[logits < smallest_kept] = -np.inf
    chances = np.exp(logits - logits.max())
    chances /= chances.sum()
    if params.top_p < 1:
        order = np.argsort(-chances, kind="stable")
        before = np.cumsum(chances[order]) - chances[order]
        chances[order[before >= params.top_p]] = 0
        chances /= chances.sum()
    return chances


class Sampling:
    """Greedy or drawn: one token after another, each certain at once. Holds the request's random numbers.

    A strategy has `advance(logits)` and `certain`, the ids of the answer that nobody has taken yet (see engine.py).
    """

    def __init__(self, params: SamplingParams, stop_ids: tuple[int, ...]):
        self.params = params
        self.stop_ids = stop_ids
        self.rng = Generator(PCG64(params.seed))
        self.ids: list[int] = []
        self.certain: deque[int] = deque()

    def advance(self, logits: np.ndarray) -> list[tuple[int, int]]:
        """Takes the logits [1, V]; (0, next id) if the answer goes on, nothing if it has ended."""
        token = self.choose(logits[0])
        if token in self.stop_ids:
            return []
        self.ids.append(token)
        self.certain.append(token)
        return [(0, token)] if len(self.ids) < self.params.max_new_tokens else []

    def choose(self, logits: np.ndarray) -> int:
        """The next id, from `logits` [V]."""
        logits = penalised(logits, self.ids, self.params.repetition_penalty)
        if self.params.temperature == 0:
            return int(np.argmax(logits))
        cumulative = np.cumsum(probabilities(logits, self.params))
        # A draw in [0, 1) lands at the first token whose cumulative chance exceeds it; the scale absorbs rounding.
        return int(np.searchsorted(cumulative, self.rng.random() * cumulative[-1], side="right"))
