"""What linear layers are given is measured on both sides of the model, stored, and makes blocks better."""

import numpy as np
import pytest
from PIL import Image

from handlens.chat import load
from handlens.cli import run
from handlens.cpu import reference
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, Tensor, write_gguf
from handlens.quant.importance import measure, read_importance, save_importance
from handlens.quant.mixes import is_quantized
from handlens.quant.quantize import quantize_model
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tiny.TinyModel:
    return tiny.write(tmp_path_factory.mktemp("pair"), tiny.config(), type="F16")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    (folder / "text.txt").write_text("A short text about nothing much. " * 40, encoding="utf-8")
    (folder / "notes.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def importance(made, examples):
    return measure(load(made.model, made.mmproj), examples)


def linear_layers(*paths) -> set[str]:
    """The matrices of some files, ffn names of the tower by role; the vision tower's are no different here."""
    names = set()
    for path in paths:
        with GGUFFile(path) as file:
            names |= {name for name, tensor in file.tensors.items() if is_quantized(name, tensor.shape)}
    return names


@pytest.mark.parametrize("arithmetic", ["on", "off"])
def test_every_linear_layer_of_both_sides_is_seen(made, examples, arithmetic, monkeypatch):
    monkeypatch.setenv("HANDLENS_KERNELS", arithmetic)
    importance = measure(load(made.model, made.mmproj), examples)
    wanted = linear_layers(made.model, made.mmproj) - {"output.weight", "token_embd.weight"}
    assert importance.keys() == wanted
    assert all(np.isfinite(values).all() and values.max() > 0 for values in importance.values())


def test_it_is_the_mean_square_of_the_inputs(made, tmp_path, exact):
    (tmp_path / "text.txt").write_text("Nine words stand in this text, and no more.", encoding="utf-8")
    chat = load(made.model, made.mmproj)
    measured = measure(chat, tmp_path)
    fresh = load(made.model, made.mmproj)
    ids = [fresh.tokenizer.id("<|begin_of_text|>"), *fresh.tokenizer.encode((tmp_path / "text.txt").read_text())]
    x = fresh.generator.backend.embed(np.array(ids))
    (norm,) = fresh.generator.backend.llama.layers[0]["attn_norm"]
    given = reference.rms_norm(x, norm, fresh.config.llm.rms_norm_eps)
    np.testing.assert_allclose(measured["blk.0.attn_q.weight"], np.square(given).mean(axis=0), rtol=1e-5)


def test_measuring_does_not_change_the_answers(made, examples):
    params, msgs = SamplingParams.greedy(max_new_tokens=8), [{"role": "user", "content": "Hello."}]
    chat = load(made.model, made.mmproj)
    before = chat.reply(msgs, params)
    measure(chat, examples)
    assert chat.reply(msgs, params) == before


def test_a_file_holds_it_without_loss(importance, tmp_path):
    save_importance(tmp_path / "i.gguf", importance)
    read = read_importance(tmp_path / "i.gguf")
    assert read.keys() == importance.keys()
    for name, values in importance.items():
        np.testing.assert_array_equal(read[name], values)


def test_files_of_llama_cpp_hold_sums_and_counts(tmp_path):
    tensors = {
        "blk.0.attn_q.weight.in_sum2": Tensor.from_array(np.array([[8.0, 4.0]], np.float32)),
        "blk.0.attn_q.weight.counts": Tensor.from_array(np.array([[4.0]], np.float32)),
    }
    write_gguf(tmp_path / "i.gguf", {"general.type": ("str", "imatrix")}, tensors)
    np.testing.assert_array_equal(read_importance(tmp_path / "i.gguf")["blk.0.attn_q.weight"], [2.0, 1.0])
    del tensors["blk.0.attn_q.weight.counts"]
    write_gguf(tmp_path / "i.gguf", {"general.type": ("str", "imatrix")}, tensors)
    with pytest.raises(ModelFileError, match=r"blk\.0\.attn_q\.weight\.in_sum2 has no count"):
        read_importance(tmp_path / "i.gguf")


def test_a_model_is_no_importance_file(made):
    with pytest.raises(ModelFileError, match="is no importance file"):
        read_importance(made.model)


def test_weighted_errors_become_smaller_on_both_sides(made, importance, tmp_path):
    quantize_model(made.model, tmp_path / "a.gguf", "Q3_K_S", mmproj=made.mmproj)
    quantize_model(made.model, tmp_path / "b.gguf", "Q3_K_S", mmproj=made.mmproj, importance=lambda: importance)
    for suffix, name in ((".gguf", "blk.1.ffn_down.weight"), (".mmproj.gguf", "resampler.kv.weight")):
        with GGUFFile(made.model if suffix == ".gguf" else made.mmproj) as file:
            wanted = file.tensors[name].dequantize()
        errors = []
        for letter in "ab":
            with GGUFFile(tmp_path / f"{letter}{suffix}") as file:
                given = file.tensors[name].dequantize()
            errors.append((np.square(given - wanted) * importance[name]).mean())
        assert errors[1] < errors[0]


def test_a_swapped_ffn_gets_the_importance_of_its_role(made, importance, tmp_path):
    """Projector files call fc1 `ffn_down`; the widths tell, and a wrong one would be refused."""
    quantize_model(made.mmproj, tmp_path / "out.mmproj.gguf", "Q8_0", importance=lambda: importance)
    with GGUFFile(made.mmproj) as file:
        assert file.tensors["v.blk.0.ffn_down.weight"].shape[1] != len(importance["v.blk.0.ffn_down.weight"])


@pytest.mark.parametrize("name, content", [(None, b""), ("x.txt", b"\xff\xfe\x00bad")])
def test_examples_that_cannot_be_used_are_refused(made, tmp_path, name, content):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="nothing to calibrate with" if name is None else "not UTF-8"):
        measure(load(made.model, made.mmproj), tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        measure(load(made.model, made.mmproj), tmp_path / "none")


def test_the_command_calibrates_saves_and_reuses(made, examples, tmp_path, capsys):
    arguments = ["quantize", str(made.model), "OUT", "Q2_K", "--mmproj", str(made.mmproj)]
    saved = str(tmp_path / "i.gguf")
    for name, options in (("a", ["--calibrate", str(examples), "--imatrix", saved]), ("b", ["--imatrix", saved])):
        arguments[2] = str(tmp_path / f"{name}.gguf")
        assert run([*arguments, *options]) == 0
    assert "looked at 2 of 2 examples" in capsys.readouterr().err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert (tmp_path / "a.mmproj.gguf").read_bytes() == (tmp_path / "b.mmproj.gguf").read_bytes()
