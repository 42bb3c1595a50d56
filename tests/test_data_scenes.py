"""Questions in every language, and scenes and refusals whose answers are checked against what is on the picture."""

import hashlib
import json
import re
import string
from collections import Counter

import numpy as np
import pytest

from handlens.cli.read import INSTRUCTION
from handlens.data import questions, refusals, scenes
from handlens.data.questions import LANGUAGES, ask, phrases
from handlens.data.sources import INDEX, Sources
from handlens.data.structured import Fact
from handlens.errors import InputError

NAMES = ("apple", "book", "car", "duck", "house", "tree", "cup", "fish", "bird", "key", "lock", "bell")


#: Around every thing of these tests, and nowhere else.
FRAME = (255, 0, 255)


def colours(count: int) -> np.ndarray:
    """uint8 [count, 3]: strong colours that no background has and that differ by 80 at least somewhere."""
    return np.array([(r, g, b) for r in (0, 90, 170) for g in (0, 90, 170) for b in (0, 90, 170)][:: 27 // count])


def add_squares(folder) -> Sources:
    """Puts pictures into a folder of sources, each a square of one colour in a frame, and opens it."""
    index_path = folder / INDEX
    index = json.loads(index_path.read_text()) if index_path.exists() else {"version": 1, "files": {}}
    index["languages"] = index.get("languages", ["en", "de", "fr"])
    images = np.zeros((1, len(NAMES), 64, 64, 4), np.uint8)
    images[0, :, 4:-4, 4:-4, :3] = FRAME
    images[0, :, 14:-14, 14:-14, :3] = colours(len(NAMES))[: len(NAMES), None, None]
    images[0, :, 4:-4, 4:-4, 3] = 255
    (folder / "sprites").mkdir(exist_ok=True)
    np.savez(folder / "sprites/train.npz", images=images)
    keys = [chr(0x1F400 + thing) for thing in range(len(NAMES))]
    table = {"keys": keys, "categories": ["animals"] * len(NAMES), "sets": {"train": ["squares"]}}
    table["names"] = {language: NAMES for language in index["languages"]}
    (folder / "sprites/names.json").write_text(json.dumps(table))
    for path in (folder / "sprites").iterdir():
        index["files"][f"sprites/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    index_path.write_text(json.dumps(index))
    return Sources.open(folder)


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Sources:
    return add_squares(tmp_path_factory.mktemp("squares"))


def patches(image: np.ndarray, colour: np.ndarray) -> list[tuple[float, float]]:
    """The centres (x, y) of the connected patches of a colour that are framed, found by filling each."""
    small = image[::2, ::2].astype(int)
    mask, frame = ((np.abs(small - wanted) < 60).all(axis=2) for wanted in (colour, FRAME))
    found: list[tuple[float, float]] = []
    while mask.any():
        y, x = (int(place) for place in np.argwhere(mask)[0])
        mask[y, x] = False
        filled, edge = [(x, y)], [(x, y)]
        while edge:
            x, y = edge.pop()
            for near in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
                if 0 <= near[0] < mask.shape[1] and 0 <= near[1] < mask.shape[0] and mask[near[1], near[0]]:
                    mask[near[1], near[0]] = False
                    filled.append(near)
                    edge.append(near)
        x, y = np.mean(filled, axis=0)
        wide, high = np.ptp(filled, axis=0) + 1
        right = max((column for column, row in filled if row == round(y)), default=0)
        solid = min(wide, high) > 3 and len(filled) > wide * high / 2  # and not the blurred edge of another thing
        if solid and frame[round(y), right + 1 : right + 4].any():
            found.append((2 * x, 2 * y))
    return found


def slots_of(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def thing_in(question: str) -> int:
    return next(thing for thing, name in enumerate(NAMES) if re.search(rf"\b{name}\b", question))


def test_every_kind_has_templates_with_the_same_slots_in_every_language():
    for kind in questions.kinds():
        wanted = slots_of(questions.templates(kind, "en")[0])
        for language in LANGUAGES:
            templates = questions.templates(kind, language)
            assert len(set(templates)) == len(templates) >= 2, (kind, language)
            assert all(slots_of(template) == wanted for template in templates), (kind, language)


def test_slots_appear_in_the_question_as_they_are():
    rng = np.random.default_rng(0)
    for kind in questions.kinds():
        names = sorted(slots_of(questions.templates(kind, "en")[0]))
        slots = {name: f"{name} {{x}} 7%" for name in names}
        for language in LANGUAGES:
            question = ask(rng, kind, language, **slots)
            assert all(value in question for value in slots.values())


def test_questions_for_a_number_are_known_in_every_language():
    for language in LANGUAGES:
        for kind in questions.kinds():
            asking = [questions.asks("how_many", template) for template in questions.templates(kind, language)]
            # In many languages the words for that also ask for a price or a value.
            assert (
                all(asking)
                if kind == "count"
                else not any(asking) or "price" in kind or "{" in "".join(questions.templates(kind, language))
            ), (kind, language)
    assert questions.asks("how_many", "And how many cats?") and questions.asks("how_many", "HOW MANY?")
    assert not questions.asks("how_many", "What does the country look like?")
    assert questions.asks("when", "Wann ist das?") and not questions.asks("when", "Whenever?")


def test_short_answers_are_complete_and_can_be_told_apart():
    for language in LANGUAGES:
        words = phrases(language)
        sentences = (words.absent, words.blank, words.unreadable, words.no_text, words.yes, words.no)
        assert all(sentences) and len(set(sentences)) == len(sentences)
        assert len(set(words.positions)) == 9
        for table in (words.colours, words.shapes, words.languages):
            assert len(set(table.values())) == len(table)
    assert phrases("de").languages["fr"] == "Französisch" and phrases("fr").colours["red"] == "rouge"


def test_what_handlens_read_asks_is_among_the_templates():
    assert INSTRUCTION in questions.templates("read", "en")


def test_an_unknown_language_or_kind_is_told_what_there_is():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="'xx'; there are en, de"):
        ask(rng, "name", "xx")
    with pytest.raises(InputError, match="'nome'; there are read, "):
        ask(rng, "nome", "en")


def test_counts_are_those_on_the_picture(squares):
    seen = Counter()
    for seed in range(60):
        sample = scenes.count(np.random.default_rng(seed), squares, "en", "train")
        found = patches(sample.image, colours(len(NAMES))[thing_in(sample.question)])
        assert sample.answer == str(len(found)), sample.question
        seen[sample.answer] += 1
    assert set(seen) == {str(number) for number in range(1, 11)}


def test_places_are_those_on_the_picture(squares):
    seen = set()
    for seed in range(60):
        sample = scenes.locate(np.random.default_rng(seed), squares, "de", "train")
        ((x, y),) = patches(sample.image, colours(len(NAMES))[thing_in(sample.question)])
        column, row = int(x * 3 / sample.image.shape[1]), int(y * 3 / sample.image.shape[0])
        assert sample.answer == phrases("de").positions[row * 3 + column]
        seen.add(sample.answer)
    assert len(seen) == 9


def test_the_named_thing_is_the_one_on_the_picture(squares):
    for seed in range(20):
        sample = scenes.name(np.random.default_rng(seed), squares, "en", "train")
        assert len(patches(sample.image, colours(len(NAMES))[NAMES.index(sample.answer)])) == 1


def test_yes_and_no_are_true_and_as_frequent(squares):
    answers = Counter()
    for seed in range(200):
        sample = scenes.present(np.random.default_rng(seed), squares, "en", "train")
        there = bool(patches(sample.image, colours(len(NAMES))[thing_in(sample.question)]))
        assert sample.answer == ("Yes" if there else "No")
        answers[sample.answer] += 1
    assert 70 <= answers["Yes"] <= 130


def test_shapes_have_the_colours_that_the_answers_say(squares):
    seen = Counter()
    for seed in range(80):
        scene = scenes.draw_shapes(np.random.default_rng(seed), squares, "en", "train")
        fact = scene.facts[0]
        seen[fact.kind] += 1
        if fact.kind in ("colour", "shape"):
            colour = fact.answer if fact.kind == "colour" else fact.slots["colour"]
            near = (np.abs(scene.image.astype(int) - scenes.SHADES[colour]) < 14).all(axis=2)
            assert near.sum() > 50, fact
        strange = scene.absent[0]
        assert strange.kind == fact.kind and strange.answer == "That is not in the picture."
        assert not {*strange.slots.values()} & {value for known in scene.facts for value in known.slots.values()}
    assert set(seen) == {"colour", "shape", "locate", "count"}


def test_names_that_one_could_take_for_each_other_are_not_mixed():
    assert scenes.alike("star", "glowing star") and scenes.alike("rice ball", "rice")
    assert not scenes.alike("red apple", "green apple")


def test_the_same_seed_draws_the_same_picture(squares):
    for maker in (scenes.name, scenes.count, scenes.locate, scenes.shapes, scenes.present):
        one, two = (maker(np.random.default_rng(5), squares, "fr", "train") for _ in range(2))
        assert one.image.tobytes() == two.image.tobytes()
        assert (one.question, one.answer) == (two.question, two.answer)


def test_scenes_are_refused_in_the_same_words_and_as_often_as_answered(squares):
    asked = {True: Counter(), False: Counter()}
    words = "|".join(sorted([*NAMES, *questions.SHAPES, *questions.COLOURS], key=len, reverse=True))
    for seed in range(500):
        there = seed % 2 == 0
        sample = refusals._of_scene(np.random.default_rng(seed), squares, "en", "train", there)
        assert (sample.answer == "That is not in the picture.") == (not there)
        asked[there][re.sub(words, "*", sample.question)] += 1
    frequent = {wording for times in asked.values() for wording, n in times.items() if n > 24}
    assert len(frequent) >= 6
    for wording in frequent:
        assert 0.5 < asked[True][wording] / asked[False][wording] < 2, wording


def test_further_questions_are_answered_and_refused_too(squares):
    refusal, counts = phrases("en").absent, Counter()
    for seed in range(60):
        sample = refusals._of_scene(np.random.default_rng(seed), squares, "en", "train", there=seed % 2 == 0)
        answers = [answer for _, answer in sample.more]
        counts["refused"] += refusal in answers
        counts["answered"] += any(answer != refusal for answer in answers)
        assert (sample.answer, *answers).count(refusal) == 1
    assert counts["refused"] == 30 and counts["answered"] > 30


def test_other_things_are_counted_rightly_too(squares):
    for seed in range(40):
        sample = scenes.count(np.random.default_rng(seed), squares, "en", "train")
        for question, answer in sample.more:
            assert len(patches(sample.image, colours(len(NAMES))[thing_in(question)])) == int(answer)


def test_a_missing_field_is_one_that_the_document_lacks():
    class Document:
        reading = "Total 7.20\nVAT 19% 1.15"
        facts = (Fact("receipt-field", "7.20", {"field": "Total"}), Fact("receipt-field", "1.15", {"field": "VAT 19%"}))

    missing = refusals._missing_from(np.random.default_rng(0), Document)
    for known in ("Total", "total:", "VAT", "Total VAT 19%"):
        assert missing(Fact("receipt-field", "1", {"field": known})) is None, known
    assert missing(Fact("receipt-field", "1", {"field": "Discount"})).slots == {"field": "Discount"}
