"""Receipts and invoices whose sums are right: written out, or asked for a field or the price of an item."""

from dataclasses import dataclass

import numpy as np
from PIL.ImageFont import FreeTypeFont

from handlens.data.sample import Sample
from handlens.data.sources import Sources, pick
from handlens.data.structured import (
    INKS,
    PAPERS,
    PLACES,
    STRONG,
    WHITE,
    Colour,
    Currency,
    Drawn,
    Fact,
    Place,
    Sheet,
    at_size,
    between,
    capital,
    captions,
    chance,
    clear,
    date,
    fitted,
    height,
    legible_font,
    length,
    mix,
    phrase,
    price,
    to_sample,
)
from handlens.data.tables import STYLES, fills, rules
from handlens.markdown import markdown_table


def receipt(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_receipt(rng, sources, language, split), "receipt", language, reading_share=0.3)


def invoice(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_invoice(rng, sources, language, split), "invoice", language, reading_share=0.3)


# ---------------------------------------------------------------------------------------------------------- content


@dataclass(frozen=True)
class Item:
    name: str
    quantity: int
    price: int

    @property
    def amount(self) -> int:
        return self.quantity * self.price


@dataclass(frozen=True)
class Bill:
    """What was sold. Amounts are in the currency's smallest coin; tax is on top of the prices, or in them."""

    items: tuple[Item, ...]
    rate: float
    on_top: bool
    currency: Currency
    place: Place

    @property
    def subtotal(self) -> int:
        return sum(item.amount for item in self.items)

    @property
    def tax(self) -> int:
        base = 100 if self.on_top else 100 + self.rate
        return round(self.subtotal * self.rate / base)

    @property
    def total(self) -> int:
        return self.subtotal + self.tax if self.on_top else self.subtotal

    def money(self, amount: int) -> str:
        return self.place.money(amount, self.currency)

    def bare(self, amount: int) -> str:
        """The amount without the sign of the currency."""
        return self.place.number(amount, self.currency.decimals)


def sell(rng, sources, language, split, currency: Currency, most_items: int, highest: float, longest: int) -> Bill:
    """A bill of different items."""
    place = PLACES[language]
    items: dict[str, Item] = {}
    single = chance(rng, 0.3)
    for _ in range(between(rng, 1, most_items)):
        name = item_name(rng, sources, language, split, longest)
        quantity = 1 if single or chance(rng, 0.5) else between(rng, 2, 12)
        items[name] = Item(name, quantity, price(rng, currency, highest))
    on_top = chance(rng, 0.8 if language == "en" else 0.4)
    return Bill(tuple(items.values()), pick(rng, place.taxes), on_top, currency, place)


def item_name(rng, sources, language, split, longest: int) -> str:
    if chance(rng, 0.4):
        name = sources.name(rng, language, split, "product")
        if len(name) <= longest:
            return capital(name)
    return phrase(rng, sources, language, split, 3, longest)


def totals(rng: np.random.Generator, bill: Bill, words: dict[str, str]) -> list[tuple[str, str]]:
    """The lines below the items: (label, amount); the last is the total, unless the tax in it is told after it."""
    tax = words["tax"] if chance(rng, 0.4) else f"{words['tax']} {bill.place.percent(bill.rate)}"
    total = (words["total"], bill.money(bill.total))
    if bill.on_top:
        return [(words["subtotal"], bill.money(bill.subtotal)), (tax, bill.money(bill.tax)), total]
    before = [(words["subtotal"], bill.money(bill.subtotal))] if chance(rng, 0.4) else []
    return [*before, total, (tax, bill.money(bill.tax))]


def address(rng, sources, language, split) -> list[str]:
    """Two lines: street and number, postal code and city."""
    number = str(between(rng, 1, 250))
    street = sources.name(rng, language, split, "street")
    if not any(character.isdigit() for character in street):
        street = f"{number} {street}" if language in ("en", "fr") else f"{street} {number}"
    city = sources.name(rng, language, split, "city")
    code = f"{rng.integers(1000, 99999):05d}"
    return [street, f"{city} {code}" if language == "en" else f"{code} {city}"]


# --------------------------------------------------------------------------------------------------------- receipts


@dataclass(frozen=True)
class Template:
    head: str  # "m" centred or "l" flush left
    rule: str  # a style of Sheet.rule
    items: str  # a key of ITEM_ROWS
    total: str  # "plain", "large", "inverse" or "boxed"
    columns: bool = False  # a line of column names above the items


TEMPLATES = (
    Template("m", "dashed", "quantity first", "large"),
    Template("m", "solid", "one line", "plain"),
    Template("l", "dotted", "two lines", "large"),
    Template("m", "double", "columns", "plain", columns=True),
    Template("l", "thick", "one line", "inverse"),
    Template("m", "none", "quantity behind", "boxed"),
    Template("m", "dashed", "two lines", "inverse"),
    Template("l", "solid", "columns", "large", columns=True),
)


@fitted
def draw_receipt(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    """A narrow till receipt: shop, number and date, items, sums, payment, thanks."""
    words = captions(sources, language)
    template = pick(rng, TEMPLATES)
    size = pick(rng, (13, 14, 15, 16, 16, 18, 20))
    font = legible_font(rng, sources, language, split, size, pick(rng, ("mono", "")))
    large = at_size(font, size * pick(rng, (1, 1.2, 1.4)))
    currency = PLACES[language].currency(rng, font)
    bill = sell(rng, sources, language, split, currency, between(rng, 2, 12), 60, 22)
    money = bill.money if chance(rng, 0.4) else bill.bare
    item_rows = [ITEM_ROWS[template.items](item, bill, money) for item in bill.items]
    sums = totals(rng, bill, words)
    meta = meta_lines(rng, words, bill)
    payment = payment_lines(rng, words, bill)
    shop, thanks = sources.name(rng, language, split, "company"), words["thank_you"]
    if chance(rng, 0.3):
        shop = shop.upper()
    place = address(rng, sources, language, split) if chance(rng, 0.8) else []

    gap = size * between(rng, 1, 3)
    pairs = [row for rows in item_rows for row in rows] + [*sums, *meta, *payment]
    needed = [sum(length(text, font) for text in row) + gap * (len(row) - 1) for row in pairs]
    needed += [length(text, font) for text in (*place, thanks)] + [length(shop, large)]
    needed += [sum(length(text, large) for text in row) + gap for row in sums]
    columns = column_ends(item_rows, font, gap)
    inner = max(*needed, columns[-1], size * between(rng, 10, 16))
    margin = between(rng, 6, 22)
    sheet = Sheet(inner + 2 * margin, margin, pick(rng, PAPERS))
    ink, spacing, break_ = pick(rng, INKS), pick(rng, (1.0, 1.1, 1.25, 1.45)), size * between(rng, 0, 1)

    def pair(label: str, value: str, own=font, colour=ink) -> None:
        sheet.row([(margin, "l", label), (sheet.right, "r", value)], own, colour, spacing)

    centre = sheet.width / 2 if template.head == "m" else margin
    for text, own in ((shop, large), *((line, font) for line in place)):
        sheet.row([(centre, template.head, text)], own, ink, spacing)
    sheet.rule(template.rule, ink, size)
    for label, value in meta:
        pair(label, value)
    if meta:
        sheet.rule(template.rule, ink, size)
    if template.columns:
        names = (words["quantity"], words["item"], words["amount"])
        if all(
            fits for fits in (length(names[0], font) + gap // 2 <= columns[0], length(names[2], font) <= inner // 4)
        ):
            put_columns(sheet, names, columns, font, ink, spacing)
    for rows in item_rows:
        for row in rows:
            if len(row) == 3:
                put_columns(sheet, row, columns, font, ink, spacing)
            elif len(row) == 2:
                pair(*row)
            else:
                sheet.row([(margin, "l", row[0])], font, ink, spacing)
    sheet.rule(template.rule, ink, size)
    for label, value in sums:
        if label != words["total"]:
            pair(label, value)
            continue
        own = font if template.total == "plain" else large
        sheet.y += 4 if template.total in ("inverse", "boxed") else 0
        if template.total == "inverse":
            sheet.box(margin - 4, sheet.y - 2, sheet.right + 4, sheet.y + height(own) + 1, fill=ink)
        if template.total == "boxed":
            sheet.box(margin - 4, sheet.y - 2, sheet.right + 4, sheet.y + height(own) + 1, outline=ink)
        pair(label, value, own, sheet.paper if template.total == "inverse" else ink)
        sheet.y += 4 if template.total in ("inverse", "boxed") else 0
    sheet.y += break_
    for label, value in payment:
        pair(label, value)
    if chance(rng, 0.6):
        sheet.rule(template.rule, ink, size)
        sheet.row([(centre, template.head, thanks)], font, ink, spacing)

    facts = [
        Fact("receipt-field", value, {"field": label.removesuffix(":")}) for label, value in (*sums, *meta, *payment)
    ]
    facts += [
        Fact("receipt-item-price", money(item.amount), {"item": item.name}) for item in bill.items if item.quantity == 1
    ]
    facts.append(Fact("title", shop))
    return Drawn(sheet.canvas(), "\n".join(sheet.reading), clear(facts))


def put_columns(sheet: Sheet, row, columns: tuple[int, int], font, ink, spacing: float) -> None:
    """Quantity, name, amount."""
    quantity, name, amount = row
    sheet.row(
        [(sheet.margin, "l", quantity), (sheet.margin + columns[0], "l", name), (sheet.right, "r", amount)],
        font,
        ink,
        spacing,
    )


def column_ends(item_rows, font, gap: int) -> tuple[int, int]:
    """Where the names start and the least width of the whole, for rows of three."""
    threes = [row for rows in item_rows for row in rows if len(row) == 3]
    first, second, third = (max((length(row[i], font) for row in threes), default=0) for i in range(3))
    start = max(first + gap // 2, 3 * gap)
    return start, start + second + gap + third


def one_line(item: Item, bill: Bill, money) -> list[tuple[str, ...]]:
    name = item.name if item.quantity == 1 else f"{item.quantity} x {item.name}"
    return [(name, money(item.amount))]


def quantity_first(item: Item, bill: Bill, money) -> list[tuple[str, ...]]:
    return [(f"{item.quantity} {item.name}", money(item.amount))]


def quantity_behind(item: Item, bill: Bill, money) -> list[tuple[str, ...]]:
    name = item.name if item.quantity == 1 else f"{item.name} x{item.quantity}"
    return [(name, money(item.amount))]


def two_lines(item: Item, bill: Bill, money) -> list[tuple[str, ...]]:
    if item.quantity == 1:
        return [(item.name, money(item.amount))]
    return [(item.name,), (f"  {item.quantity} x {bill.bare(item.price)}", money(item.amount))]


def in_columns(item: Item, bill: Bill, money) -> list[tuple[str, ...]]:
    return [(str(item.quantity), item.name, money(item.amount))]


#: How an item is written: rows of one to three texts.
ITEM_ROWS = {
    "one line": one_line,
    "quantity first": quantity_first,
    "quantity behind": quantity_behind,
    "two lines": two_lines,
    "columns": in_columns,
}


def meta_lines(rng: np.random.Generator, words: dict[str, str], bill: Bill) -> list[tuple[str, str]]:
    colon = pick(rng, ("", ":"))
    lines = [(words["date"], date(rng).strftime(pick(rng, bill.place.dates)))]
    if chance(rng, 0.6):
        lines.append((words["time"], f"{between(rng, 6, 22):02d}:{between(rng, 0, 59):02d}"))
    if chance(rng, 0.6):
        lines.append((words["receipt_number"], str(between(rng, 1, 10 ** between(rng, 3, 8)))))
    if chance(rng, 0.3):
        lines.append((words["table"], str(between(rng, 1, 60))))
    if chance(rng, 0.3):
        lines.append((words["items"], str(sum(item.quantity for item in bill.items))))
    order = rng.permutation(len(lines))
    return [(lines[index][0] + colon, lines[index][1]) for index in order]


def payment_lines(rng: np.random.Generator, words: dict[str, str], bill: Bill) -> list[tuple[str, str]]:
    if chance(rng, 0.3):
        return []
    if chance(rng, 0.5):
        return [(words["card"], bill.money(bill.total))]
    notes = np.array([1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]) * 10**bill.currency.decimals * bill.currency.unit
    note = int(pick(rng, notes[:6]))
    paid = -(-bill.total // note) * note
    lines = [(words["cash"], bill.money(paid))]
    return lines + ([(words["change"], bill.money(paid - bill.total))] if paid > bill.total else [])


# --------------------------------------------------------------------------------------------------------- invoices


@dataclass(frozen=True)
class Layout:
    head: str  # "split", "centred", "band" or "title first"
    table: str  # a style of tables
    sums: str  # "plain", "boxed", "strong"
    meta: str  # "side" beside the customer, or "below"


LAYOUTS = (
    Layout("split", "book", "plain", "side"),
    Layout("split", "zebra", "strong", "below"),
    Layout("centred", "ruled-head", "boxed", "side"),
    Layout("band", "horizontal", "strong", "side"),
    Layout("title first", "head-rule", "plain", "below"),
    Layout("band", "ruled", "plain", "below"),
)


@fitted
def draw_invoice(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    """A letter-like page: seller, customer, number and dates, a table of items, sums, where to pay."""
    words = captions(sources, language)
    layout, size = pick(rng, LAYOUTS), pick(rng, (13, 14, 15, 16))
    font = legible_font(rng, sources, language, split, size)
    large = at_size(font, size * pick(rng, (1.5, 1.8, 2)))
    bill = sell(rng, sources, language, split, PLACES[language].currency(rng, font), between(rng, 1, 7), 900, 20)
    seller = sources.name(rng, language, split, "company")
    buyer = sources.name(rng, language, split, pick(rng, ("person", "company")))
    from_lines = [seller, *address(rng, sources, language, split)]
    to_lines = [buyer, *address(rng, sources, language, split)]
    meta, sums = invoice_meta(rng, words, bill), totals(rng, bill, words)
    header = [words["description"], words["quantity"], words["unit_price"], words["amount"]]
    rows = [[item.name, str(item.quantity), bill.bare(item.price), bill.bare(item.amount)] for item in bill.items]

    pads = between(rng, 5, 10), between(rng, 2, 6)
    widths = [max(length(text, font) for text in column) + 2 * pads[0] for column in zip(header, *rows)]
    meta_width = max(length(f"{label}: {value}", font) for label, value in meta)
    to_width = max(length(text, font) for text in (words["bill_to"], *to_lines))
    title = words["invoice"].upper() if chance(rng, 0.4) else words["invoice"]
    top_width = max(length(text, font) for text in from_lines) + length(title, large)
    inner = max(sum(widths), meta_width + to_width + 2 * size, top_width + 2 * size)
    widths[0] += inner - sum(widths)
    margin = between(rng, 12, 28)
    sheet = Sheet(inner + 2 * margin, margin, pick(rng, PAPERS))
    pen = Pen(sheet, font, pick(rng, INKS), pick(rng, STRONG), pick(rng, (1.05, 1.2, 1.35)))

    put_head(pen, layout.head, title, large, from_lines)
    sheet.y += size
    top = sheet.y
    pen.block(margin, "l", [words["bill_to"]], pen.accent)
    pen.block(margin, "l", to_lines)
    bottom, beside = sheet.y, layout.meta == "side"
    sheet.y = top if beside else bottom + size // 2
    pen.block(sheet.right if beside else margin, "r" if beside else "l", [f"{label}: {value}" for label, value in meta])
    sheet.y = max(bottom, sheet.y) + size
    put_items(pen, layout.table, header, rows, widths, pads)
    sheet.y += size // 2
    put_sums(pen, layout.sums, sums, words["total"], pads[0])
    if chance(rng, 0.5):
        sheet.y += size
        account = " ".join(f"{rng.integers(10**4):04d}" for _ in range(4))
        bank = f"{pick(rng, ('DE', 'FR', 'GB', 'ES', 'PL', 'NL'))}{rng.integers(100):02d}"
        pen.block(margin, "l", [f"IBAN: {bank} {account}"])

    facts = [Fact("invoice-field", value, {"field": label}) for label, value in (*meta, *sums)]
    facts.append(Fact("invoice-field", buyer, {"field": words["bill_to"]}))
    facts += [
        Fact("table-cell", text, {"row": row[0], "column": name})
        for row in rows
        for name, text in zip(header[1:], row[1:])
    ]
    return Drawn(sheet.canvas(), "\n".join(sheet.reading), clear(facts))


def invoice_meta(rng: np.random.Generator, words: dict[str, str], bill: Bill) -> list[tuple[str, str]]:
    """Number, date, and at times the day to pay by and the customer's number."""
    first, last = sorted(date(rng) for _ in range(2))
    pattern = pick(rng, bill.place.dates)
    number = pick(rng, ("", "", "R-", "INV-", "2024/")) + str(between(rng, 100, 10**6))
    meta = [(words["invoice_number"], number), (words["date"], first.strftime(pattern))]
    if chance(rng, 0.6):
        meta.append((words["due_date"], last.strftime(pattern)))
    if chance(rng, 0.3):
        meta.append((words["customer_number"], str(between(rng, 1000, 99999))))
    return meta


@dataclass(frozen=True)
class Pen:
    """What an invoice is written on and with."""

    sheet: Sheet
    font: FreeTypeFont
    ink: Colour
    accent: Colour
    spacing: float

    @property
    def deep(self) -> int:
        return round(height(self.font) * self.spacing)

    def block(self, x: float, anchor: str, lines: list[str], colour: Colour | None = None) -> None:
        for text in lines:
            self.sheet.row([(x, anchor, text)], self.font, colour or self.ink, self.spacing)


def put_head(pen: Pen, style: str, title: str, large: FreeTypeFont, seller: list[str]) -> None:
    """The word invoice and who sent it, in the order in which they are read."""
    sheet = pen.sheet
    left, middle, heading = sheet.margin, sheet.width / 2, f"# {title}"
    if style == "split":
        sheet.text(sheet.right, title, large, pen.accent, "r")
        bottom = sheet.y + height(large)
        pen.block(left, "l", seller)
        sheet.reading.append(heading)
        sheet.y = max(sheet.y, bottom)
    elif style == "centred":
        pen.block(middle, "m", seller)
        sheet.rule("solid", pen.accent, height(pen.font))
        sheet.text(middle, title, large, pen.accent, "m")
        sheet.reading.append(heading)
        sheet.y += height(large)
    elif style == "band":
        deep = max(len(seller) * pen.deep, height(large)) + 3 * sheet.margin // 2
        sheet.box(0, 0, sheet.width, deep, fill=pen.accent)
        sheet.text(left, title, large, WHITE)
        sheet.reading.append(heading)
        pen.block(sheet.right, "r", seller, WHITE)
        sheet.y = deep
    else:
        sheet.text(left, title, large, pen.ink)
        sheet.reading.append(heading)
        sheet.y += height(large)
        pen.block(left, "l", seller)


def put_items(pen: Pen, name: str, header: list[str], rows: list[list[str]], widths: list[int], pads) -> None:
    """The table of items in one of the styles of tables; all columns but the first are set flush right."""
    sheet, style, (pad_x, pad_y) = pen.sheet, STYLES[name], pads
    deep = height(pen.font) + 2 * pad_y
    xs = np.cumsum([sheet.margin, *widths]).tolist()
    ys = [sheet.y + index * deep for index in range(len(rows) + 2)]
    sheet.steps.append((fills, (style, xs, ys, pen.accent, mix(sheet.paper, pen.accent, 0.12))))
    sheet.steps.append((rules, (style, xs, ys, mix(pen.ink, sheet.paper, 0.3), 1)))
    for index, (y, row) in enumerate(zip(ys, [header, *rows])):
        colour = pen.ink if index or style.header != "strong" else WHITE
        for column, text in enumerate(row):
            x, anchor = (xs[column + 1] - pad_x, "r") if column else (xs[0] + pad_x, "l")
            sheet.text(x, text, pen.font, colour, anchor, y=y + pad_y)
    sheet.reading += ["", markdown_table(header, rows), ""]
    sheet.y = ys[-1]


def put_sums(pen: Pen, style: str, sums: list[tuple[str, str]], total: str, pad: int) -> None:
    """The sums at the right, the total in a frame or on colour."""
    sheet = pen.sheet
    left = sheet.right - pad - max(length(value, pen.font) for _, value in sums) - 2 * height(pen.font)
    for label, value in sums:
        marked = label == total and style != "plain"
        if marked:
            sheet.y += 5
            box = (left - length(label, pen.font) - pad, sheet.y - 2, sheet.right, sheet.y + pen.deep)
            sheet.box(*box, **({"outline": pen.accent} if style == "boxed" else {"fill": pen.accent}))
        colour = WHITE if marked and style == "strong" else pen.ink
        sheet.row([(left, "r", label), (sheet.right - pad, "r", value)], pen.font, colour, pen.spacing)
        sheet.y += 5 * marked
