"""Gives memory back to the system that the process would keep: pages of mapped files, and what was freed."""

import ctypes
import mmap
import sys
from collections.abc import Iterable

import numpy as np


def give_back(arrays: Iterable[np.ndarray]) -> None:
    """Lets go of the pages of mapped files that these arrays lie in, and of freed memory that the allocator holds.
    Where the system has no way to do that, nothing happens."""
    for array in arrays:
        let_go(array)
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def let_go(array: np.ndarray) -> None:
    """Gives up the pages of the mapped file that an array lies in, if it does; they come back when they are read."""
    mapped = _mapping(array) if hasattr(mmap, "MADV_DONTNEED") and array.nbytes else None
    if mapped is not None:
        start = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        page = start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, start - page, array.nbytes + page)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    """The mapped file that an array is a view of, if it is one."""
    base = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None
