"""`handlens check` finds every fault that was planted, and none where there is none."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.make_model import published
from handlens.cli import run
from handlens.config import FAMILIES
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, Tensor, write_gguf
from handlens.gguf.blocks import BLOCKS, PLAIN
from handlens.joining import CARD_KEY, join, split
from handlens.proof.check import BAD, check, largest
from handlens.proof.probe import probe_picture
from handlens.proof.rules import broken_rules
from handlens.proof.seal import digest_of_keys, read_seal, unsealed_metadata
from handlens.proof.sealing import seal_files
from handlens.quant.encode import TYPES
from handlens.quant.tensors import quantize_tensor
from handlens.repair import repair
from handlens.weights import ModelFiles
from tests import tiny


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> tiny.TinyModel:
    """A quantised pair of ours with its seals."""
    config = tiny.config(FAMILIES["handlens-mini"], scale_resolution=224, num_hidden_layers=3)
    made = tiny.write(tmp_path_factory.mktemp("sealed"), config, type="Q8_0")
    seal_files(ModelFiles(made.model, made.mmproj))
    return made


def bad(model, mmproj) -> list[str]:
    return [finding.what for finding in check(ModelFiles(model, mmproj)) if finding.verdict == BAD]


def rewritten(source, target, keys=(), change=None):
    """A copy of a file, its seal too, with other keys or with one tensor changed: name -> function of its array."""
    with GGUFFile(source) as file:
        metadata = {key: (file.types[key], value) for key, value in file.metadata.items()} | dict(keys)
        tensors = dict(file.tensors)
        for name, function in (change or {}).items():
            tensor = tensors[name]
            tensors[name] = Tensor(tensor.type, tensor.shape, function(tensor.data.copy()))
        write_gguf(target, metadata, tensors)
    return target


def test_a_sound_pair_is_all_good(sealed):
    findings = list(check(ModelFiles(sealed.model, sealed.mmproj)))
    assert {finding.verdict for finding in findings} == {"good"}
    judged = {finding.what for finding in findings}
    layers = sealed.config.vision.num_hidden_layers
    assert {f"vision block {index}" for index in range(layers)} | {"patch embedding", "resampler", "logits"} <= judged
    assert {"language block 0, as sealed", "resampler, as sealed", "logits, as sealed"} <= judged


def test_a_swapped_position_mode_is_found(sealed, tmp_path):
    keys = {"handlens.vit_position_mode": ("str", "reference")}
    found = bad(sealed.model, rewritten(sealed.mmproj, tmp_path / "p.gguf", keys))
    assert "patch embedding, as sealed" in found and "token embedding, as sealed" not in found


@pytest.mark.parametrize("key", ["image_mean", "image_std"])
def test_a_wrong_mean_or_deviation_is_found(sealed, tmp_path, key):
    keys = {f"clip.vision.{key}": ("arr[f32]", [0.48, 0.46, 0.41])}
    assert "patch embedding, as sealed" in bad(sealed.model, rewritten(sealed.mmproj, tmp_path / "p.gguf", keys))


@pytest.mark.parametrize(
    "key, value, says",
    [
        ("handlens.vit_position_mode", ("str", "reference"), "position mode of handlens mini is 'grid_2d'"),
        ("clip.vision.image_mean", ("arr[f32]", [0.48, 0.46, 0.41]), "mean of pixels is 0.5, 0.5, 0.5"),
        ("clip.vision.image_std", ("arr[f32]", [0.26, 0.26, 0.27]), "deviation of pixels is 0.5, 0.5, 0.5"),
    ],
)
def test_rules_of_the_design_are_known_without_a_seal(tmp_path, key, value, says):
    made = tiny.write(tmp_path, tiny.config(FAMILIES["handlens-mini"], scale_resolution=224))
    assert bad(made.model, made.mmproj) == []
    other = rewritten(made.mmproj, tmp_path / "p.gguf", {key: value})
    (finding,) = (f for f in check(ModelFiles(made.model, other)) if f.verdict == BAD)
    assert finding.what == "rules of the design" and says in finding.detail


@pytest.mark.parametrize(
    "llm, vision, says",
    [
        ({"num_hidden_layers": 31}, {}, ["has 32 language layers, the file 31"]),
        ({"rope_theta": 1e6}, {}, ["RoPE base of MiniCPM-Llama3-V 2.5 is 500000, the file says 1e+06"]),
        ({}, {"num_hidden_layers": 26}, ["has 27 vision layers, the file 26"]),
        ({}, {}, []),
    ],
)
def test_the_published_checkpoint_is_known_by_its_width(llm, vision, says):
    config = published(32, 27)
    config = replace(config, llm=replace(config.llm, **llm), vision=replace(config.vision, **vision))
    found = list(broken_rules(config))
    assert len(found) == len(says) and all(text in sentence for text, sentence in zip(says, found, strict=True))
    assert list(broken_rules(tiny.config())) == []  # a small model of the family may have other sizes


def test_a_doubled_rope_base_is_found(sealed, tmp_path):
    base = sealed.config.llm.rope_theta
    found = bad(
        rewritten(sealed.model, tmp_path / "m.gguf", {"llama.rope.freq_base": ("f32", 2 * base)}), sealed.mmproj
    )
    assert "language block 0, as sealed" in found and "token embedding, as sealed" not in found


def test_a_dropped_layer_is_found(sealed, tmp_path):
    with GGUFFile(sealed.model) as file:
        metadata = {key: (file.types[key], value) for key, value in file.metadata.items()}
        metadata["llama.block_count"] = ("u32", 2)
        tensors = {name: tensor for name, tensor in file.tensors.items() if not name.startswith("blk.2.")}
        write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert bad(tmp_path / "m.gguf", sealed.mmproj) == ["seal of m.gguf"]


def test_a_transposed_projection_is_found(sealed, tmp_path):
    with GGUFFile(sealed.mmproj) as file:
        kind = file.tensors["resampler.proj.weight"].type

    def transpose(data):
        tensor = Tensor(kind, (256, 256), data)
        return Tensor.from_array(np.ascontiguousarray(tensor.dequantize().T), kind).data

    other = rewritten(sealed.mmproj, tmp_path / "p.gguf", change={"resampler.proj.weight": transpose})
    assert bad(sealed.model, other) == ["seal of p.gguf", "resampler, as sealed"]


@pytest.mark.parametrize("side", ["model", "mmproj"])
def test_one_corrupted_block_is_found_and_named(sealed, tmp_path, side):
    name = {"model": "blk.1.ffn_down.weight", "mmproj": "v.blk.1.attn_q.weight"}[side]

    def corrupt(data):
        data[7, 34:68] ^= 0x15
        return data

    other = rewritten(getattr(sealed, side), tmp_path / "f.gguf", change={name: corrupt})
    pair = {"model": sealed.model, "mmproj": sealed.mmproj} | {side: other}
    findings = [f for f in check(ModelFiles(pair["model"], pair["mmproj"])) if f.what == "seal of f.gguf"]
    assert findings[0].verdict == BAD and name in findings[0].detail


def test_a_block_of_infinite_scale_is_found_without_a_seal(tmp_path):
    made = tiny.write(tmp_path, tiny.config(), type="Q8_0")

    def corrupt(data):
        data[3, 34:36] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
        return data

    other = rewritten(made.model, tmp_path / "m.gguf", change={"blk.0.attn_q.weight": corrupt})
    findings = {finding.what: finding for finding in check(ModelFiles(other, made.mmproj))}
    assert findings["weights"].verdict == BAD and "blk.0.attn_q.weight" in findings["weights"].detail
    assert findings["language block 0"].verdict == BAD


@pytest.mark.parametrize("type", [*PLAIN, *TYPES])
def test_the_largest_number_is_found_among_all_blocks(type):
    x = np.random.default_rng(0).standard_normal((300, 512)).astype(np.float32)
    x[7, 100], x[200, 5] = 3000, -6000
    tensor = quantize_tensor("some.weight", Tensor.from_array(x), type)
    numbers = tensor.dequantize()
    assert largest(tensor) == pytest.approx(np.abs(numbers).max() / np.sqrt(np.square(numbers).mean()), rel=1e-4)
    assert largest(quantize_tensor("some.weight", Tensor.from_array(np.zeros((4, 512), np.float32)), type)) == 0
    layout = BLOCKS[type].layout
    for name in (name for name in layout.names or () if layout[name] == np.float16):
        broken = tensor.data.copy()
        broken.reshape(-1).view(layout)[name][123] = np.inf
        assert largest(Tensor(type, tensor.shape, broken)) == np.inf


def test_the_projector_of_another_model_is_found(sealed, tmp_path):
    other = tiny.write(tmp_path, tiny.config())
    (finding,) = check(ModelFiles(sealed.model, other.mmproj))
    assert finding.verdict == BAD and "MiniCPM-Llama3-V 2.5" in finding.detail


@pytest.mark.parametrize("side", ["model", "mmproj"])
def test_a_truncated_tensor_is_found_and_named(sealed, tmp_path, side):
    whole = getattr(sealed, side)
    (tmp_path / "f.gguf").write_bytes(whole.read_bytes()[:-1000])
    pair = {"model": sealed.model, "mmproj": sealed.mmproj} | {side: tmp_path / "f.gguf"}
    (finding,) = check(ModelFiles(pair["model"], pair["mmproj"]))
    with GGUFFile(whole) as file:
        assert finding.verdict == BAD and list(file.tensors)[-1] in finding.detail


def test_a_template_that_ends_no_turn_is_found_and_repaired(sealed, tmp_path):
    keys = {
        "tokenizer.chat_template": ("str", "{{ messages[0]['content'] }}"),
        "tokenizer.ggml.eos_token_id": ("u32", sealed.tokenizer.id("<|end_of_text|>")),
    }
    other = rewritten(sealed.model, tmp_path / "m.gguf", keys)
    assert "chat template" in bad(other, sealed.mmproj)
    assert len(repair(other, tmp_path / "r.gguf")) == 2
    with GGUFFile(tmp_path / "r.gguf") as file:
        assert file.metadata["tokenizer.ggml.eos_token_id"] == sealed.tokenizer.id("<|eot_id|>")
    assert bad(tmp_path / "r.gguf", sealed.mmproj) == []


def test_a_projector_that_leaves_out_its_last_layer_is_noticed_and_repaired(sealed, tmp_path):
    said = sealed.config.vision.num_hidden_layers - 1
    other = rewritten(sealed.mmproj, tmp_path / "p.gguf", {"clip.vision.block_count": ("u32", said)})
    findings = list(check(ModelFiles(sealed.model, other)))
    assert any(f.what == "known faults" and "--repair" in f.detail for f in findings)
    (change,) = repair(other, tmp_path / "r.gguf")
    assert "clip.vision.block_count" in change
    with GGUFFile(tmp_path / "r.gguf") as file:
        assert file.metadata["clip.vision.block_count"] == said + 1
    assert repair(tmp_path / "r.gguf", tmp_path / "again.gguf") == [] and not (tmp_path / "again.gguf").exists()


def test_the_digest_of_keys_heeds_values_and_types_but_no_order():
    one = {"a": ("u32", 1), "b": ("arr[f32]", np.float32([1, 2]))}
    assert digest_of_keys(one) == digest_of_keys(dict(reversed(one.items())))
    assert (
        len({digest_of_keys(one), digest_of_keys(one | {"a": ("i32", 1)}), digest_of_keys(one | {"a": ("u32", 2)})})
        == 3
    )


def test_the_probe_is_the_same_everywhere():
    pixels = np.asarray(probe_picture(), np.int64)
    weights = np.arange(1, pixels.size + 1)
    assert (pixels.shape, int((pixels.ravel() * weights % 65_521).sum())) == ((140, 196, 3), PROBE_SUM)


#: Printed by the sum above when the picture was designed; a seal of an older version depends on it.
PROBE_SUM = 2447684526


def test_joined_and_split_files_are_the_same_bytes(sealed, tmp_path):
    one, parts = tmp_path / "one.gguf", (tmp_path / "m.gguf", tmp_path / "p.gguf")
    join(sealed.model, sealed.mmproj, one, card="# A card")
    with GGUFFile(one) as file:
        assert file.metadata[CARD_KEY] == "# A card" and read_seal(file) is None
    split(one, *parts)
    assert parts[0].read_bytes() == sealed.model.read_bytes()
    assert parts[1].read_bytes() == sealed.mmproj.read_bytes()


def test_a_joined_file_answers_as_the_pair_does_and_can_be_sealed(sealed, tmp_path):
    from handlens import load
    from handlens.engine.sampling import SamplingParams

    one = tmp_path / "one.gguf"
    join(sealed.model, sealed.mmproj, one)
    question = [{"role": "user", "content": [probe_picture(), "What is this?"]}]
    greedy = SamplingParams.greedy(max_new_tokens=8)
    assert load(one).reply(question, greedy) == load(sealed.model, sealed.mmproj).reply(question, greedy)
    seal_files(ModelFiles(one, None))
    assert {finding.verdict for finding in check(ModelFiles(one, None))} == {"good"}
    with GGUFFile(one) as file:
        assert "resampler" in read_seal(file).stages and "logits" in read_seal(file).stages
        metadata = unsealed_metadata(file)
    split(one, tmp_path / "m.gguf", tmp_path / "p.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == sealed.model.read_bytes() and metadata


def test_a_file_written_as_one_splits_into_a_pair_that_loads(tmp_path):
    made = tiny.write(tmp_path, tiny.config())
    from handlens.gguf.convert import language_content, projector_content

    whole = projector_content(made.config, made.official, "F32") | language_content(
        made.config, made.tokenizer, made.official, "F32"
    )
    write_gguf(tmp_path / "whole.gguf", whole.metadata, whole.tensors)
    split(tmp_path / "whole.gguf", tmp_path / "m.gguf", tmp_path / "p.gguf")
    assert bad(tmp_path / "m.gguf", tmp_path / "p.gguf") == []


def test_joining_refuses_what_is_no_pair(sealed, tmp_path):
    join(sealed.model, sealed.mmproj, tmp_path / "one.gguf")
    with pytest.raises(InputError, match="holds its projector already"):
        join(tmp_path / "one.gguf", sealed.mmproj, tmp_path / "two.gguf")
    with pytest.raises(InputError, match="there already"):
        join(sealed.model, sealed.mmproj, tmp_path / "one.gguf")
    with pytest.raises(InputError, match="nothing to split"):
        split(sealed.model, tmp_path / "m.gguf", tmp_path / "p.gguf")
    with pytest.raises(InputError, match="holds its projector already"):
        join(sealed.mmproj, sealed.mmproj, tmp_path / "three.gguf")
    with pytest.raises(ModelFileError, match="is not a projector"):
        join(sealed.model, sealed.model, tmp_path / "three.gguf")


def test_the_command_prints_green_and_red_and_says_so_with_its_exit_code(sealed, tmp_path, capsys):
    assert run(["check", str(sealed.model)]) == 0
    assert "resampler, as sealed" in capsys.readouterr().out
    other = rewritten(sealed.model, tmp_path / "m.gguf", {"llama.rope.freq_base": ("f32", 123.0)})
    assert run(["check", str(other), "--mmproj", str(sealed.mmproj), "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert not report["good"] and any(finding["verdict"] == "bad" for finding in report["findings"])


def test_the_shipped_model_is_checked_in_a_process_of_its_own():
    ran = subprocess.run([sys.executable, "-m", "handlens", "check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
