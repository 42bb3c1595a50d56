"""What structured documents share: facts that can be asked, a sheet that grows, numbers as a country writes them."""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path

import numpy as np
from PIL.ImageFont import FreeTypeFont

from handlens.data.questions import ask
from handlens.data.raster import Canvas, covers, x_height
from handlens.data.sample import Sample
from handlens.data.sources import Sources, load, pick

Colour = tuple[int, int, int]

#: Dark inks and light papers: any ink can be read on any paper.
INKS: tuple[Colour, ...] = ((0, 0, 0), (0, 0, 0), (25, 25, 30), (40, 40, 40), (60, 55, 50), (15, 30, 80), (70, 15, 20))
PAPERS: tuple[Colour, ...] = (
    (255, 255, 255),
    (255, 255, 255),
    (255, 255, 255),
    (250, 248, 240),
    (244, 244, 246),
    (238, 244, 250),
    (252, 246, 226),
    (232, 236, 228),
)
#: Strong colours that white text can be read on.
STRONG: tuple[Colour, ...] = (
    (30, 60, 120),
    (20, 100, 70),
    (130, 30, 40),
    (70, 50, 110),
    (50, 50, 55),
    (0, 95, 115),
    (140, 75, 10),
    (10, 10, 10),
)
#: The keys of the labels of months and days.
MONTHS = ("january", "february", "march", "april", "may", "june", "july")
MONTHS += ("august", "september", "october", "november", "december")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
WHITE: Colour = (255, 255, 255)
#: A picture of more pixels than this is cut into more slices than the default model is trained for.
MAX_AREA = 672 * 672


@dataclass(frozen=True)
class Fact:
    """Something that can be asked of a document: the kind and slots of the question, and the answer as printed."""

    kind: str
    answer: str
    slots: dict[str, str] = field(default_factory=dict)


#: How many further questions about a picture there are at most, and how long their answers may be.
MOST_FURTHER, LONGEST_FURTHER = 7, 60
#: Kinds of facts that are asked more seldom than the others: they are easy, and nearly every document has one.
SELDOM = {"title": 0.3, "chart-title": 0.4}


@dataclass(frozen=True)
class Drawn:
    """A drawn document, its transcription, and what can be asked of it."""

    canvas: Canvas
    reading: str
    facts: tuple[Fact, ...]


def to_sample(rng: np.random.Generator, drawn: Drawn, task: str, language: str, reading_share: float) -> Sample:
    """The sample of a drawn document: its transcription, or one of its facts."""
    question, answer, more = "", drawn.reading, ()
    if drawn.facts and not chance(rng, reading_share):
        kinds = {fact.kind: SELDOM.get(fact.kind, 1.0) for fact in drawn.facts}
        bounds = np.cumsum(list(kinds.values()))
        kind = list(kinds)[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]
        fact = pick(rng, [fact for fact in drawn.facts if fact.kind == kind])
        question, answer = ask(rng, kind, language, **fact.slots), fact.answer
        more = further(rng, language, [other for other in drawn.facts if other is not fact])
    image, characters, centres = drawn.canvas.finish()
    return Sample(image, question, answer, task, language, characters, centres, more)


def further(rng: np.random.Generator, language: str, facts: Sequence[Fact]) -> tuple[tuple[str, str], ...]:
    """Questions about some of the facts in any order, with their answers: what a picture can be asked besides.

    The generator stands where it stood, so a sample is the same with them and without them.
    """
    (own,) = rng.spawn(1)
    short = [fact for fact in facts if len(fact.answer) <= LONGEST_FURTHER]
    chosen = [short[i] for i in own.permutation(len(short))[:MOST_FURTHER]]
    return tuple((ask(own, fact.kind, language, **fact.slots), fact.answer) for fact in chosen)


def clear(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """The facts without those whose question has two answers in the document."""
    answers: dict[tuple, set[str]] = {}
    for fact in facts:
        answers.setdefault((fact.kind, *fact.slots.values()), set()).add(fact.answer)
    return tuple(fact for fact in facts if len(answers[fact.kind, *fact.slots.values()]) == 1)


def fitted(draw: Callable[..., Drawn]) -> Callable[..., Drawn]:
    """The function that draws again, from where the generator stands, until the picture is not too large."""

    @wraps(draw)
    def drawn(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
        while True:
            document = draw(rng, sources, language, split)
            if document.canvas.width * document.canvas.height <= MAX_AREA:
                return document

    return drawn


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]


def captions(sources: Sources, language: str) -> dict[str, str]:
    """The short words of a language as they stand at the head of a line."""
    return {key: capital(label) for key, label in sources.labels(language).items()}


def chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def between(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high, both included."""
    return int(rng.integers(low, high + 1))


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """A colour moved towards another."""
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other))


def phrase(rng: np.random.Generator, sources: Sources, language: str, split: str, most: int, longest: int = 26) -> str:
    """One to `most` words that start with a capital and take at most `longest` characters."""
    words = sources.words(language, split)
    text = pick(rng, words)
    while len(text) > longest:
        text = pick(rng, words)
    for _ in range(between(rng, 1, most) - 1):
        longer = f"{text}{'' if language in UNSPACED else ' '}{pick(rng, words)}"
        if len(longer) <= longest:
            text = longer
    return capital(text)


UNSPACED = {"zh", "ja"}


@dataclass(frozen=True)
class Currency:
    """How an amount is written; `unit` is what the smallest sensible price step is worth in the smallest coin."""

    pattern: str
    decimals: int = 2
    unit: int = 1


@dataclass(frozen=True)
class Place:
    """How amounts and dates are written where a language is spoken (as in CLDR, spaces plain); tax in percent."""

    decimal: str
    group: str
    currencies: tuple[Currency, ...]
    dates: tuple[str, ...]
    taxes: tuple[float, ...]

    def number(self, value: int, decimals: int = 0) -> str:
        """The number value / 10^decimals as printed: number(123456, 2) is "1,234.56" in English."""
        digits = str(abs(value)).rjust(decimals + 1, "0")
        whole, rest = (digits[:-decimals], digits[-decimals:]) if decimals else (digits, "")
        whole = f"{int(whole):,}".replace(",", self.group)
        return ("-" if value < 0 else "") + whole + (self.decimal + rest if rest else "")

    def money(self, minor: int, currency: Currency) -> str:
        """An amount in the currency's smallest unit as printed: "12,40 €"."""
        return currency.pattern.format(self.number(minor, currency.decimals))

    def percent(self, rate: float) -> str:
        return f"{rate:g}".replace(".", self.decimal) + "%"

    def currency(self, rng: np.random.Generator, *fonts: FreeTypeFont) -> "Currency":
        """A way to write amounts with signs that all the fonts have."""
        return pick(rng, [way for way in self.currencies if all(covers(way.pattern, font) for font in fonts)])


EURO = (Currency("{} €"), Currency("{} €"), Currency("{} EUR"), Currency("{}"))
VIETNAMESE = tuple(Currency(sign, 0, 2000) for sign in ("{} đ", "{} ₫", "{} VND", "{}"))
POINT_DATES = ("%d.%m.%Y", "%d.%m.%Y", "%d.%m.%y", "%Y-%m-%d")
SLASH_DATES = ("%d/%m/%Y", "%d/%m/%Y", "%d/%m/%y", "%d-%m-%Y")
ISO_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d")
PLACES = {
    "en": Place(
        ".",
        ",",
        (Currency("${}"), Currency("${}"), Currency("£{}"), Currency("{}"), Currency("€{}"), Currency("USD {}")),
        ("%m/%d/%Y", "%d/%m/%Y", "%Y-%m-%d", "%d %b %Y", "%b %d, %Y"),
        (5, 6.5, 7.25, 8, 8.875, 10, 20),
    ),
    "de": Place(",", ".", (*EURO, Currency("EUR {}"), Currency("CHF {}")), POINT_DATES, (7, 19, 10, 20)),
    "fr": Place(",", " ", (*EURO, Currency("{} CHF")), SLASH_DATES, (5.5, 10, 20)),
    "es": Place(",", ".", (*EURO, Currency("{} €")), SLASH_DATES, (4, 10, 21)),
    "it": Place(",", ".", (*EURO, Currency("€ {}")), SLASH_DATES, (4, 10, 22)),
    "pt": Place(",", ".", (*EURO, Currency("R$ {}"), Currency("R$ {}")), SLASH_DATES, (6, 13, 23)),
    "nl": Place(",", ".", (Currency("€ {}"), Currency("€ {}"), *EURO), ("%d-%m-%Y", "%d/%m/%Y"), (9, 21)),
    "pl": Place(",", " ", (Currency("{} zł"), Currency("{} PLN"), Currency("{}")), POINT_DATES, (5, 8, 23)),
    "cs": Place(",", " ", (Currency("{} Kč"), Currency("{} CZK"), Currency("{}")), POINT_DATES, (12, 15, 21)),
    "tr": Place(",", ".", (Currency("{} TL"), Currency("₺{}"), Currency("{}")), POINT_DATES, (1, 10, 20)),
    "vi": Place(",", ".", VIETNAMESE, SLASH_DATES, (5, 8, 10)),
    "ru": Place(
        ",", " ", (Currency("{} руб."), Currency("{} р."), Currency("{} ₽"), Currency("{}")), POINT_DATES, (10, 20)
    ),
    "uk": Place(",", " ", (Currency("{} грн"), Currency("{} ₴"), Currency("{}")), POINT_DATES, (7, 20)),
    "el": Place(",", ".", EURO, SLASH_DATES, (6, 13, 24)),
    "zh": Place(
        ".", ",", (Currency("¥{}"), Currency("{}元"), Currency("{}")), (*ISO_DATES, "%Y年%m月%d日"), (3, 6, 13)
    ),
    "ja": Place(".", ",", (Currency("¥{}", 0, 10), Currency("{}円", 0, 10)), (*ISO_DATES, "%Y年%m月%d日"), (8, 10)),
    "ko": Place(".", ",", (Currency("{}원", 0, 100), Currency("{}", 0, 100)), ISO_DATES, (10,)),
}


def price(rng: np.random.Generator, currency: Currency, highest: float = 60) -> int:
    """A price in the currency's smallest unit; small ones are more frequent, and many end in 0, 5 or 9."""
    value = float(np.exp(rng.uniform(0, np.log(highest))))
    if currency.unit > 1:
        return round(value * 10) * currency.unit
    cents = int(value * 100)
    ending = pick(rng, (None, 0, 5, 9))
    return max(1, cents if ending is None else cents - cents % 10 + ending)


def date(rng: np.random.Generator) -> datetime.date:
    return datetime.date(1995, 1, 1) + datetime.timedelta(days=int(rng.integers(365 * 35)))


class Sheet:
    """A page of fixed width that grows downwards: drawing is kept, and done when the height is known."""

    def __init__(self, width: int, margin: int, paper: Colour):
        self.width, self.margin, self.paper = width, margin, paper
        self.y = margin
        self.reading: list[str] = []
        self.steps: list[tuple] = []

    @property
    def right(self) -> int:
        return self.width - self.margin

    def text(self, x: float, text: str, font: FreeTypeFont, colour: Colour, anchor: str = "l", y: float | None = None):
        """Puts text with its top at y (or where the sheet has grown to); anchor is l, m or r."""
        self.steps.append((Canvas.text, (x, self.y if y is None else y, text, font, colour, anchor + "a")))

    def line(self, x0, y0, x1, y1, colour: Colour, width: int = 1):
        self.steps.append((Canvas.line, (x0, y0, x1, y1, colour, width)))

    def box(self, x0, y0, x1, y1, outline: Colour | None = None, fill: Colour | None = None, width: int = 1):
        self.steps.append((Canvas.box, (x0, y0, x1, y1, outline, fill, width)))

    def row(self, cells: list[tuple[float, str, str]], font: FreeTypeFont, colour: Colour, spacing: float = 1.25):
        """Puts (x, anchor, text) side by side, reads them as one line, and goes on below."""
        for x, anchor, text in cells:
            self.text(x, text, font, colour, anchor)
        self.reading.append(" ".join(text for _, _, text in cells if text))
        self.y += round(height(font) * spacing)

    def rule(self, style: str, colour: Colour, gap: int):
        """A line across: solid, double, thick, dashed, dotted or none."""
        self.y += gap // 2
        x0, x1, y = self.margin, self.right, self.y
        if style in ("solid", "double"):
            self.line(x0, y, x1, y, colour)
        if style == "double":
            self.line(x0, y + 3, x1, y + 3, colour)
        if style == "thick":
            self.box(x0, y - 1, x1, y + 1, None, colour)
        dash = {"dashed": 7, "dotted": 2}.get(style)
        if dash:
            for x in range(x0, x1 - dash, 2 * dash):
                self.line(x, y, x + dash - 1, y, colour)
        self.y += gap - gap // 2

    def canvas(self) -> Canvas:
        canvas = Canvas(self.width, round(self.y + self.margin), self.paper)
        for method, arguments in self.steps:
            method(canvas, *arguments)
        return canvas


def height(font: FreeTypeFont) -> int:
    """The pixels from the highest to the lowest a line of the font reaches."""
    return sum(font.getmetrics())


def length(text: str, font: FreeTypeFont) -> int:
    """The width of a text in whole pixels."""
    return int(Canvas.measure(text, font)[0]) + 1


def legible_font(
    rng: np.random.Generator, sources: Sources, language: str, split: str, size: int, style: str = ""
) -> FreeTypeFont:
    """A font of about this size whose small letters are at least 6 pixels high; of this style where there is one."""
    face = sources.face(rng, language, split)
    alike = [font for font in sources.fonts(language, split) if font.style == style] if style else []
    if alike:
        face = pick(rng, alike)
    size = max(size, SMALLEST.get(language, 13))
    while x_height(font := load(face.path, size)) < 6:
        size += 1
    return font


def at_size(font: FreeTypeFont, size: float) -> FreeTypeFont:
    """The same font at another size."""
    return load(Path(font.path), round(size))


#: The smallest size in pixels where 13 is too small: many strokes to a character.
SMALLEST = {"zh": 16, "ja": 16, "ko": 15}
