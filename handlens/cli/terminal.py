"""What the program says: answers on standard output, everything else on standard error.

A terminal obeys the control characters that it is sent, and a picture may talk the model into writing some. So they are
replaced on their way to a terminal; a file or a pipe gets the text as it is.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import typer

#: C0 and C1 control characters and DEL, but not newline and tab.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: What a shell reports of a program that a closed pipe ended.
CLOSED_PIPE = 141


def harmless(text: str) -> str:
    """The text with control characters replaced."""
    return CONTROL.sub("\ufffd", text)


def put(text: str) -> None:
    """Writes text from a model or a file to standard output, at once."""
    put_raw(harmless(text) if sys.stdout.isatty() else text)


def put_raw(text: str) -> None:
    """Writes text of our own, colours among it, to standard output. Ends the program quietly if nobody reads it."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(CLOSED_PIPE) from None


def print_streamed(pieces: Iterable[str], said: list[str]) -> None:
    """Prints the pieces as they come and adds them to `said`; ends the line, even if the pieces break off."""
    try:
        for piece in pieces:
            said.append(piece)
            put(piece)
    finally:
        if said:
            put("\n")


def tell(message: str) -> None:
    """Writes one line to a person, on standard error."""
    print(harmless(message.replace("\n", " ")), file=sys.stderr, flush=True)


@contextmanager
def working(what: str, unit: str = "slices") -> Iterator[Callable[[int, int], None]]:
    """While the block runs, a terminal shows what is being done; `(done, total)` tells it how far that is, in units."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def progress(done: int, total: int) -> None:
            if done < total:
                bar.update(task, description=f"looked at {done} of {total} {unit}", completed=done, total=total)
            else:
                bar.reset(task, description="reading the prompt", total=None)

        yield progress


@contextmanager
def writing(what: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """While the block runs, a terminal shows how many bytes were written."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
