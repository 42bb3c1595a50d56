"""The vision tower beside OpenVINO in int8, in one run.

    pip install openvino nncf transformers torch
    python -m benchmarks.openvino_speed --layers 9

Both sides run the tower of MiniCPM-Llama3-V 2.5 (SigLIP-400M, 448 x 448 pixels, 1024 patches) with random weights:
transformers' module, which NNCF quantises to int8 (weights and activations, as it does for transformers) and OpenVINO
compiles for latency, and our kernels in the precision that is the default here. A round runs one after the other, so
other work on the machine slows both; the ratio is the median of the rounds'. With fewer layers than 27 both towers are
cut alike. What a machine without AMX does: `HANDLENS_ISA=avx512vnni ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI` before the
command, for the two sides.
"""

import argparse

import numpy as np

from benchmarks.vision import LAYERS, PATCHES, SIDE, TOWER, random_model
from handlens.cpu import ops
from handlens.cpu.backend import choose_precision
from handlens.cpu.threads import thread_count
from handlens.measure import seconds

#: Random pictures that NNCF measures ranges of activations with.
CALIBRATED_WITH = 2


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=thread_count())
    args = parser.parse_args()
    theirs, version = compiled(args.layers, args.threads)
    tower, _ = random_model(args.layers, choose_precision(None, ops))
    ops.native.set_threads(args.threads)
    rng = np.random.default_rng(1)
    picture = rng.uniform(-1, 1, (1, 3, SIDE * 14, SIDE * 14)).astype(np.float32)
    patches = rng.uniform(-1, 1, (PATCHES, 588)).astype(np.float32)

    def ours() -> None:
        tower.encode(patches, (SIDE, SIDE), PATCHES)

    for warm_up in (ours, lambda: theirs(picture)):
        warm_up()
    times = np.array([(seconds(ours), seconds(theirs, picture)) for _ in range(args.rounds)])
    print(f"{ops.chosen_isa()}, {args.threads} threads, {args.layers} layers, medians of {args.rounds} rounds\n")
    ratios = times[:, 1] / times[:, 0]
    mine, other = np.median(times, axis=0) * 1e3
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"| | handlens | OpenVINO {version} | times as fast | in each round |\n|---|---:|---:|---:|---|")
    print(f"| tower | {mine:.0f} ms | {other:.0f} ms | {np.median(ratios):.2f} | {each} |")


def compiled(layers: int, threads: int):
    """The compiled tower, which is called with pixels [1, 3, 448, 448], and OpenVINO's version."""
    import nncf
    import openvino
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=TOWER.hidden_size,
        intermediate_size=TOWER.intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=TOWER.num_attention_heads,
        image_size=SIDE * 14,
        patch_size=14,
        vision_use_head=False,
    )
    torch.manual_seed(0)
    module = SiglipVisionModel._from_config(config, attn_implementation="sdpa").eval()
    pictures = [torch.rand(1, 3, SIDE * 14, SIDE * 14) * 2 - 1 for _ in range(CALIBRATED_WITH)]
    model = openvino.convert_model(module, example_input={"pixel_values": pictures[0]})
    model.reshape({model.inputs[0]: list(pictures[0].shape)})
    model = nncf.quantize(
        model,
        nncf.Dataset(pictures, lambda picture: picture.numpy()),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATED_WITH,
    )
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    version = openvino.get_version().split("-")[0]
    return openvino.Core().compile_model(model, "CPU", settings), version


if __name__ == "__main__":
    main()
