"""Glyph centres lie on the ink, before and after degradation; answers are what was drawn, all of it inside."""

import hashlib
import json
import lzma
import re
import string
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from handlens.data import degrade as ways
from handlens.data import empty, listings, pages, strings, text
from handlens.data.alphabets import language_like
from handlens.data.degrade import degrade, glyph_pitch
from handlens.data.questions import phrases
from handlens.data.raster import Canvas, covers, x_height
from handlens.data.sample import SPLITS
from handlens.data.sources import INDEX, Sources
from tests.multilingual import SENTENCES

LATIN = {"en": "English", "de": "German", "fr": "French", "pl": "Polish"}
OTHER = {"ru": "Russian", "el": "Greek", "vi": "Vietnamese"}
WRITTEN = {
    "word": text.word,
    "line": text.line,
    "paragraph": text.paragraph,
    "block": text.block,
    "notice": text.notice,
    "code": listings.code,
    "page": pages.page,
    "letter": pages.letter,
}
EMPTY = {"blank": empty.blank, "unreadable": empty.unreadable, "photo": empty.photo}
CANDIDATES = frozenset(
    map(chr, [*range(33, 0x250), *range(0x370, 0x530), *range(0x1E00, 0x2000), 0x20AC, 0x2022, 0x2013])
)


def default_font(size: float) -> ImageFont.FreeTypeFont:
    """The font inside of Pillow, without kerning and ligatures."""
    data = ImageFont.load_default(20).path.getvalue()
    return ImageFont.truetype(BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


def prepared(folder, font_bytes: bytes, languages: dict[str, str]) -> Sources:
    """Sources of one font and of the sentences of multilingual.py."""
    files, rows = {}, []

    def put(name: str, data: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()

    font = ImageFont.truetype(BytesIO(font_bytes), 20, layout_engine=ImageFont.Layout.BASIC)
    drawn = [[ord(character)] * 2 for character in sorted(CANDIDATES) if covers(character, font)]
    for split in SPLITS:
        put(f"fonts/{split}.ttf", font_bytes)
        row = {"family": split, "outlines": split, "style": "sans", "weight": 400, "italic": False, "split": split}
        rows.append(row | {"path": f"fonts/{split}.ttf", "languages": list(languages), "characters": drawn})
        for language, name in languages.items():
            filled = [
                sentence.format(price=f"{n * 7.31:.2f}", n=n, time=f"{n % 24}:05", date=f"{n % 28 + 1}.7.")
                for n in range(20)
                for sentence in SENTENCES[name]
            ]
            words = sorted({word.strip(".,¿") for line in filled for word in line.split() if word[:-1].isalpha()})
            put(f"text/{language}.{split}.xz", lzma.compress("\n".join(filled).encode()))
            put(f"words/{language}.{split}.xz", lzma.compress("\n".join(words).encode()))
            for kind in ("person", "company", "street", "city"):
                put(f"names/{language}.{kind}.{split}.xz", lzma.compress("\n".join(map(str.title, words)).encode()))
    (folder / INDEX).write_text(json.dumps({"version": 1, "languages": [*languages], "fonts": rows, "files": files}))
    return Sources.open(folder)


@pytest.fixture(scope="module")
def latin(tmp_path_factory) -> Sources:
    return prepared(tmp_path_factory.mktemp("latin"), ImageFont.load_default(20).path.getvalue(), LATIN)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Sources:
    try:
        path = ImageFont.truetype("DejaVuSans.ttf", 20).path
    except OSError:
        pytest.skip("no font for Cyrillic and Greek on this machine")
    with open(path, "rb") as file:
        return prepared(tmp_path_factory.mktemp("other"), file.read(), OTHER)


def ink_box(image: np.ndarray) -> np.ndarray:
    """[left, top, right, bottom] of what is not white."""
    rows, columns = (np.flatnonzero((image < 255).any(axis=2).any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


@pytest.mark.parametrize("size", [12, 17, 40])
def test_the_ink_of_a_glyph_lies_around_its_centre(size):
    font = default_font(size)
    rng = np.random.default_rng(size)
    for character in string.ascii_letters + string.digits + string.punctuation + "äéŁß":
        canvas = Canvas(180, 180)
        canvas.text(*rng.uniform(80, 100, 2), character, font, anchor=str(rng.choice(["la", "ms", "rd", "mm"])))
        image, characters, centres = canvas.finish()
        left, top, right, bottom = ink_box(image)
        assert characters == (character + " ",)
        assert centres.tolist() == [[(left + right) / 2, (top + bottom) / 2]]


@pytest.mark.parametrize("scale", [0.5, 0.7])
def test_centres_follow_a_picture_that_is_reduced(scale):
    font = default_font(40)
    for character in "AgxX8%":
        canvas = Canvas(120, 122)
        canvas.text(50, 40, character, font)
        image, _, centres = canvas.finish(scale)
        left, top, right, bottom = ink_box(image)
        assert np.abs(centres[0] - [(left + right) / 2, (top + bottom) / 2]).max() <= 0.75


def test_a_line_is_what_pillow_draws_glyph_by_glyph():
    font, line = default_font(18), "Wax: 7,50 € (100 %) – Łódź"
    canvas = Canvas(300, 40, (250, 240, 200))
    width = canvas.text(5, 30, line, font, (20, 30, 90), "ls")
    picture = Image.new("RGB", (300, 40), (250, 240, 200))
    x = 5.0
    for character in line:
        ImageDraw.Draw(picture).text((round(x), 30), character, (20, 30, 90), font, "ls")
        x += font.getlength(character)
    assert np.array_equal(canvas.finish()[0], np.array(picture))
    assert width == x - 5 == Canvas.measure(line, font)[0]
    assert [character.rstrip() for character in canvas.characters] == list(line.replace(" ", ""))
    assert "".join(canvas.characters) == line + " "


def test_marks_stay_with_their_letter():
    canvas = Canvas(100, 40)
    canvas.text(5, 5, "e\u0301x\u0331", default_font(18))
    assert canvas.characters == ["é", "x\u0331 "]


def test_glyphs_outside_are_left_out():
    canvas = Canvas(30, 30)
    canvas.text(-30, 0, "WWWWWWWWWW", default_font(18))
    _, characters, centres = canvas.finish()
    assert 0 < len(characters) == len(centres) < 10
    assert ((centres >= 0) & (centres < 30)).all()


def test_wrapped_lines_fit_and_lose_nothing():
    font = default_font(16)
    sentence = "The receipt says that incomprehensibilities cost 12.50 in all, and a few cents more."
    for width in (60, 90, 200, 900):
        lines = Canvas.wrap(sentence, font, width)
        assert all(Canvas.measure(line, font)[0] <= width for line in lines)
        assert "".join(lines).replace(" ", "") == sentence.replace(" ", "")
    assert " ".join(Canvas.wrap(sentence, font, 200)) == sentence


def test_unspaced_scripts_wrap_between_characters_but_not_before_stops():
    font = default_font(16)
    width = Canvas.measure("ああああ", font)[0]
    assert Canvas.wrap("ああああ。あああ", font, width) == ["あああ", "あ。ああ", "あ"]


@pytest.mark.parametrize("way", [ways.rotate, ways.perspective])
def test_centres_follow_the_ink_through_geometry(way):
    font = default_font(24)
    canvas = Canvas(400, 300)
    for x in range(40, 400, 40):
        for y in range(30, 300, 40):
            canvas.text(x, y, "o", font, anchor="mm")
    image, _, centres = canvas.finish()
    moved = 0
    for seed in range(12):
        page = way(ways.Page(Image.fromarray(image), centres, 12.0), np.random.default_rng(seed), 1.0)
        dark = 255 - np.asarray(page.picture.convert("L"), np.float64)
        moved = max(moved, np.abs(page.centres - centres).max())
        for x, y in page.centres:
            left, top = int(x) - 12, int(y) - 12
            window = dark[max(top, 0) : top + 25, max(left, 0) : left + 25]
            if window.shape != (25, 25) or window[[0, -1]].any() or window[:, [0, -1]].any():
                continue  # near the edge, where the table under the page shows
            weights = window / window.sum()
            rows, columns = np.mgrid[:25, :25] + 0.5
            assert abs((weights * columns).sum() + left - x) < 0.6
            assert abs((weights * rows).sum() + top - y) < 0.6
    assert moved > 5


@pytest.mark.parametrize("name", [*WRITTEN])
def test_degraded_centres_stay_inside_and_bytes_repeat(latin, name):
    changed = 0
    for seed in range(10):
        sample = WRITTEN[name](np.random.default_rng(seed), latin, "en", "train")
        image, centres = degrade(sample.image, sample.centres, np.random.default_rng(seed))
        again, centres_again = degrade(sample.image, sample.centres, np.random.default_rng(seed))
        assert np.array_equal(image, again) and np.array_equal(centres, centres_again)
        assert image.shape == sample.image.shape and image.dtype == np.uint8
        assert centres.shape == sample.centres.shape and centres.dtype == np.float32
        assert ((centres >= 0) & (centres < image.shape[1::-1])).all()
        changed += not np.array_equal(image, sample.image)
    assert changed >= 5


def test_what_is_to_be_kept_is_kept():
    canvas = Canvas(200, 100)
    canvas.text(20, 40, "To be kept", default_font(20))
    image, _, centres = canvas.finish()
    for seed in range(30):
        kept, same = degrade(image, centres, np.random.default_rng(seed), keep=("places", "colours", "quality"))
        assert np.array_equal(kept, image) and np.array_equal(same, centres)
        _, same = degrade(image, centres, np.random.default_rng(seed), keep=("places",))
        assert np.array_equal(same, centres)
    coloured = np.full((60, 60, 3), (200, 30, 30), np.uint8)
    for seed in range(30):
        kept, _ = degrade(coloured, np.zeros((0, 2)), np.random.default_rng(seed), keep=("colours", "places"))
        red, green, blue = kept.mean(axis=(0, 1))
        assert red > 3 * green and red > 3 * blue


def test_every_degradation_changes_the_picture_and_keeps_its_size():
    canvas = Canvas(220, 90)
    canvas.text(20, 20, "Every way leaves a trace", default_font(18))
    image, _, centres = canvas.finish()
    for way in ways.DEGRADATIONS:
        page = way.apply(ways.Page(Image.fromarray(image), centres, 9.0), np.random.default_rng(1), 1.0)
        assert page.picture.size == (220, 90)
        assert not np.array_equal(np.array(page.picture), image), way.apply.__name__


def test_the_pitch_is_that_of_the_smaller_text():
    small, large = Canvas(300, 200), Canvas(300, 200)
    large.text(5, 5, "Large words only", default_font(36))
    for canvas in (small, large):
        canvas.text(5, 120, "and more of them below" * (canvas is small), default_font(13))
    small.text(5, 5, "Large words", default_font(36))
    pitches = [glyph_pitch(canvas.finish()[2]) for canvas in (small, large)]
    assert 4 < pitches[0] < 8 < pitches[1] < 25
    assert glyph_pitch(np.zeros((0, 2))) == ways.NO_TEXT_PITCH


MARKDOWN = re.compile(r"^#{1,2} ", re.MULTILINE)


def plain(answer: str) -> str:
    """The glyphs of an answer: without headings' marks, bullets and blanks."""
    return re.sub(rf"[\s{re.escape(''.join(pages.BULLETS))}]", "", MARKDOWN.sub("", answer))


def check_written(name: str, sources: Sources, split: str, seeds: int) -> None:
    for seed in range(seeds):
        for language in sources.languages:
            sample = WRITTEN[name](np.random.default_rng(seed), sources, language, split)
            assert (sample.task, sample.language, sample.question) == (name, language, "")
            drawn = "".join("".join(sample.characters).split())
            if name in ("page", "letter"):
                assert plain(drawn) == plain(sample.answer)
            else:
                assert drawn == re.sub(r"\s", "", sample.answer)
            assert sample.answer.strip() and sample.centres.shape == (len(sample.characters), 2)
            height, width, _ = sample.image.shape
            assert ((sample.centres >= 2) & (sample.centres <= (width - 2, height - 2))).all()
            assert width * height <= 672 * 672
            # No ink is cut off. A line may be underlined to both ends.
            edges = [sample.image[0], sample.image[-1]]
            if name not in ("word", "line"):
                edges += [sample.image[:, 0], sample.image[:, -1]]
            for edge in edges:
                assert np.ptp(edge.astype(int), axis=0).max() == 0


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", [*WRITTEN])
def test_answers_are_what_is_drawn_and_all_of_it_is_inside(latin, name, split):
    check_written(name, latin, split, 8)


@pytest.mark.parametrize("name", [*WRITTEN])
def test_other_scripts_are_drawn_as_faithfully(other, name):
    check_written(name, other, "train", 5)


@pytest.mark.parametrize("name", [*WRITTEN, *EMPTY])
def test_the_same_seed_gives_the_same_bytes(latin, name):
    maker = (WRITTEN | EMPTY)[name]
    images = set()
    for seed in range(4):
        one, two = (maker(np.random.default_rng(seed), latin, "de", "train") for _ in range(2))
        assert np.array_equal(one.image, two.image) and np.array_equal(one.centres, two.centres)
        assert (one.answer, one.characters) == (two.answer, two.characters)
        images.add(one.image.tobytes())
    assert len(images) == 4 or name == "blank"


@pytest.mark.parametrize("language", [*LATIN])
def test_pictures_without_readable_text_say_so(latin, language):
    answers = {"blank": "blank", "unreadable": "unreadable", "photo": "no_text"}
    for name, maker in EMPTY.items():
        for seed in range(4):
            sample = maker(np.random.default_rng(seed), latin, language, "train")
            assert sample.answer == getattr(phrases(language), answers[name])
            assert sample.characters == () and sample.centres.shape == (0, 2)
            assert sample.image.dtype == np.uint8 and sample.image.shape[2] == 3


@pytest.mark.parametrize("ruin", [empty.tiny, empty.unfocused, empty.moved])
def test_ruined_text_has_no_strokes_left(ruin):
    """Neighbouring strokes of readable text differ by most of the range; here hardly."""
    font = default_font(16)
    canvas = Canvas(240, 60)
    canvas.text(10, 20, "illumination minimum", font)
    before = np.abs(np.diff(np.asarray(canvas.picture.convert("L"), int), axis=1)).mean()
    for seed in range(8):
        ruined = ruin(np.random.default_rng(seed), canvas.picture, font.size)
        assert np.abs(np.diff(np.asarray(ruined.convert("L"), int), axis=1)).mean() < 0.3 * before


def test_small_fonts_grow_until_they_can_be_read(latin):
    face = latin.fonts("en", "train")[0]
    for scale in (1, 1.5):
        assert x_height(text.sized(face, 5, "", scale)) >= text.LEAST_X * scale
    assert text.sized(face, 30, "").size == 30
    assert text.sized(face, 12, "漢字").size >= text.LEAST_DENSE


def test_inks_can_be_told_from_their_paper():
    for seed in range(200):
        colours = text.ink(np.random.default_rng(seed))
        assert abs(text.brightness(colours.text) - text.brightness(colours.paper)) > 80


def test_strings_are_many_and_printable():
    rng = np.random.default_rng(0)
    for maker in (*strings.STRINGS, lambda rng: strings.address(rng, ["Straße", "tree", "two words"])):
        made = [maker(rng) for _ in range(50)]
        assert len(set(made)) > 30
        assert all(one == one.strip() and one.isprintable() and one for one in made)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The shop sold 12 loaves.", "en"),
        ("Wir öffnen um 8 Uhr, außer montags.", "de"),
        ("¿Qué tal, señor?", "es"),
        ("Zażółć gęślą jaźń", "pl"),
        ("Příliš žluťoučký kůň", "cs"),
        ("Тысяча иголок", "ru"),
        ("Їжак і м'яч", "uk"),
        ("ένα αριστερό βέλος", "el"),
        ("Tiếng Việt", "vi"),
        ("", "en"),
    ],
)
def test_a_text_looks_like_the_language_of_its_letters(text, language):
    assert language_like(text) == language
