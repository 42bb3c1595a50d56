"""How many threads compute."""

import os
from pathlib import Path

from handlens.errors import InputError

THREADS_VARIABLE = "HANDLENS_THREADS"
MAX_THREADS = 1024


def thread_count() -> int:
    """What HANDLENS_THREADS says; otherwise the physical cores that this process may use."""
    wanted = os.environ.get(THREADS_VARIABLE)
    if not wanted:
        return physical_cores()
    if not wanted.isascii() or not wanted.isdigit() or not 1 <= int(wanted) <= MAX_THREADS:
        raise InputError(f"{THREADS_VARIABLE} is {wanted!r}; a number from 1 to {MAX_THREADS} is wanted, or nothing")
    return int(wanted)


def check_thread_count(count: int) -> None:
    """InputError unless so many threads can compute."""
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"{count} threads were asked for; from 1 to {MAX_THREADS} can compute")


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """The cores that this process may use; two threads of one core share its multipliers, so they count once.

    Where the system does not tell which belong together, every logical processor counts.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = topology / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return max(1, len(cores))
