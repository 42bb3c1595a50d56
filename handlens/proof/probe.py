"""The picture and the text that a model is proven on: made by whole-number arithmetic, so the same everywhere."""

import numpy as np
from PIL import Image

from handlens.tokenizer import Tokenizer

#: (width, height) in pixels: whole patches, and small enough that no slicing rule resizes it.
PICTURE_SIZE = 196, 140

#: Letters of several scripts, digits and signs, so that many rows of the embedding table take part.
TEXT = (
    "Read this page: invoice 20471, total 1,284.50 EUR. Größe, prix, señal; Счёт № 7, λόγος, 合計 の 金額. "
    "def area(r): return 3.14159 * r ** 2"
)


def probe_picture() -> Image.Image:
    """The picture: ramps, rings, stripes and rows of dots that look like print."""
    width, height = PICTURE_SIZE
    y, x = np.mgrid[:height, :width]
    rings = ((x - 60) ** 2 + (y - 50) ** 2) // 90 % 2 * 255
    ramps = (x * 255 // (width - 1) + y * 3) % 256
    print_like = np.where((y // 4 % 4 < 2) & ((x * 7 + y // 16 * 13) // 3 % 5 < 3), 20, 235)
    colours = np.stack([rings, ramps, 255 - rings // 2], axis=-1)
    pixels = np.where((x < 98)[..., None], colours, print_like[..., None])
    return Image.fromarray(pixels.astype(np.uint8))


def probe_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The ids [n] of the text."""
    return np.array(tokenizer.encode(TEXT), np.int64)
