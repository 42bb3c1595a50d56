"""The report on a model: what its files are, what they need, and what is wrong with them. Nothing is computed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from handlens.checkpoint import open_checkpoint, weight_files
from handlens.config import FAMILIES, ModelConfig
from handlens.cpu.backend import DENSE_BYTES, check_shapes
from handlens.errors import HandlensError
from handlens.gguf.blocks import Tensor
from handlens.gguf.keys import FAMILY_KEY, OTHER_VERSIONS, is_projector, read_config
from handlens.gguf.reader import GGUFFile
from handlens.processor import Processor
from handlens.tokenizer import Tokenizer
from handlens.weights import find_files, open_tokenizer, read_tensors

Tensors = Mapping[str, Tensor]


def examine(path: Path | None, mmproj: Path | None = None) -> dict[str, Any]:
    """The report on the model at a path, a projector alone included. HandlensError if a file cannot be read at all."""
    if path is not None and path.is_file() and is_projector(file := GGUFFile(path)):
        return examine_projector(file)
    files = find_files(path, mmproj)
    if files.model.is_dir():
        return examine_checkpoint(files.model)
    return examine_gguf(GGUFFile(files.model), GGUFFile(files.mmproj) if files.mmproj else None)


def examine_gguf(language: GGUFFile, projector: GGUFFile | None) -> dict[str, Any]:
    """The report on a language file, with its projector if there is one."""
    files = [about_file(file.path, file.tensors) for file in (language, projector) if file]
    config, faults = None, []
    with noted(faults):
        config = read_config(language, projector)
        check_shapes(config, *read_tensors(config, language, projector))
    with noted(faults):
        tokenizer = Tokenizer.from_gguf(language.metadata)
        if config:
            Processor(config, tokenizer)
    if projector:
        kind = "language file and projector"
    elif config and config.vision:
        kind = "language file with the projector inside"
    else:
        kind = "language file alone, which cannot see"
    parts = [file.tensors for file in (language, projector) if file]
    return report(kind, files, faults, config.notices if config else ()) | (
        about_model(config, parts) if config else {}
    )


def examine_checkpoint(folder: Path) -> dict[str, Any]:
    """The report on a folder with safetensors in the official layout."""
    checkpoint, faults = open_checkpoint(folder), []
    parts = [checkpoint.language, checkpoint.vision]
    with noted(faults):
        check_shapes(checkpoint.config, *parts)
    with noted(faults):
        Processor(checkpoint.config, open_tokenizer(folder))
    size = sum(path.stat().st_size for path in weight_files(folder))
    files = [about_file(folder, checkpoint.language | checkpoint.vision, size)]
    known = report("checkpoint folder in the official layout", files, faults, checkpoint.config.notices)
    return known | about_model(checkpoint.config, parts)


def examine_projector(file: GGUFFile) -> dict[str, Any]:
    """The report on a projector whose language file is not known: what its keys say."""
    version = file.metadata.get("clip.minicpmv_version")
    fitting = {family.minicpmv_version: family for family in reversed(FAMILIES.values())}
    family = FAMILIES.get(file.metadata.get(FAMILY_KEY), fitting.get(version))
    faults = []
    if family is None:
        what = OTHER_VERSIONS.get(version, "a model that handlens does not know")
        faults = [f"this is the projector of {what} (version {version}); versions {sorted(fitting)} can be used"]
    keys = {
        key: value
        for key, value in file.metadata.items()
        if key.startswith(("clip.", "handlens.")) and isinstance(value, str | int | float)
    }
    notices = ["only with its language file can a projector be used and its tensors be checked; give that file"]
    known = report("projector alone", [about_file(file.path, file.tensors)], faults, notices) | {"keys": keys}
    return known | (about_family(family.name) if family else {})


@contextmanager
def noted(faults: list[str]) -> Iterator[None]:
    """An error of the block becomes a fault."""
    try:
        yield
    except HandlensError as error:
        faults.append(str(error))


def report(kind: str, files: list[dict[str, Any]], faults: list[str], notices) -> dict[str, Any]:
    """The part that every report has."""
    return {"kind": kind, "files": files, "usable": not faults, "faults": faults, "notices": list(notices)}


def about_family(name: str) -> dict[str, Any]:
    """Names of a family."""
    return {"family": name, "title": FAMILIES[name].title}


def about_model(config: ModelConfig, parts: list[Tensors]) -> dict[str, Any]:
    """Sizes, and the memory that they ask for."""
    return about_family(config.family.name) | {
        "language": asdict(config.llm),
        "vision": config.vision and asdict(config.vision),
        "resampler": config.resampler and asdict(config.resampler),
        "slices": asdict(config.slices) if config.vision else None,
        "memory": memory(config, parts),
    }


def about_file(path: Path, tensors: Tensors, size: int | None = None) -> dict[str, Any]:
    """Size and contents of a file; `types` counts tensors, weights and bytes of each block type."""
    counts, weights, sizes = Counter(), Counter(), Counter()
    for tensor in tensors.values():
        counts[tensor.type] += 1
        weights[tensor.type] += prod(tensor.shape)
        sizes[tensor.type] += tensor.nbytes
    types = {
        name: {"tensors": number, "parameters": weights[name], "bytes": sizes[name]}
        for name, number in counts.most_common()
    }
    return {
        "path": str(path),
        "bytes": path.stat().st_size if size is None else size,
        "tensors": counts.total(),
        "parameters": weights.total(),
        "types": types,
    }


def memory(config: ModelConfig, parts: list[Tensors]) -> dict[str, int]:
    """Bytes that weights take, and the keys and values of one conversation that fills the context."""
    weights = 0
    for part in parts:
        dense = 4 * sum(prod(tensor.shape) for tensor in part.values())
        weights += dense if dense <= DENSE_BYTES else sum(tensor.nbytes for tensor in part.values())
    llm = config.llm
    cache = 2 * 4 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim * llm.max_position_embeddings
    return {"weights": weights, "full_context": cache}
