"""Prompt lookup: the next tokens guessed from what was read and written before, to be verified several in one forward.

Answers that copy, such as transcriptions of what stands in an earlier answer or in the prompt, go on as their latest
words went on the last time. A right guess saves a decode step and a wrong one costs a share of a step, because a few
more rows of activations hardly change the time that the weights take to arrive. What is answered never changes: a guess
counts only if the very same token is chosen after all that stands before it.

Reference: Saxena, Prompt Lookup Decoding, 2023; the account that bounds the loss is ours.
"""

from collections.abc import Sequence

#: Lengths of the runs of tokens that are looked for, the most telling first.
RUNS = (3, 2)
#: The most tokens that are guessed at a time.
LONGEST = 8
#: What one more row costs, as a share of a decode step. benchmarks/lookup.py measures it; a busy machine has more to
#: spare for reading weights than for computing, so rows cost more there.
ROW_COST = 0.2
#: Steps that guessing may lose: at the start, for each token without it, and the most that is put by for bad times.
START, PER_TOKEN, MOST = 0.625, 0.01, 2.0


class Lookup:
    """Guesses for one answer, and an account of the decode steps that they have saved."""

    def __init__(self, prompt: Sequence[int]):
        self.ids: list[int] = []
        self.after: dict[tuple[int, ...], int] = {}  # a run -> the position behind its latest but one end or earlier
        self.account = START
        self.length = 3
        self.follow(prompt)

    def follow(self, ids: Sequence[int]) -> None:
        """Takes note of the next tokens."""
        for token in ids:
            for run in RUNS:
                if len(self.ids) >= run:
                    self.after[tuple(self.ids[-run:])] = len(self.ids)
            self.ids.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none if these tokens are new or guessing has not paid."""
        count = min(most, self.length, int(self.account / ROW_COST))
        start = next((at for run in RUNS if (at := self.after.get(tuple(self.ids[-run:]))) is not None), None)
        if count < 1 or start is None:
            return []
        guess: list[int] = []
        for position in range(start - len(self.ids), start - len(self.ids) + count):
            guess.append(guess[position] if position >= 0 else self.ids[position])  # a short copy repeats itself
        return guess

    def learn(self, guessed: int, right: int) -> None:
        """Takes note of how many of the guessed tokens were right."""
        earned = right - guessed * ROW_COST if guessed else PER_TOKEN
        self.account = min(MOST, self.account + earned)
        if guessed:
            self.length = min(LONGEST, 2 * guessed) if right == guessed else max(2, right + 1)
