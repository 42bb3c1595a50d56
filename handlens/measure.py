"""How long the parts of an answer take, and what this machine could do at most.

Seconds unless a name says otherwise. Shares are only worth something against limits of the same moment, because other
work slows both; so callers measure in rounds and take medians of each round's ratios.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
from PIL import Image

from handlens.chat import Chat
from handlens.cpu import ops
from handlens.cpu.backend import CpuBackend
from handlens.cpu.ops import PackedWeight
from handlens.engine.cache import longest_slice
from handlens.engine.engine import PREFILL_CHUNK, Engine
from handlens.engine.sampling import SamplingParams
from handlens.images import cut

#: Rounds of the loops that stay in registers.
RATE_ROUNDS = 2_000_000
#: More than any cache holds.
READ_BYTES = 1 << 30
READ_PASSES = 5


@dataclass(frozen=True)
class Limits:
    """What the machine does a second at most: bytes read, operations on the numbers that it multiplies fastest (see
    `fastest_numbers`) and on float32."""

    read: float
    fastest: float
    floating: float


def fastest_numbers(isa: str | None = None) -> str:
    """What the kernels multiply fastest: bf16 or int8."""
    return "bf16" if ops.multiplies_bf16(isa) else "int8"


def machine_limits(isa: str | None = None) -> Limits:
    """The limits with as many threads as compute. Needs the kernels."""
    isa = isa or ops.native.isas()[0]
    return Limits(
        read=read_bandwidth(),
        fastest=ops.native.fastest_rate(isa, RATE_ROUNDS),
        floating=ops.native.float_rate(isa, RATE_ROUNDS),
    )


def read_bandwidth() -> float:
    """The bytes a second that as many threads as compute read at most: the most of some passes through 1 GiB, since one
    pass takes so little that anything beside it counts."""
    return max(ops.native.read_rate(_memory()) for _ in range(READ_PASSES))


@cache
def _memory() -> np.ndarray:
    return np.ones((1, READ_BYTES), np.uint8)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def prefill_seconds(backend: CpuBackend, count: int) -> float:
    """How long a prompt of so many tokens takes to read, without an answer."""
    inputs, cache = backend.embed(_text(backend, count)), backend.new_cache()

    def read():
        for start in range(0, count, PREFILL_CHUNK):
            backend.forward([inputs[start : start + PREFILL_CHUNK]], [cache], prompt=True)

    return seconds(read)


def decode_seconds(backend: CpuBackend, past: int, count: int) -> float:
    """How long so many tokens take, one after the other, behind a prompt of `past` tokens."""
    cache = backend.new_cache()
    logits = backend.forward([backend.embed(_text(backend, past))], [cache], prompt=True)

    def decode():
        nonlocal logits
        for _ in range(count):
            logits = backend.forward([backend.embed(logits.argmax(axis=1))], [cache])

    return seconds(decode)


def slice_seconds(backend: CpuBackend) -> float:
    """How long the vision tower and the resampler take for one slice of the model's own size."""
    config = backend.config
    side = config.slices.scale_resolution
    image = cut(picture(side), config.slices, config.vision.image_mean, config.vision.image_std)
    return seconds(backend.encode, [image], longest_slice([image]))


def first_token_seconds(chat: Chat, engine: Engine, image: Image.Image, question: str) -> float:
    """How long it takes from a question about an image to the first token of the answer."""
    params = SamplingParams.greedy(max_new_tokens=1)

    def ask():
        inputs = chat.prepare([{"role": "user", "content": [image, question]}], params)
        list(engine.generate(inputs, params, ()))

    return seconds(ask)


def picture(side: int) -> Image.Image:
    """A square of colours."""
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    red, green = np.broadcast_arrays(ramp[None], ramp[:, None])
    return Image.fromarray(np.stack([red, green, red ^ green], axis=-1))


def weight_bytes(backend: CpuBackend) -> int:
    """The bytes of weights that each decoded token reads."""
    return sum(
        weight.packed.nbytes if isinstance(weight, PackedWeight) else weight.nbytes for weight in _products(backend)
    )


def weight_count(backend: CpuBackend) -> int:
    """How many weights each token is multiplied with."""
    return sum(prod(weight.shape) for weight in _products(backend))


def _products(backend: CpuBackend) -> list:
    llama = backend.llama
    weights = [weight for layer in llama.layers for module in layer.values() for weight in module] + [llama.output]
    return [weight for weight in weights if len(weight.shape) == 2]


def _text(backend: CpuBackend, count: int) -> np.ndarray:
    """Ids all over the vocabulary."""
    return np.arange(count, dtype=np.int64) * 7919 % backend.config.llm.vocab_size


def own_peak_memory() -> int | None:
    """The same, of a process that another one has started: what Linux counts there as `peak_memory` begins with what
    the parent held."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return peak_memory()


def peak_memory() -> int | None:
    """The most bytes that the process has held in memory so far, mapped files included; None where nobody counts."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
