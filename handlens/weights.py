"""Finds a model's files and brings it into memory: the one way a model is loaded, whoever asks.

Files are data only: GGUF and safetensors. Pickles are refused, code and templates inside files are never run.
"""

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlens.checkpoint import PICKLE_SUFFIXES, check_names, open_checkpoint
from handlens.config import ModelConfig
from handlens.cpu.backend import CpuBackend, use_threads
from handlens.cpu.packs import PackStore
from handlens.engine.engine import Engine
from handlens.engine.store import ImageStore
from handlens.errors import InputError, ModelFileError
from handlens.gguf.blocks import Tensor
from handlens.gguf.keys import holds_projector, is_projector, read_config
from handlens.gguf.names import POSITION_TABLE, fix_ffn_names, language_names, vision_names
from handlens.gguf.reader import GGUFFile
from handlens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from handlens.model.generator import TorchGenerator

#: What computes: the device side (numpy) or PyTorch.
BACKENDS = ("cpu", "torch")

#: Names that are not a path are looked up in the folder that this environment variable names.
MODELS_VARIABLE = "HANDLENS_MODELS"

#: Factors of RoPE, which some language files hold.
ROPE_FACTORS = "rope_freqs.weight"

#: What `load()` uses when no model is named.
DEFAULT_MODEL = "handlens-mini"


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model; `mmproj` is None for a language file without a projector beside it."""

    model: Path
    mmproj: Path | None
    is_default: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. `files` is None for one of the PyTorch side that was made or loaded by other means."""

    files: ModelFiles | None
    config: ModelConfig
    tokenizer: Tokenizer
    generator: "Engine | TorchGenerator"
    device: str = "cpu"


def load_model(
    model: str | Path | None = None,
    mmproj: str | Path | None = None,
    *,
    position_mode: str | None = None,
    backend: str | None = None,
    device: Any = None,
    dtype: Any = None,
    threads: int | None = None,
    vision_precision: str | None = None,
    low_memory: bool = False,
    cache_dir: str | Path | None = None,
    prefix_cache_bytes: int = 1 << 30,
) -> LoadedModel:
    """The model at a path (see `find_files`) in memory. `position_mode` replaces the family's.

    `backend` is one of BACKENDS; None is the device side, unless a `device` other than the CPU asks for torch. `device`
    and `dtype` are torch's, or their names; see `model.generator.load_torch`. The other options are those of the device
    side; see `chat.load`.
    """
    options = {
        "threads": threads,
        "vision_precision": vision_precision,
        "low_memory": low_memory,
        "cache_dir": cache_dir,
    }
    if _chosen_backend(backend, device, dtype) == "cpu":
        files = find_files(model, mmproj)
        return _load_cpu(files, position_mode=position_mode, prefix_cache_bytes=prefix_cache_bytes, **options)
    if names := [name for name, value in options.items() if value]:
        raise InputError(f"the backend torch has no {', '.join(names)}; leave that out, or let the backend cpu compute")
    return _load_torch(find_files(model, mmproj), position_mode=position_mode, device=device, dtype=dtype)


def _chosen_backend(backend: str | None, device: Any, dtype: Any) -> str:
    on_cpu = device is None or str(device) == "cpu"
    if backend not in (None, *BACKENDS):
        raise InputError(f"backend is {backend!r}; {' or '.join(BACKENDS)} is wanted")
    if backend == "cpu" and not (on_cpu and dtype is None):
        given = f"device={str(device)!r}" if not on_cpu else f"dtype={str(dtype)!r}"
        raise InputError(f"the backend cpu cannot have {given}, which is for the backend torch")
    return backend or ("cpu" if on_cpu and dtype is None else "torch")


def _load_cpu(
    files: ModelFiles,
    *,
    position_mode: str | None,
    threads: int | None,
    vision_precision: str | None,
    low_memory: bool,
    cache_dir: str | Path | None,
    prefix_cache_bytes: int,
) -> LoadedModel:
    if threads is not None:
        use_threads(threads)
    store = None if cache_dir is None else ImageStore(Path(cache_dir))
    packs = None if store is None else PackStore(store.folder, weight_files(files))
    if files.model.is_dir():
        checkpoint = open_checkpoint(files.model, position_mode=position_mode)
        config, tensors = checkpoint.config, (checkpoint.language, checkpoint.vision)
        tokenizer = open_tokenizer(files.model)
    else:
        config, tensors, tokenizer = open_pair(files, position_mode=position_mode)
    check_vocabulary(files.model, tokenizer, config)
    backend = CpuBackend(config, *tensors, vision_precision=vision_precision, low_memory=low_memory, packs=packs)
    engine = Engine(backend, prefix_cache_bytes=prefix_cache_bytes, store=store)
    return LoadedModel(files, config, tokenizer, engine)


def _load_torch(files: ModelFiles, **options: Any) -> LoadedModel:
    try:
        from handlens.model.generator import load_torch
    except ModuleNotFoundError as error:
        raise InputError(
            f'the backend torch needs packages that are not installed ({error}): pip install "handlens[torch]"'
        ) from error
    return load_torch(files, **options)


def check_vocabulary(path: Path, tokenizer: Tokenizer, config: ModelConfig) -> None:
    """ModelFileError unless the tokenizer has as many tokens as the model."""
    if tokenizer.vocab_size != config.llm.vocab_size:
        raise ModelFileError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {config.llm.vocab_size}; "
            "they belong to different models"
        )


def open_pair(
    files: ModelFiles, *, position_mode: str | None = None
) -> tuple[ModelConfig, tuple[dict[str, Tensor], dict[str, Tensor] | None], Tokenizer]:
    """What GGUF files hold: config, the tensors of `read_tensors`, tokenizer."""
    language = GGUFFile(files.model)
    projector = GGUFFile(files.mmproj) if files.mmproj else None
    config = read_config(language, projector, position_mode=position_mode)
    return config, read_tensors(config, language, projector), _tokenizer_in(language)


def read_tensors(
    config: ModelConfig, language: GGUFFile, projector: GGUFFile | None
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The tensors of the language model and of the vision side, ffn names by role. Loading is strict: a tensor that is
    missing or has no place in the model is named in a ModelFileError."""
    tied = "output.weight" not in language.tensors
    for_language = set(language_names(config.llm.num_hidden_layers, tied=tied))
    for_vision = set(vision_names(config.vision.num_hidden_layers, config.family.tower)) if config.vision else set()
    wanted = {language: for_language, projector: for_vision} if projector else {language: for_language | for_vision}
    for file, names in wanted.items():
        check_names(file.path, file.tensors.keys() - {ROPE_FACTORS, POSITION_TABLE}, names)
    for_language |= {ROPE_FACTORS} & language.tensors.keys()
    tensors = {name: language.tensors[name] for name in for_language}
    if config.vision is None:
        return tensors, None
    vision = {name: (projector or language).tensors[name] for name in for_vision}
    return tensors, fix_ffn_names(vision, config.vision.hidden_size, config.vision.intermediate_size)


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a language file or in a checkpoint folder."""
    if path.is_dir():
        return Tokenizer.from_file(path / "tokenizer.json")
    with GGUFFile(path) as language:
        return _tokenizer_in(language)


def _tokenizer_in(language: GGUFFile) -> Tokenizer:
    try:
        return Tokenizer.from_gguf(language.metadata)
    except ModelFileError as error:
        raise ModelFileError(f"{language.path}: {error}") from None


def find_files(model: str | Path | None = None, mmproj: str | Path | None = None) -> ModelFiles:
    """The files that a name stands for.

    `model`: a GGUF file, a folder that holds one language file, a folder with a checkpoint in the official layout, the
    name of one of these below the folder $HANDLENS_MODELS, or None for the shipped default. `mmproj`: a projector file;
    when it is None, the one that is named after the model (NAME.mmproj.gguf) or else the only one in its folder is
    taken, unless the language file holds the projector itself.
    """
    if model is None:
        if mmproj is not None:
            raise InputError(f"a projector ({mmproj}) was given without a model; name the language file as well")
        folder = Path(str(resources.files("handlens") / "assets"))
        return ModelFiles(folder / f"{DEFAULT_MODEL}.gguf", folder / f"{DEFAULT_MODEL}.mmproj.gguf", is_default=True)
    path = _existing(model)
    if path.is_dir():
        if _is_checkpoint(path):
            if mmproj is not None:
                raise InputError(f"{path} is a checkpoint with a projector of its own; load it without {mmproj}")
            return ModelFiles(path, None)
        languages, _, damaged = _gguf_files(path)
        path = _only(languages, damaged, path, "language file")
    elif path.suffix in PICKLE_SUFFIXES:
        raise ModelFileError(
            f"{path} looks like a pickle, which can run code when it is read; give a GGUF file or a safetensors folder"
        )
    if mmproj is not None:
        return ModelFiles(path, _existing(mmproj))
    with GGUFFile(path) as file:
        if holds_projector(file) and not is_projector(file):
            return ModelFiles(path, None)
    _, projectors, damaged = _gguf_files(path.parent)
    own = path.with_name(f"{path.name.removesuffix('.gguf')}.mmproj.gguf")
    if own in projectors:
        return ModelFiles(path, own)
    if not projectors and not damaged:
        return ModelFiles(path, None)
    return ModelFiles(path, _only(projectors, damaged, path.parent, "projector (mmproj) file"))


def weight_files(files: ModelFiles) -> list[Path]:
    """The files that hold a model's tensors."""
    if files.model.is_dir():
        return sorted(files.model.glob("*.safetensors"))
    return [files.model] + ([files.mmproj] if files.mmproj else [])


def _existing(name: str | Path) -> Path:
    """The path that a name stands for; below $HANDLENS_MODELS no name leads out by `..` or an absolute path."""
    try:
        path = Path(os.path.expanduser(name))
    except ValueError:  # no user can have this name
        path = Path(name)
    folder = os.environ.get(MODELS_VARIABLE)
    below = [Path(folder) / path] if folder and not path.is_absolute() and ".." not in path.parts else []
    for candidate in [path, *below]:
        if os.path.exists(candidate):
            return candidate
    where = f" or below {folder}" if folder else f"; the folder ${MODELS_VARIABLE} is not set"
    raise InputError(f"there is no file or folder {str(name)!r}{where}")


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is read as a checkpoint in the official layout; one that holds no model is refused as such."""
    official = os.path.exists(folder / "config.json") and any(folder.glob("*.safetensors"))
    return official or not any(folder.glob("*.gguf"))


def _gguf_files(folder: Path) -> tuple[list[Path], list[Path], list[str]]:
    """The language files and the projectors in a folder, and why other GGUF files there cannot be read."""
    languages, projectors, damaged = [], [], []
    for path in sorted(folder.glob("*.gguf")):
        try:
            with GGUFFile(path, up_to="general.architecture") as file:
                (projectors if is_projector(file) else languages).append(path)
        except ModelFileError as error:
            damaged.append(str(error))
    return languages, projectors, damaged


def _only(found: list[Path], damaged: list[str], folder: Path, kind: str) -> Path:
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder} holds more than one {kind}: {names}; name the one to use")
    # A damaged file may be the one that is wanted: better to stop than to answer without it.
    reasons = f" that can be read ({'; '.join(damaged)})" if damaged else ""
    raise ModelFileError(f"{folder} holds no GGUF {kind}{reasons}; name the file to use")
