"""Whole files in a smaller type: a language file, a projector, or both from a checkpoint folder. One tensor at a time.

What is not changed stays: metadata, and tensors that are no matrices. What is written appears whole or not at all.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from handlens.atomic import replacing
from handlens.conversion import Progress, check_targets, gguf_contents, sum_of
from handlens.errors import InputError, ModelFileError
from handlens.gguf.blocks import PLAIN, Tensor
from handlens.gguf.convert import Content
from handlens.gguf.keys import is_projector
from handlens.gguf.names import POSITION_TABLE, fix_ffn_names
from handlens.gguf.reader import DEFAULT_ALIGNMENT, GGUFFile
from handlens.gguf.writer import DeferredTensor, write_into
from handlens.joining import CARD_KEY, LANGUAGE_KEYS, LANGUAGE_VALUE, PROJECTOR_KEYS, PROJECTOR_VALUE
from handlens.proof.seal import Metadata, unsealed_metadata
from handlens.quant.importance import Importance
from handlens.quant.mixes import (
    VISION_TYPES,
    Mix,
    Place,
    fitting,
    is_quantized,
    language_type,
    layer_of,
    mix_named,
)
from handlens.quant.tensors import quantize_tensor

#: What `general.quantization_version` says: the layouts of ggml since 2023.
QUANTIZATION_VERSION = 2
#: How the names of the vision side begin; every other tensor is the language model's.
VISION_PREFIXES = ("v.", "resampler.", "mm.")


@dataclass(frozen=True)
class Quantized:
    """What was written, the bytes of its tensors and of those it was made from, and what is to be said about it."""

    paths: tuple[Path, ...]
    nbytes: int
    nbytes_before: int
    notices: tuple[str, ...]


def quantize_model(
    source: Path,
    out: Path,
    type: str,
    *,
    mmproj: Path | None = None,
    mmproj_out: Path | None = None,
    vision_type: str | None = None,
    importance: Callable[[], Importance] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Writes `source` (a GGUF file, or a checkpoint folder) as `out`, in a file type of `MIXES`.

    A folder also becomes a projector file, and so does `mmproj`: `mmproj_out`, beside `out` without one, in the file
    type `vision_type`. Without one that is `type` if it is among VISION_TYPES, else Q8_0; of a projector alone it is
    always `type`. The importance, which takes long to measure, is asked for when everything else was checked.
    """
    type, mix = mix_named(type)
    vision_type = mix_named(vision_type or (type if type in VISION_TYPES else "Q8_0"))[0]
    two_files = source.is_dir() or mmproj is not None
    if mmproj_out is not None and not two_files:
        raise InputError(f"a projector is to be written to {mmproj_out}, but none was given")
    if source.is_dir() and mmproj is not None:
        raise InputError(f"{source} is a checkpoint with a projector of its own; leave {mmproj} out")
    mmproj_out = mmproj_out or out.with_name(f"{out.name.removesuffix('.gguf')}.mmproj.gguf")
    targets = [out, mmproj_out] if two_files else [out]
    check_targets(targets, overwrite)
    contents = _contents(source, mmproj)
    if is_vision(contents[0]):
        vision_type = type
    measured = importance and importance()
    _check_importance(measured, contents)
    plans = [_planned(content, mix, vision_type, measured) for content in contents]
    before = sum(tensor.nbytes for content in contents for tensor in content.tensors.values())
    after = sum(tensor.nbytes for content in plans for tensor in content.tensors.values())
    told = sum_of(progress, after)
    with ExitStack() as stack:  # nested, so that there are both files or neither
        for path, content in zip(targets, plans, strict=True):
            file = stack.enter_context(replacing(path, ModelFileError))
            alignment = content.metadata.get("general.alignment", ("u32", DEFAULT_ALIGNMENT))[1]
            write_into(file, content.metadata, content.tensors, alignment, told)
    return Quantized(tuple(targets), after, before, _notices(source, contents, plans))


def is_vision(content: Content) -> bool:
    """Whether this is the content of a projector file."""
    return content.metadata["general.architecture"] == ("str", "clip")


def _contents(source: Path, mmproj: Path | None) -> list[Content]:
    if source.is_dir():
        _, _, language, projector = gguf_contents(source)
        return [language, projector]
    files = [GGUFFile(path) for path in (source, mmproj) if path is not None]
    projectors = [is_projector(file) for file in files]
    if mmproj is not None and projectors != [False, True]:
        raise InputError(f"{source} and {mmproj} should be a language file and its projector (mmproj)")
    # Seal and card are of the file that is read; what is written is another one.
    return [
        Content({k: v for k, v in unsealed_metadata(file).items() if k != CARD_KEY}, file.tensors) for file in files
    ]


def _planned(content: Content, mix: Mix, vision_type: str, importance: Importance | None) -> Content:
    """The content in other types; a tensor is made when it is written."""
    place = _place_of(content, important=importance is not None)
    alone = is_vision(content)
    metadata = content.metadata | _keys(mix_named(vision_type)[1] if alone else mix)
    if PROJECTOR_KEYS in metadata:
        metadata |= _keys_when_split(metadata, mix, mix_named(vision_type)[1])
    by_role = _names_by_role(content)
    output = "output.weight" if "output.weight" in content.tensors else "token_embd.weight"
    tensors = {}
    for name, tensor in content.tensors.items():
        columns = tensor.shape[-1]
        if name == POSITION_TABLE:  # follows from sizes alone, and nobody reads it; it only has to be there
            type = fitting(vision_type if vision_type in ("F16", "BF16") else "Q2_K", columns)
        elif not is_quantized(name, tensor.shape):
            type = tensor.type
        elif alone or name.startswith(VISION_PREFIXES):
            type = fitting(mix_named(vision_type)[1].base, columns)
        else:
            type = language_type(mix, name, columns, place(name), is_output=name == output)
        columns_matter = (importance or {}).get(by_role[name])
        make = partial(_made, name, tensor, type, columns_matter)
        tensors[name] = tensor if type == tensor.type else DeferredTensor(type, tensor.shape, make)
    return Content(metadata, tensors)


def _keys(mix: Mix) -> dict[str, tuple[str, int]]:
    return {
        "general.file_type": ("u32", mix.number),
        "general.quantization_version": ("u32", QUANTIZATION_VERSION),
    }


def _keys_when_split(metadata: Metadata, mix: Mix, vision: Mix) -> dict[str, tuple[str, Any]]:
    """What a joined file keeps, so that `split` gives the files that its parts would have become alone."""
    changed = {}
    for names, prefix, own in ((LANGUAGE_KEYS, LANGUAGE_VALUE, mix), (PROJECTOR_KEYS, PROJECTOR_VALUE, vision)):
        keys = _keys(own)
        changed[names] = "arr[str]", list(dict.fromkeys([*metadata[names][1], *keys]))
        changed |= {prefix + key: value for key, value in keys.items()}
    return changed


def _made(name: str, tensor: Tensor | DeferredTensor, type: str, importance: np.ndarray | None) -> Tensor:
    return quantize_tensor(name, Tensor(tensor.type, tensor.shape, tensor.data), type, importance)


def _place_of(content: Content, *, important: bool):
    """A function from names of the language model's tensors to where they stand."""
    if is_vision(content):
        return None
    architecture = content.metadata["general.architecture"][1]

    def number(key: str, otherwise: int) -> int:
        value = content.metadata.get(f"{architecture}.{key}", (None, otherwise))[1]
        return int(np.max(value))

    layers = 1 + max((layer_of(name) for name in content.tensors), default=0)
    heads = number("attention.head_count", 1)
    shared = heads // max(1, number("attention.head_count_kv", heads))
    return lambda name: Place(layer_of(name), layers, shared, important)


def _names_by_role(content: Content) -> dict[str, str]:
    """File names -> names with the vision tower's ffn names by role (see `gguf.names.fix_ffn_names`)."""
    names = {name: name for name in content.tensors}
    sizes = [content.metadata.get(f"clip.vision.{key}") for key in ("embedding_length", "feed_forward_length")]
    if None in sizes:
        return names
    fixed = fix_ffn_names(content.tensors, *(int(value) for _, value in sizes))
    places = {id(tensor): name for name, tensor in fixed.items()}
    return {name: places[id(tensor)] for name, tensor in content.tensors.items()}


def _check_importance(importance: Importance | None, contents: list[Content]) -> None:
    """InputError where importance was measured on another model."""
    if importance is None:
        return
    names = {name for content in contents for name in _names_by_role(content).values()}
    if not names & importance.keys():
        raise InputError(
            f"the importance is of {len(importance)} matrices such as {next(iter(importance), 'none')!r}, "
            "none of which is in the model; was it measured on another one?"
        )


def _notices(source: Path, contents: list[Content], plans: list[Content]) -> tuple[str, ...]:
    """A warning for tensors that lose twice."""
    again = {
        tensor.type
        for content, plan in zip(contents, plans, strict=True)
        for name, tensor in content.tensors.items()
        if tensor.type not in PLAIN and plan.tensors[name].type != tensor.type
    }
    if not again:
        return ()
    return (
        f"{source} is quantised already ({', '.join(sorted(again))}), and what that lost stays lost; "
        "start from F16, BF16 or the checkpoint if you can",
    )
