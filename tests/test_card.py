"""The quality card compares sizes with the reference, and says what is true of the reference itself."""

import json

import numpy as np
import pytest
from PIL import Image

from handlens.chat import load
from handlens.cli import run
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError
from handlens.eval.benchmarks import receipts
from handlens.eval.suite import Drawn, write
from handlens.gguf.convert import write_language
from handlens.quant.card import Score, markdown, measure_card, read_exams
from handlens.weights import ModelFiles
from tests import tiny
from tests.multilingual import lines


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tiny.TinyModel:
    return tiny.write(tmp_path_factory.mktemp("card"), tiny.config(), type="F16")


@pytest.fixture(scope="module")
def text() -> str:
    return "\n".join(lines())[:3000]


def test_a_model_has_no_divergence_from_itself_and_uniform_logits_the_perplexity_of_the_vocabulary(
    made, text, tmp_path
):
    files = ModelFiles(made.model, made.mmproj)
    first, second = measure_card([("one", files), ("two", files)], text)
    assert second.divergence == 0 and second.same_token == 1 and second.perplexity == first.perplexity
    official = made.official | {"llm.lm_head.weight": np.zeros_like(made.official["llm.lm_head.weight"])}
    write_language(tmp_path / "flat.gguf", made.config, made.tokenizer, official)
    (row,) = measure_card([("flat", ModelFiles(tmp_path / "flat.gguf", made.mmproj))], text)
    assert row.perplexity == pytest.approx(made.config.llm.vocab_size, rel=1e-4)


def test_fewer_bits_diverge_more(made, tmp_path, text, capsys):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    command = ["card", str(made.model), "--text", str(tmp_path / "text.txt"), "--types", "Q8_0,Q4_0,Q2_K"]
    command += ["--json", str(tmp_path / "card.json"), "--picture", str(tmp_path / "card.png")]
    assert run(command) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "card.json").read_text())}
    by_size = [rows[name] for name in ("tiny", "Q8_0", "Q4_0", "Q2_K")]
    assert sorted(by_size, key=lambda row: row["divergence"]) == by_size
    assert sorted(by_size, key=lambda row: -row["language_bytes"]) == by_size
    assert all(0 < max(row["stages"].values()) < 0.05 for row in by_size)
    assert all(row["memory"] > row["language_bytes"] for row in by_size)
    printed = capsys.readouterr().out
    assert (
        printed.count("| Q2_K |") == 2 and "| stage by stage | token embedding | language blocks | logits |" in printed
    )
    assert Image.open(tmp_path / "card.png").width > 500


@pytest.fixture(scope="module")
def said(made) -> str:
    """What the model says to QUESTION about `noise()`."""
    msgs = [{"role": "user", "content": [Image.fromarray(noise()), QUESTION]}]
    return load(made.model, made.mmproj).reply(msgs, SamplingParams.greedy(max_new_tokens=64))


QUESTION = "What is it?"


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


def test_answers_are_counted_as_right_only_where_they_are(made, said, text, tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": QUESTION, "answer": answer} for answer in (said, "another answer")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    exams = read_exams(tmp_path)
    (row,) = measure_card([("tiny", ModelFiles(made.model, made.mmproj))], text, exams, tmp_path / "answers")
    assert row.accuracy == 0.5 and row.scores[0].n == 2
    assert "| questions: right |" in markdown([row])


def test_suites_are_scored_by_their_own_rules_and_their_answers_kept(made, said, text, tmp_path):
    drawn = [Drawn(noise(), QUESTION, truth, "receipts", "en") for truth in (said, "12,50", "13,50", "14,50")]
    write(receipts.SUITE, tmp_path / "receipts", iter(drawn), {}, lambda done: None)
    exams = read_exams(tmp_path, ["receipts"], 3)
    for _ in range(2):
        (row,) = measure_card([("tiny", ModelFiles(made.model, made.mmproj))], text, exams, tmp_path / "answers")
        (score,) = row.scores
        assert (score.measure, score.n, score.value) == ("exact field", 3, pytest.approx(1 / 3))
        assert 0 < score.low < score.value < score.high < 1
    (kept,) = (tmp_path / "answers").iterdir()
    assert len(kept.read_text(encoding="utf-8").splitlines()) == 1  # the same picture and question
    with pytest.raises(InputError, match="holds no suite charts; there are receipts"):
        read_exams(tmp_path, ["charts"])
    with pytest.raises(InputError, match="name the folder"):
        read_exams(tmp_path / "receipts")


def test_of_errors_fewer_are_better():
    assert Score("lines", "CER", "less", 9, 0.25, 0.2, 0.3).share == 0.75
    assert Score("lines", "CER", "less", 9, 2.5, 0.2, 0.3).share == 0
    assert Score("charts", "within 5 %", "more", 9, 0.25, 0.2, 0.3).share == 0.25


def test_a_set_without_questions_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no questions"):
        read_exams(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(InputError, match="without image, question and answer"):
        read_exams(tmp_path)


def test_a_suite_without_a_folder_and_a_text_that_is_none_are_refused(made, tmp_path, capsys):
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    command = ["card", str(made.model), "--text", str(tmp_path / "text.txt")]
    for options, message in (["--suite", "receipts"], "--set names"), ([], "is not UTF-8 text"):
        assert run([*command, *options]) == 2
        assert message in capsys.readouterr().err
