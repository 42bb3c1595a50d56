"""Writes seals into model files."""

from pathlib import Path

from handlens.atomic import replacing
from handlens.errors import ModelFileError
from handlens.gguf.writer import write_into
from handlens.proof.check import Tell, open_files, seal_of
from handlens.proof.seal import unsealed_metadata
from handlens.weights import ModelFiles


def seal_files(files: ModelFiles, tell: Tell = lambda what: None) -> tuple[Path, ...]:
    """Writes the seal into each file of a model, in the place of an older one, and gives their paths."""
    opened = open_files(files)
    for file in opened.files:
        seal = seal_of(opened, file, tell)
        tell(f"writing {file.path.name}")
        with replacing(file.path, ModelFileError) as out:
            write_into(out, unsealed_metadata(file) | seal.metadata(), file.tensors, file.alignment)
    return tuple(file.path for file in opened.files)
