"""Tables laid out by Chromium in themes that training does not have: no rules, rules of colour, cards, heads over
several columns. Asked for as Markdown."""

import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from handlens.data.questions import ask
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Font, Sources, load, pick
from handlens.data.structured import capital
from handlens.data.tables import Table, invent
from handlens.data.text import clean, words
from handlens.eval.browser import Browser, css
from handlens.eval.metrics import table_cells, table_shape
from handlens.eval.suite import Bar, Drawn, Item, Scores, Suite, face_to_read, seeded
from handlens.markdown import markdown_table

WIDEST = HIGHEST = 660
MOST_COLUMNS, MOST_ROWS = 6, 8
COLLAPSED = "table { border-collapse: collapse }"
THEMES = {
    "rules": f"{COLLAPSED} td, th {{ border: 1px solid #aab }}",
    "no rules": "td, th { border: 0 } table { border-spacing: 6px 2px }",
    "zebra": f"{COLLAPSED} tbody tr:nth-child(odd) {{ background: #e7eef7 }} th {{ background: #2c4a6e; color: #fff }}",
    "coloured rules": f"{COLLAPSED} thead {{ border-bottom: 3px solid #c03 }} td {{ border-bottom: 1px dotted #999 }}",
    "merged head": f"{COLLAPSED} td, th {{ border: 1px solid #333 }} th {{ background: #eee }}",
    "cards": "table { border-spacing: 4px } td, th { background: #f0f0f3; border-radius: 6px }",
}


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    with Browser() as browser:
        for i in range(n):
            rng = seeded(seed, "tables", i)
            theme = list(THEMES)[i % len(THEMES)]
            language = pick(rng, sources.languages)
            face = face_to_read(rng, sources, language)
            while True:
                content = trimmed(invent(rng, sources, language, HELD_OUT, load(face.path, 16)), face)
                if theme == "merged head" and len(content.header) < 3:
                    continue
                page, truth = lay_out(rng, sources, language, face, content, theme)
                image, width = browser.draw(page, WIDEST, SIZE)
                if width <= WIDEST and image.shape[0] <= HIGHEST:
                    break
            yield Drawn(image[:, :width], ask(rng, "table-markdown", language), truth, theme, language)


#: How wide the table and its margins are.
SIZE = """() => Math.ceil(document.querySelector("table").getBoundingClientRect().right
  + document.querySelector("table").getBoundingClientRect().left)"""


def trimmed(content: Table, face: Font) -> Table:
    """The table with no more columns and rows than fit, in what the font can write."""
    cells = [[clean(face, cell) for cell in row[:MOST_COLUMNS]] for row in [content.header, *content.rows[:MOST_ROWS]]]
    return Table("", cells[0], cells[1:], content.numeric[:MOST_COLUMNS])


def lay_out(
    rng: np.random.Generator, sources: Sources, language: str, face: Font, content: Table, theme: str
) -> tuple[str, str]:
    """The page and its truth."""
    head = cells("th", content.header, content.numeric)
    header, rows = content.header, content.rows
    if theme == "merged head":
        left = int(rng.integers(1, len(header) - 1))
        names = [clean(face, capital(word)) for word in words(rng, sources, language, HELD_OUT, 2)]
        spans = (left + 1, len(header) - left - 1)
        over = "".join(f'<th colspan="{span}">{html.escape(name)}</th>' for span, name in zip(spans, names))
        head = f"{over}</tr><tr>{head}"
        rows = [header, *rows]
        header = [names[0], *[""] * left, names[1], *[""] * (spans[1] - 1)]
    body = "".join(f"<tr>{cells('td', row, content.numeric)}</tr>" for row in content.rows)
    wrap = pick(rng, ("nowrap", "normal"))
    page = f"""<!doctype html><html lang="{language}"><meta charset="utf-8"><style>{css(sources, face)}
* {{ margin: 0 }} body {{ font: {int(rng.integers(14, 20))}px held-out; padding: {int(rng.integers(6, 20))}px }}
td, th {{ padding: {int(rng.integers(2, 9))}px {int(rng.integers(6, 14))}px; text-align: left; white-space: {wrap} }}
.n {{ text-align: right }} {THEMES[theme]}</style>
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"""
    return page, markdown_table(header, rows)


def cells(tag: str, texts: list[str], numeric: list[bool]) -> str:
    return "".join(f'<{tag} class="{"n" if n else ""}">{html.escape(text)}</{tag}>' for text, n in zip(texts, numeric))


def score(item: Item, answer: str) -> Scores:
    return {"cell F1": table_cells(item.truth, answer), "shape right": table_shape(item.truth, answer)}


SUITE = Suite(
    name="tables",
    about="tables laid out by Chromium, as Markdown",
    score=score,
    measures={"cell F1": "more", "shape right": "more"},
    bars=(Bar("cell F1", "", 0.75, 0.3),),
    max_new_tokens=768,
    transcribes=True,
    peers="table",
    build=build,
)
