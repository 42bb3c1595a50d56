"""The block types against the `gguf` package, bit for bit, and tensors by rows."""

import tracemalloc

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from handlens.errors import InputError
from handlens.gguf.blocks import BLOCKS, Tensor, tensor_bytes

WRITABLE = [name for name, block in BLOCKS.items() if block.quantize]


def random_blocks(name: str, *shape: int, seed: int = 0) -> np.ndarray:
    """uint8 [..., blocks * nbytes] of random bytes."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*shape[:-1], shape[-1] * BLOCKS[name].nbytes), dtype=np.uint8)


def reference(name: str, data: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(data, GGMLQuantizationType[name])


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray):
    assert ours.dtype == theirs.dtype == np.float32 and ours.shape == theirs.shape
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours.view(np.uint32)[~nan], theirs.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", BLOCKS)
def test_type_number_and_sizes_equal_the_gguf_package(name):
    block = BLOCKS[name]
    assert block.ggml_type == GGMLQuantizationType[name]
    assert (block.weights, block.nbytes) == GGML_QUANT_SIZES[GGMLQuantizationType[name]]


def test_every_type_of_the_published_files_is_there():
    # The types that the mixes F16 ... IQ3_XS and Q2_K of llama.cpp use.
    mixes = "F32 F16 BF16 Q8_0 Q6_K Q5_K Q5_0 Q5_1 Q4_K Q4_0 Q4_1 IQ4_NL IQ4_XS Q3_K IQ3_S IQ3_XXS Q2_K IQ2_S"
    assert set(mixes.split()) == set(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_random_blocks_dequantise_bit_for_bit(name):
    data = random_blocks(name, 3, 50, 40)
    assert_same_bits(BLOCKS[name].dequantize(data), reference(name, data))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80, 0x7F, 0x3C])
def test_extreme_blocks_dequantise_bit_for_bit(name, fill):
    data = np.full((2, 4 * BLOCKS[name].nbytes), fill, np.uint8)
    assert_same_bits(BLOCKS[name].dequantize(data), reference(name, data))


@pytest.mark.parametrize("name", BLOCKS)
def test_every_byte_of_a_block_is_read_as_the_gguf_package_reads_it(name):
    # One byte after the other takes every value, all others being fixed: a wrong shift or mask has nowhere to hide.
    block = BLOCKS[name]
    data = np.tile(random_blocks(name, 1, seed=1), (block.nbytes * 256, 1))
    for position in range(block.nbytes):
        data[position * 256 : (position + 1) * 256, position] = np.arange(256)
    assert_same_bits(block.dequantize(data), reference(name, data))


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_equal_the_same_rows_of_the_whole(name):
    shape = (3, 5, 2 * BLOCKS[name].weights)
    tensor = Tensor(name, shape, random_blocks(name, 15, 2))
    whole = tensor.dequantize()
    assert whole.shape == shape
    rows = whole.reshape(15, -1)
    for start, stop in [(0, 1), (4, 9), (14, 15), (7, None), (None, 3), (6, 6)]:
        np.testing.assert_array_equal(tensor.dequantize(start, stop), rows[start:stop])


def test_a_tensor_longer_than_a_chunk_equals_its_rows_one_by_one():
    tensor = Tensor("Q4_K", (1100, 256), random_blocks("Q4_K", 1100, 1))
    rows = [tensor.dequantize(row, row + 1)[0] for row in range(1100)]
    np.testing.assert_array_equal(tensor.dequantize(), np.stack(rows))


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_K", "Q6_K", "IQ3_S", "IQ3_XXS"])
def test_memory_is_the_result_and_a_little(name):
    data = random_blocks(name, 512, 8192 // BLOCKS[name].weights)
    tensor = Tensor(name, (512, 8192), data)
    tracemalloc.start()
    try:
        result = tensor.dequantize()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.nbytes == 16 << 20
    assert peak < result.nbytes + (12 << 20)


def test_read_only_data_is_accepted():
    data = random_blocks("Q5_1", 4, 3)
    data.flags.writeable = False
    assert_same_bits(Tensor("Q5_1", (4, 96), data).dequantize(), reference("Q5_1", data))


def awkward_numbers() -> np.ndarray:
    """float32 [512, 64]: all sizes, both signs, exact halves between levels, rows of zeros, tiny and large rows."""
    rng = np.random.default_rng(2)
    numbers = (rng.standard_normal((512, 64)) * 10.0 ** rng.integers(-6, 3, (512, 1))).astype(np.float32)
    numbers[0] = 0
    numbers[1] = np.arange(-32, 32) + 0.5
    numbers[1, ::32] = 127
    numbers[2] = 1e-30
    numbers[3] = -0.0
    return numbers


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0"])
def test_quantise_equals_the_gguf_package(name):
    numbers = awkward_numbers()
    theirs = quants.quantize(numbers, GGMLQuantizationType[name]).view(np.uint8)
    np.testing.assert_array_equal(BLOCKS[name].quantize(numbers), theirs)
    np.testing.assert_array_equal(Tensor.from_array(numbers, name).data, theirs)


def test_bfloat16_rounds_ties_to_even_and_keeps_nan_and_infinity():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF], np.uint32)
    numbers = bits.view(np.float32).reshape(1, -1)
    written = BLOCKS["BF16"].quantize(numbers).view(np.uint16)[0]
    np.testing.assert_array_equal(written, quants.quantize(numbers, GGMLQuantizationType.BF16).view(np.uint16)[0])
    assert written[:3].tolist() == [0x3F80, 0x3F82, 0x3F81]
    assert np.isnan(BLOCKS["BF16"].dequantize(written.view(np.uint8))[5:]).all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_fit_come_back_exactly(name, dtype):
    numbers = np.arange(-64, 64, dtype=dtype).reshape(2, 4, 16)
    tensor = Tensor.from_array(numbers, name)
    assert (tensor.type, tensor.shape, tensor.nbytes) == (name, (2, 4, 16), tensor_bytes(name, (2, 4, 16)))
    np.testing.assert_array_equal(tensor.dequantize(), numbers)


def test_q8_0_error_is_at_most_half_a_step():
    numbers = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    back = Tensor.from_array(numbers, "Q8_0").dequantize()
    largest = np.abs(numbers).reshape(64, 8, 32).max(axis=2)
    error = np.abs(back - numbers).reshape(64, 8, 32).max(axis=2)
    # Half a step of 1/127, and the float16 scale, 127 times which may be off by a 2048th part.
    assert (error <= largest * (0.5 / 127 + 1 / 2048)).all()


def test_a_transposed_array_is_written_in_its_own_order():
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4).T
    np.testing.assert_array_equal(Tensor.from_array(numbers).dequantize(), numbers)


def test_a_long_array_is_quantised_as_its_rows_are():
    numbers = np.random.default_rng(4).standard_normal((700, 512)).astype(np.float32)
    rows = np.concatenate([Tensor.from_array(row, "Q8_0").data for row in numbers])
    np.testing.assert_array_equal(Tensor.from_array(numbers, "Q8_0").data, rows)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tensor.from_array(np.zeros(256), "Q4_K"), "cannot be written as Q4_K.*F32, F16, BF16, Q8_0"),
        (lambda: Tensor.from_array(np.zeros(32), "Q9"), "'Q9'.*Q8_0"),
        (lambda: Tensor.from_array(np.zeros((2, 33)), "Q8_0"), r"\(2, 33\).*Q8_0 blocks of 32"),
        (lambda: Tensor.from_array(np.float32(1)), r"shape \(\)"),
        (lambda: Tensor("Q8_0", (2, 40), np.zeros((2, 34), np.uint8)), r"\(2, 40\).*blocks of 32"),
        (lambda: Tensor("F32", (2, 4), np.zeros((2, 15), np.uint8)), r"\(2, 16\).*\(2, 15\)"),
        (lambda: Tensor("F32", (2, 4), np.zeros((2, 4), np.float32)), r"\(2, 16\).*float32"),
        (lambda: Tensor("F32", (), np.zeros((1, 4), np.uint8)), r"shape \(\)"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
