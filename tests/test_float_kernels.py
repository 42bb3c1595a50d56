"""Float kernels against numpy: linear layers of float weights, norms, activations, RoPE, vision in int8 and bf16."""

import math

import numpy as np
import pytest

from handlens.cpu import ops, reference
from handlens.cpu.backend import CpuBackend, choose_precision
from handlens.cpu.vision import Resampler, VisionTower
from handlens.errors import InputError
from handlens.gguf.blocks import Tensor
from handlens.gguf.convert import write_projector
from handlens.weights import find_files, load_model, open_pair
from tests import tiny
from tests.test_attention_kernels import bf16_attention
from tests.test_kernels import (  # noqa: F401
    activations,
    bf16,
    fma,
    isas,
    needs_bf16,
    needs_native,
    quantised,
    random_tensor,
    threads,
    tile_product,
)

FLOATS = ["F32", "F16", "BF16"]


def float_tensor(type: str, rows: int, columns: int, seed: int = 0) -> Tensor:
    numbers = np.random.default_rng(seed).standard_normal((rows, columns)) / math.sqrt(columns)
    return Tensor.from_array(numbers.astype(np.float32), type)


def twin(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A linear layer as native/kernels.h says: one column after the other."""
    total = np.zeros((len(x), len(weight)), np.float32)
    for column in range(weight.shape[1]):
        total = fma(x[:, column, None], weight[:, column], total)
    return total


def int8_twin(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same with a weight of int8 and a scale a row; x is int8 in runs of two groups of 32 that share a scale."""
    filled = -weight.shape[1] % 64
    x, weight = np.pad(x, ((0, 0), (0, filled))), np.pad(weight, ((0, 0), (0, filled)))
    largest = np.abs(weight).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest != 0)
    codes = np.rint(weight * inverse).astype(np.int64).reshape(len(weight), -1, 64)
    values, scales = quantised(x, 64)
    total = np.zeros((len(x), len(weight)), np.float32)
    for run in range(codes.shape[1]):
        total = fma((values[:, run] @ codes[:, run].T).astype(np.float32), scales[:, run, None], total)
    return total * (largest / np.float32(127)).T


def bf16_twin(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The same with weight and x rounded to bfloat16, as the tiles of AMX sum their products."""
    filled = -weight.shape[1] % 32
    x, weight = np.pad(x, ((0, 0), (0, filled))), np.pad(weight, ((0, 0), (0, filled)))
    return tile_product(bf16(x), bf16(weight).T)


# Linear layers


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("type", FLOATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (16, 72), (33, 100), (130, 588)])
def test_float_weights_equal_their_numpy_twin_bit_for_bit(type, isa, rows, columns):
    tensor = float_tensor(type, rows, columns)
    weight = ops.pack(tensor, isa)
    for n in (1, 2, 3, 5, 7, 13, 17):
        x = activations(n, columns, seed=n)
        np.testing.assert_array_equal(ops.linear(x, weight), twin(x, tensor.dequantize()))


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("type", FLOATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 32), (17, 72), (40, 588), (100, 431), (150, 1500)])
def test_float_weights_as_int8_equal_their_numpy_twin_bit_for_bit(type, isa, rows, columns):
    tensor = float_tensor(type, rows, columns)
    weight = ops.pack(tensor, isa, precision="int8")
    for n in (1, 2, 5, 6, 7, 13, 17, 70):
        x = activations(n, columns, seed=n)
        np.testing.assert_array_equal(ops.linear(x, weight), int8_twin(x, tensor.dequantize()))


@needs_native
@pytest.mark.parametrize("isa", isas())
def test_int8_weights_times_more_than_kernels_take_at_a_time_equal_the_twin_too(isa):
    tensor = float_tensor("F16", 150, 600)
    x = activations(310, 600)
    np.testing.assert_array_equal(ops.linear(x, ops.pack(tensor, isa, "int8")), int8_twin(x, tensor.dequantize()))


@needs_bf16
@pytest.mark.parametrize("type", [*FLOATS, "Q8_0", "Q4_K"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (17, 72), (40, 588), (433, 1280)])
def test_weights_in_bf16_equal_their_numpy_twin_bit_for_bit(type, rows, columns):
    if type in FLOATS:
        tensor = float_tensor(type, rows, columns)
    else:
        tensor = random_tensor(type, rows, -(-columns // 256) * 256)
    weight = ops.pack(tensor, precision="bf16")
    for n in (1, 2, 17, 33, 310):
        x = activations(n, tensor.shape[1], seed=n)
        np.testing.assert_array_equal(ops.linear(x, weight), bf16_twin(x, tensor.dequantize()))


@needs_bf16
def test_weights_in_bf16_are_far_more_exact_than_in_int8():
    tensor, x = float_tensor("F16", 100, 1152), activations(40, 1152)
    x[:, ::64] *= 30  # a run's scale has to hold its largest number
    wanted = reference.linear(x, tensor)
    errors = {
        name: np.square(ops.linear(x, ops.pack(tensor, precision=name)) - wanted).mean() for name in ("int8", "bf16")
    }
    assert errors["bf16"] < 0.05 * errors["int8"]


@needs_bf16
def test_bf16_rows_of_what_is_no_number_keep_it_to_themselves():
    numbers = activations(4, 70)
    numbers[1], numbers[2, 3], numbers[3, 5] = 0, np.inf, np.nan
    x = activations(40, 70)
    x[7, 2], x[8, 69] = np.nan, -np.inf
    out = ops.linear(x, ops.pack(Tensor.from_array(numbers), precision="bf16"))
    normal = np.delete(out, [7, 8], axis=0)
    assert (normal[:, 1] == 0).all() and np.isinf(normal[:, 2]).all() and np.isnan(normal[:, 3]).all()
    assert np.isfinite(normal[:, 0]).all() and np.isnan(out[7]).all() and np.isinf(out[8, 0])


@needs_bf16
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_feed_forward_in_bf16_equals_its_steps_bit_for_bit(activation):
    n, columns, wide = 300, 88, 410
    up, down = (
        (ops.pack(float_tensor("F16", *shape), precision="bf16"), activations(1, shape[0])[0])
        for shape in ((wide, columns), (columns, wide))
    )
    x, norm = activations(n, columns), tuple(activations(2, columns, seed=3))
    (inner,) = ops.norm_linears(x, norm, 1e-6, up)
    wanted = x + ops.linear(getattr(ops, activation)(inner), *down)
    np.testing.assert_array_equal(ops.feed_forward(x, norm, 1e-6, up, activation, down), wanted)


@needs_bf16
def test_self_attention_in_bf16_equals_its_steps_bit_for_bit():
    n, heads, columns = 130, 3, 72
    q, k, v, out = (
        (ops.pack(float_tensor("F16", columns, columns, seed), precision="bf16"), activations(1, columns, seed)[0])
        for seed in range(4)
    )
    x, norm = activations(n, columns), tuple(activations(2, columns, seed=3))
    parts = (part.reshape(n, heads, -1) for part in ops.norm_linears(x, norm, 1e-6, q, k, v))
    wanted = x + ops.linear(bf16_attention(*parts).reshape(n, -1), *out)
    np.testing.assert_array_equal(ops.self_attention(x, norm, 1e-6, heads, q, k, v, out), wanted)


@needs_native
def test_int8_rows_of_zeros_and_of_what_is_no_number():
    numbers = activations(4, 70)
    numbers[1], numbers[2, 3] = 0, np.inf
    out = ops.linear(activations(3, 70), ops.pack(Tensor.from_array(numbers), precision="int8"))
    assert (out[:, 1] == 0).all() and np.isnan(out[:, 2]).all() and np.isfinite(out[:, [0, 3]]).all()


@needs_native
@pytest.mark.parametrize("type", [*FLOATS, "Q8_0", "Q4_K"])
def test_f32_precision_is_the_references_up_to_rounding(type):
    tensor = float_tensor(type, 65, 256) if type in FLOATS else random_tensor(type, 65, 256)
    x = activations(9, 256)
    wanted = reference.linear(x, tensor)
    np.testing.assert_allclose(ops.linear(x, ops.pack(tensor, precision="f32")), wanted, atol=2e-6 * wanted.std() * 16)


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("precision", [None, "int8"])
def test_steps_biases_and_residuals_in_one_call_equal_many(isa, precision):
    n, columns, rows = 21, 104, 50
    weight, other = (ops.pack(float_tensor("F16", rows, columns, seed), isa, precision) for seed in (1, 2))
    x = activations(n, columns)
    bias, scale, shift = activations(3, rows)[0], *activations(2, columns)
    for norm, function in (((scale, shift), ops.layer_norm), ((scale,), ops.rms_norm)):
        outs = ops.norm_linears(x, norm, 1e-6, (weight, bias), (other,))
        normed = function(x, *norm, 1e-6, isa=isa)
        np.testing.assert_array_equal(outs[0], ops.linear(normed, weight) + bias)
        np.testing.assert_array_equal(outs[1], ops.linear(normed, other))
    back = ops.pack(float_tensor("F16", columns, rows), isa, precision), activations(1, columns)[0]
    for name in ("gelu", "gelu_tanh"):
        (inner,) = ops.norm_linears(x, (scale, shift), 1e-6, (weight, bias))
        wanted = x + ops.linear(getattr(ops, name)(inner, isa=isa), *back)
        np.testing.assert_array_equal(ops.feed_forward(x, (scale, shift), 1e-6, (weight, bias), name, back), wanted)
    layers = (weight,), (other,), (back[0],)
    close = reference.gated_feed_forward(x, (scale,), 1e-6, *((layer[0].dequantize(),) for layer in layers))
    error = ops.gated_feed_forward(x, (scale,), 1e-6, *layers) - close
    assert np.sqrt(np.mean(error**2)) <= (0.03 if precision else 1e-6) * np.sqrt(np.mean((close - x) ** 2))


@needs_native
def test_plain_arrays_have_steps_and_residuals_too():
    weight, x, scale = activations(7, 40), activations(3, 40), activations(1, 40)[0]
    wanted = reference.norm_linears(x, (scale,), 1e-5, (weight,))[0]
    np.testing.assert_allclose(ops.norm_linears(x, (scale,), 1e-5, (weight,))[0], wanted, rtol=1e-5, atol=1e-5)
    residual = activations(3, 7)
    np.testing.assert_array_equal(ops.linear(x, weight, residual=residual), x @ weight.T + residual)


@needs_native
@pytest.mark.parametrize("precision", [None, "int8", pytest.param("bf16", marks=needs_bf16)])
def test_any_thread_count_and_any_company_give_the_same_bytes(precision, threads):  # noqa: F811
    weight = ops.pack(float_tensor("F16", 333, 588), precision=precision)
    x = activations(200, 588)
    wanted = ops.linear(x, weight).tobytes()
    for count in (1, 2, 3, 4):
        threads(count)
        assert ops.linear(x, weight).tobytes() == wanted
    assert np.concatenate([ops.linear(x[i : i + 1], weight) for i in range(len(x))]).tobytes() == wanted


# Norms, activations, RoPE


STEPS = {
    "layer_norm": lambda width: (*activations(2, width, seed=8), 1e-6),
    "rms_norm": lambda width: (activations(1, width, seed=8)[0], 1e-5),
    "gelu": lambda width: (),
    "gelu_tanh": lambda width: (),
}


@needs_native
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("width", [1, 15, 16, 72, 1152])
def test_steps_equal_the_reference_up_to_rounding_and_each_other_bit_for_bit(name, width):
    arguments = STEPS[name](width)
    for n in (1, 5, 17):
        x = 4 * activations(n, width, seed=n)
        outs = [getattr(ops, name)(x, *arguments, isa=isa) for isa in isas()]
        assert len({out.tobytes() for out in outs}) == 1
        np.testing.assert_allclose(outs[0], getattr(reference, name)(x, *arguments), rtol=2e-5, atol=2e-6)


@needs_native
@pytest.mark.parametrize("isa", isas())
def test_activations_of_huge_numbers_saturate(isa):
    x = np.array([[-3e38, -1e20, -100, -30, 0, 30, 100, 1e20, 3e38]], np.float32)
    for name in ("gelu", "gelu_tanh"):
        np.testing.assert_allclose(getattr(ops, name)(x, isa=isa), np.maximum(x, 0), rtol=0, atol=1e-37)
        assert np.isnan(getattr(ops, name)(np.full((1, 3), np.nan, np.float32), isa=isa)).all()


@needs_native
@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("width", [2, 64, 80, 128])
def test_rope_equals_the_reference_bit_for_bit(isa, width):
    x = activations(17 * 3, width).reshape(17, 3, width)
    table = reference.rope_table(np.arange(100, 117), reference.rope_frequencies(width, 5e5))
    np.testing.assert_array_equal(ops.rope(x, *table, isa=isa), reference.rope(x, *table))


@needs_native
def test_wrong_input_raises_at_the_boundary():
    weight = ops.pack(float_tensor("F32", 8, 40))
    x, scale = activations(2, 40), activations(1, 40)[0]
    with pytest.raises(ValueError, match="the bias has 9 numbers, but 8"):
        ops.linear(x, weight, np.zeros(9, np.float32))
    with pytest.raises(ValueError, match=r"the residual is \[2, 9\], but \[2, 8\]"):
        ops.linear(x, weight, residual=np.zeros((2, 9), np.float32))
    with pytest.raises(ValueError, match="the weight of the norm has 39"):
        ops.norm_linears(x, (scale[1:],), 1e-5, (weight,))
    with pytest.raises(ValueError, match="the bias of the norm has 41"):
        ops.layer_norm(x, scale, np.zeros(41, np.float32), 1e-5)
    with pytest.raises(ValueError, match=r"the second input is \[1, 40\]"):
        ops._linears(x, ((weight,),), None, ops.native.Step("swiglu", second=x[:1]))
    with pytest.raises(ValueError, match="residual goes with one weight"):
        native = ops.native
        outs = [np.empty((2, 8), np.float32) for _ in range(2)]
        native.linears(x, [weight.packed] * 2, outs, [None, None], outs[0])
    for arguments in (("swiglu",), ("rms_norm",), ("gelu", scale), ("layer_norm", scale), ("rms_norm", scale, scale)):
        with pytest.raises(ValueError, match="does not have these arguments"):
            ops.native.Step(*arguments)
    with pytest.raises(ValueError, match="no step called 'tanh'"):
        ops.native.Step("tanh")
    with pytest.raises(ValueError, match="Q8_0 is quantised"):
        ops.native.Packed("Q8_0", 4, 32, "scalar", "int8")
    with pytest.raises(ValueError, match="int8 or bf16, not 'int4'"):
        ops.native.Packed("F32", 4, 32, "scalar", "int4")
    with pytest.raises(ValueError, match="scalar multiplies no bf16"):
        ops.native.Packed("F32", 4, 32, "scalar", "bf16")
    heads = x.reshape(2, 5, 8)
    with pytest.raises(ValueError, match=r"the cosines is \[2, 3\], but \[2, 4\]"):
        ops.rope(heads, np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(ValueError, match="odd width"):
        ops.rope(x.reshape(2, 8, 5), np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32))


# Vision in int8 and bf16


def realistic_tower() -> tuple[tiny.ModelConfig, dict[str, Tensor]]:
    """A tower of 8 layers, 256 wide, with weights as trained ones are: channels differ, a few by far."""
    config = tiny.config()
    vision = config.vision.__class__(
        hidden_size=256, intermediate_size=944, num_hidden_layers=8, num_attention_heads=4, position_mode="masked_1d"
    )
    resampler = config.resampler.__class__(query_num=96, embed_dim=256, kv_dim=256, num_heads=2)
    config = config.__class__(**{**vars(config), "vision": vision, "resampler": resampler})
    official = tiny.official_tensors(config)
    rng = np.random.default_rng(2)
    for name, array in official.items():
        if "layer_norm" in name and name.endswith("weight"):
            array *= np.exp(0.5 * rng.standard_normal(array.shape)).astype(np.float32)
            array[rng.integers(0, len(array), 3)] *= 8
        elif array.ndim == 2 and name.startswith(("vpm.encoder", "resampler.attn")):
            array *= np.exp(0.3 * rng.standard_normal((len(array), 1))).astype(np.float32)
    return config, official


@needs_native
@pytest.mark.parametrize(("precision", "cosine"), [("int8", 0.999), pytest.param("bf16", 0.9999, marks=needs_bf16)])
def test_query_vectors_point_where_those_of_float32_do(precision, cosine, tmp_path):
    config, official = realistic_tower()
    write_projector(tmp_path / "mmproj.gguf", config, official, "F16")
    tiny.write(tmp_path, tiny.config())
    language = find_files(tmp_path / "tiny.gguf", tmp_path / "mmproj.gguf")
    config, (_, tensors), _ = open_pair(language)
    exact = {name: tensor.dequantize() for name, tensor in tensors.items()}
    packed = {
        name: ops.pack(tensor, precision=precision)
        if len(tensor.shape) > 1 and name not in ("v.position_embd.weight", "resampler.query")
        else tensor.dequantize()
        for name, tensor in tensors.items()
    }
    rng = np.random.default_rng(4)
    for size in ((16, 16), (9, 30)):
        smooth = rng.uniform(-1, 1, (math.prod(size), 1)) + 0.3 * rng.standard_normal((math.prod(size), 588))
        patches = np.clip(smooth, -1, 1).astype(np.float32)
        vectors = []
        for weights, functions in ((exact, reference), (packed, ops)):
            features = VisionTower(config.vision, weights, functions).encode(patches, size, len(patches))
            vectors.append(Resampler(config.resampler, weights, functions).forward(features, size))
        wanted, ours = vectors
        norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(ours, axis=1)
        assert ((wanted * ours).sum(axis=1) / norms).min() >= cosine


@needs_native
def test_the_vision_precision_is_chosen_where_a_model_is_loaded(monkeypatch):
    monkeypatch.delenv("HANDLENS_KERNELS", raising=False)
    layouts = {}
    for precision in choices():
        backend = load_model(vision_precision=precision).generator.backend
        packed = backend.tower.layers[0]["ffn_up"][0].packed
        layouts[precision] = packed.nbytes
        assert isinstance(backend.resampler.modules["query"][0], np.ndarray)
        assert packed.in_bf16() == (precision == "bf16") and precision in backend.vision_key
    assert layouts["int8"] < layouts["f32"]
    with pytest.raises(InputError, match="vision precision is 'int4'; .*int8 or f32"):
        CpuBackend(tiny.config(), {}, {}, "int4")


def choices() -> list[str]:
    """The precisions that this processor has."""
    return ["bf16", "int8", "f32"] if ops.multiplies_bf16() else ["int8", "f32"]


@needs_native
def test_bf16_is_the_default_where_the_processor_multiplies_it_and_refused_elsewhere(monkeypatch):
    assert choose_precision(None, ops) == choices()[0] and choose_precision(None, reference) == "bf16"
    for isa in ops.native.isas():
        monkeypatch.setenv("HANDLENS_ISA", isa)
        wanted = {"amx": "bf16", "avx2": "f32", "neon": "f32", "scalar": "f32"}.get(isa, "int8")
        assert choose_precision(None, ops) == wanted and choose_precision("f32", ops) == "f32"
        assert choose_precision(None, ops, int8=False) == wanted.replace("int8", "f32")
    monkeypatch.setenv("HANDLENS_ISA", "scalar")
    with pytest.raises(InputError, match="'bf16', which this processor does not multiply; int8 or f32 is wanted"):
        choose_precision("bf16", ops)
