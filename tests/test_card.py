"""The quality card compares sizes with the reference, and says what is true of the reference itself."""

import json

import numpy as np
import pytest
from PIL import Image

from handlens.cli import run
from handlens.errors import InputError
from handlens.gguf.convert import write_language
from handlens.quant.card import Question, measure_card, read_questions
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
    assert all(row["stage_error"] < 0.05 for row in by_size)
    assert "| Q2_K |" in capsys.readouterr().out
    assert Image.open(tmp_path / "card.png").width > 500


def test_answers_are_counted_as_right_only_where_they_are(made, text, tmp_path):
    from handlens import load
    from handlens.engine.sampling import SamplingParams

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    said = load(made.model, made.mmproj).reply(
        [{"role": "user", "content": [picture, "What is it?"]}], SamplingParams.greedy(max_new_tokens=64)
    )
    items = [Question(tmp_path / "a.png", "What is it?", answer) for answer in (said, "another answer")]
    (row,) = measure_card([("tiny", ModelFiles(made.model, made.mmproj))], text, items)
    assert row.accuracy == 0.5


def test_a_set_without_questions_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no questions"):
        read_questions(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(InputError, match="without image, question and answer"):
        read_questions(tmp_path)
