"""Finds a model's files and brings it into memory: the one way a model is loaded, whoever asks.

Files are data only: GGUF and safetensors. Pickles are refused, code and templates inside files are never run.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from handlens.config import ModelConfig
from handlens.cpu.backend import CpuBackend
from handlens.engine.engine import Engine
from handlens.errors import InputError, ModelFileError
from handlens.gguf.keys import is_projector, read_config
from handlens.gguf.reader import GGUFFile
from handlens.tokenizer import Tokenizer

#: Names that are not a path are looked up in the folder that this environment variable names.
MODELS_VARIABLE = "HANDLENS_MODELS"

#: What `load()` uses when no model is named.
DEFAULT_MODEL = "tiny-untrained"


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model; `mmproj` is None for a language file without a projector beside it."""

    model: Path
    mmproj: Path | None
    is_default: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory."""

    files: ModelFiles
    config: ModelConfig
    tokenizer: Tokenizer
    generator: Engine


def load_model(
    model: str | Path | None = None, mmproj: str | Path | None = None, *, position_mode: str | None = None
) -> LoadedModel:
    """The model at a path (see `find_files`) in memory. `position_mode` replaces the family's."""
    files = find_files(model, mmproj)
    language = GGUFFile(files.model)
    projector = GGUFFile(files.mmproj) if files.mmproj else None
    config = read_config(language, projector, position_mode=position_mode)
    tokenizer = Tokenizer.from_gguf(language.metadata)
    backend = CpuBackend(config, language, projector)
    return LoadedModel(files, config, tokenizer, Engine(backend))


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a language file."""
    with GGUFFile(path) as language:
        return Tokenizer.from_gguf(language.metadata)


def find_files(model: str | Path | None = None, mmproj: str | Path | None = None) -> ModelFiles:
    """The files that a name stands for.

    `model`: a GGUF file, a folder that holds one language file, a name below the folder $HANDLENS_MODELS, or None for
    the shipped default. `mmproj`: a projector file; when it is None, the only one in the model's folder is taken.
    """
    if model is None:
        if mmproj is not None:
            raise InputError(f"a projector ({mmproj}) was given without a model; name the language file as well")
        folder = Path(str(resources.files("handlens") / "assets"))
        return ModelFiles(folder / f"{DEFAULT_MODEL}.gguf", folder / f"{DEFAULT_MODEL}.mmproj.gguf", is_default=True)
    path = _existing(model)
    if path.is_dir():
        path = _only(list(_gguf_files(path, projectors=False)), path, "language file")
    if mmproj is not None:
        return ModelFiles(path, _existing(mmproj))
    projectors = list(_gguf_files(path.parent, projectors=True))
    if path in projectors:
        raise ModelFileError(
            f"{path} is a projector (mmproj) file; give the language file as the model and this one as mmproj"
        )
    return ModelFiles(path, _only(projectors, path.parent, "projector (mmproj)") if projectors else None)


def _existing(name: str | Path) -> Path:
    path = Path(name).expanduser()
    if path.exists():
        return path
    folder = os.environ.get(MODELS_VARIABLE)
    if folder and not path.is_absolute() and ".." not in path.parts and (Path(folder) / path).exists():
        return Path(folder) / path
    where = f" or below {folder}" if folder else f"; the folder ${MODELS_VARIABLE} is not set"
    raise InputError(f"there is no file or folder {name}{where}")


def _gguf_files(folder: Path, projectors: bool) -> Iterator[Path]:
    """The GGUF files of a folder that are projectors, or those that are not. Damaged ones are left out."""
    for path in sorted(folder.glob("*.gguf")):
        try:
            with GGUFFile(path) as file:
                if is_projector(file) == projectors:
                    yield path
        except ModelFileError:
            continue


def _only(found: list[Path], folder: Path, kind: str) -> Path:
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{folder} holds no GGUF {kind}; name the file itself")
    raise InputError(f"{folder} holds more than one {kind}: {', '.join(p.name for p in found)}; name the one to use")
