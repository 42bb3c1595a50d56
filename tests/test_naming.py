"""The readout of names: its file, whose weights it belongs to, and which names the words of a question mean."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from handlens.chat import Chat, load
from handlens.data.questions import LANGUAGES, SHAPES, understood
from handlens.errors import ModelFileError
from handlens.naming import SIDE, SUFFIX, Limits, Readout, appearance, looks, sureness
from handlens.things import find_things
from handlens.weights import find_files
from recipes.default import names as recipe
from tests.data_sources import small

SHIPPED = find_files(None).model.with_suffix(SUFFIX)


@pytest.fixture(scope="module")
def shipped() -> Readout:
    return Readout.open(SHIPPED)


@pytest.fixture(scope="module")
def thing() -> np.ndarray:
    """A red disc, cut out."""
    image = Image.new("RGB", (120, 100), "white")
    ImageDraw.Draw(image).ellipse((30, 20, 89, 79), fill="#d02020")
    return find_things(image).cut_out(0)


@pytest.fixture
def readout() -> Readout:
    """Of random things: four names and the shapes, from 3 values a square of the tower's."""
    rng = np.random.default_rng(0)
    names = np.arange(240) % (4 + len(SHAPES))
    means = rng.normal(size=(4 + len(SHAPES), 16, 3)), rng.normal(size=(4 + len(SHAPES), 942))
    squares, looks = (mean[names] + 0.3 * rng.normal(size=(240, *mean.shape[1:])) for mean in means)
    drawn = recipe.Drawn(squares.astype(np.float32), looks.astype(np.float32), names * 0, names)
    named = {"en": ("dog", "hot dog", "box of pears", "pear"), "de": ("Hund", "Hotdog", "Birnenkiste", "Birne")}
    return recipe.fit(drawn, named, "weights", Limits(0.5, 0.25, 0.125))


def test_the_shipped_file_has_names_in_all_languages_of_the_sources(shipped):
    languages = [language for language in LANGUAGES if any(shipped.names(language)[: -len(SHAPES)])]
    assert len(languages) == 14
    assert all(len(shipped.names(language)) == len(shipped.bias) for language in LANGUAGES)
    assert all(all(shipped.names(language)) for language in languages)
    assert shipped.names("zh")[shipped.shapes] and not any(shipped.names("zh")[: -len(SHAPES)])


def test_a_file_gives_back_what_was_written(readout, tmp_path):
    path = tmp_path / f"model{SUFFIX}"
    readout.save(path)
    again = Readout.open(path)
    assert (again.named, again.limits, again.vision) == (readout.named, readout.limits, readout.vision)
    rng = np.random.default_rng(1)
    seen = rng.normal(size=(50, 16, 3)).astype(np.float32), rng.normal(size=(50, 942)).astype(np.float32)
    one, other = readout.scores(*seen), again.scores(*seen)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.98
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.8


@pytest.mark.parametrize("damage", [b"", b"nothing of a readout", SHIPPED.read_bytes()[:5000]])
def test_damaged_files_are_refused(damage, tmp_path):
    path = tmp_path / f"model{SUFFIX}"
    path.write_bytes(damage)
    with pytest.raises(ModelFileError, match="names of things"):
        Readout.open(path)


def test_the_readout_belongs_to_the_shipped_weights_alone(shipped, tmp_path, caplog, tiny_model):
    chat = load()
    assert chat.names.readout.vision == chat.generator.backend.vision_key.split()[0]
    assert load(tiny_model.model, tiny_model.mmproj).names.readout is None
    pair = find_files(None)
    for path in (pair.model, pair.mmproj):
        shutil.copy(path, tmp_path)
    assert load(tmp_path / pair.model.name).names.readout is None
    assert not caplog.records
    replace(shipped, vision="0" * 64).save(tmp_path / SHIPPED.name)
    other = load(tmp_path / pair.model.name)
    assert other.names.readout is None and other.names.readout is None
    assert [record.getMessage().partition(" belongs")[0] for record in caplog.records] == [str(tmp_path / SHIPPED.name)]


def test_with_low_memory_the_tower_leaves_memory_again(thing):
    chat = load(low_memory=True)
    kept = Chat(load().model)
    np.testing.assert_array_equal(chat.names.scores([thing]), kept.names.scores([thing]))
    assert chat.generator.backend._eyes is None


def test_a_thing_looks_the_same_on_every_ground(thing):
    image = Image.new("RGB", (120, 100), "#a0c8e0")
    ImageDraw.Draw(image).ellipse((30, 20, 89, 79), fill="#d02020")
    look = looks(find_things(image).cut_out(0))
    assert look.shape == (SIDE, SIDE, 4) and look.dtype == np.uint8
    assert np.abs(look.astype(int) - looks(thing)).mean() < 4
    assert np.corrcoef(appearance(look), appearance(looks(thing)))[0, 1] > 0.97


def test_words_mean_the_very_name_in_any_number_or_the_names_that_have_them(readout):
    assert readout.meant("Dogs", "en") == [0]
    assert readout.meant("hot dogs", "en") == [1]
    assert readout.meant("pears", "en") == [3]
    assert readout.meant("box", "en") == [2]
    assert readout.meant("Hund", "de") == [0]
    assert readout.meant("Hund", "en") == readout.meant("?", "en") == readout.meant("", "en") == []
    assert readout.meant("triangles", "en") == readout.meant("三角形", "zh") == [4 + SHAPES.index("triangle")]


def test_the_longest_name_in_a_question_is_what_it_speaks_of(readout):
    assert readout.spoken_of("How many hot dogs can you see?", ["de", "en"]) == ("en", [1])
    assert readout.spoken_of("How many boxes?", ["en"]) is None


def test_what_is_sure_stands_out():
    scores = np.zeros((2, 30), np.float32)
    scores[0, 3] = 4
    scores[1, :12] = 4
    assert sureness(scores).tolist() == [4, 0]


def test_questions_are_understood_in_their_language():
    (asked, *_) = understood('wo  im Bild ist "Hund" ?', ("count", "locate"))
    assert (asked.kind, asked.language, asked.slots) == ("locate", "de", {"thing": "Hund"})
    assert {reading.language for reading in understood("Position: Ring", ("locate",))} >= {"en", "de"}
    assert understood("Where may a dog be?", ("count", "locate")) == []


def test_the_recipe_fits_a_readout_of_what_it_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "DRAWN", 2)
    monkeypatch.setattr(recipe, "SHAPES_DRAWN", 1)
    sources = small(tmp_path / "sources")
    out = tmp_path / f"new{SUFFIX}"
    monkeypatch.setattr("sys.argv", ["names", "--sources", str(sources.folder), "--out", str(out)])
    recipe.main()
    made = Readout.open(out)
    assert made.named == sources.sprites("train").names
    printed = capsys.readouterr().out
    assert "6 things in a held-out style" in printed and "limits: named" in printed
