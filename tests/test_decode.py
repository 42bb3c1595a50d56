"""Decoding: hostile files are refused with a clear sentence, and every kind of file has one defined result."""

import base64
import io
import os
import random
import re
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from handlens.decode import Limits, check_request, decode, decode_base64, open_image
from handlens.errors import ImageError, InputError
from handlens.image_files import MAX_SCANS

# A warning of Pillow that reaches a user is a failure too.
pytestmark = pytest.mark.filterwarnings("error")

SIZE = (19, 13)
ACCEPTED = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


def scene(size=SIZE, seed=0):
    """A smooth picture with a little noise: unlike under every turn, and kind to lossy formats."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 20, (height, width))
    return Image.fromarray(
        np.stack([x * 12 % 236 + noise, y * 17 % 236 + noise, (x + y) * 7 % 256], -1).astype(np.uint8)
    )


def file_of(image, format, **options):
    """The bytes of a file that Pillow writes."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def reference(data):
    """What the original preprocessing sees in a file."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def same(picture, expected):
    return picture.mode == "RGB" and picture.size == expected.size and picture.tobytes() == expected.tobytes()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header(width, height, depth, colour, interlace=0):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(head, rows, *before, after=b""):
    """A PNG file from its header chunk, the bytes of its rows, and chunks to put before and after the pixels."""
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def refusal(data, **options):
    with pytest.raises(ImageError) as caught:
        decode(data, **options)
    return str(caught.value)


# I01: limits hold from the header on


def claims(data, format, width, height):
    """A valid small file whose header is changed to claim another size."""
    data = bytearray(data)
    if format == "PNG":
        data[8:33] = header(width, height, 8, 2)
    elif format == "JPEG":
        struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    elif format == "GIF":
        struct.pack_into("<HH", data, 6, width, height)
    elif format == "BMP":
        struct.pack_into("<ii", data, 18, width, -height)
    else:  # a lossless WebP: 14 bits for each side
        bits = int.from_bytes(data[21:25], "little") >> 28 << 28
        struct.pack_into("<I", data, 21, bits | (height - 1) << 14 | width - 1)
    return bytes(data)


def valid_bomb(side=12000):
    """A valid black and white PNG of side x side, of 18 kB."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(deflate.compress(row) for _ in range(side)) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + header(side, side, 1, 0) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ACCEPTED)
def test_i01_a_size_beyond_the_limit_is_refused_from_the_header(format):
    width, height = (16384, 16383) if format == "WEBP" else (20000, 19999)
    small = file_of(scene(), format, **({"lossless": True} if format == "WEBP" else {}))
    message = refusal(claims(small, format, width, height))
    assert f"{width}x{height}" in message and str(Limits().max_pixels) in message


def test_i01_the_limit_is_exact():
    data = file_of(scene((50, 40)), "PNG")
    assert decode(data, Limits(max_pixels=2000)).size == (50, 40)
    assert "50x40" in refusal(data, limits=Limits(max_pixels=1999))
    assert decode(data, Limits(max_bytes=len(data))).size == (50, 40)
    assert str(len(data) - 1) in refusal(data, limits=Limits(max_bytes=len(data) - 1))


def test_i01_a_limit_above_pillows_own_is_ours_to_give(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode(file_of(scene((50, 40)), "PNG")).size == (50, 40)


def test_i01_many_bombs_at_once_need_no_memory(tmp_path):
    resource = pytest.importorskip("resource")
    del resource
    bombs = {"valid.png": valid_bomb(), "false.png": claims(file_of(scene(), "PNG"), "PNG", 20000, 20000) + bytes(8000)}
    assert all(len(data) < 20_000 for data in bombs.values())
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    script = """if True:
        import resource, sys, threading, warnings
        warnings.simplefilter("error")
        from handlens.decode import open_image
        from handlens.errors import ImageError
        refused = []
        def attack():
            for path in sys.argv[1:] * 4:
                try:
                    open_image(path)
                except ImageError as error:
                    refused.append(str(error))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        threads = [threading.Thread(target=attack) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(len(refused), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in bombs)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stderr == ""
    refused, growth = map(int, result.stdout.split())
    assert refused == 64
    assert growth * (1 if sys.platform == "darwin" else 1024) < 20 * 2**20


def test_i01_a_second_size_hidden_in_the_file_changes_nothing():
    data = file_of(scene(), "PNG")
    hidden = data[:33] + header(20000, 20000, 8, 2) + data[33:]
    assert same(decode(hidden), scene())
    frame = file_of(scene(), "JPEG")
    start = frame.index(b"\xff\xc0")
    segment = frame[start : start + 19]
    refusal(frame[:start] + segment[:5] + struct.pack(">HH", 20000, 20000) + segment[9:] + frame[start:])


def test_i01_a_height_that_pillow_reads_otherwise_is_refused():
    data = bytearray(file_of(scene(), "BMP"))
    struct.pack_into("<ii", data, 18, 1, -(2**24 + 5))  # 16 million rows from the top, or 4 billion without the sign
    assert "cannot be decoded" in refusal(bytes(data))


def test_i01_a_gif_frame_larger_than_its_screen_counts():
    data = bytearray(file_of(scene(), "GIF"))
    at = data.index(b",", 13 + 3 * 256)
    struct.pack_into("<HH", data, at + 5, 20000, 20000)
    assert "20000x20000" in refusal(bytes(data))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_i01_inflated_text_and_profiles_are_never_inflated(kind):
    packed = zlib.compress(bytes(2**20 - 10), 9)
    body = {b"zTXt": b"k\0\0", b"iCCP": b"k\0\0", b"iTXt": b"k\0\1\0\0\0"}[kind] + packed
    data = file_of(scene(), "PNG")
    picture = decode(data[:33] + chunk(kind, body) * 500 + data[33:-12] + chunk(kind, body) * 500 + data[-12:])
    assert same(picture, scene()) and not picture.info


def test_i01_a_progressive_jpeg_with_thousands_of_scans_is_refused():
    data = file_of(scene((64, 64)), "JPEG", progressive=True)
    assert same(decode(data), reference(data))
    last = data.rindex(b"\xff\xda")
    assert 2 <= data.count(b"\xff\xda") <= 12
    refusal(data[:last] + data[last:-2] * (MAX_SCANS + 1) + data[-2:])


def test_i01_a_file_of_too_many_parts_is_refused():
    photo, drawing, comic = (file_of(scene(), format) for format in ("JPEG", "PNG", "GIF"))
    refusal(photo[:2] + b"\xff\xfe\0\2" * 70_000 + photo[2:])
    refusal(drawing[:33] + chunk(b"teXt", b"") * 70_000 + drawing[33:])
    start = comic.index(b",", 13 + 3 * 256)
    refusal(comic[:start] + b"!\xfe\1a\0" * 1_000_000 + comic[start:])


def test_i01_a_run_length_coded_bmp_which_takes_pillow_seconds_is_refused():
    sizes = struct.pack("<IiiHHIIiiII", 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + sizes + bytes(1024) + b"\1\7\0\0" * 8000
    refusal(data)


# I02: five formats, told apart by their first bytes


@pytest.mark.parametrize("format", ["TIFF", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "EPS", "PDF", "ICNS", "MSP"])
def test_i02_other_formats_are_refused_and_the_accepted_ones_listed(format):
    image = scene((32, 32)).convert("1" if format == "MSP" else "RGB")
    message = refusal(file_of(image, format))
    assert all(name in message for name in ACCEPTED)


@pytest.mark.parametrize(
    "head",
    [
        b"SIMPLE  =                    T / FITS" + b" " * 43,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"II*\0\x08\0\0\0",
        b"MM\0*\0\0\0\x08",
        b"8BPS\0\1",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\xff\x4f\xff\x51\0\x2f",
        b"\0\0\0\x1cftypheic",
        b"\0\0\0\x1cftypavif",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\x1f\x8b\x08\0",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"version https://git-lfs",
    ],
)
def test_i02_known_carriers_of_attacks_never_reach_pillow(head, monkeypatch):
    for plugin in ("open", "preinit", "init"):
        monkeypatch.setattr(Image, plugin, lambda *args, **kwargs: pytest.fail("Pillow was asked"))
    assert "not in a format that is accepted" in refusal(head + bytes(3000))


def test_i02_a_name_or_a_type_that_lies_does_not_choose_the_decoder(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(file_of(scene((32, 32)), "TIFF"))
    with pytest.raises(ImageError, match="not in a format"):
        open_image(path)
    path.write_bytes(file_of(scene(), "BMP"))
    assert same(open_image(path), scene())


# I03: damaged files


def samples():
    """Small valid files: every format, several kinds of each."""
    image, grey = scene(), scene().convert("L")
    exif = Image.Exif()
    exif[0x112] = 6
    frames = {"save_all": True, "append_images": [scene(seed=1), scene(seed=2)]}
    clear = image.copy()
    clear.putalpha(grey)
    return {
        "png": file_of(image, "PNG"),
        "png alpha": file_of(clear, "PNG", exif=exif),
        "png palette": file_of(image.quantize(8), "PNG", transparency=3),
        "png 16": file_of(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"),
        "png 1": file_of(grey.convert("1"), "PNG"),
        "apng": file_of(image, "PNG", **frames),
        "jpeg": file_of(image, "JPEG", exif=exif, comment=b"a comment"),
        "jpeg progressive": file_of(image, "JPEG", progressive=True),
        "jpeg cmyk": file_of(image.convert("CMYK"), "JPEG"),
        "jpeg grey": file_of(grey, "JPEG"),
        "webp": file_of(image, "WEBP", exif=exif),
        "webp lossless": file_of(clear, "WEBP", lossless=True),
        "webp animated": file_of(image, "WEBP", **frames),
        "gif": file_of(image, "GIF", comment=b"a comment"),
        "gif animated": file_of(image.quantize(8), "GIF", **frames, transparency=1),
        "bmp": file_of(image, "BMP"),
        "bmp palette": file_of(image.quantize(16), "BMP"),
        "bmp 1": file_of(grey.convert("1"), "BMP"),
    }


def mutate(data, rng):
    """The file damaged in one way: bytes changed, a field set to an extreme, a part removed, doubled or cut off."""
    data = bytearray(data)
    at = rng.randrange(len(data)) if rng.random() < 0.4 else rng.randrange(min(len(data), 64))
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        data[at : at + 4] = rng.choice(
            [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1"]
        )
    elif kind == 2:
        del data[at : at + rng.randint(1, 40)]
    elif kind == 3:
        data[at:at] = data[at : at + rng.randint(1, 40)]
    else:
        del data[rng.randrange(1, len(data)) :]
    return bytes(data)


SIZES = re.compile(r"\b\d+x\d+\b")
LEAK = re.compile(r"0x[0-9a-f]{4}|object at|Traceback|site-packages|\.py|/PIL/", re.IGNORECASE)


@pytest.mark.parametrize("sample", samples())
def test_i03_a_damaged_file_is_a_picture_or_a_clean_error(sample):
    rng = random.Random(sample)
    data = samples()[sample]
    limits = Limits(max_pixels=2**18)
    assert decode(data, limits).mode == "RGB"
    refused = 0
    for _ in range(90):
        try:
            picture = decode(mutate(data, rng), limits)
        except ImageError as error:
            refused += 1
            assert str(error).startswith("the image ") and not LEAK.search(SIZES.sub("", str(error)))
            assert error.__suppress_context__ or error.__context__ is None
        else:
            assert picture.mode == "RGB" and 0 < picture.width * picture.height <= limits.max_pixels
    assert refused > 10


@pytest.mark.parametrize("sample", ["png", "jpeg", "webp", "gif", "bmp"])
def test_i03_a_file_cut_off_anywhere_is_refused(sample):
    data = samples()[sample]
    tail = {"png": 24, "gif": 3, "jpeg": 2}.get(sample, 1)  # readers forgive a missing end mark or checksum
    for length in range(1, len(data) - tail, 7):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_i03_files_that_are_no_image_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.png").write_bytes(file_of(scene(), "PNG")[:60])
    cases = {
        tmp_path / "absent.png": "there is no file .*absent.png",
        tmp_path: "is a directory",
        tmp_path / "empty.png": "empty.png.* is empty",
        tmp_path / "half.png": "half.png.*PNG file is damaged",
        "no\0name": "is not the name of a file",
        "x" * 5000: "cannot be read",
    }
    for path, message in cases.items():
        with pytest.raises(ImageError, match=message):
            open_image(path)
        with pytest.raises(ImageError, match=message):
            open_image(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_i03_a_pipe_or_a_device_is_refused_without_reading(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ImageError, match="not a file"):
            open_image(path)


def test_i03_a_damaged_pil_image_and_other_types_are_refused():
    lazy = Image.open(io.BytesIO(file_of(scene((200, 200)), "PNG")[:3000]))
    with pytest.raises(ImageError, match="converted"):
        open_image(lazy)
    with pytest.raises(ImageError, match="0x5"):
        open_image(Image.new("RGB", (0, 5)))
    for wrong in (None, 7, np.zeros((4, 4, 3)), ["a.png"]):
        with pytest.raises(ImageError, match=type(wrong).__name__):
            open_image(wrong)


# I06: limits of a request


def test_i06_too_many_images_or_pixels_are_refused_with_the_numbers():
    images = [Image.new("RGB", (30, 20))] * 5
    check_request([])
    check_request(images, Limits(max_images=5, max_total_pixels=3000))
    with pytest.raises(ImageError, match="5 images; at most 4"):
        check_request(images, Limits(max_images=4))
    with pytest.raises(ImageError, match="5 images .* 3000 pixels together; at most 2999"):
        check_request(images, Limits(max_total_pixels=2999))
    with pytest.raises(ImageError, match="30x20.* 599"):
        open_image(images[0], Limits(max_pixels=599))


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_images", "max_total_pixels"])
def test_i06_limits_must_be_positive(name):
    with pytest.raises(InputError, match=f"{name} is 0"):
        Limits(**{name: 0})


# I07: base64 and data: URLs


def test_i07_base64_and_data_urls_are_decoded():
    data = file_of(scene(), "PNG")
    text = base64.b64encode(data).decode()
    wrapped = base64.encodebytes(data).decode()  # lines of 76 characters, as command line tools write
    for source in (text, wrapped, f"data:image/png;base64,{text}", f"DATA:image/x-anything;q=1;base64,{text}"):
        assert same(decode_base64(source), scene())


def test_i07_what_is_not_an_image_in_base64_is_refused():
    text = base64.b64encode(file_of(scene(), "PNG")).decode()
    cases = {
        f"data:image/png;base64{text}": "no comma",
        f"data:text/html;base64,{text}": "text/html",
        f"data:application/pdf;base64,{text}": "application/pdf",
        f"data:image/png,{text}": "wanted an image type and base64",
        f"data:,{text}": "wanted an image type",
        text[:-1]: "not valid base64",
        text[:101]: "not valid base64",
        text[:100]: "damaged",
        text[:48] + "****" + text[48:]: "not valid base64",
        text[:50] + "\u00e9" + text[51:]: "not valid base64",
        "": "empty",
        "data:image/png;base64,": "empty",
        "https://example.com/a.png": "not valid base64",
        "file:///etc/hostname": "not valid base64",
    }
    for source, message in cases.items():
        with pytest.raises(ImageError, match=message):
            decode_base64(source)
    with pytest.raises(ImageError, match="not dict"):
        decode_base64({"url": text})


def test_i07_length_is_checked_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(base64, "b64decode", lambda *args, **kwargs: pytest.fail("the text was decoded"))
    with pytest.raises(ImageError, match="300000 characters .* at most"):
        decode_base64("A" * 300_000, Limits(max_bytes=100_000))


def test_i07_decoded_bytes_count_too():
    data = file_of(scene(), "BMP")
    with pytest.raises(ImageError, match="bytes"):
        decode_base64(base64.b64encode(data).decode(), Limits(max_bytes=len(data) - 1))


# I08: one defined result for every kind of file


@pytest.mark.parametrize(
    "sample", ["png", "png 1", "jpeg progressive", "jpeg cmyk", "jpeg grey", "bmp", "bmp palette", "bmp 1"]
)
def test_i08_opaque_8_bit_files_equal_the_reference(sample):
    data = samples()[sample]
    assert same(decode(data), reference(data))
    assert np.ptp(np.asarray(decode(data))) > 100


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1"])
@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP"])
def test_i08_modes_without_loss_come_back(mode, format):
    image = scene().convert("L").point(lambda level: 255 * (level > 99)) if mode == "1" else scene()
    image = image.quantize(31) if mode == "P" or (format, mode) == ("GIF", "RGB") else image.convert(mode)
    data = file_of(image, format)
    assert same(decode(data), image.convert("RGB")) and same(decode(data), reference(data))


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}])
def test_i08_webp_equals_the_reference(options):
    data = file_of(scene(), "WEBP", **options)
    assert same(decode(data), reference(data))
    assert same(decode(data), scene()) == ("lossless" in options)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_i08_files_are_turned_upright(format, orientation):
    exif = Image.Exif()
    exif[0x10F] = "a camera with a name"
    exif[0x112] = orientation
    data = file_of(scene(), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert same(decode(data), upright)
    assert upright.size == (SIZE[::-1] if orientation in (5, 6, 7, 8) else SIZE)


def test_i08_orientation_6_means_that_the_top_was_on_the_left():
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 1), (255, 0, 0))  # lower left, which a turn to the right brings to the upper left
    exif = Image.Exif()
    exif[0x112] = 6
    picture = decode(file_of(image, "PNG", exif=exif))
    assert picture.size == (2, 4) and picture.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\0\0\0",
        b"MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\1\0\6\0\0",
        b"JUNK" * 9,
        struct.pack("<2sHIH", b"II", 42, 8, 65535)
        + b"".join(struct.pack("<HHII", tag, 7, 60000, 8) for tag in range(5000)),
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_i08_damaged_exif_data_say_nothing(format, exif):
    exif = b"Exif\0\0" + exif if format == "JPEG" else exif
    data = file_of(scene(), format, exif=exif)
    assert same(decode(data), decode(file_of(scene(), format)))


def test_i08_a_pil_image_is_taken_as_it_is():
    exif = Image.Exif()
    exif[0x112] = 6
    data = file_of(scene(), "PNG", exif=exif)
    assert same(open_image(Image.open(io.BytesIO(data))), scene())
    clear = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    assert open_image(clear).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_i08_alpha_is_laid_over_white(format):
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (0, 0, 0, 255), (200, 0, 100, 128)])
    data = file_of(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert [decode(data).getpixel((x, 0)) for x in range(3)] == [(255, 255, 255), (0, 0, 0), (227, 127, 177)]
    opaque = scene()
    opaque.putalpha(255)
    assert same(decode(file_of(opaque, "PNG")), scene())


def test_i08_grey_with_alpha_is_laid_over_white():
    image = Image.new("LA", (2, 1))
    image.putdata([(9, 0), (9, 255)])
    assert decode(file_of(image, "PNG")).tobytes() == bytes([255] * 3 + [9] * 3)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_i08_transparent_palette_entries_are_white(format):
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    image.putdata([0, 1, 2])
    picture = decode(file_of(image, format, transparency=1))
    assert picture.tobytes() == bytes([0, 0, 0, 255, 255, 255, 40, 50, 60])


def test_i08_partly_transparent_palette_entries_are_laid_over_white():
    data = png(header(2, 1, 8, 3), [[0, 1]], chunk(b"PLTE", bytes(6)), chunk(b"tRNS", bytes([128, 255])))
    assert decode(data).tobytes() == bytes([127] * 3 + [0] * 3)


@pytest.mark.parametrize("depth, row, key", [(1, 0b01000000, 0), (2, 0b00_11_01_10, 1), (4, 0x5A, 5), (8, 77, 77)])
def test_i08_a_transparent_grey_is_white_at_every_depth(depth, row, key):
    """A black drawing on a transparent ground, as tools that shrink PNG files write it."""
    width = max(2, 8 // depth) if depth < 8 else 1
    pixels = [row >> 8 - depth * (n + 1) & (1 << depth) - 1 for n in range(width)]
    shown = [255 if level == key else level * 255 // ((1 << depth) - 1) for level in pixels]
    data = png(header(width, 1, depth, 0), [[row]], chunk(b"tRNS", struct.pack(">H", key)))
    assert decode(data).tobytes() == bytes(level for level in shown for _ in range(3))
    black = png(header(width, 1, depth, 0), [[0]], chunk(b"tRNS", struct.pack(">H", 0)))
    assert set(decode(black).tobytes()) == {255}


def test_i08_a_transparent_colour_is_white():
    key = chunk(b"tRNS", struct.pack(">3H", 10, 20, 30))
    assert decode(png(header(2, 1, 8, 2), [[10, 20, 30, 10, 20, 31]], key)).tobytes() == bytes([255] * 3 + [10, 20, 31])
    deep = [struct.pack(">6H", 0x1122, 0x3344, 0x5566, 0x1222, 0x3344, 0x5566)]
    key = chunk(b"tRNS", struct.pack(">3H", 0x1122, 0x3344, 0x5566))
    assert decode(png(header(2, 1, 16, 2), deep, key)).tobytes() == bytes([255] * 3 + [0x12, 0x33, 0x55])


def test_i08_16_bit_grey_is_scaled_not_clipped():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = decode(file_of(Image.fromarray(levels), "PNG"))
    assert np.array_equal(np.asarray(picture)[..., 0], np.round(levels / 257))
    assert picture.mode == "RGB" and picture.getpixel((128, 128)) == (128, 128, 128)
    key = png(header(3, 1, 16, 0), [struct.pack(">3H", 257, 258, 514)], chunk(b"tRNS", struct.pack(">H", 258)))
    assert decode(key).tobytes() == bytes([1] * 3 + [255] * 3 + [2] * 3)


def test_i08_16_bit_colour_equals_the_reference():
    rows = np.random.default_rng(3).integers(0, 256, (5, 7 * 6), dtype=np.uint8)
    data = png(header(7, 5, 16, 2), rows)
    assert same(decode(data), reference(data))
    assert np.array_equal(np.asarray(decode(data)).reshape(5, -1), rows[:, ::2])


def test_i08_inverted_cmyk_of_adobe_equals_the_reference():
    data = file_of(scene((64, 48)).convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert same(decode(data), reference(data))
    error = np.abs(np.asarray(decode(data)).astype(int) - np.asarray(scene((64, 48))).astype(int))
    assert error.mean() < 12  # an inverted reading would be off by about 128


@pytest.mark.parametrize("marker", [b"\xff\xe0", b"\xff\xee"])
def test_i08_the_marks_that_tell_how_a_jpeg_stores_colours_are_heeded(marker):
    """JFIF says YCbCr and Adobe says RGB, whatever the names of the components suggest."""
    jfif = marker == b"\xff\xe0"
    data = bytearray(file_of(scene(), "JPEG", keep_rgb=not jfif, quality=95, subsampling=0))
    assert marker in data
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for n, name in enumerate(b"RGB" if jfif else b"\1\2\3"):
        data[frame + 10 + 3 * n] = data[scan + 5 + 2 * n] = name
    assert same(decode(bytes(data)), reference(bytes(data)))
    assert np.abs(np.asarray(decode(bytes(data))).astype(int) - np.asarray(scene()).astype(int)).mean() < 5


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP"])
def test_i08_the_first_frame_of_an_animation_is_taken(format):
    frames = [scene(seed=n).quantize(64) for n in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = file_of(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as file:
        assert file.n_frames == 3
    assert same(decode(data), frames[0].convert("RGB")) and same(decode(data), reference(data))


def test_i08_an_interlaced_png_is_put_together():
    pixels = np.asarray(scene())
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]]
    assert same(decode(png(header(*SIZE, 8, 2, interlace=1), rows)), scene())


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_i08_colour_profiles_change_nothing(format):
    profile = bytes(range(256)) * 300  # more than one JPEG segment
    data = file_of(scene(), format, icc_profile=profile)
    assert len(data) > len(file_of(scene(), format))
    assert same(decode(data), decode(file_of(scene(), format))) and same(decode(data), reference(data))


def test_i08_the_first_picture_of_a_phones_jpeg_is_taken():
    """A picture with a preview and further pictures behind it (MPO), as several phones write."""
    data = file_of(scene((64, 48)), "MPO", save_all=True, append_images=[scene((64, 48), seed=1)])
    assert data.count(b"\xff\xd8\xff") == 2
    assert same(decode(data), reference(data)) and same(decode(data + b"\xff\xda\0\1video" * 999), reference(data))


def test_i08_stray_bytes_between_the_blocks_of_a_gif_are_forgiven():
    data = file_of(scene(), "GIF")
    start = data.index(b",", 13 + 3 * 256)
    assert same(decode(data[:start] + b"\0\0" + data[start:]), reference(data))


def test_decoding_in_threads_gives_the_same_pictures():
    files = list(samples().values())
    expected = [decode(data).tobytes() for data in files]
    wrong = []

    def work():
        wrong.extend(n for n, data in enumerate(files) if decode(data).tobytes() != expected[n])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
