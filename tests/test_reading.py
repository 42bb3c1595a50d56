"""What the model that ships reads line by line, and how it answers out of that: a page with a table, and no text."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from handlens.chat import Chat, load
from handlens.cli.read import INSTRUCTION
from handlens.data.questions import phrases
from handlens.engine.cache import ImageCache
from handlens.engine.sampling import SamplingParams
from handlens.eval.metrics import character_errors, table_of
from handlens.eval.run import Model
from handlens.eval.suite import Item, Suite
from handlens.layout import find_layout
from handlens.reading import ASPECT, Texts, answer_by_lines, pieces_a_character, read_by_lines

GREEDY = SamplingParams.greedy(max_new_tokens=64)

TEXT = """Quarterly report

The shop sold more bread than cake this spring.
Rain kept many people at home in April, but
the market was full again in May.

| Item | Price | Count |
| --- | --- | --- |
| Bread | 2.40 | 120 |
| Cake | 13.00 | 35 |

Please send the rest of the order by Friday."""


@pytest.fixture(scope="module")
def chat():
    return load()


@pytest.fixture(scope="module")
def page() -> Image.Image:
    """The text as it is printed, the table without rules."""
    image = Image.new("RGB", (640, 440), "white")
    draw, font, y = ImageDraw.Draw(image), ImageFont.load_default(20), 20
    for line in TEXT.splitlines():
        if line.startswith("| ---"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else [line]
        for number, cell in enumerate(cells):
            draw.text((30 + 170 * number, y), cell, "black", font)
        y += 32
    return image


def test_a_page_is_read_by_its_lines_and_its_table_is_one(chat, page):
    seen = []
    pieces = list(read_by_lines(chat, page, progress=lambda done, total: seen.append((done, total))))
    text = "".join(pieces)
    assert len(pieces) > 5 and seen == [(n, 14) for n in range(1, 15)]
    assert character_errors(TEXT, text).value < 0.05
    assert text.splitlines()[0] == "Quarterly report" and text.splitlines()[1] == ""
    assert [len(row) for row in table_of(text)] == [3, 3, 3]
    params = SamplingParams.greedy(max_new_tokens=200)
    whole = chat.reply([{"role": "user", "content": [page, INSTRUCTION]}], params, by_lines=False)
    assert character_errors(TEXT, text).value < character_errors(TEXT, whole).value


def test_a_line_is_encoded_once_whatever_languages_it_is_asked_about_in(chat, page, monkeypatch):
    layout, encoded, backend = find_layout(page), [], chat.model.generator.backend
    parts = [part for line in layout.lines for part in layout.parts(line, ASPECT)]
    encode = backend.encode
    monkeypatch.setattr(backend, "encode", lambda images, *rest: encoded.extend(images) or encode(images, *rest))
    monkeypatch.setattr(chat.model.generator, "images", ImageCache(backend, 256 << 20))
    assert "".join(read_by_lines(chat, page)).startswith("Quarterly report")
    assert len(parts) > 14 and len(encoded) == len(parts)


def test_nothing_is_read_where_the_model_sees_no_text(chat):
    assert list(read_by_lines(chat, Image.new("RGB", (300, 200), "#ddd"))) == []
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    assert list(read_by_lines(chat, Image.fromarray(noise))) == []


class Counted:
    """A generator that counts how often it is asked."""

    def __init__(self, generator):
        self.generator, self.images, self.count = generator, generator.images, 0

    def generate(self, *request):
        self.count += 1
        return self.generator.generate(*request)


def test_questions_are_answered_out_of_the_text_which_is_read_once(chat, page):
    fresh = Chat(chat.model)
    fresh.generator = counted = Counted(chat.model.generator)
    msgs = [{"role": "user", "content": [page, "What is the price of “Bread”?"]}]
    assert fresh.reply(msgs, GREEDY) == "2.40"
    assert counted.count > 14
    counted.count = 0
    msgs += [{"role": "assistant", "content": "2.40"}, {"role": "user", "content": "And what is the price of “Cake”?"}]
    assert fresh.reply(msgs, GREEDY) == "13.00"
    assert counted.count == 1
    assert fresh.reply(msgs[:1], GREEDY, by_lines=False) == chat.reply(msgs[:1], GREEDY, by_lines=False)


def test_the_whole_text_is_the_answer_where_it_is_asked_for(chat, page):
    read = "".join(read_by_lines(chat, page))
    assert chat.reply([{"role": "user", "content": [page, "What is written here?"]}], GREEDY) == read
    assert chat.chat(page, [{"role": "user", "content": "Read the text in this image."}], temperature=0) == read


def test_what_is_not_in_the_text_is_seldom_made_up(chat, page):
    """In docs/default-model.md it says how often it is."""
    asked = [f"What is the price of “{name}”?" for name in ("Milk", "Soap", "Apple juice", "Cheese", "Coffee")]
    said = [chat.reply([{"role": "user", "content": [page, question]}], GREEDY) for question in asked]
    assert said.count(phrases("en").absent) >= 4


@pytest.mark.parametrize("count", [0, 2])
def test_only_one_image_is_read_by_lines(chat, page, count):
    msgs = [{"role": "user", "content": [*[page] * count, "What is the price of “Bread”?"]}]
    assert answer_by_lines(chat, msgs, GREEDY) is None
    assert chat.reply(msgs, GREEDY) == chat.reply(msgs, GREEDY, by_lines=False)


def test_the_image_is_looked_at_where_its_text_does_not_tell(chat):
    picture = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(picture).ellipse((60, 60, 160, 160), fill="red")
    fresh = Chat(chat.model)
    fresh.texts.known[Texts.key(picture)] = "| - - |  | T |\n| --- | --- | --- |\n|  | i i | 0 |\n\n~\n\nt t"
    msgs = [{"role": "user", "content": [picture, "How many times does “circle” appear in the picture?"]}]
    assert answer_by_lines(fresh, msgs, GREEDY) is None
    assert fresh.reply(msgs, GREEDY) == chat.reply(msgs, GREEDY, by_lines=False)


def test_texts_of_the_latest_images_are_remembered(chat):
    texts = Texts(most=2)
    blank = [Image.new("RGB", (40, 20 + n), "white") for n in range(3)]
    for image in (*blank, blank[1]):
        assert texts.of(chat, image) == ""
    assert len(texts.known) == 2 and next(iter(texts.known)) != next(reversed(texts.known))


def test_suites_that_ask_for_all_text_are_read_as_handlens_read_does(chat, page, tmp_path):
    page.save(tmp_path / "page.png")
    item = Item("1", tmp_path / "page.png", "Read the text.", TEXT, "Latin")
    plain = {"about": "", "score": lambda item, answer: {}, "measures": {}, "max_new_tokens": 200}
    suites = [Suite(name="a", transcribes=transcribes, **plain) for transcribes in (True, False)]
    asking = Suite(name="a", asks=True, **plain)
    by_lines, whole = (Model(chat, "mini", by_lines=chosen) for chosen in (None, False))
    assert by_lines.how(asking) == "by lines" and whole.how(asking) == ""
    price = replace(item, question="What is the price of “Bread”?")
    assert by_lines.answer(asking, price) == "2.40" != by_lines.answer(suites[1], price)
    said = "".join(read_by_lines(chat, page))
    assert by_lines.answer(suites[0], item) == said and by_lines.how(suites[0]) == "by lines"
    assert by_lines.answer(suites[1], item) == whole.answer(suites[0], item) != said
    assert by_lines.how(suites[1]) == whole.how(suites[0]) == ""


@pytest.mark.parametrize(
    ("words", "lookalikes"),
    [
        ("Выберите команду и перейдите на вкладку", "BbI6epnre KoMaHny n nepenınre Ha BKnaaky"),
        ("Μπορείτε να δείτε όλες τις εικόνες", "Mpopeite va deite óxeç tiç eikóveç"),
        ("The shop sold more bread than cake", "Τηε σηορ σολδ μορε βρεαδ τηαν χακε"),
    ],
)
def test_words_take_fewer_tokens_than_what_looks_like_them_in_other_letters(chat, words, lookalikes):
    assert pieces_a_character(chat, words) < pieces_a_character(chat, lookalikes)


def test_a_chart_with_values_over_its_labels_is_read_as_a_table(chat):
    image = Image.new("RGB", (460, 340), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(20)
    rows = [("North", "75.5"), ("South", "32.0"), ("East", "51.2"), ("West", "18.4")]
    draw.text((30, 10), "Sales in spring", "black", font)
    draw.line((30, 290, 440, 290), "black", 2)
    for place, (label, value) in enumerate(rows):
        left, top = 50 + 100 * place, 290 - int(2.8 * float(value))
        draw.rectangle((left, top, left + 60, 289), "#88a8d8")
        draw.text((left + 30, top - 6), value, "black", font, "mb")
        draw.text((left + 30, 300), label, "black", font, "mt")
    text = "".join(read_by_lines(chat, image))
    assert text.splitlines()[-4:] == [f"| {label} | {value} |" for label, value in rows]
    question = "What is the value of “South” in the chart?"
    assert chat.reply([{"role": "user", "content": [image, question]}], GREEDY) == "32.0"
