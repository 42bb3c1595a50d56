"""The quality card of a model in all sizes, put into docs/sizes.md with a picture beside it.

    python -m benchmarks.sizes MODEL --sources DIR --set DIR [--suite receipts,lines,scenes] [--limit 50]

MODEL is what was trained: a checkpoint folder (RUN/model of the recipe), or the language file of a GGUF pair. It is the
reference, and is quantised to each file type. The text that all of them read is the beginning of the held-out prose of
each language in the prepared folder `--sources` (`handlens data prepare`); the questions are suites that `handlens eval
build pocketdocs` wrote to `--set`. Answers are kept there, so a run that was stopped goes on where it was. Numbers are
written to `--json` too.
"""

import argparse
import re
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from handlens.atomic import replacing
from handlens.conversion import to_gguf
from handlens.cpu.backend import describe_arithmetic
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Sources
from handlens.errors import InputError
from handlens.quant.card import Row, as_json, markdown, measure_card, picture, read_exams
from handlens.quant.mixes import MIXES
from handlens.quant.quantize import quantize_model
from handlens.weights import ModelFiles, find_files

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- card: written by benchmarks.sizes -->", "<!-- end of card -->"
#: Characters of the text of each language.
CHARACTERS = 3000


def held_out_text(sources: Sources) -> str:
    """The beginning of the held-out prose of each language."""
    return "\n".join(sources.text(language, HELD_OUT)[:CHARACTERS] for language in sources.languages)


def all_sizes(model: Path, types: list[str], scratch: Path) -> list[tuple[str, ModelFiles]]:
    """The reference and its other sizes, by name."""
    if model.is_dir():
        written = to_gguf(model, scratch / "reference.gguf")
        named = [(f"{written.type}, as trained", ModelFiles(*written.paths))]
    else:
        named = [(model.stem, find_files(model))]
    reference = named[0][1]
    for type in types:
        paths = quantize_model(reference.model, scratch / f"{type}.gguf", type, mmproj=reference.mmproj).paths
        named.append((type, ModelFiles(paths[0], paths[1] if len(paths) > 1 else None)))
    return named


def put_into(page: Path, rows: list[Row], image: str, words: str) -> None:
    """Replaces what stands between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise InputError(f"{page} has no place for the card: {BEGIN} and {END}")
    card = f"{BEGIN}\n\n{words}\n\n![right answers over bytes]({image})\n\n{markdown(rows)}\n{END}"
    with replacing(page, InputError, encoding="utf-8", newline="\n") as file:
        file.write(re.sub(f"{BEGIN}.*{END}", lambda _: card, text, flags=re.DOTALL))


def main() -> None:
    """Measures, and writes page, picture and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--suite", default="receipts,lines,scenes")
    parser.add_argument("--limit", type=int, default=50, help="items of each suite")
    parser.add_argument("--types", default=",".join(MIXES))
    parser.add_argument("--page", type=Path, default=DOCS / "sizes.md")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = held_out_text(Sources.open(args.sources))
    exams = read_exams(args.set, args.suite.split(","), args.limit)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        models = all_sizes(args.model, args.types.split(","), scratch)
        rows = measure_card(models, text, exams, args.set / "answers", lambda what: print(what, file=sys.stderr))
    image = args.page.with_suffix(".png")
    picture(rows, image)
    words = f"Measured on {datetime.now(UTC):%Y-%m-%d} with {describe_arithmetic()}; " + ", ".join(
        f"{suite.name} with {len(items)} items" for suite, items in exams
    )
    put_into(args.page, rows, image.name, f"{words}; a text of {len(text)} characters in many languages.")
    if args.json is not None:
        with replacing(args.json, InputError, encoding="utf-8") as file:
            file.write(as_json(rows))
    print(f"wrote {args.page} and {image}")


if __name__ == "__main__":
    main()
