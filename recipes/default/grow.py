"""Begins a larger preset with the tower of a trained run: `python -m recipes.default.grow`, see `--help`.

The tower takes longest to learn, so it is kept and only gets more layers. A new layer adds nothing to the stream at
first: the larger tower has the features of the small one, and the dense head still fits. Resampler and decoder, which
soon learn to copy what the tower has read, begin anew.
"""

import argparse
import shutil
from pathlib import Path

import torch

from handlens.errors import HandlensError, InputError
from handlens.tokenizer import Tokenizer
from recipes.default.batch import CLASSES
from recipes.default.model import DenseHead, Mini, VisionTower
from recipes.default.presets import PRESETS, model_config
from recipes.default.start import initialise
from recipes.default.weights import STATE, State, load_run, read_state, save_run


def grow(run: Path, preset: str, out: Path, seed: int = 0) -> None:
    """Writes the folder of a run; InputError if OUT has one already or the preset's tower is of another width."""
    if (out / STATE).exists():
        raise InputError(f"{out} holds a run already; name a new folder")
    old = read_state(run).preset
    if PRESETS[old].vision_width != PRESETS[preset].vision_width:
        widths = f"{PRESETS[old].vision_width} and {PRESETS[preset].vision_width}"
        raise InputError(f"the towers of the presets {old} and {preset} are {widths} wide: nothing can be kept")
    vocab_size = Tokenizer.from_file(run / "tokenizer.json").vocab_size
    (small, small_head), (large, large_head) = (_begun(name, vocab_size, seed) for name in (old, preset))
    load_run(run, small, small_head, CLASSES)
    grow_tower(large.vpm, small.vpm)
    large_head.load_state_dict(small_head.state_dict())
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "tokenizer.json", out)
    save_run(out, large.config, large, large_head, State(preset, CLASSES), half=False)


@torch.no_grad()
def grow_tower(large: VisionTower, small: VisionTower) -> None:
    """Gives a tower the features of another one with as many layers or fewer, which are spread evenly over its own."""
    large.embeddings.load_state_dict(small.embeddings.state_dict())
    large.post_layernorm.load_state_dict(small.post_layernorm.state_dict())
    layers, kept = large.encoder["layers"], small.encoder["layers"]
    places = {int((number + 0.5) * len(layers) / len(kept)): layer for number, layer in enumerate(kept)}
    for place, layer in enumerate(layers):
        if place in places:
            layer.load_state_dict(places[place].state_dict())
            continue
        for output in (layer.self_attn["out_proj"], layer.mlp["fc2"]):
            output.weight.zero_()
            output.bias.zero_()


def _begun(preset: str, vocab_size: int, seed: int) -> tuple[Mini, DenseHead]:
    config = model_config(PRESETS[preset], vocab_size)
    model, head = Mini(config), DenseHead(config.vision.hidden_size, len(CLASSES))
    initialise(model, head, seed)
    return model, head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="the trained run")
    parser.add_argument("--preset", choices=PRESETS, required=True, help="the larger model")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make, for train.py's --out")
    options = parser.parse_args()
    try:
        grow(options.run, options.preset, options.out)
    except HandlensError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.out}: go on with recipes.default.train --preset {options.preset} --out {options.out}")


if __name__ == "__main__":
    main()
