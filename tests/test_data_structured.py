"""Tables, receipts, forms, menus, charts and screens: answers are what is drawn, and sums are right."""

import hashlib
import json
import lzma
from collections import Counter

import numpy as np
import pytest
from PIL import ImageFont

from handlens.data import chart_values, charts, forms, plots, receipts, screens, tables
from handlens.data.questions import LANGUAGES
from handlens.data.sample import SPLITS
from handlens.data.sources import INDEX, Sources
from handlens.data.structured import (
    DAYS,
    MAX_AREA,
    MONTHS,
    MOST_FURTHER,
    PLACES,
    Fact,
    captions,
    clear,
    further,
    price,
)
from tests.test_data_text import LATIN, OTHER, default_font, prepared

MAKERS = {
    "table": (tables.table, tables.draw_table),
    "receipt": (receipts.receipt, receipts.draw_receipt),
    "invoice": (receipts.invoice, receipts.draw_invoice),
    "form": (forms.form, forms.draw_form),
    "menu": (forms.menu, forms.draw_menu),
    "chart": (charts.chart, charts.draw_chart),
    "screen": (screens.screen, screens.draw_screen),
}
SEEDS = range(40)


def add_names(sources: Sources) -> Sources:
    """The same folder with the kinds of names that only structured documents have."""
    index = json.loads((sources.folder / INDEX).read_text())
    for language in sources.languages:
        for split in SPLITS:
            words = [word.title() for word in sources.words(language, split)]
            for kind in ("first", "last", "country", "job", "product"):
                data = lzma.compress("\n".join(words).encode())
                (sources.folder / f"names/{language}.{kind}.{split}.xz").write_bytes(data)
                index["files"][f"names/{language}.{kind}.{split}.xz"] = hashlib.sha256(data).hexdigest()
    (sources.folder / INDEX).write_text(json.dumps(index))
    return Sources.open(sources.folder)


@pytest.fixture(scope="module")
def latin(tmp_path_factory) -> Sources:
    font = ImageFont.load_default(20).path.getvalue()
    return add_names(prepared(tmp_path_factory.mktemp("latin"), font, LATIN))


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Sources:
    try:
        path = ImageFont.truetype("DejaVuSans.ttf", 20).path
    except OSError:
        pytest.skip("no font for Cyrillic and Greek on this machine")
    with open(path, "rb") as file:
        return add_names(prepared(tmp_path_factory.mktemp("other"), file.read(), OTHER))


def draw(name: str, sources: Sources, seed: int):
    language = sources.languages[seed % len(sources.languages)]
    return MAKERS[name][1](np.random.default_rng(seed), sources, language, "train")


def make(name: str, sources: Sources, seed: int):
    language = sources.languages[seed % len(sources.languages)]
    return MAKERS[name][0](np.random.default_rng(seed), sources, language, "train")


def pipes(reading: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the Markdown table in a transcription."""
    lines = [line[2:-2].split(" | ") for line in reading.splitlines() if line.startswith("| ")]
    assert set(lines[1]) == {"---"}
    return lines[0], lines[2:]


def digits(text: str) -> int:
    """An amount in the smallest coin, as all amounts of a document have the same decimals."""
    return int("".join(filter(str.isdigit, text)))


@pytest.mark.parametrize("name", [*MAKERS])
def test_the_same_seed_gives_the_same_bytes(latin, name):
    for seed in range(6):
        one, two = make(name, latin, seed), make(name, latin, seed)
        assert np.array_equal(one.image, two.image) and np.array_equal(one.centres, two.centres)
        assert (one.question, one.answer, one.characters) == (two.question, two.answer, two.characters)
    assert not np.array_equal(make(name, latin, 0).image, make(name, latin, len(LATIN)).image)


@pytest.mark.parametrize("name", [*MAKERS])
@pytest.mark.parametrize("scripts", ["latin", "other"])
def test_a_sample_is_the_transcription_or_a_fact_of_the_document(request, scripts, name):
    sources = request.getfixturevalue(scripts)
    asked = 0
    for seed in SEEDS:
        sample, drawn = make(name, sources, seed), draw(name, sources, seed)
        height, width, _ = sample.image.shape
        assert (sample.task, sample.image.dtype) == (name, np.uint8)
        assert width * height <= MAX_AREA and sample.centres.shape == (len(sample.characters), 2)
        assert len(sample.characters) == len(drawn.canvas.characters), "a glyph is outside of the picture"
        if not sample.question:
            assert sample.answer == drawn.reading
            continue
        asked += 1
        assert any(
            fact.answer == sample.answer and all(slot in sample.question for slot in fact.slots.values())
            for fact in drawn.facts
        )
    assert len(SEEDS) * 0.3 < asked < len(SEEDS) or name == "chart"


@pytest.mark.parametrize("name", [*MAKERS])
def test_further_questions_ask_for_other_facts_of_the_document(latin, name):
    several = 0
    for seed in SEEDS:
        sample, drawn = make(name, latin, seed), draw(name, latin, seed)
        assert not (sample.more and not sample.question), "a transcription is asked for alone"
        for question, answer in sample.more:
            assert question != sample.question or answer != sample.answer
            assert any(
                fact.answer == answer and all(slot in question for slot in fact.slots.values()) for fact in drawn.facts
            )
        several += len(sample.more) > 1
    assert several > len(SEEDS) * 0.2


def test_further_questions_leave_the_generator_where_it_stands():
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    facts = [Fact("form-field", str(number), {"field": f"F{number}"}) for number in range(9)]
    asked = further(rng, "en", [*facts, Fact("form-field", "x" * 100, {"field": "long"})])
    assert len({answer for _, answer in asked}) == MOST_FURTHER and "x" * 100 not in dict(asked).values()
    assert rng.random() == other.random()


@pytest.mark.parametrize("name", ["table", "receipt", "invoice", "menu"])
def test_a_transcription_has_exactly_the_glyphs_drawn(latin, name):
    for seed in SEEDS:
        drawn = draw(name, latin, seed)
        lines = [line.lstrip("#").replace("| --- ", "").replace("|", "") for line in drawn.reading.splitlines()]
        assert Counter("".join("".join(drawn.canvas.characters).split())) == Counter("".join("".join(lines).split()))


@pytest.mark.parametrize("name", ["table", "invoice", "screen"])
def test_a_cell_asked_for_is_the_cell_of_the_markdown(latin, name):
    seen = 0
    for seed in SEEDS:
        drawn = draw(name, latin, seed)
        for fact in drawn.facts:
            if fact.kind == "table-cell":
                header, rows = pipes(drawn.reading)
                cells = [row[header.index(fact.slots["column"])] for row in rows if row[0] == fact.slots["row"]]
                assert cells == [fact.answer] and fact.answer
                seen += 1
    assert seen > 100 if name != "screen" else seen


def test_the_markdown_asked_for_is_in_the_transcription(latin):
    for seed in SEEDS:
        drawn = draw("table", latin, seed)
        (fact,) = (fact for fact in drawn.facts if fact.kind == "table-markdown")
        header, rows = pipes(fact.answer)
        assert drawn.reading.endswith(fact.answer)
        assert 2 <= len(header) <= 8 and 2 <= len(rows) <= 10
        assert len(set(header)) == len(header) and {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize("name", ["receipt", "menu", "form", "screen"])
def test_a_field_asked_for_stands_in_the_transcription_with_its_value(latin, name):
    kinds = Counter()
    for seed in SEEDS:
        drawn = draw(name, latin, seed)
        text = drawn.reading.splitlines()
        for fact in drawn.facts:
            (slot,) = fact.slots.values() if len(fact.slots) == 1 else ("",)
            if fact.kind == "title":
                assert any(line.lstrip("# ") == fact.answer for line in text)
            elif slot:
                kinds[fact.kind] += 1
                places = [index for index, line in enumerate(text) if slot in line]
                ticked = any(f"{slot}: " in line and f"[x] {fact.answer}" in line for line in text)
                assert ticked or any(fact.answer in line for index in places for line in text[index : index + 2])
    assert kinds


def test_the_sums_of_an_invoice_are_right(latin):
    on_top = 0
    for seed in SEEDS:
        drawn, language = draw("invoice", latin, seed), latin.languages[seed % len(latin.languages)]
        words = captions(latin, language)
        rows = [[digits(cell) for cell in row[1:]] for row in pipes(drawn.reading)[1]]
        assert all(quantity * unit == amount for quantity, unit, amount in rows)
        fields = {fact.slots["field"]: fact.answer for fact in drawn.facts if fact.kind == "invoice-field"}
        total = digits(fields[words["total"]])
        (tax,) = (digits(value) for label, value in fields.items() if label.startswith(words["tax"]))
        sold = sum(amount for _, _, amount in rows)
        if words["subtotal"] in fields:
            assert digits(fields[words["subtotal"]]) == sold
        assert total in (sold, sold + tax)
        on_top += total == sold + tax
        rate = tax / (sold if total == sold + tax else sold - tax)
        assert any(abs(rate * 100 - known) < 100 / sold + 0.01 for known in PLACES[language].taxes)
    assert 0 < on_top < len(SEEDS)


def test_the_items_of_a_receipt_add_up_and_the_change_is_right(latin):
    checked = 0
    for seed in SEEDS:
        drawn, language = draw("receipt", latin, seed), latin.languages[seed % len(latin.languages)]
        words = captions(latin, language)
        fields = {fact.slots["field"]: fact.answer for fact in drawn.facts if fact.kind == "receipt-field"}
        total = digits(fields[words["total"]])
        prices = [digits(fact.answer) for fact in drawn.facts if fact.kind == "receipt-item-price"]
        assert sum(prices) <= digits(fields.get(words["subtotal"], fields[words["total"]]))
        if words["change"] in fields:
            assert digits(fields[words["cash"]]) - digits(fields[words["change"]]) == total
            checked += 1
    assert checked


def test_charts_say_what_their_table_says(latin):
    kinds = set()
    for seed in range(120):
        drawn = draw("chart", latin, seed)
        header, rows = pipes(drawn.reading)
        for fact in drawn.facts:
            kinds.add(fact.kind)
            values = {row[0]: row[1] for row in rows}
            if fact.kind == "chart-title":
                assert drawn.reading.startswith(f"# {fact.answer}\n")
            elif fact.kind == "chart-value" and len(header) == 2:
                assert values[fact.slots["label"]] == fact.answer
            elif fact.kind == "chart-value":
                assert fact.answer in [
                    value
                    for row in rows
                    for name, value in zip(header[1:], row[1:])
                    if f"{row[0]}, {name}" == fact.slots["label"]
                ]
            else:
                best = max if fact.kind == "chart-highest" else min
                assert fact.answer == best(values, key=lambda label: digits(values[label]))
    assert kinds == {"chart-value", "chart-highest", "chart-lowest", "chart-title"}


def test_bars_are_as_high_as_their_values():
    values = (40, 10, 30)
    content = chart_values.Chart("bar", "", "", ("A", "B", "C"), {"": values}, False, 10, 50, str)
    red = ((200, 0, 0),)
    look = charts.Look(default_font(14), default_font(18), (0, 0, 0), (255, 255, 255), red, False, "none", False, "")
    image = charts.bars(np.random.default_rng(1), content, look).finish()[0]
    heights = (image == (200, 0, 0)).all(axis=2).sum(axis=0)
    bars = [run.max() for run in np.split(heights, np.flatnonzero(np.diff(heights)) + 1) if run.max()]
    assert len(bars) == 3
    assert np.abs(np.array(bars) / bars[0] - np.array(values) / values[0]).max() < 0.02


def test_sectors_are_as_large_as_their_values():
    colours = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
    content = chart_values.Chart("pie", "", "", ("A", "B", "C"), {"": (50, 30, 20)}, True, 10, 50, str)
    look = charts.Look(default_font(14), default_font(18), (0, 0, 0), (255, 255, 255), colours, False, "none", True, "")
    image = charts.pies(np.random.default_rng(2), content, look).finish()[0]
    areas = np.array([(image == colour).all(axis=2).sum() for colour in colours])
    assert np.abs(areas / areas.sum() - [0.5, 0.3, 0.2]).max() < 0.02


def test_matplotlib_draws_the_same_kind_of_chart(latin):
    pytest.importorskip("matplotlib")
    for seed in range(3):
        one, two = (plots.plot(np.random.default_rng(seed), latin, "de", "train") for _ in range(2))
        assert np.array_equal(one.image, two.image) and (one.question, one.answer) == (two.question, two.answer)
        assert one.answer and not one.characters and len(np.unique(one.image.reshape(-1, 3), axis=0)) > 20


def test_every_language_has_its_labels_and_ways_to_write_numbers(latin):
    keys = {*MONTHS, *DAYS, *chart_values.TOPICS, *forms.FIELDS, *forms.SECTIONS}
    keys |= {*screens.BUTTONS, *screens.SETTINGS, *screens.MENU, *screens.ENTRIES}
    keys |= {key for heads in tables.ROW_HEADS.values() for key in heads}
    keys |= {key for kind in tables.KINDS for key in kind.heads}
    for language in LANGUAGES:
        assert keys <= set(latin.labels(language))
        assert language in PLACES


@pytest.mark.parametrize(
    "language, value, decimals, written",
    [
        ("en", 123456, 2, "1,234.56"),
        ("de", 123456789, 2, "1.234.567,89"),
        ("fr", -123456, 2, "-1 234,56"),
        ("pl", 7, 2, "0,07"),
        ("ja", 1240, 0, "1,240"),
        ("vi", 12400, 0, "12.400"),
        ("ru", -5, 1, "-0,5"),
    ],
)
def test_numbers_are_written_as_in_their_country(language, value, decimals, written):
    assert PLACES[language].number(value, decimals) == written


def test_prices_fit_their_currency():
    rng = np.random.default_rng(0)
    for place in PLACES.values():
        for currency in place.currencies:
            amounts = [price(rng, currency) for _ in range(200)]
            assert min(amounts) > 0 and {amount % currency.unit for amount in amounts} == {0}


def test_a_question_with_two_answers_is_not_asked():
    facts = [tables.Fact("menu-price", answer, {"item": item}) for item, answer in ("A1", "A2", "B1", "C1", "C1")]
    assert [fact.slots["item"] for fact in clear(facts)] == ["B", "C", "C"]
