"""What happens to pages between the printer and the reader: paper, light, camera, scanner, compression.

Each way is a small function in `DEGRADATIONS` with how often it comes and what it changes. They run in the order of the
table, which is the order of the world: paper, then the camera's view, then light, optics, sensor and file. Whatever
would cost legibility is bounded by the size of the smallest text, which the distances of the glyph centres tell.
"""

import io
from collections.abc import Callable, Collection
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from handlens.data.raster import Colour

#: How often a picture is left as it was drawn: screenshots and rendered PDFs are like that.
CLEAN = 0.15
#: The distance of neighbouring glyphs, in pixels, that is assumed where there are none.
NO_TEXT_PITCH = 10.0
#: The least distance, after geometry and loss of resolution, at which letters can still be told apart.
LEAST_PITCH = 5.5
#: The least size of a page that was turned, as a share of its own.
LEAST_SHRINK = 0.87
#: Bicubic keeps letters sharper, bilinear takes a third of the time.
WARP_FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BILINEAR)


class Page(NamedTuple):
    """A picture on its way, its glyph centres [n, 2], and how far apart the glyphs of its smallest text are."""

    picture: Image.Image
    centres: np.ndarray
    pitch: float


class Degradation(NamedTuple):
    apply: Callable[[Page, np.random.Generator, float], Page]
    probability: float
    changes: str  # "places", "colours" or "quality"


def degrade(
    image: np.ndarray,
    centres: np.ndarray,
    rng: np.random.Generator,
    strength: float = 1.0,
    keep: Collection[str] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """(image uint8 [H, W, 3], centres float32 [n, 2]): the picture after some of what befalls pictures, no larger.

    `strength` scales how often and how much. `keep` names what must stay because the answer speaks of it: "places",
    "colours". All centres stay inside the picture.
    """
    page = Page(Image.fromarray(image), np.asarray(centres, np.float32).reshape(-1, 2), glyph_pitch(centres))
    chances = rng.random(len(DEGRADATIONS) + 1)
    if chances[-1] < CLEAN:
        return image.copy(), page.centres.copy()
    for chance, way in zip(chances, DEGRADATIONS):
        if way.changes not in keep and chance < way.probability * strength:
            page = way.apply(page, rng, strength)
    return np.array(page.picture), page.centres


def glyph_pitch(centres: np.ndarray) -> float:
    """The distance of neighbouring glyphs in the smaller text of a picture, from centres [n, 2] in reading order."""
    steps = np.abs(np.diff(centres, axis=0))
    steps = steps[(steps[:, 0] > 1) & (steps[:, 0] > 2 * steps[:, 1]) & (steps[:, 0] < 60), 0]
    return float(np.percentile(steps, 25)) if len(steps) >= 3 else NO_TEXT_PITCH


def inverse(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Light on dark."""
    return page._replace(picture=ImageChops.invert(page.picture))


def tint(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Coloured paper and ink that is not black: white becomes a pale colour, black a dark one."""
    white = 255 - rng.uniform(0, 70 * min(strength, 1.5)) * rng.uniform(0, 1, 3)
    black = rng.uniform(0, 60) * rng.uniform(0.3, 1, 3)
    ramp = np.arange(256)[None] / 255
    table = (black[:, None] + (white - black)[:, None] * ramp).round().astype(np.uint8)
    return page._replace(picture=page.picture.point(table.ravel().tolist()))


def contrast(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Under- and overexposure, flat or hard prints."""
    gamma = np.exp(rng.uniform(-0.5, 0.5) * strength)
    low, high = rng.uniform(0, 50) * strength, 255 - rng.uniform(0, 60) * strength
    table = low + (max(high, low + 100) - low) * (np.arange(256) / 255) ** gamma
    return page._replace(picture=page.picture.point(table.clip(0, 255).round().astype(int).tolist() * 3))


def grain(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Paper that is not even: cloudy or fibrous."""
    depth = int(rng.uniform(6, 28) * strength) + 1
    cell = rng.choice([2, 4, 12], 2)
    return page._replace(picture=_shade(page.picture, rng.integers(255 - depth, 256, _cells(page, cell), np.uint8)))


def shadow(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Uneven light: a soft slope, or the edge of a shadow across the page."""
    width, height = page.picture.size
    y, x = np.mgrid[0:24, 0:24] / 23 - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * x * width / max(width, height) + np.sin(angle) * y * height / max(width, height)
    softness = rng.choice([0.03, 0.15, 0.5])
    slope = 1 / (1 + np.exp(-(across - rng.uniform(-0.3, 0.3)) / softness))
    darkest = 1 - rng.uniform(0.1, 0.5) * min(strength, 1.5)
    light = 255 * (darkest + (1 - darkest) * slope)
    return page._replace(picture=_shade(page.picture, light.round().astype(np.uint8)))


def rotate(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """A page that lies up to 3 degrees askew."""
    angle = np.radians(rng.uniform(-3, 3) * strength)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return _warp(page, rng, _corners(page) @ turn.T)


def perspective(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """A page that is seen from the side: each corner moves by up to 4 % of the side."""
    shift = rng.uniform(-0.04, 0.04, (4, 2)) * strength * page.picture.size
    return _warp(page, rng, _corners(page) + shift)


def blur(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Out of focus, or moved: in each direction its own radius, up to a twelfth of the pitch."""
    radius = rng.uniform(0.02, 0.08) * min(strength, 1.3) * page.pitch
    across, down = radius * rng.uniform(0.4, 1, 2)
    return page._replace(picture=page.picture.filter(ImageFilter.BoxBlur((across, down))))


def rescale(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Resolution that was lost: smaller once, then at the old size again."""
    least = max(LEAST_PITCH / page.pitch, 1 - 0.5 * strength, 0.3)
    if least >= 1:
        return page
    factor = rng.uniform(least, 1)
    filters = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX]
    down, up = rng.integers(0, 3), rng.integers(0, 2)
    size = [max(round(side * factor), 1) for side in page.picture.size]
    smaller = page.picture.resize(size, filters[down])
    return page._replace(picture=smaller.resize(page.picture.size, filters[up]))


def noise(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """A sensor's noise, the same or another in each channel."""
    width, height = page.picture.size
    mode = str(rng.choice(["L", "RGB"]))
    random = Image.frombytes(mode, (width, height), rng.bytes(width * height * len(mode)))
    deviations = _bell() * rng.uniform(2, 14) * strength
    table = (128 + deviations).clip(0, 255).round().astype(int).tolist() * len(mode)
    random = random.point(table).convert("RGB")
    return page._replace(picture=ImageChops.add(page.picture, random, offset=-128))


def specks(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Dust and toner: dots much smaller than a letter, dark or light."""
    width, height = page.picture.size
    pixels = np.array(page.picture)
    count = int(rng.uniform(5, 60) * strength)
    pixels[rng.integers(0, height, count), rng.integers(0, width, count)] = rng.choice([40, 120, 235])
    return page._replace(picture=Image.fromarray(pixels))


def streaks(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Faint lines down or across the page, as scanners and folds leave them."""
    width, height = page.picture.size
    light = np.full((height, width), 255, np.uint8)
    for _ in range(rng.integers(1, 4)):
        value = 255 - int(rng.uniform(15, 70) * min(strength, 1.5))
        if rng.random() < 0.5:
            light[:, rng.integers(0, width)] = value
        else:
            light[rng.integers(0, height)] = value
    return page._replace(picture=_shade(page.picture, light))


def jpeg(page: Page, rng: np.random.Generator, strength: float) -> Page:
    """Compression, less of it where the text is small."""
    least = 25 if page.pitch > 9 else 45
    quality = int(rng.uniform(least, 95))
    data = io.BytesIO()
    page.picture.save(data, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2])))
    return page._replace(picture=Image.open(data).convert("RGB"))


#: Every way, in the order of the world.
DEGRADATIONS = (
    Degradation(tint, 0.35, "colours"),
    Degradation(inverse, 0.08, "colours"),
    Degradation(grain, 0.15, "quality"),
    Degradation(rotate, 0.2, "places"),
    Degradation(perspective, 0.12, "places"),
    Degradation(contrast, 0.25, "colours"),
    Degradation(shadow, 0.2, "quality"),
    Degradation(blur, 0.25, "quality"),
    Degradation(rescale, 0.25, "quality"),
    Degradation(noise, 0.25, "quality"),
    Degradation(specks, 0.06, "quality"),
    Degradation(streaks, 0.05, "quality"),
    Degradation(jpeg, 0.4, "quality"),
)


def _cells(page: Page, cell: np.ndarray) -> tuple[int, int]:
    """(rows, columns) of a field with one value for each cell of this (width, height) in pixels."""
    width, height = page.picture.size
    return max(height // int(cell[1]), 2), max(width // int(cell[0]), 2)


def _shade(picture: Image.Image, light: np.ndarray) -> Image.Image:
    """The picture under light uint8 [h, w] of any size, 255 being all of it."""
    field = Image.fromarray(light)
    if field.size != picture.size:
        field = field.resize(picture.size, Image.Resampling.BILINEAR)
    return ImageChops.multiply(picture, Image.merge("RGB", (field, field, field)))


def _corners(page: Page) -> np.ndarray:
    """The corners of the picture around its middle, [4, 2]."""
    width, height = page.picture.size
    return np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2


def _warp(page: Page, rng: np.random.Generator, corners: np.ndarray) -> Page:
    """The page with its corners moved to these places around the middle, smaller if something would leave the picture.

    What must stay is the whole page, as in a photograph of a sheet on a table, or only the text, as in a scan. Where
    the page would become too small, as long lines do when they are turned, the corners move less.
    """
    middle = np.array(page.picture.size) / 2
    whole = len(page.centres) == 0 or rng.random() < 0.4
    held = _corners(page) if whole else page.centres - middle
    most = np.abs(held).max(axis=0)
    allowed = np.maximum(most, middle - 1.5 * page.pitch)
    desk = _border(page.picture) if rng.random() < 0.7 else tuple(int(value) for value in rng.integers(20, 235, 3))
    for share in (1, 0.5, 0.25, 0.1):
        moved = _corners(page) * (1 - share) + corners * share
        reach = np.abs(_project(_homography(_corners(page), moved), held)).max(axis=0)
        shrink = min(1, 0.999 * (allowed / reach).min())
        if shrink > LEAST_SHRINK and page.pitch * shrink >= LEAST_PITCH:
            break
    else:
        return page
    back = _homography(moved * shrink + middle, _corners(page) + middle)
    flat = np.abs(back[2, :2]).max() < 1e-9  # an affine map, which is drawn faster
    picture = page.picture.transform(
        page.picture.size,
        Image.Transform.AFFINE if flat else Image.Transform.PERSPECTIVE,
        back.ravel()[: 6 if flat else 8].tolist(),
        WARP_FILTERS[rng.integers(len(WARP_FILTERS))],
        fillcolor=desk,
    )
    centres = _project(np.linalg.inv(back), page.centres).astype(np.float32)
    return Page(picture, centres, page.pitch * shrink)


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The matrix [3, 3] that takes four points [4, 2] to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [n, 2] after the matrix."""
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


@lru_cache(maxsize=1)
def _bell() -> np.ndarray:
    """256 values, equally likely, of a normal distribution with deviation 1: what turns random bytes into noise."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((byte + 0.5) / 256) for byte in range(256)])


def _border(picture: Image.Image) -> Colour:
    """The colour along the edge of the picture."""
    width, height = picture.size
    edge = [picture.getpixel((x, y)) for x in (0, width // 2, width - 1) for y in (0, height - 1)]
    return tuple(int(value) for value in np.median(np.array(edge), axis=0))
