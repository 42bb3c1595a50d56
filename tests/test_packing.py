"""Packed weights: how they come into memory, and that the file's pages leave it."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from handlens.cpu import ops
from handlens.gguf.blocks import Tensor
from tests.test_kernels import QUANTIZED, activations, isas, needs_native, random_tensor


@needs_native
@pytest.mark.parametrize("isa", isas())
def test_packed_memory_can_be_given_back_to_a_new_weight(isa):
    x = activations(3, 256)
    for name in ("Q4_0", "IQ3_S", "Q6_K", "F16"):
        tensor = random_tensor(name, 33, 256) if name in QUANTIZED else Tensor.from_array(activations(33, 256), name)
        weight = ops.pack(tensor, isa)
        held = np.zeros(weight.packed.nbytes + 128, np.uint8)
        held = held[-held.ctypes.data % 64 :][: weight.packed.nbytes]
        held[:] = weight.packed.memory
        again = ops.native.Packed(name, 33, 256, isa, memory=held)
        np.testing.assert_array_equal(ops.linear(x, ops.PackedWeight(tensor, again)), ops.linear(x, weight))
        with pytest.raises(ValueError, match="not filled"):
            again.fill(tensor.data)
        for wrong in (held[:-64], np.concatenate([held, held])[1 : 1 + len(held)]):
            with pytest.raises(ValueError, match=f"takes {len(held)} bytes"):
                ops.native.Packed(name, 33, 256, isa, memory=wrong)


@needs_native
def test_a_large_matrix_is_packed_in_steps(monkeypatch):
    tensor = random_tensor("Q5_K", 100, 256)
    whole = ops.pack(tensor).packed.memory
    monkeypatch.setattr(ops, "STEP_NUMBERS", 1 << 13)
    np.testing.assert_array_equal(ops.pack(tensor).packed.memory, whole)


@needs_native
@pytest.mark.parametrize("type", ["F16", "BF16", "F32"])
def test_rows_as_int8_are_the_nearest_codes_of_their_largest_number(type):
    numbers = activations(9, 70)
    numbers[1] *= 1e-7  # float16's subnormal numbers
    numbers[2] = 0
    numbers[3, 5] = np.inf
    tensor = Tensor.from_array(numbers, type)
    exact = tensor.dequantize()
    packed = ops.pack(tensor, "scalar", "int8").packed.memory
    codes = packed[: 9 * 96].reshape(9, 96)[:, :70].astype(np.int64) - 128
    scales = packed[-9 * 4 :].view(np.float32)
    largest = np.abs(exact).max(axis=1)
    assert np.isnan(scales[3]) and scales[2] == 0 and not codes[[2, 3]].any()
    rows = [0, 1, *range(4, 9)]
    np.testing.assert_array_equal(scales[rows], largest[rows] / np.float32(127))
    inverse = (np.float32(127) / largest[rows])[:, None]
    np.testing.assert_array_equal(codes[rows], np.rint(exact[rows] * inverse))


@needs_native
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc/self/smaps")
def test_pages_of_the_file_leave_memory_when_they_are_packed(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(8192 * 1088))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tensor = Tensor("Q8_0", (8192, 1024), np.frombuffer(mapped, np.uint8).reshape(8192, 1088))

    def resident() -> int:
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        for line in lines:
            if line.endswith(str(path)):
                return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))
        raise AssertionError("the file is not mapped")

    tensor.data.sum()
    assert resident() > 8000
    ops.pack(tensor)
    assert resident() < 100
