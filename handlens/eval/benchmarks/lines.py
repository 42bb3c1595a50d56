"""Lines of text in fonts and words that training never saw: drawn by the makers that training uses, clean; and the same
degraded. Strings that no dictionary has are a group of their own: a language cannot be guessed there."""

from collections.abc import Iterator
from pathlib import Path

from handlens.data import strings
from handlens.data.degrade import degrade
from handlens.data.questions import templates
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Sources, pick
from handlens.data.text import passage, strip, words
from handlens.eval.metrics import character_errors, exact
from handlens.eval.suite import Bar, Drawn, Item, Scores, Suite, seeded

WIDEST = 560
SCRIPTS = {
    "Latin": ("en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "tr", "vi"),
    "Cyrillic": ("ru", "uk"),
    "Greek": ("el",),
    "Chinese": ("zh",),
    "Japanese": ("ja",),
    "Korean": ("ko",),
}
#: Of a round of items: Latin lines, one line of each other script, random strings, a degraded line.
LATIN, RANDOM = 3, 2


def known(sources: Sources) -> dict[str, tuple[str, ...]]:
    """The scripts that the sources hold, each with its languages."""
    found = {
        script: tuple(code for code in languages if code in sources.languages) for script, languages in SCRIPTS.items()
    }
    return {script: languages for script, languages in found.items() if languages}


def read(language: str) -> str:
    """The question that asks for plain reading."""
    return templates("read", language)[0]


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    scripts = known(sources)
    others = [script for script in scripts if script != "Latin"]
    turn = ["Latin"] * LATIN * ("Latin" in scripts) + others * 2 + ["random strings"] * RANDOM + ["degraded"] * 2
    for i in range(n):
        rng = seeded(seed, "lines", i)
        group = turn[i % len(turn)]
        # Random strings are ASCII: readers of other scripts alone are not asked for them.
        choices = scripts.get("Latin", sources.languages) if group == "random strings" else sources.languages
        language = pick(rng, scripts.get(group, choices))
        length = int(rng.integers(10, 64))
        if group == "random strings":
            text = " ".join(strings.any_string(rng) for _ in range(rng.integers(1, 5)))
        elif rng.random() < 0.75:
            text = passage(rng, sources, language, HELD_OUT, length)
        else:
            text = " ".join(words(rng, sources, language, HELD_OUT, length // 6 + 1))
        sample = strip(rng, sources, language, HELD_OUT, text, "line", WIDEST)
        image = sample.image
        if group == "degraded":
            image, _ = degrade(image, sample.centres, rng, 1.0)
        yield Drawn(image, read(language), sample.answer, group, language)


def score(item: Item, answer: str) -> Scores:
    return {"CER": character_errors(item.truth, answer), "exact": exact(item.truth, answer)}


SUITE = Suite(
    name="lines",
    about="one line of text, held-out fonts and words",
    score=score,
    measures={"CER": "less", "exact": "more"},
    bars=(
        Bar("CER", "Latin", 0.02, 0.06),
        Bar("CER", "Cyrillic", 0.04, 0.12),
        Bar("CER", "Greek", 0.04, 0.12),
        Bar("CER", "Chinese", 0.12),
    ),
    max_new_tokens=128,
    peers="line",
    build=build,
)
