"""Which pixels of an image of printed text are ink, and which of those are rules."""

from itertools import pairwise

import numpy as np
from PIL import Image

#: The side of the tiles whose median is the colour of the paper there.
TILE = 32
#: How much darker or lighter than the paper ink is: a share of the strongest ink, and at least so many of 255 levels.
INK_SHARE, LEAST_INK = 0.35, 24
#: The window whose most common colour is that of a low ground, how far windows stand apart, and which share of one has
#: to be within so many levels of its median: no line of text has so much ink.
BAR, BAR_STEP, BAR_SHARE, BAR_LEVELS = (7, 61), (2, 12), 0.6, 24
#: Rules are runs of at least so many pixels, across and down, that may be this faint and at most so thick. Dots that
#: are so near to each other are a rule as well, if it is longer.
RULE_ACROSS, RULE_DOWN, LEAST_RULE, THICKEST, DOT_GAP, DOTTED = 40, 30, 8, 6, 4, 100

#: The sides of a box are at least so high and at most so thick, and begin and end this near to the ends of two rules.
LEAST_SIDE, SIDE_THICKNESS, CORNER = 10, 4, 6


def ink_of(differs: np.ndarray) -> np.ndarray:
    """Where there is ink: bool [H, W] from the contrast of an image."""
    return differs > max(INK_SHARE * float(np.percentile(differs, 99.5)), LEAST_INK)


def contrast(image: Image.Image) -> np.ndarray:
    """By how many of 255 levels of grey each pixel differs from the ground that it is on, float32 [H, W]."""
    grey = np.asarray(image.convert("L"), np.float32)
    high, wide = grey.shape
    rows, columns = -(-high // TILE), -(-wide // TILE)
    padded = np.pad(grey, ((0, rows * TILE - high), (0, columns * TILE - wide)), mode="edge")
    tiles = np.median(padded.reshape(rows, TILE, columns, TILE), axis=(1, 3))
    ground = Image.fromarray(tiles.astype(np.float32)).resize((columns * TILE, rows * TILE), Image.Resampling.BILINEAR)
    ground = np.asarray(ground)[:high, :wide]
    bars, is_bar = _bars(grey)
    differs = np.abs(grey - np.where(is_bar, bars, ground))
    # A window at the end of a low ground sees what is beside it; there the ground has the colour of its middle.
    reach = BAR[1] // 2 + BAR_STEP[1]
    for step in (-reach, reach):
        near, is_near = (np.roll(part, step, axis=1) for part in (bars, is_bar))
        inside = closed(is_near & (np.abs(grey - near) < BAR_LEVELS), BAR[1] // 4) & is_near & ~is_bar
        differs[inside] = np.abs(grey - near)[inside]
    return differs


def _bars(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colour of low and wide grounds, such as a table's rows, that tiles don't see; and where there are any."""
    (high, wide), (down, across) = BAR, BAR_STEP
    padded = np.pad(grey, ((high // 2, high // 2), (wide // 2, wide // 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, BAR)[::down, ::across, ::2, ::2]
    middle = np.empty(windows.shape[:2], np.float32)
    alike = np.empty(windows.shape[:2], bool)
    for row, strip in enumerate(windows):  # one at a time: all together take a hundred times the memory of the image
        # The median: sorting so few numbers is faster than finding those in the middle.
        values = np.sort(strip.reshape(len(strip), -1), axis=1)
        middle[row] = values[:, [(values.shape[1] - 1) // 2, values.shape[1] // 2]].mean(axis=1)
        near = np.count_nonzero(np.abs(values - middle[row, :, None]) < BAR_LEVELS, axis=1)
        alike[row] = near > BAR_SHARE * values.shape[1]
    rows, columns = np.arange(grey.shape[0]) // down, np.arange(grey.shape[1]) // across
    return middle[rows][:, columns], alike[rows][:, columns]


def rules_in(ink: np.ndarray, faint: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Which ink is part of a rule that is at least so long, dotted or not; and the same with rules that are too faint
    to be ink. All bool [H, W]; rules lie along rows."""
    drawn = _rules(ink, least) | _rules(closed(ink), DOTTED)
    return drawn, drawn | _rules(faint, least) | _rules(closed(faint), DOTTED)


def sides_in(ink: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Which ink is a side of a box, bool [H, W]: it goes down from the end of one of the rules that lie `across` to the
    end of the next one. Such a side may be as low as a line of text."""
    found = np.zeros_like(ink)
    for way in (-1, 1):
        ends: dict[int, list[int]] = {}  # by columns: the rows in which rules end on this side
        for y in np.flatnonzero(across.any(axis=1)).tolist():
            for left, right in runs(across[y]):
                ends.setdefault(left if way < 0 else right - 1, []).append(y)
        for end in ends:
            # Outside of the end, for the corner may be round.
            first, last = sorted((end - way, end + way * CORNER))
            first = max(first, 0)
            rows = sorted({y for column in range(first, last + 1) for y in ends.get(column, ())})
            for top, bottom in pairwise(rows):
                window = np.s_[top : bottom + 1, first : last + 1]
                corner = min(CORNER - 2, (bottom - top) // 4)
                whole = ink[window][corner : bottom - top - corner].all(axis=0)
                if bottom - top >= LEAST_SIDE and 0 < whole.sum() <= SIDE_THICKNESS:
                    found[window] = True
    return found & ink


def runs(filled: np.ndarray) -> list[tuple[int, int]]:
    """Where runs of True begin and end in a row [n]."""
    edges = (np.flatnonzero(filled[1:] != filled[:-1]) + 1).tolist()
    if filled[:1].any():
        edges.insert(0, 0)
    if filled[-1:].any():
        edges.append(len(filled))
    return list(zip(edges[::2], edges[1::2], strict=True))


def _long_runs(ink: np.ndarray, least: float) -> np.ndarray:
    """Where ink [H, W] lies in runs along a row that are at least so long."""
    high, wide = ink.shape
    rows = np.zeros((high, wide + 1), bool)  # an empty pixel ends each row
    rows[:, :-1] = ink
    flat = rows.ravel()
    edges = np.flatnonzero(np.concatenate([flat[:1], flat[1:] != flat[:-1]]))
    lengths = np.diff(edges, prepend=0, append=len(flat))  # of what is empty and what is filled, by turns
    chosen = lengths >= least
    chosen[::2] = False
    return np.repeat(chosen, lengths).reshape(rows.shape)[:, :-1]


def closed(ink: np.ndarray, gap: int = DOT_GAP) -> np.ndarray:
    """The ink [H, W] with the gaps along its rows that are so wide at most."""
    return ink | ~(ink | _long_runs(~ink, gap + 1))


def beside(filled: np.ndarray) -> np.ndarray:
    """What is True [H, W] and the pixels above and below it."""
    grown = filled.copy()
    grown[1:] |= filled[:-1]
    grown[:-1] |= filled[1:]
    return grown


def _rules(ink: np.ndarray, least: float) -> np.ndarray:
    """Where ink [H, W] lies in runs along a row that are so long, and at most THICKEST pixels high."""
    thick = _long_runs(ink.T, THICKEST + 1).T
    found = _long_runs(_long_runs(ink, least) & ~thick, least / 2)
    return closed(found) & ink  # with where others cross them
