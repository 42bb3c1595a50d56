"""`handlens check` and `handlens seal`: is this model what it should be, and does it compute right on this machine?"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.cli.options import Debug, Mmproj, Quiet
from handlens.cli.terminal import harmless, put, put_raw, tell

if TYPE_CHECKING:
    from handlens.proof.check import Finding

EXAMPLES = """
\b
Examples:
  handlens check                         the shipped model
  handlens check ggml-model-Q4_K_M.gguf  with the mmproj file beside it
  handlens check models/minicpm --json

\b
What is checked: that the files are whole, known faults of published files, that all weights are numbers, each
stage of the fast arithmetic beside plain numpy on a built-in picture and text, and, in files with a seal, that
weights, keys and stages are what they were when the file was sealed.

\b
Exit codes:
  0  everything is as it should be; notices do not count
  2  something is not, and the table says what
"""

SEAL_EXAMPLES = """
\b
Example:
  handlens seal model.gguf

\b
Run it once on files that you made and trust. The files are rewritten with digests of their weights and keys and with
samples of every stage's output; other programs ignore them. It computes the whole model in numpy, which takes seconds
for a small one and minutes for one of 8 billion parameters.
"""

COLOURS = {"good": "green", "notice": "yellow", "bad": "red"}

Model = Annotated[
    Path | None, typer.Argument(metavar="MODEL", help="Language file, or a folder with it. Default: the shipped model.")
]


def check_model(
    model: Model = None,
    *,
    mmproj: Mmproj = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check that a model's files are sound and that it computes right on this machine."""
    from handlens.proof.check import BAD, check
    from handlens.weights import find_files

    with waiting(quiet) as said:
        findings = list(check(find_files(model, mmproj), said))
    bad = sum(finding.verdict == BAD for finding in findings)
    if as_json:
        put(json.dumps({"good": not bad, "findings": [asdict(finding) for finding in findings]}, indent=2) + "\n")
    else:
        put_raw(table(findings))
    if bad:
        raise typer.Exit(2)


def seal_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Language file, or a folder with it.")],
    *,
    mmproj: Mmproj = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write into a model's files what they are now, so that a later check sees every change."""
    from handlens.proof.sealing import seal_files
    from handlens.weights import find_files

    with waiting(quiet) as said:
        paths = seal_files(find_files(model, mmproj), said)
    if not quiet:
        tell(f"handlens: sealed {' and '.join(map(str, paths))}")


def table(findings: list["Finding"]) -> str:
    """The findings as text, with colours if standard output is a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    shown = Table(box=box.SIMPLE)
    for header, justify in (("", "left"), ("checked", "left"), ("measured", "right"), ("at most", "right")):
        shown.add_column(header, justify=justify)
    shown.add_column("", overflow="fold")
    for finding in findings:
        numbers = ["" if value is None else f"{value:.2g}" for value in (finding.number, finding.bound)]
        shown.add_row(finding.verdict, finding.what, *numbers, harmless(finding.detail), style=COLOURS[finding.verdict])
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in COLOURS}
    with console.capture() as captured:
        console.print(shown)
        said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        console.print(said, style=COLOURS["bad" if counts["bad"] else "good"])
    return captured.get()


@contextmanager
def waiting(quiet: bool) -> Iterator[Callable[[str], None]]:
    """While the block runs, a terminal shows what is being done."""
    if quiet or not sys.stderr.isatty():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True, markup=False).status("") as status:
        yield lambda what: status.update(harmless(what))
