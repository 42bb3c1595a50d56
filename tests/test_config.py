"""The config.json of official checkpoints: what it says is taken, what it does not say is not guessed."""

import json
import math

import pytest

from handlens.config import (
    FAMILIES,
    ResamplerConfig,
    Scaling,
    SliceOptions,
    VisionConfig,
    official_config,
    official_values,
)
from handlens.errors import ModelFileError
from handlens.images import plan_slices

#: The published config.json of MiniCPM-Llama3-V 2.5.
PUBLISHED = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "version": "2.5",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "pretraining_tp": 1,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "float16",
    "transformers_version": "4.40.0",
    "query_num": 96,
    "image_size": 448,
    "patch_size": 14,
    "drop_vision_last_layer": False,
    "batch_vision_input": True,
    "slice_mode": True,
    "mm_use_im_start_end": True,
    "use_cache": False,
    "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"},
    "vision_config": {
        "model_type": "idefics2",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 980,
    },
}
#: What 2.0's says, as far as it differs in kind: a timm tower, muP scalings, no version.
PUBLISHED_20 = {
    "architectures": ["MiniCPMV"],
    "model_type": "minicpmv",
    "hidden_size": 2304,
    "intermediate_size": 5760,
    "num_hidden_layers": 40,
    "num_attention_heads": 36,
    "vocab_size": 122753,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "query_num": 64,
    "image_size": 448,
    "drop_vision_last_layer": True,
    "vision_encoder": "vit_so400m_patch14_siglip_384.webli",
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
}


def changed(path: str, value) -> dict:
    """The published values with one changed, `a.b` being one in a section; ... drops it."""
    values = json.loads(json.dumps(PUBLISHED))
    *sections, key = path.split(".")
    place = values
    for section in sections:
        place = place[section]
    place[key] = value
    if value is ...:
        del place[key]
    return values


def test_the_published_config_of_2_5_is_read():
    config = official_config(PUBLISHED)
    assert config.family is FAMILIES["minicpm-llama3-v-2.5"]
    llm, vision, resampler = config.llm, config.vision, config.resampler
    assert (llm.hidden_size, llm.intermediate_size, llm.num_hidden_layers) == (4096, 14336, 32)
    assert (llm.num_attention_heads, llm.num_key_value_heads, llm.head_dim) == (32, 8, 128)
    assert (llm.vocab_size, llm.max_position_embeddings) == (128256, 8192)
    assert (llm.rms_norm_eps, llm.rope_theta) == (1e-5, 500000.0)
    assert (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) == (1152, 4304, 16)
    assert (vision.num_hidden_layers, vision.position_side, vision.position_mode) == (27, 70, "reference")
    assert (vision.layer_norm_eps, vision.image_mean, vision.image_std) == (1e-6, (0.5,) * 3, (0.5,) * 3)
    assert (resampler.query_num, resampler.embed_dim, resampler.kv_dim, resampler.num_heads) == (96, 4096, 1152, 32)
    assert (config.slices.scale_resolution, config.slices.max_slice_nums, config.slices.patch_size) == (448, 9, 14)
    assert config.notices == ()


def test_the_preprocessor_may_say_how_pixels_are_normalised():
    published = {"max_slice_nums": 9, "scale_resolution": 448, "patch_size": 14, "image_feature_size": 96}
    assert official_config(PUBLISHED, published) == official_config(PUBLISHED)
    given = official_config(PUBLISHED, published | {"norm_mean": [0.4, 0.5, 1], "norm_std": [0.2, 0.3, 0.4]})
    assert (given.vision.image_mean, given.vision.image_std) == ((0.4, 0.5, 1.0), (0.2, 0.3, 0.4))
    for key, value in [
        ("norm_std", [0.5, 0, 0.5]),
        ("norm_mean", [math.nan] * 3),
        ("norm_mean", 0.5),
        ("norm_std", [1]),
    ]:
        with pytest.raises(ModelFileError, match=rf"preprocessor_config\.json: {key}"):
            official_config(PUBLISHED, published | {key: value})


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("batch_vision_input", False, lambda config: config.vision.position_mode == "masked_1d"),
        ("drop_vision_last_layer", True, lambda config: config.vision.num_hidden_layers == 26),
        ("query_num", 64, lambda config: config.resampler.query_num == 64),
        ("slice_config.max_slice_nums", 4, lambda config: config.slices.max_slice_nums == 4),
        ("slice_config.scale_resolution", 224, lambda config: config.slices.scale_resolution == 224),
        ("vision_config.image_size", 378, lambda config: config.vision.position_side == 27),
        ("vision_config.layer_norm_eps", 1e-5, lambda config: config.vision.layer_norm_eps == 1e-5),
        ("num_key_value_heads", None, lambda config: config.llm.num_key_value_heads == 32),
        ("num_key_value_heads", ..., lambda config: config.llm.num_key_value_heads == 32),
        ("head_dim", None, lambda config: config.llm.head_dim == 128),
        ("rope_scaling", {"rope_type": "default"}, lambda config: config.llm.rope_theta == 500000.0),
        ("rope_parameters", {"rope_theta": 1e6}, lambda config: config.llm.rope_theta == 500000.0),
        ("handlens_family", "handlens-mini", lambda config: config.vision.position_mode == "grid_2d"),
        ("vit_position_mode", "grid_2d", lambda config: config.vision.position_mode == "grid_2d"),
        ("a_key_of_the_future", {"any": "thing"}, lambda config: config == official_config(PUBLISHED)),
    ],
)
def test_what_the_file_says_is_taken(path, value, read):
    assert read(official_config(changed(path, value)))


def test_rope_theta_is_also_found_where_transformers_5_writes_it():
    values = changed("rope_theta", ...) | {"rope_parameters": {"rope_theta": 250000.0, "rope_type": "default"}}
    assert official_config(values).llm.rope_theta == 250000.0


@pytest.mark.parametrize(
    "path",
    [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
        *("max_position_embeddings", "rms_norm_eps", "rope_theta", "query_num", "drop_vision_last_layer"),
        *("batch_vision_input", "slice_config", "slice_config.max_slice_nums", "vision_config"),
        *(f"vision_config.{key}" for key in PUBLISHED["vision_config"] if key != "model_type"),
    ],
)
def test_m05_what_the_file_does_not_say_is_named_and_no_class_default_is_assumed(path):
    """The defaults of the published class are others: 64 queries, a dropped layer, no slices."""
    for value in (..., None, "text", [], math.nan):
        with pytest.raises(ModelFileError, match=rf"config\.json.*{path.split('.')[-1]} is"):
            official_config(changed(path, value))


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("hidden_size", (0, -4096, 1 << 31, 4096.0, True, "4096", 4097, 10**400)),
        ("intermediate_size", (0, 1 << 31)),
        ("num_hidden_layers", (0, 1025, 1 << 31)),
        ("num_attention_heads", (0, 3, 1 << 31)),
        ("num_key_value_heads", (0, 7, 64)),
        ("head_dim", (0, 127, 1 << 31)),
        ("vocab_size", (0, 1 << 31)),
        ("max_position_embeddings", (0, 1 << 31)),
        ("rms_norm_eps", (0, -1e-5, math.nan, math.inf, "1e-5", None, 10**400)),
        ("rope_theta", (0, math.nan, math.inf, False)),
        ("query_num", (0, 1 << 31)),
        ("drop_vision_last_layer", (0, "false")),
        ("slice_config.max_slice_nums", (0, 65)),
        ("slice_config.scale_resolution", (0, 13, 46368, 4096, 1 << 31)),
        ("vision_config.hidden_size", (0, 1 << 31)),
        ("vision_config.num_attention_heads", (0, 7, 1 << 31)),
        ("vision_config.num_hidden_layers", (0, 1 << 31)),
        ("vision_config.patch_size", (0, 1, 65, 1 << 31)),
        ("vision_config.image_size", (0, 1 << 31)),
        ("vision_config.num_channels", (1, 4)),
        ("vision_config.hidden_act", ("gelu", None)),
        ("vision_config.layer_norm_eps", (0, math.nan, None)),
        ("hidden_act", ("gelu",)),
        ("attention_bias", (True,)),
        ("rope_scaling", ({"type": "linear", "factor": 2.0}, "linear", [1])),
        ("slice_mode", (False,)),
        ("scale_emb", (12,)),
        ("model_type", ("llama", None, ["minicpmv"])),
        ("version", ("2.6", "4.5", 2.5, None, ["2.5"])),
        ("handlens_family", ("minicpm-v-9", ["handlens-mini"], 1)),
        ("vit_position_mode", ("3d", ["reference"], None)),
    ],
)
def test_m11_m12_m14_what_cannot_be_is_refused(path, values):
    for value in values:
        with pytest.raises(ModelFileError, match=r"config\.json") as caught:
            official_config(changed(path, value))
        assert len(str(caught.value)) < 400


def test_a_layer_cannot_be_dropped_from_a_tower_of_one():
    values = changed("vision_config.num_hidden_layers", 1) | {"drop_vision_last_layer": True}
    with pytest.raises(ModelFileError, match="vision tower of 0 layers"):
        official_config(values)


def test_m12_the_largest_slices_that_are_read_are_still_cut():
    config = official_config(changed("slice_config.scale_resolution", 64 * 14))
    assert plan_slices(2, 2, config.slices).sizes == [(896, 896)]


def test_m18_code_named_in_the_files_is_reported_and_ignored():
    code = {
        "auto_map": {"AutoModel": "modeling_minicpmv.MiniCPMV"},
        "custom_pipelines": {"x": {"impl": "evil.Pipeline"}},
    }
    config = official_config(PUBLISHED | code, {"auto_map": {"AutoProcessor": "processing.Processor"}})
    assert [notice[:60] for notice in config.notices] == [
        "the checkpoint's config.json names code to run (auto_map); h",
        "the checkpoint's config.json names code to run (custom_pipel",
        "the checkpoint's preprocessor_config.json names code to run ",
    ]
    assert official_config(PUBLISHED).llm == config.llm


def test_the_config_of_2_0_is_read():
    config = official_config(PUBLISHED_20)
    assert config.family.name == "minicpm-v-2.0"
    assert (config.llm.num_key_value_heads, config.llm.head_dim, config.llm.rope_theta) == (36, 64, 10000.0)
    assert config.scaling == Scaling(embedding=12.0, residual=1.4 / math.sqrt(40), logits=256 / 2304)
    assert config.vision == VisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        patch_size=14,
        position_side=27,
        position_mode="interpolated",
        hidden_act="gelu",
    )
    assert config.resampler == ResamplerConfig(
        query_num=64, embed_dim=2304, kv_dim=1152, num_heads=18, query_position=True
    )
    assert config.slices == SliceOptions(scale_resolution=448, max_slice_nums=9, patch_size=14)
    assert official_config(official_values(config)) == config


def test_a_config_of_2_0_that_cannot_be_is_refused():
    for change, words in [
        ({"scale_emb": None}, "scale_emb is None"),
        ({"scale_depth": float("nan")}, "scale_depth is nan"),
        ({"dim_model_base": 0}, "dim_model_base is 0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; handlens computes False only"),
        ({"vision_encoder": "vit_tiny"}, "vision_encoder is 'vit_tiny'; handlens knows vit_so400m_patch14_siglip_384"),
        ({"vision_encoder": ["vit"]}, "vision_encoder is"),
        ({"vision_encoder": None}, "vision_config is None"),
        ({"vit_position_mode": "grid_2d"}, "'grid_2d' cannot be that of MiniCPM-V 2.0, whose own is 'interpolated'"),
    ]:
        with pytest.raises(ModelFileError, match=words):
            official_config(PUBLISHED_20 | change)
    with pytest.raises(ModelFileError, match="'interpolated' cannot be that of MiniCPM-Llama3-V 2.5"):
        official_config(changed("vit_position_mode", "interpolated"))
