"""The five image formats that are accepted, told apart by their first bytes, each with a small reader.

A reader walks the file before Pillow sees it. It finds the size, so that limits hold before anything is decoded, and
the EXIF data; and it leaves out what no picture needs (text, profiles, thumbnails, more images), so that Pillow never
inflates or parses it. A ValueError, IndexError or struct.error from one means a damaged file, as one from Pillow does.
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

#: The most chunks, segments or blocks that a file may consist of; ordinary files have a few, or one per 8 kB of pixels.
#: What lies behind them is not read, so a file that needs it is refused as cut off.
MAX_PARTS = 2**16
#: The most scans of a progressive JPEG. Ordinary ones have about ten; each costs a pass over the whole picture.
MAX_SCANS = 32
#: The first image of a GIF must begin within so many bytes; ordinary ones need less than 1 kB for palette and comments.
MAX_GIF_HEAD = 4 * 2**20


class Header(NamedTuple):
    """What a reader finds in a file: `body` is the file without its metadata, `key` a colour that is transparent."""

    size: tuple[int, int]
    body: bytes
    exif: bytes = b""
    key: int | tuple[int, ...] | None = None


def orientation(exif: bytes) -> int:
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


def _read_png(data: bytes) -> Header:
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
    return Header((width, height), b"".join(kept), exif, key)


#: The next JPEG marker: 0xFF and a code that is neither stuffing, a fill byte nor a restart inside a scan.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_START_OF_SCAN, _END_OF_IMAGE, _EXIF = 0xDA, 0xD9, 0xE1
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
#: Application data and comments. JFIF (0xE0) and Adobe (0xEE) stay: they tell how colours are stored.
_JPEG_METADATA = {*range(0xE1, 0xF0), 0xFE} - {0xEE}


def _read_jpeg(data: bytes) -> Header:
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
    return Header(size, b"".join(kept), exif)


def _read_webp(data: bytes) -> Header:
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
    return Header(size, data, exif)


def _read_gif(data: bytes) -> Header:
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
    return Header((max(width, left + columns), max(height, top + rows)), b"".join(kept))


def _read_bmp(data: bytes) -> Header:
    """Header of a BMP file: the old header of 12 bytes has short sides; a negative height means rows from the top."""
    (length,) = struct.unpack_from("<I", data, 14)
    if length == 12:
        return Header(struct.unpack_from("<HH", data, 18), data)
    width, height, compression = struct.unpack_from("<Ii4xI", data, 18)
    if compression in (1, 2):
        raise ValueError("run-length coded: Pillow decodes it in Python, where 30 kB can take 10 seconds")
    return Header((width, abs(height)), data)


class Format(NamedTuple):
    """How a format begins (a regular expression), how its header is read, and which part of Pillow decodes it."""

    magic: bytes
    read: Callable[[bytes], Header]
    plugin: type[Image.Image]


FORMATS = {
    "PNG": Format(rb"\x89PNG\r\n\x1a\n", _read_png, PngImageFile),
    "JPEG": Format(rb"\xff\xd8\xff", _read_jpeg, JpegImageFile),
    "WEBP": Format(rb"RIFF....WEBP", _read_webp, WebPImageFile),
    "GIF": Format(rb"GIF8[79]a", _read_gif, GifImageFile),
    "BMP": Format(rb"BM", _read_bmp, BmpImageFile),
}
