"""The page docs/cli.md: the help of every command, as the program prints it.

python -m handlens.cli.reference > docs/cli.md
"""

from collections.abc import Iterator

import typer

from handlens.cli import WIDTH, app

HEAD = """\
# The command line

Made by `python -m handlens.cli.reference`; a test fails when it is out of date.
"""

EXIT_CODES = """\
## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | an error that handlens did not expect; `--debug` shows where |
| 2 | what was given cannot be used, or the output cannot be written; one line on standard error says why |
| 130 | stopped with Ctrl-C |
| 141 | whoever read standard output went away |

Standard output carries answers and nothing else. Notices, progress and errors go to standard error; progress only to a
terminal. Control characters in an answer are replaced on a terminal and kept in a file or a pipe.
"""


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    top = typer.Context(root, info_name="handlens", terminal_width=WIDTH, **root.context_settings)
    parts = [HEAD]
    for context in [top, *_below(top)]:
        text = "\n".join(line.rstrip() for line in context.get_help().splitlines())
        parts.append(f"## {context.command_path}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join([*parts, EXIT_CODES])


def _below(context: typer.Context) -> Iterator[typer.Context]:
    """The contexts of all commands of a group, and of the groups in it."""
    for name, command in getattr(context.command, "commands", {}).items():
        inner = typer.Context(command, parent=context, info_name=name, terminal_width=WIDTH)
        yield inner
        yield from _below(inner)


if __name__ == "__main__":
    print(page(), end="")
