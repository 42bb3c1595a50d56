"""Finds a model's files and brings it into memory: the one way a model is loaded, whoever asks.

Files are data only: GGUF and safetensors. Pickles are refused, code and templates inside files are never run.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from handlens.checkpoint import PICKLE_SUFFIXES, open_checkpoint
from handlens.config import ModelConfig
from handlens.cpu.backend import CpuBackend
from handlens.engine.engine import Engine
from handlens.errors import InputError, ModelFileError
from handlens.gguf.blocks import Tensor
from handlens.gguf.keys import is_projector, read_config
from handlens.gguf.names import POSITION_TABLE, fix_ffn_names, language_names, vision_names
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
    if files.model.is_dir():
        checkpoint = open_checkpoint(files.model, position_mode=position_mode)
        backend = CpuBackend(checkpoint.config, checkpoint.language, checkpoint.vision)
        return LoadedModel(files, checkpoint.config, open_tokenizer(files.model), Engine(backend))
    language = GGUFFile(files.model)
    projector = GGUFFile(files.mmproj) if files.mmproj else None
    config = read_config(language, projector, position_mode=position_mode)
    tokenizer = Tokenizer.from_gguf(language.metadata)
    backend = CpuBackend(config, *read_tensors(config, language, projector))
    return LoadedModel(files, config, tokenizer, Engine(backend))


def read_tensors(
    config: ModelConfig, language: GGUFFile, projector: GGUFFile | None
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The tensors of the language model and of the vision side, ffn names by role. Loading is strict: a tensor that is
    missing or has no place in the model is named in a ModelFileError."""
    layers, tied = config.llm.num_hidden_layers, "output.weight" not in language.tensors
    wanted = {language: set(language_names(layers, tied=tied))}
    ignored = {"rope_freqs.weight", POSITION_TABLE}
    if config.vision is None:
        _check_names(language, wanted[language], ignored)
        return language.tensors, None
    projector = projector or language
    vision_wanted = set(vision_names(config.vision.num_hidden_layers))
    wanted[projector] = wanted.get(projector, set()) | vision_wanted
    for file, names in wanted.items():
        _check_names(file, names, ignored)
    vision = {name: projector.tensors[name] for name in projector.tensors if name in vision_wanted}
    return language.tensors, fix_ffn_names(vision, config.vision.hidden_size, config.vision.intermediate_size)


def _check_names(file: GGUFFile, wanted: set[str], ignored: set[str]) -> None:
    missing = sorted(wanted - file.tensors.keys())
    extra = sorted(file.tensors.keys() - wanted - ignored)
    if missing or extra:
        problems = [f"lacks {_some(missing)}"] * bool(missing) + [f"holds {_some(extra)} of no known use"] * bool(extra)
        raise ModelFileError(f"{file.path} {' and '.join(problems)}; it is incomplete or of another model")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a language file or in a checkpoint folder."""
    if path.is_dir():
        return Tokenizer.from_file(path / "tokenizer.json")
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
    if path.suffix in PICKLE_SUFFIXES:
        raise ModelFileError(
            f"{path} looks like a pickle, which can run code when it is read; give a GGUF file or a safetensors folder"
        )
    if path.is_dir():
        if (path / "config.json").exists():
            return ModelFiles(path, None)
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
