"""Packed weights on the disk, so that the next start maps them and packs nothing. While they are in use they move to
memory of their own, from which decoding reads them twice as fast.

A file holds the packed bytes of the matrices of one part of a model, for one instruction set. It is data only, and
what it should hold is known before it is opened: its head is a digest of the files that the model was read from (their
sizes and times of change), of the name, type and shape of every matrix and of the layouts' version, and its length
follows from that. Of every matrix some blocks of rows, drawn anew at each start, are packed again and compared. A file
that fails is not used, with a notice, and written again; deleting it is always safe.

What is trusted: that rows which were not drawn are what was written. A model that is changed in place with its size and
time of change put back, or a bad block on the disk, can escape for a while.
"""

import atexit
import hashlib
import logging
import math
import mmap
import random
import stat
import threading
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from handlens.atomic import replacing
from handlens.cpu import ops
from handlens.cpu.memory import let_go
from handlens.errors import InputError
from handlens.gguf.blocks import Tensor

log = logging.getLogger("handlens")

MAGIC = b"handlens packed weights\n"
#: The head, and where every matrix begins: a multiple of what the kernels want.
HEAD_BYTES, ALIGNMENT = 128, 64
#: Blocks of rows that are compared of every matrix.
SAMPLES = 2
#: Smaller models are packed faster than looked up.
MIN_BYTES = 64 << 20

#: Threads that move weights, and whether they should end.
_movers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_ending = threading.Event()


class PackStore:
    """The packed weights of one model in a folder that is there. `files` are those that the model was read from."""

    def __init__(self, folder: Path, files: Iterable[Path]):
        facts = [(str(path.resolve()), path.stat()) for path in files]
        self.folder = folder
        self.names = [name for name, _ in facts]
        self.stamp = [(status.st_size, status.st_mtime_ns) for _, status in facts]

    def pack(self, part: str, tensors: Mapping[str, Tensor], precision: str | None) -> dict[str, ops.PackedWeight]:
        """The tensors as `ops.pack` packs them, from the file if there is one that can be used."""
        forms = {name: ops.packed_form(tensor, precision=precision) for name, tensor in tensors.items()}
        sizes = {name: ops.native.packed_bytes(*form) for name, form in forms.items()}
        if sum(sizes.values()) < MIN_BYTES:
            return {name: ops.pack(tensor, precision=precision) for name, tensor in tensors.items()}
        where = repr((self.names, part, ops.chosen_isa(), precision))
        path = self.folder / f"{hashlib.sha256(where.encode()).hexdigest()}.packed"
        what = repr((ops.native.LAYOUT_VERSION, self.stamp, forms))
        head = (MAGIC + hashlib.sha256(what.encode()).hexdigest().encode()).ljust(HEAD_BYTES, b"\0")
        try:
            return _read(path, head, tensors, forms, sizes, precision)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("%s is not used, the weights are packed again: %s", path, error)
        weights = {name: ops.pack(tensor, precision=precision) for name, tensor in tensors.items()}
        _write(path, head, weights)
        return weights


def _read(
    path: Path,
    head: bytes,
    tensors: Mapping[str, Tensor],
    forms: Mapping[str, tuple],
    sizes: Mapping[str, int],
    precision: str | None,
) -> dict[str, ops.PackedWeight]:
    """The weights in a file, mapped; ValueError says what is wrong with it."""
    wanted = len(head) + sum(map(_padded, sizes.values()))
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size != wanted:
        raise ValueError(f"it has {status.st_size} bytes; {wanted} are wanted")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if mapped[: len(head)] != head:
        raise ValueError("it was made of other files, or by another version")
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    data, start, weights, memories = np.frombuffer(mapped, np.uint8), len(head), {}, []
    for name, tensor in tensors.items():
        memory = data[start : start + sizes[name]]
        weights[name] = ops.PackedWeight(tensor, ops.native.Packed(*forms[name], memory=memory))
        memories.append(memory)
        start += _padded(sizes[name])
        _check(name, weights[name], precision)
    _settle(zip(weights.values(), memories, strict=True))
    return weights


def _settle(mapped: Iterable[tuple[ops.PackedWeight, np.ndarray]]) -> None:
    """Moves weights out of the mapped memory beside them, while others compute with them, those still in use."""
    waiting = [(weakref.ref(weight), memory) for weight, memory in mapped]

    def move() -> None:
        while waiting and not _ending.is_set():
            reference, memory = waiting.pop(0)
            if (weight := reference()) is not None:
                weight.packed.settle()
            let_go(memory)

    thread = threading.Thread(target=move, name="handlens-settle", daemon=True)
    _movers.add(thread)
    thread.start()


@atexit.register
def _end_moves() -> None:
    """Waits until no weight is being moved: the interpreter ends threads that compute by aborting the process."""
    _ending.set()
    for thread in list(_movers):
        thread.join()


def _check(name: str, weight: ops.PackedWeight, precision: str | None) -> None:
    """ValueError if one of some blocks of rows is not what packing makes of it."""
    blocks = math.ceil(weight.packed.shape[0] / ops.BLOCK_ROWS)
    for _ in range(SAMPLES):
        start = random.randrange(blocks) * ops.BLOCK_ROWS
        if not ops.is_packed_as(weight, start, precision):
            raise ValueError(f"rows of {name} from {start} on are damaged, or of another model")
    let_go(weight.tensor.data)


def _write(path: Path, head: bytes, weights: Mapping[str, ops.PackedWeight]) -> None:
    """Keeps weights. If that fails there is a notice, and nothing else."""
    try:
        with replacing(path, InputError) as file:
            file.write(head)
            for weight in weights.values():
                file.write(weight.packed.memory)
                file.write(bytes(_padded(weight.packed.nbytes) - weight.packed.nbytes))
    except InputError as error:
        log.warning("the packed weights are not kept: %s", error)


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
