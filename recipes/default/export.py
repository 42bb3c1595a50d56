"""Writes the weights of a run as a pair of GGUF files: `python -m recipes.default.export --run DIR --out FILE`."""

import argparse
from pathlib import Path

from handlens.conversion import Converted, to_gguf
from handlens.errors import HandlensError
from handlens.gguf.convert import FILE_TYPES
from recipes.default.resume import keep
from recipes.default.weights import MODEL


def export(run: Path, out: Path, type: str = "Q8_0") -> Converted:
    """The files written: the language model as `out` and the projector beside it."""
    return to_gguf(run / MODEL, out, type=type, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the OUT of recipes.default.train")
    parser.add_argument("--out", type=Path, required=True, help="the language file; the projector gets its name")
    parser.add_argument("--keep", action="store_true", help="also keep what the pair lacks, see resume.py: to ship it")
    parser.add_argument("--type", choices=FILE_TYPES, default="Q8_0", help="of matrices (default Q8_0)")
    options = parser.parse_args()
    try:
        written = export(options.run, options.out, options.type)
    except HandlensError as error:
        raise SystemExit(f"error: {error}") from None
    if options.keep:
        keep(options.run)
    for path in written.paths:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
