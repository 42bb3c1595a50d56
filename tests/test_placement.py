"""The planner of several devices, on sizes alone; and what `handlens info --plan` says."""

import json

import pytest

from handlens.cli import run
from handlens.cli.plan import parse_memory
from handlens.config import ModelConfig, official_config
from handlens.errors import InputError, ModelFileError
from handlens.placement import FIRST, LAST, Placement, computed_bytes, plan_placement, stored_bytes
from tests import tiny
from tests.test_config import PUBLISHED, PUBLISHED_20

GIB = 1 << 30
LAYERS = [f"llm.model.layers.{index}" for index in range(32)]


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return official_config(PUBLISHED)


def plan(config: ModelConfig, *gib: float, int4: bool = False, **options) -> Placement:
    """The plan for 16 bit weights, or int4, on GPUs of so many GiB."""
    memory = {number: int(size * GIB) for number, size in enumerate(gib)}
    return plan_placement(config, computed_bytes(config, int4=int4), memory, **options)


def split(placement: Placement) -> list[int]:
    return [share.layers for share in placement.shares]


def test_bytes_are_those_of_the_published_checkpoints(config):
    assert sum(computed_bytes(config).values()) == 2 * 8_537_092_336
    assert sum(computed_bytes(official_config(PUBLISHED_20)).values()) == 6_869_931_584  # total_size of the 2.0 index
    # The two shards of the int4 one have 4.65 and 1.51 GB.
    assert sum(computed_bytes(config, int4=True).values()) == pytest.approx(6.16e9, rel=2e-3)


@pytest.mark.parametrize(
    "gib", [(24,), (80, 80), (16, 16), (10, 12), (9, 24), (8, 8, 8), (7, 6, 6, 6), (12, 0.9, 12), (6, 30, 6)]
)
def test_the_rule_holds_and_no_device_is_overfull(config, gib):
    placement = plan(config, *gib)
    where = placement.device_map
    assert list(where) == [*FIRST, *LAYERS, *LAST]
    assert {where[module] for module in (*FIRST, LAYERS[0])} == {0}
    assert [where[layer] for layer in LAYERS] == sorted(where[layer] for layer in LAYERS)
    assert {where[module] for module in LAST} == {where[LAYERS[-1]]}
    assert all(share.total <= share.limit == int(gib[share.device] * GIB) for share in placement.shares)
    assert sum(share.weights for share in placement.shares) == 2 * 8_537_092_336
    assert sum(share.layers for share in placement.shares) == 32
    assert sum(share.cache for share in placement.shares) == 32 * 2 * 2 * 1024 * 8192


def test_on_two_cards_of_16_gib_the_split_leaves_more_room_than_the_original_one(config):
    """The original puts 16 layers on each card, with all else on the first: under a cap of 10 GiB for weights alone."""
    ours = plan(config, 16, 16, context_length=4000)
    sizes = computed_bytes(config)
    layer = sizes[LAYERS[0]] + ours.shares[0].cache // ours.shares[0].layers
    original = sum(sizes[module] for module in FIRST) + 16 * layer + ours.shares[0].scratch
    assert split(ours) == [13, 19]
    assert max(share.total for share in ours.shares) < original - GIB
    assert split(plan(config, 10, 10, context_length=4000)) == [13, 19]  # keys, values and scratch within the cap too


def test_no_other_split_leaves_the_fullest_device_emptier(config):
    for gib in ((16, 16), (10, 12), (9, 24)):
        shares = plan(config, *gib).shares
        layer = (shares[1].weights + shares[1].cache) / shares[1].layers
        fixed = [shares[0].total - shares[0].layers * layer, shares[1].scratch]
        fullness = [
            max((fixed[0] + count * layer) / gib[0], (fixed[1] + (32 - count) * layer) / gib[1])
            for count in range(1, 32)
        ]
        assert fullness.index(min(fullness)) + 1 == shares[0].layers


def test_no_more_devices_are_used_than_it_takes(config):
    assert split(plan(config, 24, 24, 24)) == [32]
    assert len(split(plan(config, 12, 12, 12))) == 2
    assert set(plan(config, 80, 80).device_map.values()) == {0}


def test_int4_fits_on_one_card_of_8_gb_with_a_context_of_4096(config):
    [share] = plan(config, 8e9 / GIB, int4=True, context_length=4096).shares
    assert share.layers == 32
    with pytest.raises(InputError, match="does not fit"):
        plan(config, 8e9 / GIB, context_length=4096)


@pytest.mark.parametrize(
    "gib, options, says",
    [
        ((8, 8), {}, r"needed and 16\.00 GiB given.*too little.*int4 \(weights of 5\.74 GiB.*shorter context"),
        ((3, 40), {}, r"first device has 3\.00 GiB.*one layer need 4\.62 GiB there, 1\.62 GiB more"),
        ((7,), {"int4": True}, r"too little.*give more memory, or ask for a shorter context"),
        ((9.7, 9.8), {}, "whole layers do not fit between the limits"),
        ((24,), {"batch": 16}, "keys and values of 16 x 8192 tokens 16.00 GiB"),
    ],
)
def test_what_does_not_fit_is_said_with_what_is_missing(config, gib, options, says):
    with pytest.raises(InputError, match=says):
        plan(config, *gib, **options)


@pytest.mark.parametrize("options", [{"context_length": 0}, {"context_length": 8193}, {"batch": 0}])
def test_plans_of_nothing_are_refused(config, options):
    with pytest.raises(InputError, match="can be planned"):
        plan(config, 24, **options)
    with pytest.raises(InputError, match="at least one"):
        plan_placement(config, computed_bytes(config), {})


def test_what_fits_nowhere_is_offloaded_and_its_keys_stay(config):
    placement = plan(config, 12, offload="cpu")
    gpu, cpu = placement.shares
    assert gpu.layers + cpu.layers == 32 and cpu.layers > 10
    assert gpu.total <= gpu.limit and cpu.cache == cpu.scratch == 0
    layer = computed_bytes(config)[LAYERS[0]]
    assert cpu.weights == cpu.layers * layer + 2 * 4096
    whole = plan(config, 24).shares[0]
    assert gpu.cache + gpu.scratch == whole.cache + whole.scratch + layer + 2 * 4096  # room for the one that visits
    assert placement.device_map[LAYERS[-1]] == placement.device_map["llm.model.norm"] == "cpu"
    assert plan(config, 24, offload="cpu") == plan(config, 24)


def test_stored_tensors_are_counted_by_module():
    config = tiny.config()
    tensors = {name: array.nbytes for name, array in tiny.official_tensors(config).items()}
    assert stored_bytes(config, tensors) == computed_bytes(config, itemsize=4)
    packed = tensors | {"llm.model.layers.1.mlp.up_proj.weight.absmax": 7}
    more = stored_bytes(config, packed)["llm.model.layers.1"] - computed_bytes(config, 4)["llm.model.layers.1"]
    assert more == 7
    tied = {name: size for name, size in tensors.items() if name != "llm.lm_head.weight"}
    assert stored_bytes(config, tied)["llm.lm_head"] == 0
    with pytest.raises(ModelFileError, match=r"'llm\.model\.layers\.9\.x' has no place"):
        stored_bytes(config, tensors | {"llm.model.layers.9.x": 1})
    with pytest.raises(ModelFileError, match="no tensors of resampler"):
        stored_bytes(config, {name: size for name, size in tensors.items() if not name.startswith("resampler")})


# handlens info --plan


@pytest.fixture
def info(capsys):
    """Runs `handlens info ... --plan ...`: exit code, standard output, standard error."""

    def call(path, memory: str, *more: str):
        code = run(["info", str(path), "--plan", memory, *more])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "config.json"
    path.write_text(json.dumps(PUBLISHED))
    return path


def test_a_config_json_is_enough_for_a_plan(info, published, config):
    for path in (published, published.parent):
        code, out, _ = info(path, "12GiB,12GiB", "--json")
        told = json.loads(out)["plan"]
        placement = plan(config, 12, 12)
        assert code == 0 and told["device_map"] == placement.device_map
        assert [device["total"] for device in told["devices"]] == [share.total for share in placement.shares]
        assert [device["limit"] for device in told["devices"]] == [12 * GIB] * 2
    code, out, told = info(published, "12GiB,12GiB")
    assert (code, told) == (0, "")
    for text in ("for 8192 tokens", "llm.model.layers.0 to 12", "llm.model.layers.13 to 31", "vpm", "15.9 GiB"):
        assert text in out


def test_int4_and_the_context_can_be_planned_for(info, published, tmp_path):
    _, out, _ = info(published, "8GB", "--int4", "--context-length", "4096", "--json")
    [device] = json.loads(out)["plan"]["devices"]
    assert device["cache"] == 512 << 20 and device["limit"] == 8 * 10**9
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(PUBLISHED | {"quantization_config": {"load_in_4bit": True}}))
    _, again, _ = info(stored, "8GB", "--context-length", "4096", "--json")
    assert json.loads(again) == json.loads(out)


def test_a_gguf_pair_is_planned_as_16_bit(info, tiny_model):
    _, out, _ = info(tiny_model.model, "1GiB", "--json")
    report = json.loads(out)
    assert report["kind"] == "GGUF files, loaded in 16 bit"
    assert report["plan"]["devices"][0]["weights"] == sum(computed_bytes(tiny_model.config).values())


@pytest.mark.parametrize("memory", ["", "12", "GiB", "12 giga", "12GiB,", "0GiB", "-1GiB", "1e9GiB", "nanGiB", "12Gib"])
def test_memory_is_read_strictly(info, published, memory):
    code, out, told = info(published, memory)
    assert (code, out) == (2, "")
    assert "is no amount of memory" in told and told.count("\n") == 1


def test_memory_has_the_units_people_write():
    assert parse_memory("1GiB, 1.5 GB,512MiB,2MB,1TiB,8KiB") == {
        0: GIB,
        1: 1_500_000_000,
        2: 512 << 20,
        3: 2_000_000,
        4: 1 << 40,
        5: 8192,
    }


def test_bad_plans_are_one_line(info, published, capsys):
    code, out, told = info(published, "3GiB")
    assert (code, out) == (2, "") and "does not fit" in told and told.count("\n") == 1
    code, out, _ = info(published, "3GiB", "--json")
    assert code == 2 and not json.loads(out)["usable"] and "does not fit" in json.loads(out)["faults"][0]
    assert run(["info", "--int4"]) == 2
    assert "give --plan" in capsys.readouterr().err
