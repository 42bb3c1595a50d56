"""Makers of whole pages, read as Markdown in reading order: articles with headings, lists and columns, and letters.

Lines of the answer are the lines of the page, blocks are apart by an empty line; a heading is one line, however set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import ImageOps
from PIL.ImageFont import FreeTypeFont

from handlens.data import strings
from handlens.data.empty import clouds
from handlens.data.raster import Canvas, Colour
from handlens.data.sample import Sample
from handlens.data.sources import Font, Sources, pick
from handlens.data.structured import INKS, PAPERS, capital, mix
from handlens.data.text import Ink, clean, content, ink, passage, put, scale_of, shorten, sized, transcription, words

#: (width, height) of pages, at most as many pixels as 672 x 672.
SIZES = (
    (448, 448),
    (448, 448),
    (448, 448),
    (672, 672),
    (672, 448),
    (448, 672),
    (560, 560),
    (476, 672),
    (420, 594),
    (640, 360),
)
#: A page has at most this many lines, so that what is read stays of a length that can be learned.
MOST_LINES = 32
REGULAR = 400
BULLETS = ("•", "•", "•", "-", "–", "*", "▪", "■", "○", "→", "✓", "·")


def sheet(rng: np.random.Generator) -> Ink:
    """The colours of a page: fewer of them are loud than of signs and labels."""
    return ink(rng) if rng.random() < 0.4 else Ink(pick(rng, INKS), pick(rng, PAPERS))


@dataclass
class Flow:
    """A canvas that fills up line by line, column by column, and the Markdown of what it holds."""

    canvas: Canvas
    columns: Sequence[tuple[float, float]]  # (left, width) of each
    top: float
    bottom: float
    colours: Ink
    column: int = 0
    y: float = 0  # where the next line goes
    blocks: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.y = self.top

    def room(self, height: float) -> bool:
        """Whether so much still fits; goes to the next column if only that has room."""
        if self.y + height <= self.bottom:
            return True
        if self.column + 1 == len(self.columns):
            return False
        self.column, self.y = self.column + 1, self.top
        return self.y + height <= self.bottom

    @property
    def full(self) -> bool:
        return self.column + 1 == len(self.columns) and self.y >= self.bottom

    def add(
        self,
        text: str,
        font: FreeTypeFont,
        step: float,
        align: str = "left",
        colour: Colour | None = None,
        before: str = "",
        mark: str = "",
        indent: float = 0,
        first: float = 0,
    ) -> list[str]:
        """The lines of Markdown of a block of text, drawn as far as there is room.

        `before` is what Markdown puts before the first line. A `mark` is drawn there, left of the text, which is moved
        by `indent`; `first` moves the first line only.
        """
        colour, drawn = colour or self.colours.text, []
        width = self.columns[self.column][1] - indent
        lines = Canvas.wrap(text, font, width)
        if first and lines:
            head = Canvas.wrap(text, font, width - first)[0]
            lines = [head, *Canvas.wrap(text[len(head) :].strip(), font, width)]
        for row, line in enumerate(lines):
            if not self.room(step):
                break
            left = self.columns[self.column][0]
            shift = first if row == 0 else 0
            base = self.y + (step - font.size) / 2 + 0.85 * font.size
            if mark and row == 0:
                self.canvas.text(left, base, mark, font, colour, "ls")
            last = "left" if align == "justified" and row == len(lines) - 1 else align
            put(self.canvas, left + indent + shift, base, width - shift, line, font, colour, last)
            drawn.append((before if row == 0 else "") + line)
            self.y += step
        return drawn

    def close(self, block: list[str], gap: float) -> None:
        """Ends a block: what follows is apart by the gap."""
        if block:
            self.blocks.append(block)
            self.y += gap

    def markdown(self) -> str:
        return "\n\n".join("\n".join(block) for block in self.blocks)


@dataclass(frozen=True)
class Style:
    """How one page is set. Lengths are in pixels of the canvas, which is `scale` times as large as the picture."""

    rng: np.random.Generator
    sources: Sources
    language: str
    split: str
    face: Font
    bold: Font
    body: FreeTypeFont
    size: float  # of the body, in pixels of the picture
    scale: float
    step: float
    align: str
    accent: Colour

    @classmethod
    def draw(
        cls, rng: np.random.Generator, sources: Sources, language: str, split: str, height: int, colours: Ink
    ) -> "Style":
        face, scale = sources.face(rng, language, split), scale_of(rng)
        family = [font for font in sources.fonts(language, split) if font.family == face.family]
        if face.weight > REGULAR and rng.random() < 0.8:
            face = min(family, key=lambda font: (abs(font.weight - REGULAR), font.italic))
        heavier = [font for font in family if font.weight > face.weight and not font.italic]
        bold = pick(rng, heavier) if heavier and rng.random() < 0.8 else sources.face(rng, language, split)
        size = max(12, height / (1.4 * MOST_LINES)) * rng.uniform(1, 1.5)
        body = sized(face, size, passage(rng, sources, language, split, 20), scale)
        accent = mix(colours.text, tuple(int(value) for value in rng.integers(0, 256, 3)), rng.uniform(0, 0.35))
        return cls(
            *(rng, sources, language, split, face, bold, body, body.size / scale, scale),
            step=body.size * rng.uniform(1.15, 1.6),
            align=pick(rng, ("left", "left", "justified")),
            accent=accent,
        )

    def text(self, length: int, kind: Callable = passage, face: Font | None = None) -> str:
        """About so much text of a kind that the face (that of the body) can write."""
        return clean(face or self.face, kind(self.rng, self.sources, self.language, self.split, length))

    def title(self) -> str:
        """One to six words as headings have them."""
        if self.rng.random() < 0.5:
            text = self.text(int(self.rng.integers(5, 40)), face=self.bold).rstrip(",;:.–-")
        else:
            several = words(self.rng, self.sources, self.language, self.split, int(self.rng.integers(1, 5)))
            text = clean(self.bold, capital(" ".join(several)))
        return text.upper() if self.rng.random() < 0.12 else text

    def heading_font(self, factor: float) -> FreeTypeFont:
        return sized(self.bold, self.size * factor, "", self.scale)


def page(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """A page of an article, a manual or a report."""
    width, height = pick(rng, SIZES)
    colours = sheet(rng)
    style = Style.draw(rng, sources, language, split, height, colours)
    scale = style.scale
    canvas = Canvas(round(width * scale), round(height * scale), colours.paper)
    left, right, top, bottom = rng.uniform((0.02, 0.02, 0.02, 0.03), 0.09) * (width, width, height, height) * scale
    inner = canvas.width - left - right
    flow = Flow(canvas, [(left, inner)], top, canvas.height - bottom, colours)
    small = sized(style.face, 0.85 * style.size, "", scale)
    footer = (
        pick(rng, FOOTERS).format(int(rng.integers(1, 400)), int(rng.integers(400, 500))) if rng.random() < 0.35 else ""
    )
    if footer:
        flow.bottom -= 1.6 * small.size
    if rng.random() < 0.15:
        head = shorten(style.text(40), int(inner / (0.6 * small.size)))
        flow.close(flow.add(head, small, 1.3 * small.size, pick(rng, ("left", "centre", "right"))), 0.5 * style.step)
        if rng.random() < 0.5:
            canvas.line(left, flow.y - 0.3 * style.step, left + inner, flow.y - 0.3 * style.step, colours.text)
    if rng.random() < 0.6 and (title := style.title()):
        heading(style, flow, title, "# ", rng.uniform(1.5, 2.2), pick(rng, ("left", "left", "centre")))
    if inner > 30 * style.body.size and rng.random() < 0.4:
        gutter = style.body.size * rng.uniform(1.2, 2.4)
        side = (inner - gutter) / 2
        flow.columns, flow.top = [(left, side), (left + side + gutter, side)], flow.y
        if rng.random() < 0.2:
            canvas.line(left + side + gutter / 2, flow.top, left + side + gutter / 2, flow.bottom, style.accent)
    for _ in range(int(rng.integers(3, 16))):
        if flow.full:
            break
        pick(rng, BLOCKS)(style, flow)
    if footer:
        base = canvas.height - bottom - 0.2 * small.size
        put(canvas, left, base, inner, footer, small, colours.text, pick(rng, ("centre", "centre", "right", "left")))
        flow.blocks.append([footer])
    return transcription(canvas, scale, flow.markdown(), "page", language)


FOOTERS = ("{}", "{}", "- {} -", "– {} –", "{} / {}", "{}/{}")


def heading(style: Style, flow: Flow, text: str, level: str, factor: float, align: str = "left") -> None:
    """A heading, if it and a line below it have room in this column."""
    font = style.heading_font(factor)
    step, width = 1.25 * font.size, flow.columns[flow.column][1]
    lines = len(Canvas.wrap(text, font, width))
    if text and flow.room(step * lines + 1.5 * style.step):
        drawn = flow.add(text, font, step, align, style.accent)
        flow.close([level + " ".join(drawn)], style.rng.uniform(0.1, 0.6) * style.step)


def section(style: Style, flow: Flow) -> None:
    """A heading in the text, with a number or without, and a paragraph."""
    text = style.title()
    if text and style.rng.random() < 0.25:
        text = (
            ".".join(map(str, style.rng.integers(1, 10, style.rng.integers(1, 4))))
            + pick(style.rng, (" ", ". "))
            + text
        )
    flow.y += 0.3 * style.step
    heading(style, flow, text, "## ", style.rng.uniform(1.15, 1.4))
    prose(style, flow)


def prose(style: Style, flow: Flow) -> None:
    """A paragraph of running text."""
    rng = style.rng
    text = style.text(int(rng.integers(60, 420)), passage if rng.random() < 0.85 else content)
    first = style.body.size * rng.uniform(1, 2) if rng.random() < 0.25 else 0
    flow.close(flow.add(text, style.body, style.step, style.align, first=first), rng.uniform(0.35, 0.9) * style.step)


def points(style: Style, flow: Flow) -> None:
    """A list, with bullets or numbers."""
    rng = style.rng
    bullet = pick(rng, BULLETS)
    numbered = rng.random() < 0.4 or not style.face.covers(bullet)
    after, start = pick(rng, (".", ".", ")")), int(rng.integers(1, 8)) if rng.random() < 0.2 else 1
    longest = int(rng.integers(16, 110))
    inset = style.body.size * rng.uniform(0, 1.2)
    lines = []
    for count in range(start, start + int(rng.integers(2, 8))):
        mark = f"{count}{after}" if numbered else bullet
        kind = content if rng.random() < 0.3 else passage
        text = style.text(int(rng.integers(8, longest)), kind)
        if not text or not flow.room(style.step):
            break
        indent = Canvas.measure(mark + " ", style.body)[0] + 0.3 * style.body.size + inset
        lines += flow.add(
            text, style.body, style.step, before=f"{mark} " if numbered else "- ", mark=mark, indent=indent
        )
    flow.close(lines, 0.5 * style.step)


def figure(style: Style, flow: Flow) -> None:
    """A picture in the text; it says nothing, and is not in the answer."""
    rng = style.rng
    left, width = flow.columns[flow.column]
    wide, high = int(width * rng.uniform(0.4, 1)), int(style.step * rng.uniform(2, 6))
    if flow.room(high + style.step):
        left = flow.columns[flow.column][0]
        ends = (tuple(int(value) for value in colour) for colour in rng.integers(0, 256, (2, 3)))
        picture = ImageOps.colorize(clouds(rng, wide, high, int(rng.integers(2, 9))), *ends)
        flow.canvas.paste(left + rng.uniform(0, 1) * (width - wide), flow.y, np.asarray(picture))
        flow.y += high + 0.7 * style.step


BLOCKS = (prose, prose, prose, prose, section, section, points, points, figure)


def letter(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """A letter: who writes, to whom, when, about what, the text, and a name below it."""
    width, height = pick(rng, ((448, 634), (476, 672), (448, 448), (560, 640)))
    colours = sheet(rng)
    style = Style.draw(rng, sources, language, split, height, colours)
    scale = style.scale
    canvas = Canvas(round(width * scale), round(height * scale), colours.paper)
    margin = rng.uniform(0.04, 0.11) * canvas.width
    top = rng.uniform(0.02, 0.06) * canvas.height
    flow = Flow(canvas, [(margin, canvas.width - 2 * margin)], top, canvas.height - top, colours)

    def name(kind: str) -> str:
        return sources.name(rng, language, split, kind)

    def stack(lines: Sequence[str], align: str, gap: float, font: FreeTypeFont = style.body) -> None:
        block = []
        for line in lines:
            block += flow.add(clean(style.face, line), font, 1.25 * font.size, align)
        flow.close(block, gap * style.step)

    def place() -> list[str]:
        return [f"{name('street')} {rng.integers(1, 200)}", f"{rng.integers(1000, 100000)} {name('city')}"]

    sender = [name("person"), *place()] if rng.random() < 0.5 else [name("company"), *place(), strings.phone(rng)]
    stack(sender, pick(rng, ("left", "right", "centre")), rng.uniform(0.6, 1.5))
    stack([name("person"), *place()], "left", rng.uniform(0.6, 1.5))
    stack(
        [f"{name('city')}, {strings.date(rng)}" if rng.random() < 0.5 else strings.date(rng)],
        pick(rng, ("left", "right")),
        0.8,
    )
    if rng.random() < 0.8:
        bold = sized(style.bold, style.size, "", scale)
        flow.close(flow.add(style.title(), bold, 1.25 * bold.size), 0.8 * style.step)
    room = flow.bottom - 2.5 * style.step
    flow.bottom, end = room, flow.bottom
    for _ in range(int(rng.integers(1, 4))):
        prose(style, flow)
    flow.bottom = end
    stack([sender[0]], "left", 0)
    return transcription(canvas, scale, flow.markdown(), "letter", language)
