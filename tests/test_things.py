"""Things on a calm ground are found, each whole and alone, and alike ones are put together."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from examples.make_lines import draw
from handlens.layout import Box
from handlens.things import components, find_things

SIDE = 300
#: Left, top and kind of the things in the picture; the last kind consists of two parts that stand apart.
PLACES = [(20, 20, "disc"), (120, 24, "square"), (220, 30, "disc"), (30, 180, "disc"), (130, 190, "pair")]


def picture(ground: np.ndarray) -> Image.Image:
    """The things on a ground, uint8 [SIDE, SIDE, 3]."""
    image = Image.fromarray(ground)
    pen = ImageDraw.Draw(image)
    for left, top, kind in PLACES:
        if kind == "disc":
            pen.ellipse((left, top, left + 49, top + 49), fill="#b02020")
        elif kind == "square":
            pen.rectangle((left, top, left + 47, top + 47), fill="#205090")
        else:
            pen.rectangle((left, top, left + 47, top + 19), fill="#101010")
            pen.rectangle((left, top + 27, left + 47, top + 47), fill="#e0c020")
    return image


def plain() -> np.ndarray:
    return np.full((SIDE, SIDE, 3), (238, 240, 230), np.uint8)


def sloping() -> np.ndarray:
    slope = np.linspace(0, 50, SIDE)[:, None] + np.linspace(0, 30, SIDE)
    return np.clip(170 + slope, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def grainy() -> np.ndarray:
    grain = np.random.default_rng(0).normal(0, 12, (SIDE, SIDE, 1))
    return np.clip(plain() + grain, 0, 255).astype(np.uint8)


def chequered() -> np.ndarray:
    bands = np.arange(SIDE) // 25 % 2
    return (plain() - 28 * (bands[:, None] ^ bands)[..., None]).astype(np.uint8)


GROUNDS = [plain, sloping, grainy, chequered]


@pytest.mark.parametrize("ground", GROUNDS)
def test_each_thing_is_found_whole_on_calm_grounds(ground):
    things = find_things(picture(ground()))
    found = sorted((box.left, box.top) for box in things.boxes)
    assert np.abs(np.array(found) - sorted((left, top) for left, top, _ in PLACES)).max() <= 3
    assert all(44 <= side <= 54 for box in things.boxes for side in (box.width, box.height))


@pytest.mark.parametrize("ground", GROUNDS)
def test_things_that_look_alike_are_one_group(ground):
    things = find_things(picture(ground()))
    kinds = {(left, top): kind for left, top, kind in PLACES}
    near = [min(kinds, key=lambda at: abs(at[0] - box.left) + abs(at[1] - box.top)) for box in things.boxes]
    groups = sorted(sorted(kinds[near[place]] for place in group) for group in things.groups)
    assert groups == [["disc", "disc", "disc"], ["pair"], ["square"]]


def test_turned_and_smaller_ones_are_alike_too():
    image = Image.fromarray(plain())
    sprite = Image.new("RGBA", (60, 60))
    ImageDraw.Draw(sprite).polygon([(5, 55), (30, 2), (55, 55), (30, 40)], fill="#106030")
    for left, top, side, angle in [(10, 10, 60, 0), (110, 20, 50, 14), (200, 10, 56, -12), (60, 150, 48, 5)]:
        part = sprite.rotate(angle, Image.Resampling.BICUBIC).resize((side, side))
        image.paste(part, (left, top), part)
    assert [len(group) for group in find_things(image).groups] == [4]


def test_the_picture_of_a_thing_shows_it_alone():
    image = picture(plain())
    # Beside the first disc there is another thing, inside the square around it.
    ImageDraw.Draw(image).rectangle((73, 20, 76, 24), fill="black")
    things = find_things(image)
    place = next(place for place, box in enumerate(things.boxes) if box.left < 30 and box.top < 30)
    alone = things.picture(place)
    assert alone.width == alone.height == pytest.approx(50 / 0.85, abs=3)
    colours = np.asarray(alone, int).reshape(-1, 3)
    red = np.abs(colours - (0xB0, 0x20, 0x20)).max(axis=1) < 12
    paper = np.abs(colours - (238, 240, 230)).max(axis=1) < 12
    assert red.sum() > 1500 and (red | paper).mean() > 0.93


def test_a_thing_at_the_edge_has_a_square_picture_too():
    image = Image.fromarray(plain())
    ImageDraw.Draw(image).rectangle((0, 100, 90, 139), fill="#603090")
    (picture,) = (things.picture(place) for things in [find_things(image)] for place in range(len(things.boxes)))
    assert picture.width == picture.height == pytest.approx(91 / 0.85, abs=3)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(plain()),
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 260, 3), np.uint8)),
        Image.new("RGB", (1, 1), "red"),
        Image.new("RGB", (2000, 3), "red"),
    ],
    ids=["nothing", "noise", "a pixel", "a strip"],
)
def test_there_may_be_no_things(image):
    assert find_things(image) is None


def test_a_page_of_text_is_no_picture_of_things():
    page = Image.new("RGB", (600, 400), "white")
    for row in range(10):
        page.paste(draw("Count the words of this line, and of the next", 18, "black", "white"), (20, 20 + 36 * row))
    assert find_things(page) is None


def test_large_pictures_are_searched_in_a_copy():
    large = picture(plain()).resize((4 * SIDE, 4 * SIDE))
    things = find_things(large)
    assert max(things.image.size) == 512 and len(things.boxes) == len(PLACES)


def test_components_hang_together_over_corners():
    filled = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1]], bool)
    labels, boxes = components(filled)
    assert labels.tolist() == [[1, 0, 0, 2], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 3, 3]]
    assert boxes == [Box(0, 0, 2, 3), Box(3, 0, 4, 1), Box(2, 3, 4, 4)]
