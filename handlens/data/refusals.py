"""Questions whose answer may be that there is none: things that are not in the picture, and text where there is none.

Each maker asks in the same words where there is an answer and where there is none, the one as often as the other: only
the picture tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from handlens.data import scenes
from handlens.data.charts import draw_chart
from handlens.data.empty import photo
from handlens.data.forms import draw_form, draw_menu
from handlens.data.questions import LANGUAGES, ask, phrases
from handlens.data.raster import Canvas
from handlens.data.receipts import draw_invoice, draw_receipt
from handlens.data.sample import Sample
from handlens.data.screens import draw_screen
from handlens.data.sources import Sources
from handlens.data.structured import Drawn, Fact, chance, further, pick
from handlens.data.tables import draw_table
from handlens.data.text import clean, ink, line, notice, paragraph, passage, sized

Draw = Callable[[np.random.Generator, Sources, str, str], Drawn]
DOCUMENTS: tuple[Draw, ...] = (draw_table, draw_receipt, draw_invoice, draw_form, draw_menu, draw_chart, draw_screen)
SCENES = (scenes.draw_many, scenes.draw_places, scenes.draw_shapes)
#: Pictures without any text on them.
TEXTLESS = (scenes.draw_shapes, scenes.draw_creatures)
TEXTS = (line, paragraph, notice)


def absent(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """A question about a document or a scene that holds the answer or, as often, does not."""
    there = chance(rng, 0.5)
    return pick(rng, (_of_document, _of_scene))(rng, sources, language, split, there)


def _of_scene(rng: np.random.Generator, sources: Sources, language: str, split: str, there: bool) -> Sample:
    scene = pick(rng, SCENES)(rng, sources, language, split)
    fact = pick(rng, scene.facts if there else scene.absent)
    question = ask(rng, fact.kind, language, **fact.slots)
    others = [other for other in (*scene.facts, *scene.later, *scene.absent) if other is not fact]
    return Sample(scene.image, question, fact.answer, "absent", language, more=further(rng, language, others))


def _of_document(rng: np.random.Generator, sources: Sources, language: str, split: str, there: bool) -> Sample:
    while True:
        draw = pick(rng, DOCUMENTS)
        document = draw(rng, sources, language, split)
        known = [fact for fact in document.facts if fact.slots]
        if not there:
            # What another document holds: mostly one of the same kind, so that the question suits this one too.
            other = draw if chance(rng, 0.8) else pick(rng, DOCUMENTS)
            known = _strange(rng, document, other(rng, sources, language, split), language)
        if known:
            break
    kind = pick(rng, sorted({fact.kind for fact in known}))
    fact = pick(rng, [fact for fact in known if fact.kind == kind])
    question, answer = ask(rng, kind, language, **fact.slots), fact.answer
    image, characters, centres = document.canvas.finish()
    (own,) = rng.spawn(1)  # further questions leave the sample as it is
    own_facts = [other for other in document.facts if other.slots and other is not fact]
    strange = _strange(own, document, draw(own, sources, language, split), language)
    count = max(min(len(own_facts), len(strange)), 1)  # as many with an answer as without one
    more = further(own, language, [*_some(own, own_facts, count), *_some(own, strange, count)])
    return Sample(image, question, answer, "absent", language, characters, centres, more)


def _some(rng: np.random.Generator, facts: Sequence[Fact], count: int) -> list[Fact]:
    return [facts[i] for i in rng.permutation(len(facts))[:count]]


def _strange(rng: np.random.Generator, document: Drawn, other: Drawn, language: str) -> list[Fact]:
    """What the other document holds and this one lacks, with the answer that it is not there."""
    missing = map(_missing_from(rng, document), other.facts)
    return [replace(fact, answer=phrases(language).absent) for fact in missing if fact is not None]


def _missing_from(rng: np.random.Generator, document: Drawn) -> Callable[[Fact], Fact | None]:
    """Makes of a fact of another document one that this document lacks; None where it may have it."""
    reading = " ".join(document.reading.casefold().split())
    named: dict[str, set[str]] = {}
    for fact in document.facts:
        for slot, value in fact.slots.items():
            named.setdefault(slot, set()).add(_plain(value))

    def missing(fact: Fact) -> Fact | None:
        slots = dict(fact.slots)
        foreign = [
            slot
            for slot, value in slots.items()
            if (plain := _plain(value))
            and plain not in reading
            and not any(scenes.alike(plain, own) for own in named.get(slot, ()))
        ]
        if not foreign:
            return None
        # A row that is there and a column that is not: all but one of the slots may be this document's own.
        strange = pick(rng, foreign)
        for slot in slots:
            if slot != strange and slot in named and chance(rng, 0.5):
                slots[slot] = pick(rng, sorted(own for f in document.facts if (own := f.slots.get(slot)) is not None))
        return replace(fact, slots=slots)

    return missing


def _plain(value: str) -> str:
    """A label without its case and its colon."""
    return " ".join(value.casefold().rstrip(": ").split())


def writing(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """Whether there is text in a picture, yes as often as no; or the request to read it where there is none."""
    words = phrases(language)
    if chance(rng, 1 / 3):
        sample = pick(rng, TEXTS)(rng, sources, language, split)
        return replace(sample, question=ask(rng, "has-text", language), answer=words.yes, task="writing")
    picture = photo if chance(rng, 0.3) else pick(rng, TEXTLESS)
    image = picture(rng, sources, language, split).image
    kind, answer = ("has-text", words.no) if chance(rng, 0.5) else ("read", words.no_text)
    return Sample(image, ask(rng, kind, language), answer, "writing", language)


def language_of(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    """The name of the language that a text is written in, asked in the same or in another one."""
    written = pick(rng, [known for known in LANGUAGES if known in sources.languages])
    face, colours, width = sources.face(rng, written, split), ink(rng), int(rng.integers(200, 449))
    text = clean(face, passage(rng, sources, written, split, int(rng.integers(40, 400))))
    font = sized(face, rng.uniform(13, 24), text)
    lines, step = Canvas.wrap(text, font, width - 2 * font.size), round(font.size * rng.uniform(1.2, 1.6))
    canvas = Canvas(width, len(lines) * step + round(font.size), colours.paper)
    for row, text in enumerate(lines):
        canvas.text(font.size, font.size / 2 + row * step, text, font, colours.text)
    image, characters, centres = canvas.finish()
    answer = phrases(language).languages[written]
    return Sample(image, ask(rng, "language", language), answer, "language", language, characters, centres)
