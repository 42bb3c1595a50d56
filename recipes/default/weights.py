"""What a run leaves behind: a checkpoint that handlens opens as it is, the dense head beside it, and where it stands.

OUT/model is a folder in the official layout (shards of at most 15 MB), OUT/head.safetensors the head, OUT/state.json
the time that was trained. A run goes on from them alone.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save

from handlens.atomic import appearing, replacing
from handlens.checkpoint import read_checkpoint
from handlens.config import ModelConfig, official_values, preprocessor_values
from handlens.errors import ModelFileError
from handlens.gguf.blocks import Tensor
from handlens.shards import write_shards
from recipes.default.model import DenseHead, Mini

SHARD_BYTES = 15 << 20
MODEL, HEAD, STATE = "model", "head.safetensors", "state.json"


@dataclass
class State:
    """How far training came: over all runs, in minutes of wall clock, steps and samples."""

    preset: str
    classes: tuple[str, ...]  # of the dense head
    minutes: float = 0.0
    steps: int = 0
    samples: int = 0


def save_run(out: Path, config: ModelConfig, model: Mini, head: DenseHead, state: State, half: bool) -> None:
    """Writes the weights, as bfloat16 or float32. The old ones stay until the new ones are complete."""
    new, old = out / f"{MODEL}.new", out / f"{MODEL}.old"
    shutil.rmtree(new, ignore_errors=True)
    tensors = {name: _stored(tensor, half) for name, tensor in model.state_dict().items()}
    with appearing(new, ModelFileError) as folder:
        values = official_values(config) | {"tie_word_embeddings": True}
        for name, content in (("config.json", values), ("preprocessor_config.json", preprocessor_values(config))):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.copy(out / "tokenizer.json", folder)
        write_shards(folder, tensors, SHARD_BYTES)
    with replacing(out / HEAD, ModelFileError) as file:
        file.write(save({name: tensor.contiguous() for name, tensor in head.state_dict().items()}))
    with replacing(out / STATE, ModelFileError, encoding="utf-8") as file:
        json.dump(asdict(state), file, ensure_ascii=False)
    shutil.rmtree(old, ignore_errors=True)
    if (out / MODEL).exists():
        (out / MODEL).rename(old)
    new.rename(out / MODEL)
    shutil.rmtree(old, ignore_errors=True)


def read_state(out: Path) -> State:
    """How far the run in a folder came."""
    return State(**json.loads((out / STATE).read_text(encoding="utf-8")))


def load_run(out: Path, model: Mini, head: DenseHead, classes: tuple[str, ...]) -> State:
    """Puts the weights of a run into model and head and returns its state. Classes that the saved head does not have
    keep the weights that they have."""
    state = read_state(out)
    folder = out / MODEL if (out / MODEL).exists() else out / f"{MODEL}.old"
    _, stored = read_checkpoint(folder)
    model.load_state_dict({name: torch.from_numpy(Tensor.from_bits(x).dequantize()) for name, x in stored.items()})
    saved = {name: tensor.float() for name, tensor in load_file(out / HEAD).items()}
    places = {name: row for row, name in enumerate(state.classes)}
    known = [row for row, name in enumerate(classes) if name in places]
    rows = [places[classes[row]] for row in known]
    for name, fresh in head.classify.state_dict(prefix="classify.").items():
        saved[name] = fresh.index_copy(0, torch.tensor(known), saved[name][rows])
    head.load_state_dict(saved)
    return replace(state, classes=classes)


def _stored(tensor: torch.Tensor, half: bool) -> Tensor:
    if not half:
        return Tensor.from_bits(tensor.detach().float().cpu().numpy())
    return Tensor.from_bits(
        tensor.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
    )
