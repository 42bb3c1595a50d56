"""Scores by hand and by property; suites from drawing to report; answers that are kept; what is missing is said."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from handlens.chat import load
from handlens.cli import evaluate
from handlens.cli.options import Settings
from handlens.data.questions import phrases
from handlens.data.sample import HELD_OUT, TRAIN
from handlens.data.sources import Sources
from handlens.decode import open_image
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError
from handlens.eval import metrics
from handlens.eval.benchmarks import pages, refusals, slicing, tables
from handlens.eval.browser import PROGRAMS, Browser, css
from handlens.eval.build import POCKETDOCS, build, chosen
from handlens.eval.metrics import Ratio
from handlens.eval.peers import Tesseract, Word, in_rows, joined, open_peers, table
from handlens.eval.report import Result, markdown, pictures, rows
from handlens.eval.run import Answered, Model, ask, digest
from handlens.eval.suite import Item, Missing, face_to_read, facts_of, load_items
from handlens.weights import find_files
from tests.data_sources import small

chromium = pytest.mark.skipif(not any(map(shutil.which, PROGRAMS)), reason="no Chromium")
texts = st.text(alphabet="abcé я", max_size=12)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    return small(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory) -> Path:
    """Suites that need no tools."""
    out = tmp_path_factory.mktemp("built")
    assert build(sources, out, ("lines", "refusals", "slicing", "scenes"), n=12) == {}
    return out


def command(*arguments: object) -> None:
    """Runs `handlens eval` with these arguments."""
    typer.main.get_command(evaluate.app).main([str(a) for a in arguments], standalone_mode=False, obj=Settings())


def perfect(items: list[Item]) -> list[Answered]:
    """The truths as answers; "7" where there is more than one that is right."""
    answers = (item.truth if isinstance(item.truth, str) else item.truth["answer"] or "7" for item in items)
    return [Answered(item, answer, 0.1) for item, answer in zip(items, answers)]


# ---------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("абв", "абв", 0), ("ab", "ba", 2)],
)
def test_edits_by_hand(one, other, wanted):
    assert metrics.edits(one, other) == wanted


def plain_edits(one: str, other: str) -> int:
    """The textbook's table, cell by cell."""
    table = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            row.append(min(row[-1] + 1, table[-1][j] + 1, table[-1][j - 1] + (a != b)))
        table.append(row)
    return table[-1][-1]


@given(texts, texts, texts)
def test_edits_are_a_distance_and_the_textbook_s(one, other, third):
    assert metrics.edits(one, other) == metrics.edits(other, one) == plain_edits(one, other)
    assert (metrics.edits(one, other) == 0) == (one == other)
    assert metrics.edits(one, third) <= metrics.edits(one, other) + metrics.edits(other, third)


def test_character_errors_pool_and_may_exceed_one():
    assert metrics.character_errors("hello", "hallo") == Ratio(1, 5)
    assert metrics.character_errors("ab", "abcdef").value == 2
    assert metrics.character_errors("a  b\nc", "a b c").value == 0
    assert metrics.character_errors("e\u0301 \ufb01n", "é fin").value == 0
    assert metrics.total([Ratio(1, 5), Ratio(0, 15)]).value == 0.05
    assert math.isnan(metrics.total([]).value)


def test_marks_of_markdown_are_taken_off_and_nothing_else():
    marked = "# Head\n\n- one\n* two\n**bold** 3 - 4\n\n| --- | :--: |\n#5"
    assert metrics.normalised(metrics.unmarked(marked)) == "Head one two bold 3 - 4 #5"


def test_anls_has_a_threshold_and_takes_the_best_reference():
    assert metrics.anls(["Paris"], "paris").value == 1
    assert metrics.anls(["abcd", "wxyz"], "wxyq").value == 0.75
    assert metrics.anls(["abcd"], "axyz").value == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1,234.50", 1234.5),
        ("1.234,50 €", 1234.5),
        ("1 234,5", 1234.5),
        ("1,234", 1234),
        ("0,125", 0.125),
        ("12,5%", 12.5),
        ("-3.2", -3.2),
        ("$12.40", 12.4),
        ("12,40 руб.", 12.4),
        ("10.000 đ", 10000),
        ("1.234.567", 1234567),
        ("45 Kč", 45),
        ("12.03.2020", None),
        ("14:30", None),
        ("Q2", None),
        ("", None),
    ],
)
def test_numbers_in_every_notation(text, wanted):
    assert metrics.number(text) == wanted


def test_fields_are_texts_or_numbers():
    assert metrics.field("12,40 €", "12.4").value == 1
    assert metrics.field("Anna Weiß", "anna weiß.").value == 1
    assert metrics.field("12,40 €", "12,41 €").value == 0
    assert metrics.field("12.03.2020", "12.03.2021").value == 0
    assert metrics.field("0716 765546", "0716 765547").value == 0


def test_relaxed_accuracy_is_five_percent_of_the_truth():
    assert [metrics.relaxed("100", given).value for given in ("95", "105", "94.9", "about")] == [1, 1, 0, 0]
    assert metrics.relaxed("May", "may").value == 1
    assert metrics.counted("3", "There are 3 of them, not 4").value == 1
    assert metrics.counted("3", "three").value == 0


TABLE = "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |"


def test_table_cells_by_hand():
    assert metrics.table_cells(TABLE, TABLE).value == 1
    assert metrics.table_cells(TABLE, "").value == 0
    # A row too much at the top shifts all below: six of the seven cells given and of the six wanted agree.
    assert metrics.table_cells(TABLE, "| extra |\n" + TABLE).value == pytest.approx(12 / 13)
    assert metrics.table_cells(TABLE, TABLE.replace("2", "9")).value == pytest.approx(10 / 12)
    assert metrics.table_cells("| x | x | y |\n|---|---|---|", "| x | | y |\n|---|---|---|").value == 1
    assert metrics.table_shape(TABLE, TABLE.replace("2", "9")).value == 1
    assert metrics.table_shape(TABLE, TABLE + "\n| 5 | 6 |").value == 0


@given(st.lists(st.lists(st.sampled_from(["x", "y", "z 1"]), min_size=2, max_size=3), min_size=1, max_size=4))
def test_a_table_is_wholly_itself_and_f1_is_symmetric(cells):
    text = "\n".join("| " + " | ".join(row) + " |" for row in cells)
    other = text.replace("y", "q")
    assert metrics.table_cells(text, text).value == 1
    assert metrics.table_cells(text, other).value == metrics.table_cells(other, text).value


def test_refusals_are_known_in_their_language_and_in_free_english():
    known = refusals.sentences("de")
    assert metrics.refuses(phrases("de").absent, known) and metrics.refuses(phrases("en").blank.lower(), known)
    for answer in ("There is no visible text in this image.", "I cannot read it.", "Sorry, that is not shown."):
        assert metrics.refuses(answer, known), answer
    for answer in ("12.40", "Norwich", "nothing fancy", "", "the no. 5 bus"):
        assert not metrics.refuses(answer, known), answer


def test_intervals_against_known_values():
    low, high = metrics.wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)  # Wilson 1927, as in every table
    assert metrics.wilson(0, 10) == pytest.approx((0, 0.278), abs=1e-3)
    assert metrics.interval([Ratio(1), Ratio(0)]) == metrics.wilson(1, 2)


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for seed in range(60):
        low, high = metrics.bootstrap([Ratio(x, 1) for x in rng.normal(0.5, 0.1, 80)], seed, 300)
        hits += low <= 0.5 <= high
    assert hits >= 52
    same = [Ratio(1, 4), Ratio(3, 7)]
    assert metrics.bootstrap(same) == metrics.bootstrap(same)


# ----------------------------------------------------------------------------------------------------------- suites


def test_every_suite_says_what_its_scores_mean(built):
    for name, suite in POCKETDOCS.items():
        assert suite.name == name and set(suite.measures.values()) <= {"more", "less"} and suite.build
        assert {bar.measure for bar in suite.bars} <= set(suite.measures)
    for name in ("lines", "refusals", "slicing", "scenes"):
        suite, items = POCKETDOCS[name], POCKETDOCS[name].load(built / name)
        assert len(items) == 12 and len({item.id for item in items}) == 12
        scores = suite.score(items[0], "x")
        assert scores.keys() <= suite.measures.keys()


def test_truths_score_best_and_nonsense_does_not(built):
    for name in ("lines", "refusals", "slicing", "scenes"):
        suite, items = POCKETDOCS[name], POCKETDOCS[name].load(built / name)
        best = {row.measure: row.value for row in rows(Result(suite, "truth", perfect(items))) if row.group == "all"}
        worst = [Answered(item, phrases("en").absent, 0.1) for item in items]
        bad = {row.measure: row.value for row in rows(Result(suite, "nonsense", worst)) if row.group == "all"}
        for measure, better in suite.measures.items():
            assert best[measure] == (1 if better == "more" else 0), (name, measure)
            if measure not in ("agreement", "refused rightly"):
                assert bad[measure] != best[measure], (name, measure)


def test_rows_carry_groups_bars_and_verdicts(built):
    suite = POCKETDOCS["lines"]
    found = list(rows(Result(suite, "truth", perfect(suite.load(built / "lines")))))
    latin = next(row for row in found if (row.measure, row.group) == ("CER", "Latin"))
    assert latin.bar.at == 0.02 and latin.verdict == "reached"
    beside = list(rows(Result(suite, "peer", perfect(suite.load(built / "lines")), is_model=False)))
    assert all(row.bar is None for row in beside)
    text = markdown([Result(suite, "truth", perfect(suite.load(built / "lines")))], [("data", "x")], {"charts": "y"})
    assert "| CER | Latin | truth |" in text and "- charts: y" in text


def test_agreement_is_between_shapes(built):
    items = load_items(built / "slicing")
    first = [item for item in items if item.unit == items[0].unit]
    assert len(first) == len(slicing.SHAPES) and len({item.truth for item in first}) == 1
    assert slicing.agreement([(item, "abcd") for item in first])["agreement"].value == 1
    half = [(item, "ab" if i else "cd") for i, item in enumerate(first[:2])]
    assert slicing.agreement(half)["agreement"].value == 0
    assert slicing.agreement(half[:1]) == {}


def test_what_is_read_off_a_picture_is_no_refusal(tmp_path):
    item = Item("x", tmp_path, "?", {"answer": "The file cannot be found here", "refused": False}, "blank")
    assert refusals.score(item, "The file cannot be found here")["refused wrongly"].value == 0
    assert refusals.score(item, "I cannot read it")["refused wrongly"].value == 1


def test_half_of_the_refusals_have_an_answer(built):
    items = load_items(built / "refusals")
    assert sum(item.truth["refused"] for item in items) == 6
    for item in items:
        assert (item.truth["answer"] in refusals.sentences(item.language)) == item.truth["refused"]


def test_items_come_from_the_held_out_side(sources, built):
    def words(text: str) -> set[str]:
        return {word for word in text.casefold().split() if word.isalpha()}

    lines = [item for item in load_items(built / "lines") if item.group in ("Latin", "Cyrillic", "Greek")]
    assert lines
    for item in lines:
        held_out = words(sources.text(item.language, HELD_OUT)) | words(
            " ".join(sources.words(item.language, HELD_OUT))
        )
        inside = words(item.truth)
        # The first and the last word may be cut.
        assert len(inside - held_out) <= 2, (item.truth, inside - held_out)
    rng = np.random.default_rng(0)
    trained = {face.family for face in sources.faces if face.split == TRAIN}
    assert all(face_to_read(rng, sources, "de").family not in trained for _ in range(20))


def test_no_builder_names_the_training_side():
    for module in Path(pages.__file__).parent.glob("*.py"):
        source = module.read_text(encoding="utf-8")
        assert "TRAIN" not in source and '"train"' not in source, module


def test_building_twice_changes_nothing_and_other_seeds_are_refused(sources, built, tmp_path):
    before = {path: path.read_bytes() for path in (built / "lines").iterdir()}
    assert build(sources, built, ("lines",), n=12) == {}
    assert {path: path.read_bytes() for path in (built / "lines").iterdir()} == before
    with pytest.raises(InputError, match="seed"):
        build(sources, built, ("lines",), n=12, seed=1)
    build(sources, tmp_path, ("lines",), n=12)
    assert (tmp_path / "lines/items.jsonl").read_bytes() == (built / "lines/items.jsonl").read_bytes()
    assert facts_of(tmp_path / "lines")["with"]["handlens"]


def test_a_suite_is_skipped_and_said_so_without_its_tools(sources, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    skipped = build(sources, tmp_path / "out", ("lines", "pages", "tables", "receipts", "pdfs"), n=2)
    assert skipped.keys() == {"pages", "tables", "receipts", "pdfs"}
    assert (
        all("Chromium" in skipped[name] for name in ("pages", "tables", "receipts")) and "pdftotext" in skipped["pdfs"]
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lines"]
    with pytest.raises(Missing, match="tesseract"):
        Tesseract()
    with pytest.raises(InputError, match="there is no suite 'x'; there are lines"):
        chosen(["x"])
    with pytest.raises(InputError, match="there is no peer 'x'"):
        open_peers(["x"])


@chromium
def test_chromium_draws_held_out_pages_and_tables(sources, tmp_path):
    assert build(sources, tmp_path, ("pages", "tables"), n=2) == {}
    for suite in (pages.SUITE, tables.SUITE):
        for item in suite.load(tmp_path / suite.name):
            assert item.truth and next(iter(suite.score(item, item.truth).values())).value in (0, 1)
    with Browser() as browser:
        style = css(sources, sources.fonts("en", HELD_OUT)[0])
        page = "<!doctype html><style>{}*{{margin:0}}p{{font:40px/40px {}}}</style><p>WWWW iiii</p>"
        image, wide = browser.draw(page.format(style, "held-out"), 300, "() => document.querySelector('p').offsetWidth")
        other, _ = browser.draw(page.format(style, "monospace"), 300)
    assert image.shape == (40, 300, 3) and wide == 300
    assert image.min() < 100 and not np.array_equal(image, other)  # the font of the page is the one it was given


# ------------------------------------------------------------------------------------------------------- running


def test_a_stopped_run_goes_on_and_asks_nothing_twice(built, tmp_path):
    suite, items = POCKETDOCS["scenes"], load_items(built / "scenes")[:3]
    chat = load()
    model = Model(chat, "tiny")
    heard = []
    first = ask(model, suite, items[:2], tmp_path, lambda *a: heard.append(a))
    assert heard == [(1, 2), (2, 2)]
    path = tmp_path / f"{model.digest}.jsonl"
    # A row that was being written when the run was stopped.
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "torn')
    second = ask(model, suite, items, tmp_path)
    assert [one.answer for one in second[:2]] == [one.answer for one in first]
    assert path.read_bytes().startswith(whole) and len(path.read_text().splitlines()) == 3
    after = path.read_bytes()
    third = ask(Model(chat, "tiny"), suite, items, tmp_path)
    assert path.read_bytes() == after and third == second
    params = SamplingParams.greedy(max_new_tokens=suite.max_new_tokens)
    alone = chat.reply([{"role": "user", "content": [open_image(items[2].image), items[2].question]}], params)
    assert third[2].answer == alone


class Parrot:
    """Answers every question with line ends of all kinds."""

    name, digest = "parrot", "0" * 32

    def answers(self, suite, item) -> bool:
        return True

    def how(self, suite):
        return ""

    def answer(self, suite, item) -> str:
        return "a\u2028b\x85c\r\nd\x1ce"


def test_answers_with_any_characters_are_kept_as_they_are(built, tmp_path):
    items = load_items(built / "scenes")[:2]
    first = ask(Parrot(), POCKETDOCS["scenes"], items, tmp_path)
    assert ask(Parrot(), POCKETDOCS["scenes"], items, tmp_path) == first
    assert first[0].answer == "a\u2028b\x85c\r\nd\x1ce"


def test_the_digest_tells_models_and_settings_apart(tiny_model, quantized_model):
    files = [find_files(model.model, model.mmproj) for model in (tiny_model, quantized_model)]
    assert len({digest(files[0]), digest(files[1]), digest(files[0], "vision_precision=f32")}) == 3
    assert digest(files[0]) == digest(files[0])


def test_the_command_measures_the_shipped_model_and_writes_report_and_pictures(sources, built, tmp_path, capsys):
    data = shutil.copytree(built, tmp_path / "data")
    report = tmp_path / "report.md"
    arguments = ["pocketdocs", "--data", data, "--suite", "scenes,charts", "--limit", 2]
    command(*arguments, "--out", report, "--sources", sources.folder)
    said = capsys.readouterr()
    assert report.read_text(encoding="utf-8") == said.out
    assert "## scenes" in said.out and "- charts: not in data" in said.out and "seed 0" in said.out
    assert (tmp_path / "report-scenes.png").stat().st_size > 1000
    answers = list((data / "answers").iterdir())
    assert len(answers) == 1
    keys = {"key", "id", "reader", "answer", "seconds"}
    assert all(json.loads(line).keys() == keys for line in answers[0].read_text(encoding="utf-8").splitlines())


def test_the_command_says_how_to_make_what_is_missing(tmp_path, built):
    with pytest.raises(InputError, match="handlens eval build pocketdocs"):
        command("pocketdocs")
    with pytest.raises(InputError, match="handlens eval build pocketdocs"):
        command("pocketdocs", "--data", tmp_path)
    with pytest.raises(InputError, match="nobody to ask"):
        command("pocketdocs", "--data", built, "--peers-only")
    with pytest.raises(InputError, match="'publicdocs'"):
        command("build", "publicdocs", "--sources", tmp_path, "--out", tmp_path)


def test_pictures_show_as_many_right_as_wrong(built, sources):
    items = load_items(built / "lines")
    answered = [Answered(item, item.truth if i % 2 else "", 0.1) for i, item in enumerate(items)]
    sheet = pictures(Result(POCKETDOCS["lines"], "half", answered), sources, most=4)
    assert sheet.width > 3 * 320


# ------------------------------------------------------------------------------------------------------------ peers


def test_words_become_rows_and_columns():
    words = [Word(0, 0, 30, 10, "a"), Word(100, 1, 130, 11, "b"), Word(2, 20, 40, 30, "1"), Word(45, 20, 60, 30, "x")]
    words.append(Word(105, 21, 120, 31, "2"))
    assert [[word.text for word in row] for row in in_rows(words)] == [["a", "b"], ["1", "x", "2"]]
    assert table(joined(words)) == "| a | b |\n| --- | --- |\n| 1 x | 2 |"
    assert table([]) == ""


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="no tesseract")
def test_tesseract_reads_lines_of_its_languages(built, tmp_path):
    reader, suite = Tesseract(), POCKETDOCS["lines"]
    items = [item for item in load_items(built / "lines") if item.group == "Latin"]
    assert not any(reader.answers(POCKETDOCS["charts"], item) for item in items)
    taken = [item for item in items if reader.answers(suite, item)][:2]
    found = ask(reader, suite, taken, tmp_path)
    errors = metrics.total(metrics.character_errors(one.item.truth, one.answer) for one in found)
    assert not taken or errors.value < 0.8
    assert os.listdir(tmp_path) == [f"{reader.digest}.jsonl"] or not taken
