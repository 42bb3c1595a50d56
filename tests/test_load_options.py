"""Options of loading that change what a model costs, from Python and from the command line."""

import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.make_model import write
from handlens.chat import load
from handlens.cli import run
from handlens.cpu import ops
from handlens.cpu.backend import choose_precision
from handlens.cpu.threads import thread_count
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, write_gguf
from tests import tiny

GREEDY = SamplingParams.greedy(max_new_tokens=8)
MSGS = [{"role": "user", "content": [Image.new("RGB", (300, 200), "teal"), "What?"]}]


@pytest.fixture
def threads():
    """Leaves the thread count of the process as it was."""
    yield
    if ops.native is not None:
        ops.set_threads(thread_count())


def vectors(chat) -> np.ndarray:
    return chat.generator.embeddings(chat.prepare(MSGS, GREEDY))


def test_the_vision_tower_is_in_memory_only_while_images_are_encoded(tiny_model):
    plain, chat = (load(tiny_model.model, tiny_model.mmproj, low_memory=low) for low in (False, True))
    backend = chat.generator.backend
    assert backend._eyes is None
    seen = []

    def progress(done, total):
        seen.append(weakref.ref(backend._eyes[0]))

    inputs = chat.prepare(MSGS, GREEDY)
    np.testing.assert_array_equal(chat.generator.embeddings(inputs, progress), vectors(plain))
    gc.collect()
    assert seen and seen[0]() is None and backend._eyes is None
    other = [{"role": "user", "content": [Image.new("RGB", (90, 80), "red"), "What?"]}]
    assert chat.reply(other, GREEDY) == plain.reply(other, GREEDY)  # loaded again
    assert backend._eyes is None and plain.generator.backend._eyes is not None


def test_a_damaged_vision_side_is_refused_at_once_with_low_memory_too(tiny_model, tmp_path):
    with GGUFFile(tiny_model.mmproj) as file:
        keys = {key: (file.types[key], value) for key, value in file.metadata.items()}
        tensors = dict(file.tensors)
        tensors["v.post_ln.weight"] = tensors["v.patch_embd.weight"]
        write_gguf(tmp_path / "mmproj.gguf", keys, tensors)
    with pytest.raises(ModelFileError, match="v.post_ln.weight has shape"):
        load(tiny_model.model, tmp_path / "mmproj.gguf", low_memory=True)


@pytest.mark.skipif(ops.native is None, reason="built without kernels")
def test_so_many_threads_compute_as_were_asked_for(tiny_model, threads):
    answers = set()
    for count in (3, 1):
        chat = load(tiny_model.model, tiny_model.mmproj, threads=count)
        assert ops.native.threads() == count and f"{count} threads" in ops.description()
        answers.add(chat.reply(MSGS, GREEDY))
    assert len(answers) == 1


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_thread_counts_that_make_no_sense_are_refused(tiny_model, count):
    with pytest.raises(InputError, match=f"{count} threads"):
        load(tiny_model.model, threads=count)


@pytest.mark.skipif(ops.native is None, reason="numpy always computes in float32")
def test_the_vision_precision_is_that_which_was_asked_for(tiny_model):
    usual = choose_precision(None, ops)
    seen = {
        precision: vectors(load(tiny_model.model, tiny_model.mmproj, vision_precision=precision))
        for precision in ("f32", "int8", usual, None)
    }
    assert (seen["f32"] != seen["int8"]).any() and (seen["f32"] != seen[usual]).any()
    np.testing.assert_array_equal(seen[None], seen[usual])


@pytest.mark.parametrize(
    ("type", "kept"), [("Q8_0", np.float16), ("Q4_K", np.float16), ("F16", np.float32), ("F32", np.float32)]
)
def test_keys_and_values_are_float16_where_weights_are_quantised(tmp_path, type, kept):
    model, _ = write(tmp_path, type, 2, "F16", 1, tiny.config())
    backend = load(model).generator.backend
    cache = backend.new_cache()
    backend.forward([backend.embed([1, 2, 3])], [cache])
    keys, values = cache.update(
        *np.zeros((2, backend.config.llm.num_key_value_heads, 1, backend.config.llm.head_dim)), 0
    )
    assert keys.dtype == values.dtype == cache.copy()._keys[0].dtype == kept


@pytest.mark.parametrize(
    "option", [{"threads": 2}, {"vision_precision": "f32"}, {"low_memory": True}, {"cache_dir": "kept"}]
)
def test_torch_refuses_what_only_the_device_side_has(tiny_model, option):
    with pytest.raises(InputError, match=f"the backend torch has no {next(iter(option))}"):
        load(tiny_model.model, backend="torch", **option)


def test_the_command_line_passes_them_on(tiny_model, tmp_path, threads, capsys):
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "image.png")
    common = ["--model", str(tiny_model.model), "--max-new-tokens", "8", "--greedy", "-q"]
    ask = ["ask", str(tmp_path / "image.png"), "What?", *common]

    def answer(*options: str) -> str:
        assert run([*ask, *options]) == 0
        return capsys.readouterr().out

    wanted = load(tiny_model.model, vision_precision="f32").reply(MSGS, GREEDY) + "\n"
    given = answer("--vision-precision", "f32", "--threads", "1", "--low-memory", "--cache-dir", str(tmp_path / "kept"))
    assert given == wanted
    assert len(list((tmp_path / "kept").iterdir())) == 1
    if ops.native is not None:
        assert ops.native.threads() == 1
    assert run([*ask, "--threads", "0"]) == 2 and "0 threads" in capsys.readouterr().err
    assert run([*ask, "--vision-precision", "int4"]) == 2 and "int4" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what lies in memory")
def test_low_memory_gives_back_what_the_vision_side_took(tmp_path):
    """In a process of its own, with a vision side of about 90 MB, mapped and packed."""
    config = tiny.config()
    vision = replace(config.vision, hidden_size=768, intermediate_size=3072, num_hidden_layers=6, num_attention_heads=8)
    config = replace(config, vision=vision, resampler=replace(config.resampler, kv_dim=768))
    model, _ = write(tmp_path, "Q8_0", 2, "F16", 6, config)
    code = f"""
from PIL import Image
from handlens.chat import load
from handlens.engine.sampling import SamplingParams

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

def ask(chat, colour):
    msgs = [{{"role": "user", "content": [Image.new("RGB", (100, 100), colour), "What?"]}}]
    return chat.reply(msgs, SamplingParams.greedy(max_new_tokens=4))

before = load({str(model)!r}, low_memory=True)
start = resident()
after = ask(before, "red")
low = resident() - start
plain = load({str(model)!r})
same = ask(plain, "red") == after
print(low, resident() - start, same)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    low, plain, same = ran.stdout.split()
    assert same == "True"
    assert float(low) < 40 < 70 < float(plain)
