"""What a checkpoint is: the family table and the sizes of one model.

Two rules. Checkpoint configs are read tolerantly (what is not known is left alone, what is needed is named when it is
missing); options that a user gives are strict. Nothing about a model is guessed from a path: query count, widths, the
dropped layer, position mode, slicing, template and token names are data here.

Facts: spec of MiniCPM-Llama3-V 2.5 and MiniCPM-V 2.0 as published (config.json of both model repositories).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handlens.errors import InputError, ModelFileError

#: How the vision tower numbers its patches in the learned 70 x 70 position table.
#: `reference`  one row of ids spread over the longest slice of the request, and padding patches take part: what the
#:              original 2.5 code computes. A slice's features depend on the longest slice beside it.
#: `masked_1d`  the same ids over the slice's own length, no padding: independent of the other slices.
#: `grid_2d`    the true (row, column) of each patch, exactly as llama.cpp computes it for every version; our small
#:              models.
POSITION_MODES = ("reference", "masked_1d", "grid_2d")


@dataclass(frozen=True, kw_only=True)
class SliceOptions:
    """How an image is cut. `scale_resolution` is the side of a slice of square shape, in pixels."""

    scale_resolution: int = 448
    max_slice_nums: int = 9
    patch_size: int = 14

    def __post_init__(self):
        if not 1 <= self.max_slice_nums <= 64:
            raise InputError(f"max_slice_nums is {self.max_slice_nums}; it must be from 1 to 64")
        if not 4 <= self.patch_size <= self.scale_resolution <= 4096:
            raise InputError(
                f"slices of {self.scale_resolution} pixels with patches of {self.patch_size} cannot be cut: "
                "the patch must have at least 4 pixels, the slice at least one patch and at most 4096 pixels"
            )


@dataclass(frozen=True, kw_only=True)
class TokenNames:
    """The texts of the special tokens that build a prompt. Ids are looked up in the tokenizer by these names."""

    bos: str = "<|begin_of_text|>"
    stop: tuple[str, ...] = ("<|end_of_text|>", "<|eot_id|>")
    image_open: str = "<image>"
    image_close: str = "</image>"
    slice_open: str = "<slice>"
    slice_close: str = "</slice>"
    filler: str = "<unk>"  # stands at the positions that image vectors take
    #: Special tokens that belong to an answer (grounding) and so are shown; all others are left out of the text.
    shown: tuple[str, ...] = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<point>", "</point>")


@dataclass(frozen=True, kw_only=True)
class Family:
    """The rules that all checkpoints of one published design share."""

    name: str
    title: str
    minicpmv_version: int  # `clip.minicpmv_version` in a projector file
    query_num: int
    position_mode: str
    template: str  # a row of `prompts.TEMPLATES`
    official_version: str | None = None  # `version` in the official config.json
    drop_vision_last_layer: bool = False
    query_position: bool = False  # a learned position is added to the resampler's queries (2.0 only)
    resampler_head_dim: int = 128
    position_side: int = 70  # the learned position table is side x side
    slices: SliceOptions = SliceOptions()
    tokens: TokenNames = TokenNames()


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="minicpm-llama3-v-2.5",
            title="MiniCPM-Llama3-V 2.5",
            minicpmv_version=2,
            query_num=96,
            position_mode="reference",
            template="llama3",
            official_version="2.5",
        ),
        Family(
            name="minicpm-v-2.0",
            title="MiniCPM-V 2.0",
            minicpmv_version=1,
            query_num=64,
            position_mode="grid_2d",
            template="minicpm",
            official_version="2.0",
            drop_vision_last_layer=True,
            query_position=True,
            position_side=27,
            tokens=TokenNames(bos="<s>", stop=("</s>",)),
        ),
        # Small models of the design of 2.5, made for this package. Their ViT sees the true grid, which is also what
        # llama.cpp computes, so the same file gives the same answers there; slices are half as wide.
        Family(
            name="handlens-mini",
            title="handlens mini",
            minicpmv_version=2,
            query_num=96,
            position_mode="grid_2d",
            template="llama3",
            slices=SliceOptions(scale_resolution=224),
        ),
    )
}


def family_named(name: str) -> Family:
    """The row of the family table with this name; InputError lists the names there are."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise InputError(f"no model family is called {name!r}; there are {', '.join(FAMILIES)}") from None


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of the language model, under transformers' names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower. `num_hidden_layers` counts the layers that run, a dropped last one not among them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int = 14
    position_side: int = 70
    position_mode: str = "reference"
    layer_norm_eps: float = 1e-6
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        if self.position_mode not in POSITION_MODES:
            raise InputError(f"position mode {self.position_mode!r} is not one of {', '.join(POSITION_MODES)}")


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Sizes of the resampler: `query_num` learned queries of width `embed_dim` read patches of width `kv_dim`."""

    query_num: int
    embed_dim: int
    kv_dim: int
    num_heads: int
    query_position: bool = False
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything about one checkpoint. `vision` and `resampler` are None when only a language file was given."""

    family: Family
    llm: LlamaConfig
    vision: VisionConfig | None = None
    resampler: ResamplerConfig | None = None
    slices: SliceOptions = SliceOptions()
    #: Known faults of the files that were corrected while reading, one sentence each, for people.
    notices: tuple[str, ...] = field(default=())


def official_config(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> ModelConfig:
    """The config of a checkpoint in the official layout, from its config.json (and preprocessor_config.json).

    Unknown keys are left alone; keys that name code to run are reported in the notices and never followed.
    """
    family = _official_family(values)
    notices = tuple(
        f"the checkpoint's {file} names code to run ({key}); handlens runs none and ignores it"
        for file, content in (("config.json", values), ("preprocessor_config.json", preprocessor or {}))
        for key in ("auto_map", "custom_pipelines")
        if key in content
    )
    llm = LlamaConfig(
        hidden_size=(hidden := _whole(values, "hidden_size")),
        intermediate_size=_whole(values, "intermediate_size"),
        num_hidden_layers=_whole(values, "num_hidden_layers"),
        num_attention_heads=(heads := _whole(values, "num_attention_heads")),
        num_key_value_heads=_whole(values, "num_key_value_heads", heads),
        head_dim=_whole(values, "head_dim", hidden // heads),
        vocab_size=_whole(values, "vocab_size"),
        max_position_embeddings=_whole(values, "max_position_embeddings"),
        rms_norm_eps=float(values.get("rms_norm_eps", 1e-5)),
        rope_theta=float(_rope(values).get("rope_theta", 10000.0)),
    )
    tower = values.get("vision_config")
    if not isinstance(tower, Mapping):
        raise ModelFileError("config.json holds no vision_config; it is not of MiniCPM-Llama3-V 2.5")
    # Of a batch of slices the original pads all to the longest; slice by slice there is nothing to pad.
    mode = family.position_mode
    if mode == "reference" and not values.get("batch_vision_input", True):
        mode = "masked_1d"
    cutting = values.get("slice_config") or {}
    slices = dataclasses.replace(
        family.slices,
        scale_resolution=_whole(cutting, "scale_resolution", family.slices.scale_resolution),
        max_slice_nums=_whole(cutting, "max_slice_nums", family.slices.max_slice_nums),
        patch_size=_whole(tower, "patch_size", family.slices.patch_size),
    )
    dropped = bool(values.get("drop_vision_last_layer", family.drop_vision_last_layer))
    vision = VisionConfig(
        hidden_size=_whole(tower, "hidden_size"),
        intermediate_size=_whole(tower, "intermediate_size"),
        num_hidden_layers=_whole(tower, "num_hidden_layers") - dropped,
        num_attention_heads=_whole(tower, "num_attention_heads"),
        patch_size=slices.patch_size,
        position_side=_whole(tower, "image_size", 980) // slices.patch_size,
        position_mode=values.get("vit_position_mode", mode),
        layer_norm_eps=float(tower.get("layer_norm_eps", 1e-6)),
    )
    if hidden % family.resampler_head_dim:
        raise ModelFileError(f"config.json: hidden_size {hidden} is not a multiple of {family.resampler_head_dim}")
    resampler = ResamplerConfig(
        query_num=_whole(values, "query_num", family.query_num),
        embed_dim=hidden,
        kv_dim=vision.hidden_size,
        num_heads=hidden // family.resampler_head_dim,
        query_position=family.query_position,
    )
    return ModelConfig(family=family, llm=llm, vision=vision, resampler=resampler, slices=slices, notices=notices)


def _official_family(values: Mapping[str, Any]) -> Family:
    named = values.get("handlens_family")
    if named is not None:
        return family_named(named)
    if values.get("model_type") != "minicpmv":
        raise ModelFileError(f"config.json is of a {values.get('model_type')!r} model; 'minicpmv' is wanted")
    version = str(values.get("version", "2.0"))
    for family in FAMILIES.values():
        if family.official_version == version:
            return family
    raise ModelFileError(f"config.json is of MiniCPM-V version {version}, which handlens does not run")


def _rope(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where `rope_theta` stands: beside the sizes, or in `rope_parameters` as transformers 5 writes it."""
    nested = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = nested.get("rope_type", nested.get("type", "default"))
    if kind != "default":
        raise ModelFileError(f"config.json asks for RoPE scaling {kind!r}, which handlens does not compute")
    return {**nested, **{key: value for key, value in values.items() if key == "rope_theta"}}


def _whole(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 30:
        raise ModelFileError(f"config.json: {key} is {value!r}; a whole number above 0 is wanted")
    return value
