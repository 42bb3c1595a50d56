"""A drawn sample -> its text as handlens reads it line by line, with mistakes; and its lines, each as a sample.

The layout is found as in use (handlens/layout.py), and what stands in a line is known from the centres of its glyphs.
So a decoder learns to answer out of text that it read itself, at a tenth of what pictures of whole pages cost, and a
model learns to read what it is shown one line at a time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from handlens.data.questions import ask, phrases, templates
from handlens.data.sample import Sample
from handlens.data.structured import chance
from handlens.layout import Box, Layout, find_layout
from handlens.reading import ASPECT, LOOK, READ, SCRIPTS, is_reading, markdown

#: How often a line is misread, and what stands there then: a letter that looks alike, else one of the same text.
MISREAD = 0.2
ALIKE = ("Il1i|!", "O0oQ", "5Ss", "8B3", "ceo", "uvn", "mnr", "tfl", "2Zz", "gq9", ".,", ";:", "ąa", "łlt", "şsš")
#: How often a mark that is no text is read as one, and what it is read as.
JUNK, MARKS = 0.5, ("-", "|", "I", "l", "T", "o", ".", "t t", "T T T", "- -", "1", "F", "0", "–", "i i", "~", "K")
#: How often text loses its accents, as it does where it is asked for in a language without them.
UNACCENTED = 0.1
ACCENTS = str.maketrans("àáâãäåąçćčďéèêëęěíìîïňńóòôõöøúùûüůýřşšťžźżłğ", "aaaaaaacccdeeeeeeiiiinnoooooouuuuuyrsstzzzlg")
#: How often a line is asked for in another language than its own: English, or one that tells its letters.
OTHER_LANGUAGE = 0.3
#: How often a text is shown of which nothing is asked but to read it, and that it is asked besides.
ONLY_READ, READ_TOO = 0.3, 0.1
#: Longer answers are the text itself, or a table of it.
MOST_ASKED = 80
#: The least characters of an answer that is known again where blanks part its letters.
SPACED = 5
#: The most characters of a text that questions are asked about.
LONGEST = 1200
WORD = re.compile(r"[^\s|]+")


@dataclass(frozen=True)
class Transcript:
    """What was found of a sample: the lines with their truth, and the layout that they stand in."""

    sample: Sample
    layout: Layout
    truth: dict[Box, str]  # of the parts of lines

    @classmethod
    def of(cls, sample: Sample) -> "Transcript | None":
        """None where no lines are found, or where the picture was turned: there glyphs are no more where they were."""
        layout = find_layout(Image.fromarray(sample.image))
        if not layout.blocks or layout.image.size != sample.image.shape[1::-1]:
            return None
        parts = [part for line in layout.lines for part in layout.parts(line, ASPECT)]
        return cls(sample, layout, {part: _text_in(sample, part) for part in parts})

    def text(self, rng: np.random.Generator) -> str:
        """The whole as Markdown, misread here and there, but not where one of the answers stands."""
        kept = [self.sample.answer, *(answer for _, answer in self.sample.more)]
        letters = [letter for text in self.truth.values() for letter in text if not letter.isspace()]
        unaccented = chance(rng, UNACCENTED)

        def read(line: Box) -> str:
            said = []
            for part in self.layout.parts(line, ASPECT):
                truth = self.truth[part]
                if not truth:
                    truth = MARKS[rng.integers(len(MARKS))] if chance(rng, JUNK) else ""
                elif not any(answer_stands_in(answer, truth) for answer in kept):
                    if unaccented:
                        truth = truth.translate(ACCENTS)
                    if chance(rng, MISREAD):
                        truth = misread(truth, letters, rng)
                said.append(truth)
            return " ".join(filter(None, said))

        return "".join(markdown(self.layout, read))

    def questions(self, rng: np.random.Generator, text: str) -> list[tuple[str, str]]:
        """What is asked about the text, if anything, each with its answer: what the text says, that it is not there, or
        a sign."""
        sample = self.sample
        asked = [(sample.question, sample.answer), *sample.more]
        asked = [asked[place] for place in rng.permutation(len(asked))]
        if not sample.characters:
            return [(question, LOOK) for question, _ in asked]
        reads = asks_for_text(sample)
        if reads:
            if not sample.more and not chance(rng, ONLY_READ):
                return []
            asked = [pair for pair in asked if pair[0] != sample.question]
        if reads or chance(rng, READ_TOO):
            asked.insert(int(rng.integers(len(asked) + 1)), (ask(rng, "read", sample.language), READ))
        words = phrases(sample.language)
        spoken = {words.absent, words.yes, words.no, READ, *words.languages.values()}
        said = {answer: answer in spoken or answer_stands_in(answer, text) for _, answer in asked}
        if sample.task in ("chart", "plot") and not all(said.values()):
            # Values that have to be told from the axis stand there by chance.
            title = text.lstrip("| ").partition("\n")[0]
            said = {answer: answer in spoken or answer in title for answer in said}
        return [(question, answer if said[answer] else LOOK) for question, answer in asked]

    def lines(self, rng: np.random.Generator, count: int) -> list[Sample]:
        """Some of the lines as samples of their own."""
        parts = list(self.truth)
        weights = np.array([1.0 if self.truth[part] else 0.15 for part in parts])
        chosen = rng.choice(len(parts), min(count, len(parts)), replace=False, p=weights / weights.sum())
        return [self._line(parts[place], rng) for place in chosen]

    def _line(self, part: Box, rng: np.random.Generator) -> Sample:
        language = self.sample.language
        asked = language
        if chance(rng, OTHER_LANGUAGE):
            asked = ("en", *SCRIPTS)[rng.integers(1 + len(SCRIPTS))]
        picture = np.asarray(self.layout.picture(part))
        answer = self.truth[part] or phrases(asked).no_text
        return Sample(picture, templates("read", asked)[0], answer, "line", language)


def asks_for_text(sample: Sample) -> bool:
    """Whether a sample asks for its text, or for much of it."""
    return is_reading(sample.question) or len(sample.answer) > MOST_ASKED


def answer_stands_in(answer: str, text: str) -> bool:
    """Whether the words of an answer stand in a text, one after another, whatever stands between cells and lines; a
    longer one may have been drawn letter by letter."""
    words, found = WORD.findall(answer), WORD.findall(text)
    whole = "".join(words)
    return f" {' '.join(words)} " in f" {' '.join(found)} " or (len(whole) >= SPACED and whole in "".join(found))


def misread(text: str, letters: Sequence[str], rng: np.random.Generator) -> str:
    """The text with a mistake or two such as a reader makes."""
    found = list(text)
    for _ in range(1 + int(chance(rng, 0.3))):
        place = int(rng.integers(len(found)))
        letter = found[place]
        alike = next((group for group in ALIKE if letter in group), "")
        kind = rng.random()
        if kind < 0.6:
            choices = alike if alike and chance(rng, 0.7) else letters
            found[place] = choices[rng.integers(len(choices))]
        elif kind < 0.8 and len(found) > 1:
            del found[place]
        else:
            found.insert(place, letters[rng.integers(len(letters))])
    return "".join(found)


def _text_in(sample: Sample, box: Box) -> str:
    """The characters whose centres lie in a box, in the order that they were drawn in."""
    x, y = sample.centres[:, 0], sample.centres[:, 1]
    inside = (x >= box.left) & (x < box.right) & (y >= box.top) & (y < box.bottom)
    pieces: list[tuple[float, str]] = []
    last, piece, first = -2, "", 0.0
    for place in np.flatnonzero(inside):
        if place != last + 1 or (last >= 0 and x[place] < x[last] - 2):  # what stands to the left was drawn later
            pieces.append((first, piece))
            piece, first = "", float(x[place])
        piece += sample.characters[place]
        last = place
    pieces.append((first, piece))
    # Pieces of a line may be drawn in any order.
    return re.sub(r"\s+", " ", " ".join(piece.strip() for _, piece in sorted(pieces) if piece.strip()))
