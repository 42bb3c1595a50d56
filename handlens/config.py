"""What a checkpoint is: the family table and the sizes of one model.

Two rules. Checkpoint configs are read tolerantly (what is not known is left alone, what is needed is named when it is
missing); options that a user gives are strict. Nothing about a model is guessed from a path: query count, widths, the
dropped layer, position mode, slicing, template and token names are data here.

Facts: spec of MiniCPM-Llama3-V 2.5 and MiniCPM-V 2.0 as published (config.json of both model repositories).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from handlens.errors import InputError, ModelFileError

#: How the vision tower numbers its patches in the learned 70 x 70 position table.
#: `reference`  one row of ids spread over the longest slice of the request, and padding patches take part: what the
#:              original 2.5 code computes. A slice's features depend on the longest slice beside it.
#: `masked_1d`  the same ids over the slice's own length, no padding: independent of the other slices.
#: `grid_2d`    the true (row, column) of each patch, exactly as llama.cpp computes it for every version; our small
#:              models.
#: `interpolated` no ids: the table itself, a square grid, is resampled to the grid of each slice. 2.0, and only 2.0.
POSITION_MODES = ("reference", "masked_1d", "grid_2d", "interpolated")


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
    tower: str = "idefics2"  # whose names the tensors of the vision tower have in a checkpoint: a row of `names.TOWERS`
    vision_act: str = "gelu_pytorch_tanh"  # or "gelu", the exact one
    scaled: bool = False  # the language model multiplies by factors, see `Scaling`
    query_position: bool = False  # a learned position is added to the resampler's queries (2.0 only)
    resampler_head_dim: int = 128
    int8_vision: bool = True  # its vision side may compute in int8 on a CPU, where that is fast
    reads_lines: bool = False  # it reads lines better than pages, and answers out of what it read (reading.py)
    ends_loops: bool = False  # an answer that only repeats itself is ended; the published models go on, and so do we
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
            position_mode="interpolated",
            template="minicpm",
            official_version="2.0",
            tower="timm",
            vision_act="gelu",
            scaled=True,
            query_position=True,
            tokens=TokenNames(bos="<s>", stop=("</s>",)),
        ),
        # Small models of the design of 2.5, made for this package. Their ViT sees the true grid, which is also what
        # llama.cpp computes, so the same file gives the same answers there; slices are half as wide.
        Family(
            name="handlens-mini",
            title="handlens mini",
            minicpmv_version=2,
            query_num=64,
            position_mode="grid_2d",
            template="llama3",
            # Such a tower is fast in floats, and int8 changed one answer in seven (docs/performance.md).
            int8_vision=False,
            reads_lines=True,
            ends_loops=True,
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
class Scaling:
    """The factors of MiniCPM's language model (its muP scalings). They follow three linear maps, so weights that are
    multiplied by them need none: those of GGUF files, and of everything on the device side."""

    embedding: float = 1.0  # of the embeddings of tokens; image vectors are not scaled
    residual: float = 1.0  # of what every attention and every feed-forward layer adds
    logits: float = 1.0  # of the hidden state that logits are computed from


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
    hidden_act: str = "gelu_pytorch_tanh"
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
    scaling: Scaling = Scaling()
    vision: VisionConfig | None = None
    resampler: ResamplerConfig | None = None
    slices: SliceOptions = SliceOptions()
    #: Known faults of the files that were corrected while reading, one sentence each, for people.
    notices: tuple[str, ...] = field(default=())

    def __post_init__(self):
        mode = self.vision and self.vision.position_mode
        if mode and (mode == "interpolated") != (self.family.position_mode == "interpolated"):
            raise InputError(
                f"position mode {mode!r} cannot be that of {self.family.title}, whose own is "
                f"{self.family.position_mode!r}"
            )


#: What a size in a model file may be, lowest and highest, by transformers' names. Files come from strangers: nothing is
#: allocated or counted from a number outside.
SIZES = {
    "hidden_size": (8, 1 << 17),
    "intermediate_size": (8, 1 << 20),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (2, 1024),
    "vocab_size": (1, 1 << 20),
    "max_position_embeddings": (1, 1 << 24),
    "query_num": (1, 4096),
    "patch_size": (4, 64),
    "image_size": (4, 1 << 16),
    "scale_resolution": (4, 4096),
    "max_slice_nums": (1, 64),
}
#: The same for numbers that are not whole.
NUMBERS = {
    "rms_norm_eps": (1e-12, 0.1),
    "layer_norm_eps": (1e-12, 0.1),
    "rope_theta": (1.0, 1e12),
    "image_mean": (-10.0, 10.0),
    "image_std": (1e-3, 10.0),
    "scale_emb": (1e-4, 1e4),
    "scale_depth": (1e-4, 1e4),
    "dim_model_base": (1.0, 1 << 17),
}
#: Patches a side that a slice of square shape may have. With more of them no image would pass `images.plan_slices`.
MAX_PATCHES_A_SIDE = 64

#: Keys of a config.json for which handlens computes one value only. Where a key is missing, that is its meaning too.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "slice_mode": True}
_FIXED_SCALED = {"tie_word_embeddings": False}  # tied embeddings could not have two factors
_FIXED_UNSCALED = {"scale_emb": 1}

#: What `vision_encoder` in the config.json of 2.0 stands for, which has no vision_config: a model of timm. Its layers
#: are those before the last is dropped, its table has the 27 x 27 patches that fit into 384 pixels.
VISION_ENCODERS = {
    "vit_so400m_patch14_siglip_384.webli": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "image_size": 384,
    }
}


def official_config(values: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None) -> ModelConfig:
    """The config of a checkpoint in the official layout, from its config.json (and preprocessor_config.json).

    What the published config.json of 2.5 says has to be said; what it leaves out has the value that the original takes.
    Unknown keys are left alone; keys that name code to run are reported in the notices and never followed.
    """
    preprocessor = preprocessor or {}
    family = _official_family(values)
    _check_fixed(values, _FIXED | (_FIXED_SCALED if family.scaled else _FIXED_UNSCALED), family)
    hidden, heads = _size(values, "hidden_size"), _size(values, "num_attention_heads")
    llm = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=_size(values, "intermediate_size"),
        num_hidden_layers=_size(values, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_size(values, "num_key_value_heads", heads),
        head_dim=_size(values, "head_dim", hidden // heads),
        vocab_size=_size(values, "vocab_size"),
        max_position_embeddings=_size(values, "max_position_embeddings"),
        rms_norm_eps=_number(values, "rms_norm_eps"),
        rope_theta=_number(_rope(values), "rope_theta"),
    )
    check_heads(llm, "config.json")
    notices = tuple(
        f"the checkpoint's {file} names code to run ({key}); handlens runs none and ignores it"
        for file, content in (("config.json", values), ("preprocessor_config.json", preprocessor))
        for key in ("auto_map", "custom_pipelines")
        if key in content
    )
    tower, cutting = _vision_sections(values, family)
    most = family.slices.max_slice_nums if cutting is values else None  # the class of 2.0 has a default
    _check_fixed(tower, {"hidden_act": family.vision_act, "num_channels": 3}, family)
    patch_size = _size(tower, "patch_size")
    try:
        vision = VisionConfig(
            hidden_size=_size(tower, "hidden_size"),
            intermediate_size=_size(tower, "intermediate_size"),
            num_hidden_layers=_size(tower, "num_hidden_layers") - _flag(values, "drop_vision_last_layer"),
            num_attention_heads=_size(tower, "num_attention_heads"),
            patch_size=patch_size,
            position_side=_size(tower, "image_size") // patch_size,
            position_mode=values.get("vit_position_mode", _official_mode(values, family)),
            hidden_act=family.vision_act,
            layer_norm_eps=_number(tower, "layer_norm_eps", 1e-6),
            image_mean=_three(preprocessor, "norm_mean", "image_mean"),
            image_std=_three(preprocessor, "norm_std", "image_std"),
        )
        slices = SliceOptions(
            scale_resolution=_size(cutting, "scale_resolution", family.slices.scale_resolution),
            max_slice_nums=_size(cutting, "max_slice_nums", most),
            patch_size=patch_size,
        )
        resampler = ResamplerConfig(
            query_num=_size(values, "query_num"),
            embed_dim=hidden,
            kv_dim=vision.hidden_size,
            num_heads=hidden // family.resampler_head_dim,
            query_position=family.query_position,
        )
        scaling = _scaling(values, llm) if family.scaled else Scaling()
        config = ModelConfig(
            family=family, llm=llm, scaling=scaling, vision=vision, resampler=resampler, slices=slices, notices=notices
        )
    except InputError as error:
        raise ModelFileError(f"config.json: {error}") from None
    check_vision(config, "config.json")
    return config


def official_values(config: ModelConfig) -> dict[str, Any]:
    """What a config.json says of a config: `official_config` reads the same from it."""
    family, llm, vision, slices = config.family, config.llm, config.vision, config.slices
    values = {
        "model_type": "minicpmv",
        "architectures": ["MiniCPMV"],
        "version": family.official_version,
        "handlens_family": None if family.official_version else family.name,
        **{field.name: getattr(llm, field.name) for field in fields(llm)},
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "query_num": config.resampler.query_num,
        "image_size": slices.scale_resolution,
        "patch_size": vision.patch_size,
        "drop_vision_last_layer": False,  # `vision` counts the layers that run
        "batch_vision_input": True,
        "slice_mode": True,
        "vit_position_mode": None if vision.position_mode == family.position_mode else vision.position_mode,
        "slice_config": {
            "model_type": "minicpmv",
            "max_slice_nums": slices.max_slice_nums,
            "scale_resolution": slices.scale_resolution,
            "patch_size": vision.patch_size,
        },
        "vision_config": {
            "model_type": "idefics2",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "image_size": vision.position_side * vision.patch_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": vision.layer_norm_eps,
        },
    }
    if family.scaled:
        values |= {
            "scale_emb": config.scaling.embedding,
            "scale_depth": config.scaling.residual * math.sqrt(llm.num_hidden_layers),
            "dim_model_base": config.scaling.logits * llm.hidden_size,
        }
    return {key: value for key, value in values.items() if value is not None}


def preprocessor_values(config: ModelConfig) -> dict[str, Any]:
    """What a preprocessor_config.json says of a config."""
    family = config.family
    named = {"version": float(family.official_version)} if family.official_version else {"handlens_family": family.name}
    return named | {
        "max_slice_nums": config.slices.max_slice_nums,
        "scale_resolution": config.slices.scale_resolution,
        "patch_size": config.slices.patch_size,
        "image_feature_size": config.resampler.query_num,
        "slice_mode": True,
        "norm_mean": list(config.vision.image_mean),
        "norm_std": list(config.vision.image_std),
    }


def check_heads(llm: LlamaConfig, where: Any) -> None:
    """ModelFileError, beginning with `where`, if the attention heads of a language model do not make up its width."""
    heads, kv_heads = llm.num_attention_heads, llm.num_key_value_heads
    if heads * llm.head_dim != llm.hidden_size or heads % kv_heads or llm.head_dim % 2:
        raise ModelFileError(
            f"{where}: {heads} attention heads of {llm.head_dim} with {kv_heads} key/value heads do not make a width "
            f"of {llm.hidden_size}"
        )


def check_vision(config: ModelConfig, where: Any) -> None:
    """ModelFileError, beginning with `where`, if the sizes of the vision side do not go together."""
    vision, resampler, slices = config.vision, config.resampler, config.slices
    if vision.num_hidden_layers < 1 or vision.hidden_size % vision.num_attention_heads:
        raise ModelFileError(
            f"{where}: a vision tower of {vision.num_hidden_layers} layers, {vision.hidden_size} wide, cannot be run "
            f"with {vision.num_attention_heads} attention heads"
        )
    if resampler.num_heads * config.family.resampler_head_dim != resampler.embed_dim:
        raise ModelFileError(
            f"{where}: the resampler is {resampler.embed_dim} wide, which is not a multiple of "
            f"{config.family.resampler_head_dim}, the width of its heads"
        )
    if slices.scale_resolution > MAX_PATCHES_A_SIDE * slices.patch_size:
        raise ModelFileError(
            f"{where}: slices of {slices.scale_resolution} pixels have more than {MAX_PATCHES_A_SIDE} patches of "
            f"{slices.patch_size} a side, so every image, however small, would be scaled beyond what is accepted"
        )


def _official_family(values: Mapping[str, Any]) -> Family:
    named = values.get("handlens_family")
    if named is not None:
        if not isinstance(named, str) or named not in FAMILIES:
            raise ModelFileError(f"config.json is of the family {named!r:.80}; known are {', '.join(FAMILIES)}")
        return FAMILIES[named]
    if values.get("model_type") != "minicpmv":
        raise ModelFileError(f"config.json is of a {values.get('model_type')!r:.80} model; 'minicpmv' is wanted")
    version = values.get("version", "2.0")  # the config.json of 2.0 has no such key
    for family in FAMILIES.values():
        if version is not None and family.official_version == version:
            return family
    raise ModelFileError(f"config.json is of MiniCPM-V version {version!r:.80}, which handlens does not run")


def _vision_sections(values: Mapping[str, Any], family: Family) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The sizes of the vision tower and of slices: sections of their own, or as 2.0 has them, a name and beside it."""
    encoder = values.get("vision_encoder")
    if family.tower == "timm" and values.get("vision_config") is None and encoder is not None:
        if not isinstance(encoder, str) or encoder not in VISION_ENCODERS:
            raise ModelFileError(
                f"config.json: vision_encoder is {encoder!r:.80}; handlens knows {', '.join(VISION_ENCODERS)}"
            )
        return VISION_ENCODERS[encoder], values
    return _section(values, "vision_config", family), _section(values, "slice_config", family)


def _scaling(values: Mapping[str, Any], llm: LlamaConfig) -> Scaling:
    """The factors as the original computes them from the keys of its config.json."""
    return Scaling(
        embedding=_number(values, "scale_emb"),
        residual=_number(values, "scale_depth") / math.sqrt(llm.num_hidden_layers),
        logits=_number(values, "dim_model_base") / llm.hidden_size,
    )


def _official_mode(values: Mapping[str, Any], family: Family) -> str:
    """The position mode: of a batch of slices the original pads all to the longest; one by one none is padded."""
    if family.position_mode == "reference" and not _flag(values, "batch_vision_input"):
        return "masked_1d"
    return family.position_mode


def _rope(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where `rope_theta` stands: beside the sizes, or in `rope_parameters` as transformers 5 writes it."""
    nested = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = nested.get("rope_type", nested.get("type", "default")) if isinstance(nested, Mapping) else nested
    if kind != "default":
        raise ModelFileError(f"config.json asks for RoPE scaling {kind!r:.80}, which handlens does not compute")
    return {**nested, **values}


def _check_fixed(values: Mapping[str, Any], wanted: Mapping[str, Any], family: Family) -> None:
    for key, value in wanted.items():
        if values.get(key, value) != value:
            raise ModelFileError(
                f"config.json, of {family.title}: {key} is {values[key]!r:.80}; handlens computes {value!r} only"
            )


def _section(values: Mapping[str, Any], key: str, family: Family) -> Mapping[str, Any]:
    section = values.get(key)
    if not isinstance(section, Mapping):
        raise ModelFileError(f"config.json, of {family.title}: {key} is {section!r:.80}; an object of sizes is wanted")
    return section


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key)
    if not isinstance(value, bool):
        raise ModelFileError(f"config.json: {key} is {value!r:.80}; true or false is wanted")
    return value


def _size(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key)
    value = default if value is None else value
    low, high = SIZES[key]
    if type(value) is not int or not low <= value <= high:
        raise ModelFileError(f"config.json: {key} is {value!r:.80}; a whole number from {low} to {high} is wanted")
    return value


def _number(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = values.get(key, default)
    low, high = NUMBERS[key]
    if type(value) not in (int, float) or not low <= value <= high:
        raise ModelFileError(f"config.json: {key} is {value!r:.80}; a number from {low:g} to {high:g} is wanted")
    return float(value)


def _three(values: Mapping[str, Any], key: str, meaning: str) -> tuple[float, float, float]:
    """The three numbers of preprocessor_config.json, one a colour; 0.5 each, as published, if there are none."""
    given = values.get(key, [0.5, 0.5, 0.5])
    low, high = NUMBERS[meaning]
    numbers = given if isinstance(given, list) and len(given) == 3 else [None]
    if not all(type(number) in (int, float) and low <= number <= high for number in numbers):
        raise ModelFileError(
            f"preprocessor_config.json: {key} is {given!r:.80}; three numbers from {low:g} to {high:g} are wanted"
        )
    return tuple(map(float, given))
