"""How long one slice takes on the kernels, beside the limits of the same run.

    python -m benchmarks.vision
    python -m benchmarks.vision --precision f32 --layers 4 --rounds 3

runs the vision tower and the resampler of MiniCPM-Llama3-V 2.5 with random weights on one slice of 448 x 448 pixels,
and attention alone, and prints Markdown tables. With fewer layers than 27 the tower's time is scaled up. Each round
measures the peaks of the numbers that are multiplied fastest and of floats (see `benchmarks.cpu`) and then the parts,
and shares are medians of the rounds' ratios. The time of a slice is also given times the first peak of its round: how
many operations could have been done, which stays the same when other work slows everything.
"""

import argparse
from dataclasses import replace

import numpy as np

from handlens.config import ResamplerConfig, VisionConfig
from handlens.cpu import ops
from handlens.cpu.backend import EXACT, TABLES, VISION_PRECISIONS, choose_precision
from handlens.cpu.threads import thread_count
from handlens.cpu.vision import Resampler, VisionTower, _layer_shapes, _with_bias
from handlens.gguf.blocks import Tensor
from handlens.measure import RATE_ROUNDS, fastest_numbers, seconds

SIDE = 32
PATCHES = SIDE * SIDE
TOWER = VisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
RESAMPLER = ResamplerConfig(query_num=96, embed_dim=4096, kv_dim=1152, num_heads=32)
LAYERS = TOWER.num_hidden_layers
#: The attention of the tower as it is in its precision: in bf16 products are those of bfloat16 numbers.
IN_BF16 = "ViT, one layer, as in the tower"
#: Attention alone: name -> (queries, keys, heads, key-value heads, width of a head).
ATTENTIONS = {
    IN_BF16: (1024, 1024, 16, 16, 72),
    "ViT, one layer": (1024, 1024, 16, 16, 72),
    "resampler": (96, 1024, 32, 32, 128),
    "Llama prefill 1000, one layer": (1000, 1000, 32, 8, 128),
    "Llama decode at 1000, one layer": (1, 1000, 32, 8, 128),
}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--precision", choices=VISION_PRECISIONS, default=choose_precision(None, ops))
    parser.add_argument("--threads", type=int, default=thread_count())
    args = parser.parse_args()
    tower, resampler = random_model(args.layers, args.precision)
    ops.native.set_threads(args.threads)
    isa, in_bf16 = ops.chosen_isa(), args.precision == "bf16"
    rng = np.random.default_rng(1)
    patches = rng.uniform(-1, 1, (PATCHES, 588)).astype(np.float32)
    inputs = {name: random_attention(rng, *sizes) for name, sizes in ATTENTIONS.items()}
    matrices, exact, of_tower, of_resampler = operations(LAYERS)
    peaks, slices, shares = [], [], []
    for _ in range(args.rounds):
        fastest, floating = (rate(isa, RATE_ROUNDS) for rate in (ops.native.fastest_rate, ops.native.float_rate))
        peaks.append((fastest, floating))
        slices.append(slice_seconds(tower, resampler, patches))
        quick = floating if args.precision == "f32" else fastest
        least = matrices / quick + exact / (quick if in_bf16 else floating)
        least += of_tower / (quick if in_bf16 else floating) + of_resampler / floating
        shares.append([least / sum(slices[-1]), sum(slices[-1]) * fastest / 1e9])
        for name, (causal, *arrays) in inputs.items():
            taken = seconds(ops._attend, *arrays, causal, None, name == IN_BF16 and in_bf16)
            work = attention_operations(*ATTENTIONS[name]) / (2 if causal and len(arrays[0]) > 1 else 1)
            shares[-1] += [taken * 1e3, work / taken / floating]
    fastest, floating = np.median(peaks, axis=0) / 1e9
    numbers = fastest_numbers(isa)
    share, possible, *alone = np.median(shares, axis=0)
    in_tower, in_resampler = np.median(slices, axis=0)
    print(f"{isa}, {args.threads} threads, {args.precision}, medians of {args.rounds} rounds\n")
    print(
        "| limit | measured |\n|---|---:|\n"
        f"| {numbers} peak | {fastest:.0f} GOPS |\n| fp32 peak | {floating:.0f} GFLOPS |\n"
    )
    print("| one slice | time |\n|---|---:|")
    print(f"| vision tower | {in_tower:.2f} s |\n| resampler | {in_resampler:.2f} s |")
    print(f"| both | {in_tower + in_resampler:.2f} s |\n| the peaks' least time, as a share of it | {share:.0%} |")
    print(f"| time x {numbers} peak | {possible:.0f} GOP |\n")
    print("| attention | time | of the fp32 peak |\n|---|---:|---:|")
    for name, taken, part in zip(inputs, alone[::2], alone[1::2], strict=True):
        print(f"| {name} | {taken:.2f} ms | {part:.0%} |")


def random_model(layers: int, precision: str) -> tuple[VisionTower, Resampler]:
    """The tower and the resampler; all layers have the same numbers, in memory of their own."""
    config, resampler = replace(TOWER, num_hidden_layers=layers), RESAMPLER
    width, side, patch = config.hidden_size, config.position_side, config.patch_size
    ends = _with_bias({"patch_embd": (width, 3, patch, patch), "post_ln": (width,)})
    shapes = {f"v.{name}": shape for name, shape in ends.items()} | {"v.position_embd.weight": (side**2, width)}
    weights = {name: random_weight(name, shape, precision) for name, shape in shapes.items()}
    tensors = {name: random_tensor(name, shape) for name, shape in _layer_shapes(config).items()}
    for index in range(layers):
        weights |= {f"v.blk.{index}.{name}": place(name, tensor, precision) for name, tensor in tensors.items()}
    wide, kv = resampler.embed_dim, resampler.kv_dim
    matrices = dict.fromkeys(("attn.q", "attn.k", "attn.v", "attn.out"), (wide, wide))
    shapes = _with_bias(matrices | dict.fromkeys(("ln_q", "ln_kv", "ln_post"), (wide,)))
    shapes |= {"query": (resampler.query_num, wide), "kv.weight": (wide, kv), "proj.weight": (wide, wide)}
    weights |= {
        f"resampler.{name}": random_weight(f"resampler.{name}", shape, precision) for name, shape in shapes.items()
    }
    return VisionTower(config, weights, ops), Resampler(resampler, weights, ops)


def random_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    rng = np.random.default_rng(0)
    if len(shape) == 1:
        numbers = 0.1 * rng.standard_normal(shape) + name.endswith("weight")
    else:
        numbers = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(np.prod(shape[1:]))
    return Tensor.from_array(numbers.astype(np.float32), "F32" if len(shape) == 1 else "F16")


def place(name: str, tensor: Tensor, precision: str) -> np.ndarray | ops.PackedWeight:
    if len(tensor.shape) == 1 or name in TABLES:
        return tensor.dequantize()
    return ops.pack(tensor, precision=None if name in EXACT and precision == "int8" else precision)


def random_weight(name: str, shape: tuple[int, ...], precision: str) -> np.ndarray | ops.PackedWeight:
    return place(name, random_tensor(name, shape), precision)


def random_attention(rng: np.random.Generator, n: int, m: int, heads: int, kv_heads: int, width: int) -> tuple:
    """Whether it is causal, and queries, keys and values."""
    q, keys, values = (
        rng.standard_normal(shape, dtype=np.float32)
        for shape in ((n, heads, width), (kv_heads, m, width), (kv_heads, m, width))
    )
    return heads != kv_heads, q, keys, values


def operations(layers: int) -> tuple[float, float, float, float]:
    """Those of a slice in matrices, in matrices that stay floats, in the tower's attention and in the resampler's; a
    multiplication and its addition count as two."""
    config, resampler = TOWER, RESAMPLER
    width, wide = config.hidden_size, resampler.embed_dim
    a_layer = 4 * width**2 + 2 * width * config.intermediate_size
    matrices = PATCHES * (588 * width + layers * a_layer + width * wide + wide**2) + resampler.query_num * 2 * wide**2
    of_tower, of_resampler = (attention_operations(*ATTENTIONS[name]) for name in ("ViT, one layer", "resampler"))
    return 2 * matrices, 2 * PATCHES * wide**2, layers * of_tower, of_resampler


def attention_operations(n: int, m: int, heads: int, kv_heads: int, width: int) -> float:
    return 4 * n * m * heads * width


def slice_seconds(tower: VisionTower, resampler: Resampler, patches: np.ndarray) -> tuple[float, float]:
    """How long the tower, scaled up to all its layers, and the resampler take."""
    features = []
    of_tower = seconds(lambda: features.append(tower.encode(patches, (SIDE, SIDE), PATCHES)))
    of_resampler = seconds(resampler.forward, features[0], (SIDE, SIDE))
    return of_tower * LAYERS / tower.config.num_hidden_layers, of_resampler


if __name__ == "__main__":
    main()
