"""Checkpoint folders in the official layout: config.json, safetensors in one file or several, tokenizer.json.

The ids (m16 ...) are those of the project's table of known failures of systems like this one.
"""

import json
import math
import os
import pickle
import random
import re
import shutil
import struct
import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from handlens.chat import load
from handlens.checkpoint import MAX_HEADER_BYTES, MAX_JSON_BYTES, open_checkpoint, read_safetensors
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError, ModelFileError
from tests import tiny

GREEDY = SamplingParams.greedy(max_new_tokens=16)
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8))
MODEL = "model.safetensors"
QUESTION = [{"role": "user", "content": [IMAGE, "What is written here?"]}]


def config_json(config) -> dict:
    """What a config.json of the official layout says of a config."""
    llm, vision = config.llm, config.vision
    return {
        "model_type": "minicpmv",
        "version": "2.5",
        "hidden_size": llm.hidden_size,
        "intermediate_size": llm.intermediate_size,
        "num_hidden_layers": llm.num_hidden_layers,
        "num_attention_heads": llm.num_attention_heads,
        "num_key_value_heads": llm.num_key_value_heads,
        "vocab_size": llm.vocab_size,
        "max_position_embeddings": llm.max_position_embeddings,
        "rms_norm_eps": llm.rms_norm_eps,
        "rope_theta": llm.rope_theta,
        "query_num": config.resampler.query_num,
        "drop_vision_last_layer": False,
        "batch_vision_input": True,
        "slice_config": {
            "max_slice_nums": config.slices.max_slice_nums,
            "scale_resolution": config.slices.scale_resolution,
        },
        "vision_config": {
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "image_size": vision.position_side * vision.patch_size,
        },
    }


def write_folder(folder, made: tiny.TinyModel, dtype=torch.float32, shards: int = 1, changes=()):
    """A checkpoint folder with the tensors of a tiny model; `changes` replace some of them, None drops one."""
    folder.mkdir(exist_ok=True)
    arrays = {name: array for name, array in (made.official | dict(changes)).items() if array is not None}
    tensors = {name: torch.from_numpy(np.array(array, order="C")).to(dtype) for name, array in arrays.items()}
    names = list(tensors)
    for shard in range(shards):
        name = MODEL if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({key: tensors[key] for key in names[shard::shards]}, folder / name, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_json(made.config)))
    (folder / "tokenizer.json").write_text(tiny.tokenizer_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tiny.TinyModel:
    return tiny.write(tmp_path_factory.mktemp("pair"), tiny.config(num_hidden_layers=1))


@pytest.fixture(scope="module")
def sound(made, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint"), made)


@pytest.fixture
def folder(sound, tmp_path):
    """A sound folder of its own to each test."""
    return shutil.copytree(sound, tmp_path / "mine")


def refusal(folder) -> str:
    """The message with which a folder is refused, within a second."""
    start = time.perf_counter()
    with pytest.raises(ModelFileError) as caught:
        load(folder)
    assert time.perf_counter() - start < 1
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def ids(chat) -> list[int]:
    """The first ids of an answer that no token ends."""
    return list(chat.generator.generate(chat.prepare(QUESTION, GREEDY), GREEDY, ()))


# What is read


@pytest.mark.parametrize("shards", [1, 3])
def test_a_float32_checkpoint_computes_exactly_what_the_pair_does(made, tmp_path, shards):
    chat, pair = load(write_folder(tmp_path, made, shards=shards)), load(made.model, made.mmproj)
    assert chat.config == pair.config
    given, wanted = (c.generator.embeddings(c.prepare(QUESTION, GREEDY)) for c in (chat, pair))
    np.testing.assert_array_equal(given, wanted)
    assert chat.reply(QUESTION, GREEDY) == pair.reply(QUESTION, GREEDY)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_halves_are_read_as_they_are_stored(made, tmp_path, dtype, shards):
    """The pair in float32 of the same rounded weights gives the same numbers."""
    dtype = getattr(torch, dtype)
    chat = load(write_folder(tmp_path, made, dtype, shards))
    rounded = {name: torch.from_numpy(array).to(dtype).float().numpy() for name, array in made.official.items()}
    exact = load(write_folder(tmp_path / "exact", tiny.TinyModel(made.config, rounded, made.tokenizer, None, None)))
    given, wanted = (c.generator.embeddings(c.prepare(QUESTION, GREEDY)) for c in (chat, exact))
    np.testing.assert_array_equal(given, wanted)
    assert (
        chat.reply(QUESTION, GREEDY)
        == exact.reply(QUESTION, GREEDY)
        == load(made.model, made.mmproj).reply(QUESTION, GREEDY)
    )


def test_types_may_be_mixed_and_embeddings_tied(made, folder):
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in made.official.items()}
    for name in tensors:
        if "resampler" in name:
            tensors[name] = tensors[name].to(torch.bfloat16 if "bias" in name else torch.float16)
    del tensors["llm.lm_head.weight"]
    save_file(tensors, folder / MODEL)
    assert "lacks 'llm.lm_head.weight'" in refusal(folder)
    rewrite_json(folder / "config.json", tie_word_embeddings=True)
    tied = ids(load(folder))
    save_file(tensors | {"llm.lm_head.weight": tensors["llm.model.embed_tokens.weight"].clone()}, folder / MODEL)
    assert tied == ids(load(folder)) != ids(load(made.model, made.mmproj))


def test_a_position_mode_of_ones_own_is_used(folder):
    assert load(folder).config.vision.position_mode == "reference"
    assert load(folder, position_mode="grid_2d").config.vision.position_mode == "grid_2d"
    with pytest.raises(InputError, match="position mode '3d'"):
        load(folder, position_mode="3d")


def test_nothing_is_copied_but_what_is_reordered(sound, made):
    """The rest stays in the file: a checkpoint of 17 GB opens in the memory of its q, k and proj."""
    reordered = sum(
        array.nbytes
        for name, array in made.official.items()
        if re.search(r"\.[qk]_proj.w.*|r.proj$", name) and "vpm" not in name
    )
    open_checkpoint(sound)
    tracemalloc.start()
    checkpoint = open_checkpoint(sound)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reordered < peak < reordered + 2 * MAX_HEADER_BYTES < sound.joinpath(MODEL).stat().st_size / 2
    mapped = {
        name for name, tensor in (checkpoint.language | checkpoint.vision).items() if not tensor.data.flags.writeable
    }
    copied = (checkpoint.language | checkpoint.vision).keys() - mapped
    assert copied == {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "resampler.proj.weight"}


def test_a_header_of_odd_length_is_read(folder, made):
    """Then no tensor lies at a multiple of its item size."""
    data = (folder / MODEL).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    odd = struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :]
    (folder / MODEL).write_bytes(odd)
    assert load(folder).reply(QUESTION, GREEDY) == load(made.model, made.mmproj).reply(QUESTION, GREEDY)


def test_a_folder_with_gguf_files_and_a_config_is_a_folder_of_gguf_files(folder, made):
    os.remove(folder / MODEL)
    shutil.copy(made.model, folder / "language.gguf")
    shutil.copy(made.mmproj, folder / "mmproj.gguf")
    assert load(folder).model.files.mmproj == folder / "mmproj.gguf"


def test_a_projector_beside_a_checkpoint_is_not_passed_over(folder, made):
    with pytest.raises(InputError, match="a projector of its own"):
        load(folder, made.mmproj)


# What is missing


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    os.remove(folder / name)
    assert name in refusal(folder)


def test_a_folder_without_a_model_says_what_a_model_is(tmp_path):
    assert "neither a GGUF file nor *.safetensors files" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "neither a GGUF file nor *.safetensors files" in refusal(tmp_path)


def test_missing_extra_and_misshapen_tensors_are_named(made, tmp_path):
    zeros = np.zeros((3, 5), np.float32)
    key, fc1 = "llm.model.layers.0.self_attn.k_proj.weight", "vpm.encoder.layers.1.mlp.fc1.weight"
    for changes, words in [
        ({key: None}, f"lacks '{key}'; it is incomplete"),
        ({fc1: None}, f"lacks '{fc1}'; it is incomplete"),
        ({"resampler.proj": None, "resampler.query": None}, "lacks 'resampler.proj', 'resampler.query'"),
        (
            {"llm.model.layers.1.input_layernorm.weight": zeros},
            r"holds 'llm.model.layers.1.input_layernorm.weight' of no",
        ),
        ({"adapter.weight": zeros, "x\x1b[2J": zeros.copy()}, r"holds 'adapter.weight', 'x\\x1b\[2J' of no known use"),
        ({"resampler.pos_embed": zeros}, "holds 'resampler.pos_embed' of no known use"),
        ({key: np.zeros((64, 256), np.float32)}, r"blk.0.attn_k.weight has shape \[64, 256\], but .* \[128, 256\]"),
        ({key: zeros}, "3 rows of a q or k weight"),
        ({fc1: zeros}, r"v.blk.1.ffn_down.weight has shape \(3, 5\)"),
        ({"resampler.attn.in_proj_weight": np.zeros((7, 256), np.float32)}, "in_proj_weight has 7 rows"),
        ({"resampler.attn.in_proj_bias": np.zeros((6,), np.float32)}, r"resampler.attn.q.bias has shape \[2\]"),
        ({"resampler.proj": np.zeros((256,), np.float32)}, r"resampler.proj.weight has shape \[256\]"),
        ({key: np.zeros((), np.float32)}, rf"tensor '{key}' has shape \[\]"),
        ({key: np.zeros((0, 256), np.float32)}, rf"tensor '{key}' has shape \[0, 256\]"),
        ({key: np.zeros((1, 1, 1, 1, 1), np.float32)}, rf"tensor '{key}' has shape \[1, 1, 1, 1, 1\]"),
    ]:
        folder = write_folder(tmp_path / "x", made, changes=changes)
        assert re.search(words, refusal(folder)), changes.keys()


def rewrite_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_tensor_in_two_files_is_refused(folder):
    shutil.copy(folder / MODEL, folder / "model2.safetensors")
    assert "stands in model2.safetensors and in another file" in refusal(folder)


def test_a_tensor_of_another_type_is_named(folder):
    save_file({"llm.model.norm.weight": torch.zeros(4, dtype=torch.float64)}, folder / "x.safetensors")
    assert "'llm.model.norm.weight' holds F64; F32, F16, BF16 are read" in refusal(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    rewrite_json(folder / "config.json", vocab_size=1024)
    assert "the tokenizer has 1042 tokens, the model 1024" in refusal(folder)


# config.json


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[1, 2]", "holds a list; a JSON object is wanted"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"{}", "is of a None model; 'minicpmv' is wanted"),
        (b'{"x": "' + b"x" * MAX_JSON_BYTES + b'"}', f"at most {MAX_JSON_BYTES} are accepted"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_that_is_no_config_is_refused(folder, name, content, words):
    if name == "preprocessor_config.json" and content == b"{}":
        content = b"{"
        words = "is not JSON"
    (folder / name).write_bytes(content)
    message = refusal(folder)
    assert re.search(words, message) and name in message


def test_m18_code_in_the_folder_is_reported_and_never_run(folder):
    proof = folder / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(proof)!r}, 'w')")
    rewrite_json(folder / "config.json", auto_map={"AutoModel": "modeling_evil.Evil"}, custom_pipelines={"x": {}})
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": "modeling_evil.Evil"}}))
    chat = load(folder)
    assert len(chat.config.notices) == 3
    assert all("names code to run" in notice and "ignores it" in notice for notice in chat.config.notices)
    assert chat.reply(QUESTION, GREEDY)
    assert not proof.exists()


# M16: pickles


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "adapter.bin"]
)
@pytest.mark.parametrize("config", [True, False])
def test_m16_pickles_are_refused_with_the_reason(tmp_path, made, name, config):
    proof = tmp_path / "ran"
    (tmp_path / name).write_bytes(pickle.dumps(Evil(str(proof))))
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config_json(made.config)))
    for message in (refusal(tmp_path), refusal(tmp_path / name)):
        assert name in message and "can run code when" in message
    with pytest.raises(ModelFileError, match="pickle can run code"):
        load(made.model, tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(config_json(made.config)))
    renamed = shutil.copy(tmp_path / name, tmp_path / MODEL)
    assert str(renamed) in refusal(tmp_path)
    assert not proof.exists()


# M17: safetensors


def safetensors(header, data=b"", length=None) -> bytes:
    """A file put together by hand; the header may be a mapping or the bytes of one, its length may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start=0, stop=16, shape=(4,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


ONE = b'"dtype":"F32","shape":[4],"data_offsets":[0,16]'
DAMAGED = {
    "empty": b"",
    "seven bytes": bytes(7),
    "length alone": struct.pack("<Q", 2),
    "length of 0": bytes(8) + b"{}",
    "header longer than the file": safetensors({"a": entry()}, bytes(16), length=1000),
    "header of 2^63 bytes": safetensors({"a": entry()}, bytes(16), length=1 << 63),
    "header of 2^64 - 1 bytes": safetensors({"a": entry()}, bytes(16), length=(1 << 64) - 1),
    "header longer than accepted": safetensors(b'{"a":{' + ONE + b"}}" + b" " * MAX_HEADER_BYTES, bytes(16)),
    "header that is no JSON": safetensors(b"{'a': 1}"),
    "header that is a list": safetensors([1]),
    "header nested deeply": safetensors(b'{"a":' * 100_000),
    "name that is not UTF-8": safetensors(b'{"\xff\xfe":{' + ONE + b"}}", bytes(16)),
    "name of half a surrogate": safetensors(b'{"\\ud800":{' + ONE + b"}}", bytes(16)),
    "name twice": safetensors(b'{"a":{' + ONE + b'},"a":{' + ONE + b"}}", bytes(16)),
    "field twice": safetensors(b'{"a":{"dtype":"F16",' + ONE + b"}}", bytes(16)),
    "data cut short": safetensors({"a": entry()}, bytes(15)),
    "data left over": safetensors({"a": entry()}, bytes(17)),
    "no data": safetensors({"a": entry()}),
    "overlap": safetensors({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)),
    "the same place": safetensors({"a": entry(), "b": entry()}, bytes(16)),
    "hole": safetensors({"a": entry(0, 16), "b": entry(32, 48)}, bytes(48)),
    "backwards": safetensors({"a": entry(16, 0)}, bytes(16)),
    "negative": safetensors({"a": entry(-16, 0)}, bytes(16)),
    "range smaller than the shape": safetensors({"a": entry(shape=(5,))}, bytes(16)),
    "range larger than the shape": safetensors({"a": entry(shape=(3,))}, bytes(16)),
    "shape that wraps": safetensors({"a": entry(shape=(1 << 33, 1 << 33))}, bytes(16)),
    "shape of 2^64": safetensors({"a": entry(shape=(1 << 64,))}, bytes(16)),
    "shape of fractions": safetensors({"a": entry(shape=(4.0,))}, bytes(16)),
    "shape that is a number": safetensors(b'{"a":{"dtype":"F32","shape":4,"data_offsets":[0,16]}}', bytes(16)),
    "three offsets": safetensors(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8,16]}}', bytes(16)),
    "unknown type": safetensors({"a": entry(dtype="F31")}, bytes(16)),
    "type not read": safetensors({"a": entry(dtype="I32")}, bytes(16)),
    "entry without a shape": safetensors(b'{"a":{"dtype":"F32","data_offsets":[0,16]}}', bytes(16)),
    "entry that is a number": safetensors({"a": 1}),
    "metadata that is no text": safetensors({"__metadata__": {"a": 1}}),
    "100,000 tensors": safetensors({f"t{n}": entry(n * 4, n * 4 + 4, (1,)) for n in range(100_000)}, bytes(400_000)),
    "10,000 tensors": safetensors({f"t{n}": entry(n * 4, n * 4 + 4, (1,)) for n in range(10_000)}, bytes(40_000)),
    "as many entries as a header holds": safetensors(b"{" + b",".join(b'"%x":0' % n for n in range(90_000)) + b"}"),
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4921246944\n",
    "HTML": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
    "pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_m17_damaged_safetensors_are_refused_quickly(folder, name):
    (folder / MODEL).write_bytes(DAMAGED[name])
    message = refusal(folder)
    assert str(folder / MODEL) in message
    if name == "LFS pointer":
        assert "is a Git LFS pointer" in message


def test_m17_names_that_are_no_plain_files_are_refused(folder):
    os.remove(folder / MODEL)
    (folder / MODEL).mkdir()
    assert "there is no file" in refusal(folder)
    (folder / MODEL).rmdir()
    os.symlink(folder / MODEL, folder / MODEL)
    assert "there is no file" in refusal(folder)
    if hasattr(os, "mkfifo"):
        os.remove(folder / MODEL)
        os.mkfifo(folder / MODEL)
        assert "there is no file" in refusal(folder)


def test_m17_truncated_at_every_byte_of_the_header_and_some_of_the_data(tmp_path):
    whole = safetensors({"a": entry(), "b": entry(16, 32, (2, 2))}, bytes(32))
    path = tmp_path / "a.safetensors"
    path.write_bytes(whole)
    assert read_safetensors(path).keys() == {"a", "b"}
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelFileError):
            read_safetensors(path)


def test_m17_mutations_are_refused_or_read(tmp_path):
    rng = random.Random(20_261_125)
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry(),
        "é": entry(16, 24, (2, 2), "BF16"),
        "b.c": entry(24, 32, (4,), "F16"),
    }
    whole = safetensors(header, bytes(range(32)))
    path, read, slowest = tmp_path / "a.safetensors", 0, 0.0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 4])):
            place = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[place] ^= 1 << rng.randrange(8)
                case 1:
                    data[place] = rng.choice(b'0123456789[]{}",:-e.\\ \xff\0')
                case 2:
                    data[place:place] = data[rng.randrange(len(data)) :][: rng.randrange(20)]
                case 3:
                    del data[place : place + rng.randrange(1, 9)]
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            tensors = read_safetensors(path)
        except ModelFileError:
            continue
        finally:
            slowest = max(slowest, time.perf_counter() - start)
        read += 1
        assert sum(array.nbytes for array in tensors.values()) <= len(data)
        assert all(array.size == math.prod(array.shape) for array in tensors.values())
    assert 20 < read < 400
    assert slowest < 1
