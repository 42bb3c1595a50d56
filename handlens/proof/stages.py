"""The model as a row of stages, which the fast arithmetic and the slow truth can compute from the same input."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from handlens.config import ModelConfig
from handlens.cpu import reference
from handlens.cpu.llama import KVCache, Llama
from handlens.cpu.vision import Resampler, VisionTower
from handlens.gguf.blocks import Tensor
from handlens.images import cut, patches
from handlens.positions import patch_position_ids
from handlens.proof.probe import probe_picture


class Parts(NamedTuple):
    """A model taken apart; a side that is not there is None."""

    llama: Llama | None
    tower: VisionTower | None
    resampler: Resampler | None


@dataclass(frozen=True)
class Stage:
    """One step of the computation. `run(parts, x)` gives its output from the output x of the stage before (None for the
    first); `residual` says that the output is x plus what the stage made, and only that is judged."""

    name: str
    run: Callable[[Parts, np.ndarray | None], np.ndarray]
    residual: bool = False


def truth(config: ModelConfig, language: Mapping[str, Tensor], vision: Mapping[str, Tensor] | None) -> Parts:
    """The model in plain numpy, its weights dequantised when they are used."""
    llama = Llama(config.llm, _vectors_dense(language), reference)
    if config.vision is None:
        return Parts(llama, None, None)
    weights = _vectors_dense(vision)
    return Parts(llama, VisionTower(config.vision, weights, reference), Resampler(config.resampler, weights, reference))


def vision_stages(config: ModelConfig) -> list[Stage]:
    """From the pixels of the probe picture to its query vectors."""
    vision = config.vision
    sliced = cut(probe_picture(), config.slices, vision.image_mean, vision.image_std)
    cells = patches(sliced.slices[0], vision.patch_size)
    tgt_size = rows, cols = sliced.plan.tgt_sizes[0]
    ids = patch_position_ids(vision.position_mode, rows, cols, rows * cols, vision.position_side)
    return [
        Stage("patch embedding", lambda m, _: m.tower.embed(cells, ids, m.tower.position_table(tgt_size))),
        *(
            # A block may overwrite its input, which others need.
            Stage(f"vision block {index}", lambda m, x, index=index: m.tower.layer(x.copy(), index), residual=True)
            for index in range(vision.num_hidden_layers)
        ),
        Stage("vision norm", lambda m, x: m.tower.post_norm(x)),
        Stage("resampler", lambda m, x: m.resampler.forward(x, tgt_size)),
    ]


def language_stages(config: ModelConfig, ids: np.ndarray) -> list[Stage]:
    """From the ids [n] of a text to its logits."""

    def block(m: Parts, x: np.ndarray, index: int) -> np.ndarray:
        rotation = m.llama.ops.rope_table(np.arange(len(x)), m.llama.frequencies)
        return m.llama.layer(x, index, rotation, [slice(0, len(x))], [KVCache(config.llm)])

    return [
        Stage("token embedding", lambda m, _: m.llama.embed(ids)),
        *(
            Stage(f"language block {index}", lambda m, x, index=index: block(m, x, index), residual=True)
            for index in range(config.llm.num_hidden_layers)
        ),
        Stage("logits", lambda m, x: m.llama.logits(x)),
    ]


def chain(parts: Parts, stages: Sequence[Stage]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, output) of each stage, one fed with the other's output."""
    x = None
    for stage in stages:
        x = stage.run(parts, x)
        yield stage.name, x


def errors(
    slow: Parts, fast: Parts, stages: Sequence[Stage], judged: Sequence[str]
) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
    """(name, (error, slow output)) of the stages whose names are `judged`: how far the fast output is from the slow one
    on the same input, root mean square, as a share of what the stage made. Stages between are computed the fast way;
    where there are none, the slow outputs are those of the `chain`."""
    x = None
    for stage in stages:
        with np.errstate(all="ignore"):  # the distance of numbers that are not finite is infinite
            found = stage.run(fast, x)
            wanted = stage.run(slow, x) if stage.name in judged else found
        if stage.name in judged:
            yield stage.name, (distance(found, wanted, wanted - x if stage.residual else wanted), wanted)
        x = wanted


def distance(found: np.ndarray, wanted: np.ndarray, scale: np.ndarray) -> float:
    """The root mean square of found - wanted as a share of that of `scale`; infinite where numbers are not finite."""
    if not (np.isfinite(found).all() and np.isfinite(scale).all()):
        return float("inf")
    norm = float(np.sqrt(np.mean(np.square(scale, dtype=np.float64))))
    error = float(np.sqrt(np.mean(np.square(found - wanted, dtype=np.float64))))
    return error / norm if norm else (float("inf") if error else 0.0)


def _vectors_dense(tensors: Mapping[str, Tensor]) -> dict[str, reference.Weight]:
    """Vectors as arrays, matrices as they are."""
    return {name: tensor.dequantize() if len(tensor.shape) == 1 else tensor for name, tensor in tensors.items()}
