"""Thousands of damaged files: each is refused with ModelFileError, or opens and can be read to its last row."""

import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from handlens.errors import ModelFileError
from handlens.gguf import GGUFFile
from handlens.gguf.blocks import BLOCKS
from tests import gguf_bytes as raw

#: Values that length fields, counts, types and offsets are given.
EXTREMES = [0, 1, 2, 3, 4, 8, 9, 31, 32, 33, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
EXTREMES += [1 << 32, 1 << 40, 1 << 61, (1 << 62) + 8, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1]


def all_types() -> bytes:
    """A sound file with a tensor of every block type, and few other things."""
    entries, data = [], b""
    for number, (name, block) in enumerate(BLOCKS.items()):
        entries.append(raw.entry(name, [block.weights, 1 + number % 3], block.ggml_type, len(data)))
        data += bytes((7 * i + number) % 251 for i in range(block.nbytes * (1 + number % 3)))
        data += bytes(-len(data) % 32)
    return raw.gguf([raw.scalar("general.alignment", raw.U32, 32)], entries, data)


def seeds() -> list[bytes]:
    small = raw.small()
    return [small, small[:4] + struct.pack("<I", 2) + small[8:], all_types()]


def fields(data: bytes) -> list[int]:
    """Where counts, lengths, types, dimensions and offsets lie in the head, found from the names that are in it."""
    places = [4, 8, 16]
    for name in [b"general.", b"a.", b"first", b"second", *(name.encode() for name in BLOCKS)]:
        place = data.find(name)
        while 24 <= place < 4000:
            length = struct.unpack_from("<Q", data, place - 8)[0]
            if length < 64:
                places += [place - 8, *(place + length + after for after in (0, 4, 8, 12, 16, 20, 24, 28, 32))]
            place = data.find(name, place + 1)
    return [place for place in places if place + 8 <= len(data)]


def flip_bits(rng, data, _):
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)


def flip_bits_of_the_head(rng, data, _):
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(min(len(data), 900))] ^= 1 << rng.randrange(8)


def rewrite_a_field(rng, data, places):
    for _ in range(rng.choice([1, 1, 2, 4])):
        place, width = rng.choice(places), rng.choice([4, 8])
        value = rng.choice([*EXTREMES, len(data), len(data) + 1, len(data) - place - 8, rng.getrandbits(64)])
        data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def add_to_a_field(rng, data, places):
    place = rng.choice(places)
    value = int.from_bytes(data[place : place + 8], "little") + rng.choice([-64, -32, -8, -1, 1, 8, 32, 64])
    data[place : place + 8] = (value % (1 << 64)).to_bytes(8, "little")


def splice(rng, data, _):
    start, length = rng.randrange(len(data)), rng.randrange(1, 64)
    target = rng.randrange(len(data))
    data[target : target + length] = data[start : start + length]


def insert(rng, data, _):
    place = rng.randrange(len(data))
    data[place:place] = rng.randbytes(rng.choice([1, 4, 8, 32, 33]))


def delete(rng, data, _):
    place = rng.randrange(len(data))
    del data[place : place + rng.choice([1, 4, 8, 32, 33])]


def truncate(rng, data, _):
    del data[rng.randrange(len(data)) :]


MUTATIONS = [flip_bits, flip_bits_of_the_head, rewrite_a_field, add_to_a_field, splice, insert, delete, truncate]
#: The most that one case may take. They take about a millisecond; a machine that does much else is given time.
SECONDS_A_CASE = 1.0
#: The most memory that opening and reading may take beyond the file, which here has a few kB.
BYTES_A_CASE = 4 << 20


def read_all(path) -> bool:
    """Whether the file opens; then the first and last row of every tensor and all metadata were touched."""
    try:
        file = GGUFFile(path)
    except ModelFileError:
        return False
    assert set(file.metadata) == set(file.types)
    for tensor in file.tensors.values():
        rows = len(tensor.data)
        for row in {0, rows - 1}:
            numbers = tensor.dequantize(row, row + 1)
            assert numbers.shape == (1, tensor.shape[-1]) and numbers.dtype == np.float32
    return True


def test_the_seeds_are_sound(tmp_path):
    for data in seeds():
        (tmp_path / "seed.gguf").write_bytes(data)
        assert read_all(tmp_path / "seed.gguf")


@pytest.mark.parametrize("cases", [500, pytest.param(25_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_damaged_files_are_refused_or_read(tmp_path, cases):
    rng = random.Random(20_260_801)
    path = tmp_path / "damaged.gguf"
    originals = [(data, fields(data)) for data in seeds()]
    opened, peak, slowest = 0, 0, 0.0
    read_all(path.with_name("none"))
    tracemalloc.start()
    try:
        for _ in range(cases):
            original, places = rng.choice(originals)
            data = bytearray(original)
            for mutate in rng.choices(MUTATIONS, k=rng.choice([1, 1, 1, 2, 3])):
                if data:
                    mutate(rng, data, [place for place in places if place < len(data)] or [0])
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
            opened += read_all(path)
            slowest = max(slowest, time.perf_counter() - start)
            peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert slowest < SECONDS_A_CASE
    assert peak < BYTES_A_CASE
    # Both ends were reached: a test whose every file is refused at the first byte would show nothing.
    assert cases * 0.1 < opened < cases * 0.9
