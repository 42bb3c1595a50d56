"""Config <-> the metadata keys of GGUF files: the language file and the projector (mmproj) beside it.

Keys of the projector: llama.cpp tools/mtmd/clip-impl.h, version 2 as published for 2.5; `handlens.*` are ours and are
ignored by other readers. Everything read here is checked before anything is allocated from it.
"""

import math
import re
from dataclasses import replace
from typing import Any

from handlens.config import (
    FAMILIES,
    NUMBERS,
    SIZES,
    Family,
    LlamaConfig,
    ModelConfig,
    ResamplerConfig,
    SliceOptions,
    VisionConfig,
    check_heads,
    check_vision,
)
from handlens.errors import InputError, ModelFileError
from handlens.gguf.reader import GGUFFile

FAMILY_KEY = "handlens.family"
POSITION_MODE_KEY = "handlens.vit_position_mode"
MAX_SLICES_KEY = "handlens.max_slice_nums"

#: `clip.minicpmv_version` of models whose design differs; named, so that a refusal can say what the file is.
OTHER_VERSIONS = {
    3: "MiniCPM-V 2.6",
    4: "MiniCPM-o 2.6",
    5: "MiniCPM-V 4.0",
    6: "MiniCPM-o 4.0",
    100045: "MiniCPM-V 4.5",
}

#: The version of a projector that does not say it: the published file of 2.5 is older than the key.
DEFAULT_VERSION = 2


def is_projector(file: GGUFFile) -> bool:
    """Whether the file is a projector (mmproj) alone."""
    return file.require("general.architecture", str) == "clip"


def holds_projector(file: GGUFFile) -> bool:
    """Whether the tensors of a projector are in the file, alone or beside a language model's."""
    return "resampler.query" in file.tensors


def read_config(language: GGUFFile, projector: GGUFFile | None, *, position_mode: str | None = None) -> ModelConfig:
    """The config of a pair of files; ModelFileError names what is missing, wrong, or does not fit together.

    A language file that holds the vision tensors as well needs no projector file.
    """
    if is_projector(language):
        raise ModelFileError(
            f"{language.path} is a projector (mmproj) file; give the language file as the model and this one as mmproj"
        )
    if holds_projector(language):
        if projector is not None:
            raise ModelFileError(f"{language.path} holds its projector itself; load it without {projector.path}")
        projector = language
    elif projector is not None and not is_projector(projector):
        raise ModelFileError(f"{projector.path} is not a projector (mmproj) file; {language.path.name} needs one")
    llm = _read_llama(language)
    check_heads(llm, language.path)
    if projector is None:
        if position_mode is not None:
            raise InputError(
                f"position_mode={position_mode!r} was given, but {language.path} has no projector, so there are no "
                "patches to number; give the projector (mmproj) file as well"
            )
        return ModelConfig(family=_language_family(language), llm=llm)
    config = _read_pair(language, projector, llm)
    check_vision(config, projector.path)
    if position_mode is not None:
        config = replace(config, vision=replace(config.vision, position_mode=position_mode))
    return config


def language_metadata(family: Family, config: LlamaConfig) -> dict[str, tuple[str, Any]]:
    """The keys of a language file, all but the tokenizer's."""
    return {
        "general.architecture": ("str", "llama"),
        "general.name": ("str", family.title),
        FAMILY_KEY: ("str", family.name),
        "llama.block_count": ("u32", config.num_hidden_layers),
        "llama.context_length": ("u32", config.max_position_embeddings),
        "llama.embedding_length": ("u32", config.hidden_size),
        "llama.feed_forward_length": ("u32", config.intermediate_size),
        "llama.attention.head_count": ("u32", config.num_attention_heads),
        "llama.attention.head_count_kv": ("u32", config.num_key_value_heads),
        "llama.attention.layer_norm_rms_epsilon": ("f32", config.rms_norm_eps),
        "llama.rope.freq_base": ("f32", config.rope_theta),
        "llama.rope.dimension_count": ("u32", config.head_dim),
        "llama.vocab_size": ("u32", config.vocab_size),
    }


def projector_metadata(
    family: Family, vision: VisionConfig, resampler: ResamplerConfig, slices: SliceOptions
) -> dict[str, tuple[str, Any]]:
    """The keys of a projector file."""
    return {
        "general.architecture": ("str", "clip"),
        "general.name": ("str", family.title),
        FAMILY_KEY: ("str", family.name),
        POSITION_MODE_KEY: ("str", vision.position_mode),
        MAX_SLICES_KEY: ("u32", slices.max_slice_nums),
        "clip.has_text_encoder": ("bool", False),
        "clip.has_vision_encoder": ("bool", True),
        "clip.has_minicpmv_projector": ("bool", True),
        "clip.projector_type": ("str", "resampler"),
        "clip.minicpmv_version": ("i32", family.minicpmv_version),
        "clip.minicpmv_query_num": ("u32", resampler.query_num),
        "clip.vision.image_size": ("u32", slices.scale_resolution),
        "clip.vision.patch_size": ("u32", vision.patch_size),
        "clip.vision.embedding_length": ("u32", vision.hidden_size),
        "clip.vision.feed_forward_length": ("u32", vision.intermediate_size),
        "clip.vision.projection_dim": ("u32", 0),
        "clip.vision.attention.head_count": ("u32", vision.num_attention_heads),
        "clip.vision.attention.layer_norm_epsilon": ("f32", vision.layer_norm_eps),
        "clip.vision.block_count": ("u32", vision.num_hidden_layers),
        "clip.vision.image_mean": ("arr[f32]", list(vision.image_mean)),
        "clip.vision.image_std": ("arr[f32]", list(vision.image_std)),
        "clip.use_gelu": ("bool", True),
    }


def _read_llama(file: GGUFFile) -> LlamaConfig:
    architecture = file.require("general.architecture", str)
    if architecture != "llama":
        raise ModelFileError(f"{file.path} holds a model of architecture {architecture!r:.80}; handlens runs 'llama'")
    scaling = file.get("llama.rope.scaling.type", str, "none")
    if scaling != "none":
        raise ModelFileError(f"{file.path} asks for RoPE scaling {scaling!r:.80}, which handlens does not compute")
    hidden = _size(file, "llama.embedding_length", "hidden_size")
    heads = _size(file, "llama.attention.head_count", "num_attention_heads")
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=_size(file, "llama.feed_forward_length", "intermediate_size"),
        num_hidden_layers=_size(file, "llama.block_count", "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_size(file, "llama.attention.head_count_kv", "num_key_value_heads", heads),
        head_dim=_size(file, "llama.rope.dimension_count", "head_dim", hidden // heads),
        vocab_size=len(file.require("tokenizer.ggml.tokens", "arr[str]")),
        max_position_embeddings=_size(file, "llama.context_length", "max_position_embeddings"),
        rms_norm_eps=_epsilon(file, "llama.attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        rope_theta=_number(file, "llama.rope.freq_base", "rope_theta", 10000.0),
    )


def _said_family(file: GGUFFile) -> Family | None:
    """The family that a file of ours names."""
    name = file.get(FAMILY_KEY, str, None)
    if name is not None and name not in FAMILIES:
        raise ModelFileError(f"{file.path} is of the family {name!r:.80}; known are {', '.join(FAMILIES)}")
    return FAMILIES.get(name)


def _language_family(file: GGUFFile) -> Family:
    """The family of a language file without a projector; one that does not name it has the tokens of Llama 3."""
    family = _said_family(file)
    if family is None and "<|eot_id|>" not in file.metadata["tokenizer.ggml.tokens"]:
        raise ModelFileError(
            f"{file.path} has no token '<|eot_id|>', so it is not the language file of MiniCPM-Llama3-V 2.5; "
            "handlens has no chat format for it"
        )
    return family or FAMILIES["minicpm-llama3-v-2.5"]


def _pair_family(language: GGUFFile, projector: GGUFFile) -> Family:
    """The family that both files are of."""
    kind = projector.get("clip.projector_type", str, "resampler")
    if kind != "resampler":
        raise ModelFileError(
            f"{projector.path} is a projector of type {kind!r:.80}, made for another model; {language.path.name} needs "
            "one of type 'resampler' (the mmproj file of MiniCPM-Llama3-V 2.5)"
        )
    version = projector.get("clip.minicpmv_version", int, DEFAULT_VERSION)
    of_version = [family for family in FAMILIES.values() if family.minicpmv_version == version]
    said = [family for family in (_said_family(projector), _said_family(language)) if family]
    family = next(iter(said + of_version), FAMILIES["minicpm-llama3-v-2.5"])
    if family not in of_version:
        what = of_version[0].title if of_version else OTHER_VERSIONS.get(version, "a model that handlens does not know")
        raise ModelFileError(
            f"{projector.path} is the projector of {what} (version {version}), not of {family.title} (version "
            f"{family.minicpmv_version}); it does not fit {language.path.name}"
        )
    if said[1:] and said[0] is not said[1]:
        raise ModelFileError(
            f"{projector.path} is the projector of {said[0].title}, but {language.path.name} is of {said[1].title}"
        )
    return family


def _read_pair(language: GGUFFile, projector: GGUFFile, llm: LlamaConfig) -> ModelConfig:
    family = _pair_family(language, projector)
    resampler = _read_resampler(projector, family)
    if resampler.embed_dim != llm.hidden_size:
        raise ModelFileError(
            f"{projector.path} does not belong to {language.path.name}: the projector makes vectors of width "
            f"{resampler.embed_dim}, the language model takes {llm.hidden_size}. Use the mmproj file of the same model."
        )
    layers, notices = _vision_layers(projector)
    try:
        vision = _read_vision(projector, family, layers)
        slices = SliceOptions(
            scale_resolution=_size(projector, "clip.vision.image_size", "scale_resolution"),
            max_slice_nums=_size(projector, MAX_SLICES_KEY, "max_slice_nums", family.slices.max_slice_nums),
            patch_size=vision.patch_size,
        )
        return ModelConfig(family=family, llm=llm, vision=vision, resampler=resampler, slices=slices, notices=notices)
    except InputError as error:
        raise ModelFileError(f"{projector.path}: {error}") from None


def _read_resampler(file: GGUFFile, family: Family) -> ResamplerConfig:
    rows, width = _matrix_shape(file, "resampler.query")
    query_num = _size(file, "clip.minicpmv_query_num", "query_num", rows)
    if rows != query_num:
        raise ModelFileError(f"{file.path} says {query_num} queries a slice, but resampler.query has {rows}")
    return ResamplerConfig(
        query_num=query_num,
        embed_dim=width,
        kv_dim=_size(file, "clip.vision.embedding_length", "hidden_size"),
        num_heads=width // family.resampler_head_dim,
        query_position=family.query_position,
    )


def _read_vision(file: GGUFFile, family: Family, layers: int) -> VisionConfig:
    if not file.get("clip.use_gelu", bool, True):
        raise ModelFileError(f"{file.path}: clip.use_gelu is false, but handlens computes no other activation")
    return VisionConfig(
        hidden_size=_size(file, "clip.vision.embedding_length", "hidden_size"),
        intermediate_size=_size(file, "clip.vision.feed_forward_length", "intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=_size(file, "clip.vision.attention.head_count", "num_attention_heads"),
        patch_size=_size(file, "clip.vision.patch_size", "patch_size"),
        position_side=_position_side(file),
        position_mode=file.get(POSITION_MODE_KEY, str, family.position_mode),
        hidden_act=family.vision_act,
        layer_norm_eps=_epsilon(file, "clip.vision.attention.layer_norm_epsilon", "layer_norm_eps"),
        image_mean=_three(file, "clip.vision.image_mean", "image_mean"),
        image_std=_three(file, "clip.vision.image_std", "image_std"),
    )


def vision_blocks(file: GGUFFile) -> int:
    """The number of vision layers that a projector holds, counted from the first to where one is missing."""
    names = (re.fullmatch(r"v\.blk\.([0-9]{1,4})\..*", name) for name in file.tensors)
    found = {int(match[1]) for match in names if match}
    return next(index for index in range(len(found) + 1) if index not in found)


def _vision_layers(file: GGUFFile) -> tuple[int, tuple[str, ...]]:
    """The number of layers to run, and a notice if the file's own number was wrong.

    Converters before 2025 wrote 26 for 2.5, though all 27 layers are in the file and belong to the model.
    """
    said, held = _size(file, "clip.vision.block_count", "num_hidden_layers"), vision_blocks(file)
    if held not in (said, said + 1):
        raise ModelFileError(f"{file.path}: clip.vision.block_count is {said}, but the file holds {held} vision layers")
    if held == said:
        return said, ()
    return held, (
        f"{file.path.name} says {said} vision layers but holds {held}, a known fault of projector files made before "
        f"2025; all {held} are used",
    )


def _position_side(file: GGUFFile) -> int:
    rows, _ = _matrix_shape(file, "v.position_embd.weight")
    side = math.isqrt(rows)
    if side * side != rows or side > 1024:
        raise ModelFileError(f"{file.path}: v.position_embd.weight has {rows} rows; a square of at most 1024 is wanted")
    return side


def _matrix_shape(file: GGUFFile, name: str) -> tuple[int, int]:
    tensor = file.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise ModelFileError(f"{file.path} holds no tensor {name} of two dimensions")
    return tensor.shape


def _size(file: GGUFFile, key: str, name: str, default: int | None = None) -> int:
    """The whole number of a key, within what `SIZES` allows for `name`."""
    value = file.require(key, int) if default is None else file.get(key, int, default)
    low, high = SIZES[name]
    if not low <= value <= high:
        raise ModelFileError(f"{file.path}: {key} is {value}; a whole number from {low} to {high} is wanted")
    return value


def _number(file: GGUFFile, key: str, name: str, default: float | None = None) -> float:
    """The number of a key, within what `NUMBERS` allows for `name`; NaN is not."""
    value = file.require(key, float) if default is None else file.get(key, float, default)
    low, high = NUMBERS[name]
    if not low <= value <= high:
        raise ModelFileError(f"{file.path}: {key} is {value:g}; a number from {low:g} to {high:g} is wanted")
    return value


def _epsilon(file: GGUFFile, key: str, name: str) -> float:
    # Stored as float32; the model's own number is the short decimal (1e-5, not 9.99999974e-06).
    return float(f"{_number(file, key, name):.6g}")


def _three(file: GGUFFile, key: str, name: str) -> tuple[float, float, float]:
    values = file.require(key, "arr[f32]").tolist()
    low, high = NUMBERS[name]
    if len(values) != 3 or not all(low <= value <= high for value in values):
        raise ModelFileError(
            f"{file.path}: {key} holds {values[:8]}; three numbers from {low:g} to {high:g} are wanted"
        )
    return tuple(values)
