"""Checkpoint folders to GGUF files and back: nothing gets lost, and what fails leaves nothing behind."""

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file

from handlens.chat import load
from handlens.checkpoint import read_checkpoint
from handlens.cli import run
from handlens.conversion import to_checkpoint, to_gguf
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, Tensor, write_gguf
from handlens.gguf.convert import convert
from handlens.tokenizer import Tokenizer
from tests import tiny
from tests.multilingual import lines
from tests.test_checkpoint import MODEL, Evil, config_json, ids, rewrite_json, write_folder
from tests.test_tokenizer import metadata_of, trained


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tiny.TinyModel:
    return tiny.write(tmp_path_factory.mktemp("pair"), tiny.config())


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint"), made)


@pytest.fixture(scope="module")
def answer(made) -> list[int]:
    return ids(load(made.model, made.mmproj))


def tensors_of(path) -> dict[str, Tensor]:
    with GGUFFile(path) as file:
        return dict(file.tensors)


def assert_same_file(path, wanted):
    """Metadata with types and tensors with types and bytes; the order of tensors is that of the checkpoint."""
    with GGUFFile(path) as given, GGUFFile(wanted) as other:
        assert given.types == other.types
        for key, value in other.metadata.items():
            np.testing.assert_array_equal(given.metadata[key], value)
        assert given.tensors.keys() == other.tensors.keys()
        for name, tensor in other.tensors.items():
            assert (given.tensors[name].type, given.tensors[name].shape) == (tensor.type, tensor.shape)
            np.testing.assert_array_equal(given.tensors[name].data, tensor.data)


def left_in(path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# To GGUF


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0"])
def test_a_checkpoint_becomes_the_pair_that_is_written_from_its_tensors(made, folder, tmp_path, type):
    written = to_gguf(folder, tmp_path / "a.gguf", type=type)
    assert written.paths == (tmp_path / "a.gguf", tmp_path / "a.mmproj.gguf")
    assert written.type == type and written.notices == ()
    wanted = tiny.write(tmp_path, made.config, type=type)
    assert_same_file(written.paths[0], wanted.model)
    assert_same_file(written.paths[1], wanted.mmproj)


def test_a_pair_and_a_single_file_answer_as_the_checkpoint_does(folder, answer, tmp_path):
    for name, single in (("pair", False), ("single", True)):
        (tmp_path / name).mkdir()
        to_gguf(folder, tmp_path / name / "a.gguf", single=single)
        chat = load(tmp_path / name)
        assert chat.config == load(folder).config
        assert ids(chat) == answer
    assert left_in(tmp_path / "single") == {"a.gguf"}


@pytest.mark.parametrize(("dtype", "type"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")])
def test_numbers_stay_as_they_are_stored_unless_another_type_is_named(made, tmp_path, dtype, type):
    folder = write_folder(tmp_path / "checkpoint", made, getattr(torch, dtype), shards=2)
    written = to_gguf(folder, tmp_path / "a.gguf", single=True)
    assert written.type == type
    back = to_checkpoint(written.paths[0], None, tmp_path / "back")
    given, wanted = load_file(tmp_path / "back" / MODEL), {}
    for path in folder.glob("*.safetensors"):
        wanted |= load_file(path)
    assert given.keys() == wanted.keys() and back.type == type
    for name, tensor in wanted.items():
        assert torch.equal(given[name].float(), tensor.float()), name
        if tensor.ndim == 2 and name not in ("resampler.query", "resampler.proj"):
            assert given[name].dtype == tensor.dtype
    assert ids(load(tmp_path / "back")) == ids(load(folder))


def test_rows_that_are_no_whole_blocks_are_f16(made, tmp_path):
    """As those of fc2 of the published model, which have 4304 numbers."""
    config = replace(made.config, vision=replace(made.config.vision, intermediate_size=112))
    odd = replace(made, config=config, official=tiny.official_tensors(config))
    to_gguf(write_folder(tmp_path / "odd", odd), tmp_path / "a.gguf", type="Q8_0")
    types = {name: tensor.type for name, tensor in tensors_of(tmp_path / "a.mmproj.gguf").items()}
    assert types["v.blk.0.ffn_up.weight"] == "F16"  # fc2 by its historic name
    assert types["v.blk.0.ffn_down.weight"] == "Q8_0"
    assert ids(load(tmp_path / "a.gguf"))


def test_tied_embeddings_stay_tied(made, tmp_path):
    folder = write_folder(tmp_path / "tied", made, changes={"llm.lm_head.weight": None})
    rewrite_json(folder / "config.json", tie_word_embeddings=True)
    to_gguf(folder, tmp_path / "a.gguf")
    assert "output.weight" not in tensors_of(tmp_path / "a.gguf")
    to_checkpoint(tmp_path / "a.gguf", tmp_path / "a.mmproj.gguf", tmp_path / "back")
    assert ids(load(folder)) == ids(load(tmp_path / "a.gguf")) == ids(load(tmp_path / "back"))


def test_a_number_that_f16_does_not_have_is_named(made, tmp_path):
    name = "llm.model.layers.0.mlp.up_proj.weight"
    weight = made.official[name].copy()
    weight[-1, -1] = -70000
    folder = write_folder(tmp_path / "large", made, changes={name: weight})
    with pytest.raises(ModelFileError, match=r"tensor blk.0.ffn_up.weight holds 70000, which F16 .* BF16 or F32"):
        to_gguf(folder, tmp_path / "a.gguf", type="F16")
    assert left_in(tmp_path) == {"large"}
    to_gguf(folder, tmp_path / "a.gguf", type="BF16")


def test_converting_in_pieces_is_converting_at_once(monkeypatch):
    array = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    monkeypatch.setattr("handlens.gguf.convert.PIECE", 150)
    for type in ("F16", "BF16", "Q8_0"):
        given, wanted = convert("a", Tensor.from_array(array), type), Tensor.from_array(array, type)
        np.testing.assert_array_equal(given.data, wanted.data)


# To a checkpoint


def test_f32_files_become_the_checkpoint_that_they_were_made_of(made, folder, answer, tmp_path):
    written = to_checkpoint(made.model, made.mmproj, tmp_path / "back")
    assert written.paths == (tmp_path / "back",) and written.type == "F32"
    given, wanted = load_file(tmp_path / "back" / MODEL), load_file(folder / MODEL)
    assert given.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(given[name].float(), tensor), name
    chat = load(tmp_path / "back")
    assert chat.config == made.config
    assert ids(chat) == answer
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize(("type", "stored"), [(None, "F16"), ("F32", "F32"), ("BF16", "BF16")])
def test_blocks_become_f16_or_what_is_asked_for(made, folder, tmp_path, exact, type, stored):
    pair = to_gguf(folder, tmp_path / "a.gguf", type="Q8_0").paths
    assert to_checkpoint(*pair, tmp_path / "back", type=type).type == stored
    config, tensors = read_checkpoint(tmp_path / "back")
    assert config == made.config
    blocks = tensors_of(pair[0])["blk.1.ffn_gate.weight"]
    given = Tensor.from_bits(tensors["llm.model.layers.1.mlp.gate_proj.weight"])
    assert given.type == stored
    np.testing.assert_array_equal(given.data, convert("", blocks, stored).data)
    if type:
        assert {Tensor.from_bits(array).type for array in tensors.values()} == {stored}
    else:
        assert ids(load(tmp_path / "back")) == ids(load(*pair))


def test_large_checkpoints_are_cut_into_files_with_an_index(made, answer, tmp_path):
    to_checkpoint(made.model, made.mmproj, tmp_path / "back", shard_bytes=1_000_000)
    files = sorted(tmp_path.glob("back/*.safetensors"))
    names = [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert [path.name for path in files] == names and len(names) > 5
    held = {path.name: load_file(path) for path in files}
    sizes = [sum(tensor.nbytes for tensor in tensors.values()) for tensors in held.values()]
    assert all(size <= 1_000_000 or len(held[path.name]) == 1 for path, size in zip(files, sizes, strict=True))
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: path for path, tensors in held.items() for name in tensors}
    assert ids(load(tmp_path / "back")) == answer


@pytest.mark.parametrize("kind", ["llama-bpe", "smollm", "llama"])
def test_the_tokenizer_is_rebuilt(kind, tmp_path):
    (tmp_path / "tokenizer.json").write_text(trained(kind), encoding="utf-8")
    first = Tokenizer.from_file(tmp_path / "tokenizer.json")
    fields = metadata_of(first)
    if kind == "llama":
        del fields["tokenizer.ggml.merges"]  # as in most files: there are the scores alone
    (tmp_path / "tokenizer.json").write_text(Tokenizer.from_gguf(fields).to_json(), encoding="utf-8")
    second = Tokenizer.from_file(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert second.special == first.special
    for text in lines()[::7]:
        assert second.encode(text) == first.encode(text) == library.encode(text).ids
        assert library.decode(first.encode(text)) == text.replace("▁", " ") if kind == "llama" else text
    for name, token_id in first.special.items():
        assert library.token_to_id(name) == token_id


def test_a_model_without_a_projector_or_with_factors_of_rope_is_refused(made, tmp_path):
    with pytest.raises(InputError, match="has no projector, and a checkpoint needs one"):
        to_checkpoint(made.model, None, tmp_path / "back")
    with GGUFFile(made.model) as file:
        metadata = {key: (file.types[key], value) for key, value in file.metadata.items()}
        factors = {"rope_freqs.weight": Tensor.from_array(np.linspace(1, 8, 32, dtype=np.float32))}
        write_gguf(tmp_path / "factors.gguf", metadata, file.tensors | factors)
    with pytest.raises(InputError, match="has factors of RoPE"):
        to_checkpoint(tmp_path / "factors.gguf", made.mmproj, tmp_path / "back")
    assert left_in(tmp_path) == {"factors.gguf"}


# What is refused


def test_missing_extra_and_misshapen_tensors_are_named_before_anything_is_written(made, tmp_path):
    key, odd = "llm.model.layers.1.self_attn.k_proj.weight", np.zeros((64, 256), np.float32)
    for changes, words in [
        ({key: None, "resampler.proj": None}, f"lacks '{key}', 'resampler.proj'"),
        ({"adapter.weight": odd}, "holds 'adapter.weight' of no known use"),
        ({key: odd}, r"blk.1.attn_k.weight has shape \[64, 256\], but .* \[128, 256\]"),
        ({"vpm.encoder.layers.1.mlp.fc1.weight": odd}, r"v.blk.1.ffn_down.weight has shape \(64, 256\)"),
        ({"resampler.query": odd}, r"resampler.query has shape \[64, 256\], but .* \[96, 256\]"),
        ({"resampler.attn.in_proj_bias": np.zeros(7, np.float32)}, "in_proj_bias has 7 rows"),
    ]:
        folder = write_folder(tmp_path / "bad", made, changes=changes)
        with pytest.raises(ModelFileError, match=words):
            to_gguf(folder, tmp_path / "a.gguf")
        assert left_in(tmp_path) == {"bad"}
    for file, name in [(made.model, "blk.1.attn_k.weight"), (made.mmproj, "v.blk.1.ln1.bias")]:
        with GGUFFile(file) as whole:
            metadata = {key: (whole.types[key], value) for key, value in whole.metadata.items()}
            rest = {other: tensor for other, tensor in whole.tensors.items() if other != name}
            write_gguf(tmp_path / "bad.gguf", metadata, rest)
        pair = [tmp_path / "bad.gguf" if path == file else path for path in (made.model, made.mmproj)]
        with pytest.raises(ModelFileError, match=f"lacks '{name}'"):
            to_checkpoint(*pair, tmp_path / "back")
        assert left_in(tmp_path) == {"bad", "bad.gguf"}


def test_m16_pickles_are_refused_with_the_reason(made, tmp_path, capsys):
    proof = tmp_path / "ran"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(str(proof))))
    (tmp_path / "model" / "config.json").write_text(json.dumps(config_json(made.config)))
    for source in ("model", "model/pytorch_model.bin"):
        assert run(["convert", str(tmp_path / source), "--out", str(tmp_path / "a.gguf")]) == 2
        assert "can run code when" in capsys.readouterr().err
    assert left_in(tmp_path) == {"model"} and not proof.exists()


def test_m18_code_in_the_folder_is_reported_and_left_behind(folder, tmp_path, capsys):
    mine = shutil.copytree(folder, tmp_path / "mine")
    rewrite_json(mine / "config.json", auto_map={"AutoModel": "modeling_evil.Evil"})
    (mine / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert run(["convert", str(mine), "--out", str(tmp_path / "a.gguf"), "--single"]) == 0
    assert "names code to run (auto_map); handlens runs none and ignores it" in capsys.readouterr().err
    assert run(["convert", str(tmp_path / "a.gguf"), "--out", str(tmp_path / "back")]) == 0
    assert "auto_map" not in (tmp_path / "back" / "config.json").read_text()
    assert left_in(tmp_path) == {"mine", "a.gguf", "back"}


def test_a_tokenizer_of_another_model_is_refused(made, tmp_path):
    folder = write_folder(tmp_path / "mixed", made)
    (folder / "tokenizer.json").write_text(tiny.tokenizer_json(700), encoding="utf-8")
    with pytest.raises(ModelFileError, match="the tokenizer has 718 tokens, the model 1042"):
        to_gguf(folder, tmp_path / "a.gguf")
    without = json.loads(tiny.tokenizer_json().replace("</slice>", "</slime>"))
    (folder / "tokenizer.json").write_text(json.dumps(without), encoding="utf-8")
    with pytest.raises(ModelFileError, match="no special token '</slice>'"):
        to_gguf(folder, tmp_path / "a.gguf")


def test_what_is_there_is_not_overwritten_unless_asked_for(folder, tmp_path):
    out, other = tmp_path / "a.gguf", tmp_path / "a.mmproj.gguf"
    other.write_text("mine")
    with pytest.raises(InputError, match=r"a.mmproj.gguf is there already"):
        to_gguf(folder, out)
    assert left_in(tmp_path) == {"a.mmproj.gguf"} and other.read_text() == "mine"
    to_gguf(folder, out, overwrite=True)
    with pytest.raises(InputError, match="back is there already and not an empty folder"):
        (tmp_path / "back").mkdir()
        (tmp_path / "back" / "notes.txt").touch()
        to_checkpoint(out, other, tmp_path / "back")
    (tmp_path / "back" / "notes.txt").unlink()
    to_checkpoint(out, other, tmp_path / "back")
    with pytest.raises(InputError, match="back is a folder; name the GGUF file"):
        to_gguf(folder, tmp_path / "back", overwrite=True)
    with pytest.raises(InputError, match="both files would be"):
        to_gguf(folder, out, mmproj_out=out, overwrite=True)


# What fails


@pytest.mark.parametrize("at", ["first tensor", "projector"])
def test_ctrl_c_leaves_no_file_and_the_old_ones(folder, tmp_path, at):
    out, projector = tmp_path / "a.gguf", tmp_path / "a.mmproj.gguf"

    def stop(done, total):
        if at == "first tensor" or done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_gguf(folder, out, progress=stop)
    assert left_in(tmp_path) == set()
    out.write_text("old")
    projector.write_text("old too")
    with pytest.raises(KeyboardInterrupt):
        to_gguf(folder, out, overwrite=True, progress=stop)
    assert (out.read_text(), projector.read_text()) == ("old", "old too")
    assert left_in(tmp_path) == {"a.gguf", "a.mmproj.gguf"}


def test_ctrl_c_leaves_no_folder(made, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_checkpoint(made.model, made.mmproj, tmp_path / "back", progress=stop)
    assert left_in(tmp_path) == set()


FULL = """
import resource, sys
from handlens.cli import run
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
sys.exit(run(["convert", *sys.argv[1:]]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_a_disk_that_takes_no_more_leaves_the_old_files(made, folder, tmp_path):
    (tmp_path / "a.gguf").write_text("old")
    for arguments in (
        [folder, "--out", tmp_path / "a.gguf", "--force"],
        [made.model, "--out", tmp_path / "back"],
    ):
        done = subprocess.run([sys.executable, "-c", FULL, *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert re.search(r"(a\.gguf|back) cannot be written: File too large", done.stderr)
        assert left_in(tmp_path) == {"a.gguf"} and (tmp_path / "a.gguf").read_text() == "old"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is unreadable for this user")
def test_files_that_cannot_be_read_are_named(folder, tmp_path):
    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / MODEL).chmod(0)
    with pytest.raises(ModelFileError, match=r"model.safetensors cannot be read: Permission denied"):
        to_gguf(mine, tmp_path / "a.gguf")


def test_one_tensor_is_in_memory_at_a_time(made, tmp_path, monkeypatch):
    """A checkpoint of 17 GB is converted in the memory of its largest tensor."""
    monkeypatch.setattr("handlens.gguf.convert.PIECE", 1 << 14)
    config = tiny.config(num_hidden_layers=16)
    config = replace(config, vision=replace(config.vision, position_side=10))
    large = replace(made, config=config, official=tiny.official_tensors(config))
    folder = write_folder(tmp_path / "checkpoint", large, torch.bfloat16)
    size = (folder / MODEL).stat().st_size
    pair = {"out": tmp_path / "pair.gguf", "mmproj_out": tmp_path / "mmproj.gguf"}
    peaks = []

    def watch(done, total):
        if tracemalloc.is_tracing():
            peaks.append(tracemalloc.get_traced_memory()[1])
        else:
            tracemalloc.start()

    for convert_all in (
        lambda: to_gguf(folder, **pair, type="F16", progress=watch),
        lambda: to_gguf(folder, tmp_path / "f32.gguf", type="F32", single=True, progress=watch),
        lambda: to_checkpoint(*pair.values(), tmp_path / "back", type="BF16", progress=watch),
    ):
        convert_all()
        tracemalloc.stop()
    assert len(peaks) > 500
    assert max(peaks) < size / 10


# The command


def test_the_command_converts_there_and_back(folder, answer, tmp_path, capsys):
    pair = [str(tmp_path / name) for name in ("x.gguf", "y.gguf")]
    assert run(["convert", str(folder), "-o", pair[0], "--mmproj-out", pair[1], "--type", "F32"]) == 0
    assert capsys.readouterr() == ("", f"handlens: wrote {pair[0]} and {pair[1]}, most of it as F32\n")
    assert run(["convert", pair[0], "-o", str(tmp_path / "back"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert ids(load(tmp_path / "back")) == answer


def test_options_of_the_other_direction_are_refused(made, folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    for arguments, words in [
        ([made.model, *out, "--single", "--force"], "--single, --force is for writing GGUF files"),
        ([made.model, *out, "--type", "Q8_0"], "a checkpoint cannot hold 'Q8_0'; it can hold F32, F16, BF16"),
        ([folder, *out, "--mmproj", made.mmproj], "is a checkpoint with a projector of its own"),
        ([folder, *out, "--single", "--mmproj-out", "b.gguf"], "a single file was asked for, and a projector file"),
        ([folder, *out, "--type", "Q4_K"], "Q4_K"),
        ([folder], "--out"),
        ([tmp_path / "none", *out], "there is no file or folder"),
    ]:
        assert run(["convert", *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err
    assert left_in(tmp_path) == set()
