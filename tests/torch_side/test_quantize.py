"""int4: the published settings and layout, saved and loaded again, and near the model that it was made from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from handlens.errors import ModelFileError
from handlens.model import MiniCPMV, MiniCPMVConfig
from handlens.model.processing import collate
from handlens.model.quantize import check_int4, keep_layout, memory_by_type, nf4_config
from handlens.processor import Processor
from tests.torch_side import conversation, torch_model

bitsandbytes = pytest.importorskip("bitsandbytes")
Linear4bit, dequantize = bitsandbytes.nn.Linear4bit, bitsandbytes.functional.dequantize_4bit

#: Of random normal numbers NF4 keeps all but 9.2 % of the norm. The two layers of the tiny model make that 20 % of its
#: logits; a trained model of 32 layers, whose weights are redundant, suffers less.
WEIGHT_ERROR, LOGIT_ERROR = 0.1, 0.25

PACKED = "llm.model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def plain(tiny_model) -> MiniCPMV:
    return torch_model(tiny_model)


@pytest.fixture(scope="module")
def batch(tiny_model) -> dict[str, torch.Tensor]:
    processor = Processor(tiny_model.config, tiny_model.tokenizer)
    return collate([processor(conversation(3)), processor(conversation(1, 0)), processor(conversation(2, 2))])


@pytest.fixture(scope="module")
def quantised(plain, tmp_path_factory) -> MiniCPMV:
    path = tmp_path_factory.mktemp("plain")
    plain.save_pretrained(path)
    return MiniCPMV.from_pretrained(path, quantization_config=nf4_config(torch.float32))


@pytest.fixture(scope="module")
def folder(quantised, tmp_path_factory):
    path = tmp_path_factory.mktemp("int4")
    quantised.save_pretrained(path)
    return path


def logits(model: MiniCPMV, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"] == 1]


def test_linear_layers_are_quantised_but_for_those_of_the_official_list(quantised):
    for name, module in quantised.named_modules():
        if isinstance(module, nn.Linear):
            skipped = name.rsplit(".", 1)[-1] in ("out_proj", "kv_proj", "lm_head")
            assert isinstance(module, Linear4bit) != skipped, name
    kept = {"resampler.attn.out_proj", "resampler.kv_proj", "llm.lm_head", "vpm.encoder.layers.0.self_attn.out_proj"}
    assert not any(isinstance(quantised.get_submodule(name), Linear4bit) for name in kept)
    for name in ("resampler.proj", "resampler.query", "resampler.attn.in_proj_weight", "llm.model.embed_tokens.weight"):
        assert quantised.get_parameter(name).dtype == torch.float32


def test_weights_and_logits_are_near_those_of_the_model_it_was_made_from(quantised, plain, batch):
    for name, module in quantised.named_modules():
        if isinstance(module, Linear4bit):
            whole = plain.get_submodule(name).weight
            lost = dequantize(module.weight, module.weight.quant_state) - whole
            assert 0.02 < lost.norm() / whole.norm() < WEIGHT_ERROR, name
    exact = logits(plain, batch)
    assert 0.01 < (logits(quantised, batch) - exact).norm() / exact.norm() < LOGIT_ERROR


def test_it_answers_questions_about_images(quantised, batch):
    ids = quantised.generate(**batch, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert ids.shape == (3, batch["input_ids"].shape[1] + 4)


def test_saved_and_loaded_again_it_computes_the_same(quantised, folder, batch):
    before = logits(quantised, batch)
    again = MiniCPMV.from_pretrained(folder)
    assert torch.equal(logits(again, batch), before)
    # Also after it has computed. transformers 5.23 cannot turn the loading of int4 weights round, and need not.
    again.save_pretrained(folder / "again", save_original_format=False)
    third = MiniCPMV.from_pretrained(folder / "again")
    assert torch.equal(logits(third, batch), before)


def test_the_layout_is_the_published_one(folder):
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    published = {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": 6.0,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": ["out_proj", "kv_proj", "lm_head"],
        "quant_method": "bitsandbytes",
    }
    assert {key: said[key] for key in published} == published
    assert nf4_config().bnb_4bit_compute_dtype == torch.float16
    tensors = load_file(folder / "model.safetensors")
    parts = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4")
    assert {name.removeprefix(f"{PACKED}.") for name in tensors if name.startswith(f"{PACKED}.")} == set(parts)
    assert tensors[PACKED].dtype == torch.uint8 and tensors[PACKED].numel() == 256 * 512 // 2


def test_layers_as_wide_as_the_real_towers_run_on_any_cpu(tmp_path):
    """Repacked as bitsandbytes does it where there is AVX512-BF16, 4304 rows fail: they are no multiple of 32."""
    layers = nn.Sequential(Linear4bit(1152, 4304, quant_type="nf4"), Linear4bit(4304, 1152, quant_type="nf4"))
    layers = keep_layout(layers.eval().to("cpu"))
    with torch.no_grad():
        assert layers(torch.randn(3, 1152)).isfinite().all()


def test_memory_is_told_by_type_of_module(quantised, plain):
    before, after = memory_by_type(plain), memory_by_type(quantised)
    assert sum(before.values()) == sum(tensor.nbytes for tensor in (*plain.parameters(), *plain.buffers()))
    assert {name: after[name] for name in ("Embedding", "Conv2d", "LayerNorm")} == {
        name: before[name] for name in ("Embedding", "Conv2d", "LayerNorm")
    }
    weights = sum(module.weight.numel() * 2 for module in quantised.modules() if isinstance(module, Linear4bit))
    # Half a byte a weight, a byte for 64 of them, and what the scales of small matrices are rounded up to.
    biases = sum(m.bias.nbytes for m in quantised.modules() if isinstance(m, Linear4bit) and m.bias is not None)
    assert weights * (1 / 2 + 1 / 64) < after["Linear4bit"] - biases < weights * (1 / 2 + 1 / 60)
    assert after["Linear"] + 7 * after["Linear4bit"] < before["Linear"] + 2 * biases


# Damaged files


@pytest.fixture(scope="module")
def config(folder) -> MiniCPMVConfig:
    return MiniCPMVConfig.from_pretrained(folder)


def test_a_sound_checkpoint_passes_and_another_kind_is_not_looked_at(folder, config, tmp_path):
    check_int4(folder, MiniCPMV, config)
    plain = MiniCPMVConfig.from_model_config(config.model_config())
    check_int4(tmp_path / "nothing", MiniCPMV, plain)


def state(said: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


SOUND = {"quant_type": "nf4", "blocksize": 64, "nested_blocksize": 256, "shape": [256, 512], "nested_offset": 0.1}


@pytest.mark.parametrize(
    "change, says",
    [
        ({PACKED: None}, rf"lacks {PACKED}"),
        ({f"{PACKED}.absmax": None}, rf"lacks {PACKED}\.absmax"),
        ({f"{PACKED}.quant_state.bitsandbytes__nf4": None}, r"lacks .*quant_state"),
        ({"resampler.ln_q.weight": None}, r"lacks resampler\.ln_q\.weight"),
        ({f"{PACKED}.more": torch.zeros(1)}, r"no known use, .*down_proj\.weight\.more"),
        ({PACKED: torch.zeros(100, 1, dtype=torch.uint8)}, r"no NF4 weight of \[256, 512\]"),
        ({f"{PACKED}.absmax": torch.zeros(3, dtype=torch.uint8)}, r"no NF4 weight of \[256, 512\]"),
        ({f"{PACKED}.quant_map": torch.zeros(4)}, "no NF4 weight"),
        ({"resampler.ln_q.weight": torch.zeros(3)}, r"ln_q\.weight \(\[3\], \[256\] is wanted\)"),
        ({f"{PACKED}.quant_state.bitsandbytes__nf4": state(SOUND | {"shape": [256, 51200]})}, "no NF4 weight"),
        ({f"{PACKED}.quant_state.bitsandbytes__nf4": state(SOUND | {"blocksize": 4096})}, "no NF4 weight"),
        ({f"{PACKED}.quant_state.bitsandbytes__nf4": state([1])}, "no NF4 weight"),
        ({f"{PACKED}.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}, "no NF4 weight"),
    ],
)
def test_what_is_wrong_with_an_int4_checkpoint_is_named(folder, config, tmp_path, change, says):
    tensors = load_file(folder / "model.safetensors") | change
    held = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match=says.replace("[", r"\[") if "\\" not in says else says):
        check_int4(tmp_path, MiniCPMV, config)


def test_the_changed_notes_above_are_refused_for_what_was_changed(folder, config, tmp_path):
    name = f"{PACKED}.quant_state.bitsandbytes__nf4"
    save_file(load_file(folder / "model.safetensors") | {name: state(SOUND)}, tmp_path / "model.safetensors")
    check_int4(tmp_path, MiniCPMV, config)


def test_a_damaged_file_is_a_model_file_error(folder, config, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:4000])
    with pytest.raises(ModelFileError, match="not a sound safetensors file"):
        check_int4(tmp_path, MiniCPMV, config)
