"""The report of `handlens info --plan`: on which device each part of a model would go, and what it would take there."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from handlens.checkpoint import read_json, weight_files
from handlens.config import ModelConfig, official_config
from handlens.errors import InputError, ModelFileError
from handlens.gguf.keys import read_config
from handlens.gguf.reader import GGUFFile
from handlens.placement import computed_bytes, plan_placement, stored_bytes
from handlens.weights import find_files

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "MB": 10**6, "GB": 10**9, "TB": 10**12}

#: safetensors type -> bytes of a number. U8 is what int4 checkpoints pack two weights in.
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}

#: A weight that no quantisation touches: its type is that of activations, keys and values.
NORM = "llm.model.norm.weight"


@dataclass(frozen=True)
class Subject:
    """What is planned for: the model, the bytes of its modules, and how they came about."""

    kind: str
    config: ModelConfig
    modules: Mapping[str, int]
    itemsize: int


def plan(path: Path | None, mmproj: Path | None, memory: str, context_length: int | None, int4: bool) -> dict[str, Any]:
    """The report on the model at a path; HandlensError if it cannot be read or does not fit."""
    max_memory = parse_memory(memory)
    subject = find_subject(path, mmproj, int4)
    config = subject.config
    if context_length is None:
        context_length = config.llm.max_position_embeddings
    placement = plan_placement(
        config, subject.modules, max_memory, context_length=context_length, itemsize=subject.itemsize
    )
    return {
        "kind": subject.kind,
        "family": config.family.name,
        "title": config.family.title,
        "plan": {
            "context_length": context_length,
            "devices": [asdict(share) | {"total": share.total} for share in placement.shares],
            "device_map": placement.device_map,
        },
        "files": [],
        "usable": True,
        "faults": [],
        "notices": list(config.notices),
    }


def parse_memory(text: str) -> dict[int | str, int]:
    """Device number -> bytes, of a list such as 12GiB,12GiB."""
    sizes = {}
    for number, part in enumerate(text.split(",")):
        match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)\s*", part)
        size = int(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
        if size < 1:
            raise InputError(
                f"--plan: {part!r:.80} is no amount of memory; give one for each device, such as 12GiB,12GiB "
                f"(units: {', '.join(UNITS)})"
            )
        sizes[number] = size
    return sizes


def find_subject(path: Path | None, mmproj: Path | None, int4: bool) -> Subject:
    """The model at a path: a checkpoint folder by the headers of its files, a config.json, or GGUF files as 16 bit."""
    if path is not None and (path.suffix == ".json" or os.path.isfile(path / "config.json")):
        return _official(path, int4)
    files = find_files(path, mmproj)
    if files.model.is_dir():
        return _official(files.model, int4)
    with GGUFFile(files.model) as language:
        if files.mmproj is None:
            config = read_config(language, None)
        else:
            with GGUFFile(files.mmproj) as projector:
                config = read_config(language, projector)
    return _computed("GGUF files, loaded", config, int4)


def _official(path: Path, int4: bool) -> Subject:
    values = read_json(path / "config.json" if path.is_dir() else path)
    config = official_config(values)
    settings = values.get("quantization_config")
    stored_int4 = isinstance(settings, Mapping) and settings.get("load_in_4bit") is True
    if not (path.is_dir() and any(path.glob("*.safetensors"))):
        return _computed("config.json alone, loaded", config, int4 or stored_int4)
    if int4 and not stored_int4:
        return _computed("checkpoint folder, loaded", config, int4)
    tensors, itemsize = stored_tensors(path)
    kind = "checkpoint folder, in int4" if stored_int4 else "checkpoint folder, as stored"
    return Subject(kind, config, stored_bytes(config, tensors), itemsize)


def _computed(kind: str, config: ModelConfig, int4: bool) -> Subject:
    return Subject(f"{kind} in {'int4' if int4 else '16 bit'}", config, computed_bytes(config, int4=int4), 2)


def stored_tensors(folder: Path) -> tuple[dict[str, int], int]:
    """Bytes of each tensor in a folder, by the headers of its files, and of a number of the unquantised ones."""
    sizes, itemsize = {}, 2
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    held = file.get_slice(name)
                    item = ITEM_BYTES.get(held.get_dtype())
                    if item is None:
                        raise ModelFileError(
                            f"{path}: tensor {name!r:.200} holds {held.get_dtype()}; {', '.join(ITEM_BYTES)} are known"
                        )
                    sizes[name] = item * prod(held.get_shape())
                    if name == NORM:
                        itemsize = item
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{path} is not a sound safetensors file: {error}") from None
    return sizes, itemsize
