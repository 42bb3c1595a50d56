"""Lines and tables are found where they stand, in reading order, and nothing is found where there is no text."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from handlens.layout import Table, Text, find_layout

TEXT = "the shop sold more bread than cake this spring and rain kept many people at home until the market opened"
WORDS = TEXT.split()
FONT = ImageFont.load_default(18)


def sentence(number: int, count: int) -> str:
    return " ".join(WORDS[(number * 5 + i) % len(WORDS)] for i in range(count))


def page(lines, size=(640, 420), paper="white", ink="black") -> Image.Image:
    """A page with texts at places (x, y)."""
    image = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(image)
    for x, y, text in lines:
        draw.text((x, y), text, ink, FONT)
    return image


def text_boxes(layout) -> list:
    assert all(isinstance(block, Text) for block in layout.blocks)
    return layout.lines


PARAGRAPHS = [(30, y, sentence(n, 8)) for n, y in enumerate((20, 46, 72, 130, 156, 182, 208))]


@pytest.mark.parametrize(("paper", "ink"), [("white", "black"), ("black", "white"), ("#e8dcc0", "#3b2a1a")])
def test_lines_and_paragraphs_stand_where_they_were_drawn(paper, ink):
    layout = find_layout(page(PARAGRAPHS, paper=paper, ink=ink))
    boxes = text_boxes(layout)
    assert [len(paragraph) for block in layout.blocks for paragraph in block.paragraphs] == [3, 4]
    for box, (x, y, text) in zip(boxes, PARAGRAPHS, strict=True):
        left, top, right, bottom = FONT.getbbox(text)
        assert np.allclose(
            (box.left, box.top, box.right, box.bottom), (x + left, y + top, x + right, y + bottom), atol=3
        )


def test_columns_are_read_one_after_the_other_below_the_heading_that_spans_them():
    rows = range(80, 340, 26)
    columns = [[(x, y, sentence(x + y, 5)) for y in rows] for x in (20, 360)]
    image = page([(120, 20, sentence(1, 8)), *columns[0], *columns[1]], (680, 380))
    boxes = text_boxes(find_layout(image))
    assert len(boxes) == 1 + 2 * len(rows)
    assert all(box.right < 350 for box in boxes[1 : 1 + len(rows)])
    assert all(box.left > 350 for box in boxes[1 + len(rows) :])
    assert [box.top for box in boxes[1 : 1 + len(rows)]] == sorted(box.top for box in boxes[1 : 1 + len(rows)])


CELLS = [("Item", "Price", "Count"), ("Bread", "2.40", "120"), ("Cake with cream", "13.00", ""), ("Tea", "3.10", "77")]


def table(ruled: bool, left=30, top=60) -> list:
    return [(left + 10 + 200 * j, top + 8 + 34 * i, text) for i, row in enumerate(CELLS) for j, text in enumerate(row)]


@pytest.mark.parametrize("kind", ["no rules", "rules", "dark head", "with text"])
def test_tables_are_found_with_their_rows_and_columns(kind):
    lines = table(kind == "rules")
    if kind == "with text":
        lines += [
            (30, 8, sentence(2, 7)),
            (30, 32, sentence(3, 7)),
            (30, 260, sentence(4, 7)),
            (30, 286, sentence(5, 7)),
        ]
    image = page(lines)
    draw = ImageDraw.Draw(image)
    if kind == "rules":
        for y in range(60, 60 + 34 * 5, 34):
            draw.line((30, y, 600, y), "#999")
        for x in (30, 230, 430, 600):
            draw.line((x, 60, x, 60 + 34 * 4), "#999")
    if kind == "dark head":
        draw.rectangle((30, 62, 600, 92), "#22406a")
        for x, y, text in lines[:3]:
            draw.text((x, y), text, "white", FONT)
    blocks = find_layout(image).blocks
    (found,) = [block for block in blocks if isinstance(block, Table)]
    assert [[len(cell) for cell in row] for row in found.rows] == [[bool(text) for text in row] for row in CELLS]
    assert len(blocks) == (3 if kind == "with text" else 1)
    if kind == "with text":
        assert [type(block) for block in blocks] == [Text, Table, Text]


@pytest.mark.parametrize("radius", [0, 5])
@pytest.mark.parametrize("labels", ["above", "inside"])
def test_a_form_has_the_lines_of_its_labels_and_of_its_fields_and_not_the_sides_of_its_boxes(radius, labels):
    fields = [("Last name", "Martin"), ("Date of birth", "12.05.1987"), ("Country", "Iceland"), ("Phone", "0716 76554")]
    image = Image.new("RGB", (460, 320), "white")
    draw, font, wanted = ImageDraw.Draw(image), ImageFont.load_default(14), []
    for number, (label, value) in enumerate(fields):
        y = 12 + 74 * number
        box = (14, y + 20, 440, y + 46) if labels == "above" else (14, y, 440, y + 46)
        draw.rounded_rectangle(box, radius, outline="#606060")
        for text, top in ((label, y + 1), (value, y + 24)):
            draw.text((24, top), text, "black", font)
            wanted.append((24, top, font.getlength(text)))
    lines = find_layout(image).lines
    assert len(lines) == len(wanted)
    for line, (left, top, wide) in zip(lines, wanted, strict=True):
        assert abs(line.left - left) <= 3 and abs(line.width - wide) <= 4 and top <= line.top <= line.bottom <= top + 20


def test_letters_between_two_rules_are_no_sides_of_a_box():
    image = Image.new("RGB", (300, 90), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(20)
    draw.line((20, 20, 280, 20), "black")
    draw.line((20, 52, 280, 52), "black")
    draw.text((20, 25), "HILL 12.50 HILL", "black", font)
    (line,) = find_layout(image).lines
    assert abs(line.left - 20) <= 2 and abs(line.width - font.getlength("HILL 12.50 HILL")) <= 4


def test_between_rules_two_words_of_a_heading_are_one_cell():
    image = Image.new("RGB", (520, 150), "white")
    draw, edges = ImageDraw.Draw(image), (10, 130, 300, 400, 510)
    rows = [
        ("Day", "Schone    Januar", "Count", "Town"),
        ("Monday", "8.78", "12", "Bern"),
        ("Friday", "5.87", "6", "Rome"),
    ]
    for row, cells in enumerate(rows):
        draw.line((10, 10 + 44 * row, 510, 10 + 44 * row), "black")
        for left, right, text in zip(edges, edges[1:], cells, strict=False):
            # Numbers stand at the right, below the second word.
            place = (right - 8 - FONT.getlength(text)) if text[0].isdigit() else left + 8
            draw.text((place, 20 + 44 * row), text, "black", FONT)
    draw.line((10, 142, 510, 142), "black")
    for edge in edges:
        draw.line((edge, 10, edge, 142), "black")
    (table,) = find_layout(image).blocks
    assert isinstance(table, Table)
    assert [[len(cell) for cell in row] for row in table.rows] == [[1, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


def test_a_list_is_no_table():
    marks = [(30, y, "-") for y in range(40, 160, 28)]
    texts = [(52, y, sentence(y, 6)) for y in range(40, 160, 28)]
    boxes = text_boxes(find_layout(page(marks + texts)))
    assert len(boxes) == len(texts) and all(box.left < 45 for box in boxes)


@pytest.mark.parametrize("angle", [-3.0, 2.0])
def test_a_page_that_was_turned_is_turned_back(angle):
    turned = page(PARAGRAPHS).rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    layout = find_layout(turned)
    boxes = text_boxes(layout)
    assert len(boxes) == len(PARAGRAPHS)
    assert max(box.height for box in boxes) < 26


def test_a_long_line_is_cut_between_words_and_a_wide_gap_parts_it():
    image = page([(20, 20, sentence(1, 14)), (20, 60, "Total"), (500, 60, "12.40")], (1300, 110))
    layout = find_layout(image)
    long, total = layout.lines
    parts = [layout.picture(part) for part in layout.parts(long, 12.0)]
    assert len(parts) > 1
    assert max(part.width / part.height for part in parts) < 15
    # Parts begin and end beside words: their outer columns are paper.
    assert all((np.asarray(part.convert("L"))[:, [0, -1]] > 200).all() for part in parts)
    parts = [layout.picture(part) for part in layout.parts(total, 100.0)]
    assert len(parts) == 2
    assert all(part.width >= 3.9 * part.height for part in parts)


@pytest.mark.parametrize("name", ["blank", "noise", "photo", "tiny"])
def test_nothing_is_found_where_there_is_no_text(name):
    noise = np.random.default_rng(0)
    waves = np.sin(np.linspace(0, 9, 320))[None] * np.cos(np.linspace(0, 7, 240))[:, None]
    image = {
        "blank": Image.new("RGB", (300, 200), "#dddddd"),
        "noise": Image.fromarray(noise.integers(0, 256, (240, 320, 3), np.uint8)),
        "photo": Image.fromarray((128 + 120 * waves).astype(np.uint8)),
        "tiny": Image.new("L", (1, 1)),
    }[name]
    assert find_layout(image).blocks == []


def test_large_images_are_searched_small_and_shown_as_they_are():
    small = page([(20, 20 + 40 * number, sentence(number, 7)) for number in range(6)], (640, 280))
    image = small.resize((3840, 1680), Image.Resampling.BICUBIC)
    layout = find_layout(image)
    assert layout.scale == 2 and len(layout.lines) == 6
    for line in layout.lines:
        (part,) = layout.parts(line, 100.0)
        picture = layout.picture(part)
        assert picture.height > 2 * line.height and picture.width > 2 * line.width
        assert (np.asarray(picture.convert("L"))[[0, -1]] > 200).all()
