"""Simple screenshots (settings, dialogs, windows, sign-in pages), asked for a setting, a button or the title."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL.ImageFont import FreeTypeFont

from handlens.data.raster import Canvas
from handlens.data.sample import Sample
from handlens.data.sources import Sources, pick
from handlens.data.structured import (
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
    to_sample,
)
from handlens.markdown import markdown_table


def screen(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_screen(rng, sources, language, split), "screen", language, reading_share=0.35)


@dataclass(frozen=True)
class Theme:
    """Fonts and colours of a screen, and where its words come from."""

    rng: np.random.Generator
    font: FreeTypeFont
    large: FreeTypeFont
    ink: Colour
    paper: Colour
    accent: Colour
    words: dict[str, str]
    phrase: Callable[[int, int], str]  # (most words, most characters)
    place: object

    @property
    def faint(self) -> Colour:
        return mix(self.ink, self.paper, 0.75)

    @property
    def quiet(self) -> Colour:
        return mix(self.ink, self.paper, 0.3)

    @property
    def deep(self) -> int:
        return height(self.font)


@fitted
def draw_screen(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    size = pick(rng, (13, 14, 15, 16, 18))
    font = legible_font(rng, sources, language, split, size, pick(rng, ("sans", "sans", "")))
    dark = chance(rng, 0.3)
    ink, paper = (
        ((235, 235, 240), pick(rng, ((28, 28, 32), (18, 22, 30), (45, 45, 48))))
        if dark
        else (
            pick(rng, ((20, 20, 20), (40, 44, 52), (0, 0, 0))),
            pick(rng, (WHITE, (246, 246, 248), (236, 238, 241), (240, 244, 250))),
        )
    )
    theme = Theme(
        rng,
        font,
        at_size(font, size * pick(rng, (1, 1.2, 1.4))),
        ink,
        paper,
        pick(rng, COLOURED),
        captions(sources, language),
        lambda most, longest: phrase(rng, sources, language, split, most, longest),
        PLACES[language],
    )
    sheet, facts = SCREENS[pick(rng, tuple(SCREENS))](theme)
    return Drawn(sheet.canvas(), "\n".join(sheet.reading), clear(facts))


def bar(theme: Theme, sheet: Sheet, title: str) -> Fact:
    """A title bar across the top, with or without signs for closing, or a bare heading."""
    rng, kind = theme.rng, pick(theme.rng, ("window", "phone", "heading"))
    deep = height(theme.large) + 12
    ground = theme.accent if kind == "phone" else mix(theme.paper, theme.ink, 0.1)
    if kind != "heading":
        sheet.box(0, 0, sheet.width, deep, fill=ground)
    x, anchor = (sheet.width / 2, "m") if chance(rng, 0.4) else (sheet.margin, "l")
    if kind == "window":
        for index, colour in enumerate(
            pick(rng, (((237, 106, 94), (245, 191, 79), (98, 197, 84)), (theme.quiet,) * 3))
        ):
            right = sheet.right - 14 * index
            sheet.steps.append((Canvas.ellipse, (right - 9, deep // 2 - 4, right, deep // 2 + 5, None, colour)))
        x, anchor = sheet.margin, "l"
    sheet.text(x, title, theme.large, WHITE if kind == "phone" else theme.ink, anchor, 6)
    sheet.reading.append(f"# {title}")
    sheet.y = deep + between(rng, 4, 14)
    return Fact("title", title)


def buttons(theme: Theme, sheet: Sheet, names: list[str], y: float) -> Fact:
    """Buttons from the right; the first name is the main one, which is filled."""
    rng, x, pad, shown = theme.rng, sheet.right, between(theme.rng, 8, 18), []
    for index, name in enumerate(names):
        width = length(name, theme.font) + 2 * pad
        box = (x - width, y, x, y + theme.deep + 10)
        if index:
            sheet.box(*box, outline=theme.quiet)
        else:
            sheet.box(*box, fill=theme.accent)
        sheet.text(x - width / 2, name, theme.font, theme.ink if index else WHITE, "m", y + 5)
        shown.append(name)
        x -= width + between(rng, 6, 14)
    sheet.reading.append(" ".join(reversed(shown)))
    sheet.y = y + theme.deep + 12
    return Fact("screen-button", names[0])


def button_width(theme: Theme, names: list[str]) -> int:
    return sum(length(name, theme.font) + 50 for name in names)


def button_names(theme: Theme) -> list[str]:
    """A main button and up to two others."""
    keys = [BUTTONS[index] for index in theme.rng.permutation(len(BUTTONS))[: between(theme.rng, 1, 3)]]
    return list(dict.fromkeys(theme.words[key] for key in keys))


def settings(theme: Theme) -> tuple[Sheet, list[Fact]]:
    """Rows of a name and what it is set to; switches say yes or no."""
    rng, words = theme.rng, theme.words
    rows: dict[str, str] = {}
    for _ in range(between(rng, 3, 9)):
        name = words[pick(rng, SETTINGS)] if chance(rng, 0.3) else theme.phrase(2, 20)
        rows[name] = setting_value(theme)
    title = words["settings"] if chance(rng, 0.6) else theme.phrase(2, 20)
    switch = theme.deep
    names, values = (max(length(text, theme.font) for text in texts) for texts in (rows, rows.values()))
    inner = max(names + values + 4 * theme.deep, length(title, theme.large) + 60) + between(rng, 0, 80)
    sheet = Sheet(inner + 2 * 14, 14, theme.paper)
    facts = [bar(theme, sheet, title)]
    pad, ruled, cards, last = between(rng, 3, 10), chance(rng, 0.6), chance(rng, 0.3), len(rows) - 1
    for index, (name, value) in enumerate(rows.items()):
        top, bottom = sheet.y, sheet.y + theme.deep + 2 * pad
        if cards:
            sheet.box(8, top + 1, sheet.width - 9, bottom - 1, fill=mix(theme.paper, theme.ink, 0.07))
        sheet.text(sheet.margin, name, theme.font, theme.ink, y=top + pad)
        right = sheet.right
        if value in (words["yes"], words["no"]):
            toggle(theme, sheet, right, top + pad, value == words["yes"])
            right -= 2 * switch
        sheet.text(right, value, theme.font, theme.quiet, "r", top + pad)
        sheet.reading.append(f"{name}: {value}")
        if ruled and index < last:
            sheet.line(sheet.margin, bottom, sheet.right, bottom, theme.faint)
        sheet.y = bottom
        facts.append(Fact("screen-setting", value, {"name": name}))
    return sheet, facts


def setting_value(theme: Theme) -> str:
    rng, words = theme.rng, theme.words
    return pick(
        rng,
        (
            words["yes"],
            words["no"],
            f"{between(rng, 0, 100)}%",
            theme.phrase(1, 14),
            str(between(rng, 1, 500)),
            f"{between(rng, 0, 23):02d}:{between(rng, 0, 59):02d}",
        ),
    )


def toggle(theme: Theme, sheet: Sheet, right: float, y: float, on: bool) -> None:
    """A switch: the knob at the right, on colour, is on."""
    side = theme.deep - 4
    left, colour = right - 1.7 * side, theme.accent if on else theme.faint
    for x in (left, right - side):
        sheet.steps.append((Canvas.ellipse, (x, y + 2, x + side, y + 2 + side, None, colour)))
    sheet.box(left + side / 2, y + 2, right - side / 2, y + 2 + side, fill=colour)
    knob = right - side + 2 if on else left + 2
    sheet.steps.append((Canvas.ellipse, (knob, y + 4, knob + side - 4, y + side, None, WHITE)))


def dialog(theme: Theme) -> tuple[Sheet, list[Fact]]:
    """A message with buttons, on a darkened ground at times."""
    rng = theme.rng
    title, names = theme.phrase(3, 24), button_names(theme)
    message = " ".join(theme.phrase(4, 40) for _ in range(between(rng, 1, 3)))
    inner = max(length(title, theme.large) + 60, button_width(theme, names), theme.deep * between(rng, 10, 20))
    lines = Canvas.wrap(message, theme.font, inner)
    sheet = Sheet(inner + 2 * 16, 16, theme.paper)
    facts = [bar(theme, sheet, title)]
    for line in lines:
        sheet.row([(sheet.margin, "l", line)], theme.font, theme.ink, 1.2)
    facts.append(buttons(theme, sheet, names, sheet.y + theme.deep // 2))
    if chance(rng, 0.5):
        sheet.box(0, 0, sheet.width - 1, sheet.y + sheet.margin - 1, outline=theme.quiet)
    return sheet, facts


def window(theme: Theme) -> tuple[Sheet, list[Fact]]:
    """A window with a menu and a list of recordings in columns."""
    rng, words = theme.rng, theme.words
    menu = list(
        dict.fromkeys(words[MENU[index]] for index in sorted(rng.permutation(len(MENU))[: between(rng, 2, 4)].tolist()))
    )
    header = [words["name"], words["date"], words["length"]]
    files: dict[str, list[str]] = {}
    for _ in range(between(rng, 2, 8)):
        name = theme.phrase(1, 14) + pick(rng, (".mp3", ".wav", ".mp4", ".ogg", ""))
        day = date(rng).strftime(theme.place.dates[0])
        files[name] = [name, day, f"{between(rng, 0, 99)}:{between(rng, 0, 59):02d}"]
    rows = list(files.values())
    widths = [max(length(text, theme.font) for text in column) + 20 for column in zip(header, *rows)]
    title = theme.phrase(2, 20)
    inner = max(sum(widths), sum(length(name, theme.font) + 16 for name in menu), length(title, theme.large) + 60)
    sheet = Sheet(inner + 2 * 10, 10, theme.paper)
    facts = [bar(theme, sheet, title)]
    x = float(sheet.margin)
    for name in menu:
        sheet.text(x, name, theme.font, theme.ink)
        x += length(name, theme.font) + 16
    sheet.reading += [" ".join(menu), ""]
    sheet.y += theme.deep + 6
    chosen = between(rng, 1, 2 * len(rows))
    step = theme.deep + between(rng, 1, 7)
    for index, row in enumerate([header, *rows]):
        if index == chosen:
            sheet.box(0, sheet.y - 1, sheet.width, sheet.y + step - 2, fill=theme.accent)
        x = float(sheet.margin)
        for text, width in zip(row, widths):
            sheet.text(x, text, theme.font, WHITE if index == chosen else theme.ink if index else theme.quiet)
            x += width
        sheet.y += step
        if not index:
            sheet.line(sheet.margin, sheet.y - 2, sheet.right, sheet.y - 2, theme.faint)
    sheet.reading += [markdown_table(header, rows)]
    facts += [
        Fact("table-cell", row[column], {"row": row[0], "column": header[column]}) for row in rows for column in (1, 2)
    ]
    return sheet, facts


def entry_page(theme: Theme) -> tuple[Sheet, list[Fact]]:
    """Fields with what was typed into them, and a wide button."""
    rng, words = theme.rng, theme.words
    fields = {
        words[ENTRIES[index]]: theme.phrase(2, 20) if chance(rng, 0.8) else ""
        for index in rng.permutation(len(ENTRIES))[: between(rng, 2, 4)]
    }
    title, names = theme.phrase(2, 20), button_names(theme)[:1]
    inner = max(
        theme.deep * between(rng, 11, 18),
        length(title, theme.large) + 60,
        button_width(theme, names),
        *(length(text, theme.font) + 20 for pair in fields.items() for text in pair),
    )
    sheet = Sheet(inner + 2 * 18, 18, theme.paper)
    facts = [bar(theme, sheet, title)]
    for label, value in fields.items():
        sheet.text(sheet.margin, label, theme.font, theme.quiet)
        sheet.y += theme.deep + 2
        sheet.box(sheet.margin, sheet.y, sheet.right, sheet.y + theme.deep + 8, outline=theme.quiet)
        sheet.text(sheet.margin + 6, value, theme.font, theme.ink, y=sheet.y + 4)
        sheet.reading.append(f"{label}: {value}".strip())
        sheet.y += theme.deep + 8 + between(rng, 4, 12)
        if value:
            facts.append(Fact("form-field", value, {"field": label}))
    top = sheet.y + 4
    sheet.box(sheet.margin, top, sheet.right, top + theme.deep + 12, fill=theme.accent)
    sheet.text(sheet.width / 2, names[0], theme.font, WHITE, "m", top + 6)
    sheet.reading.append(names[0])
    sheet.y = top + theme.deep + 12
    facts.append(Fact("screen-button", names[0]))
    return sheet, facts


#: What a main button is filled with: colours that stand out on light and on dark.
COLOURED = tuple(colour for colour in STRONG if max(colour) - min(colour) > 30)

SCREENS: dict[str, Callable[[Theme], tuple[Sheet, list[Fact]]]] = {
    "settings": settings,
    "dialog": dialog,
    "window": window,
    "entry page": entry_page,
}
BUTTONS = ("cancel", "save", "delete", "open", "close", "back", "next", "send", "search", "yes", "no")
BUTTONS += ("login", "print", "edit", "order")
SETTINGS = ("language", "country", "date", "time", "name", "email", "password")
MENU = ("file", "edit", "view", "help", "search")
ENTRIES = ("name", "email", "password", "phone", "address", "city", "company", "language")
