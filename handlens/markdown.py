"""Tables in Markdown, as GitHub's dialect has them."""

from collections.abc import Iterator, Sequence


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table: its header, what stands below it, and a line a row. Pipes in cells are escaped."""
    yield _line(header)
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield _line(row)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as one text."""
    return "\n".join(table_lines(header, rows))


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
