"""Turns heads of a run's resampler to the fields of a slice: `python -m recipes.default.regrid --run RUN --out NEW`.

Where training began with strips of single lines, all heads come to look at columns: on a page the rows of a column are
then mixed, and the decoder can't tell its lines apart. This gives every other head the fields of an 8 x 8 grid again,
the left half of each field to one head and the right half to the next. What heads read there (values) and where it goes
stay as they are.
"""

import argparse
import math
import shutil
from pathlib import Path

import torch

from handlens.errors import HandlensError, InputError
from recipes.default.average import TOKENIZER, loaded
from recipes.default.model import Resampler
from recipes.default.start import GRID_SIDE, axis
from recipes.default.weights import read_state, save_run

#: How far the fields reach, in patches: most slices of a page have 14 to 18 along a side.
SPAN = GRID_SIDE + 1.0
#: How sharply rows and columns are told apart: two rows of a column are read as one.
ROW_GAIN, COLUMN_GAIN = 0.45, 1.0


@torch.no_grad()
def turn_heads(resampler: Resampler) -> None:
    """Turns every other head, from the first on, to the fields of a grid."""
    width, heads = resampler.query.shape[1], resampler.heads
    head, quarter = width // heads, width // 4
    side = math.isqrt(len(resampler.query))
    step = SPAN / side
    chosen = torch.arange(head // 4)  # the highest frequencies: low ones hardly tell neighbours apart
    number = torch.arange(len(resampler.query))
    solved = torch.linalg.pinv(resampler.ln_q(resampler.query))  # [W, Q]
    q, k, _ = resampler.attn.in_proj_weight.view(3, heads, head, width)
    q_bias, k_bias, _ = resampler.attn.in_proj_bias.view(3, heads, head)
    for count, turned in enumerate(range(0, heads, 2)):
        column = number % side * step + (step - 1) / 2 + (count % 2 - 0.5) * step / 2
        row = number // side * step + (step - 1) / 2
        waves = torch.cat([COLUMN_GAIN * axis(column, width), ROW_GAIN * axis(row, width)], dim=1)  # [Q, W]
        compared = torch.cat([part * quarter + chosen for part in range(4)])  # sines and cosines of both
        # The score of a place is a sum of cosines of its distance from the query's; attention divides it by a root.
        q[turned] = (solved @ waves[:, compared]).T * head**0.25
        k[turned] = 0
        k[turned, torch.arange(head), compared] = head**0.25
        q_bias[turned] = k_bias[turned] = 0


def regrid(run: Path, out: Path) -> None:
    """Writes a run whose heads are turned; InputError if there is something in OUT."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder")
    state = read_state(run)
    model, head = loaded(run, state)
    turn_heads(model.resampler)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / TOKENIZER, out)
    save_run(out, model.config, model, head, state, half=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a folder that train.py wrote, or resume.py")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make, for train.py's --out")
    options = parser.parse_args()
    try:
        regrid(options.run, options.out)
    except HandlensError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
