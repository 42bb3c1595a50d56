"""The attention kernel against numpy: its own steps bit for bit, the reference within rounding."""

import signal
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from handlens.cpu import ops, reference
from tests.test_kernels import bf16, fma, isas, needs_bf16, needs_native, threads, tile_product  # noqa: F401

F32 = np.float32


def heads(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def exponential(x: np.ndarray) -> np.ndarray:
    """`exponential` of native/lanes.h."""
    rounder = F32(12582912)
    x = np.minimum(F32(89), np.maximum(F32(-87), x))
    shifted = fma(x, F32(1.44269504), rounder)
    n = shifted - rounder
    r = fma(n, F32(2.12194440e-4), fma(n, F32(-0.693359375), x))
    series = np.full_like(x, F32(1) / F32(5040))
    for factor in (720, 120, 24, 6, 2, 1, 1):
        series = fma(series, r, F32(1) / F32(factor))
    power = (shifted.view(np.uint32) << np.uint32(23)) + np.uint32(0x3F800000)
    return series * power.view(np.float32)


def twin_row(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What one query [d] reads of keys and values [m, d], step by step as native/attention.h says."""
    q = q * F32(1 / np.sqrt(float(len(q))))
    scores = np.zeros(len(keys), np.float32)
    for c in range(len(q)):
        scores = fma(q[c], keys[:, c], scores)
    lanes = np.pad(scores, (0, -len(scores) % 16), constant_values=-np.inf).reshape(-1, 16)
    powers = exponential(lanes - scores.max())
    total = np.zeros(16, np.float32)
    for vector in powers:
        total = total + vector
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    read = np.zeros(values.shape[1], np.float32)
    for power, value in zip(powers.reshape(-1), values):
        read = fma(power, value, read)
    return read * (F32(1) / total[0])


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("width", [1, 32, 64, 72, 80, 128])
def test_attention_equals_its_numpy_twin_bit_for_bit(isa, width):
    rng = np.random.default_rng(width)
    for n, m, count, kv_count, causal in ((1, 1, 2, 2, False), (5, 17, 2, 1, True), (17, 40, 4, 2, False)):
        q, keys, values = heads(rng, n, count, width), heads(rng, kv_count, m, width), heads(rng, kv_count, m, width)
        out = ops._attend(q, keys, values, causal, isa)
        for i in range(n):
            seen = m - n + i + 1 if causal else m
            for h in range(count):
                of = h * kv_count // count
                np.testing.assert_array_equal(out[i, h], twin_row(q[i, h], keys[of, :seen], values[of, :seen]))


@needs_native
@pytest.mark.parametrize("width", [32, 64, 72, 80, 128])
@pytest.mark.parametrize("m", [1, 15, 16, 33, 500, 1100])
def test_attention_is_the_references_up_to_rounding_on_every_instruction_set_alike(width, m):
    rng = np.random.default_rng(m)
    keys, values = heads(rng, 2, m, width), heads(rng, 2, m, width)
    for n in {1, min(5, m), min(17, m)}:
        q = 3 * heads(rng, n, 4, width)
        alike = {ops.causal_attention(q, keys, values, isa).tobytes() for isa in isas()}
        assert len(alike) == 1
        ours = np.frombuffer(alike.pop(), np.float32).reshape(q.shape)
        np.testing.assert_allclose(ours, reference.causal_attention(q, keys, values), atol=2e-5)
        k, v = (array.repeat(2, axis=0).swapaxes(0, 1) for array in (keys, values))
        np.testing.assert_allclose(ops.attention(q, k, v), reference.attention(q, k, v), atol=2e-5)


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("width", [20, 64, 72, 128])
def test_attention_to_float16_is_that_to_the_same_numbers_in_float32_bit_for_bit(isa, width):
    rng = np.random.default_rng(width)
    for n, m in ((1, 1), (1, 300), (2, 40), (50, 130)):
        q = heads(rng, n, 4, width)
        keys, values = (heads(rng, 2, m + 3, width).astype(np.float16)[:, :m] for _ in range(2))
        wide = keys.astype(np.float32), values.astype(np.float32)
        wanted = ops.causal_attention(q, *wide, isa)
        np.testing.assert_array_equal(ops.causal_attention(q, keys, values, isa), wanted)
        np.testing.assert_array_equal(reference.causal_attention(q, keys, values), reference.causal_attention(q, *wide))
        # As the newest of many, and alone.
        np.testing.assert_array_equal(ops.causal_attention(q[-1:], keys, values, isa), wanted[-1:])


@needs_native
def test_keys_and_values_of_other_types_are_refused():
    q, keys, values = (np.zeros((2, 3, 16), dtype) for dtype in (np.float32, np.float16, np.float32))
    for arrays in ((keys, values), (values, keys), (values.astype(np.float64),) * 2, (keys.view(np.int16),) * 2):
        with pytest.raises(TypeError, match="both float32 or"):
            ops.causal_attention(q, *arrays)


# With products of bfloat16 numbers

#: How far attention in bfloat16 is from float32 on normally distributed input: at most, and as a root mean square, as a
#: share of the deviation of the values that are read, and of the outputs.
BF16_BOUND, BF16_SHARE = 2e-2, 6e-3


def power_of_two(x: np.ndarray) -> np.ndarray:
    """`power_of_two_below_one` of native/amx_attention.cpp."""
    x = np.maximum(F32(-126), x)
    shifted = x + F32(12582912)
    rest = x - (shifted - F32(12582912))
    series = np.full_like(x, F32(0.0551716626))
    for factor in (0.242611155, 0.69326099, 0.999928072):
        series = fma(series, rest, F32(factor))
    power = (shifted.view(np.uint32) << np.uint32(23)) + np.uint32(0x3F800000)
    return series * power.view(np.float32)


def bf16_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """As `ops.attention`, with products of bfloat16 numbers."""
    return ops._attend(q, k.swapaxes(0, 1), v.swapaxes(0, 1), False, None, bf16=True)


def bf16_twin_row(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What one query [d] reads of keys and values [m, d], step by step as native/amx_attention.cpp says."""
    deep, long = -len(q) % 32, -len(keys) % 32
    q = bf16(q * F32(1.4426950408889634 / np.sqrt(float(len(q)))))
    scores = tile_product(np.pad(q, (0, deep))[None], np.pad(bf16(keys).T, ((0, deep), (0, 0))))[0]
    powers = np.pad(power_of_two(scores - scores.max()), (0, long))
    total = np.zeros(16, np.float32)
    for vector in powers.reshape(-1, 16):
        total = total + vector
    while len(total) > 1:
        total = total[: len(total) // 2] + total[len(total) // 2 :]
    read = tile_product(bf16(powers)[None], np.pad(bf16(values), ((0, long), (0, 0))))[0]
    return read * (F32(1) / total[0])


@needs_bf16
@pytest.mark.parametrize("width", [1, 16, 20, 32, 72, 80, 128])
@pytest.mark.parametrize("n, m", [(1, 1), (3, 17), (33, 40), (40, 300)])
def test_bf16_attention_equals_its_numpy_twin_bit_for_bit(width, n, m):
    rng = np.random.default_rng(width)
    q, keys, values = heads(rng, n, 4, width), heads(rng, 2, m, width), heads(rng, 2, m, width)
    out = bf16_attention(q, keys.swapaxes(0, 1), values.swapaxes(0, 1))
    for i in {0, n // 2, n - 1}:
        for h in range(4):
            np.testing.assert_array_equal(out[i, h], bf16_twin_row(q[i, h], keys[h // 2], values[h // 2]))


@needs_bf16
@pytest.mark.parametrize("width", [64, 72, 128])
@pytest.mark.parametrize("m", [1, 33, 1024, 1100])
def test_bf16_attention_is_the_references_within_its_bound(width, m):
    rng = np.random.default_rng(m)
    q, k, v = 2 * heads(rng, 70, 2, width), heads(rng, m, 2, width), heads(rng, m, 2, width)
    wanted, ours = reference.attention(q, k, v), bf16_attention(q, k, v)
    assert np.abs(ours - wanted).max() <= BF16_BOUND
    assert np.sqrt(np.square(ours - wanted).mean() / np.square(wanted).mean()) <= BF16_SHARE


@needs_bf16
def test_bf16_attention_does_not_read_padding_and_keeps_what_is_no_number_to_its_row():
    rng = np.random.default_rng(0)
    q, k, v = heads(rng, 40, 2, 72), heads(rng, 60, 2, 72), heads(rng, 60, 2, 72)
    wanted = bf16_attention(q, k[:43].copy(), v[:43].copy())
    k[43:], v[43:] = np.nan, np.inf
    q[7, 1, 3] = np.nan
    out = bf16_attention(q, k[:43], v[:43])
    assert np.isnan(out[7, 1]).all()
    out[7, 1] = wanted[7, 1]
    np.testing.assert_array_equal(out, wanted)


@needs_bf16
def test_bf16_attention_finds_one_key_among_many_by_far():
    rng = np.random.default_rng(0)
    k, v = heads(rng, 500, 2, 72), heads(rng, 500, 2, 72)
    out = bf16_attention(1e3 * k[:90], k, v)
    np.testing.assert_allclose(out, v[:90], rtol=5e-3)


@needs_bf16
def test_bf16_attention_has_the_same_bytes_for_any_thread_count_and_in_any_company(threads):  # noqa: F811
    rng = np.random.default_rng(1)
    q, k, v = heads(rng, 130, 4, 72), heads(rng, 300, 4, 72), heads(rng, 300, 4, 72)
    wanted = bf16_attention(q, k, v)
    for count in (1, 2, 3, 4):
        threads(count)
        assert bf16_attention(q, k, v).tobytes() == wanted.tobytes()
    for i in (0, 57, 129):
        np.testing.assert_array_equal(bf16_attention(q[i : i + 1], k, v)[0], wanted[i])


def causal_cache(rng: np.random.Generator, m: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values [2, m, width] as a cache holds them."""
    return tuple(heads(rng, 2, m, width).astype(np.float16) for _ in range(2))


@needs_bf16
@pytest.mark.parametrize("width", [20, 64, 128])
@pytest.mark.parametrize("n, m", [(1, 1), (1, 70), (33, 33), (70, 300), (40, 257)])
def test_causal_bf16_attention_equals_its_numpy_twin_bit_for_bit(width, n, m):
    rng = np.random.default_rng(width + n)
    q, (keys, values) = heads(rng, n, 6, width), causal_cache(rng, m, width)
    out = ops.causal_attention(q, keys, values, bf16=True)
    for i in {0, n // 3, n - 1}:
        for h in range(6):
            seen = m - n + i + 1
            cached = (array[h // 3, :seen].astype(np.float32) for array in (keys, values))
            np.testing.assert_array_equal(out[i, h], bf16_twin_row(q[i, h], *cached))
    wanted = reference.causal_attention(q, keys, values)
    assert np.sqrt(np.square(out - wanted).mean() / np.square(wanted).mean()) <= BF16_SHARE


@needs_bf16
def test_causal_bf16_attention_gives_the_same_bytes_in_any_pieces(threads):  # noqa: F811
    rng = np.random.default_rng(2)
    q, (keys, values) = heads(rng, 200, 8, 64), causal_cache(rng, 200, 64)
    wanted = ops.causal_attention(q, keys, values, bf16=True)
    for count in (1, 3):
        threads(count)
        for ends in ((0, 200), (0, 1, 64, 65, 200), (0, 130, 199, 200)):
            parts = [
                ops.causal_attention(q[first:end], keys[:, :end], values[:, :end], bf16=True)
                for first, end in pairwise(ends)
            ]
            np.testing.assert_array_equal(np.concatenate(parts), wanted)


@needs_native
def test_attention_in_bf16_is_refused_where_there_is_none():
    rng = np.random.default_rng(1)
    q, k, v = heads(rng, 5, 2, 72), heads(rng, 7, 2, 72), heads(rng, 7, 2, 72)
    out = np.empty_like(q)
    for isa in isas():
        if ops.multiplies_bf16(isa):
            continue
        with pytest.raises(ValueError, match=f"{isa} has no attention in bf16"):
            ops.native.attend(q, k.swapaxes(0, 1), v.swapaxes(0, 1), out, False, isa, True)


@needs_native
def test_padding_keys_are_not_read():
    rng = np.random.default_rng(0)
    q, k, v = heads(rng, 3, 2, 72), heads(rng, 20, 2, 72), heads(rng, 20, 2, 72)
    wanted = ops.attention(q, k[:13].copy(), v[:13].copy())
    k[13:], v[13:] = np.nan, np.nan
    np.testing.assert_array_equal(ops.attention(q, k, v, key_count=13), wanted)


@needs_native
def test_large_scores_and_what_is_no_number():
    rng = np.random.default_rng(0)
    q, k, v = heads(rng, 40, 2, 64), heads(rng, 40, 2, 64), heads(rng, 40, 2, 64)
    big = q * np.float32(1e3)
    np.testing.assert_allclose(ops.attention(big, k, v), reference.attention(big, k, v), atol=1e-3)
    q[7, 1, 3] = np.nan
    out = ops.attention(q, k, v)
    assert np.isnan(out[7, 1]).all()
    out[7, 1] = 0
    assert np.isfinite(out).all()


@needs_native
@pytest.mark.parametrize("causal", [False, True])
def test_any_thread_count_and_any_company_give_the_same_bytes(causal, threads):  # noqa: F811
    rng = np.random.default_rng(1)
    q, keys, values = heads(rng, 130, 4, 72), heads(rng, 2, 300, 72), heads(rng, 2, 300, 72)
    wanted = ops._attend(q, keys, values, causal, None)
    for count in (1, 2, 3, 4):
        threads(count)
        assert ops._attend(q, keys, values, causal, None).tobytes() == wanted.tobytes()
    for i in (0, 57, 129):
        seen = 300 - 130 + i + 1 if causal else 300
        alone = ops._attend(q[i : i + 1], keys[:, :seen], values[:, :seen], causal, None)
        np.testing.assert_array_equal(alone[0], wanted[i])


@needs_native
def test_prefill_and_decoding_give_the_same_bytes():
    rng = np.random.default_rng(2)
    q, keys, values = heads(rng, 50, 4, 64), heads(rng, 2, 90, 64), heads(rng, 2, 90, 64)
    together = ops.causal_attention(q, keys, values)
    for i in range(50):
        one = ops.causal_attention(q[i : i + 1], keys[:, : 41 + i], values[:, : 41 + i])
        np.testing.assert_array_equal(one[0], together[i])


@needs_native
def test_wrong_input_raises_at_the_boundary():
    rng = np.random.default_rng(0)
    q, keys, values = heads(rng, 3, 4, 8), heads(rng, 2, 6, 8), heads(rng, 2, 6, 8)
    with pytest.raises(ValueError, match="4 heads of width 8 cannot read 3 key-value heads"):
        ops.causal_attention(q, heads(rng, 3, 6, 8), heads(rng, 3, 6, 8))
    with pytest.raises(ValueError, match="width 9"):
        ops.causal_attention(q, heads(rng, 2, 6, 9), heads(rng, 2, 6, 9))
    with pytest.raises(ValueError, match="one shape each"):
        ops.causal_attention(q, keys, values[:, :5])
    with pytest.raises(ValueError, match="3 queries cannot read 2 keys"):
        ops.causal_attention(q, keys[:, :2], values[:, :2])
    with pytest.raises(ValueError, match="3 queries cannot read 0 keys"):
        ops.attention(q, keys[0][:0, None].repeat(4, 1), values[0][:0, None].repeat(4, 1))
    with pytest.raises(ValueError, match="one behind the other"):
        ops.causal_attention(q, keys[:, :, ::-1], values)
    with pytest.raises(TypeError):
        ops.causal_attention(q.astype(np.float64), keys, values)
    with pytest.raises(ValueError, match="no kernels called 'mmx'"):
        ops.causal_attention(q, keys, values, "mmx")


@needs_native
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_ctrl_c_ends_long_attention_within_200_ms():
    code = """if True:
        import signal, time
        import numpy as np
        from handlens.cpu import ops
        q, keys = np.ones((4000, 32, 64), np.float32), np.ones((8, 4000, 64), np.float32)
        def at_alarm(*_):
            global alarm
            alarm = time.perf_counter()
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, at_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.perf_counter()
        try:
            ops.causal_attention(q, keys, keys, "scalar")
        except KeyboardInterrupt:
            end = time.perf_counter()
            print(end - start, end - alarm, ops.causal_attention(q[:1], keys, keys).sum())
    """
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    waited, after, total = map(float, ran.stdout.split())
    assert waited < 0.6 and after < 0.2 and total == 32 * 64
