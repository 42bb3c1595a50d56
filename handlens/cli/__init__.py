"""The command line: `handlens ask`, `chat`, `read`, `info` and more.

A command imports what is heavy (numpy, Pillow, tokenizers, rich) when it runs, so that `handlens --help` is quick.
"""

import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import handlens
from handlens.cli import (
    ask,
    bench,
    card,
    check,
    converse,
    convert,
    data,
    evaluate,
    export,
    info,
    joining,
    quantize,
    read,
)
from handlens.cli.options import Debug, Settings, unfolded
from handlens.cli.terminal import tell
from handlens.errors import HandlensError

#: Columns of the help texts, at most.
WIDTH = 100

OK, UNEXPECTED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="handlens",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
for name, command, examples in (
    ("ask", ask.ask_once, ask.EXAMPLES),
    ("chat", converse.converse, converse.EXAMPLES),
    ("read", read.transcribe, read.EXAMPLES),
    ("info", info.describe, info.EXAMPLES),
    ("bench", bench.bench, bench.EXAMPLES),
    ("check", check.check_model, check.EXAMPLES),
    ("convert", convert.convert_model, convert.EXAMPLES),
    ("quantize", quantize.quantize, quantize.EXAMPLES),
    ("card", card.make_card, card.EXAMPLES),
    ("join", joining.join_files, joining.EXAMPLES),
    ("split", joining.split_file, joining.SPLIT_EXAMPLES),
    ("seal", check.seal_model, check.SEAL_EXAMPLES),
):
    app.command(name, epilog=examples)(unfolded(command))
export.app.command("ollama", epilog=export.EXAMPLES)(unfolded(export.export_ollama))
app.add_typer(export.app, name="export")
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="eval")

#: What typer raises for a wrong command line, whichever module the installed version keeps it in.
UsageError = typer.BadParameter.__base__

EXAMPLES = """
\b
Examples:
  handlens ask photo.jpg "What is on the table?"
  handlens chat photo.jpg
  handlens read page.png > page.md
  handlens info model.gguf
"""


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"handlens {handlens.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog=EXAMPLES)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Ask questions about images, on your own device."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit code; errors become one line on standard error."""
    settings = Settings()
    try:
        command = typer.main.get_command(app)
        return command.main(args=list(arguments), prog_name="handlens", standalone_mode=False, obj=settings) or OK
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except UsageError as error:
        where = error.ctx.command_path if error.ctx else "handlens"
        tell(f"handlens: {error.format_message().rstrip('.')}; see '{where} --help'")
        return BAD_INPUT
    except Exception as error:
        if settings.debug:
            traceback.print_exc()
        if isinstance(error, HandlensError | OSError):
            tell(f"handlens: {error}")
            return BAD_INPUT
        hint = "" if settings.debug else " Run it again as `handlens --debug ...` to see where."
        tell(f"handlens: unexpected {type(error).__name__}: {error}.{hint} Please report this.")
        return UNEXPECTED


def main() -> NoReturn:
    """The program: runs the command line that it was started with and exits."""
    for stream in (sys.stdin, sys.stdout):
        # What cannot be written in the terminal's encoding, or is not text on a pipe, must not end a conversation.
        stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))
