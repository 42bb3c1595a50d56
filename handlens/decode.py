"""Untrusted bytes in, an upright RGB picture out.

The file is read by `image_files.py` before Pillow sees it, so limits hold before anything is decoded.

What comes out, for people look at files and expect the model to see the same:

- the first frame of an animation, turned upright by its EXIF orientation;
- transparent parts over white, since black text on a transparent ground would be black on black without;
- 16-bit grey scaled to 8 bits (Pillow alone would clip it to white);
- anything else exactly as `Image.open(file).convert("RGB")`, colour profiles ignored, as the original model was fed.
"""

import base64
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, fields
from io import BytesIO

import numpy as np
from PIL import Image, features

from handlens.errors import ImageError, InputError
from handlens.image_files import FORMATS, orientation


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of images one request may bring. Pixels are counted from the header, before anything is decoded."""

    max_bytes: int = 64 * 2**20  # of one file
    max_pixels: int = 64 * 2**20  # of one image; 8192x8192
    max_images: int = 64
    max_total_pixels: int = 256 * 2**20  # of all images of a request

    def __post_init__(self):
        for limit in fields(self):
            if getattr(self, limit.name) < 1:
                raise InputError(f"{limit.name} is {getattr(self, limit.name)}; it must be at least 1")


def open_image(source: str | os.PathLike | bytes | Image.Image, limits: Limits = Limits()) -> Image.Image:
    """The RGB picture in a file, in the bytes of a file, or in a PIL image (converted as the original does).

    A str is a path and nothing else: a server decodes what clients send with `decode_base64` and never comes here.
    """
    if isinstance(source, Image.Image):
        _check_size(source.size, limits, "the image")
        try:
            return source.convert("RGB")
        except Exception:  # a PIL image may be a file that is not decoded yet
            raise ImageError("the image given cannot be converted to RGB; its file may be damaged") from None
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode(bytes(source), limits)
    if isinstance(source, (str, os.PathLike)):
        return decode(_read_file(source, limits), limits, name=f"the image {os.fspath(source)!r}")
    raise ImageError(f"an image must be a path, the bytes of a file or a PIL image, not {type(source).__name__}")


def decode(data: bytes, limits: Limits = Limits(), name: str = "the image") -> Image.Image:
    """The RGB picture in the bytes of a file; ImageError, whose text begins with `name`, if there is none."""
    if not data:
        raise ImageError(f"{name} is empty")
    if len(data) > limits.max_bytes:
        raise ImageError(f"{name} has more than the {limits.max_bytes} bytes that are accepted; make it smaller")
    kind = next((kind for kind, row in FORMATS.items() if re.match(row.magic, data, re.DOTALL)), None)
    if kind is None:
        raise ImageError(f"{name} is not in a format that is accepted; save it as {', '.join(FORMATS)}")
    if kind == "WEBP" and not features.check("webp"):
        raise ImageError(f"{name} is a WEBP file, and the installed Pillow was built without WebP; save it as PNG")
    try:
        header = FORMATS[kind].read(data)
        _check_size(header.size, limits, name)
        image = FORMATS[kind].plugin(BytesIO(header.body))  # not Image.open: so no other plugin can be reached
        if image.size != header.size:
            raise ValueError("two sizes in one file")
        if header.key is not None:
            image.info["transparency"] = header.key
        return _upright(_to_rgb(image), header.exif)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory") from None
    except Exception:  # whatever a decoder raises; its text may tell addresses and paths, so it is not passed on
        raise ImageError(f"{name} cannot be decoded: the {kind} file is damaged, cut off or of a rare kind") from None


def decode_base64(text: str, limits: Limits = Limits()) -> Image.Image:
    """The RGB picture in base64 text or in a `data:image/...;base64,` URL, checked for length before it is decoded."""
    if not isinstance(text, str):
        raise ImageError(f"the image must be base64 text, not {type(text).__name__}")
    longest = limits.max_bytes * 3 // 2 + 256  # base64 needs 4/3, line breaks and the head of a data URL a little more
    if len(text) > longest:
        raise ImageError(f"the image has {len(text)} characters of base64; at most {longest} are accepted")
    text = text.strip()
    if text[:5].lower() == "data:":
        head, comma, text = text[5:].partition(",")
        if not comma:
            raise ImageError("the data: URL has no comma; wanted data:image/png;base64,...")
        media_type, *parameters = head.lower().split(";")
        if not media_type.startswith("image/") or "base64" not in parameters:
            raise ImageError(
                f"the data: URL holds {head[:60]!r}; wanted an image type and base64, like image/png;base64"
            )
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ImageError("the image is not valid base64; it may be cut off") from None
    return decode(data, limits)


def check_request(images: Sequence[Image.Image], limits: Limits = Limits()) -> None:
    """Nothing, or ImageError if one request brings too many images or pixels.

    Called after each image that is opened, it also bounds what is in memory when a request is refused.
    """
    if len(images) > limits.max_images:
        raise ImageError(f"the request holds {len(images)} images; at most {limits.max_images} are accepted")
    pixels = sum(image.width * image.height for image in images)
    if pixels > limits.max_total_pixels:
        raise ImageError(
            f"the {len(images)} images of the request have {pixels} pixels together; "
            f"at most {limits.max_total_pixels} are accepted: send fewer or smaller images"
        )


def _read_file(path: str | os.PathLike, limits: Limits) -> bytes:
    """The bytes of a regular file, at most one more than allowed; pipes and devices are refused, they may never end."""
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISREG(mode):
            with open(name, "rb") as file:
                return file.read(limits.max_bytes + 1)
    except FileNotFoundError:
        raise ImageError(f"there is no file {name!r}; images are read from files on this machine") from None
    except OSError as error:
        raise ImageError(f"{name!r} cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise ImageError(f"{name!r} is not the name of a file") from None
    raise ImageError(f"{name!r} is {'a directory' if stat.S_ISDIR(mode) else 'not a file'}; an image file is wanted")


def _check_size(size: tuple[int, int], limits: Limits, name: str) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError(f"{name} has no pixels: its size is {width}x{height}")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} pixels; at most {limits.max_pixels} are accepted: make it smaller"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, 16-bit grey scaled to 8 bits and transparent parts over white."""
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.uint16)
        grey = ((np.minimum(deep, 65407) + 128) // 257).astype(np.uint8)  # deep / 257, rounded without leaving 16 bits
        if "transparency" in image.info:
            grey[deep == image.info["transparency"]] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    return image.convert("RGB")


#: What brings a picture upright, for each value of the EXIF orientation that asks for something.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(picture: Image.Image, exif: bytes) -> Image.Image:
    """The picture turned as the Orientation entry of its EXIF data says; damaged EXIF data say nothing."""
    turn = _TURNS.get(orientation(exif))
    return picture if turn is None else picture.transpose(turn)
