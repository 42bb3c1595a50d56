"""Where an answer begins to say the same thing for ever: small models do that on pictures that they cannot read."""

import logging
from collections.abc import Iterable, Iterator

log = logging.getLogger("handlens")

#: The longest run of tokens that is looked for, how often it has to stand there in a row, and in how many tokens at
#: least: a rule of dashes, a row of dots or the frame of a wide table is none.
LONGEST_PERIOD, REPEATS, LEAST = 40, 4, 72


def repeats(ids: list[int]) -> bool:
    """Whether the ids end in one run of tokens again and again."""
    for period in range(1, min(LONGEST_PERIOD, len(ids) // REPEATS) + 1):
        if ids[-1] != ids[-1 - period]:
            continue  # nearly always, and this runs for each token
        count = max(REPEATS, -(-LEAST // period)) * period
        if count <= len(ids) and ids[-count:-period] == ids[-count + period :]:
            return True
    return False


def until_loop(ids: Iterable[int], warns: bool = True) -> Iterator[int]:
    """The ids up to where they only repeat themselves; a warning says so where it `warns`."""
    seen: list[int] = []
    for token in ids:
        yield token
        seen.append(token)
        del seen[: -LONGEST_PERIOD * REPEATS - LEAST]
        if repeats(seen):
            if warns:
                log.warning("the answer only repeated itself, and was ended there")
            return
