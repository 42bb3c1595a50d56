"""Config <-> the metadata keys of GGUF files: the language file and the projector (mmproj) beside it.

Keys of the projector: llama.cpp tools/mtmd/clip-impl.h, version 2 as published for 2.5; `handlens.*` are ours and are
ignored by other readers. Everything read here is checked before anything is allocated from it.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from handlens.config import FAMILIES, Family, LlamaConfig, ModelConfig, ResamplerConfig, SliceOptions, VisionConfig
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

#: Query vectors of a projector that does not say how many (older files), by version.
DEFAULT_QUERIES = {1: 64, 2: 96}


def is_projector(file: GGUFFile) -> bool:
    """Whether the file is a projector (mmproj) alone."""
    return file.metadata.get("general.architecture") == "clip"


def read_config(language: GGUFFile, projector: GGUFFile | None, *, position_mode: str | None = None) -> ModelConfig:
    """The config of a pair of files; ModelFileError names what is missing, wrong, or does not fit together.

    A language file that holds the vision tensors as well needs no projector file.
    """
    if is_projector(language):
        raise ModelFileError(f"{language.path} is a projector (mmproj) file; a language file is wanted here")
    llm = _read_llama(language)
    if projector is None and "resampler.query" in language.tensors:
        projector = language
    if projector is None:
        return ModelConfig(family=_family(language, None), llm=llm)
    family = _family(language, projector)
    resampler = _read_resampler(projector, family)
    if resampler.embed_dim != llm.hidden_size:
        raise ModelFileError(
            f"{projector.path.name} does not belong to {language.path.name}: the projector makes vectors of width "
            f"{resampler.embed_dim}, the language model takes {llm.hidden_size}. Use the mmproj file of the same model."
        )
    vision, notices = _read_vision(projector, family, position_mode)
    return ModelConfig(
        family=family,
        llm=llm,
        vision=vision,
        resampler=resampler,
        slices=_read_slices(projector, family),
        notices=notices,
    )


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
        raise ModelFileError(f"{file.path} holds a model of architecture {architecture!r}; handlens runs 'llama'")
    heads = _size(file, "llama.attention.head_count", 1, 1024)
    hidden = _size(file, "llama.embedding_length", 8, 1 << 17)
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ModelFileError(f"{file.path} asks for RoPE scaling {scaling!r}, which handlens does not compute")
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=_size(file, "llama.feed_forward_length", 8, 1 << 20),
        num_hidden_layers=_size(file, "llama.block_count", 1, 1024),
        num_attention_heads=heads,
        num_key_value_heads=_size(file, "llama.attention.head_count_kv", 1, heads, default=heads),
        head_dim=_size(file, "llama.rope.dimension_count", 2, 1024, default=max(2, hidden // heads)),
        vocab_size=len(file.require("tokenizer.ggml.tokens", list)),
        max_position_embeddings=_size(file, "llama.context_length", 1, 1 << 24),
        rms_norm_eps=_epsilon(file, "llama.attention.layer_norm_rms_epsilon"),
        rope_theta=_number(file, "llama.rope.freq_base", 1.0, 1e12, default=10000.0),
    )
    if config.head_dim * heads != hidden or config.head_dim % 2 or heads % config.num_key_value_heads:
        raise ModelFileError(
            f"{file.path}: {heads} heads of {config.head_dim} with {config.num_key_value_heads} key/value heads do not "
            f"make a width of {hidden}"
        )
    return config


def _family(language: GGUFFile, projector: GGUFFile | None) -> Family:
    for file in (projector, language):
        if file is not None and FAMILY_KEY in file.metadata:
            name = file.require(FAMILY_KEY, str)
            if name not in FAMILIES:
                raise ModelFileError(f"{file.path} is of the family {name!r}; known are {', '.join(FAMILIES)}")
            return FAMILIES[name]
    if projector is None:
        llama3 = "<|eot_id|>" in language.require("tokenizer.ggml.tokens", list)
        return FAMILIES["minicpm-llama3-v-2.5" if llama3 else "minicpm-v-2.0"]
    if not is_projector(projector) and projector is not language:
        raise ModelFileError(f"{projector.path} is not a projector (mmproj) file")
    kind = projector.metadata.get("clip.projector_type", "resampler")
    if kind != "resampler":
        raise ModelFileError(
            f"{projector.path} is a projector of type {kind!r}, made for another model; {language.path.name} needs one of "
            "type 'resampler' (the mmproj file of MiniCPM-Llama3-V 2.5)"
        )
    version = projector.require("clip.minicpmv_version", int)
    for family in FAMILIES.values():
        if family.minicpmv_version == version:
            return family
    what = OTHER_VERSIONS.get(version, "a model that handlens does not know")
    raise ModelFileError(
        f"{projector.path} is the projector of {what} (version {version}), not of MiniCPM-Llama3-V 2.5 (version 2); "
        f"it does not fit {language.path.name}"
    )


def _read_resampler(file: GGUFFile, family: Family) -> ResamplerConfig:
    query = file.tensors.get("resampler.query")
    if query is None or len(query.shape) != 2:
        raise ModelFileError(f"{file.path} holds no tensor resampler.query of two dimensions")
    default = DEFAULT_QUERIES.get(family.minicpmv_version, family.query_num)
    query_num = _size(file, "clip.minicpmv_query_num", 1, 4096, default=default)
    rows, width = query.shape
    if rows != query_num:
        raise ModelFileError(f"{file.path} says {query_num} queries a slice, but resampler.query has {rows}")
    if width % family.resampler_head_dim:
        raise ModelFileError(
            f"{file.path}: the resampler's width {width} is not a multiple of its head size {family.resampler_head_dim}"
        )
    return ResamplerConfig(
        query_num=query_num,
        embed_dim=width,
        kv_dim=_size(file, "clip.vision.embedding_length", 8, 1 << 16),
        num_heads=width // family.resampler_head_dim,
        query_position=family.query_position,
    )


def _read_vision(file: GGUFFile, family: Family, position_mode: str | None) -> tuple[VisionConfig, tuple[str, ...]]:
    hidden = _size(file, "clip.vision.embedding_length", 8, 1 << 16)
    heads = _size(file, "clip.vision.attention.head_count", 1, 1024)
    if hidden % heads:
        raise ModelFileError(f"{file.path}: a vision width of {hidden} cannot be split into {heads} heads")
    layers, notices = _vision_layers(file)
    try:
        vision = VisionConfig(
            hidden_size=hidden,
            intermediate_size=_size(file, "clip.vision.feed_forward_length", 8, 1 << 20),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            patch_size=_size(file, "clip.vision.patch_size", 4, 64),
            position_side=_position_side(file),
            position_mode=position_mode or file.get(POSITION_MODE_KEY, str, family.position_mode),
            layer_norm_eps=_epsilon(file, "clip.vision.attention.layer_norm_epsilon"),
            image_mean=_three(file, "clip.vision.image_mean"),
            image_std=_three(file, "clip.vision.image_std"),
        )
    except InputError as error:
        raise ModelFileError(f"{file.path}: {error}") from None
    if min(vision.image_std) <= 0:
        raise ModelFileError(f"{file.path}: clip.vision.image_std holds {vision.image_std}; all must be above 0")
    return vision, notices


def _vision_layers(file: GGUFFile) -> tuple[int, tuple[str, ...]]:
    """The number of layers to run, and a notice if the file's own number was wrong.

    Converters before 2025 wrote 26 for 2.5, though all 27 layers are in the file and belong to the model.
    """
    said = _size(file, "clip.vision.block_count", 1, 1024)
    found = {int(match[1]) for name in file.tensors if (match := re.fullmatch(r"v\.blk\.(\d{1,4})\.ln1\.weight", name))}
    held = len(found)
    if found != set(range(held)) or held not in (said, said + 1):
        raise ModelFileError(f"{file.path} says {said} vision layers, but holds {held}")
    if held == said:
        return said, ()
    return held, (
        f"{file.path.name} says {said} vision layers but holds {held}, a known fault of projector files made before "
        f"2025; all {held} are used",
    )


def _position_side(file: GGUFFile) -> int:
    table = file.tensors.get("v.position_embd.weight")
    rows = table.shape[0] if table is not None and len(table.shape) == 2 else 0
    side = math.isqrt(rows)
    if not rows or side * side != rows or side > 1024:
        raise ModelFileError(f"{file.path}: v.position_embd.weight has {rows} rows; a square of at most 1024 is wanted")
    return side


def _read_slices(file: GGUFFile, family: Family) -> SliceOptions:
    try:
        return dataclasses.replace(
            family.slices,
            scale_resolution=_size(file, "clip.vision.image_size", 4, 4096),
            patch_size=_size(file, "clip.vision.patch_size", 4, 64),
            max_slice_nums=file.get(MAX_SLICES_KEY, int, family.slices.max_slice_nums),
        )
    except InputError as error:
        raise ModelFileError(f"{file.path}: {error}") from None


def _size(file: GGUFFile, key: str, low: int, high: int, default: int | None = None) -> int:
    value = file.require(key, int) if default is None else file.get(key, int, default)
    if not low <= value <= high:
        raise ModelFileError(f"{file.path}: {key} is {value}; from {low} to {high} is wanted")
    return value


def _number(file: GGUFFile, key: str, low: float, high: float, default: float | None = None) -> float:
    value = file.require(key, float) if default is None else file.get(key, float, default)
    if not low <= value <= high:
        raise ModelFileError(f"{file.path}: {key} is {value}; from {low} to {high} is wanted")
    return value


def _epsilon(file: GGUFFile, key: str) -> float:
    # Stored as float32; the model's own number is the short decimal (1e-5, not 9.99999974e-06).
    return float(f"{_number(file, key, 1e-12, 1e-1):.6g}")


def _three(file: GGUFFile, key: str) -> tuple[float, float, float]:
    values = file.require(key, np.ndarray)
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise ModelFileError(f"{file.path}: {key} holds {list(values)[:8]}; three finite numbers are wanted")
    return tuple(float(value) for value in values)
