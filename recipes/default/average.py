"""Puts a run's weights between those of two: `python -m recipes.default.average --first RUN --second RUN --out RUN`.

A short run in small batches ends a little beside what it learned, and forgets at its edges. Between where it began and
where it ended both are better than at either end for some tasks (LOG.md); which share is best has to be measured.
"""

import argparse
import shutil
from pathlib import Path

import torch

from handlens.errors import HandlensError, InputError
from handlens.tokenizer import Tokenizer
from recipes.default.model import DenseHead, Mini
from recipes.default.presets import PRESETS, model_config
from recipes.default.weights import State, load_run, read_state, save_run

TOKENIZER = "tokenizer.json"


@torch.no_grad()
def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Makes the run `out`: the share of the second run's weights, and the rest of the first one's; its state."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder")
    state = read_state(second)
    if read_state(first).preset != state.preset:
        raise InputError(f"{first} and {second} are runs of different presets")
    (model, head), (other, other_head) = (loaded(run, state) for run in (first, second))
    for mine, theirs in zip(_weights(model, head), _weights(other, other_head), strict=True):
        mine.lerp_(theirs, share)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(second / TOKENIZER, out)
    save_run(out, model.config, model, head, state, half=False)


def loaded(run: Path, state: State) -> tuple[Mini, DenseHead]:
    """The model and the dense head of a run, with the classes of a state."""
    config = model_config(PRESETS[state.preset], Tokenizer.from_file(run / TOKENIZER).vocab_size)
    model, head = Mini(config), DenseHead(config.vision.hidden_size, len(state.classes))
    load_run(run, model, head, state.classes)
    return model, head


def _weights(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--first", type=Path, required=True, help="the folder of a run, such as resume.py makes")
    add("--second", type=Path, required=True, help="the folder of a run that went on from it")
    add("--share", type=float, default=0.5, help="of the second one, from 0 to 1 (default 0.5)")
    add("--out", type=Path, required=True, help="the folder to make, for export.py's --run")
    options = parser.parse_args()
    try:
        average(options.first, options.second, options.share, options.out)
    except HandlensError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
