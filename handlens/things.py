"""The things in a picture of separate things on a calm ground: where each is, and which look alike.

They are named, counted and found (looking.py, naming.py); a decoder that learns their names is shown them one at a time
(recipes/default/crops.py).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter

from handlens.ink import runs
from handlens.layout import Box

#: The longest side that things are searched in; larger pictures are searched in a smaller copy.
LONGEST_SIDE = 512
#: The radius of the blur that grain does not outlive.
BLUR = 1.0
#: The ground is a plane of colour, slightly bent, fitted to the pixels within so many of 255 levels of it; at first to
#: those of the commonest colour at the edge. About so many pixels are enough for that.
EDGE, COARSE, NEAR, FITTED = 3, 24, (60, 50, 40, 40), 5000
#: By how many levels things differ from their ground, and how far their outlines may be broken, in pixels.
DIFFERS, BROKEN = 42, 1
#: The least share of a picture that is its ground; with less of it nothing stands apart.
LEAST_GROUND = 0.25
#: Specks have fewer pixels than this. There are at most so many things, and they are of at least so many pixels a side.
SPECK, MOST, LEAST_SIDE = 12, 64, 14
#: Parts of one thing lie this near to each other, and together are at most so large: in sides of the largest thing.
PART_GAP, PART_SIDE = 0.2, 1.08
#: What part of the side of a thing's picture is the thing.
FILLED = 0.85
#: Things look alike whose pictures differ by fewer levels: this many times as wide as a square of the thing's pixels,
#: shrunk to so many pixels a side and turned by so many degrees.
SPREAD, COMPARED, TURNS, ALIKE, GREY = 1.8, 16, (-24, -16, -8, 0, 8, 16, 24), 10, 128


@dataclass(frozen=True)
class Things:
    """What was found; boxes are in pixels of `image`, from the top left."""

    image: Image.Image
    boxes: list[Box]
    owner: np.ndarray = field(repr=False)  # of each pixel: the place of its thing in `boxes`, or -1, int [H, W]
    ground: np.ndarray = field(repr=False)  # uint8 [H, W, 3]

    def picture(self, place: int) -> Image.Image:
        """One thing alone, in a square of its ground."""
        box = self.boxes[place]
        side = round(max(box.width, box.height) / FILLED)
        left, top = (box.left + box.right - side) // 2, (box.top + box.bottom - side) // 2
        others = (self.owner >= 0) & (self.owner != place)
        alone = np.where(others[..., None], self.ground, np.asarray(self.image))
        reach = [
            (max(-start, 0), max(start + side - length, 0))
            for start, length in ((top, self.image.height), (left, self.image.width))
        ]
        wide = np.pad(alone, (*reach, (0, 0)), mode="edge")
        top, left = max(top, 0), max(left, 0)
        return Image.fromarray(wide[top : top + side, left : left + side])

    def cut_out(self, *places: int) -> np.ndarray:
        """Things alone in a square in which they fill the same part as in their pictures, and nothing behind them:
        uint8 [side, side, 4], of which the last is 255 on the things and 0 elsewhere."""
        box = around(self.boxes, places)
        side = round(_side(box) / FILLED)
        left, top = (side - box.width) // 2, (side - box.height) // 2
        window = slice(box.top, box.bottom), slice(box.left, box.right)
        shown = np.isin(self.owner[window], places)
        alone = np.zeros((side, side, 4), np.uint8)
        inner = alone[top : top + box.height, left : left + box.width]
        inner[shown, :3] = np.asarray(self.image)[window][shown]
        inner[shown, 3] = 255
        return alone

    @cached_property
    def groups(self) -> list[list[int]]:
        """The places of things by how they look, alike ones together; in the order that they were found in."""
        turned = [[self._look(place, angle) for angle in TURNS] for place in range(len(self.boxes))]
        groups: list[list[int]] = []
        for place, looks in enumerate(turned):
            least, nearest = ALIKE, None
            for group in groups:
                straight = [turned[other][TURNS.index(0)] for other in group]
                apart = min(float(np.abs(look - other).mean()) for look in looks for other in straight)
                if apart < least:
                    least, nearest = apart, group
            if nearest is None:
                groups.append([place])
            else:
                nearest.append(place)
        return groups

    def _look(self, place: int, angle: float) -> np.ndarray:
        """A thing on grey, turned, its middle in the middle and its pixels a share of all, float32 [n, n, 3]."""
        box = self.boxes[place]
        window = slice(box.top, box.bottom), slice(box.left, box.right)
        rows, columns = np.nonzero(self.owner[window] == place)
        alone = np.full((box.height, box.width, 3), GREY, np.uint8)
        alone[rows, columns] = np.asarray(self.image)[window][rows, columns]
        step = SPREAD * math.sqrt(len(rows)) / COMPARED
        smooth = Image.fromarray(alone).filter(ImageFilter.BoxBlur(max(step / 2 - 0.5, 0)))
        cos, sin = step * math.cos(math.radians(angle)), step * math.sin(math.radians(angle))
        x, y, half = columns.mean() + 0.5, rows.mean() + 0.5, COMPARED / 2
        turn = cos, -sin, x - (cos - sin) * half, sin, cos, y - (sin + cos) * half
        size = COMPARED, COMPARED
        looks = smooth.transform(size, Image.Transform.AFFINE, turn, Image.Resampling.BILINEAR, fillcolor=(GREY,) * 3)
        return np.asarray(looks, np.float32)


def find_things(image: Image.Image) -> Things | None:
    """The things in a picture, row by row; None where nothing stands apart from a calm ground."""
    image = image.convert("RGB")
    if max(image.size) > LONGEST_SIDE:
        image = image.copy()
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(BLUR)), np.float32)
    ground = _ground(blurred)
    differs = np.abs(blurred - ground).max(axis=2) > DIFFERS
    if differs.mean() > 1 - LEAST_GROUND:
        return None
    window = 2 * BROKEN + 1
    grown = Image.fromarray(differs).convert("L").filter(ImageFilter.MaxFilter(window))
    labels, boxes = components(np.asarray(grown.filter(ImageFilter.MinFilter(window))) > 0)
    sizes = np.bincount(labels.ravel(), minlength=len(boxes) + 1)[1:]
    parts = [[label] for label, size in enumerate(sizes.tolist()) if size >= SPECK]
    if not parts or len(parts) > 4 * MOST:
        return None
    joined = _joined(parts, boxes)
    largest = max(_side(around(boxes, labels)) for labels in joined)
    if len(joined) > MOST or largest < LEAST_SIDE:
        return None
    joined.sort(key=lambda labels: around(boxes, labels).top)
    owners = np.full(len(boxes) + 1, -1)
    for place, chosen in enumerate(joined):
        owners[np.array(chosen) + 1] = place
    found = [around(boxes, chosen) for chosen in joined]
    return Things(image, found, owners[labels], np.clip(ground, 0, 255).astype(np.uint8))


def _ground(pixels: np.ndarray) -> np.ndarray:
    """The colour of the ground at each pixel, float32 [H, W, 3]."""
    high, wide, _ = pixels.shape
    step = max(math.isqrt(high * wide // FITTED), 1)
    some = pixels[::step, ::step].reshape(-1, 3)
    bent = _bent(high, wide, step)
    edge = np.concatenate([pixels[:EDGE].reshape(-1, 3), pixels[-EDGE:].reshape(-1, 3)])
    edge = np.concatenate([edge, pixels[:, :EDGE].reshape(-1, 3), pixels[:, -EDGE:].reshape(-1, 3)])
    kinds = (edge // COARSE) @ np.float32([1, 16, 256])
    _, kinds, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    ground = np.broadcast_to(np.median(edge[kinds == counts.argmax()], axis=0), some.shape)
    for near in NEAR:
        known = np.abs(some - ground).max(axis=1) < near
        weights, *_ = np.linalg.lstsq(bent[known], some[known], rcond=None)
        ground = bent @ weights
    return (_bent(high, wide, 1) @ weights).reshape(high, wide, 3)


def _bent(high: int, wide: int, step: int) -> np.ndarray:
    """What a plane of colour, slightly bent, is a weighted sum of, at each `step`th pixel: float32 [n, 6]."""
    down, across = np.mgrid[0:high:step, 0:wide:step].astype(np.float32).reshape(2, -1)
    down, across = down / high - 0.5, across / wide - 0.5
    return np.stack([np.ones_like(down), across, down, across * across, down * down, across * down], axis=1)


def components(filled: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """What hangs together in bool [H, W], over corners as well: int [H, W], 0 where it is empty and from 1 on, and the
    box of each."""
    parents: list[int] = []

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    above: list[tuple[int, int, int]] = []
    everything = []
    for y, row in enumerate(filled):
        here = []
        for start, end in runs(row):
            number = len(parents)
            parents.append(number)
            for left, right, other in above:
                if left <= end and right >= start:
                    parents[root(number)] = root(other)
            here.append((start, end, number))
        above = here
        everything += [(y, *run) for run in here]
    labels = np.zeros(filled.shape, np.int32)
    boxes: list[Box] = []
    numbers: dict[int, int] = {}
    for y, start, end, number in everything:
        label = numbers.setdefault(root(number), len(numbers))
        run = Box(start, y, end, y + 1)
        if label == len(boxes):
            boxes.append(run)
        else:
            boxes[label] = _union(boxes[label], run)
        labels[y, start:end] = label + 1
    return labels, boxes


def _joined(parts: list[list[int]], boxes: list[Box]) -> list[list[int]]:
    """The parts with those together that are parts of one thing, the nearest first."""
    sides = sorted(_side(boxes[part[0]]) for part in parts)
    largest = sides[-max(1, len(sides) // 8)]
    parts = [list(part) for part in parts]
    while True:
        best = None
        places = [around(boxes, part) for part in parts]
        for second in range(len(parts)):
            for first in range(second):
                gap = _gap(places[first], places[second])
                if gap > PART_GAP * largest or (best and best[0] <= gap):
                    continue
                if _side(_union(places[first], places[second])) <= PART_SIDE * largest:
                    best = gap, first, second
        if best is None:
            return parts
        _, first, second = best
        parts[first] += parts.pop(second)


def around(boxes: list[Box], chosen: Iterable[int]) -> Box:
    """The box around those of the boxes that are chosen by their places."""
    first, *others = chosen
    box = boxes[first]
    for other in others:
        box = _union(box, boxes[other])
    return box


def _union(one: Box, other: Box) -> Box:
    return Box(
        min(one.left, other.left),
        min(one.top, other.top),
        max(one.right, other.right),
        max(one.bottom, other.bottom),
    )


def _gap(one: Box, other: Box) -> int:
    """How many pixels lie between two boxes, across or down; below 0 where they overlap."""
    across = max(one.left, other.left) - min(one.right, other.right)
    return max(across, max(one.top, other.top) - min(one.bottom, other.bottom))


def _side(box: Box) -> int:
    return max(box.width, box.height)
