"""Language file and projector: every arrangement that people have them in, and what is refused, by name.

The ids (m05 ...) are those of the project's table of known failures of systems like this one.
"""

import contextlib
import gc
import os
import random
import re
import shutil
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from handlens.chat import load
from handlens.engine.sampling import SamplingParams
from handlens.errors import HandlensError, InputError, ModelFileError
from handlens.gguf import GGUFFile, Tensor, write_gguf
from handlens.gguf.names import POSITION_TABLE
from handlens.weights import find_files
from tests import tiny

GREEDY = SamplingParams.greedy(max_new_tokens=8)
QUESTION = [
    {
        "role": "user",
        "content": [
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)),
            "What is written here?",
        ],
    }
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tiny.TinyModel:
    """A pair with one layer in the language model and two in the tower, as small as pairs get."""
    made = tiny.write(tmp_path_factory.mktemp("pair"), tiny.config(num_hidden_layers=1))
    with GGUFFile(made.mmproj) as file:
        tensors = {name: tensor for name, tensor in file.tensors.items() if name != POSITION_TABLE}
    rewrite(made.mmproj, made.mmproj, tensors=tensors)
    return made


@pytest.fixture(scope="module")
def answer(pair) -> str:
    return load(pair.model, pair.mmproj).reply(QUESTION, GREEDY)


def rewrite(source, target, keys=(), tensors=None):
    """A copy of a GGUF file, with other keys (None drops one) or other tensors."""
    with GGUFFile(source) as file:
        metadata = {key: (file.types[key], value) for key, value in file.metadata.items()} | dict(keys)
        metadata = {key: value for key, value in metadata.items() if value is not None}
        write_gguf(target, metadata, file.tensors if tensors is None else tensors)
    return target


def merge(pair, target):
    """One file with the metadata and the tensors of both."""
    with GGUFFile(pair.model) as model, GGUFFile(pair.mmproj) as mmproj:
        keys = {key: (mmproj.types[key], value) for key, value in mmproj.metadata.items()}
        keys |= {key: (model.types[key], value) for key, value in model.metadata.items()}
        write_gguf(target, keys, model.tensors | mmproj.tensors)
    return target


def tensors_of(path) -> dict:
    with GGUFFile(path) as file:
        return dict(file.tensors)


def refusal(*files) -> str:
    """The message with which a pair is refused."""
    with pytest.raises(ModelFileError) as caught:
        load(*files)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


# Arrangements


def test_every_arrangement_gives_the_same_answer(pair, answer, tmp_path, monkeypatch):
    both, alone, below = tmp_path / "both", tmp_path / "alone", tmp_path / "models"
    for folder in (both, alone, below / "mine"):
        folder.mkdir(parents=True)
    for folder in (both, below / "mine"):
        shutil.copy(pair.model, folder / "language.gguf")
        shutil.copy(pair.mmproj, folder / "projector.gguf")
    one = merge(pair, alone / "one.gguf")
    monkeypatch.setenv("HANDLENS_MODELS", str(below))
    monkeypatch.chdir(tmp_path)
    for arrangement in (
        (pair.model, pair.mmproj),
        (str(both / "language.gguf"),),
        (both,),
        (both / "language.gguf", both / "projector.gguf"),
        (one,),
        (alone,),
        ("mine",),
        ("mine/language.gguf",),
        ("mine/language.gguf", "mine/projector.gguf"),
        ("both",),
    ):
        assert load(*arrangement).reply(QUESTION, GREEDY) == answer, arrangement


def test_a_file_with_both_sides_needs_no_projector_beside_it_and_takes_none(pair, answer, tmp_path):
    one = merge(pair, tmp_path / "one.gguf")
    shutil.copy(pair.mmproj, tmp_path / "mmproj.gguf")
    assert load(one).reply(QUESTION, GREEDY) == answer
    assert "holds its projector itself" in refusal(one, tmp_path / "mmproj.gguf")


def test_natural_and_swapped_ffn_names_give_the_same_answer(pair, answer, tmp_path):
    swap = {"up": "down", "down": "up"}
    tensors = tensors_of(pair.mmproj)
    assert tensors["v.blk.0.ffn_down.weight"].shape == (128, 64)  # what is written are the swapped names
    natural = {re.sub(r"(?<=ffn_)(up|down)", lambda match: swap[match[0]], name): t for name, t in tensors.items()}
    rewrite(pair.mmproj, tmp_path / "natural.gguf", tensors=natural)
    assert load(pair.model, tmp_path / "natural.gguf").reply(QUESTION, GREEDY) == answer
    mixed = {name: tensor for name, tensor in natural.items() if ".1." not in name}
    mixed |= {name: tensor for name, tensor in tensors.items() if ".1." in name}
    rewrite(pair.mmproj, tmp_path / "mixed.gguf", tensors=mixed)
    assert load(pair.model, tmp_path / "mixed.gguf").reply(QUESTION, GREEDY) == answer


@pytest.mark.parametrize(("type", "bound"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 3e-2)])
def test_files_of_every_type_we_write_compute_nearly_the_same(pair, tmp_path, type, bound):
    made = tiny.write(tmp_path, pair.config, type=type)
    assert type in {tensor.type for path in (made.model, made.mmproj) for tensor in tensors_of(path).values()}
    exact, chat = (load(each.model, each.mmproj, vision_precision="f32") for each in (pair, made))
    wanted, given = (c.generator.embeddings(c.prepare(QUESTION, GREEDY)) for c in (exact, chat))
    assert 0 < np.linalg.norm(given - wanted) < bound * np.linalg.norm(wanted)
    assert chat.reply(QUESTION, GREEDY)


def test_a_language_file_alone_answers_text_and_says_why_not_more(pair, tmp_path):
    shutil.copy(pair.model, tmp_path / "language.gguf")
    chat = load(tmp_path)
    assert chat.reply([{"role": "user", "content": "Hello"}], GREEDY)
    with pytest.raises(InputError, match=r"only a language file is loaded; give the projector \(mmproj\)"):
        chat.reply(QUESTION, GREEDY)
    with pytest.raises(InputError, match="position_mode='grid_2d' was given, but .* has no projector"):
        load(tmp_path, position_mode="grid_2d")


def test_a_language_file_whose_output_is_tied_needs_no_output_tensor(pair, tmp_path):
    tensors = tensors_of(pair.model)
    del tensors["output.weight"]
    tied = rewrite(pair.model, tmp_path / "tied.gguf", tensors=tensors)
    copied = tensors | {"output.weight": tensors["token_embd.weight"]}
    untied = rewrite(pair.model, tmp_path / "untied.gguf", tensors=copied)

    def ids(model):
        chat = load(model, pair.mmproj)
        return list(chat.generator.generate(chat.prepare(QUESTION, GREEDY), GREEDY, ()))

    assert ids(tied) == ids(untied) != ids(pair.model)


def test_more_than_one_candidate_is_an_error_that_names_them(pair, tmp_path):
    for name in ("first.gguf", "second.gguf"):
        shutil.copy(pair.model, tmp_path / name)
    with pytest.raises(InputError, match=r"more than one language file: first\.gguf, second\.gguf"):
        load(tmp_path)
    for name in ("p.gguf", "q.gguf"):
        shutil.copy(pair.mmproj, tmp_path / name)
    with pytest.raises(InputError, match=r"more than one projector.*: p\.gguf, q\.gguf"):
        load(tmp_path / "first.gguf")
    assert load(tmp_path / "first.gguf", tmp_path / "q.gguf").config.vision


def test_of_several_projectors_the_one_named_after_the_model_is_taken(pair, tmp_path):
    """As `convert` and `quantize` name them, so that many sizes can lie in one folder."""
    for name in ("q4.gguf", "q8.gguf"):
        shutil.copy(pair.model, tmp_path / name)
        shutil.copy(pair.mmproj, tmp_path / name.replace(".gguf", ".mmproj.gguf"))
    assert find_files(tmp_path / "q4.gguf").mmproj == tmp_path / "q4.mmproj.gguf"
    assert find_files(tmp_path / "q8.gguf").mmproj == tmp_path / "q8.mmproj.gguf"


def test_files_in_each_others_places_are_named(pair, tmp_path):
    assert "is a projector (mmproj) file; give the language file" in refusal(pair.mmproj, pair.model)
    assert "is a projector (mmproj) file; give the language file" in refusal(pair.mmproj)
    message = refusal(pair.model, pair.model)
    assert str(pair.model) in message and "is not a projector" in message
    shutil.copy(pair.mmproj, tmp_path / "mmproj.gguf")
    assert "holds no GGUF language file" in refusal(tmp_path)
    with pytest.raises(InputError, match="without a model"):
        load(mmproj=pair.mmproj)


def test_a_damaged_projector_beside_the_model_is_not_passed_over(pair, tmp_path):
    """Answering without it would be answering blind."""
    shutil.copy(pair.model, tmp_path / "language.gguf")
    (tmp_path / "mmproj.gguf").write_bytes(pair.mmproj.read_bytes()[:-1])
    message = refusal(tmp_path / "language.gguf")
    assert "mmproj.gguf" in message and "was not downloaded to its end" in message
    (tmp_path / "language.gguf").write_bytes(b"GGUF")
    assert "language.gguf" in refusal(tmp_path)


def test_a_position_mode_of_ones_own_is_used(pair):
    assert load(pair.model, pair.mmproj).config.vision.position_mode == "reference"
    assert load(pair.model, pair.mmproj, position_mode="grid_2d").config.vision.position_mode == "grid_2d"
    with pytest.raises(InputError, match="position mode '3d' is not one of"):
        load(pair.model, pair.mmproj, position_mode="3d")


# M21: names


@pytest.mark.parametrize(
    "name",
    ["../secret.gguf", "a/../../secret.gguf", "none", "nul\0.gguf", "~\0", "~nobody-of-this-name", "x" * 5000, "loop"],
)
def test_m21_names_that_lead_nowhere_or_out_of_the_folder_of_models(pair, tmp_path, monkeypatch, name):
    models, elsewhere = tmp_path / "models", tmp_path / "somewhere" / "else"
    (models / "a").mkdir(parents=True)
    elsewhere.mkdir(parents=True)
    shutil.copy(pair.model, tmp_path / "secret.gguf")
    (models / "loop").symlink_to(models / "loop")
    monkeypatch.setenv("HANDLENS_MODELS", str(models))
    monkeypatch.chdir(elsewhere)
    with pytest.raises(InputError, match="there is no file or folder") as caught:
        load(name)
    assert "\0" not in str(caught.value)
    with pytest.raises(InputError, match="there is no file or folder"):
        load(pair.model, name)


def test_m21_an_absolute_name_is_not_looked_up_below_the_folder_of_models(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.setenv("HANDLENS_MODELS", str(tmp_path))
    with pytest.raises(InputError, match="there is no file or folder '/sub'"):
        load("/sub")


# The known fault of projector files: one layer too few in the key


def test_a_projector_that_says_one_layer_too_few_is_corrected_and_says_so(pair, answer, tmp_path):
    short = rewrite(pair.mmproj, tmp_path / "short.gguf", {"clip.vision.block_count": ("u32", 1)})
    chat = load(pair.model, short)
    assert chat.config.vision.num_hidden_layers == 2
    assert chat.reply(QUESTION, GREEDY) == answer
    assert re.fullmatch(r"short\.gguf says 1 vision layers but holds 2, a known fault.*", chat.config.notices[0])
    assert load(pair.model, pair.mmproj).config.notices == ()


def test_any_other_number_of_layers_is_refused(pair, tmp_path):
    tensors = tensors_of(pair.mmproj)
    without_first = {name: tensor for name, tensor in tensors.items() if ".0." not in name}
    without_last = {name: tensor for name, tensor in tensors.items() if ".1." not in name}
    with_a_third = tensors | {name.replace(".1.", ".2."): t for name, t in tensors.items() if ".1." in name}
    for said, held in [(3, tensors), (2, without_last), (2, without_first), (1, without_first), (1, with_a_third)]:
        bad = rewrite(pair.mmproj, tmp_path / "bad.gguf", {"clip.vision.block_count": ("u32", said)}, held)
        message = refusal(pair.model, bad)
        assert f"clip.vision.block_count is {said}" in message and "bad.gguf" in message


# M05: missing keys

#: Keys that a file must have; files in the world leave out some of all others.
NEEDED = {
    "model": {
        "general.architecture",
        *(f"llama.{name}" for name in ("block_count", "context_length", "embedding_length", "feed_forward_length")),
        *(f"llama.attention.{name}" for name in ("head_count", "layer_norm_rms_epsilon")),
        *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges")),
    },
    "mmproj": {
        "general.architecture",
        *(f"clip.vision.{name}" for name in ("block_count", "embedding_length", "feed_forward_length")),
        *(f"clip.vision.{name}" for name in ("image_size", "patch_size", "image_mean", "image_std")),
        *(f"clip.vision.attention.{name}" for name in ("head_count", "layer_norm_epsilon")),
    },
}


@pytest.mark.parametrize(("side", "key"), [(side, key) for side, keys in NEEDED.items() for key in sorted(keys)])
def test_m05_a_missing_key_is_named(pair, tmp_path, side, key):
    files = {"model": pair.model, "mmproj": pair.mmproj}
    files[side] = rewrite(files[side], tmp_path / "without.gguf", {key: None})
    message = refusal(*files.values())
    assert key in message and "without.gguf" in message


def test_m05_a_pair_with_the_needed_keys_alone_gives_the_same_answer(pair, answer, tmp_path):
    """As the published projector of 2.5, which says neither its version nor its number of queries."""
    files = []
    for side, needed in NEEDED.items():
        # The two whose default is another than this model's.
        needed = needed | {"llama.rope.freq_base", "llama.attention.head_count_kv"}
        with GGUFFile(getattr(pair, side)) as file:
            dropped = dict.fromkeys(file.metadata.keys() - needed)
        files.append(rewrite(file.path, tmp_path / file.path.name, dropped))
        assert dropped
    bare = load(*files)
    assert bare.config == pair.config
    assert bare.reply(QUESTION, GREEDY) == answer


# M07, M08, M09: arrays of the tokenizer


def test_m07_m08_m09_wrong_arrays_of_the_tokenizer_are_refused(pair, tmp_path):
    with GGUFFile(pair.model) as file:
        tokens, types = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
        merges = file.metadata["tokenizer.ggml.merges"]
    cases = {
        "tokens": [
            (("arr[str]", tokens[:-1]), r"token_type: an array of int32 \[1041\].* not int32 \[1042\]"),
            (("arr[str]", [*tokens[:-1], tokens[0]]), "tokens: tokens 0 and 1041 are the same"),
            (("arr[str]", [*tokens[:-1], "x" * 5000]), "tokens: token 1041 has 5000 bytes"),
            (("arr[str]", []), "tokens: "),
            (("arr[u8]", [1, 2]), r"tokenizer.ggml.tokens' holds arr\[u8\]"),
            (("str", "tokens"), "tokenizer.ggml.tokens' holds str"),
        ],
        "token_type": [
            (("arr[u8]", types), "token_type: .* not uint8"),
            (("arr[i32]", types[:-1]), r"token_type: .* not int32 \[1041\]"),
            (("arr[i32]", [*types, 1]), r"token_type: .* not int32 \[1043\]"),
            (("arr[i32]", [99, *types[1:]]), "token_type: .* cannot be of type 99"),
            (
                ("arr[i32]", [*types[:300], 6, *types[301:]]),
                "token_type: .* cannot be of type 6",
            ),  # a byte that is none
            (("arr[f32]", types.astype(np.float32)), "token_type: .* not float32"),
        ],
        "merges": [
            (("arr[str]", [*merges, "nothing here"]), "merges: .*'nothing here'"),
            (("arr[str]", [*merges, ""]), "merges: "),
            (("arr[i32]", [1]), "merges: "),
        ],
        "model": [(("str", "unigram"), "model 'unigram'"), (("u32", 1), "model"), (("arr[i32]", [1, 2]), "model")],
        "pre": [(("str", "unknown"), "pre: 'unknown'"), (("arr[f32]", [1.0, 2.0]), "pre: ")],
        "eos_token_id": [
            (("u32", 5000), "eos_token_id: 5000"),
            (("i32", -1), "eos_token_id: -1"),
            (("str", "x"), "eos"),
        ],
    }
    for name, values in cases.items():
        for value, words in values:
            bad = rewrite(pair.model, tmp_path / "bad.gguf", {f"tokenizer.ggml.{name}": value})
            message = refusal(bad, pair.mmproj)
            assert re.search(words, message) and "bad.gguf" in message, value


def test_m07_a_vocabulary_that_the_weights_do_not_have_is_refused(pair, tmp_path):
    with GGUFFile(pair.model) as file:
        tokens, types = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
    more = {
        "tokenizer.ggml.tokens": ("arr[str]", [*tokens, "one more"]),
        "tokenizer.ggml.token_type": ("arr[i32]", [*types, 3]),
    }
    message = refusal(rewrite(pair.model, tmp_path / "bad.gguf", more), pair.mmproj)
    assert "token_embd.weight" in message and str(len(tokens) + 1) in message


# M11, M12: sizes

NAN, INF = float("nan"), float("inf")
WRONG_SIZES = {
    "clip.vision.patch_size": [("u32", 0), ("u32", 1), ("u32", 65), ("u32", 2**31), ("i32", -14), ("f32", 14.0)],
    "clip.vision.image_size": [("u32", 0), ("u32", 46368), ("u32", 2**31), ("i64", -(2**63)), ("u64", 2**63)],
    "clip.vision.embedding_length": [("u32", 0), ("u32", 2**31), ("i32", -64), ("str", "64")],
    "clip.vision.feed_forward_length": [("u32", 0), ("u32", 2**31)],
    "clip.vision.attention.head_count": [("u32", 0), ("u32", 2**31), ("bool", True)],
    "clip.vision.block_count": [("u32", 0), ("u32", 1000), ("u32", 2**31), ("i32", -1)],
    "clip.vision.attention.layer_norm_epsilon": [("f32", NAN), ("f32", INF), ("f32", 0.0), ("f32", -1.0)],
    "clip.vision.image_mean": [("arr[f32]", [NAN] * 3), ("arr[f32]", [INF] * 3), ("arr[f32]", [0.5] * 4)],
    "clip.vision.image_std": [("arr[f32]", [0.5, 0.0, 0.5]), ("arr[f32]", [NAN] * 3), ("arr[i32]", [1] * 3)],
    "clip.minicpmv_query_num": [("u32", 0), ("u32", 2**31), ("i32", -96)],
    "clip.use_gelu": [("bool", False), ("u32", 1)],
    "handlens.max_slice_nums": [("u32", 0), ("u32", 65), ("u32", 2**31)],
    "llama.block_count": [("u32", 0), ("u32", 2**31), ("i32", -1)],
    "llama.embedding_length": [("u32", 0), ("u32", 2**31)],
    "llama.feed_forward_length": [("u32", 0), ("u32", 2**31)],
    "llama.attention.head_count": [("u32", 0), ("u32", 2**31)],
    "llama.attention.head_count_kv": [("u32", 0), ("u32", 2**31), ("arr[u32]", [2])],
    "llama.attention.layer_norm_rms_epsilon": [("f32", NAN), ("f32", INF), ("f32", 0.0)],
    "llama.rope.dimension_count": [("u32", 0), ("u32", 2**31)],
    "llama.rope.freq_base": [("f32", NAN), ("f32", 0.0), ("f32", INF), ("u32", 500000)],
    "llama.context_length": [("u32", 0), ("u32", 2**31)],
}


@pytest.mark.parametrize("key", WRONG_SIZES)
def test_m11_m12_a_size_that_cannot_be_is_named_before_anything_is_allocated(pair, tmp_path, key):
    side = "model" if key.startswith("llama") else "mmproj"
    for value in WRONG_SIZES[key]:
        bad = rewrite(getattr(pair, side), tmp_path / "bad.gguf", {key: value})
        files = (bad, pair.mmproj) if side == "model" else (pair.model, bad)
        refusal(*files)  # once before, so that nothing is measured that only the first call does
        tracemalloc.start()
        message = refusal(*files)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert key in message and "bad.gguf" in message, value
        assert peak < 1 << 20


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("clip.vision.attention.head_count", 3, "64 wide, cannot be run with 3 attention heads"),
        ("clip.vision.image_size", 4096, "slices of 4096 pixels have more than 64 patches of 14 a side"),
        ("clip.vision.patch_size", 16, "patch_embd.weight has shape"),
        ("clip.vision.feed_forward_length", 96, "v.blk.0.ffn_down.weight has shape"),
        ("clip.vision.embedding_length", 128, "wanted|wants"),
        ("clip.minicpmv_query_num", 64, "says 64 queries a slice, but resampler.query has 96"),
        ("llama.attention.head_count", 3, "3 attention heads of 64 with 2 key/value heads"),
        ("llama.attention.head_count_kv", 3, "4 attention heads of 64 with 3 key/value heads"),
        ("llama.rope.dimension_count", 63, "4 attention heads of 63"),
        ("llama.embedding_length", 512, "4 attention heads of 64 .* a width of 512"),
        ("llama.feed_forward_length", 640, "blk.0.ffn_gate.weight has shape"),
        ("llama.block_count", 1024, r"lacks 'blk.1.attn_k.weight'.* and \d+ more"),
        ("llama.attention.head_count_kv", 4, "blk.0.attn_k.weight has shape"),
    ],
)
def test_m11_sizes_that_do_not_go_together_are_refused(pair, tmp_path, key, value, words):
    side = "model" if key.startswith("llama") else "mmproj"
    bad = rewrite(getattr(pair, side), tmp_path / "bad.gguf", {key: ("u32", value)})
    assert re.search(words, refusal(*((bad, pair.mmproj) if side == "model" else (pair.model, bad))))


def test_m12_the_smallest_image_is_scaled_to_no_more_than_a_slice(pair, tmp_path):
    largest = rewrite(pair.mmproj, tmp_path / "largest.gguf", {"clip.vision.image_size": ("u32", 64 * 14)})
    image = Image.new("RGB", (2, 2))
    (only,) = load(pair.model, largest).prepare([{"role": "user", "content": [image, "?"]}], GREEDY).images[0].slices
    assert only.shape == (3, 896, 896)


# M14: a projector of another model


def test_m14_a_projector_of_another_width_is_refused_naming_both_files(pair, tmp_path):
    config = tiny.config(num_hidden_layers=1, hidden_size=128, num_attention_heads=2, num_key_value_heads=1)
    config = replace(config, resampler=replace(config.resampler, embed_dim=128, num_heads=1))
    other = tiny.write(tmp_path, config, name="narrow")
    assert load(other.model, other.mmproj).reply(QUESTION, GREEDY)
    message = refusal(pair.model, other.mmproj)
    assert "narrow.mmproj.gguf does not belong to tiny.gguf" in message
    assert "width 128" in message and "takes 256" in message


OTHER_PROJECTORS = [
    (
        {"clip.minicpmv_version": ("i32", 1)},
        r"is the projector of MiniCPM-V 2\.0 \(version 1\), not of MiniCPM-Llama3-V 2\.5",
    ),
    (
        {"clip.minicpmv_version": ("i32", 3)},
        r"is the projector of MiniCPM-V 2\.6 \(version 3\), not of MiniCPM-Llama3-V 2\.5",
    ),
    (
        {"clip.minicpmv_version": ("i32", 4)},
        r"is the projector of MiniCPM-o 2\.6 \(version 4\), not of MiniCPM-Llama3-V 2\.5",
    ),
    ({"clip.minicpmv_version": ("i32", 100045)}, r"is the projector of MiniCPM-V 4\.5 \(version 100045\), not of"),
    ({"clip.minicpmv_version": ("i32", -1)}, r"a model that handlens does not know \(version -1\), not of"),
    ({"clip.minicpmv_version": ("i32", 3), "handlens.family": None}, r"is the projector of MiniCPM-V 2\.6"),
    (
        {"clip.projector_type": ("str", "mlp")},
        r"type 'mlp', made for another model; .* \(the mmproj file of MiniCPM-Llama3",
    ),
    ({"handlens.family": ("str", "minicpm-v-9")}, "is of the family 'minicpm-v-9'; known are"),
    ({"handlens.vit_position_mode": ("str", "3d")}, "position mode '3d' is not one of"),
]


@pytest.mark.parametrize(("keys", "words"), OTHER_PROJECTORS)
@pytest.mark.parametrize("arrangement", ["two files", "folder", "one file"])
def test_m14_a_projector_of_another_model_is_refused(pair, tmp_path, keys, words, arrangement):
    other = rewrite(
        merge(pair, tmp_path / "a.gguf") if arrangement == "one file" else pair.mmproj, tmp_path / "a.gguf", keys
    )
    files = {"two files": (pair.model, other), "folder": (tmp_path,), "one file": (other,)}[arrangement]
    if arrangement == "folder":
        shutil.copy(pair.model, tmp_path / "language.gguf")
    message = refusal(*files)
    assert re.search(words, message) and "a.gguf" in message
    if arrangement == "two files" and "clip.minicpmv_version" in keys:
        assert "it does not fit tiny.gguf" in message


def test_m14_files_of_two_families_of_one_version_are_refused(pair, tmp_path):
    mini = rewrite(pair.mmproj, tmp_path / "mini.gguf", {"handlens.family": ("str", "handlens-mini")})
    assert "mini.gguf is the projector of handlens mini, but tiny.gguf is of MiniCPM-Llama3-V 2.5" in refusal(
        pair.model, mini
    )


def test_m14_a_language_model_of_another_kind_is_refused(pair, tmp_path):
    for keys, words in [
        ({"general.architecture": ("str", "qwen2")}, "architecture 'qwen2'; handlens runs 'llama'"),
        ({"llama.rope.scaling.type": ("str", "yarn")}, "RoPE scaling 'yarn'"),
        ({"llama.rope.scaling.type": ("arr[f32]", [1.0, 2.0])}, r"arr\[f32\]"),
        ({"general.architecture": ("arr[f32]", [1.0, 2.0])}, r"arr\[f32\]"),
        ({"handlens.family": ("u32", 1)}, "handlens.family"),
    ]:
        bad = rewrite(pair.model, tmp_path / "bad.gguf", keys)
        assert re.search(words, refusal(bad, pair.mmproj))
    with GGUFFile(pair.model) as file:
        tokens = [token.replace("eot_id", "end") for token in file.metadata["tokenizer.ggml.tokens"]]
    keys = {"handlens.family": None, "tokenizer.ggml.tokens": ("arr[str]", tokens)}
    assert "no token '<|eot_id|>'" in refusal(rewrite(pair.model, tmp_path / "bad.gguf", keys))


# Tensors


def test_every_missing_tensor_is_named(pair, tmp_path):
    for side in ("model", "mmproj"):
        tensors = tensors_of(getattr(pair, side))
        for name in tensors.keys() - {"output.weight"}:
            files = {"model": pair.model, "mmproj": pair.mmproj}
            held = {other: tensor for other, tensor in tensors.items() if other != name}
            files[side] = rewrite(files[side], tmp_path / "bad.gguf", tensors=held)
            message = refusal(*files.values())
            assert name in message and "bad.gguf" in message


def test_extra_and_misshapen_tensors_are_named(pair, tmp_path):
    for side, name in [("model", "blk.0.attn_k.weight"), ("mmproj", "v.blk.1.attn_k.weight")]:
        tensors = tensors_of(getattr(pair, side))
        other = Tensor.from_array(np.zeros((96, 32), np.float32))
        for held, words in [
            (tensors | {"blk.0.attn_k.bias\x1b[2J": other}, r"holds 'blk.0.attn_k.bias\\x1b\[2J' of no known use"),
            (tensors | {name: other}, rf"tensor {name} has shape \[96, 32\], but .* wants \[\d+, \d+\]"),
        ]:
            files = {"model": pair.model, "mmproj": pair.mmproj}
            files[side] = rewrite(files[side], tmp_path / "bad.gguf", tensors=held)
            assert re.search(words, refusal(*files.values()))


# M19: templates


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for a in range(10 ** 9) %}{% for b in range(10 ** 9) %}x{% endfor %}{% endfor %}",
        "{% macro loop() %}{{ loop() }}{% endmacro %}{{ loop() }}",
        "{{ 'x' * 10 ** 10 }}" + "{#" + "comment " * 500_000 + "#}",
        "{% broken",
    ],
)
def test_m19_a_template_in_the_file_is_never_rendered(pair, answer, tmp_path, template):
    hostile = rewrite(pair.model, tmp_path / "hostile.gguf", {"tokenizer.chat_template": ("str", template)})
    start = time.perf_counter()
    chat = load(hostile, pair.mmproj)
    assert chat.prepare(QUESTION, GREEDY).input_ids.tolist() == prompt_of(pair)
    assert chat.reply(QUESTION, GREEDY) == answer
    assert time.perf_counter() - start < 2


def prompt_of(pair) -> list[int]:
    return load(pair.model, pair.mmproj).prepare(QUESTION, GREEDY).input_ids.tolist()


# Everything at once


def head_bytes(path) -> int:
    """Where the tensors' data begin in a file of ours."""
    with GGUFFile(path) as file:
        return path.stat().st_size - sum(-(-tensor.nbytes // 32) * 32 for tensor in file.tensors.values())


def flip_bits(rng, data):
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def put_a_number(rng, data):
    place, width = rng.randrange(len(data) - 8), rng.choice([1, 4, 8])
    value = rng.choice([0, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 0x7FC00000, rng.getrandbits(64)])
    data[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def copy_a_piece(rng, data):
    length = rng.randrange(1, 40)
    start, target = rng.randrange(len(data) - length), rng.randrange(len(data) - length)
    data[target : target + length] = data[start : start + length]


def loads_and_answers(model, mmproj) -> bool:
    """Whether a pair loads; what it then answers does not matter. Any error but ours fails the test."""
    try:
        chat = load(model, mmproj)
    except HandlensError as error:
        assert len(str(error)) < 2000
        return False
    with contextlib.suppress(HandlensError), np.errstate(all="ignore"):
        chat.reply(QUESTION, SamplingParams.greedy(max_new_tokens=2))
    return True


SOME_AND_MANY = pytest.mark.parametrize(
    "cases", [300, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)


@SOME_AND_MANY
def test_a_pair_with_a_damaged_head_is_refused_or_answers(pair, tmp_path, cases):
    rng = random.Random(20_261_123)
    sound = (pair.model, pair.mmproj)
    files = [shutil.copy(path, tmp_path / path.name) for path in sound]
    heads = [path.read_bytes()[: head_bytes(path)] for path in sound]
    loaded, slowest = 0, 0.0
    for case in range(cases):
        which = case % 2
        head = bytearray(heads[which])
        # The sizes stand first; without this nearly every change would hit the tokens behind them.
        start = rng.choice([24, 24, rng.randrange(24, len(head) - 2000), len(head) - 2000])
        piece = head[start : start + 2000]
        rng.choice([flip_bits, put_a_number, copy_a_piece])(rng, piece)
        head[start : start + 2000] = piece
        with files[which].open("r+b") as file:
            file.write(head)
        start = time.perf_counter()
        loaded += loads_and_answers(*files)
        slowest = max(slowest, time.perf_counter() - start)
        with files[which].open("r+b") as file:
            file.write(heads[which])
    assert cases * 0.05 < loaded < cases * 0.95  # both ends were reached
    assert slowest < 10


VALUES = [
    *(("u32", value) for value in (0, 1, 2, 3, 64, 2**31, 2**32 - 1)),
    *(("i32", value) for value in (-1, 2)),
    *(("f32", value) for value in (NAN, INF, 0.0, 1e-6, 1.0, 3e38)),
    *(("u64", value) for value in (5, 2**64 - 1)),
    *(("arr[i32]", value) for value in ([], [1, 2, 3])),
    *(("arr[f32]", value) for value in ([], [0.5] * 3, [NAN] * 3)),
    *(("arr[str]", value) for value in ([], ["a", "b"])),
    *(("str", value) for value in ("", "llama", "clip", "2", "\x1b[2J")),
    ("bool", False),
    None,
]


@SOME_AND_MANY
def test_a_pair_with_other_values_is_refused_or_answers(pair, tmp_path, cases):
    rng = random.Random(20_261_124)
    loaded = 0
    for case in range(cases // 4):
        files = [pair.model, pair.mmproj]
        with GGUFFile(files[case % 2]) as file:
            keys = list(file.metadata)
        changes = {rng.choice(keys): rng.choice(VALUES) for _ in range(rng.choice([1, 1, 2]))}
        files[case % 2] = rewrite(files[case % 2], tmp_path / "other.gguf", changes)
        loaded += loads_and_answers(*files)
    assert 0 < loaded < cases // 4


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_m10_a12_loading_and_letting_go_returns_what_it_took(pair, tmp_path):
    """Without the help of the collector: a model is gone with the last reference to it."""

    def taken() -> tuple[int, int]:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    bad_model = rewrite(pair.model, tmp_path / "a.gguf", {"tokenizer.ggml.merges": ("arr[str]", ["no merge"])})
    bad_tower = rewrite(pair.mmproj, tmp_path / "b.gguf", {"clip.vision.feed_forward_length": ("u32", 96)})

    def load_all():
        load(pair.model, pair.mmproj).reply(QUESTION, GREEDY)
        for files in [(bad_model, pair.mmproj), (pair.model, bad_tower), (pair.model, pair.model)]:
            with contextlib.suppress(ModelFileError):  # pytest.raises would keep the frames, and so the files
                raise AssertionError(f"{load(*files)} loads")

    for _ in range(5):
        load_all()
    gc.collect()
    gc.disable()
    try:
        memory, files = taken()
        for _ in range(30):
            load_all()
        assert taken()[1] == files
        assert taken()[0] < memory + (8 << 20)  # one model takes 13 MB
    finally:
        gc.enable()
