"""The search for the scales of a block: small codes and a few scales whose numbers lie close to given ones.

What is made small is the sum of w (x - y)^2 over a part (a block, or a sixteenth or eighth of one): x the numbers, y
what the part will say, w the importance of each number. For given codes the best scale is known, least squares; for a
given scale the best codes are known, the nearest. The two by turns end in a valley near their start, so many starts are
tried: scales that put the largest number a little inside or outside the range of the codes.

Arrays are [numbers of a part, ...]: what follows the first axis are parts and blocks, each on its own. All in float32,
and sums go from the first number to the last, so that the kernels (native/search.h), which do the same on the lanes of
vector registers, give the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from handlens.gguf import codebooks

#: Numbers in units of the scale -> the nearest levels.
Nearest = Callable[[np.ndarray], np.ndarray]

#: How often what was found is improved by turns: codes from the scale, the scale from the codes.
ROUNDS = 4
#: Codes that vary less than this share of their mean square are taken as constant.
CONSTANT = np.float32(1e-5)

_ZERO = np.float32(0)


def whole(low: int, high: int) -> Nearest:
    """The whole numbers from low to high; halves go to the even one."""
    return lambda x: np.rint(np.clip(x, np.float32(low), np.float32(high)))


def uneven(x: np.ndarray) -> np.ndarray:
    """The sixteen levels of IQ4_NL and IQ4_XS."""
    levels = codebooks.iq4_levels()
    return levels[np.searchsorted((levels[1:] + levels[:-1]) * np.float32(0.5), x)]


def total(terms: np.ndarray) -> np.ndarray:
    """The sum over the first axis, one after the other."""
    sums = np.zeros(terms.shape[1:], np.float32)
    for row in terms:
        sums += row
    return sums


def reciprocal(x: np.ndarray) -> np.ndarray:
    """1 / x, and 0 where x is 0."""
    return np.divide(np.float32(1), x, out=np.zeros_like(x), where=x != 0)


def half(x: np.ndarray) -> np.ndarray:
    """The numbers as float16 can hold them."""
    return x.astype(np.float16).astype(np.float32)


def extreme(x: np.ndarray) -> np.ndarray:
    """The number of the largest magnitude, with its sign; the first of several."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]


def keep(mask: np.ndarray, best, new) -> None:
    """Puts the arrays of `new` into those of `best` (of the same dataclass) where the mask says so."""
    for field in fields(best):
        np.copyto(getattr(best, field.name), getattr(new, field.name), where=mask)


@dataclass
class Scale:
    """A scale, and for its levels l the sums of w x l and w l l: the best scale for them is their quotient."""

    scale: np.ndarray
    products: np.ndarray
    squares: np.ndarray

    @property
    def refitted(self) -> np.ndarray:
        """The best scale for the levels."""
        return self.products * reciprocal(self.squares)


def search_scale(x: np.ndarray, w: np.ndarray, nearest: Nearest, reaches: Sequence[float]) -> Scale:
    """The best scale found; `reaches` are the levels that the extreme number is put on."""
    shape = x.shape[1:]
    best, gain = Scale(*np.zeros((3, *shape), np.float32)), np.zeros(shape, np.float32)

    def attempt(inverse: np.ndarray) -> None:
        levels = nearest(x * inverse)
        weighted = w * levels
        new = Scale(np.empty(()), total(weighted * x), total(weighted * levels))
        new.scale = new.refitted
        new_gain = new.scale * new.products
        better = new_gain > gain
        keep(better, best, new)
        np.copyto(gain, new_gain, where=better)

    unit = reciprocal(extreme(x))
    for reach in reaches:
        attempt(unit * np.float32(reach))
    for _ in range(ROUNDS):
        attempt(reciprocal(best.scale))
    return best


def error_of_scale(x: np.ndarray, w: np.ndarray, nearest: Nearest, scale: np.ndarray) -> tuple[np.ndarray, Scale]:
    """The error of a scale with the nearest levels, and the sums at these."""
    levels = nearest(x * reciprocal(scale))
    weighted, rest = w * levels, x - scale * levels
    return total(w * (rest * rest)), Scale(scale, total(weighted * x), total(weighted * levels))


@dataclass
class Line:
    """scale * code + offset, and the sums of w c, w c c and w x c for its codes c.

    `stiffness` says how fast the error grows with a change of the scale when the offset makes up for it as it can: the
    sum of w (c - mean)^2, or of w c c where the offset is held at 0.
    """

    scale: np.ndarray
    offset: np.ndarray
    codes: np.ndarray
    squares: np.ndarray
    products: np.ndarray
    stiffness: np.ndarray


def search_line(x: np.ndarray, w: np.ndarray, highest: int, clips: Sequence[float]) -> Line:
    """The best line found with an offset of at most 0: of those that clip `clips` steps of the range on either side."""
    shape, nearest = x.shape[1:], whole(0, highest)
    weights, numbers = total(w), total(w * x)
    mean = np.minimum(numbers * reciprocal(weights), _ZERO)
    best, gain = Line(*np.zeros((6, *shape), np.float32)), np.full(shape, -np.inf, np.float32)

    def attempt(inverse: np.ndarray, offset: np.ndarray) -> None:
        codes = nearest((x - offset) * inverse)
        weighted = w * codes
        count, squares, products = total(weighted), total(weighted * codes), total(weighted * x)
        everything = weights * squares
        spread = everything - count * count
        scale = (weights * products - numbers * count) * reciprocal(spread)
        new_offset = (numbers - scale * count) * reciprocal(weights)
        # Otherwise a line through zero, or a constant where all codes are 0.
        sloped = (spread > everything * CONSTANT) & (new_offset <= 0)
        scale = np.where(sloped, scale, products * reciprocal(squares))
        new_offset = np.where(sloped, new_offset, np.where(squares > 0, _ZERO, mean))
        new_gain = scale * products + new_offset * numbers
        better = new_gain > gain
        stiffness = np.where(sloped, spread * reciprocal(weights), squares)
        keep(better, best, Line(scale, new_offset, count, squares, products, stiffness))
        np.copyto(gain, new_gain, where=better)

    low, high = np.minimum(x.min(axis=0), _ZERO), x.max(axis=0)
    step = (high - low) * (np.float32(1) / np.float32(highest))
    inverse = reciprocal(step)
    for below in np.asarray(clips, np.float32):
        for above in np.asarray(clips, np.float32):
            stretch = np.float32(highest) / (np.float32(highest) - below - above)
            attempt(inverse * stretch, low + step * below)
    for _ in range(ROUNDS):
        attempt(reciprocal(best.scale), best.offset)
    return best


def error_of_line(
    x: np.ndarray, w: np.ndarray, highest: int, scale: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, Line]:
    """The error of a line with the nearest codes, and the sums at these."""
    shifted = x - offset
    codes = whole(0, highest)(shifted * reciprocal(scale))
    weighted, rest = w * codes, shifted - scale * codes
    sums = total(weighted), total(weighted * codes), total(weighted * x)
    return total(w * (rest * rest)), Line(scale, offset, *sums, np.zeros_like(scale))
