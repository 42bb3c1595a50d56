"""Numbers become blocks that lie close to them: the same blocks by numpy and by the kernels, and never worse than
rounding to the obvious scale."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlens.cpu import ops
from handlens.cpu.backend import KERNELS_VARIABLE
from handlens.errors import InputError, ModelFileError
from handlens.gguf.blocks import BLOCKS, PLAIN, Tensor
from handlens.quant import tensors
from handlens.quant.encode import TYPES, encode
from handlens.quant.search import whole
from handlens.quant.tensors import quantize_tensor

kernels = pytest.mark.skipif(ops.native is None, reason="the kernels were not built")

#: The most that is lost of normal numbers: mean square of the errors over mean square of the numbers.
LOSSES = {
    "Q2_K": 0.075,
    "Q3_K": 0.024,
    "IQ4_NL": 0.0062,
    "IQ4_XS": 0.0062,
    "Q4_0": 0.0075,
    "Q4_1": 0.0062,
    "Q4_K": 0.0055,
    "Q5_0": 0.0019,
    "Q5_1": 0.0016,
    "Q5_K": 0.0014,
    "Q6_K": 4e-4,
    "Q8_0": 3e-5,
}


def normal(rows: int = 24, columns: int = 512, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def heavy(rows: int = 24, columns: int = 512, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(2, (rows, columns)).astype(np.float32)


def columns_that_stand_out(rows: int = 24, columns: int = 512) -> np.ndarray:
    x = normal(rows, columns)
    x[:, [3, 77, 400]] *= 30
    return x


def uneven_importance(columns: int = 512) -> np.ndarray:
    return np.exp(1.5 * np.random.default_rng(1).standard_normal(columns)).astype(np.float32)


def loss(x: np.ndarray, data: np.ndarray, type: str, importance: np.ndarray | float = 1.0) -> float:
    """Mean squares of the errors over that of the numbers, with the importance of columns."""
    errors = BLOCKS[type].dequantize(data).astype(np.float64) - x
    return (errors**2 * importance).sum() / (x.astype(np.float64) ** 2 * importance).sum()


@pytest.mark.parametrize("type", TYPES)
def test_normal_numbers_lose_no_more_than_the_type_costs(type):
    assert set(LOSSES) == set(TYPES)
    x = normal()
    assert 0.5 * LOSSES[type] < loss(x, encode(type, x), type) < LOSSES[type]


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("numbers", [normal, heavy, columns_that_stand_out])
def test_importance_makes_what_matters_better(type, numbers):
    x, importance = numbers(), uneven_importance()
    plain, weighted = encode(type, x), encode(type, x, importance)
    assert loss(x, weighted, type, importance) < loss(x, plain, type, importance)
    assert loss(x, plain, type) < loss(x, weighted, type)


def rounded_to_the_largest(x: np.ndarray, low: int, high: int, by: float) -> np.ndarray:
    """The obvious way: the largest number of a block of 32 lies on the level `by`."""
    parts = x.reshape(-1, 32)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=1)[:, None], axis=1)
    scale = (largest / by).astype(np.float16).astype(np.float32)
    return (whole(low, high)(parts / scale) * scale).reshape(x.shape)


@pytest.mark.parametrize("type, low, high, by", [("Q4_0", -8, 7, -8), ("Q5_0", -16, 15, -16), ("Q8_0", -127, 127, 127)])
@pytest.mark.parametrize("numbers", [normal, heavy, columns_that_stand_out])
def test_searching_beats_the_obvious_scale(type, low, high, by, numbers):
    x = numbers()
    obvious = ((rounded_to_the_largest(x, low, high, by).astype(np.float64) - x) ** 2).sum() / (x**2.0).sum()
    assert loss(x, encode(type, x), type) < (0.97 if numbers is normal else 1.0) * obvious


@kernels
@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_kernels_write_the_same_bytes_on_every_instruction_set(type, weighted, monkeypatch):
    constant = np.full((2, 512), 0.3, np.float32) * np.array([[1], [-1]], np.float32)
    x = np.concatenate(
        [normal(3), heavy(3), columns_that_stand_out(2) * 1e-3, np.zeros((1, 512), np.float32), constant]
    )
    importance = uneven_importance() if weighted else None
    wanted = encode(type, x, importance)
    for isa in ops.native.isas():
        monkeypatch.setenv(ops.ISA_VARIABLE, isa)
        made, largest = ops.quantize(type, "F32", x.view(np.uint8), importance)
        np.testing.assert_array_equal(made, wanted)
        assert largest == np.abs(x).max()


@kernels
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), exponent=st.integers(-30, 12), type=st.sampled_from(TYPES))
def test_the_kernels_write_the_same_bytes_for_numbers_of_any_size(seed, exponent, type):
    x = heavy(2, 256, seed) * np.float32(2.0**exponent)
    np.testing.assert_array_equal(ops.quantize(type, "F32", x.view(np.uint8), None)[0], encode(type, x))


@kernels
@pytest.mark.parametrize("plain", ["F16", "BF16"])
def test_the_kernels_read_every_plain_type(plain):
    tensor = Tensor.from_array(normal(5), plain)
    made, _ = ops.quantize("Q4_K", plain, tensor.data, None)
    np.testing.assert_array_equal(made, encode("Q4_K", tensor.dequantize()))


@pytest.mark.parametrize("type", TYPES)
def test_zeros_stay_zeros(type):
    x = np.zeros((2, 256), np.float32)
    assert not BLOCKS[type].dequantize(encode(type, x)).any()
    assert not BLOCKS[type].dequantize(encode(type, x, np.zeros(256, np.float32))).any()


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("number", [0.3, -0.3, 1000.0])
def test_equal_numbers_stay_nearly_equal(type, number):
    x = np.full((2, 256), number, np.float32)
    np.testing.assert_allclose(BLOCKS[type].dequantize(encode(type, x)), x, rtol=0.02)


@pytest.mark.parametrize("type", TYPES)
def test_one_number_among_zeros_is_kept(type):
    x = np.zeros((1, 512), np.float32)
    x[0, 300] = -5.0
    np.testing.assert_allclose(BLOCKS[type].dequantize(encode(type, x)), x, atol=0.05)


@pytest.mark.parametrize("importance", [None, uneven_importance()])
def test_what_was_q4_1_loses_little_as_q5_1(importance):
    x = BLOCKS["Q4_1"].dequantize(encode("Q4_1", normal()))
    assert loss(x, encode("Q5_1", x, importance), "Q5_1") < 0.05 * LOSSES["Q5_1"]


@pytest.mark.parametrize("type", TYPES)
def test_numbers_too_small_for_float16_become_zeros(type):
    assert not BLOCKS[type].dequantize(encode(type, normal(2, 256) * np.float32(1e-12))).any()


@pytest.mark.parametrize("type", TYPES)
def test_columns_without_importance_are_still_kept_in_order(type):
    x, importance = normal(4), np.zeros(512, np.float32)
    importance[256:] = 1
    made = quantize_tensor("some.weight", Tensor.from_array(x), type, importance)
    assert loss(x[:, :256], made.dequantize()[:, :256].copy().view(np.uint8), "F32") < 1.2 * LOSSES[type]


@pytest.mark.parametrize("arithmetic", ["on", "off"])
@pytest.mark.parametrize("type", [*PLAIN, *TYPES])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_with_the_name(type, bad, arithmetic, monkeypatch):
    monkeypatch.setenv(KERNELS_VARIABLE, arithmetic)
    x = normal(4)
    x[2, 300] = bad
    with pytest.raises(ModelFileError, match=rf"blk\.0\.some\.weight cannot be {type}: it holds .*not a number"):
        quantize_tensor("blk.0.some.weight", Tensor.from_array(x), type)


@pytest.mark.parametrize("arithmetic", ["on", "off"])
def test_numbers_beyond_float16_are_refused_where_scales_are_float16(arithmetic, monkeypatch):
    monkeypatch.setenv(KERNELS_VARIABLE, arithmetic)
    tensor = Tensor.from_array(normal(4) * np.float32(1e6))
    for type in ("F16", "Q4_K", "Q8_0"):
        with pytest.raises(ModelFileError, match=rf"some\.weight cannot be {type}: it holds .*65504"):
            quantize_tensor("some.weight", tensor, type)
    np.testing.assert_array_equal(quantize_tensor("some.weight", tensor, "F32").data, tensor.data)


@pytest.mark.parametrize("type, columns", [("Q4_0", 48), ("Q8_0", 33), ("Q4_K", 288), ("IQ4_XS", 128)])
def test_rows_that_are_not_whole_blocks_are_refused_with_the_name(type, columns):
    with pytest.raises(ModelFileError, match=rf"odd\.weight cannot be {type}: its rows of {columns} numbers"):
        quantize_tensor("odd.weight", Tensor.from_array(normal(2, columns)), type)


def test_types_that_are_only_read_and_unknown_ones_are_refused():
    with pytest.raises(ModelFileError, match=r"some\.weight cannot be IQ2_S"):
        quantize_tensor("some.weight", Tensor.from_array(normal()), "IQ2_S")
    with pytest.raises(InputError, match="Q7_K"):
        quantize_tensor("some.weight", Tensor.from_array(normal()), "Q7_K")


@pytest.mark.parametrize(
    "importance, reason",
    [(np.ones(511), "columns"), (np.full(512, np.nan), "not finite"), (-np.ones(512), "negative")],
)
def test_importance_that_does_not_fit_is_refused(importance, reason):
    with pytest.raises(ModelFileError, match=rf"some\.weight.*{reason}"):
        quantize_tensor("some.weight", Tensor.from_array(normal()), "Q4_K", importance.astype(np.float32))


@pytest.mark.parametrize("type", ["Q4_0", "Q4_K"])
def test_pieces_and_source_types_do_not_change_the_blocks(type, monkeypatch):
    x = normal(7)
    for source in ("F32", "F16", "BF16", "Q8_0"):
        tensor = Tensor.from_array(x, source)
        wanted = encode(type, tensor.dequantize())
        for piece in (1, 1024, 1 << 22):
            monkeypatch.setattr(tensors, "PIECE", piece)
            monkeypatch.setattr(tensors, "NUMPY_PIECE", piece)
            for arithmetic in ("on", "off"):
                monkeypatch.setenv(KERNELS_VARIABLE, arithmetic)
                np.testing.assert_array_equal(quantize_tensor("some.weight", tensor, type).data, wanted)


def test_tensors_of_more_dimensions_keep_their_shape():
    made = quantize_tensor("some.weight", Tensor.from_array(normal(6).reshape(2, 3, 512)), "Q4_K")
    assert made.shape == (2, 3, 512)
