"""Files that are damaged, hostile, or not GGUF at all: each is refused with ModelFileError and a sentence that helps.

The ids (m01 ...) are those of the project's table of known failures of systems like this one.
"""

import gc
import os
import re
import struct
import time
import tracemalloc

import numpy as np
import pytest

from handlens.errors import ModelFileError
from handlens.gguf import GGUFFile, reader
from tests import gguf_bytes as raw


@pytest.fixture
def write(tmp_path):
    def write(data: bytes):
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def refusal(path) -> str:
    """The message with which a file is refused; it names the file."""
    with pytest.raises(ModelFileError) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def one_tensor(dims, kind=0, offset=0, data=bytes(64), **head) -> bytes:
    return raw.gguf([], [raw.entry("w", dims, kind, offset)], data, **head)


def test_the_small_file_is_sound(write):
    file = GGUFFile(write(raw.small()))
    assert file.metadata["a.tokens"] == ["a", "", "ä", "\U0001f50d", "longer text"]
    assert file.tensors["first"].dequantize().shape == (2, 8)
    assert file.tensors["second"].shape == (16, 32)


@pytest.mark.parametrize("data", [b"G", b"GGUF", b"GGUF\3\0\0", b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + bytes(15)])
def test_m01_header_alone_or_less(write, data):
    refusal(write(data))


ALIGNMENTS = [
    (raw.scalar("general.alignment", raw.U32, 0), "is 0; a power of two"),
    (raw.scalar("general.alignment", raw.U32, 1 << 31), "is 2147483648; a power of two"),
    (raw.scalar("general.alignment", raw.U32, 1), "is 1; a power of two"),
    (raw.scalar("general.alignment", raw.U32, 48), "is 48; a power of two"),
    (raw.scalar("general.alignment", raw.U64, 32), "stored as u64"),
    (raw.scalar("general.alignment", raw.I32, -32), "stored as i32"),
    (raw.scalar("general.alignment", raw.F32, 32.0), "stored as f32"),
    (raw.scalar("general.alignment", raw.STR, "32"), "stored as str"),
    (raw.array("general.alignment", raw.U32, [32]), r"stored as arr\[u32\]"),
]


@pytest.mark.parametrize(("alignment", "words"), ALIGNMENTS)
def test_m02_alignment(write, alignment, words):
    assert re.search(words, refusal(write(raw.gguf([alignment], [raw.entry("w", [8])], bytes(32)))))


def test_m02_other_sound_alignments_are_read(write):
    for alignment in (8, 16, 64, 4096):
        key = raw.scalar("general.alignment", raw.U32, alignment)
        data = np.arange(8, dtype="<f4").tobytes()
        file = GGUFFile(write(raw.gguf([key], [raw.entry("w", [8])], data, alignment=alignment)))
        assert file.alignment == alignment
        np.testing.assert_array_equal(file.tensors["w"].dequantize(), np.arange(8))


HUGE = 1 << 63
LYING_LENGTHS = {
    "array of 2^63 numbers": raw.gguf([raw.array("k", raw.U8, [], length=HUGE)]),
    "array of 2^63 strings": raw.gguf([raw.array("k", raw.STR, [], length=HUGE)]),
    "array of 2^22 strings": raw.gguf([raw.array("k", raw.STR, [], length=1 << 22)]),
    "array of 2^61 u64, 2^64 bytes": raw.gguf([raw.array("k", raw.U64, [], length=1 << 61)]),
    "array of 2^32 f32": raw.gguf([raw.array("k", raw.F32, [1.0], length=1 << 32)]),
    "nested array of 2^62": raw.gguf([raw.key("k", raw.ARR, struct.pack("<IQIQ", raw.ARR, 1 << 62, raw.U8, 1 << 62))]),
    "nested a million deep": raw.gguf([raw.key("k", raw.ARR, struct.pack("<IQ", raw.ARR, 1) * 1_000_000)]),
    "2^63 keys": raw.gguf(n_keys=HUGE),
    "2^64 - 1 keys": raw.gguf(n_keys=(1 << 64) - 1),
    "as many keys as are accepted": raw.gguf(n_keys=reader.MAX_KEYS),
    "2^63 tensors": raw.gguf(n_tensors=HUGE),
    "as many tensors as are accepted": raw.gguf(n_tensors=reader.MAX_TENSORS),
    "string of 2^63 bytes": raw.gguf([raw.key("k", raw.STR, raw.string("", length=HUGE))]),
    "string of 2^64 - 1 bytes": raw.gguf([raw.key("k", raw.STR, raw.string("", length=(1 << 64) - 1))]),
    "string of 60 MB": raw.gguf([raw.key("k", raw.STR, raw.string("x", length=60_000_000))]),
    "last string of an array, 100 bytes": raw.gguf(
        [raw.key("k", raw.ARR, struct.pack("<IQ", raw.STR, 1) + raw.string("x", length=100))]
    ),
    "key of 2^63 bytes": raw.gguf([raw.string("k", length=HUGE) + bytes(12)]),
    "tensor name of 2^63 bytes": raw.gguf([], [raw.string("w", length=HUGE) + bytes(32)]),
    "2^31 dimensions": raw.gguf([], [raw.entry("w", [8], n_dims=1 << 31)], bytes(32)),
    "dimension of 2^63": one_tensor([HUGE]),
}


@pytest.mark.parametrize("name", LYING_LENGTHS)
def test_m03_lying_lengths_cost_neither_time_nor_memory(write, name):
    path = write(LYING_LENGTHS[name])
    refusal(path)  # once before, so that nothing is measured that only the first call does
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        refusal(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
    tracemalloc.start()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_m04_truncated_at_every_byte(write):
    whole = raw.small()
    path = write(whole)
    GGUFFile(path)
    for size in range(len(whole) - 1, -1, -1):
        os.truncate(path, size)
        refusal(path)


PLACES = {
    "offset past the end": (one_tensor([8], offset=64), "was not downloaded to its end"),
    "offset near 2^64": (one_tensor([8], offset=(1 << 64) - 32), "was not downloaded to its end"),
    "offset off the alignment": (one_tensor([8], offset=4), "not at a multiple of 32"),
    "data cut short": (one_tensor([8], data=bytes(31)), "was not downloaded to its end"),
    "no data section": (one_tensor([8], data=b""), "was not downloaded to its end"),
    "same place": (
        raw.gguf([], [raw.entry("a", [8]), raw.entry("b", [8])], bytes(64)),
        "'a' and 'b' overlap",
    ),
    "partly the same": (
        raw.gguf([], [raw.entry("a", [8], offset=32), raw.entry("b", [16])], bytes(96)),
        "'b' and 'a' overlap",
    ),
    "one inside a long one": (
        raw.gguf(
            [], [raw.entry("a", [64]), raw.entry("b", [8], offset=32), raw.entry("c", [8], offset=256)], bytes(512)
        ),
        "'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_m04_places(write, name):
    data, words = PLACES[name]
    assert words in refusal(write(data))


def test_m04_tensors_apart_in_any_order_are_read(write):
    numbers = np.arange(40, dtype="<f4")
    entries = [raw.entry("late", [8], offset=128), raw.entry("early", [8], offset=0)]
    file = GGUFFile(write(raw.gguf([], entries, numbers.tobytes())))
    np.testing.assert_array_equal(file.tensors["late"].dequantize(), numbers[32:])
    np.testing.assert_array_equal(file.tensors["early"].dequantize(), numbers[:8])


def test_m05_missing_and_mistyped_keys_are_named(write):
    path = write(raw.gguf([raw.scalar("llama.block_count", raw.F32, 2.0), raw.scalar("flag", raw.BOOL, True)]))
    file = GGUFFile(path)
    for key, kind, words in [
        ("llama.context_length", int, r"llama\.context_length.*int"),
        ("llama.block_count", int, r"llama\.block_count.*f32.*int"),
        ("flag", int, r"flag.*bool.*int"),
        ("flag", "arr[f32]", r"flag.*bool.*arr\[f32\]"),
    ]:
        with pytest.raises(ModelFileError, match=words) as caught:
            file.require(key, kind)
        assert str(path) in str(caught.value)
    assert file.get("llama.context_length", int, 8192) == 8192
    with pytest.raises(ModelFileError, match="block_count"):
        file.get("llama.block_count", int, 1)


WRAPPING = {
    "two dimensions, 2^64": one_tensor([1 << 32, 1 << 32]),
    "four dimensions, 2^64 + 8": one_tensor([8, 1 << 61, 1, 1]),
    "elements fit, bytes wrap": one_tensor([1 << 62]),
    "bytes wrap to 32": one_tensor([(1 << 62) + 8]),
    "four of 2^63": one_tensor([HUGE] * 4),
    "offset and size wrap to 0": one_tensor([8], offset=(1 << 64) - 32),
    "blocks of 34 bytes wrap": one_tensor([1 << 63], kind=8),
    "nothing": one_tensor([0]),
    "nothing, hidden": one_tensor([8, 0, 1 << 63]),
}


@pytest.mark.parametrize("name", WRAPPING)
def test_m06_products_do_not_wrap(write, name):
    refusal(write(WRAPPING[name]))


OVERLONG = {
    "key": (raw.gguf([raw.scalar("k" * 65_536, raw.U8, 1)]), "65536 bytes; at most 65535"),
    "token": (raw.gguf([raw.array("t", raw.STR, ["a", "x" * 65_537])]), "string 1 of .* 65537 bytes; at most 65536"),
    "tensor name": (raw.gguf([], [raw.entry("w" * 128, [8])], bytes(32)), "128 bytes; at most 127"),
    "dimensions": (one_tensor([1, 1, 1, 1, 8]), "5 dimensions"),
    "no dimensions": (one_tensor([]), "0 dimensions"),
    "empty key": (raw.gguf([raw.scalar("", raw.U8, 1)]), "key without a name"),
    "empty tensor name": (raw.gguf([], [raw.entry("", [8])], bytes(32)), "tensor without a name"),
}


@pytest.mark.parametrize("name", OVERLONG)
def test_m09_names_and_strings_have_limits(write, name):
    data, words = OVERLONG[name]
    message = refusal(write(data))
    assert re.search(words, message)
    assert len(message) < 1000


def test_m09_a_head_larger_than_accepted_is_refused(write, monkeypatch):
    monkeypatch.setattr(reader, "MAX_HEAD_BYTES", 1000)
    text = raw.scalar("text", raw.STR, "x" * 900)
    GGUFFile(write(raw.gguf([text], [raw.entry("w", [8])], bytes(4096))))
    assert "more than 1000 bytes of metadata" in refusal(write(raw.gguf([text, raw.scalar("b", raw.STR, "x" * 900)])))


NOT_TEXT = {
    "key": raw.gguf([raw.scalar(b"\xff", raw.U8, 1)]),
    "value": raw.gguf([raw.key("k", raw.STR, raw.string(b"\xc3"))]),
    "surrogate": raw.gguf([raw.key("k", raw.STR, raw.string(b"\xed\xa0\x80"))]),
    "token": raw.gguf(
        [raw.key("k", raw.ARR, struct.pack("<IQ", raw.STR, 2) + raw.string("a") + raw.string(b"\xc0\x80"))]
    ),
    "tensor name": raw.gguf([], [raw.entry(b"\xfe", [8])], bytes(32)),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_text_that_is_not_utf8_is_refused(write, name):
    assert "not UTF-8" in refusal(write(NOT_TEXT[name]))


ODD = {
    "key twice": (raw.gguf([raw.scalar("k", raw.U8, 1), raw.scalar("k", raw.U8, 2)]), "'k' twice"),
    "tensor twice": (
        raw.gguf([], [raw.entry("w", [8]), raw.entry("w", [8], offset=32)], bytes(64)),
        "tensor 'w' twice",
    ),
    "value type 13": (raw.gguf([raw.key("k", 13, bytes(8))]), "type 13, which GGUF does not have"),
    "element type 2^32 - 1": (raw.gguf([raw.key("k", 9, b"\xff" * 4 + bytes(8))]), "type 4294967295"),
    "array of arrays": (raw.gguf([raw.key("k", 9, struct.pack("<IQ", 9, 0))]), "arrays of arrays"),
    "truth value 2": (raw.gguf([raw.key("k", raw.BOOL, b"\2")]), "neither 0 nor 1"),
    "truth values 0, 255": (
        raw.gguf([raw.key("k", 9, struct.pack("<IQ", raw.BOOL, 2) + b"\0\xff")]),
        "neither 0 nor 1",
    ),
    "unknown tensor type": (one_tensor([8], kind=4), "'w'.*ggml type 4,.*Q4_K"),
    "rows of broken blocks": (one_tensor([33], kind=8), "rows of 33.*Q8_0 blocks of 32"),
    "version 1": (raw.gguf(version=1), "version 1; versions 2 and 3"),
    "version 4": (raw.gguf(version=4), "version 4; versions 2 and 3"),
    "big-endian": (raw.gguf(order=">"), "big-endian"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_the_format_does_not_allow_is_named(write, name):
    data, words = ODD[name]
    assert re.search(words, refusal(write(data)))


@pytest.mark.parametrize(("dims", "kind"), [([1 << 20], 0), ([256, 4096], 12), ([32, 3], 8), ([9], 0)])
def test_m13_a_tensor_that_claims_more_than_there_is(write, dims, kind):
    # What follows in the file, or in memory, must never come out as weights.
    assert "was not downloaded to its end" in refusal(write(one_tensor(dims, kind, data=bytes(35))))


def test_m13_a_tensor_holds_its_own_bytes_only(write):
    data = b"\1" * 32 + b"\2" * 34 + b"\3" * 200
    file = GGUFFile(write(raw.gguf([], [raw.entry("a", [8]), raw.entry("b", [32], 8, 32)], data)))
    assert file.tensors["a"].data.tobytes() == b"\1" * 32
    assert file.tensors["b"].data.tobytes() == b"\2" * 34
    with pytest.raises(ValueError, match="read-only"):
        file.tensors["a"].data[0, 0] = 0


IMPOSTORS = {
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4921246944\n",
        "Git LFS pointer",
    ),
    "HTML": (b"<!DOCTYPE html><html><head><title>404", "web page"),
    "HTML after blanks": (b"\r\n  <HTML lang=en>", "web page"),
    "JSON": (b'{"error":"Repository not found"}', "JSON"),
    "gzip": (b"\x1f\x8b\x08\0" + bytes(64), "compressed"),
    "GGML": (b"tjgg" + bytes(64), "before GGUF"),
    "text": (b"Entry not found", "begins with b'Entr'"),
    "zeros": (bytes(4096), "begins with"),
    "safetensors": (struct.pack("<Q", 300) + b'{"x":{"dtype":"F32"' + b" " * 281, "safetensors.*convert"),
    "safetensors whose length looks like a pickle": (struct.pack("<Q", 0x280) + b'{"x"' + b" " * 800, "safetensors"),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_m15_something_else_instead_of_a_model_is_named(write, name):
    data, words = IMPOSTORS[name]
    assert re.search(words, refusal(write(data)))


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(60), *(b"\x80" + bytes([n]) + b"}q\0." for n in (2, 3, 4, 5))])
def test_m16_pickles_are_refused(write, data):
    assert re.search("pickle can run code.*refused", refusal(write(data)))


def test_files_that_cannot_be_opened(tmp_path, write):
    assert "No such file" in refusal(tmp_path / "none.gguf")
    assert "folder" in refusal(tmp_path)
    assert "empty" in refusal(write(b""))
    with pytest.raises(ModelFileError, match="null"):
        GGUFFile(f"{tmp_path}/a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a file" in refusal(tmp_path / "pipe")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refusal(loop)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(write):
    path = write(raw.small())
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def bad_files() -> list[bytes]:
    whole = raw.small()
    cut = [whole[:size] for size in (4, 24, 100, 300, len(whole) - 1)]
    tables = [ODD, OVERLONG, PLACES, IMPOSTORS]
    return [*cut, *(data for table in tables for data, _ in table.values()), *WRAPPING.values()]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("times", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_m10_failed_loading_leaves_nothing_behind(tmp_path, times):
    paths = []
    for number, data in enumerate(bad_files()):
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(data)

    def load(count):
        for number in range(count):
            with pytest.raises(ModelFileError):
                GGUFFile(paths[number % len(paths)])

    load(len(paths) * 2)
    gc.collect()
    descriptors, resident = len(os.listdir("/proc/self/fd")), resident_bytes()
    load(times)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert resident_bytes() - resident < 4 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_m10_a_held_error_does_not_hold_the_file(write):
    path = write(raw.small()[:-1])
    before = len(os.listdir("/proc/self/fd"))
    errors = []
    for _ in range(20):
        with pytest.raises(ModelFileError) as caught:
            GGUFFile(path)
        errors.append(caught)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_large_vocabulary_opens_quickly(write):
    # As many strings as Llama 3 has tokens and merges.
    tokens = raw.array("tokenizer.ggml.tokens", raw.STR, [f"token{n}" for n in range(128_256)])
    merges = raw.array("tokenizer.ggml.merges", raw.STR, [f"left{n} right" for n in range(280_147)])
    path = write(raw.gguf([tokens, merges]))
    start = time.perf_counter()
    file = GGUFFile(path)
    assert time.perf_counter() - start < 1.0
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 128_256
    assert file.metadata["tokenizer.ggml.merges"][-1] == "left280146 right"
