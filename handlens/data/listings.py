"""The maker of listings: programs, settings, logs and shells, in fonts of equal widths. Blanks before a line count."""

import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from handlens.data import strings
from handlens.data.raster import Canvas, Colour
from handlens.data.sample import Sample
from handlens.data.sources import Sources, pick
from handlens.data.text import clean, ink, scale_of, sized, transcription, words

Names = Callable[[], str]


class Theme(NamedTuple):
    """The colours of an editor or a terminal."""

    paper: Colour
    plain: Colour
    comment: Colour
    text: Colour
    number: Colour
    keyword: Colour


THEMES = (
    Theme((255, 255, 255), (0, 0, 0), (0, 110, 0), (160, 20, 20), (0, 90, 150), (0, 0, 200)),
    Theme((250, 250, 250), (40, 45, 55), (110, 115, 125), (60, 125, 60), (150, 90, 0), (150, 30, 150)),
    Theme((30, 30, 30), (215, 215, 215), (110, 155, 90), (205, 145, 120), (180, 205, 168), (90, 155, 215)),
    Theme((40, 42, 54), (248, 248, 242), (130, 145, 185), (240, 250, 140), (190, 150, 250), (255, 121, 198)),
    Theme((0, 0, 0), (190, 190, 190), (120, 120, 120), (80, 220, 80), (220, 220, 90), (90, 200, 220)),
    Theme((253, 246, 227), (70, 90, 100), (120, 130, 130), (20, 125, 120), (190, 40, 110), (100, 110, 0)),
)
KEYWORDS = (
    "if",
    "else",
    "for",
    "while",
    "return",
    "def",
    "class",
    "import",
    "in",
    "not",
    "and",
    "or",
    "None",
    "True",
    "False",
)
KEYWORDS += ("INFO", "WARN", "ERROR", "DEBUG", "true", "false", "null", "sudo")
TOKENS = re.compile(rf"(#.*|\"[^\"]*\"|'[^']*'|\b\d[\w.:-]*|\b(?:{'|'.join(sorted(KEYWORDS))})\b)")


def colour_of(token: str, theme: Theme) -> Colour:
    """The colour of one match of TOKENS."""
    if token in KEYWORDS:
        return theme.keyword
    return {"#": theme.comment, '"': theme.text, "'": theme.text}.get(token[0], theme.number)


def identifier(rng: np.random.Generator, known: Sequence[str]) -> str:
    """A name as programs use them: words in ASCII if these have any, else letters."""
    parts = [
        word.lower()
        if word.isascii() and word.isalpha()
        else strings.pick(rng, string.ascii_lowercase, rng.integers(1, 7))
        for word in (pick(rng, known) for _ in range(int(rng.integers(1, 4))))
    ]
    style = rng.random()
    if style < 0.6:
        return "_".join(parts)
    return parts[0] + "".join(map(str.capitalize, parts[1:])) if style < 0.9 else "_".join(parts).upper()


def value(rng: np.random.Generator, known: Sequence[str]) -> str:
    """A number, a quoted text, a list, or a name."""
    forms = (
        lambda: str(rng.integers(0, 10 ** int(rng.integers(1, 6)))),
        lambda: f"{rng.uniform(0, 100):.{rng.integers(1, 4)}f}",
        lambda: f'"{pick(rng, known)}"',
        lambda: f'"{pick(rng, known)} {pick(rng, known)}"',
        lambda: pick(rng, ("None", "True", "False", "0", "[]", "{}")),
        lambda: "[" + ", ".join(map(str, rng.integers(0, 100, rng.integers(1, 5)))) + "]",
        lambda: identifier(rng, known),
        lambda: f"{identifier(rng, known)}[{rng.integers(0, 20)}]",
        lambda: (
            f"{identifier(rng, known)} {pick(rng, ('+', '-', '*', '/', '%', '==', '<', '>='))} {rng.integers(0, 100)}"
        ),
    )
    return pick(rng, forms)()


def program(rng: np.random.Generator, known: Sequence[str], count: int) -> list[str]:
    """Statements in blocks."""
    lines, depth = [], 0
    for _ in range(count):
        name = identifier(rng, known)
        forms = (
            (f"{name} = {value(rng, known)}", 0),
            (f"{name}({value(rng, known)}, {value(rng, known)})", 0),
            (f"{name} = {identifier(rng, known)}({value(rng, known)})", 0),
            (f"if {name} {pick(rng, ('==', '!=', '<', '>', 'in'))} {value(rng, known)}:", 1),
            (f"for {name} in {identifier(rng, known)}:", 1),
            (f"def {name}({identifier(rng, known)}, {identifier(rng, known)}):", 1),
            (f"return {value(rng, known)}", -1),
            (f"# {' '.join(pick(rng, known) for _ in range(rng.integers(1, 6)))}", 0),
        )
        text, change = pick(rng, forms)
        lines.append("    " * depth + text)
        depth = int(np.clip(depth + change - (rng.random() < 0.2 and change == 0), 0, 3))
    return lines


def settings(rng: np.random.Generator, known: Sequence[str], count: int) -> list[str]:
    """Keys and values, in sections or not."""
    sign = pick(rng, (" = ", "=", ": "))
    return [
        f"[{identifier(rng, known)}]" if rng.random() < 0.15 else f"{identifier(rng, known)}{sign}{value(rng, known)}"
        for _ in range(count)
    ]


def log(rng: np.random.Generator, known: Sequence[str], count: int) -> list[str]:
    """What servers write: time, level, message."""
    day, levels = strings.date(rng), ("INFO", "INFO", "WARN", "ERROR", "DEBUG")
    lines = []
    for _ in range(count):
        message = f"{identifier(rng, known)}: {pick(rng, known)} {strings.any_string(rng)}"
        lines.append(f"{day} {strings.time(rng)} {pick(rng, levels)} {message}")
    return lines


def shell(rng: np.random.Generator, known: Sequence[str], count: int) -> list[str]:
    """Commands with their options, and what they answer."""
    prompt = pick(rng, ("$ ", "> ", "# ", "user@host:~$ ", ">>> "))
    lines = []
    for _ in range(count):
        if rng.random() < 0.5:
            option = f"{pick(rng, ('-', '--'))}{identifier(rng, known).lower()}"
            lines.append(
                f"{prompt}{identifier(rng, known).lower()} {option} {strings.address(rng, [pick(rng, known)])}"
            )
        else:
            lines.append(f"{strings.any_string(rng)} {pick(rng, known)}")
    return lines


def nested(rng: np.random.Generator, known: Sequence[str], count: int) -> list[str]:
    """Objects in braces."""
    lines = ["{"]
    depth = 1
    for _ in range(count):
        if depth < 3 and rng.random() < 0.25:
            lines.append("  " * depth + f'"{identifier(rng, known)}": {{')
            depth += 1
        else:
            lines.append("  " * depth + f'"{identifier(rng, known)}": {value(rng, known)},')
            if depth > 1 and rng.random() < 0.3:
                depth -= 1
                lines.append("  " * depth + "},")
    return lines + ["  " * level + "}" for level in reversed(range(depth))]


FLAVOURS = (program, program, settings, log, shell, nested)


def code(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Lines as editors and terminals show them, coloured or not."""
    fonts = sources.fonts(language, split)
    face = pick(rng, [font for font in fonts if font.style == "mono"] or fonts)
    scale, theme = scale_of(rng), pick(rng, THEMES)
    if rng.random() < 0.4:
        plain, paper = ink(rng)
        theme = Theme(paper, *[plain] * 5)
    font = sized(face, rng.uniform(12, 17), "", scale)
    margin, step = round(rng.uniform(4, 16) * scale), round(font.size * rng.uniform(1.15, 1.5))
    room = pick(rng, (448, 448, 560, 672)) * scale - 2 * margin
    known = words(rng, sources, language, split, 30)
    lines = [
        shortened(indent + clean(face, text), font, room)
        for indent, text in (
            re.fullmatch(r"( *)(.*)", text).groups()
            for text in pick(rng, FLAVOURS)(rng, known, int(rng.integers(3, 20)))
        )
    ]
    width = max(Canvas.measure(text, font)[0] for text in lines) if rng.random() < 0.7 else room
    canvas = Canvas(int(width + 2 * margin), int(step * len(lines) + 2 * margin), theme.paper)
    for row, text in enumerate(lines):
        x, y = margin, margin + row * step + font.size
        for index, token in enumerate(TOKENS.split(text)):
            if token:
                x += canvas.text(x, y, token, font, colour_of(token, theme) if index % 2 else theme.plain, "ls")
    return transcription(canvas, scale, "\n".join(lines), "code", language)


def shortened(text: str, font, room: float) -> str:
    """As many characters as fit into the room."""
    width = Canvas.measure(text, font)[0]
    while width > room:
        text = text[: max(int(len(text) * room / width), 1)].rstrip()
        width = Canvas.measure(text, font)[0] if len(text) > 1 else 0
    return text
