"""Beam search: a strategy on the same decoder and caches as sampling.

Reference: transformers `generation/utils.py` `_beam_search` with `early_stopping=False`, whose rules decide which of
two equally good looking answers wins, so they are kept exactly: of (1 + stops) * beams candidates a step, an ended one
counts only among the first `beams`; scores are sums of penalised log-probabilities, divided by length ** length_penalty
once ended; the search ends when `beams` have ended and the best running one is no better than the worst of them.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from handlens.engine.sampling import SamplingParams, penalised


@dataclass(frozen=True)
class Candidate:
    """One continuation: `ids` so far, the running beam it comes from, and its summed log-probability."""

    parent: int
    ids: tuple[int, ...]
    score: float


class BeamSearch:
    """The state of one search. `running` are the beams that want another token, best first; `ended` have a score.

    Its answer is certain only at the end, so `certain` stays empty until then.
    """

    #: The part of the answer that all running beams have in common, as far as that is known.
    ids: tuple[int, ...] = ()

    def __init__(self, params: SamplingParams, stop_ids: tuple[int, ...]):
        self.params = params
        self.stop_ids = frozenset(stop_ids)
        self.running = [Candidate(parent=0, ids=(), score=0.0)]
        self.ended: list[tuple[float, tuple[int, ...]]] = []
        self.certain: deque[int] = deque()

    def advance(self, logits: np.ndarray) -> list[tuple[int, int]]:
        """Takes the logits [running, V]; (parent, next id) of each beam that goes on, nothing at the end."""
        beams = self.params.num_beams
        length = len(self.running[0].ids) + 1
        last = length >= self.params.max_new_tokens
        running = []
        for rank, candidate in enumerate(self._candidates(logits)):
            if candidate.ids[-1] in self.stop_ids or last:
                if rank < beams:
                    self.ended.append((candidate.score / length**self.params.length_penalty, candidate.ids))
            elif len(running) < beams:
                running.append(candidate)
        self.ended.sort(key=lambda pair: -pair[0])
        del self.ended[beams:]
        self.running = running if running and self._can_improve(running[0], length) else []
        if not self.running:
            best = self.ended[0][1]
            self.certain.extend(best[:-1] if best[-1] in self.stop_ids else best)
        return [(beam.parent, beam.ids[-1]) for beam in self.running]

    def _candidates(self, logits: np.ndarray) -> list[Candidate]:
        penalty = self.params.repetition_penalty
        totals = np.stack(
            [penalised(log_softmax(row), beam.ids, penalty) + beam.score for row, beam in zip(logits, self.running)]
        )
        count = min(max(2, 1 + len(self.stop_ids)) * self.params.num_beams, totals.size)
        flat = totals.ravel()
        top = np.argpartition(-flat, count - 1)[:count]
        top = top[np.lexsort((top, -flat[top]))]
        return [
            Candidate(int(parent), (*self.running[parent].ids, int(token)), float(totals[parent, token]))
            for parent, token in zip(*np.unravel_index(top, totals.shape))
        ]

    def _can_improve(self, best: Candidate, length: int) -> bool:
        if len(self.ended) < self.params.num_beams:
            return True
        return best.score / length**self.params.length_penalty > self.ended[-1][0]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities of `logits` [V], in float64."""
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
