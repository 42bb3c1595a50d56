"""How far the vision side in bf16 or int8 is from float32 at full size.

    python -m benchmarks.vision_precision

sends one slice through the 27 layers and the resampler of MiniCPM-Llama3-V 2.5 with random weights, in one precision
and in float32, and prints the cosines between the two for the features after some layers and for the query vectors.
Weights differ from row to row, and a few channels of each norm are far larger than the others, as in trained towers.
Query vectors have much in common with each other, so their cosines without their mean are printed as well. It takes a
minute.
"""

import argparse
import math
from dataclasses import replace

import numpy as np

from benchmarks.vision import PATCHES, RESAMPLER, SIDE, TOWER
from handlens.cpu import ops
from handlens.cpu.backend import VISION_PRECISIONS, choose_precision
from handlens.cpu.vision import Resampler, VisionTower, _layer_shapes, _with_bias
from handlens.gguf.blocks import Tensor

SHOWN = (0, 8, 17, 26)
OUTLIERS = 6

Weights = dict[str, np.ndarray | Tensor]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=VISION_PRECISIONS, default=choose_precision(None, ops))
    args = parser.parse_args()
    rng, precisions = np.random.default_rng(args.seed), ("f32", args.precision)
    print(f"| one slice, {args.precision} against float32 | least cosine | mean | least without the mean |")
    print("|---|---:|---:|---:|")
    features = dict.fromkeys(precisions)
    for index in range(TOWER.num_hidden_layers):
        layer = random_weights(rng, {f"v.blk.0.{name}": shape for name, shape in _layer_shapes(TOWER).items()})
        if index == 0:
            ends, patches = tower_ends(rng), random_patches(rng)
        for precision in precisions:
            weights = packed(ends | layer, precision)
            tower = VisionTower(replace(TOWER, num_hidden_layers=1), weights, ops)
            if index == 0:
                features[precision] = tower.embed(patches, np.arange(PATCHES))
            features[precision] = tower.layer(features[precision], 0)
            if index == TOWER.num_hidden_layers - 1:
                features[precision] = tower.post_norm(features[precision])
        if index in SHOWN:
            show(f"features after layer {index + 1}", features)
    weights = resampler_weights(rng)
    show("query vectors", {name: queries(weights, name, x) for name, x in features.items()})


def random_weights(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> Weights:
    return {name: random_weight(rng, name, shape) for name, shape in shapes.items()}


def random_weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray | Tensor:
    if len(shape) > 1:
        numbers = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
        numbers *= np.exp(0.3 * rng.standard_normal((len(numbers),) + (1,) * (len(shape) - 1))).astype(np.float32)
        return Tensor.from_array(numbers, "F16")
    if name.endswith("bias"):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)
    scales = np.exp(0.5 * rng.standard_normal(shape)).astype(np.float32)
    scales[rng.integers(0, len(scales), OUTLIERS)] *= 8
    return scales


def tower_ends(rng: np.random.Generator) -> Weights:
    """What is before the first and behind the last layer."""
    width, patch = TOWER.hidden_size, TOWER.patch_size
    ends = _with_bias({"patch_embd": (width, 3, patch, patch), "post_ln": (width,)})
    table = 0.5 * rng.standard_normal((TOWER.position_side**2, width), dtype=np.float32)
    return random_weights(rng, {f"v.{name}": shape for name, shape in ends.items()}) | {"v.position_embd.weight": table}


def resampler_weights(rng: np.random.Generator) -> Weights:
    wide, kv = RESAMPLER.embed_dim, RESAMPLER.kv_dim
    matrices = dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.out"), (wide, wide))
    shapes = _with_bias(matrices | dict.fromkeys(("ln_q", "ln_kv", "ln_post"), (wide,)))
    shapes |= {"kv.weight": (wide, kv), "proj.weight": (wide, wide)}
    weights = random_weights(rng, {f"resampler.{name}": shape for name, shape in shapes.items()})
    return weights | {"resampler.query": rng.standard_normal((RESAMPLER.query_num, wide), dtype=np.float32)}


def random_patches(rng: np.random.Generator) -> np.ndarray:
    """Patches [L, 588] with a brightness of their own and noise on it."""
    numbers = rng.uniform(-1, 1, (PATCHES, 1)) + 0.3 * rng.standard_normal((PATCHES, 588))
    return np.clip(numbers, -1, 1).astype(np.float32)


def packed(weights: Weights, precision: str) -> dict[str, np.ndarray | ops.PackedWeight]:
    return {
        name: ops.pack(weight, precision=precision) if isinstance(weight, Tensor) else weight
        for name, weight in weights.items()
    }


def queries(weights: Weights, precision: str, features: np.ndarray) -> np.ndarray:
    return Resampler(RESAMPLER, packed(weights, precision), ops).forward(features, (SIDE, SIDE))


def show(what: str, vectors: dict[str, np.ndarray]) -> None:
    """Prints a line of the table for the vectors [n, D] in each precision."""
    exact, small = (each.astype(np.float64) for each in vectors.values())
    mean = exact.mean(axis=0)
    found, centred = cosines(exact, small), cosines(exact - mean, small - mean)
    print(f"| {what} | {found.min():.5f} | {found.mean():.5f} | {centred.min():.3f} |", flush=True)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


if __name__ == "__main__":
    main()
