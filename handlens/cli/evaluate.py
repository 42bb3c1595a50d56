"""`handlens eval`: how well a model reads, counts and refuses, measured on suites that training never saw."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from handlens.atomic import replacing
from handlens.cli.opening import open_chat
from handlens.cli.options import Debug, ModelOptions, Quiet, unfolded
from handlens.cli.terminal import put, tell
from handlens.errors import InputError

if TYPE_CHECKING:
    from handlens.eval.report import Result

EXAMPLES = """
\b
Examples:
  handlens eval build pocketdocs --sources sources --out pocketdocs
  handlens eval pocketdocs --data pocketdocs --model model.gguf --out report.md
"""

BUILD_EXAMPLES = """
\b
Examples:
  handlens data prepare --out sources
  handlens eval build pocketdocs --sources sources --out pocketdocs
  handlens eval build pocketdocs --sources sources --out pocketdocs --suite lines,scenes --n 200

\b
Suites and what they need besides the prepared folder:
  lines, scenes, refusals, slicing   nothing
  pages, tables, receipts            Chromium
  charts                             handlens[eval]
  pdfs                               apt-get, pdftotext and pdftoppm

\b
A suite whose tools are missing is skipped, and the reason told. Suites that are there stay, so the same command goes on
where an earlier one was stopped, and the same seed gives the same items.
"""

RUN_EXAMPLES = """
\b
Examples:
  handlens eval pocketdocs --data pocketdocs
  handlens eval pocketdocs --data pocketdocs --model model.gguf --suite lines,tables --limit 20
  handlens eval pocketdocs --data pocketdocs --peers tesseract,rapidocr --sources sources --out report.md

\b
Answers are greedy and kept in DIR/answers, a file for each model: the same command goes on where an earlier one was
stopped, and a second report asks nothing again. With --sources and --out, pictures of right and wrong answers are
written beside the report. Make the data with: handlens eval build pocketdocs
"""

SuiteNames = Annotated[str, typer.Option("--suite", metavar="NAMES", help="Suites, with commas between. Default: all.")]


def build_suites(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to build: pocketdocs.")],
    *,
    sources: Annotated[
        Path,
        typer.Option(
            metavar="DIR", envvar="HANDLENS_SOURCES", help="The folder that `handlens data prepare` has written."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write to.")],
    suite: SuiteNames = "",
    n: Annotated[int, typer.Option("--n", "-n", metavar="N", help="Items in a suite.")] = 100,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed gives other items.")] = 0,
    packages: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where packages with PDFs are kept. Default: in the folder itself."),
    ] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw the held-out suites: pictures, questions and truths."""
    from handlens.data.sources import Sources
    from handlens.eval.build import build

    if name != "pocketdocs":
        raise InputError(f"there is nothing called {name!r} to build; pocketdocs is what there is")
    with _bar(quiet) as show:
        skipped = build(Sources.open(sources), out, _names(suite), n=n, seed=seed, tell=show, packages=packages)
    for lacking, reason in skipped.items():
        tell(f"handlens: {lacking} was skipped: {reason}")
    if not quiet:
        tell(f"handlens: wrote {out}")


def run_pocketdocs(
    *,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder that `handlens eval build pocketdocs` has written.")
    ] = None,
    suite: SuiteNames = "",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first items of each suite.")] = None,
    peers: Annotated[str, typer.Option(metavar="NAMES", help="Measure these readers, too: tesseract, rapidocr.")] = "",
    peers_only: Annotated[bool, typer.Option("--peers-only", help="Ask no model.")] = False,
    by_lines: Annotated[
        bool | None,
        typer.Option(
            "--by-lines/--whole",
            help="Show the model one line at a time where more than a line is shown, or the whole picture. Default: as "
            "`handlens ask` and `handlens read` do with this model.",
            show_default=False,
        ),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="HANDLENS_SOURCES", help="Prepared folder, whose fonts write the pictures."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the report to a file.")] = None,
    model_options: ModelOptions,
) -> None:
    """Measure a model on the held-out suites, and print a report as Markdown."""
    from handlens.eval.build import chosen
    from handlens.eval.peers import open_peers
    from handlens.eval.report import markdown, write_pictures
    from handlens.eval.run import Model
    from handlens.eval.suite import facts_of

    advice = "handlens eval build pocketdocs --sources DIR --out DIR"
    if data is None:
        raise InputError(f"no data was named: give --data DIR; make it once with: {advice}")
    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}, but must be at least 1")
    suites = chosen(_names(suite))
    there = [one for one in suites if facts_of(data / one.name)]
    if not there:
        raise InputError(
            f"{data} holds none of the suites {', '.join(one.name for one in suites)}; make them with: {advice}"
        )
    readers = open_peers(_names(peers))
    if not peers_only:
        files = _settings(model_options)
        chat = open_chat(model_options)
        readers.insert(0, Model(chat, chat.model.files.model.stem, files, by_lines))
    elif not readers:
        raise InputError("--peers-only without --peers leaves nobody to ask; name tesseract or rapidocr")
    try:
        results = list(_ask(readers, there, data, limit, model_options.quiet))
    except KeyboardInterrupt:
        tell("handlens: stopped; the same command goes on from here")
        raise
    lacking = {one.name: f"not in {data.name}" for one in suites if one not in there}
    made = facts_of(data / there[0].name)
    facts = [(reader.name, f"digest {reader.digest}") for reader in readers]
    facts += [
        (reader.name, f"{reader.how(one)} in {one.name}") for reader in readers for one in there if reader.how(one)
    ]
    facts += [
        (
            "data",
            f"made {made['made']}, seed {made['seed']}, by " + ", ".join(f"{k} {v}" for k, v in made["with"].items()),
        )
    ]
    report = markdown(results, facts, lacking)
    put(report)
    if out is not None:
        with replacing(out, InputError, encoding="utf-8", newline="\n") as file:
            file.write(report)
        if sources is not None:
            from handlens.data.sources import Sources

            for path in write_pictures(results, Sources.open(sources), out):
                tell(f"handlens: wrote {path}")
        elif not model_options.quiet:
            tell("handlens: give --sources DIR for pictures of right and wrong answers")


def _ask(readers, suites, data: Path, limit: int | None, quiet: bool) -> Iterator["Result"]:
    from handlens.eval.report import Result
    from handlens.eval.run import Model, ask

    with _bar(quiet) as show:
        for suite in suites:
            items = suite.load(data / suite.name)[:limit]
            for reader in readers:
                what = f"{suite.name} {reader.name}"
                answered = ask(reader, suite, items, data / "answers", lambda done, n, what=what: show(what, done, n))
                if answered:
                    yield Result(suite, reader.name, answered, isinstance(reader, Model))


def _settings(options: ModelOptions) -> str:
    """What changes answers besides the weights."""
    named = ("context_length", "position_mode", "backend", "device", "vision_precision")
    return " ".join(f"{name}={value}" for name in named if (value := getattr(options, name)) is not None)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """While the block runs, a terminal shows what is being done and how far that is."""
    if quiet or not sys.stderr.isatty():
        yield lambda text, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda text, done, total: bar.update(task, description=text, completed=done, total=total)


#: The group, as the program has it below its own name.
app = typer.Typer(rich_markup_mode=None)
for name, command, examples in (
    ("build", build_suites, BUILD_EXAMPLES),
    ("pocketdocs", run_pocketdocs, RUN_EXAMPLES),
):
    app.command(name, epilog=examples)(unfolded(command))


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
def root(context: typer.Context) -> None:
    """Measure how well a model reads, on documents that training never saw."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
