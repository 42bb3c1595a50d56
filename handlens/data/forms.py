"""Filled-in forms and menus: written out, or asked for a field or a price."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL.ImageFont import FreeTypeFont

from handlens.data.receipts import address, item_name
from handlens.data.sample import Sample
from handlens.data.sources import Sources, pick
from handlens.data.structured import (
    INKS,
    PAPERS,
    PLACES,
    STRONG,
    WHITE,
    Colour,
    Drawn,
    Fact,
    Sheet,
    at_size,
    between,
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


def form(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_form(rng, sources, language, split), "form", language, reading_share=0.3)


def menu(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_menu(rng, sources, language, split), "menu", language, reading_share=0.3)


# ------------------------------------------------------------------------------------------------------------ forms


@dataclass(frozen=True)
class Entry:
    """A field: what is written in it, or which of its options is ticked."""

    label: str
    value: str
    options: tuple[str, ...] = ()

    @property
    def reading(self) -> str:
        if not self.options:
            return f"{self.label}: {self.value}".strip()
        return f"{self.label}: " + " ".join(f"[{'x' if o == self.value else ' '}] {o}" for o in self.options)


@dataclass(frozen=True)
class Pen:
    """What a form is drawn with."""

    printed: FreeTypeFont
    written: FreeTypeFont
    ink: Colour
    hand: Colour  # the colour of what was filled in
    line: Colour
    tint: Colour
    pad: int
    tick: str  # "cross", "check" or "fill"

    @property
    def deep(self) -> int:
        return max(height(self.printed), height(self.written))

    def width(self, entry: Entry) -> int:
        """What the value or the options of a field need."""
        if not entry.options:
            return length(entry.value, self.written) + self.pad
        return sum(length(option, self.printed) + self.deep + 2 * self.pad for option in entry.options)

    def value(self, sheet: Sheet, entry: Entry, x: float, y: float) -> None:
        """Writes the value, or draws the options with their boxes."""
        if not entry.options:
            sheet.text(x, entry.value, self.written, self.hand, y=y + self.deep - height(self.written))
            return
        side = round(self.deep * 0.6)
        top = y + (self.deep - side) // 2
        for option in entry.options:
            sheet.box(x, top, x + side, top + side, outline=self.ink)
            if option == entry.value:
                self.mark(sheet, x, top, side)
            sheet.text(x + side + self.pad // 2 + 2, option, self.printed, self.ink, y=y)
            x += length(option, self.printed) + self.deep + 2 * self.pad

    def mark(self, sheet: Sheet, x: float, y: float, side: int) -> None:
        if self.tick == "fill":
            sheet.box(x + 3, y + 3, x + side - 3, y + side - 3, fill=self.hand)
        elif self.tick == "cross":
            sheet.line(x + 2, y + 2, x + side - 2, y + side - 2, self.hand, 2)
            sheet.line(x + 2, y + side - 2, x + side - 2, y + 2, self.hand, 2)
        else:
            sheet.line(x + 1, y + side // 2, x + side // 2, y + side - 2, self.hand, 2)
            sheet.line(x + side // 2, y + side - 2, x + side + 2, y - 2, self.hand, 2)


@fitted
def draw_form(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    """A form with 3-10 fields, most of them filled in, in one of five layouts."""
    words = captions(sources, language)
    size = pick(rng, (13, 14, 15, 16, 18))
    printed = legible_font(rng, sources, language, split, size)
    written = (
        printed if chance(rng, 0.3) else legible_font(rng, sources, language, split, size + between(rng, 0, 4), "hand")
    )
    ink, paper = pick(rng, INKS), pick(rng, PAPERS)
    hand = pick(rng, (ink, (20, 40, 140), (15, 25, 90), (30, 30, 30)))
    pen = Pen(
        printed,
        written,
        ink,
        hand,
        mix(ink, paper, pick(rng, (0, 0.3, 0.6))),
        mix(paper, pick(rng, STRONG), 0.08),
        between(rng, 4, 8),
        pick(rng, ("cross", "check", "fill")),
    )
    entries = fill_in(rng, sources, language, split, words, between(rng, 3, 10))
    title_font = at_size(printed, size * pick(rng, (1.1, 1.4, 1.7)))
    title = words["form"] if chance(rng, 0.2) else phrase(rng, sources, language, split, 3)
    if chance(rng, 0.15):
        title = ""

    layout = pick(rng, tuple(FORM_LAYOUTS))
    labels = max(length(entry.label + ":", printed) for entry in entries)
    values = max(pen.width(entry) for entry in entries)
    inner = max(labels + values + 4 * pen.pad, length(title, title_font)) + between(rng, 0, 60)
    margin = between(rng, 8, 26)
    sheet = Sheet(inner + 2 * margin, margin, paper)
    if title:
        centred = chance(rng, 0.5)
        sheet.text(sheet.width / 2 if centred else margin, title, title_font, ink, "m" if centred else "l")
        sheet.reading.append(f"# {title}")
        sheet.y += height(title_font)
        sheet.rule(pick(rng, ("none", "solid", "thick")), ink, size)
    FORM_LAYOUTS[layout](sheet, entries, pen, labels + 2 * pen.pad)

    facts = [Fact("form-field", entry.value, {"field": entry.label}) for entry in entries if entry.value]
    if title:
        facts.append(Fact("title", title))
    return Drawn(sheet.canvas(), "\n".join(sheet.reading), clear(facts))


def fill_in(rng, sources, language, split, words: dict[str, str], count: int) -> list[Entry]:
    """Fields with different labels; one in ten is left empty."""
    entries: dict[str, Entry] = {}
    for _ in range(count):
        if chance(rng, 0.25):
            label = phrase(rng, sources, language, split, 2, 16)
            value = phrase(rng, sources, language, split, 3, 22) if chance(rng, 0.5) else str(between(rng, 0, 99999))
            entries[label] = Entry(label, value)
        elif chance(rng, 0.25):
            options = (words["yes"], words["no"])
            if chance(rng, 0.5):
                options = tuple(dict.fromkeys(phrase(rng, sources, language, split, 1, 12) for _ in range(3)))
            label = phrase(rng, sources, language, split, 2, 16)
            entries[label] = Entry(label, pick(rng, options), options)
        else:
            key = pick(rng, tuple(FIELDS))
            empty = chance(rng, 0.1)
            entries[words[key]] = Entry(words[key], "" if empty else FIELDS[key](rng, sources, language, split))
    return list(entries.values())


def named(kind: str) -> Callable[..., str]:
    return lambda rng, sources, language, split: sources.name(rng, language, split, kind)


def day(rng, sources, language, split) -> str:
    return date(rng).strftime(pick(rng, PLACES[language].dates))


def digits(low: int, high: int) -> Callable[..., str]:
    return lambda rng, sources, language, split: "".join(map(str, rng.integers(0, 10, between(rng, low, high))))


def telephone(rng, sources, language, split) -> str:
    groups = ["".join(map(str, rng.integers(0, 10, size))) for size in rng.integers(2, 5, 3)]
    return pick(rng, ("+", "0")) + pick(rng, (" ", "-", "/")).join(groups)


def mail(rng, sources, language, split) -> str:
    letters = ["".join(map(chr, rng.integers(97, 123, between(rng, 3, 8)))) for _ in range(2)]
    return (
        f"{letters[0]}{pick(rng, ('', '.', '_'))}{between(rng, 1, 99)}@{letters[1]}.{pick(rng, ('com', 'org', 'net'))}"
    )


def money(rng, sources, language, split) -> str:
    place = PLACES[language]
    return place.number(price(rng, place.currencies[0], 5000), place.currencies[0].decimals)


#: The common fields by the key of their label, and what is written in them.
FIELDS: dict[str, Callable[..., str]] = {
    "name": named("person"),
    "first_name": named("first"),
    "last_name": named("last"),
    "address": lambda *arguments: address(*arguments)[0],
    "city": named("city"),
    "country": named("country"),
    "company": named("company"),
    "date_of_birth": day,
    "date": day,
    "phone": telephone,
    "email": mail,
    "postal_code": digits(4, 6),
    "number": digits(3, 9),
    "amount": money,
    "signature": named("last"),
}


def ruled_lines(sheet: Sheet, entries: list[Entry], pen: Pen, start: int) -> None:
    """Label, colon, value on a line; the lines begin behind each label."""
    for entry in entries:
        sheet.text(sheet.margin, entry.label + ":", pen.printed, pen.ink, y=sheet.y + pen.deep - height(pen.printed))
        x = sheet.margin + length(entry.label + ":", pen.printed) + pen.pad
        pen.value(sheet, entry, x, sheet.y)
        sheet.y += pen.deep
        if not entry.options:
            sheet.line(x, sheet.y, sheet.right, sheet.y, pen.line)
        sheet.reading.append(entry.reading)
        sheet.y += pen.pad


def aligned_boxes(sheet: Sheet, entries: list[Entry], pen: Pen, start: int) -> None:
    """Labels flush right, each value in a box beside it."""
    for entry in entries:
        sheet.text(sheet.margin + start - pen.pad, entry.label, pen.printed, pen.ink, "r", sheet.y + 2)
        if not entry.options:
            box = (sheet.margin + start, sheet.y, sheet.right, sheet.y + pen.deep + 4)
            sheet.box(*box, outline=pen.line, fill=WHITE if pen.pad % 2 else None)
        pen.value(sheet, entry, sheet.margin + start + pen.pad // 2, sheet.y + 2)
        sheet.reading.append(entry.reading)
        sheet.y += pen.deep + 4 + pen.pad


def ruled_table(sheet: Sheet, entries: list[Entry], pen: Pen, start: int) -> None:
    """A table of two columns: labels on a tint, values beside them."""
    for entry in entries:
        bottom, middle = sheet.y + pen.deep + pen.pad, sheet.margin + start
        sheet.box(sheet.margin, sheet.y, middle, bottom, outline=pen.line, fill=pen.tint)
        sheet.box(middle, sheet.y, sheet.right, bottom, outline=pen.line)
        sheet.text(sheet.margin + pen.pad, entry.label, pen.printed, pen.ink, y=sheet.y + pen.pad // 2)
        pen.value(sheet, entry, middle + pen.pad, sheet.y + pen.pad // 2)
        sheet.reading.append(entry.reading)
        sheet.y = bottom


def stacked(sheet: Sheet, entries: list[Entry], pen: Pen, start: int) -> None:
    """The label above its box; two fields side by side where both fit."""
    half = (sheet.right - sheet.margin - 2 * pen.pad) // 2
    x, pending = sheet.margin, list(entries)
    while pending:
        pair = pending[:2]
        if len(pair) == 2 and all(max(pen.width(e), length(e.label, pen.printed)) + pen.pad <= half for e in pair):
            boxes = [(x, x + half), (sheet.right - half, sheet.right)]
        else:
            pair, boxes = pair[:1], [(x, sheet.right)]
        top = sheet.y + height(pen.printed) + 1
        for entry, (left, right) in zip(pair, boxes):
            sheet.text(left, entry.label, pen.printed, pen.ink)
            if not entry.options:
                sheet.box(left, top, right, top + pen.deep + 4, outline=pen.line)
            pen.value(sheet, entry, left + pen.pad // 2, top + 2)
            sheet.reading.append(entry.reading)
        sheet.y = top + pen.deep + 6 + pen.pad
        del pending[: len(pair)]


def combs(sheet: Sheet, entries: list[Entry], pen: Pen, start: int) -> None:
    """A box for every character, where they fit; a frame else."""
    cell = max(length("M", pen.written), length("W", pen.written)) + 3
    for entry in entries:
        sheet.text(sheet.margin, entry.label, pen.printed, pen.ink, y=sheet.y + 2)
        left, top, bottom = sheet.margin + start, sheet.y, sheet.y + pen.deep + 4
        count = len(entry.value) + 2
        if entry.options:
            pen.value(sheet, entry, left, top + 2)
        elif entry.value.isascii() and left + count * cell <= sheet.right:
            for index in range(count):
                sheet.box(left + index * cell, top, left + (index + 1) * cell, bottom, outline=pen.line)
            for index, character in enumerate(entry.value):
                sheet.text(left + (index + 0.5) * cell, character, pen.written, pen.hand, "m", top + 2)
        else:
            sheet.box(left, top, sheet.right, bottom, outline=pen.line)
            pen.value(sheet, entry, left + pen.pad // 2, top + 2)
        sheet.reading.append(entry.reading)
        sheet.y = bottom + pen.pad


FORM_LAYOUTS: dict[str, Callable[[Sheet, list[Entry], Pen, int], None]] = {
    "ruled lines": ruled_lines,
    "aligned boxes": aligned_boxes,
    "ruled table": ruled_table,
    "stacked": stacked,
    "combs": combs,
}

# ------------------------------------------------------------------------------------------------------------ menus


@dataclass(frozen=True)
class Card:
    """How a menu sets its dishes."""

    centred: bool = False
    leader: str = ""  # what leads to the price: "dotted", "solid" or nothing
    below: bool = False  # the price on a line of its own
    frame: bool = False
    notes: float = 0.0  # the share of dishes with a line of text below


CARDS = (
    Card(leader="dotted"),
    Card(),
    Card(centred=True, below=True),
    Card(frame=True, leader="dotted", notes=0.4),
    Card(notes=0.8),
    Card(centred=True, below=True, frame=True, notes=0.3),
)


@fitted
def draw_menu(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    """A menu or price list: a name, one to three parts with headings, dishes and prices."""
    words = captions(sources, language)
    card, size = pick(rng, CARDS), pick(rng, (14, 15, 16, 18, 20))
    font = legible_font(rng, sources, language, split, size)
    display = legible_font(
        rng, sources, language, split, round(size * pick(rng, (1.3, 1.6, 2))), pick(rng, ("", "display"))
    )
    heading, note = at_size(display, size * 1.2), at_size(font, max(font.size - 2, 13))
    currency = PLACES[language].currency(rng, font)
    name = words["menu"] if chance(rng, 0.3) else phrase(rng, sources, language, split, 2, 20)
    sections = sorted(rng.permutation(len(SECTIONS))[: between(rng, 1, 3)].tolist())
    dishes = {
        words[SECTIONS[section]]: [
            (
                item_name(rng, sources, language, split, 24),
                PLACES[language].money(price(rng, currency, 40), currency),
                phrase(rng, sources, language, split, 4, 30) if chance(rng, card.notes) else "",
            )
            for _ in range(between(rng, 2, 6))
        ]
        for section in sections
    }

    gap = size * between(rng, 2, 4)
    lines = [dish for part in dishes.values() for dish in part]
    inner = max(
        length(name, display),
        *(length(title, heading) for title in dishes),
        *(max(length(dish, font) + gap + length(cost, font), length(text, note)) for dish, cost, text in lines),
    )
    margin = between(rng, 16, 34)
    dark = chance(rng, 0.12)
    ink, paper = (WHITE, pick(rng, STRONG)) if dark else (pick(rng, INKS), pick(rng, PAPERS))
    accent = ink if dark else pick(rng, STRONG)
    sheet = Sheet(inner + 2 * margin, margin, paper)
    centre, anchor = (sheet.width / 2, "m") if card.centred or chance(rng, 0.4) else (margin, "l")
    spacing = pick(rng, (1.1, 1.25, 1.5))

    def heads(text: str, own: FreeTypeFont, marks: str) -> None:
        sheet.row([(centre, anchor, text)], own, accent, 1.2)
        sheet.reading[-1] = f"{marks} {text}"

    heads(name, display, "#")
    for title, part in dishes.items():
        sheet.y += size // 2
        heads(title, heading, "##")
        for dish, cost, text in part:
            if card.below:
                sheet.row([(centre, "m", dish)], font, ink, spacing)
                sheet.row([(centre, "m", cost)], font, ink, spacing)
            else:
                lead(
                    sheet, card.leader, margin + length(dish, font) + 4, sheet.right - length(cost, font) - 4, font, ink
                )
                sheet.row([(margin, "l", dish), (sheet.right, "r", cost)], font, ink, spacing)
            if text:
                sheet.row(
                    [(centre if card.below else margin, "m" if card.below else "l", text)],
                    note,
                    mix(ink, paper, 0.25),
                    spacing,
                )
    if card.frame:
        edge = margin // 3
        sheet.box(
            edge, edge, sheet.width - edge - 1, sheet.y + margin - edge - 1, outline=accent, width=pick(rng, (1, 2))
        )

    facts = [Fact("menu-price", cost, {"item": dish}) for dish, cost, _ in lines]
    return Drawn(sheet.canvas(), "\n".join(sheet.reading), clear([*facts, Fact("title", name)]))


def lead(sheet: Sheet, style: str, x0: int, x1: int, font: FreeTypeFont, colour: Colour) -> None:
    """A line of dots, or a thin line, on the baseline from the dish to its price."""
    y = sheet.y + font.getmetrics()[0] - 1
    if style == "dotted":
        for x in range(x0, x1 - 1, 5):
            sheet.box(x, y, x + 1, y, fill=colour)


SECTIONS = ("starters", "mains", "desserts", "drinks")
