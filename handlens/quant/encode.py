"""Numbers to the block types that weights are stored in: which scales are searched for in which part of a block.

The layouts are those of `gguf.blocks`. Here everything is plain numpy, the truth beside the kernels and what computes
where there are none; both give the same bytes. Numbers are [numbers of a block, blocks], or [numbers of a part, parts,
blocks], so that the steps of `search` are long vector operations.
"""

from collections.abc import Callable, Sequence

import numpy as np

from handlens.gguf import codebooks
from handlens.gguf.blocks import BLOCKS
from handlens.quant.search import (
    CONSTANT,
    ROUNDS,
    Nearest,
    Scale,
    error_of_line,
    error_of_scale,
    extreme,
    half,
    keep,
    reciprocal,
    search_line,
    search_scale,
    total,
    uneven,
    whole,
)

#: How often the factors of the parts are chosen anew after the scale over all was fitted to them.
REFINEMENTS = 3

#: On which level the extreme number of a part is put in the search, for each kind of levels.
_REACHES = {
    "Q4_0": (-8.5, -8.25, -8, -7.75, -7.5, -7.25, -7, -6.5, 8, 7.75, 7.5, 7.25, 7, 6.75, 6.5, 6),
    "Q5_0": (-16.5, -16.25, -16, -15.75, -15.5, -15, -14.5, -14, 16, 15.5, 15.25, 15, 14.75, 14.5, 14, 13.5),
    "Q8_0": (127, 127.25, 126.75, 126.5, 126.25, 126, 125.5, 125),
    "IQ4": (-134, -129, -124, -119, -114, -109, -104, -99, 120, 115, 110, 105, 100, 95, 90, 85),
    "Q3_K": (-4.5, -4.25, -4, -3.75, -3.5, -3.25, -3, -2.75, -2.5, -2, 4, 3.75, 3.5, 3.25, 3, 2.75, 2.5, 2.25, 2, 1.5),
    "Q6_K": (-32.5, -32, -31.5, -31, -30.5, -30, -29, 32, 31.5, 31, 30.5, 30, 29.5, 28.5),
}
#: How many steps of a part's range are clipped on either side.
_CLIPS = {
    "Q4_1": (-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1),
    # The first puts what was Q4_1 on every second code, so that nothing gets lost.
    "Q5_1": (np.float32(-31) / np.float32(30), -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1),
    "Q2_K": (-0.3, -0.1, 0.1, 0.2, 0.3, 0.5),
    "Q4_K": (-0.4, 0, 0.4, 0.8),
}
#: Where the largest scale of the parts is put among their factors: as shares of the lowest factor of those with a sign,
#: of the highest of those without.
_SIGNED_SHARES = tuple(
    np.float32(percent) / np.float32(100)
    for percent in (
        *(100, 99, 98, 97, 96, 95, 94, 93, 92, 91, 90, 88, 86, 84, 82, 80),
        *(-99, -98, -97, -96, -95, -94, -93, -92, -91, -90, -89, -87, -85, -83, -81, -79),
    )
)
_SHARES = tuple(
    np.float32(share) / np.float32(1000)
    for share in (
        *(1008, 1000, 992, 984, 976, 968, 960, 952, 944, 936, 928, 920, 912, 904, 896, 888, 880),
        *(865, 850, 835, 820, 800, 780, 760),
    )
)
#: Steps of the factors of (scale, minimum) that are tried around those chosen before.
_STEPS = ((0, 0), (1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))

_INFINITY = np.float32(np.inf)


def encode(type: str, x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """The blocks of float32 rows [rows, columns] as uint8 [rows, bytes of a row]; `importance` is [columns]."""
    block = BLOCKS[type]
    numbers = np.ascontiguousarray(x.reshape(-1, block.weights).T)
    w = np.ones_like(numbers) if importance is None else _repeated(importance, x.shape, block.weights)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        fields = _ENCODERS[type](numbers, w)
    records = np.empty(numbers.shape[1], block.layout)
    for name, values in fields.items():
        records[name] = values
    return records.view(np.uint8).reshape(len(x), -1)


def _repeated(importance: np.ndarray, shape: tuple[int, int], weights: int) -> np.ndarray:
    rows = np.broadcast_to(importance.astype(np.float32), shape)
    return np.ascontiguousarray(rows.reshape(-1, weights).T)


# 32 numbers, a scale


def _scaled(x: np.ndarray, w: np.ndarray, nearest: Nearest, reaches: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Scales [n] that float16 can hold, and the levels [32, n]."""
    searched = search_scale(x, w, nearest, reaches)
    best, error = np.zeros(x.shape[1:], np.float32), np.full(x.shape[1:], _INFINITY)

    def attempt(stored: np.ndarray) -> np.ndarray:
        new_error, found = error_of_scale(x, w, nearest, stored)
        better = new_error < error
        np.copyto(error, new_error, where=better)
        np.copyto(best, stored, where=better)
        return found.refitted

    attempt(half(extreme(x) * (np.float32(1) / np.float32(reaches[0]))))
    scale = searched.scale
    for _ in range(ROUNDS):
        scale = attempt(half(scale))
    return best, nearest(x * reciprocal(best))


def _q4_0(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, levels = _scaled(x, w, whole(-8, 7), _REACHES["Q4_0"])
    return {"d": scale, "qs": _packed(levels + 8, 4, 16)}


def _q5_0(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, levels = _scaled(x, w, whole(-16, 15), _REACHES["Q5_0"])
    return {"d": scale, "qh": _packed(_above(levels + 16, 4), 1, 1), "qs": _packed(levels + 16, 4, 16)}


def _q8_0(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, levels = _scaled(x, w, whole(-127, 127), _REACHES["Q8_0"])
    return {"d": scale, "qs": levels.T}


def _iq4_nl(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, levels = _scaled(x, w, uneven, _REACHES["IQ4"])
    return {"d": scale, "qs": _packed(_uneven_codes(levels), 4, 16)}


# 32 numbers, a scale and an offset


def _lines(
    x: np.ndarray, w: np.ndarray, highest: int, clips: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [n] and offsets [n] that float16 can hold, and the codes [32, n].

    Numbers are taken from the highest on, so that offsets are never above 0.
    """
    top = x.max(axis=0)
    shifted = x - top
    weights, numbers = total(w), total(w * shifted)
    line = search_line(shifted, w, highest, clips)
    best_scale, best_offset = np.zeros((2, *top.shape), np.float32)
    error = np.full(top.shape, _INFINITY)
    for _ in range(ROUNDS):
        scale, offset = half(line.scale), half(line.offset + top)
        new_error, found = error_of_line(x, w, highest, scale, offset)
        better = new_error < error
        np.copyto(error, new_error, where=better)
        np.copyto(best_scale, scale, where=better)
        np.copyto(best_offset, offset, where=better)
        # The scale stays: its rounding is the smaller one, and the offset can make up for it.
        line.offset = (numbers - scale * found.codes) * reciprocal(weights)
    return best_scale, best_offset, whole(0, highest)((x - best_offset) * reciprocal(best_scale))


def _q4_1(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, offset, codes = _lines(x, w, 15, _CLIPS["Q4_1"])
    return {"d": scale, "m": offset, "qs": _packed(codes, 4, 16)}


def _q5_1(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, offset, codes = _lines(x, w, 31, _CLIPS["Q5_1"])
    return {"d": scale, "m": offset, "qh": _packed(_above(codes, 4), 1, 1), "qs": _packed(codes, 4, 16)}


# 256 numbers in parts, each with a whole number as its factor of a scale over all


def _parts(x: np.ndarray, parts: int) -> np.ndarray:
    """[256, n] -> [numbers of a part, parts, n]."""
    return np.ascontiguousarray(x.reshape(parts, -1, x.shape[1]).swapaxes(0, 1))


def _whole_blocks(parts: np.ndarray) -> np.ndarray:
    """[numbers of a part, parts, n] -> [256, n]."""
    return parts.swapaxes(0, 1).reshape(-1, parts.shape[-1])


def _super_scaled(
    x: np.ndarray, w: np.ndarray, parts: int, lowest: int, nearest: Nearest, reaches: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [n], the factors [parts, n] from `lowest` to -lowest - 1, and the levels [256, n]."""
    x, w = _parts(x, parts), _parts(w, parts)
    to_factors = whole(lowest, -lowest - 1)
    found = search_scale(x, w, nearest, reaches)
    shares = [share * np.float32(lowest) for share in _SIGNED_SHARES]
    # Which factors come closest to these scales is the same question once more.
    scale = half(search_scale(found.scale, found.squares, to_factors, shares).scale)
    factors = to_factors(found.scale * reciprocal(scale))
    for refinement in range(REFINEMENTS + 1):
        error, best = np.full(factors.shape, _INFINITY), Scale(*np.zeros((3, *factors.shape), np.float32))
        for step in (0, -1, 1):
            factor = to_factors(factors + np.float32(step))
            new_error, new = error_of_scale(x, w, nearest, scale * factor)
            new.scale = factor
            better = new_error < error
            np.copyto(error, new_error, where=better)
            keep(better, best, new)
        factors = best.scale
        if refinement < REFINEMENTS:
            squares = total(factors * factors * best.squares)
            scale = half(total(factors * best.products) * reciprocal(squares))
    return scale, factors, _whole_blocks(nearest(x * reciprocal(scale * factors)))


def _q3_k(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, factors, levels = _super_scaled(x, w, 16, -32, whole(-4, 3), _REACHES["Q3_K"])
    codes, factors = levels + 4, factors + 32
    scales = [_packed(factors, 4, 8), _packed(_above(factors, 4), 2, 4)]
    return {
        "hmask": _packed(_above(codes, 2), 1, 32),
        "qs": _packed(codes, 2, 32),
        "scales": np.concatenate(scales, axis=1),
        "d": scale,
    }


def _q6_k(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, factors, levels = _super_scaled(x, w, 16, -128, whole(-32, 31), _REACHES["Q6_K"])
    codes = levels + 32
    return {"ql": _packed(codes, 4, 64), "qh": _packed(_above(codes, 4), 2, 32), "scales": factors.T, "d": scale}


def _iq4_xs(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, factors, levels = _super_scaled(x, w, 8, -32, uneven, _REACHES["IQ4"])
    factors = factors + 32
    return {
        "d": scale,
        "scales_h": _packed(_above(factors, 4), 2, 1),
        "scales_l": _packed(factors, 4, 1),
        "qs": _packed(_uneven_codes(levels), 4, 16),
    }


# 256 numbers in parts, each with factors of a scale and of a minimum over all


def _super_lines(
    x: np.ndarray, w: np.ndarray, parts: int, highest: int, most: int, clips: Sequence[float]
) -> tuple[np.ndarray, ...]:
    """Scales [n], minima [n], their factors [parts, n] each, and the codes [256, n]."""
    x, w = _parts(x, parts), _parts(w, parts)
    to_factors = whole(0, most)
    weights, numbers = total(w), total(w * x)
    line = search_line(x, w, highest, clips)
    minima = -line.offset
    shares = [share * np.float32(most) for share in _SHARES]
    scale = half(search_scale(line.scale, line.stiffness, to_factors, shares).scale)
    minimum = half(search_scale(minima, weights, to_factors, shares).scale)
    a, b = to_factors(line.scale * reciprocal(scale)), to_factors(minima * reciprocal(minimum))
    for refinement in range(REFINEMENTS + 1):
        error, best = np.full(a.shape, _INFINITY), type(line)(*np.zeros((6, *a.shape), np.float32))
        for up, down in _STEPS:
            new_a, new_b = to_factors(a + np.float32(up)), to_factors(b + np.float32(down))
            new_error, new = error_of_line(x, w, highest, scale * new_a, -(minimum * new_b))
            new.scale, new.offset = new_a, new_b
            better = new_error < error
            np.copyto(error, new_error, where=better)
            keep(better, best, new)
        a, b = best.scale, best.offset
        if refinement < REFINEMENTS:
            scale, minimum = _refitted(scale, minimum, best, weights, numbers)
    codes = whole(0, highest)((x + minimum * b) * reciprocal(scale * a))
    return scale, minimum, a, b, _whole_blocks(codes)


def _refitted(scale: np.ndarray, minimum: np.ndarray, factors, weights: np.ndarray, numbers: np.ndarray):
    """The best scale and minimum for factors and codes by least squares, where that is sound."""
    a, b = factors.scale, factors.offset
    aa, ab, bb = total(a * a * factors.squares), -total(a * b * factors.codes), total(b * b * weights)
    ax, bx = total(a * factors.products), -total(b * numbers)
    determinant = aa * bb - ab * ab
    inverse = reciprocal(determinant)
    new_scale, new_minimum = (ax * bb - bx * ab) * inverse, (aa * bx - ab * ax) * inverse
    sound = (determinant > aa * bb * CONSTANT) & (new_scale >= 0) & (new_minimum >= 0)
    return half(np.where(sound, new_scale, scale)), half(np.where(sound, new_minimum, minimum))


def _q2_k(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, minimum, a, b, codes = _super_lines(x, w, 16, 3, 15, _CLIPS["Q2_K"])
    return {"scales": (a + b * 16).T, "qs": _packed(codes, 2, 32), "d": scale, "dmin": minimum}


def _packed_factors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The inverse of `gguf.blocks._scales_and_minima`: two [8, n] -> [n, 12]."""
    a, b = a.astype(np.uint8), b.astype(np.uint8)
    low = a[4:] & 15 | b[4:] << 4
    return np.concatenate([a[:4] | a[4:] >> 4 << 6, b[:4] | b[4:] >> 4 << 6, low]).T


def _q4_k(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, minimum, a, b, codes = _super_lines(x, w, 8, 15, 63, _CLIPS["Q4_K"])
    return {"d": scale, "dmin": minimum, "scales": _packed_factors(a, b), "qs": _packed(codes, 4, 32)}


def _q5_k(x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
    scale, minimum, a, b, codes = _super_lines(x, w, 8, 31, 63, _CLIPS["Q4_K"])
    high = _packed(_above(codes, 4), 1, 32)
    return {"d": scale, "dmin": minimum, "scales": _packed_factors(a, b), "qh": high, "qs": _packed(codes, 4, 32)}


# Bits


def _above(codes: np.ndarray, bits: int) -> np.ndarray:
    """What is left of whole numbers when their lowest bits are taken away."""
    return codes.astype(np.uint8) >> bits


def _packed(fields: np.ndarray, bits: int, run: int) -> np.ndarray:
    """The lowest `bits` of fields [count, n] as bytes [n, count * bits / 8]: the inverse of `gguf.blocks._unpack`."""
    places = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    kept = fields.astype(np.uint8).T & np.uint8((1 << bits) - 1)
    shifted = kept.reshape(len(kept), -1, len(places), run) << places
    return np.bitwise_or.reduce(shifted, axis=2).reshape(len(kept), -1)


def _uneven_codes(levels: np.ndarray) -> np.ndarray:
    return np.searchsorted(codebooks.iq4_levels(), levels)


_ENCODERS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "IQ4_NL": _iq4_nl,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}

#: The types that numbers can be encoded as.
TYPES = tuple(_ENCODERS)
