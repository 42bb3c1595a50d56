"""Untrusted bytes in, an upright RGB picture out.

Five formats are accepted, told apart by their first bytes. Each has a small reader here that walks the file before
Pillow sees it. It finds the size, so that limits hold before anything is decoded, and the EXIF orientation; and it
leaves out what no picture needs (text, profiles, thumbnails, more images), so that Pillow never inflates or parses it.

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
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from handlens.errors import ImageError, InputError

#: The most chunks, segments or blocks that a file may consist of; ordinary files have a few, or one per 8 kB of pixels.
#: What lies behind them is not read, so a file that needs it is refused as cut off.
MAX_PARTS = 2**16
#: The most scans of a progressive JPEG. Ordinary ones have about ten; each costs a pass over the whole picture.
MAX_SCANS = 32
#: The first image of a GIF must begin within so many bytes; ordinary ones need less than 1 kB for palette and comments.
MAX_GIF_HEAD = 4 * 2**20


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


class _Header(NamedTuple):
    """What a reader finds in a file: `body` is the file without its metadata, `key` a colour that is transparent."""

    size: tuple[int, int]
    body: bytes
    exif: bytes = b""
    key: int | tuple[int, ...] | None = None


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
    kind = next((kind for kind, row in _FORMATS.items() if re.match(row.magic, data, re.DOTALL)), None)
    if kind is None:
        raise ImageError(f"{name} is not in a format that is accepted; save it as {', '.join(_FORMATS)}")
    if kind == "WEBP" and not features.check("webp"):
        raise ImageError(f"{name} is a WEBP file, and the installed Pillow was built without WebP; save it as PNG")
    try:
        header = _FORMATS[kind].read(data)
        _check_size(header.size, limits, name)
        image = _FORMATS[kind].plugin(BytesIO(header.body))  # not Image.open: so no other plugin can be reached
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
    turn = _TURNS.get(_orientation(exif))
    return picture if turn is None else picture.transpose(turn)


def _orientation(exif: bytes) -> int:
    """The Orientation entry (tag 0x112, a short) in the first directory of EXIF data, 1 if there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * entry)
            if (tag, kind) == (0x112, 3):
                return value
    except struct.error:  # the data end before the entry
        pass
    return 1


# The readers. A ValueError, IndexError or struct.error from one of them means a damaged file, as one from Pillow does.


def _read_png(data: bytes) -> _Header:
    """Header of a PNG file; only the chunks that make the picture stay (W3C PNG specification, sections 5 and 11)."""
    length, kind, width, height, depth, colour = struct.unpack_from(">I4sIIBB", data, 8)
    if (length, kind) != (13, b"IHDR"):
        raise ValueError("the first chunk is not the header")
    view, at, exif, key = memoryview(data), 33, b"", None
    kept = [view[:at]]
    for _ in range(MAX_PARTS):
        if at + 8 > len(data) or kind == b"IEND":
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind == b"tRNS" and colour == 0:  # Pillow does not scale it for 2 and 4 bits
            (grey,) = struct.unpack_from(">H", data, at + 8)
            key = grey if depth == 16 else grey % 2**depth * 255 // (2**depth - 1)
        elif kind == b"tRNS" and colour == 2:  # Pillow keeps the upper 8 of 16 bits of the pixels, but all of the key
            key = tuple(value >> depth - 8 & 255 for value in struct.unpack_from(">3H", data, at + 8))
        elif kind in (b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(view[at:end])
        elif kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        at = end
    return _Header((width, height), b"".join(kept), exif, key)


#: The next JPEG marker: 0xFF and a code that is neither stuffing, a fill byte nor a restart inside a scan.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE, _EXIF = 0xDA, 0xD9, 0xE1
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
#: Application data and comments. JFIF (0xE0) and Adobe (0xEE) stay: they tell how colours are stored.
_JPEG_METADATA = {*range(0xE1, 0xF0), 0xFE} - {0xEE}


def _read_jpeg(data: bytes) -> _Header:
    """Header of a JPEG file; metadata and all that follows the first image are left out (ITU-T T.81, annex B)."""
    view, at, exif, size, scans = memoryview(data), 2, b"", None, 0
    kept = [view[:at]]
    for _ in range(MAX_PARTS):
        marker = _MARKER.search(data, at)
        start = marker.start() if marker else len(data)
        if scans:
            kept.append(view[at:start])  # the coded pixels of the scan before the marker
        if marker is None:
            break
        code = data[start + 1]
        if code == _END_OF_IMAGE:
            kept.append(view[start : start + 2])
            break
        (length,) = struct.unpack_from(">H", data, start + 2)
        at = start + 2 + length
        if code in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, start + 5)
            size = width, height
        elif code == _EXIF and not exif and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = data[start + 4 : at]
        scans += code == _START_OF_SCAN
        if code not in _JPEG_METADATA:
            kept.append(view[start:at])
    if size is None or scans > MAX_SCANS:
        raise ValueError("no frame, or too many scans")
    return _Header(size, b"".join(kept), exif)


def _read_webp(data: bytes) -> _Header:
    """Header of a WebP file (RFC 9649, section 2); its metadata stay, since libwebp steps over them unread."""
    at, size, exif = 12, None, b""
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        at += 8
        if kind == b"EXIF":
            exif = data[at : at + length]
        elif size is None and kind == b"VP8X":
            size = tuple(int.from_bytes(data[at + n : at + n + 3], "little") + 1 for n in (4, 7))
        elif size is None and kind == b"VP8 ":
            size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, at + 6))
        elif size is None and kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, at + 1)
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        at += length + length % 2
    if size is None:
        raise ValueError("no picture in the file")
    return _Header(size, data, exif)


def _read_gif(data: bytes) -> _Header:
    """Header of a GIF file; comments and application data before the first image are left out (GIF89a, section 15)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    kept = [data[:at]]
    head = data[:MAX_GIF_HEAD]  # an IndexError where it ends
    while head[at] != 0x2C:  # the first image
        start = at
        at += 1  # past a stray byte, which other readers forgive, too
        if head[start] == 0x3B:
            raise ValueError("the file ends without an image")
        if head[start] == 0x21:  # an extension: its kind, then blocks of a length and as many bytes, the last one empty
            at += 1
            while head[at]:
                at += 1 + head[at]
            at += 1
            if head[start + 1] == 0xF9:  # graphic control, which tells the transparent colour
                kept.append(head[start:at])
    left, top, columns, rows = struct.unpack_from("<4H", data, at + 1)
    kept.append(data[at:])
    return _Header((max(width, left + columns), max(height, top + rows)), b"".join(kept))


def _read_bmp(data: bytes) -> _Header:
    """Header of a BMP file: the old header of 12 bytes has short sides; a negative height means rows from the top."""
    (length,) = struct.unpack_from("<I", data, 14)
    if length == 12:
        return _Header(struct.unpack_from("<HH", data, 18), data)
    width, height, compression = struct.unpack_from("<Ii4xI", data, 18)
    if compression in (1, 2):
        raise ValueError("run-length coded: Pillow decodes it in Python, where 30 kB can take 10 seconds")
    return _Header((width, abs(height)), data)


class _Format(NamedTuple):
    """How a format begins (a regular expression), how its header is read, and which part of Pillow decodes it."""

    magic: bytes
    read: Callable[[bytes], _Header]
    plugin: type[Image.Image]


_FORMATS = {
    "PNG": _Format(rb"\x89PNG\r\n\x1a\n", _read_png, PngImageFile),
    "JPEG": _Format(rb"\xff\xd8\xff", _read_jpeg, JpegImageFile),
    "WEBP": _Format(rb"RIFF....WEBP", _read_webp, WebPImageFile),
    "GIF": _Format(rb"GIF8[79]a", _read_gif, GifImageFile),
    "BMP": _Format(rb"BM", _read_bmp, BmpImageFile),
}
