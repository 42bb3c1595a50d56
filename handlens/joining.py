"""One file out of a pair, and the pair again: language model, vision side, tokenizer and quality card in one GGUF."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlens.atomic import replacing
from handlens.conversion import check_targets
from handlens.errors import InputError, ModelFileError
from handlens.gguf.keys import holds_projector, is_projector, read_config
from handlens.gguf.reader import GGUFFile
from handlens.gguf.writer import write_into
from handlens.proof.seal import PREFIX as SEAL
from handlens.proof.seal import unsealed_metadata

#: Keys of both files in their order, and the values of those whose values differ from the joined file's.
LANGUAGE_KEYS, PROJECTOR_KEYS = "handlens.join.language", "handlens.join.projector"
LANGUAGE_VALUE, PROJECTOR_VALUE = "handlens.join.language.", "handlens.join.projector."
#: A quality card in Markdown.
CARD_KEY = "handlens.card"

PROJECTOR_TENSORS = ("v.", "resampler.")
#: What a projector needs of a file that was written as one from the beginning.
PROJECTOR_PREFIXES = ("clip.", "handlens.")


def join(model: Path, mmproj: Path, out: Path, *, card: str | None = None, overwrite: bool = False) -> None:
    """Writes a pair as one file, which handlens opens alone. `split` gives back both as they were."""
    language, projector = GGUFFile(model), GGUFFile(mmproj)
    if holds_projector(language):
        raise InputError(f"{model} holds its projector already")
    read_config(language, projector)
    check_targets([out], overwrite)
    if shared := language.tensors.keys() & projector.tensors.keys():
        raise ModelFileError(f"{model} and {mmproj} both have a tensor {min(shared)}; they are no pair")
    # A joined file is another file, so the seals of its parts are not its own.
    metadata = unsealed_metadata(projector) | unsealed_metadata(language)
    alignment = max(language.alignment, projector.alignment)
    if "general.alignment" in metadata:
        metadata["general.alignment"] = ("u32", alignment)
    for file, names, prefix in (
        (language, LANGUAGE_KEYS, LANGUAGE_VALUE),
        (projector, PROJECTOR_KEYS, PROJECTOR_VALUE),
    ):
        metadata[names] = ("arr[str]", list(file.metadata))
        for key, value in _keys(file).items():
            if key not in metadata or not _equal(metadata[key], value):
                metadata[prefix + key] = value
    if card is not None:
        metadata[CARD_KEY] = ("str", card)
    with replacing(out, ModelFileError) as file:
        write_into(file, metadata, language.tensors | projector.tensors, alignment)


def split(source: Path, model_out: Path, mmproj_out: Path, *, overwrite: bool = False) -> None:
    """Writes the two files that one file holds. Those that were joined come back as they were."""
    joined = GGUFFile(source)
    if is_projector(joined) or not holds_projector(joined):
        raise InputError(f"{source} holds no language model with its projector, so there is nothing to split")
    check_targets([model_out, mmproj_out], overwrite)
    if PROJECTOR_KEYS in joined.metadata:
        contents = [
            _taken(joined, names, prefix)
            for names, prefix in ((LANGUAGE_KEYS, LANGUAGE_VALUE), (PROJECTOR_KEYS, PROJECTOR_VALUE))
        ]
    else:
        contents = _sorted_out(joined)
    tensors = [
        {name: tensor for name, tensor in joined.tensors.items() if name.startswith(PROJECTOR_TENSORS) == for_vision}
        for for_vision in (False, True)
    ]
    with replacing(model_out, ModelFileError) as first, replacing(mmproj_out, ModelFileError) as second:
        for file, metadata, held in zip((first, second), contents, tensors, strict=True):
            write_into(file, metadata, held, metadata.get("general.alignment", ("u32", 32))[1])


def _keys(file: GGUFFile) -> dict[str, tuple[str, Any]]:
    return {key: (file.types[key], value) for key, value in file.metadata.items()}


def _equal(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    return one[0] == other[0] and np.array_equal(one[1], other[1])


def _taken(joined: GGUFFile, names: str, prefix: str) -> dict[str, tuple[str, Any]]:
    """The metadata of one of the files that were joined."""
    metadata = {}
    for key in joined.require(names, "arr[str]"):
        place = prefix + key if prefix + key in joined.metadata else key
        if place not in joined.metadata:
            raise ModelFileError(f"{joined.path}: {names} names a key {key!r:.80}, which is not there")
        metadata[key] = (joined.types[place], joined.metadata[place])
    return metadata


def _sorted_out(joined: GGUFFile) -> list[Mapping[str, tuple[str, Any]]]:
    """The metadata of two files out of a file that was written as one."""
    keys = {key: value for key, value in _keys(joined).items() if not key.startswith(SEAL) and key != CARD_KEY}
    language = {key: value for key, value in keys.items() if not key.startswith("clip.")}
    projector = {key: value for key, value in keys.items() if key.startswith((*PROJECTOR_PREFIXES, "general."))}
    return [language, projector | {"general.architecture": ("str", "clip")}]
