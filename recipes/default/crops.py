"""A thing alone, cut out of its picture as in use (handlens/things.py), with what it is called.

A decoder learns names from such pictures while tower and resampler stay as they are: their vectors tell things apart
already (LOG.md). Each picture is asked about in several languages, for what costs is the picture.
"""

import numpy as np
from PIL import Image

from handlens.data import scenes
from handlens.data.questions import ask
from handlens.data.sample import TRAIN, Sample
from handlens.data.sources import Sources
from handlens.data.structured import chance
from handlens.things import find_things

#: How many languages a thing is named in, how often English is the first of them, for what is seen has to be learned in
#: one, and how many of the pictures show a coloured shape.
LANGUAGES, ENGLISH, SHAPES = 4, 0.5, 0.1


def thing(rng: np.random.Generator, sources: Sources, language: str) -> Sample:
    """A thing alone and its name, or a shape with its name and its colour, out of what is for training."""
    while True:
        image, asked = (_shape if chance(rng, SHAPES) else _sprite)(rng, sources, language)
        found = find_things(Image.fromarray(image))
        if found is not None and len(found.boxes) == 1:
            (question, answer), *more = asked
            picture = np.asarray(found.picture(0))
            return Sample(picture, question, answer, "name", language, more=tuple(more))


def _sprite(rng: np.random.Generator, sources: Sources, language: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
    image, number = scenes.draw_alone(rng, sources, TRAIN)
    first = "en" if chance(rng, ENGLISH) else language
    others = [other for other in rng.permutation(sources.languages).tolist() if other != first]
    names = sources.sprites(TRAIN).names
    return image, [(ask(rng, "name", each), names[each][number]) for each in (first, *others[: LANGUAGES - 1])]


def _shape(rng: np.random.Generator, sources: Sources, language: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
    scene = scenes.draw_shapes(rng, sources, language, TRAIN, most=1)
    (fact, *_) = scene.facts
    # What a shape is called is also what kind of shape it is.
    asked = [(ask(rng, "name", language), fact.slots.get("thing", fact.answer))]
    if fact.kind in ("colour", "shape"):
        asked.append((ask(rng, fact.kind, language, **fact.slots), fact.answer))
    return scene.image, [asked[place] for place in rng.permutation(len(asked))]
