"""A checkpoint folder in the official layout -> GGUF files, and GGUF files -> a folder. No torch, one tensor at a time.

What is read is checked as it is when it is loaded, before anything is written; what is written appears whole or not at
all.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from handlens.atomic import appearing, replacing
from handlens.checkpoint import read_checkpoint
from handlens.config import ModelConfig, Scaling, official_values, preprocessor_values
from handlens.cpu.backend import check_shapes
from handlens.errors import InputError, ModelFileError
from handlens.gguf.blocks import PLAIN, Tensor
from handlens.gguf.convert import FILE_TYPES, Content, language_content, main_type, official_tensors, projector_content
from handlens.gguf.keys import read_config
from handlens.gguf.names import fix_ffn_names
from handlens.gguf.reader import GGUFFile
from handlens.gguf.writer import write_into
from handlens.processor import Processor
from handlens.shards import SHARD_BYTES, write_shards
from handlens.tokenizer import Tokenizer
from handlens.weights import ROPE_FACTORS, check_vocabulary, open_tokenizer, read_tensors

#: Told (bytes written, bytes in all) after each tensor.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Converted:
    """What was written, the type that most of its numbers have, and what is to be said about it."""

    paths: tuple[Path, ...]
    type: str
    notices: tuple[str, ...]


def to_gguf(
    folder: Path,
    out: Path,
    *,
    mmproj_out: Path | None = None,
    single: bool = False,
    type: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Writes the checkpoint in `folder` as a language file `out` and a projector `mmproj_out`, or with `single` all in
    `out`. Matrices get a type of `FILE_TYPES`; without one, that in which most of them are stored."""
    if type is not None and type not in FILE_TYPES:
        raise InputError(f"a whole file cannot be of type {type!r}; it can be of {', '.join(FILE_TYPES)}")
    if single and mmproj_out is not None:
        raise InputError("a single file was asked for, and a projector file too; leave one of them out")
    mmproj_out = mmproj_out or out.with_name(f"{out.name.removesuffix('.gguf')}.mmproj.gguf")
    targets = [out] if single else [out, mmproj_out]
    check_targets(targets, overwrite)
    config, type, language, projector = gguf_contents(folder, type)
    contents = [projector | language] if single else [language, projector]
    told = sum_of(progress, sum(tensor.nbytes for content in contents for tensor in content.tensors.values()))
    with replacing(out, ModelFileError) as file:
        write_into(file, contents[0].metadata, contents[0].tensors, progress=told)
        for path, content in zip(targets[1:], contents[1:], strict=True):
            with replacing(path, ModelFileError) as second:  # inside, so that there are both files or neither
                write_into(second, content.metadata, content.tensors, progress=told)
    return Converted(tuple(targets), type, config.notices)


def gguf_contents(folder: Path, type: str | None = None) -> tuple[ModelConfig, str, Content, Content]:
    """The config of a checkpoint folder, the type of its matrices (see `to_gguf`), and the contents of the language
    file and of the projector; everything was checked, and no tensor was made yet."""
    config, stored = read_checkpoint(folder)
    tokenizer = open_tokenizer(folder)
    _check_tokenizer(folder, config, tokenizer)
    type = type or _natural_type(config, stored)
    language = language_content(config, tokenizer, stored, type)
    projector = projector_content(config, stored, type)
    vision = fix_ffn_names(projector.tensors, config.vision.hidden_size, config.vision.intermediate_size)
    check_shapes(config, language.tensors, vision)
    return config, type, language, projector


def to_checkpoint(
    model: Path,
    mmproj: Path | None,
    folder: Path,
    *,
    type: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Converted:
    """Writes a GGUF pair, or one file with both sides, as a checkpoint into `folder`, which must be new or empty.

    Numbers get the type F32, F16 or BF16; without one, those of these types stay as they are, and others become F16.
    """
    if type is not None and type not in PLAIN:
        raise InputError(f"a checkpoint cannot hold {type!r}; it can hold {', '.join(PLAIN)}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not an empty folder; name a new one")
    language = GGUFFile(model)
    projector = GGUFFile(mmproj) if mmproj else None
    config = read_config(language, projector)
    if config.vision is None:
        raise InputError(f"{model} has no projector, and a checkpoint needs one; give the projector (mmproj) file too")
    tensors, vision = read_tensors(config, language, projector)
    if ROPE_FACTORS in tensors and (tensors[ROPE_FACTORS].dequantize() != 1).any():
        raise InputError(f"{model} has factors of RoPE ({ROPE_FACTORS}), for which a checkpoint has no place")
    check_shapes(config, tensors, vision)
    tokenizer = Tokenizer.from_gguf(language.metadata)
    _check_tokenizer(model, config, tokenizer)
    official = official_tensors(config, tensors, vision, type)
    documents = _documents(config, tokenizer, official, tied="output.weight" not in tensors)
    told = sum_of(progress, sum(tensor.nbytes for tensor in official.values()))
    with appearing(folder, ModelFileError) as new:
        for name, text in documents.items():
            (new / name).write_text(text, encoding="utf-8")
        write_shards(new, official, shard_bytes, told)
    return Converted((folder,), main_type(official), config.notices)


def _natural_type(config: ModelConfig, stored: Mapping[str, np.ndarray]) -> str:
    """The type that loses nothing; for weights that are multiplied by factors, which none has room for, F16 rather than
    BF16, whose roundings are eight times as large."""
    main = main_type({name: Tensor.from_bits(array) for name, array in stored.items() if array.ndim == 2})
    return "F16" if main == "BF16" and config.scaling != Scaling() else main


def check_targets(targets: list[Path], overwrite: bool) -> None:
    """InputError unless files may be written there."""
    if len(set(targets)) < len(targets):
        raise InputError(f"both files would be {targets[0]}; give them different names")
    for path in targets:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the GGUF file that is to be written")
        if path.exists() and not overwrite:
            raise InputError(f"{path} is there already; name another file, or say that it may be replaced")


def _check_tokenizer(where: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """ModelFileError if the model could not be asked anything with this tokenizer."""
    check_vocabulary(where, tokenizer, config)
    Processor(config, tokenizer)


def _documents(config: ModelConfig, tokenizer: Tokenizer, official: Mapping[str, Any], tied: bool) -> dict[str, str]:
    """The files beside the tensors, name -> text."""
    names = config.family.tokens
    stop = next(name for name in names.stop if name in tokenizer.special)
    ids = {"bos_token_id": tokenizer.id(names.bos), "eos_token_id": tokenizer.id(stop)}
    precision = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[main_type(official)]
    values = official_values(config) | ids | {"tie_word_embeddings": tied, "torch_dtype": precision}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names.bos,
        "eos_token": stop,
        "unk_token": names.filler,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.llm.max_position_embeddings,
    }
    documents = {
        "config.json": values,
        "preprocessor_config.json": preprocessor_values(config),
        "generation_config.json": ids,
        "tokenizer_config.json": settings,
    }
    texts = {name: json.dumps(values, indent=2) + "\n" for name, values in documents.items()}
    return texts | {"tokenizer.json": tokenizer.to_json()}


def sum_of(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A function that adds up the bytes that it is told, and tells `progress`."""
    done = 0

    def told(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return told
