"""Tables in many styles: written out as Markdown, or asked for one cell."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL.ImageFont import FreeTypeFont

from handlens.data.raster import Canvas
from handlens.data.sample import Sample
from handlens.data.sources import Sources, pick
from handlens.data.structured import (
    DAYS,
    INKS,
    MAX_AREA,
    MONTHS,
    PAPERS,
    PLACES,
    STRONG,
    WHITE,
    Colour,
    Drawn,
    Fact,
    at_size,
    between,
    captions,
    chance,
    clear,
    date,
    height,
    legible_font,
    length,
    mix,
    phrase,
    price,
    to_sample,
)
from handlens.markdown import markdown_table


def table(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_table(rng, sources, language, split), "table", language, reading_share=0.35)


@dataclass
class Table:
    title: str
    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]  # by column: set flush right

    def drop_column(self) -> None:
        del self.header[-1], self.numeric[-1]
        for row in self.rows:
            del row[-1]


@dataclass(frozen=True)
class Style:
    """Which lines and fills a table has."""

    rows: str = ""  # rules between rows: "all", "header", ""
    columns: bool = False  # rules between columns
    frame: bool = False
    header: str = "plain"  # the head's ground: "plain", "tint", "strong"
    zebra: bool = False
    ends: bool = False  # a rule at the top and one at the bottom
    first: bool = False  # the first column is tinted
    gap: int = 0  # cells are boxes with space between


#: Few sizes: then the glyphs of a font are often at hand from an earlier table.
SIZES = (13, 14, 14, 16, 16, 18, 22)
STYLES = {
    "ruled": Style("all", True, True),
    "ruled-head": Style("all", True, True, "tint"),
    "ruled-dark-head": Style("all", True, True, "strong"),
    "horizontal": Style("all", ends=True),
    "book": Style("header", ends=True),
    "borderless": Style(),
    "head-rule": Style("header"),
    "zebra": Style(header="strong", zebra=True),
    "zebra-light": Style("header", header="plain", zebra=True, ends=True),
    "framed": Style("header", frame=True, header="tint"),
    "columns": Style("header", columns=True),
    "side-head": Style("all", True, True, "tint", first=True),
    "boxes": Style(header="strong", gap=3),
}


def draw_table(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    """A table on a page of its own, cut to what fits the area of one picture."""
    size = pick(rng, SIZES)
    font = legible_font(rng, sources, language, split, size)
    # Half of the heads are in another font, which is bold at times.
    head = font if chance(rng, 0.5) else legible_font(rng, sources, language, split, size)
    content = invent(rng, sources, language, split, font)
    pad_x, pad_y = between(rng, 4, 16), between(rng, 1, 9)
    limit = size * between(rng, 6, 12) if chance(rng, 0.35) else 10_000
    while True:
        cells, widths, heights = measure(content, font, head, pad_x, pad_y, limit)
        if sum(widths) <= 860 and (sum(widths) + 40) * (sum(heights) + 90) <= MAX_AREA:
            break
        if len(content.header) > 2 and sum(widths) > sum(heights):
            content.drop_column()
        elif len(content.rows) > 2:
            content.rows.pop()
        else:
            limit = size * 8
    return paint(rng, content, cells, widths, heights, (font, head), pad_x)


# ---------------------------------------------------------------------------------------------------------- content


def invent(rng: np.random.Generator, sources: Sources, language: str, split: str, font: FreeTypeFont) -> Table:
    """A table of 2-8 columns and 2-10 rows; row and column names do not repeat, so that a cell has one address."""
    columns, count = between(rng, 2, 8), between(rng, 2, 10)
    words = captions(sources, language)
    heads, names = row_names(rng, sources, language, split, words, count)
    rows = [[name] for name in names]
    header = [words[pick(rng, heads)]]
    numeric = [False]
    empty = pick(rng, (0, 0, 0, 0.05, 0.15))
    for _ in range(columns - 1):
        kind = pick(rng, KINDS)
        title = column_name(rng, sources, language, split, words, kind)
        if title in header:
            continue
        write = kind.write(rng, sources, language, split, font)
        for row in rows:
            row.append("" if empty and chance(rng, empty) else write())
        header.append(title)
        numeric.append(kind.numeric)
    if len(header) == 1:
        header.append("1")
        numeric.append(True)
        for row in rows:
            row.append(str(between(rng, 0, 999)))
    title = phrase(rng, sources, language, split, 4, 34) if chance(rng, 0.35) else ""
    return Table(title, header, rows, numeric)


def row_names(rng, sources, language, split, words: dict[str, str], count: int) -> tuple[tuple[str, ...], list[str]]:
    """The labels that may head the first column, and different names for its rows."""
    kind = pick(rng, tuple(ROW_HEADS))
    heads = ROW_HEADS[kind]
    if kind == "year":
        start = between(rng, 1950, 2030)
        return heads, [str(start + index) for index in range(count)]
    if kind == "number":
        return heads, [str(number) for number in range(1, count + 1)]
    if kind in ("month", "day"):
        return heads, list(dict.fromkeys(words[key] for key in (MONTHS if kind == "month" else DAYS)))[:count]
    names: dict[str, None] = {}
    for _ in range(4 * count):
        if len(names) == count:
            break
        if kind.startswith("words"):
            names[phrase(rng, sources, language, split, 2, 20)] = None
        else:
            names[sources.name(rng, language, split, kind)] = None
    return heads, list(names)


def column_name(rng, sources, language, split, words: dict[str, str], kind: "Kind") -> str:
    if kind.heads and chance(rng, 0.6):
        return words[pick(rng, kind.heads)]
    if kind.numeric and chance(rng, 0.2):
        return str(between(rng, 1980, 2035))
    return phrase(rng, sources, language, split, 2, 16)


Writer = Callable[[], str]


@dataclass(frozen=True)
class Kind:
    """What a column holds; `write` returns a function that gives the next cell."""

    write: Callable[[np.random.Generator, Sources, str, str, FreeTypeFont], Writer]
    numeric: bool = False
    heads: tuple[str, ...] = ()  # labels that may stand above it


def whole(rng, sources, language, split, font) -> Writer:
    place, most = PLACES[language], 10 ** between(rng, 1, 5)
    return lambda: place.number(int(rng.integers(most)))


def decimal(rng, sources, language, split, font) -> Writer:
    place, decimals, most = PLACES[language], between(rng, 1, 3), 10 ** between(rng, 2, 6)
    signed = chance(rng, 0.2)
    return lambda: place.number(int(rng.integers(-most if signed else 0, most)), decimals)


def amount(rng, sources, language, split, font) -> Writer:
    place, highest = PLACES[language], pick(rng, (20, 200, 5000))
    currency = place.currency(rng, font)
    return lambda: place.money(price(rng, currency, highest), currency)


def percentage(rng, sources, language, split, font) -> Writer:
    place, decimals = PLACES[language], between(rng, 0, 1)
    return lambda: place.number(int(rng.integers(100 * 10**decimals)), decimals) + "%"


def day(rng, sources, language, split, font) -> Writer:
    pattern = pick(rng, PLACES[language].dates)
    return lambda: date(rng).strftime(pattern)


def code(rng, sources, language, split, font) -> Writer:
    """Order numbers and the like: nothing that could be guessed."""
    letters, digits = between(rng, 0, 3), between(rng, 3, 6)
    dash = pick(rng, ("", "-"))

    def write() -> str:
        head = "".join(pick(rng, "ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(letters))
        return f"{head}{dash if head else ''}{rng.integers(10**digits):0{digits}}"

    return write


def some_words(rng, sources, language, split, font) -> Writer:
    most = between(rng, 1, 4)
    return lambda: phrase(rng, sources, language, split, most)


def few_words(rng, sources, language, split, font) -> Writer:
    """A column with the same few words again and again."""
    choices = [phrase(rng, sources, language, split, 1) for _ in range(between(rng, 2, 3))]
    return lambda: pick(rng, choices)


def named(kind: str) -> Callable[..., Writer]:
    return lambda rng, sources, language, split, font: lambda: sources.name(rng, language, split, kind)


#: What the rows of a table are named after, and the labels that may stand above them.
ROW_HEADS = {
    "words": ("name", "item", "description", "product", "department"),
    "words again": ("name", "item", "description", "product", "other"),
    "person": ("name", "customer", "user"),
    "city": ("city", "name"),
    "country": ("country", "name"),
    "product": ("product", "item", "description"),
    "year": ("year",),
    "number": ("number", "page", "order", "week"),
    "month": ("month",),
    "day": ("day",),
}
KINDS = (
    Kind(whole, True, ("quantity", "number", "population", "messages", "sales")),
    Kind(whole, True, ("quantity", "total", "age", "items", "average")),
    Kind(decimal, True, ("weight", "length", "temperature", "average")),
    Kind(amount, True, ("price", "amount", "total", "costs", "profit", "balance")),
    Kind(percentage, True, ("tax", "discount", "share")),
    Kind(day, False, ("date", "due_date", "date_of_birth")),
    Kind(code, False, ("order_number", "customer_number", "account", "receipt_number")),
    Kind(some_words, False, ("description", "department", "other")),
    Kind(few_words, False, ("department", "payment")),
    Kind(named("person"), False, ("name", "customer", "user")),
    Kind(named("city"), False, ("city",)),
    Kind(named("country"), False, ("country", "nationality")),
    Kind(named("job"), False, ("occupation",)),
)

# ---------------------------------------------------------------------------------------------------------- drawing


def measure(content: Table, font: FreeTypeFont, head: FreeTypeFont, pad_x: int, pad_y: int, limit: int):
    """The lines of every cell, header first, the widths of the columns and the heights of the rows."""
    cells = [[[text] for text in row] for row in [content.header, *content.rows]]
    widths = []
    for column in range(len(content.header)):
        used = 0
        for index, row in enumerate(cells):
            own = font if index else head
            text = row[column][0]
            needed = length(text, own)
            if needed > limit:
                # A word is not broken: it would not be known whether it is one.
                room = max(limit, *(length(word, own) for word in text.split()), 0)
                row[column] = Canvas.wrap(text, own, room)
                needed = max(length(line, own) for line in row[column])
            used = max(used, needed)
        widths.append(used + 2 * pad_x)
    heights = [
        max(len(lines) for lines in row) * height(font if index else head) + 2 * pad_y
        for index, row in enumerate(cells)
    ]
    return cells, widths, heights


def paint(rng, content: Table, cells, widths: list[int], heights: list[int], fonts, pad_x: int) -> Drawn:
    font, head = fonts
    style = STYLES[pick(rng, tuple(STYLES))]
    ink, paper = pick(rng, INKS), pick(rng, PAPERS)
    if chance(rng, 0.06):
        ink, paper = mix(paper, (128, 128, 128), 0.1), mix(ink, (60, 60, 60), 0.3)
    accent = pick(rng, STRONG)
    rule = mix(ink, paper, pick(rng, (0.0, 0.3, 0.6)))
    tint = mix(paper, pick(rng, (accent, (128, 128, 128))), pick(rng, (0.08, 0.15)))
    thick = pick(rng, (1, 1, 2))
    margin_x, margin_y = between(rng, 4, 24), between(rng, 4, 24)
    widths = stretched(rng, widths)
    gap = style.gap

    title_font = at_size(head, round(head.size * pick(rng, (1, 1.2, 1.4))))
    title_lines = Canvas.wrap(content.title, title_font, max(sum(widths), 200)) if content.title else []
    top = margin_y + len(title_lines) * height(title_font) + (between(rng, 4, 14) if title_lines else 0)
    total = max(sum(widths), max((length(line, title_font) for line in title_lines), default=0))
    canvas = Canvas(total + 2 * margin_x, top + sum(heights) + margin_y, paper)
    centred_title = chance(rng, 0.5)
    for index, line in enumerate(title_lines):
        x = margin_x + total / 2 if centred_title else margin_x
        canvas.text(x, margin_y + index * height(title_font), line, title_font, ink, "ma" if centred_title else "la")

    xs = np.cumsum([margin_x + (total - sum(widths)) // 2 if centred_title else margin_x, *widths]).tolist()
    ys = np.cumsum([top, *heights]).tolist()
    fills(canvas, style, xs, ys, accent, tint)
    rules(canvas, style, xs, ys, rule, thick)

    header_ink = WHITE if style.header == "strong" else ink
    centred, header_centred, upright = chance(rng, 0.15), chance(rng, 0.3), chance(rng, 0.3)
    for row, (y, row_height, lines_of_row) in enumerate(zip(ys, heights, cells)):
        own, colour = (font, ink) if row else (head, header_ink)
        step = height(own)
        for column, lines in enumerate(lines_of_row):
            if not lines[0]:
                continue
            left, right = xs[column] + pad_x, xs[column + 1] - pad_x
            if centred or (header_centred and not row):
                x, anchor = (left + right) / 2, "ma"
            elif content.numeric[column] and (row or not upright):
                x, anchor = right, "ra"
            else:
                x, anchor = left, "la"
            start = y + (row_height - step * len(lines)) // 2
            for index, line in enumerate(lines):
                canvas.text(x, start + index * step, line, own, colour, anchor)
    if gap:
        for y in ys:
            canvas.box(xs[0], y - gap // 2, xs[-1], y + gap // 2, None, paper)
        for x in xs:
            canvas.box(x - gap // 2, ys[0], x + gap // 2, ys[-1], None, paper)

    pipes = markdown_table(content.header, content.rows)
    facts = [
        Fact("table-cell", cell, {"row": row[0], "column": name})
        for row in content.rows
        for name, cell in zip(content.header[1:], row[1:])
        if cell
    ]
    facts.append(Fact("table-markdown", pipes))
    if content.title:
        facts.append(Fact("title", content.title))
    reading = f"# {content.title}\n\n{pipes}" if content.title else pipes
    return Drawn(canvas, reading, clear(facts))


def stretched(rng: np.random.Generator, widths: list[int]) -> list[int]:
    """The columns as they are, or wider, or all of one width: as long as the table stays within reason."""
    choice = rng.random()
    if choice < 0.2 and max(widths) * len(widths) < min(1.4 * sum(widths), 860):
        return [max(widths)] * len(widths)
    if choice < 0.4 and sum(widths) < 480:
        extra = between(rng, 4, 24)
        return [width + extra for width in widths]
    return widths


def fills(canvas: Canvas, style: Style, xs: list[int], ys: list[int], accent: Colour, tint: Colour) -> None:
    if style.zebra or style.gap:
        for row in range(1, len(ys) - 1, 1 if style.gap else 2):
            canvas.box(xs[0], ys[row], xs[-1], ys[row + 1], None, tint)
    if style.first:
        canvas.box(xs[0], ys[0], xs[1], ys[-1], None, tint)
    if style.header != "plain":
        canvas.box(xs[0], ys[0], xs[-1], ys[1], None, accent if style.header == "strong" else tint)


def rules(canvas: Canvas, style: Style, xs: list[int], ys: list[int], colour: Colour, width: int) -> None:
    between_rows = {"all": ys[1:-1], "header": ys[1:2], "": []}[style.rows]
    for y in between_rows:
        canvas.line(xs[0], y, xs[-1], y, colour, width if y == ys[1] else 1)
    if style.columns:
        for x in xs[1:-1]:
            canvas.line(x, ys[0], x, ys[-1], colour)
    if style.ends:
        for y in (ys[0], ys[-1]):
            canvas.line(xs[0], y, xs[-1], y, colour, width)
    if style.frame:
        canvas.box(xs[0], ys[0], xs[-1], ys[-1], colour, width=width)
