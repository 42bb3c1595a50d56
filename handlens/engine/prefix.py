"""Keys and values of earlier requests, kept for later ones that begin alike: bounded bytes, longest unused out first.

A second question about an image begins like the first one, and so does each turn of a conversation. What is taken out
is a copy or nobody else's, so requests never share memory.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from handlens.backend import Cache


@dataclass(frozen=True)
class Context:
    """What stands in a cache: `ids` int32 [n], which of them an answer's are, bool [n], for they may be computed in
    another way than a prompt's, and, since all images have the same filler ids, which image begins where.

    An image is (its first position, a key of everything that its vectors depend on); the keys are compared whole.
    """

    ids: np.ndarray
    answered: np.ndarray
    images: tuple[tuple[int, tuple], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def then(self, ids: Sequence[int]) -> "Context":
        """This context followed by an answer."""
        answered = np.concatenate([self.answered, np.ones(len(ids), bool)])
        return Context(np.concatenate([self.ids, np.asarray(ids, self.ids.dtype)]), answered, self.images)

    def first(self, length: int) -> "Context":
        """The first positions of this context."""
        images = tuple(image for image in self.images if image[0] < length)
        return Context(self.ids[:length], self.answered[:length], images)

    def common(self, other: "Context") -> int:
        """How many positions the two have in common from the start. The first image that differs ends them."""
        shorter = min(len(self), len(other))
        alike = (self.ids[:shorter] == other.ids[:shorter]) & (self.answered[:shorter] == other.answered[:shorter])
        differ = np.flatnonzero(~alike)
        length = int(differ[0]) if len(differ) else shorter
        for mine, theirs in zip_longest(self.images, other.images):
            if mine != theirs:
                return min(length, *(image[0] for image in (mine, theirs) if image))
        return length


@dataclass(frozen=True, eq=False)
class Entry:
    """A cache that nobody writes to, what stands in it, and where the pieces ended in which the prompt was read."""

    context: Context
    cache: Cache
    ends: frozenset[int]


class PrefixCache:
    """Remembers caches. It belongs to one backend, so to one model.

    Where a row's results depend on what else is in a call, a prompt must be read in the same pieces to give the same
    bits. Then a beginning is taken only up to a position where a piece ended both times.
    """

    def __init__(self, max_bytes: int, row_independent: bool):
        self.max_bytes = max_bytes
        self.row_independent = row_independent
        self.entries: list[Entry] = []  # the longest unused first
        self.lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """The bytes of all entries."""
        return sum(entry.cache.nbytes for entry in self.entries)

    def take(self, context: Context, ends: Sequence[int]) -> Cache | None:
        """A cache that holds the beginning of the context, for the caller to write to; at least the last position is
        left to be computed. `ends` are the ends of the pieces that the context is read in."""
        with self.lock:
            lengths = [self._usable(entry, context, ends) for entry in self.entries]
            length = max(lengths, default=0)
            if not length:
                return None
            entry = self.entries.pop(lengths.index(length))
            if length == entry.cache.length:
                return entry.cache  # it goes on from its end: the longer one will come back
            self.entries.append(entry)
            return entry.cache.copy(length)

    def keep(self, context: Context, cache: Cache, ends: Sequence[int]) -> None:
        """Remembers a cache that is no longer written to and holds this context."""
        with self.lock:
            # What this one begins with is no longer needed by itself.
            self.entries = [entry for entry in self.entries if entry.context.common(context) < len(entry.context)]
            if 0 < cache.nbytes <= self.max_bytes:
                self.entries.append(Entry(context, cache, frozenset(end for end in ends if end <= cache.length)))
            while self.bytes > self.max_bytes:
                del self.entries[0]

    def _usable(self, entry: Entry, context: Context, ends: Sequence[int]) -> int:
        common = min(entry.context.common(context), len(context) - 1)
        if self.row_independent:
            return common
        return max((end for end in ends if end <= common and end in entry.ends), default=0)
