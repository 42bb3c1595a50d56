"""The model that ships reads: with the core installation alone, in seconds, and in llama.cpp as here."""

import importlib.util
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.make_lines import LINES, draw
from handlens.chat import load
from handlens.data.questions import templates
from handlens.engine.sampling import SamplingParams
from handlens.eval.metrics import character_errors, total
from handlens.naming import SUFFIX
from handlens.quant.quantize import quantize_model
from handlens.reading import QUESTION as ASKED
from handlens.weights import find_files
from tests.test_kernels import needs_bf16, needs_native

QUESTION = "What is written here?"
GREEDY = SamplingParams.greedy(max_new_tokens=64)
FOLDER = Path(__file__).parents[1] / "examples" / "lines"
#: The languages of the pictures that are not in English.
LANGUAGES = {"german": "de", "french": "fr", "spanish": "es"}
#: Errors a character that are allowed in the six shipped pictures; docs/default-model.md says how many there are.
MOST_ERRORS = 0.06


@pytest.fixture(scope="module")
def shipped():
    return load()


def asked(chat, image, question: str = QUESTION) -> str:
    return chat.reply([{"role": "user", "content": [image, question]}], GREEDY, by_lines=False)


def test_it_reads_six_pictures(shipped):
    errors = [
        character_errors(text, asked(shipped, Image.open(FOLDER / f"{name}.png"))) for name, (text, *_) in LINES.items()
    ]
    assert len(errors) == 6
    assert total(errors).value <= MOST_ERRORS


def test_the_six_pictures_are_those_that_their_script_draws():
    for name, line in LINES.items():
        with Image.open(FOLDER / f"{name}.png") as image:
            assert image.size == draw(*line).size


@pytest.mark.parametrize("colour", ["white", "black", "#8a7f6b"])
def test_answers_hold_no_special_tokens_and_end(shipped, colour):
    said = asked(shipped, Image.new("RGB", (300, 200), colour), "Read the text in this image.")
    assert "<|" not in said and "<image>" not in said and len(said) < 400


def test_its_files_are_small_and_split_so_that_they_travel():
    files = find_files(None)
    folder = resources.files("handlens") / "assets"
    paths = [files.model, files.mmproj, files.model.with_suffix(SUFFIX)]
    assert {path.name for path in paths} == {path.name for path in folder.iterdir()}
    sizes = [path.stat().st_size for path in paths]
    assert max(sizes) <= 15 << 20 and sum(sizes) <= 30_000_000 and sizes[2] <= 700_000


@needs_native
@pytest.mark.parametrize(("precision", "cosine"), [("int8", 0.999), pytest.param("bf16", 0.9995, marks=needs_bf16)])
def test_rounded_vision_looks_where_float_vision_looks_whatever_type_the_projector_has(precision, cosine, tmp_path):
    """The resampler of a trained model looks sharply: its queries and keys stay floats where the file has floats."""
    files = find_files(None)
    shutil.copy(files.model, tmp_path / "mini.gguf")
    quantize_model(files.mmproj, tmp_path / "mini.mmproj.gguf", "F16")
    chats = [load(tmp_path / "mini.gguf", vision_precision=each) for each in (precision, "f32")]
    for name in LINES:
        msgs = [{"role": "user", "content": [Image.open(FOLDER / f"{name}.png"), QUESTION]}]
        ours, exact = (chat.generator.embeddings(chat.prepare(msgs, GREEDY)) for chat in chats)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(exact, axis=1)
        assert ((ours * exact).sum(axis=1) / norms).min() >= cosine


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="llama.cpp's wheel is not installed")
@pytest.mark.parametrize("of_its_own", [False, True], ids=["in English", "in the language of the text"])
def test_stock_llama_cpp_gives_the_same_answers(shipped, exact, of_its_own):
    """100 pictures of sizes that both programs cut alike; at least 95 have the same greedy answer, token by token.

    They are asked in English, and as `handlens read --lang` asks, in the language of the text.
    """
    from benchmarks.llama_cpp_agreement import SHAPES
    from tests.llama_cpp import LlamaCpp, compare

    files = find_files(None)
    chat, theirs = load(), LlamaCpp(files.model, files.mmproj)
    questions = [templates("read", LANGUAGES.get(name, "en"))[ASKED] if of_its_own else QUESTION for name in LINES]
    lines = list(zip([text for text, *_ in LINES.values()], questions, strict=True))
    same = 0
    for number in range(100):
        width, height = SHAPES[number % len(SHAPES)]
        image = Image.new("RGB", (width, height), "white")
        text, question = lines[number % len(lines)]
        line = draw(text, 16 + number % 9, "black", "white")
        image.paste(line, (max((width - line.width) // 2, 0), max((height - line.height) // 2, 0)))
        compared = compare(chat, theirs, question, [image], 24)
        same += compared.same_length and compared.changed == 0
    assert same >= 95
