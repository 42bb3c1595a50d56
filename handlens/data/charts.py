"""Charts whose values are known, drawn by a fast rasteriser of our own (plots.py draws them by matplotlib)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from handlens.data.chart_values import Chart, invent
from handlens.data.raster import Canvas
from handlens.data.sample import Sample
from handlens.data.sources import Sources, pick
from handlens.data.structured import (
    INKS,
    PAPERS,
    WHITE,
    Colour,
    Drawn,
    at_size,
    between,
    chance,
    fitted,
    height,
    legible_font,
    length,
    mix,
    to_sample,
)

#: Series colours: none is near white or black, and neighbours differ.
PALETTES: tuple[tuple[Colour, ...], ...] = (
    ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75), (23, 190, 207)),
    ((0, 63, 92), (188, 80, 144), (255, 166, 0), (88, 80, 141), (255, 99, 97), (60, 140, 120), (120, 120, 120)),
    ((90, 130, 60), (200, 140, 40), (60, 100, 150), (170, 70, 60), (110, 80, 130), (70, 150, 150), (150, 120, 90)),
    ((25, 25, 25), (60, 60, 60), (95, 95, 95), (130, 130, 130), (165, 165, 165), (195, 195, 195), (215, 215, 215)),
    ((220, 80, 100), (80, 160, 220), (250, 190, 70), (100, 190, 130), (160, 110, 200), (240, 140, 90), (90, 110, 140)),
)


def chart(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_chart(rng, sources, language, split), "chart", language, reading_share=0.1)


@dataclass(frozen=True)
class Look:
    font: FreeTypeFont
    title: FreeTypeFont
    ink: Colour
    paper: Colour
    palette: tuple[Colour, ...]
    grid: bool
    frame: str  # "box", "axes" or "none"
    varied: bool  # every bar has a colour of its own
    marker: str  # "circle", "square", "diamond"

    def colour(self, index: int) -> Colour:
        return self.palette[index % len(self.palette)]

    @property
    def faint(self) -> Colour:
        return mix(self.ink, self.paper, 0.8)


@fitted
def draw_chart(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    content = invent(rng, sources, language, split, tuple(KINDS))
    size = pick(rng, (13, 13, 14, 15, 16, 18))
    font = legible_font(rng, sources, language, split, size)
    ink, paper = pick(rng, INKS), pick(rng, PAPERS)
    if chance(rng, 0.1):
        ink, paper = (235, 235, 235), (35, 38, 46)
    palette = pick(rng, PALETTES)
    if sum(paper) < sum(ink):
        palette = tuple(mix(colour, WHITE, 0.4) for colour in palette)
    look = Look(
        font,
        at_size(font, size * pick(rng, (1, 1.2, 1.4))),
        ink,
        paper,
        tuple(palette[index] for index in rng.permutation(len(palette))),
        grid=not content.shown or chance(rng, 0.5),
        frame=pick(rng, ("box", "axes", "axes", "none")),
        varied=chance(rng, 0.3),
        marker=pick(rng, ("circle", "square", "diamond")),
    )
    canvas = KINDS[content.kind](rng, content, look)
    return Drawn(canvas, content.reading(), content.facts())


class Page:
    """A canvas with room around a plot: title above, legend below or beside it."""

    def __init__(
        self,
        rng: np.random.Generator,
        content: Chart,
        look: Look,
        plot: tuple[int, int],
        sides: tuple[int, int],
        below: int,
    ):
        margin, (left, right) = between(rng, 6, 18), sides
        width = (
            max(left + plot[0] + right, length(content.title, look.title), self.legend_width(content, look))
            + 2 * margin
        )
        self.look = look
        deep = height(look.font)
        head = height(look.title) + between(rng, 4, 14) if content.title else 0
        legend = deep + 8 if len(content.series) > 1 else 0
        self.x0, self.y0 = (
            margin + left + (width - 2 * margin - left - plot[0] - right) // 2,
            margin + head + deep * (2 if content.axis else 1),
        )
        self.x1, self.y1 = self.x0 + plot[0], self.y0 + plot[1]
        self.canvas = Canvas(width, self.y1 + below + legend + margin, look.paper)
        if content.title:
            x, anchor = (width / 2, "ma") if chance(rng, 0.7) else (margin, "la")
            self.canvas.text(x, margin, content.title, look.title, look.ink, anchor)
        if legend:
            x, y = (width - self.legend_width(content, look)) // 2, self.y1 + below + 6
            for index, name in enumerate(content.series):
                self.canvas.box(x, y + deep // 4, x + deep // 2, y + deep * 3 // 4, None, look.colour(index))
                self.canvas.text(x + deep * 3 // 4, y, name, look.font, look.ink)
                x += length(name, look.font) + 2 * deep

    @staticmethod
    def legend_width(content: Chart, look: Look) -> int:
        return sum(length(name, look.font) + 2 * height(look.font) for name in content.series if name)

    def smooth(self, paint: Callable[[ImageDraw.ImageDraw, Callable], None]) -> None:
        """Draws over the plot at twice the size and reduces it, so that slanted edges are even."""
        x0, y0, edge = self.x0, self.y0, 12
        size = (2 * (self.x1 - x0 + 2 * edge), 2 * (self.y1 - y0 + 2 * edge))
        layer = Image.new("RGBA", size, (*self.look.paper, 0))
        paint(ImageDraw.Draw(layer), lambda x, y: (2 * (x - x0 + edge), 2 * (y - y0 + edge)))
        self.canvas.paste(x0 - edge, y0 - edge, np.asarray(layer.reduce(2)))


def upright(rng: np.random.Generator, content: Chart, look: Look) -> tuple[Page, list[float], Callable[[int], float]]:
    """A page with a value axis at the left and labels below; the middle of each label, and where a value lies."""
    font, deep = look.font, height(look.font)
    numbers = [content.write(tick) for tick in content.ticks]
    axis = bool(not content.shown or chance(rng, 0.7))
    left = max(length(number, font) for number in numbers) + 10 if axis else 4
    values = [content.write(value) for series in content.series.values() for value in series]
    own = max(length(value, font) for value in values) if content.shown else 12
    widest = max(length(label, font) for label in content.labels)
    slot = max(widest + 8, own * len(content.series) + 10, between(rng, 30, 90))
    per_row = 1
    if slot > 80 and slot * len(content.labels) > 560:
        slot, per_row = max(widest // 2 + 10, own * len(content.series) + 10), 2  # labels in two rows, by turns
    plot_height = max(between(rng, 140, 320), 2 * deep * len(numbers) if axis else 0)
    below = per_row * deep + 8
    over = max(0, (widest - slot) // 2 + 2)  # how far the outer labels reach beyond the plot
    page = Page(rng, content, look, (slot * len(content.labels), plot_height), (max(left, over), over), below)
    canvas, x0, y0, x1, y1 = page.canvas, page.x0, page.y0, page.x1, page.y1

    def at(value: int) -> float:
        return y1 - (y1 - y0) * value / content.top

    if axis:
        for tick, number in zip(content.ticks, numbers):
            if look.grid:
                canvas.line(x0, at(tick), x1, at(tick), look.faint)
            canvas.line(x0 - 4, at(tick), x0, at(tick), look.ink)
            canvas.text(x0 - 7, at(tick), number, font, look.ink, "rm")
    middles = [x0 + slot * (index + 0.5) for index in range(len(content.labels))]
    for index, (middle, label) in enumerate(zip(middles, content.labels)):
        canvas.text(middle, y1 + 4 + index % per_row * deep, label, font, look.ink, "ma")
    if look.frame == "box":
        canvas.box(x0, y0, x1, y1, look.ink)
    elif look.frame == "axes":
        canvas.line(x0, y0, x0, y1, look.ink)
        canvas.line(x0, y1, x1, y1, look.ink)
    if content.axis:
        canvas.text(x0, y0 - deep, content.axis, font, mix(look.ink, look.paper, 0.2), "ld")
    return page, middles, at


def bars(rng: np.random.Generator, content: Chart, look: Look) -> Canvas:
    page, middles, at = upright(rng, content, look)
    slot = middles[1] - middles[0] if len(middles) > 1 else page.x1 - page.x0
    count = len(content.series)
    room = slot * rng.uniform(0.5, 0.85)
    widest = max(length(content.write(value), look.font) for values in content.series.values() for value in values)
    if content.shown and count > 1:
        room = count * (widest + 3)
    inside = chance(rng, 0.2) and room / count > widest + 2
    for number, values in enumerate(content.series.values()):
        for index, (middle, value) in enumerate(zip(middles, values)):
            colour = look.colour(index if look.varied and count == 1 else number)
            x = middle - room / 2 + number * room / count
            page.canvas.box(x, at(value), x + room / count - 1, page.y1, None, colour)
            if content.shown:
                mark(
                    page.canvas,
                    content,
                    look,
                    x + room / count / 2,
                    at(value),
                    value,
                    inside and page.y1 - at(value) > 24,
                    colour,
                )
    return page.canvas


def mark(
    canvas: Canvas, content: Chart, look: Look, x: float, y: float, value: int, inside: bool, ground: Colour
) -> None:
    """Prints a value above its mark, or inside of it."""
    if inside:
        canvas.text(x, y + 2, content.write(value), look.font, readable_on(ground), "ma")
    else:
        canvas.text(x, y - 2, content.write(value), look.font, look.ink, "md")


def readable_on(ground: Colour) -> Colour:
    """Black or white, whichever stands out."""
    return WHITE if 0.3 * ground[0] + 0.6 * ground[1] + 0.1 * ground[2] < 135 else (0, 0, 0)


def lollipops(rng: np.random.Generator, content: Chart, look: Look) -> Canvas:
    page, middles, at = upright(rng, content, look)
    for index, (x, value) in enumerate(zip(middles, content.values)):
        colour = look.colour(index if look.varied else 0)
        page.canvas.line(x, at(value), x, page.y1, colour, 2)
        page.canvas.ellipse(x - 5, at(value) - 5, x + 5, at(value) + 5, fill=colour)
        if content.shown:
            mark(page.canvas, content, look, x, at(value) - 5, value, False, colour)
    return page.canvas


def lines(rng: np.random.Generator, content: Chart, look: Look) -> Canvas:
    page, middles, at = upright(rng, content, look)
    filled = content.kind == "area"
    thick, radius = between(rng, 3, 7), between(rng, 5, 10)

    def paint(draw: ImageDraw.ImageDraw, to: Callable) -> None:
        for number, values in enumerate(content.series.values()):
            colour = look.colour(number)
            points = [to(x, at(value)) for x, value in zip(middles, values)]
            if filled:
                ground = [to(middles[-1], page.y1), to(middles[0], page.y1)]
                draw.polygon([*points, *ground], fill=(*mix(look.paper, colour, 0.4), 255))
            draw.line(points, fill=(*colour, 255), width=thick, joint="curve")
            for x, y in points:
                MARKERS[look.marker](draw, x, y, radius, (*colour, 255))

    page.smooth(paint)
    if content.shown:
        for values in content.series.values():
            for index, (x, value) in enumerate(zip(middles, values)):
                # Below its point where the line comes down to it from both sides.
                low = value < min(values[max(index - 1, 0) : index] + values[index + 1 : index + 2])
                if low and not filled and page.y1 - at(value) > height(look.font) + radius:
                    page.canvas.text(x, at(value) + radius / 2 + 1, content.write(value), look.font, look.ink, "ma")
                else:
                    mark(page.canvas, content, look, x, at(value) - radius / 2, value, False, look.paper)
    return page.canvas


MARKERS = {
    "circle": lambda draw, x, y, r, colour: draw.ellipse((x - r, y - r, x + r, y + r), fill=colour),
    "square": lambda draw, x, y, r, colour: draw.rectangle((x - r, y - r, x + r, y + r), fill=colour),
    "diamond": lambda draw, x, y, r, colour: draw.polygon(
        [(x - r, y), (x, y - r), (x + r, y), (x, y + r)], fill=colour
    ),
}


def flat_bars(rng: np.random.Generator, content: Chart, look: Look) -> Canvas:
    """Bars from left to right, one below the other."""
    font, deep = look.font, height(look.font)
    axis = not content.shown or chance(rng, 0.6)
    numbers = [content.write(tick) for tick in content.ticks]
    left = max(length(label, font) for label in content.labels) + 10
    slot = round(deep * rng.uniform(1.2, 2.2))
    width = max(between(rng, 180, 380), sum(length(number, font) + 12 for number in numbers) if axis else 0)
    # The longest bar ends before the plot does, to leave room for its value.
    room = (
        max(length(content.write(value), font) for value in content.values) + 8
        if content.shown
        else length(numbers[-1], font) // 2
    )
    page = Page(rng, content, look, (width + room, slot * len(content.labels)), (left, 0), deep + 8 if axis else 4)
    canvas, x0, y0, y1 = page.canvas, page.x0, page.y0, page.y1
    for tick, number in zip(content.ticks, numbers):
        if axis:
            x = x0 + width * tick / content.top
            if look.grid:
                canvas.line(x, y0, x, y1, look.faint)
            canvas.line(x, y1, x, y1 + 4, look.ink)
            canvas.text(x, y1 + 5, number, font, look.ink, "ma")
    thick = slot * rng.uniform(0.5, 0.85)
    for index, (label, value) in enumerate(zip(content.labels, content.values)):
        y, x = y0 + slot * (index + 0.5), x0 + width * value / content.top
        canvas.box(x0, y - thick / 2, x, y + thick / 2, None, look.colour(index if look.varied else 0))
        canvas.text(x0 - 6, y, label, font, look.ink, "rm")
        if content.shown:
            canvas.text(x + 5, y, content.write(value), font, look.ink, "lm")
    if look.frame != "none":
        canvas.line(x0, y0, x0, y1, look.ink)
    return canvas


def crowded(middles: np.ndarray, radius: int, texts: list[str], font: FreeTypeFont) -> bool:
    """Whether the names around a pie would run into each other."""
    deep = height(font)
    boxes = []
    for angle, text in zip(middles, texts):
        x, y = label_place(angle, radius, deep)
        left = x if np.cos(angle) >= 0 else x - length(text, font)
        boxes.append((left, y, left + length(text, font), y + deep))
    return any(a[0] < b[2] + 4 and b[0] < a[2] + 4 and a[1] < b[3] and b[1] < a[3] for a, b in combinations(boxes, 2))


def label_place(angle: float, radius: int, deep: int) -> tuple[float, float]:
    """Where the name of a sector stands, from the middle of the pie."""
    return (radius + 8) * np.cos(angle), (radius + deep / 2 + 4) * np.sin(angle)


def pies(rng: np.random.Generator, content: Chart, look: Look) -> Canvas:
    """Sectors with their names around them, or in a legend; the values stand in the sectors or behind the names."""
    font, deep = look.font, height(look.font)
    radius = between(rng, 75, 130)
    hole = round(radius * rng.uniform(0.45, 0.6)) if content.kind == "donut" else 0
    inner = (hole + radius) / 2 if hole else radius * 0.65
    angles = np.cumsum([0, *content.values]) / sum(content.values) * 2 * np.pi + rng.uniform(0, 2 * np.pi)
    middles = (angles[1:] + angles[:-1]) / 2
    widest = max(length(content.write(value), font) for value in content.values)
    # Printed in the sectors if the smallest has room for it.
    within = min(np.diff(angles)) * inner > widest + 4 and radius - hole > widest + 4 and chance(rng, 0.7)
    texts = [
        label if within else f"{label} {content.write(value)}" for label, value in zip(content.labels, content.values)
    ]
    legend = chance(rng, 0.5) or crowded(middles, radius, texts, font)
    room = max(length(text, font) for text in texts) + 2 * deep
    edge = 0 if legend else deep + 10
    plot = (2 * radius + room if legend else 2 * radius + 2 * room, max(2 * radius + 2 * edge, deep * len(texts)))
    page = Page(rng, content, look, plot, (0, 0), 4)
    canvas, x, y = page.canvas, page.x0 + (radius if legend else radius + room), (page.y0 + page.y1) // 2

    def paint(draw: ImageDraw.ImageDraw, to: Callable) -> None:
        for index, (start, end) in enumerate(pairwise(angles)):
            box = (*to(x - radius, y - radius), *to(x + radius, y + radius))
            ground = look.colour(index)
            draw.pieslice(
                box, np.degrees(start), np.degrees(end), fill=(*ground, 255), outline=(*look.paper, 255), width=2
            )
        if hole:
            draw.ellipse((*to(x - hole, y - hole), *to(x + hole, y + hole)), fill=(*look.paper, 255))

    page.smooth(paint)
    for index, (angle, value, text) in enumerate(zip(middles, content.values, texts)):
        if within:
            spot = (x + inner * np.cos(angle), y + inner * np.sin(angle))
            canvas.text(*spot, content.write(value), font, readable_on(look.colour(index)), "mm")
        if legend:
            top = y - deep * len(texts) // 2 + index * deep
            start = x + radius + deep
            canvas.box(start, top + deep // 4, start + deep // 2, top + deep * 3 // 4, None, look.colour(index))
            canvas.text(start + deep * 3 // 4, top, text, font, look.ink)
        else:
            right = np.cos(angle) >= 0
            aside, down = label_place(angle, radius, deep)
            canvas.text(x + aside, y + down, text, font, look.ink, "lm" if right else "rm")
    return canvas


#: Seven colours are enough for the sectors of a pie: it has at most six.
KINDS: dict[str, Callable[[np.random.Generator, Chart, Look], Canvas]] = {
    "bar": bars,
    "flat bar": flat_bars,
    "line": lines,
    "area": lines,
    "lollipop": lollipops,
    "pie": pies,
    "donut": pies,
}
