"""The kernels against numpy: bit for bit where both compute in integers, within stated bounds of float32."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from handlens.cpu import ops, reference
from handlens.cpu.backend import (
    KERNELS_VARIABLE,
    CpuBackend,
    choose_arithmetic,
    describe_arithmetic,
    describe_instruction_sets,
)
from handlens.cpu.llama import KVCache, Llama, _layer_shapes
from handlens.cpu.threads import THREADS_VARIABLE, physical_cores, thread_count
from handlens.errors import InputError
from handlens.gguf import blocks, codebooks
from handlens.gguf.blocks import BLOCKS, Tensor
from tests import tiny

needs_native = pytest.mark.skipif(
    ops.native is None and os.environ.get("HANDLENS_REQUIRE_NATIVE") != "1",
    reason="the native module was not built: pip install . with a C++ compiler",
)
needs_bf16 = pytest.mark.skipif(
    ops.native is None or not any(map(ops.multiplies_bf16, ops.native.isas())),
    reason="the processor has no AMX for bfloat16",
)
QUANTIZED = [name for name in BLOCKS if name not in ops.FLOAT_TYPES]
#: The error of a linear layer against float32, root mean square as a share of the output's. It is what int8 activations
#: cost: codes and scales are packed as they are.
BOUND = 0.008
#: What rounding both to bfloat16 costs instead.
BF16_BOUND = 0.004
#: The same of the logits of a model, as a share of their deviation.
LOGITS_BOUND = 0.02

#: The middle code of types with a minimum: there random weights have their zero, as trained ones do.
MIDDLE = {"Q4_1": 7.5, "Q5_1": 15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}


def isas() -> list[str]:
    return ops.native.isas() if ops.native else ["none"]


@pytest.fixture
def threads():
    """Sets the thread count for a test."""
    yield ops.native.set_threads
    ops.native.set_threads(thread_count())


def random_tensor(name: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix of random blocks, its numbers as large as a trained layer's."""
    layout = getattr(blocks, f"_{name}")
    rng = np.random.default_rng(seed)
    count = rows * columns // BLOCKS[name].weights
    records = rng.integers(0, 256, count * layout.itemsize, dtype=np.uint8).view(layout)
    records["d"] = rng.uniform(0.5, 1.5, count)
    if name in MIDDLE:
        least, sign = ("m", -1) if "m" in layout.names else ("dmin", 1)
        records[least] = sign * MIDDLE[name] * records["d"].astype(np.float32)
    data = records.view(np.uint8).reshape(rows, -1)
    gain = np.float32(1 / np.sqrt(columns)) / BLOCKS[name].dequantize(data).std()
    for field in {"d", "dmin", "m"} & set(layout.names):
        records[field] = records[field].astype(np.float32) * gain
    return Tensor(name, (rows, columns), data)


def activations(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32)


def quantised(x: np.ndarray, width: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The values [n, groups, width] and scales [n, groups] of activations."""
    groups = x.reshape(len(x), -1, width)
    largest = np.abs(groups).max(axis=-1)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest >= 1e-30)
    scales = np.where(inverse != 0, largest / np.float32(127), 0).astype(np.float32)
    return np.rint(groups * inverse[..., None]).astype(np.int64), scales


def codes_of(tensor: Tensor) -> np.ndarray:
    """The signed codes [rows, groups, 32] of a tensor."""
    b = np.ascontiguousarray(tensor.data).reshape(-1).view(getattr(blocks, f"_{tensor.type}"))
    levels = codebooks.iq4_levels()
    of_type = {
        "Q8_0": lambda: b["qs"],
        "Q4_0": lambda: blocks._unpack(b["qs"], 4, 16) - 8.0,
        "Q4_1": lambda: blocks._unpack(b["qs"], 4, 16),
        "Q5_0": lambda: blocks._five_bits(b) - 16.0,
        "Q5_1": lambda: blocks._five_bits(b),
        "IQ4_NL": lambda: levels[blocks._unpack(b["qs"], 4, 16)],
        "IQ4_XS": lambda: levels[blocks._unpack(b["qs"], 4, 16)],
        "Q2_K": lambda: blocks._unpack(b["qs"], 2, 32),
        "Q3_K": lambda: (blocks._unpack(b["qs"], 2, 32) | blocks._unpack(b["hmask"], 1, 32) << 2) - 4.0,
        "Q4_K": lambda: blocks._unpack(b["qs"], 4, 32),
        "Q5_K": lambda: blocks._unpack(b["qs"], 4, 32) | blocks._unpack(b["qh"], 1, 32) << 4,
        "Q6_K": lambda: (blocks._unpack(b["ql"], 4, 64) | blocks._unpack(b["qh"], 2, 32) << 4) - 32.0,
    }
    if tensor.type in of_type:
        codes = of_type[tensor.type]()
    else:  # those with a codebook give their codes where every scale is 1
        plain = b.copy()
        plain["d"] = {"IQ2_S": 8, "IQ3_XXS": 4, "IQ3_S": 1}[tensor.type]
        if tensor.type == "IQ3_XXS":
            plain["signs_and_scales"] &= 0x0FFFFFFF
        else:
            plain["scales"] = 0
        codes = BLOCKS[tensor.type].dequantize(plain.view(np.uint8))
    return codes.reshape(len(tensor.data), -1, 32).astype(np.int64)


def scales_of(tensor: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """The scales and the minima [rows, groups * parts] of a tensor, a scale for each group or for each half of it."""
    rows = len(tensor.data)
    b = np.ascontiguousarray(tensor.data).reshape(-1).view(getattr(blocks, f"_{tensor.type}"))
    d, minima = b["d"].astype(np.float32)[:, None], None
    if "m" in b.dtype.names:
        factors, minima = np.float32(1), -b["m"].astype(np.float32)[:, None]
    elif tensor.type in ("Q4_K", "Q5_K"):
        factors, minima = blocks._scales_and_minima(b["scales"])
    elif tensor.type == "Q2_K":
        factors, minima = b["scales"] & 15, b["scales"] >> 4
    elif tensor.type == "Q3_K":
        low, high = b["scales"][:, :8], b["scales"][:, 8:]
        factors = (blocks._unpack(low, 4, 8) | blocks._unpack(high, 2, 4) << 4).astype(np.float32) - 32
    elif tensor.type == "Q6_K":
        factors = b["scales"]
    elif tensor.type == "IQ4_XS":
        factors = (blocks._unpack(b["scales_l"], 4, 1) | blocks._unpack(b["scales_h"], 2, 1) << 4).astype(
            np.float32
        ) - 32
    elif tensor.type == "IQ3_XXS":
        factors = ((b["signs_and_scales"] >> 28) + 0.5).astype(np.float32) / 2
    elif tensor.type == "IQ3_S":
        factors = 2 * blocks._unpack(b["scales"], 4, 1) + 1
    elif tensor.type == "IQ2_S":
        factors = (blocks._unpack(b["scales"], 4, 1) + np.float32(0.5)) / 4
    else:
        factors = np.float32(1)
    if "dmin" in b.dtype.names:
        minima = b["dmin"].astype(np.float32)[:, None] * minima
    return (d * factors).reshape(rows, -1), None if minima is None else minima.reshape(rows, -1)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once; float64 holds the product exactly."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def bf16(x: np.ndarray) -> np.ndarray:
    """x rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)) & np.uint32(0xFFFF0000)).view(np.float32)


def tile_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [n, 32 k] times b [32 k, m], as tiles of bfloat16 sum it: 32 after another, the even and the odd ones apart."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for start in range(0, len(b), 32):
        sums = np.zeros((2, *total.shape), np.float32)
        for i in range(start, start + 32):
            sums[i % 2] = fma(a[:, i, None], b[i], sums[i % 2])
        total = total + (sums[0] + sums[1])
    return total


def twin(x: np.ndarray, tensor: Tensor) -> np.ndarray:
    """What the kernels compute, step by step as native/kernels.h says."""
    values, value_scales = quantised(x)
    codes, (scales, minima) = codes_of(tensor), scales_of(tensor)
    parts_of_group = scales.shape[1] // codes.shape[1]
    total = np.zeros((len(x), len(codes)), np.float32)
    for part in range(scales.shape[1]):
        g, within = divmod(part, parts_of_group)
        columns = slice(within * 32 // parts_of_group, (within + 1) * 32 // parts_of_group)
        scale = value_scales[:, g, None]
        dot = (values[:, g, columns] @ codes[:, g, columns].T).astype(np.float32)
        total = fma(dot * scale, scales[:, part], total)
        if minima is not None:
            sums = scale * values[:, g, columns].sum(axis=-1, keepdims=True).astype(np.float32)
            total = fma(-sums, minima[:, part], total)
    return total


def unpacked_twin(tensor: Tensor) -> np.ndarray:
    """The numbers [rows, columns] that a prompt meets, step by step as native/amx_linear.cpp says."""
    codes, (scales, minima) = codes_of(tensor), scales_of(tensor)
    codes = codes.reshape(len(codes), -1)
    width = codes.shape[1] // scales.shape[1]
    scales = np.repeat(scales, width, axis=1)
    if minima is None:
        numbers = scales * codes.astype(np.float32)
    else:
        above = np.full_like(scales, 256)
        numbers = fma(above + codes, scales, fma(-scales, above, -np.repeat(minima, width, axis=1)))
    return (numbers.view(np.uint32) + np.uint32(0x8000) & np.uint32(0xFFFF0000)).view(np.float32)


def linear(x: np.ndarray, tensor: Tensor, isa: str | None = None) -> np.ndarray:
    return ops.linear(x, ops.pack(tensor, isa))


@needs_native
def test_the_native_module_is_built():
    assert ops.native is not None, "HANDLENS_REQUIRE_NATIVE is 1, but handlens was installed without its kernels"


# The same bits as numpy


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("rows", [1, 7, 8, 16, 17, 33, 100])
def test_kernels_equal_their_numpy_twin_bit_for_bit(name, isa, rows):
    columns = 768 if BLOCKS[name].weights == 256 else 416
    tensor = random_tensor(name, rows, columns)
    weight = ops.pack(tensor, isa)
    for n in (1, 2, 3, 4, 5, 6, 7, 13):
        x = activations(n, columns, seed=n)
        np.testing.assert_array_equal(ops.linear(x, weight), twin(x, tensor))


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "Q2_K"])
def test_more_than_kernels_take_at_a_time_equals_the_twin_too(name, isa):
    """Columns, rows and tokens beyond what is unpacked, or computed by one task, in one go."""
    tensor = random_tensor(name, 150, 1536)
    x = activations(310, 1536)
    np.testing.assert_array_equal(linear(x, tensor, isa), twin(x, tensor))


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", QUANTIZED)
def test_extreme_codes_and_activations_do_not_overflow(name, isa):
    columns = BLOCKS[name].weights
    for fill in (0x00, 0x7F, 0x80, 0xFF):
        records = np.full(9 * BLOCKS[name].nbytes, fill, np.uint8).view(getattr(blocks, f"_{name}"))
        records["d"] = 1
        for field in {"dmin", "m"} & set(records.dtype.names):
            records[field] = 1
        tensor = Tensor(name, (9, columns), records.view(np.uint8).reshape(9, -1))
        for x in (np.ones((5, columns), np.float32), np.full((5, columns), -3e4, np.float32)):
            np.testing.assert_array_equal(linear(x, tensor, isa), twin(x, tensor))


@needs_native
@pytest.mark.parametrize("name", QUANTIZED)
def test_one_group_of_columns_and_nothing_at_all(name):
    columns = BLOCKS[name].weights
    tensor = random_tensor(name, 5, columns)
    np.testing.assert_array_equal(linear(activations(3, columns), tensor), twin(activations(3, columns), tensor))
    assert linear(np.empty((0, columns), np.float32), tensor).shape == (0, 5)
    empty = Tensor(name, (0, columns), np.empty((0, BLOCKS[name].nbytes), np.uint8))
    assert linear(activations(2, columns), empty).shape == (2, 0)


@needs_native
def test_zeros_tiny_and_huge_activations():
    tensor = random_tensor("Q8_0", 20, 64)
    for scale in (0, 1e-38, 1e-31, 1e-20, 1e20, 1e35):
        x = activations(2, 64) * np.float32(scale)
        np.testing.assert_array_equal(linear(x, tensor), twin(x, tensor))


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_poisons_its_row_and_no_other(isa, poison):
    x = activations(8, 256)
    x[3, 77] = poison
    for name in QUANTIZED:
        out = linear(x, random_tensor(name, 40, 256), isa)
        assert not np.isfinite(out[3]).any() and np.isfinite(np.delete(out, 3, axis=0)).all()


@needs_native
@pytest.mark.parametrize("name", QUANTIZED)
def test_any_thread_count_and_any_company_give_the_same_bytes(name, threads):
    tensors = [random_tensor(name, rows, 512, seed=rows) for rows in (333, 64, 1)]
    x = activations(50, 512)
    weights = [(ops.pack(tensor),) for tensor in tensors]
    wanted = [twin(x, tensor).tobytes() for tensor in tensors]
    for count in (1, 2, 3, 4):
        threads(count)
        assert ops.native.threads() == count
        assert [out.tobytes() for out in ops.linears(x, *weights)] == wanted
        alone = np.concatenate([ops.linear(x[i : i + 1], weights[0][0]) for i in range(len(x))])
        assert alone.tobytes() == wanted[0]


@needs_native
def test_python_threads_and_two_models_share_the_pool(threads):
    threads(2)
    tensors = [random_tensor(name, 200, 512) for name in ("Q4_K", "Q8_0")]
    x = activations(9, 512)
    pairs = [(ops.pack(tensor), twin(x, tensor)) for tensor in tensors]

    def many(pair):
        return all(np.array_equal(ops.linear(x, pair[0]), pair[1]) for _ in range(50))

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(many, pairs * 2))


@needs_native
def test_what_nobody_may_compute_beside_gets_its_turn_among_many_callers(threads):
    threads(2)
    tensor, x = random_tensor("Q4_K", 200, 512), activations(9, 512)
    weight, wanted, ended = ops.pack(tensor), twin(x, tensor), threading.Event()

    def many():
        right = True
        while not ended.is_set():
            right &= np.array_equal(ops.linear(x, weight), wanted)
        return right

    with ThreadPoolExecutor(4) as callers:
        answers = [callers.submit(many) for _ in range(4)]
        try:
            for count in (1, 3, 2) * 4:
                ops.set_threads(count)
                np.testing.assert_array_equal(ops.linear(x, ops.pack(tensor)), wanted)
        finally:
            ended.set()
        assert all(answer.result() for answer in answers)


# In bfloat16, as prompts are


@needs_bf16
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("rows", [1, 17, 70])
def test_quantised_weights_in_bf16_equal_their_numpy_twin_bit_for_bit(name, rows):
    tensor, x = random_tensor(name, 40, 768), activations(rows, 768)
    out = ops.linear(x, ops.pack(tensor), bf16=True)
    np.testing.assert_array_equal(out, tile_product(bf16(x), unpacked_twin(tensor).T))


@needs_bf16
@pytest.mark.parametrize(("shape", "rows"), [((1700, 256), 5), ((64, 4096), 300)])
def test_more_than_tiles_take_at_a_time_equals_the_twin_too(shape, rows):
    tensor, x = random_tensor("Q4_K", *shape), activations(rows, shape[1])
    out, wanted = ops.linear(x, ops.pack(tensor), bf16=True), unpacked_twin(tensor).T
    for few in (slice(0, 3), slice(rows - 2, rows)):
        np.testing.assert_array_equal(out[few], tile_product(bf16(x[few]), wanted))


@needs_bf16
def test_any_thread_count_and_any_company_give_the_same_bytes_in_bf16(threads):
    x, weight = activations(290, 1024), ops.pack(random_tensor("Q5_K", 850, 1024))
    wanted = ops.linear(x, weight, bf16=True)
    for count in (1, 2, 3):
        threads(count)
        assert ops.linear(x, weight, bf16=True).tobytes() == wanted.tobytes()
    for some in (slice(0, 1), slice(3, 50), slice(40, 289)):
        np.testing.assert_array_equal(ops.linear(x[some], weight, bf16=True), wanted[some])


@needs_bf16
@pytest.mark.parametrize("kinds", [("Q4_K", "Q4_K", "Q6_K"), ("Q4_0", "Q8_0", "Q4_0"), ("Q4_K", "Q4_K", "F16")])
def test_a_gated_feed_forward_in_bf16_equals_its_parts(kinds):
    n, columns, wide = 77, 256, 1280
    shapes = (wide, columns), (wide, columns), (columns, wide)
    floats = Tensor.from_array(activations(columns, wide, seed=7).astype(np.float16) / 36)
    tensors = [
        random_tensor(kind, *shape) if kind != "F16" else floats for kind, shape in zip(kinds, shapes, strict=True)
    ]
    weights = [ops.pack(tensor) for tensor in tensors]
    x, scale = activations(n, columns), activations(1, columns, seed=9)[0]
    gate, up = ops.norm_linears(x, (scale,), 1e-6, (weights[0],), (weights[1],), bf16=True)
    parts = ops._linears(gate, ((weights[2],),), x, ops.native.Step("swiglu", second=up), True)[0]
    layers = [(weight,) for weight in weights]
    np.testing.assert_array_equal(ops.gated_feed_forward(x.copy(), (scale,), 1e-6, *layers, bf16=True), parts)
    close = reference.gated_feed_forward(x, (scale,), 1e-6, *((weight.dequantize(),) for weight in weights))
    assert np.sqrt(np.mean((parts - close) ** 2)) <= BF16_BOUND * np.sqrt(np.mean((close - x) ** 2)) * 2


@needs_native
def test_bf16_is_int8_where_the_processor_has_none():
    tensor, x = random_tensor("Q4_K", 40, 256), activations(20, 256)
    for isa in ops.native.isas():
        same = np.array_equal(ops.linear(x, ops.pack(tensor, isa), bf16=True), linear(x, tensor, isa))
        assert same != ops.multiplies_bf16(isa)


# Within a bound of float32


@needs_native
@pytest.mark.parametrize("name", QUANTIZED)
def test_every_type_is_within_its_bound_of_float32(name):
    tensor = random_tensor(name, 256, 1024)
    x = activations(16, 1024)
    wanted = reference.linear(x, tensor)
    for rounded in {False, ops.multiplies_bf16()}:
        error = ops.linear(x, ops.pack(tensor), bf16=rounded) - wanted
        assert np.sqrt(np.mean(error**2)) <= (BF16_BOUND if rounded else BOUND) * np.sqrt(np.mean(wanted**2))


def models_of(name: str) -> tuple[Llama, Llama]:
    """A tiny model of 128 tokens whose matrices have one block type: in numpy, and on the kernels."""
    config = tiny.config(vocab_size=128).llm
    width = config.hidden_size
    rng = np.random.default_rng(3)
    shapes = {"token_embd.weight": (128, width), "output_norm.weight": (width,), "output.weight": (128, width)}
    for index in range(config.num_hidden_layers):
        shapes |= {f"blk.{index}.{key}": shape for key, shape in _layer_shapes(config).items()}
    exact, packed = {}, {}
    for seed, (key, shape) in enumerate(shapes.items()):
        if len(shape) == 1:
            exact[key] = packed[key] = rng.uniform(0.8, 1.2, shape).astype(np.float32)
        elif key == "token_embd.weight":
            exact[key] = packed[key] = rng.standard_normal(shape, dtype=np.float32)
        else:
            tensor = random_tensor(name, *shape, seed=seed) if name in QUANTIZED else float_matrix(*shape, seed=seed)
            exact[key], packed[key] = tensor.dequantize(), ops.pack(tensor)
    return Llama(config, exact), Llama(config, packed, ops)


def float_matrix(rows: int, columns: int, seed: int) -> Tensor:
    return Tensor.from_array((activations(rows, columns, seed) / np.sqrt(columns)).astype(np.float16))


def logits_of_both(name: str, prompt: bool) -> tuple[np.ndarray, np.ndarray]:
    """The logits [400, 128] of both models of a block type for the same ids."""
    models = models_of(name)
    ids = np.random.default_rng(4).integers(0, 128, 400)
    caches = KVCache(models[0].config), KVCache(models[1].config, dtype=np.float16)
    return tuple(
        model.forward([model.embed(ids)], [cache], all_logits=True, prompt=prompt)[0]
        for model, cache in zip(models, caches, strict=True)
    )


@needs_native
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16"])
def test_all_layers_in_one_call_give_the_bits_of_one_after_another(name, prompt, dtype):
    _, model = models_of(name)
    assert model.decoder is not None
    inputs = [model.embed(np.arange(count)) for count in (40, 3, 1)]

    def run() -> tuple[list[np.ndarray], list[KVCache]]:
        caches = [KVCache(model.config, dtype=dtype) for _ in inputs]
        first = model.forward(inputs, caches, all_logits=True, prompt=prompt)
        behind = model.forward([x[:2] for x in inputs[:2]], caches[:2], tails=[2, 1], prompt=not prompt)
        return [*first, behind], caches

    at_once, cached = run()
    model.decoder = None
    one_by_one, others = run()
    for mine, theirs in zip(at_once, one_by_one, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for cache, other in zip(cached, others, strict=True):
        assert cache.length == other.length
        for mine, theirs in zip(cache._keys + cache._values, other._keys + other._values, strict=True):
            np.testing.assert_array_equal(mine[:, : cache.length], theirs[:, : cache.length])


@needs_native
def test_a_decoder_says_what_does_not_fit():
    _, model = models_of("Q4_0")
    config, (cos, sin) = model.config, model._rotation([(0, 2)])
    room = np.zeros((config.num_key_value_heads, 4, config.head_dim), np.float16)
    rooms = [room.copy() for _ in range(config.num_hidden_layers)]
    x, logits = np.zeros((2, config.hidden_size), np.float32), np.empty((1, config.vocab_size), np.float32)
    forward = model.decoder.forward
    forward(x, cos, sin, [2], [2], rooms, rooms, [1], logits)
    for arguments, says in (
        ((x[:, 1:].copy(), cos, sin, [2], [0], rooms, rooms, [1], logits), "x is"),
        ((x, cos[:1], sin, [2], [0], rooms, rooms, [1], logits), "the cosines"),
        ((x, cos, sin, [1], [0], rooms, rooms, [1], logits), "the rows of all sequences"),
        ((x, cos, sin, [2], [3], rooms, rooms, [1], logits), "at least 5 positions"),
        ((x, cos, sin, [2], [0], rooms[1:], rooms, [1], logits), "the keys and values of all their layers"),
        (
            (x, cos, sin, [2], [0], rooms, [room.astype(np.float32)] * len(rooms), [1], logits),
            "all float32 or all float16",
        ),
        ((x, cos, sin, [2], [0], rooms, rooms, [3], logits), "more logits than rows"),
        ((x, cos, sin, [2], [0], rooms, rooms, [2], logits), "the logits is"),
    ):
        with pytest.raises(ValueError, match=says):
            forward(*arguments)
    with pytest.raises(ValueError, match="seven matrices and two norms"):
        ops.native.Decoder([([], [])], model.output_norm, model.output.packed, 4, 2, 16, 1e-5)


@needs_native
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", QUANTIZED)
def test_greedy_tokens_equal_those_of_numpy_but_for_near_ties(name, prompt):
    wanted, ours = logits_of_both(name, prompt)
    same = wanted.argmax(axis=1) == ours.argmax(axis=1)
    assert same.mean() >= 0.95
    top = np.sort(wanted, axis=1)
    assert (top[~same, -1] - top[~same, -2] <= 0.15 * wanted[~same].std(axis=1)).all()
    assert np.sqrt(np.mean((ours - wanted) ** 2)) <= LOGITS_BOUND * wanted.std()


# What stands around the kernels


@needs_native
def test_functions_of_the_reference_are_all_there():
    public = {name for name in vars(reference) if not name.startswith("_")}
    functions = {name for name in public if getattr(vars(reference)[name], "__module__", "") == reference.__name__}
    assert functions <= set(vars(ops))


@needs_native
def test_linears_mixes_packed_and_plain_weights_in_order():
    tensor, x = random_tensor("Q4_0", 24, 64), activations(3, 64)
    plain, bias = activations(10, 64), np.arange(24, dtype=np.float32)
    outs = ops.linears(x, (plain,), (ops.pack(tensor), bias), (plain, bias[:10]))
    np.testing.assert_array_equal(outs[0], reference.linear(x, plain))
    np.testing.assert_array_equal(outs[1], twin(x, tensor) + bias)
    np.testing.assert_array_equal(outs[2], reference.linear(x, plain, bias[:10]))


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("name", [*QUANTIZED, "F32", "F16", "BF16"])
def test_embeddings_of_a_packed_table_are_the_files_numbers(name, isa):
    if name in QUANTIZED:
        tensor = random_tensor(name, 30, 512)
    else:
        tensor = Tensor(name, (30, 512), activations(30, 512).view(np.uint8)[:, : 512 * BLOCKS[name].nbytes])
    ids = np.array([3, 29, 3, 0, 17])
    table = ops.pack(tensor, isa)
    np.testing.assert_array_equal(ops.embedding(ids, table), tensor.dequantize()[ids])
    with pytest.raises(ValueError, match="no row 30 of 30"):
        table.packed.rows(np.array([0, 30]), np.empty((2, 512), np.float32))
    if name not in QUANTIZED:
        with pytest.raises(ValueError, match="no longer have the file's rows"):
            ops.embedding(ids, ops.pack(tensor, isa, "int8"))


@needs_native
def test_wrong_input_raises_at_the_boundary():
    tensor = random_tensor("Q8_0", 16, 64)
    weight = ops.pack(tensor)
    with pytest.raises(ValueError, match="x has 32 columns, the weight has 64"):
        ops.linear(activations(2, 32), weight)
    with pytest.raises(TypeError):
        ops.linear(activations(2, 64).astype(np.float64), weight)
    with pytest.raises(TypeError):
        ops.linear(activations(2, 64)[0], weight)
    unaligned = np.frombuffer(bytes(4 * 64 + 1), np.uint8)[1:].view(np.float32).reshape(1, 64)
    with pytest.raises(ValueError, match="multiple of 4"):
        ops.linear(unaligned, weight)
    native, x = ops.native, activations(2, 64)
    with pytest.raises(ValueError, match=r"\[2, 16\] is wanted"):
        native.linears(x, [weight.packed], [np.empty((2, 17), np.float32)], [None])
    with pytest.raises(TypeError):
        native.linears(x, [weight.packed], [np.empty((16, 2), np.float32).T], [None])
    with pytest.raises(ValueError, match="one output and one bias or None for each weight"):
        native.linears(x, [weight.packed], [], [])
    with pytest.raises(ValueError, match="do not hold 96 columns"):
        native.Packed("Q8_0", 16, 96, "scalar").fill(tensor.data)
    with pytest.raises(ValueError, match="no kernel takes weights of type Q9"):
        native.Packed("Q9", 16, 64, "scalar")
    with pytest.raises(ValueError, match="no kernels called 'mmx'; it has .*scalar"):
        native.Packed("Q8_0", 16, 64, "mmx")
    if len(isas()) > 1:
        with pytest.raises(ValueError, match="one instruction set"):
            ops.linears(x, (ops.pack(tensor, isas()[0]),), (ops.pack(tensor, isas()[1]),))
    with pytest.raises(ValueError, match="1 to 1024"):
        native.set_threads(0)
    with pytest.raises(ValueError, match="no 48 columns"):
        native.Packed("Q8_0", 16, 48, "scalar")
    with pytest.raises(ValueError, match="rows 8 to 24 of 16"):
        native.Packed("Q8_0", 16, 64, "scalar").fill(tensor.data, 8)
    for grid in (None, np.full((512, 4), 1, np.uint8), np.full((256, 4), 5, np.uint8)):
        with pytest.raises(ValueError, match="grid"):
            native.Packed("IQ3_XXS", 4, 256, "scalar").fill(random_tensor("IQ3_XXS", 4, 256).data, grid=grid)


@needs_native
def test_large_results_are_their_owners_and_their_memory_is_used_again():
    weight, x = ops.pack(random_tensor("Q4_0", 2048, 64)), activations(200, 64)
    assert ops.RECYCLED_BYTES <= 4 * 200 * 2048
    one, other = ops.linear(x, weight), ops.linear(2 * x, weight)
    assert not np.shares_memory(one, other)
    part, kept = one[3:5], one[3:5].copy()
    place = other.ctypes.data
    del one, other
    again = [ops.linear(3 * x, weight) for _ in range(3)]
    np.testing.assert_array_equal(part, kept)  # a view keeps its memory
    assert place in [array.ctypes.data for array in again]
    assert len({array.ctypes.data for array in again}) == 3


@needs_native
def test_activations_that_do_not_lie_in_one_piece_are_taken():
    tensor = random_tensor("Q8_0", 16, 64)
    x = activations(64, 6).T
    np.testing.assert_array_equal(linear(x, tensor), twin(x, tensor))


@needs_native
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_ctrl_c_ends_a_long_product_within_200_ms():
    code = """if True:
        import signal, time
        import numpy as np
        from handlens.cpu import ops
        from handlens.gguf.blocks import Tensor
        weight = ops.pack(Tensor("Q8_0", (16384, 4096), np.zeros((16384, 4352), np.uint8)), "scalar")
        x = np.ones((512, 4096), np.float32)
        def at_alarm(*_):
            global alarm
            alarm = time.perf_counter()
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, at_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.perf_counter()
        try:
            ops.linear(x, weight)
        except KeyboardInterrupt:
            end = time.perf_counter()
            print(end - start, end - alarm, ops.linear(x[:1], weight).sum())
    """
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    waited, after, total = map(float, ran.stdout.split())
    assert waited < 0.5 and after < 0.2 and total == 0


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_computes_too(threads):
    threads(3)
    tensor, x = random_tensor("Q4_0", 300, 256), activations(20, 256)
    weight = ops.pack(tensor)
    wanted = ops.linear(x, weight).tobytes()
    child = os.fork()
    if child == 0:
        os._exit(0 if ops.linear(x, weight).tobytes() == wanted and ops.native.threads() == 3 else 1)
    alarm = threading.Timer(20, os.kill, (child, signal.SIGKILL))
    alarm.start()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    alarm.cancel()
    assert ops.linear(x, weight).tobytes() == wanted


# Which path runs


@needs_native
def test_the_environment_says_which_arithmetic_runs(monkeypatch):
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    assert choose_arithmetic() is ops and f"kernels {isas()[0]}, {thread_count()} thread" in describe_arithmetic()
    for isa in isas():
        monkeypatch.setenv(ops.ISA_VARIABLE, isa)
        assert f"kernels {isa}" in describe_arithmetic()
        assert ops.pack(random_tensor("Q4_0", 4, 32)).packed.isa == isa
    monkeypatch.setenv(ops.ISA_VARIABLE, "mmx")
    with pytest.raises(InputError, match=r"HANDLENS_ISA is 'mmx'.*scalar"):
        ops.pack(random_tensor("Q4_0", 4, 32))
    monkeypatch.setenv(KERNELS_VARIABLE, "off")
    assert choose_arithmetic() is reference and "kernels off" in describe_arithmetic()


def test_without_the_native_module_numpy_computes(monkeypatch):
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    monkeypatch.setattr(ops, "native", None)
    assert choose_arithmetic() is reference and "no kernels" in describe_arithmetic()
    assert describe_instruction_sets() == ""


@needs_native
def test_usable_sets_are_those_that_lack_nothing():
    lacking = ops.native.lacking()
    assert [name for name, features in lacking.items() if not features] == isas() and isas()[-1] == "scalar"
    assert describe_instruction_sets().startswith(f"this processor has {', '.join(isas())}")


def test_a_set_that_cannot_run_is_named_with_what_the_processor_lacks():
    sets = {"neon-i8mm": ["i8mm", "dotprod"], "neon-dotprod": ["dotprod"], "neon": [], "scalar": []}
    assert ops.describe_sets(sets) == (
        "this processor has neon, scalar; for neon-i8mm it lacks i8mm, dotprod; for neon-dotprod it lacks dotprod"
    )


def test_a_switch_that_is_neither_on_nor_off_is_an_error(monkeypatch):
    monkeypatch.setenv(KERNELS_VARIABLE, "maybe")
    with pytest.raises(InputError, match="HANDLENS_KERNELS is 'maybe'"):
        choose_arithmetic()


@pytest.mark.parametrize("wanted", ["0", "-1", "two", "²", "1025"])
def test_a_thread_count_that_is_none_is_an_error(wanted, monkeypatch):
    monkeypatch.setenv(THREADS_VARIABLE, wanted)
    with pytest.raises(InputError, match="a number from 1 to 1024"):
        thread_count()


def test_threads_of_one_core_count_once(tmp_path, monkeypatch):
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert physical_cores(tmp_path) == 2 and physical_cores(tmp_path / "unknown") == 4


@needs_native
def test_matrices_are_packed_and_tables_are_not(monkeypatch):
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    config = tiny.config()
    shapes = {"token_embd.weight": (1042, 256), "output_norm.weight": (256,), "output.weight": (1042, 256)}
    for index in range(config.llm.num_hidden_layers):
        shapes |= {f"blk.{index}.{key}": shape for key, shape in _layer_shapes(config.llm).items()}
    arrays = {name: activations(1, int(np.prod(shape))).reshape(shape) for name, shape in shapes.items()}
    tensors = {
        name: Tensor.from_array(array, "F32" if array.ndim == 1 or "ffn" in name else "Q8_0")
        for name, array in arrays.items()
    }
    text_only = config.__class__(**{**vars(config), "vision": None, "resampler": None, "slices": None})
    llama = CpuBackend(text_only, tensors).llama
    assert isinstance(llama.token_embd, np.ndarray) and isinstance(llama.output, ops.PackedWeight)
    assert isinstance(llama.layers[0]["attn_q"][0], ops.PackedWeight)
    assert isinstance(llama.layers[0]["ffn_up"][0], ops.PackedWeight)
    assert isinstance(llama.output_norm, np.ndarray)
    del tensors["output.weight"]
    assert isinstance(CpuBackend(text_only, tensors).llama.output, ops.PackedWeight)
