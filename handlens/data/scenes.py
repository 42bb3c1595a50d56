"""Pictures of things to name, count and find: emoji, icons and plain coloured shapes, on backgrounds of all kinds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from handlens.data.questions import COLOURS, SHADES, SHAPES, ask, phrases
from handlens.data.raster import Canvas, Colour
from handlens.data.sample import Sample
from handlens.data.sources import Sources, Sprites
from handlens.data.structured import Fact, between, chance, further, pick

#: Sides of scenes in pixels: from one slice of the default model to nine.
SIDES = (224, 280, 336, 448)
#: What things are counted up to.
MOST = 10
#: The least side of a thing that is counted or looked for.
LEAST_SIDE = 28


@dataclass(frozen=True)
class Scene:
    """A picture, what can be asked of it, the same kinds of questions about what is not in it, and what is only asked
    after something else."""

    image: np.ndarray
    facts: tuple[Fact, ...]
    absent: tuple[Fact, ...] = ()
    later: tuple[Fact, ...] = ()


def name(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """One thing to be named."""
    return _sample(rng, draw_thing(rng, sources, language, split), "name", language)


def count(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """One to ten of a thing, among others, to be counted."""
    return _sample(rng, draw_many(rng, sources, language, split), "count", language)


def locate(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Several things; one of them is to be found in one of nine parts of the picture."""
    return _sample(rng, draw_places(rng, sources, language, split), "locate", language)


def shapes(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Coloured shapes, asked for by their colour, their shape, their place or their number."""
    return _sample(rng, draw_shapes(rng, sources, language, split), "shapes", language)


def present(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """A thing that is in the picture or is not: yes as often as no."""
    sprites, words = _named(sources, language, split), phrases(language)
    chosen = _distinct(rng, sprites.names, between(rng, 2, 7))
    image = _paint(rng, sprites, [(thing, cell) for thing, cell in zip(chosen[1:], _cells(rng, len(chosen) - 1, 3))])
    there = chance(rng, 0.5)
    thing = chosen[-1] if there else chosen[0]
    question = ask(rng, "present", language, thing=sprites.names[thing])
    return Sample(image, question, words.yes if there else words.no, "present", language)


def _sample(rng: np.random.Generator, scene: Scene, task: str, language: str) -> Sample:
    fact = pick(rng, scene.facts)
    question = ask(rng, fact.kind, language, **fact.slots)
    more = further(rng, language, [*(other for other in scene.facts if other is not fact), *scene.later])
    return Sample(scene.image, question, fact.answer, task, language, more=more)


def draw_thing(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Scene:
    """One thing, large or small, anywhere."""
    sprites = _named(sources, language, split)
    thing = int(rng.integers(len(sprites.names)))
    return Scene(_paint(rng, sprites, [(thing, (0, 0, 1))], loose=True), (Fact("name", sprites.names[thing]),))


def draw_alone(
    rng: np.random.Generator, sources: Sources, split: str, thing: int | None = None, style: int | None = None
) -> tuple[np.ndarray, int]:
    """One thing, as large as it would be among others, uint8 [side, side, 3]; and which one of the sprites it is. The
    thing and the set of sprites are drawn where they are not given."""
    sprites = _named(sources, sources.languages[0], split)
    if style is not None:
        sprites = _Things(sprites.names, sprites.images[style : style + 1])
    if thing is None:
        thing = int(rng.integers(len(sprites.names)))
    return _paint(rng, sprites, [(thing, cell) for cell in _cells(rng, 1, between(rng, 1, 5))]), thing


def draw_many(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Scene:
    """Some of a thing among some of up to three others; each of them can be asked for."""
    sprites = _named(sources, language, split)
    missing, *kinds = _distinct(rng, sprites.names, between(rng, 2, 5))
    numbers = [between(rng, 1, MOST)] + [between(rng, 1, 4) for _ in kinds[1:]]
    things = [thing for thing, number in zip(kinds, numbers) for _ in range(number)]
    side = math.ceil(math.sqrt(len(things) / rng.uniform(0.35, 1)))
    image = _paint(rng, sprites, list(zip(things, _cells(rng, len(things), side))))
    # The first is asked for: its number is as often ten as it is one.
    first, *others = (
        Fact("count", str(number), {"thing": sprites.names[kind]}) for kind, number in zip(kinds, numbers)
    )
    absent = Fact("count", phrases(language).absent, {"thing": sprites.names[missing]})
    return Scene(image, (first,), (absent,), tuple(others))


def draw_places(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Scene:
    """One to nine different things, at most one in each of the nine parts of the picture."""
    sprites, words = _named(sources, language, split), phrases(language)
    missing, *things = _distinct(rng, sprites.names, between(rng, 2, 10))
    placed = list(zip(things, _cells(rng, len(things), 3)))
    facts = [
        Fact("locate", words.positions[row * 3 + column], {"thing": sprites.names[thing]})
        for thing, (column, row, _) in placed
    ]
    absent = Fact("locate", words.absent, {"thing": sprites.names[missing]})
    return Scene(_paint(rng, sprites, placed), tuple(facts), (absent,))


#: Emoji of plants and food, and of animals.
LIVING = (range(0x1F330, 0x1F380), range(0x1F400, 0x1F440), range(0x1F980, 0x1F9B0))


def draw_creatures(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Scene:
    """Animals, plants and food: nothing that has letters on it."""
    sprites = sources.sprites(split)
    living = [thing for thing, key in enumerate(sprites.keys) if any(ord(key[0]) in codes for codes in LIVING)]
    chosen = [pick(rng, living) for _ in range(between(rng, 1, 9))]
    return Scene(_paint(rng, _named(sources, language, split), list(zip(chosen, _cells(rng, len(chosen), 3)))), ())


def draw_shapes(rng: np.random.Generator, sources: Sources, language: str, split: str, most: int = 6) -> Scene:
    """One to six shapes on a plain ground, or fewer. What is asked for by name or colour is the only one of it."""
    words, scale = phrases(language), 2
    side = pick(rng, SIDES)
    ground, *inks = rng.permutation(COLOURS).tolist()
    kinds = rng.permutation(SHAPES).tolist()
    number = between(rng, 1, most)
    repeated = between(rng, 1, number)  # of the first shape, in one colour or several
    one_colour = chance(rng, 0.5)
    canvas = Canvas(side * scale, side * scale, shade(rng, ground))
    facts = []
    for i, (column, row, _) in enumerate(_cells(rng, number, 3)):
        kind = kinds[max(0, i - repeated + 1)]
        ink = inks[0 if one_colour and i < repeated else i]
        size = side * scale / 3
        radius = size * rng.uniform(0.28, 0.42)
        middle = [(place + 0.5) * size + rng.uniform(-0.5, 0.5) * (size * 0.9 - 2 * radius) for place in (column, row)]
        OUTLINES[kind](canvas, *middle, radius, shade(rng, ink), shade(rng, ground))
        if i == 0 or i >= repeated:
            alone = i > 0 or repeated == 1
            if alone or one_colour:
                facts.append(Fact("colour", words.colours[ink], {"thing": words.shapes[kind]}))
            if alone:
                facts.append(Fact("locate", words.positions[row * 3 + column], {"thing": words.shapes[kind]}))
        if i == 0:
            facts.append(Fact("count", str(repeated), {"thing": words.shapes[kind]}))
        if not (one_colour and 0 < i < repeated):
            facts.append(Fact("shape", words.shapes[kind], {"colour": words.colours[ink]}))
    kind = pick(rng, sorted({fact.kind for fact in facts}))  # every kind as often
    slots = {"colour": words.colours[inks[-1]]} if kind == "shape" else {"thing": words.shapes[kinds[-1]]}
    known = tuple(fact for fact in facts if fact.kind == kind)
    return Scene(canvas.finish(1 / scale)[0], known, (Fact(kind, words.absent, slots),))


def shade(rng: np.random.Generator, colour: str) -> Colour:
    """A colour of the table, not always the same."""
    return tuple(int(value) for value in np.clip(SHADES[colour] + rng.integers(-8, 9, 3), 0, 255))


Outline = Callable[[Canvas, float, float, float, Colour, Colour], None]


def _polygon(corners: Sequence[tuple[float, float]]) -> Outline:
    """Draws the shape of these corners around (0, 0), which the radius scales."""

    def draw(canvas: Canvas, x: float, y: float, radius: float, ink: Colour, ground: Colour) -> None:
        canvas.polygon([(x + radius * right, y + radius * down) for right, down in corners], ink)

    return draw


def _circle(canvas: Canvas, x: float, y: float, radius: float, ink: Colour, ground: Colour) -> None:
    canvas.ellipse(x - radius, y - radius, x + radius, y + radius, fill=ink)


def _ring(canvas: Canvas, x: float, y: float, radius: float, ink: Colour, ground: Colour) -> None:
    _circle(canvas, x, y, radius, ink, ground)
    _circle(canvas, x, y, radius * 0.6, ground, ground)


def _round(corners: int, *radii: float) -> list[tuple[float, float]]:
    """Corners all around, the first at the top, whose distances from the middle repeat `radii`."""
    turns = [2 * math.pi * i / corners for i in range(corners)]
    return [(radii[i % len(radii)] * math.sin(a), -radii[i % len(radii)] * math.cos(a)) for i, a in enumerate(turns)]


_THIRD = 1 / 3
OUTLINES: dict[str, Outline] = {
    "circle": _circle,
    "square": _polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "rectangle": _polygon([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)]),
    "triangle": _polygon(_round(3, 1)),
    "star": _polygon(_round(10, 1, 0.42)),
    "diamond": _polygon([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)]),
    "cross": _polygon(
        [
            (-_THIRD, -1), (_THIRD, -1), (_THIRD, -_THIRD), (1, -_THIRD), (1, _THIRD), (_THIRD, _THIRD),
            (_THIRD, 1), (-_THIRD, 1), (-_THIRD, _THIRD), (-1, _THIRD), (-1, -_THIRD), (-_THIRD, -_THIRD),
        ]
    ),
    "ring": _ring,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Things:
    """The pictures of one side, and the names in one language."""

    names: tuple[str, ...]
    images: np.ndarray  # uint8 [set, thing, side, side, 4]


def _named(sources: Sources, language: str, split: str) -> _Things:
    sprites: Sprites = sources.sprites(split)
    return _Things(sprites.names[language], sprites.images)


@cache
def _words(name: str) -> frozenset[str]:
    return frozenset(name.casefold().replace("-", " ").split())


def alike(one: str, other: str) -> bool:
    """Whether a person who is asked for one of the names could mean the other: a "star" may be a "glowing star"."""
    return _words(one) <= _words(other) or _words(other) <= _words(one) or one in other or other in one


def _distinct(rng: np.random.Generator, names: Sequence[str], number: int) -> list[int]:
    """Up to this many things at random, none of which has a name like another's."""
    chosen: list[int] = []
    for thing in rng.permutation(len(names)).tolist():
        if not any(alike(names[thing], names[other]) for other in chosen):
            chosen.append(thing)
        if len(chosen) == number:
            break
    return chosen


def _cells(rng: np.random.Generator, number: int, side: int) -> list[tuple[int, int, int]]:
    """Different cells at random of a grid of side x side: (column, row, side)."""
    return [(cell % side, cell // side, side) for cell in rng.permutation(side * side)[:number].tolist()]


def _paint(
    rng: np.random.Generator, things: _Things, placed: Sequence[tuple[int, tuple[int, int, int]]], loose: bool = False
) -> np.ndarray:
    """uint8 [side, side, 3]: things of one drawing style, each inside its cell; `loose`: of any size."""
    cells = max((side for _, (_, _, side) in placed), default=1)
    side = pick(rng, [side for side in SIDES if side / cells * 0.7 >= LEAST_SIDE])
    style = int(rng.integers(len(things.images)))
    pictures = [things.images[style, thing] for thing, _ in placed]
    canvas = Canvas(side, side)
    canvas.paste(0, 0, _ground(rng, side, pictures))
    jitter = 0.0 if chance(rng, 0.25) else 1.0
    cell = side / cells
    largest = cell * (rng.uniform(0.25, 0.95) if loose else rng.uniform(0.7, 0.95))
    for picture, (_, (column, row, _)) in zip(pictures, placed):
        size = max(LEAST_SIDE, round(largest * rng.uniform(0.8, 1)))
        image = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
        if chance(rng, 0.3):
            image = image.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
        x, y = (
            (place + 0.5) * cell - size / 2 + jitter * rng.uniform(-0.5, 0.5) * (cell - size) for place in (column, row)
        )
        canvas.paste(round(x), round(y), np.array(image))
    return canvas.finish()[0]


def _ground(rng: np.random.Generator, side: int, pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [side, side, 3]: a background that all these pictures stand out from."""
    inks = np.array([_ink(picture) for picture in pictures]).reshape(-1, 3)
    colours = np.concatenate([rng.uniform(190, 255, (3, 3)), rng.uniform(0, 255, (3, 3)), [[255, 255, 255]]])
    colours = colours[rng.permutation(len(colours))]
    distances = np.abs(colours[:, None] - inks[None]).mean(axis=2).min(axis=1, initial=255)  # [colours]
    clear = np.flatnonzero(distances > 60)
    first = colours[clear[0] if len(clear) else distances.argmax()]
    return np.clip(pick(rng, GROUNDS)(rng, side, first), 0, 255).astype(np.uint8)


def _ink(picture: np.ndarray) -> np.ndarray:
    """The mean colour [3] of a picture [h, w, 4] where it is not transparent."""
    alpha = picture[..., 3:].astype(np.float32)
    return (picture[..., :3] * alpha).sum(axis=(0, 1)) / max(float(alpha.sum()), 1)


Ground = Callable[[np.random.Generator, int, np.ndarray], np.ndarray]


def _flat(rng: np.random.Generator, side: int, colour: np.ndarray) -> np.ndarray:
    return np.broadcast_to(colour, (side, side, 3))


def _gradient(rng: np.random.Generator, side: int, colour: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    return colour + ((x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(20, 60))[..., None]


def _clouds(rng: np.random.Generator, side: int, colour: np.ndarray) -> np.ndarray:
    """Soft patches of a few sizes."""
    coarse = rng.integers(0, 256, (between(rng, 3, 12),) * 2, dtype=np.uint8)
    field = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    return colour + ((field - 128) * rng.uniform(0.05, 0.25))[..., None]


def _grain(rng: np.random.Generator, side: int, colour: np.ndarray) -> np.ndarray:
    return colour + rng.normal(0, rng.uniform(3, 14), (side, side, 1)).astype(np.float32)


def _stripes(rng: np.random.Generator, side: int, colour: np.ndarray) -> np.ndarray:
    """Stripes, or the squares of a chequered cloth."""
    width, shift = between(rng, 6, 40), rng.uniform(-30, 30)
    bands = np.arange(side) // width % 2
    field = bands[:, None] ^ bands[None] if chance(rng, 0.5) else np.broadcast_to(bands, (side, side))
    field = field.T if chance(rng, 0.5) else field
    return colour + (field * shift)[..., None]


GROUNDS: tuple[Ground, ...] = (_flat, _flat, _flat, _gradient, _clouds, _grain, _stripes)
