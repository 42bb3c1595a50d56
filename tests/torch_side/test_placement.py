"""Models spread by the planner's map compute what whole ones do; `device_map="auto"` keeps the planner's rule."""

import pytest
import torch

from handlens.errors import InputError
from handlens.model import MiniCPMV
from handlens.model.devices import CONTEXT_LENGTH, config_of, itemsize_of, planned_device_map
from handlens.model.processing import collate
from handlens.model.quantize import loads_in_int4, nf4_config
from handlens.placement import FIRST, computed_bytes, plan_placement
from handlens.processor import Processor
from tests import tiny
from tests.torch_side import conversation, torch_model

LAYERS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tiny.TinyModel:
    return tiny.write(tmp_path_factory.mktemp("deep"), tiny.config(num_hidden_layers=LAYERS))


@pytest.fixture(scope="module")
def whole(made) -> MiniCPMV:
    return torch_model(made)


@pytest.fixture(scope="module")
def folder(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    whole.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def batch(made) -> dict[str, torch.Tensor]:
    processor = Processor(made.config, made.tokenizer)
    return collate([processor(conversation(3)), processor(conversation(1, 0)), processor(conversation(2, 2))])


def room_for(config, layers: int, context_length: int = 512) -> int:
    """Bytes of a CPU that keeps so many layers, and one at a time of the others on its way from disk."""
    sizes = computed_bytes(config, itemsize=4)
    options = {"itemsize": 4, "reserved": 0, "context_length": context_length}
    all_there = plan_placement(config, sizes, {"cpu": 1 << 40}, **options).shares[0]
    layer = sizes["llm.model.layers.0"]
    return all_there.total - (LAYERS - layers - 1) * layer + layer // 2


@pytest.fixture(scope="module")
def spread(made, folder, tmp_path_factory) -> MiniCPMV:
    """The model with two layers in memory and four on disk."""
    placement = plan_placement(
        made.config,
        computed_bytes(made.config, itemsize=4),
        {"cpu": room_for(made.config, 2)},
        itemsize=4,
        reserved=0,
        context_length=512,
        offload="disk",
    )
    assert [share.layers for share in placement.shares] == [2, 4]
    offload = tmp_path_factory.mktemp("offload")
    return MiniCPMV.from_pretrained(folder, device_map=placement.device_map, offload_folder=offload).eval()


def test_a_model_on_cpu_and_disk_computes_what_a_whole_one_does(spread, whole, batch):
    held = {name: tensor.device.type for name, tensor in spread.named_parameters()}
    first = ("vpm.", "resampler.", "llm.lm_head.", "llm.model.embed_tokens.", "llm.model.layers.0.")
    assert {held[name] for name in held if name.startswith(first)} == {"cpu"}
    assert {name.split(".")[3] for name in held if held[name] == "meta" and ".layers." in name} == {"2", "3", "4", "5"}
    with torch.no_grad():
        assert torch.equal(spread(**batch).logits, whole(**batch).logits)


def test_a_model_on_cpu_and_disk_answers_as_a_whole_one_does(spread, whole, batch):
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(spread.generate(**batch, **options), whole.generate(**batch, **options))


def test_auto_spreads_a_checkpoint_by_the_plan(made, folder, whole, batch, tmp_path):
    memory = {"cpu": room_for(made.config, 2, CONTEXT_LENGTH)}
    auto = MiniCPMV.from_pretrained(folder, device_map="auto", max_memory=memory, offload_folder=tmp_path).eval()
    assert {auto.hf_device_map[name] for name in FIRST if name in auto.hf_device_map} == {"cpu"}
    assert auto.hf_device_map["llm.model.norm"] == "disk"
    with torch.no_grad():
        assert torch.equal(auto(**batch).logits, whole(**batch).logits)


def test_an_automatic_map_keeps_the_rule(folder, made):
    config = config_of(folder, {})
    assert config.model_config() == made.config
    assert planned_device_map(config, {}) == {"": "cpu"}  # no GPU here, and it fits
    sizes = computed_bytes(made.config, itemsize=4)
    limit = plan_placement(made.config, sizes, {"cpu": 1 << 40}, itemsize=4, reserved=0).shares[0].total
    found = planned_device_map(config, {"max_memory": {"cpu": limit - 2 * sizes["llm.model.layers.0"]}})
    assert {found[module] for module in (*FIRST, "llm.model.layers.0")} == {"cpu"}
    assert {found["llm.model.layers.5"], found["llm.model.norm"]} == {"disk"}


def test_an_automatic_map_for_gpus_spreads_over_them_and_the_cpu(folder):
    config = config_of(folder, {})
    two = planned_device_map(config, {"max_memory": {0: "570MiB", 1: "570MiB", "cpu": "1GiB"}})
    assert {two[module] for module in FIRST} == {0} and two["llm.model.norm"] == 1
    assert planned_device_map(config, {"max_memory": {0: "1GiB", 1: "1GiB", "cpu": "1GiB"}}) == {"": 0}
    one = planned_device_map(config, {"max_memory": {0: "585MiB", "cpu": "1GiB"}})
    assert {one[module] for module in FIRST} == {0} and one["llm.model.norm"] == "cpu"
    with pytest.raises(InputError, match="does not fit"):
        planned_device_map(config, {"max_memory": {0: "540MiB", "cpu": "1GiB"}})
    with pytest.raises(InputError, match="does not fit"):  # int4 is not offloaded
        planned_device_map(config, {"max_memory": {0: "561MiB", "cpu": "1GiB"}, "quantization_config": nf4_config()})


def test_types_come_from_the_options_or_the_checkpoint(folder):
    config = config_of(folder, {})
    assert itemsize_of(config, {}) == itemsize_of(config, {"dtype": "auto"}) == 4
    assert itemsize_of(config, {"dtype": torch.bfloat16}) == itemsize_of(config, {"torch_dtype": "float16"}) == 2
    assert not loads_in_int4(config, {})
    assert loads_in_int4(config, {"quantization_config": nf4_config()})
    assert loads_in_int4(config, {"quantization_config": {"load_in_4bit": True}})
