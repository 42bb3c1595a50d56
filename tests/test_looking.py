"""Things that stand apart are named, counted and found; where they don't, or are not known, the model is asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from handlens.chat import load
from handlens.engine.sampling import SamplingParams
from handlens.looking import MOST, answer_by_things
from handlens.naming import Limits

GREEDY = SamplingParams.greedy(max_new_tokens=32)


@pytest.fixture(scope="module")
def chat():
    return load()


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """Seven red discs and three blue triangles on a sloping ground."""
    slope = np.linspace(0, 40, 336)[:, None] + np.linspace(180, 210, 336)
    image = Image.fromarray(slope.astype(np.uint8)[..., None].repeat(3, axis=2))
    pen = ImageDraw.Draw(image)
    cells = np.random.default_rng(0).permutation(16)[:10]
    for number, cell in enumerate(cells.tolist()):
        x, y = 18 + cell % 4 * 82, 14 + cell // 4 * 82
        if number < 7:
            pen.ellipse((x, y, x + 50, y + 50), fill="#c03020")
        else:
            pen.polygon([(x, y + 52), (x + 27, y), (x + 54, y + 52)], fill="#2040a0")
    return image


@pytest.fixture(scope="module")
def places() -> Image.Image:
    """A green star at the top left, an orange square in the middle and a black ring at the bottom right."""
    image = Image.new("RGB", (336, 336), "#e8ecf0")
    pen = ImageDraw.Draw(image)
    turns = np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 17, 40)
    pen.polygon([(56 + r * np.sin(a), 56 - r * np.cos(a)) for r, a in zip(radii, turns)], fill="#28963c")
    pen.rectangle((134, 134, 202, 202), fill="#f58714")
    pen.ellipse((242, 242, 318, 318), fill="#101010")
    pen.ellipse((257, 257, 303, 303), fill="#e8ecf0")
    return image


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def said(chat, *parts) -> str | None:
    """The answer out of the things alone."""
    answer = answer_by_things(chat, user(*parts))
    return None if answer is None else "".join(answer)


@pytest.mark.parametrize(
    ("question", "number"),
    [
        ("Zähle: Kreis", "7"),
        ("Сколько здесь таких: круг?", "7"),
        ("Count: triangle", "3"),
        ("How many triangles do you see?", "3"),
        ("Quante volte compare «triangolo» nell'immagine?", "3"),
    ],
)
def test_those_are_counted_that_are_asked_for(chat, scene, question, number):
    assert chat.reply(user(scene, question), GREEDY) == number
    assert list(chat.stream(user(scene, question), GREEDY)) == [number]


def test_of_things_with_unknown_names_those_are_counted_of_which_there_are_the_most(chat, scene):
    assert chat.reply(user(scene, "How many thingamabobs are there?"), GREEDY) == "7"


def test_the_last_question_of_a_conversation_counts(chat, scene):
    msgs = [*user(scene, "What is this?"), {"role": "assistant", "content": "A picture."}]
    assert chat.reply([*msgs, {"role": "user", "content": "How many circles do you see?"}], GREEDY) == "7"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Where in the picture is “star”?", "top left"),
        ("Position: Quadrat", "in der Mitte"),
        ("Où se trouve « anneau » dans l'image ?", "en bas à droite"),
        ("What colour is this: square?", "orange"),
        ("Welche Farbe hat „Stern“ im Bild?", "grün"),
        ("Which shape has this colour: green?", "star"),
        ("Form, schwarz?", "Ring"),
        ("Which shape has this colour: purple?", "That is not in the picture."),
        ("Is “star” in the picture?", "Yes"),
        ("Ist „Nashorn“ im Bild?", "Nein"),
        ("Where in the picture is “rhinoceros”?", "That is not in the picture."),
        ("Where is the star?", "top left"),
        ("Wo ist das Quadrat?", "in der Mitte"),
        ("What color is the square, please?", "orange"),
        ("Какого цвета звезда?", "зелёный"),
        ("Which colour has the rhinoceros here?", "That is not in the picture."),
    ],
)
def test_things_are_found_with_their_places_colours_and_shapes(chat, places, question, answer):
    assert chat.reply(user(places, question), GREEDY) == answer


def test_a_thing_is_named_in_the_language_of_the_question(chat, places):
    star = places.crop((0, 0, 112, 112))
    names = {said(chat, star, question) for question in ("What is this?", "Что это?")}
    assert len(names) == 2 and names <= {"star", "glowing star", "звезда", "сияющая звезда"}


def test_many_different_things_have_no_one_name(chat, places, scene):
    assert said(chat, scene, "What is this?") is None
    assert said(chat, places.crop((0, 0, 336, 112)), "What is this?") is not None


def test_a_thing_of_which_no_name_is_sure_is_the_models(chat, places, monkeypatch):
    unsure = replace(chat.names.readout, limits=Limits(np.inf, 0, 0))
    monkeypatch.setattr(chat.names, "found", unsure)
    assert said(chat, places.crop((0, 0, 112, 112)), "What is this?") is None


def test_what_is_surely_not_there_is_absent(chat, places, monkeypatch):
    strict = replace(chat.names.readout, limits=Limits(0, np.inf, np.inf))
    monkeypatch.setattr(chat.names, "found", strict)
    assert said(chat, places, "Count: star") == "That is not in the picture."
    assert said(chat, places, "Siehst du „Stern“?") == "Nein"


def test_an_image_shown_whole_is_not_counted(chat, scene):
    msgs = user(scene, "How many discs are there?")
    assert chat.reply(msgs, GREEDY, by_lines=False) == "".join(chat.run(chat.prepare(msgs, GREEDY), GREEDY))


def test_other_questions_and_other_images_are_the_models(chat, scene):
    assert said(chat, scene, "Which colour has the ground?") is None
    assert said(chat, scene, "Where in the picture is “gizmo”?") is None
    assert said(chat, scene, scene, "How many discs are there?") is None
    assert said(chat, "How many legs has a spider?") is None
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 260, 3), np.uint8))
    assert said(chat, noise, "How many dots are there?") is None
    assert said(chat, noise, "What is this?") is None


@pytest.mark.parametrize("question", ["What is this?", "How many circles are there?", "Is “circle” in the picture?"])
def test_pictures_with_text_are_answered_out_of_their_text(chat, question):
    receipt = Image.open(Path(__file__).parents[1] / "examples" / "receipt.png")
    assert said(chat, receipt, question) is None


def test_many_different_things_are_not_counted(chat):
    image = Image.new("RGB", (448, 448), "white")
    pen = ImageDraw.Draw(image)
    for number in range(MOST + 1):
        x, y = 10 + number % 4 * 110, 10 + number // 4 * 110
        hue = f"hsv({300 * number // MOST}, 100%, {60 + 40 * (number % 2)}%)"
        pen.rectangle((x, y, x + 20 + 6 * (number % 2) * 8, y + 70), fill=hue)
    assert said(chat, image, "How many are there?") is None


def test_without_names_the_most_alike_are_counted(chat, scene, monkeypatch):
    monkeypatch.setattr(chat.names, "found", None)
    assert said(chat, scene, "Count: triangle") == "7"
    assert said(chat, scene, "Where in the picture is “triangle”?") is None
