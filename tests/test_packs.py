"""Packed weights on the disk: the next start maps them, and what is damaged or of another model is not believed."""

import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.chat import load
from handlens.cpu import ops, packs
from handlens.cpu.packs import PackStore
from handlens.engine.sampling import SamplingParams
from handlens.gguf.blocks import Tensor
from tests.test_kernels import activations, isas, needs_native, random_tensor, threads  # noqa: F401

pytestmark = needs_native
GREEDY = SamplingParams.greedy(max_new_tokens=8)


@pytest.fixture(autouse=True)
def small_models_too(monkeypatch):
    monkeypatch.setattr(packs, "MIN_BYTES", 0)


@pytest.fixture
def settle(monkeypatch):
    """Lets weights stay mapped until it is called with those that are to move."""
    own = packs._settle
    monkeypatch.setattr(packs, "_settle", lambda mapped: None)
    return own


def moving() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "handlens-settle"]


@pytest.fixture
def model(tmp_path) -> Path:
    """The file that the weights are said to come from."""
    path = tmp_path / "model"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def tensors(seed: int = 0) -> dict[str, Tensor]:
    quantised = {name: random_tensor(name, 33, 256, seed) for name in ("Q4_K", "Q6_K", "IQ3_S", "Q8_0")}
    image = Tensor.from_array(activations(10, 3 * 4 * 4, seed).reshape(10, 3, 4, 4), "F16")
    return quantised | {"F16": Tensor.from_array(activations(40, 64, seed), "F16"), "patches": image}


def is_mapped(weight: ops.PackedWeight) -> bool:
    """Whether the weights were not packed here."""
    try:
        weight.packed.fill(np.empty((0, 1), np.uint8))
    except ValueError as error:
        return "not filled" in str(error)


def bytes_of(weights: dict[str, ops.PackedWeight]) -> dict[str, bytes]:
    return {name: weight.packed.memory.tobytes() for name, weight in weights.items()}


@pytest.mark.parametrize("isa", isas())
@pytest.mark.parametrize("precision", [None, "bf16", "int8", "f32"])
def test_the_next_start_maps_the_same_weights(model, folder, isa, precision, monkeypatch, settle):
    if precision == "bf16" and not ops.multiplies_bf16(isa):
        pytest.skip(f"{isa} multiplies no bf16")
    monkeypatch.setenv(ops.ISA_VARIABLE, isa)
    first = PackStore(folder, [model]).pack("language", tensors(), precision)
    again = PackStore(folder, [model]).pack("language", tensors(), precision)
    assert not any(map(is_mapped, first.values())) and all(map(is_mapped, again.values()))
    assert bytes_of(again) == bytes_of(first)
    x = activations(3, 256)
    np.testing.assert_array_equal(ops.linear(x, again["Q4_K"]), ops.linear(x, first["Q4_K"]))
    np.testing.assert_array_equal(again["Q6_K"].dequantize(), tensors()["Q6_K"].dequantize())


def test_parts_precisions_and_instruction_sets_have_files_of_their_own(model, folder, monkeypatch):
    for isa in isas():
        monkeypatch.setenv(ops.ISA_VARIABLE, isa)
        for part, precision in (("language", None), ("vision", "int8"), ("vision", "f32")):
            PackStore(folder, [model]).pack(part, tensors(), precision)
    assert len(list(folder.iterdir())) == 3 * len(isas())


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 64)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def blank(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: packs.HEAD_BYTES].ljust(path.stat().st_size, b"\0"))


def other_head(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(packs.MAGIC)] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, blank, other_head])
def test_a_damaged_file_is_told_and_written_again(model, folder, damage, caplog, settle):
    wanted = bytes_of(PackStore(folder, [model]).pack("language", tensors(), None))
    (path,) = folder.iterdir()
    good = path.read_bytes()
    damage(path)
    with caplog.at_level(logging.WARNING, "handlens"):
        found = PackStore(folder, [model]).pack("language", tensors(), None)
    assert bytes_of(found) == wanted and not any(map(is_mapped, found.values()))
    assert str(path) in caplog.text and "packed again" in caplog.text
    assert path.read_bytes() == good
    assert all(map(is_mapped, PackStore(folder, [model]).pack("language", tensors(), None).values()))


def test_what_cannot_be_read_or_written_is_told_and_costs_nothing_else(model, folder, caplog):
    wanted = bytes_of(PackStore(folder, [model]).pack("language", tensors(), None))
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    (path / "inside").touch()
    with caplog.at_level(logging.WARNING, "handlens"):
        assert bytes_of(PackStore(folder, [model]).pack("language", tensors(), None)) == wanted
    assert "packed again" in caplog.text and "not kept" in caplog.text
    assert [path.name for path in folder.iterdir()] == [path.name]


def test_another_model_at_the_same_place_is_packed_anew(model, folder, settle):
    PackStore(folder, [model]).pack("language", tensors(), None)
    status = model.stat()
    # The same size and time of change: the rows tell.
    changed = PackStore(folder, [model]).pack("language", tensors(seed=1), None)
    assert bytes_of(changed) == {name: ops.pack(tensor).packed.memory.tobytes() for name, tensor in tensors(1).items()}
    # Another time of change, or another size.
    for change in (
        lambda: os.utime(model, ns=(0, status.st_mtime_ns + 1)),
        lambda: (model.write_bytes(b"more weights"), os.utime(model, ns=(0, status.st_mtime_ns))),
    ):
        change()
        assert not any(map(is_mapped, PackStore(folder, [model]).pack("language", tensors(1), None).values()))
    assert len(list(folder.iterdir())) == 1


def test_mapped_weights_move_to_memory_of_their_own_while_others_compute(model, folder, settle, threads):  # noqa: F811
    wanted = bytes_of(PackStore(folder, [model]).pack("language", tensors(), None))
    weights = PackStore(folder, [model]).pack("language", tensors(), None)
    x = activations(3, 256)
    outs = {name: ops.linear(x, weights[name]) for name in ("Q4_K", "Q6_K", "IQ3_S", "Q8_0")}
    threads(2)
    settle([(weight, weight.packed.memory) for weight in weights.values()])
    while moving():
        for name, out in outs.items():
            np.testing.assert_array_equal(ops.linear(x, weights[name]), out)
    assert bytes_of(weights) == wanted and not any(map(is_mapped, weights.values()))
    for name, out in outs.items():
        np.testing.assert_array_equal(ops.linear(x, weights[name]), out)


def test_weights_that_nobody_uses_any_more_do_not_move(model, folder, settle, monkeypatch):
    PackStore(folder, [model]).pack("language", tensors(), None)
    weights = PackStore(folder, [model]).pack("language", tensors(), None)
    gone, memories = [weakref.ref(weight) for weight in weights.values()], []
    monkeypatch.setattr(packs, "let_go", memories.append)
    mapped = [(weight, weight.packed.memory) for weight in weights.values()]
    arrays = [np.array(memory) for _, memory in mapped]
    mapped = [(weight, array) for (weight, _), array in zip(mapped, arrays, strict=True)]
    started = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: waiting.append(thread))
    waiting = []
    settle(mapped)
    mapped.clear()
    weights.clear()
    gc.collect()
    assert not any(reference() for reference in gone)
    (thread,) = waiting
    started(thread)
    thread.join(10)
    assert len(memories) == len(gone)


def test_small_models_are_packed_each_time(model, folder, monkeypatch):
    monkeypatch.setattr(packs, "MIN_BYTES", 1 << 20)
    PackStore(folder, [model]).pack("language", tensors(), None)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("options", [{}, {"low_memory": True}, {"vision_precision": "int8"}])
def test_a_model_answers_the_same_from_kept_weights(tiny_model, folder, options, settle):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8))
    messages = [{"role": "user", "content": [image, "What?"]}]
    wanted = load(tiny_model.model, tiny_model.mmproj, **options).reply(messages, GREEDY)
    for kept in (False, True):
        chat = load(tiny_model.model, tiny_model.mmproj, cache_dir=folder, **options)
        assert chat.reply(messages, GREEDY) == wanted
        assert is_mapped(chat.generator.backend.llama.output) == kept
        assert is_mapped(chat.generator.backend.resampler.modules["proj"][0]) == (kept or "low_memory" in options)
    # Language and vision, and in int8 the matrices of vision that stay floats.
    in_int8 = chat.generator.backend.vision_precision == "int8"
    assert len(list(folder.glob("*.packed"))) == 2 + in_int8


ENDS_AT_ONCE = """
import sys
from pathlib import Path
import numpy as np
from handlens.cpu import packs
from handlens.gguf.blocks import Tensor

data = np.random.default_rng(0).integers(0, 256, (4096, 4096 // 32 * 34), np.uint8)
tensor, folder = Tensor("Q8_0", (4096, 4096), data), Path(sys.argv[1])
store = packs.PackStore(folder / "kept", [folder / "model"])
store.pack("language", {f"matrix {number}": tensor for number in range(5)}, None)
print(len(packs._movers))
"""


def test_a_process_may_end_while_weights_move(model, folder):
    for moves in ("0", "1"):
        command = [sys.executable, "-c", ENDS_AT_ONCE, str(model.parent)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, moves, "")
