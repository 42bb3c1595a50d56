"""Things are counted where they stand apart; where they don't, or something else is asked, the model is asked."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from handlens.chat import load
from handlens.engine.sampling import SamplingParams
from handlens.looking import MOST, count_things

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


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize("question", ["How many discs are there?", "Zähle: Kreis", "Сколько здесь таких: круг?"])
def test_the_things_of_which_there_are_the_most_are_counted(chat, scene, question):
    assert chat.reply(user(scene, question), GREEDY) == "7"
    assert list(chat.stream(user(scene, question), GREEDY)) == ["7"]


def test_the_last_question_of_a_conversation_counts(chat, scene):
    msgs = [*user(scene, "What is this?"), {"role": "assistant", "content": "A picture."}]
    assert chat.reply([*msgs, {"role": "user", "content": "How many discs do you see?"}], GREEDY) == "7"


def test_an_image_shown_whole_is_not_counted(chat, scene):
    msgs = user(scene, "How many discs are there?")
    assert chat.reply(msgs, GREEDY, by_lines=False) == "".join(chat.run(chat.prepare(msgs, GREEDY), GREEDY))


def test_other_questions_and_other_images_are_the_models(chat, scene):
    assert count_things(chat, user(scene, "Which colour has the ground?")) is None
    assert count_things(chat, user(scene, scene, "How many discs are there?")) is None
    assert count_things(chat, user("How many legs has a spider?")) is None
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 260, 3), np.uint8))
    assert count_things(chat, user(noise, "How many dots are there?")) is None


def test_many_different_things_are_not_counted(chat):
    image = Image.new("RGB", (448, 448), "white")
    pen = ImageDraw.Draw(image)
    for number in range(MOST + 1):
        x, y = 10 + number % 4 * 110, 10 + number // 4 * 110
        hue = f"hsv({300 * number // MOST}, 100%, {60 + 40 * (number % 2)}%)"
        pen.rectangle((x, y, x + 20 + 6 * (number % 2) * 8, y + 70), fill=hue)
    assert count_things(chat, user(image, "How many are there?")) is None
