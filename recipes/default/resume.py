"""Goes on from the model that ships: `python -m recipes.default.resume --out RUN` makes a folder for `train.py`.

What the shipped pair does not hold lies in `kept/` beside this file: the dense head, which is no part of the model, and
how far training came. `keep` writes it when a model is shipped.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from handlens.conversion import to_checkpoint
from handlens.errors import HandlensError, InputError
from handlens.weights import find_files
from recipes.default.weights import HEAD, MODEL, STATE

KEPT = Path(__file__).parent / "kept"


def resume(out: Path, model: Path | None = None, kept: Path = KEPT) -> None:
    """Makes the folder of a run out of a GGUF pair (the one that ships) and of what was kept."""
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; name a new folder")
    files = find_files(model)
    out.mkdir(parents=True, exist_ok=True)
    to_checkpoint(files.model, files.mmproj, out / MODEL, type="F32")
    shutil.copy(out / MODEL / "tokenizer.json", out)
    for name in (HEAD, STATE):
        shutil.copy(kept / name, out)


def keep(run: Path, kept: Path = KEPT) -> None:
    """Keeps of a run what its exported pair lacks, in half precision."""
    kept.mkdir(exist_ok=True)
    save_file({name: tensor.bfloat16() for name, tensor in load_file(run / HEAD).items()}, kept / HEAD)
    shutil.copy(run / STATE, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make, for train.py's --out")
    parser.add_argument(
        "--model", type=Path, help="a language file with its projector beside it (default: the shipped)"
    )
    options = parser.parse_args()
    try:
        resume(options.out, options.model)
    except HandlensError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.out}: go on with python -m recipes.default.train --out {options.out} ...")


if __name__ == "__main__":
    main()
