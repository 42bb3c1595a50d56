"""Pages of about twenty lines laid out by Chromium: headings, paragraphs, lists, one or two columns; held-out text."""

import html
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from handlens.data.sample import HELD_OUT
from handlens.data.sources import Font, Sources, pick
from handlens.data.structured import chance, phrase
from handlens.data.text import clean, passage
from handlens.eval.benchmarks.lines import known, read
from handlens.eval.browser import Browser, css
from handlens.eval.metrics import character_errors, unmarked
from handlens.eval.suite import Bar, Drawn, Item, Scores, Suite, face_to_read, seeded

LONGEST_SIDE = 672
#: What a paper and its ink may look like.
COLOURS = (("#fff", "#000"), ("#fff", "#222"), ("#fdf6e3", "#333"), ("#f4f4f6", "#111"), ("#fff", "#1a2a4a"))
#: Takes words off the end until the page is not too high, and tells what is left: tags and texts.
FIT = """() => {
  const page = document.getElementById("page"), high = %d;
  while (document.documentElement.getBoundingClientRect().height > high || page.scrollWidth > page.clientWidth + 1) {
    let last = page.lastElementChild;
    if (!last) break;
    if (last.tagName === "UL") last = last.lastElementChild || last;
    const words = last.textContent.split(" ");
    words.pop();
    last.textContent = words.join(" ");
    if (!words.length) last.remove();
  }
  while (page.lastElementChild && /^(H1|H2)$/.test(page.lastElementChild.tagName)) page.lastElementChild.remove();
  return [...page.querySelectorAll("h1,h2,p,li")].map(e => [e.tagName, e.textContent]).filter(e => e[1].trim());
}"""
MARKS = {"H1": "# ", "H2": "## ", "P": "", "LI": "- "}


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    scripts = known(sources)
    turn = ["Latin", "Latin", *scripts] if "Latin" in scripts else list(scripts)
    with Browser() as browser:
        for i in range(n):
            rng = seeded(seed, "pages", i)
            script = turn[i % len(turn)]
            language = pick(rng, scripts[script])
            face = face_to_read(rng, sources, language)
            width = int(rng.integers(448, LONGEST_SIDE + 1))
            columns = 2 if width > 600 and chance(rng, 0.25) else 1
            image, blocks = browser.draw(
                page(rng, sources, language, face, width, columns), width, FIT % min(LONGEST_SIDE, width * 5 // 4)
            )
            truth = "\n\n".join(MARKS[tag] + " ".join(text.split()) for tag, text in blocks)
            group = script if columns == 1 else "two columns"
            yield Drawn(image, read(language), truth, group, language)


def page(rng: np.random.Generator, sources: Sources, language: str, face: Font, width: int, columns: int) -> str:
    """The page with more text than fits."""

    def text(length: int) -> str:
        return html.escape(clean(face, passage(rng, sources, language, HELD_OUT, length)))

    def title() -> str:
        return html.escape(clean(face, phrase(rng, sources, language, HELD_OUT, 4, 30)))

    blocks = [f"<h1>{title()}</h1>"] if chance(rng, 0.6) else []
    for _ in range(8):
        kind = rng.random()
        if kind < 0.6:
            blocks.append(f"<p>{text(int(rng.integers(120, 420)))}</p>")
        elif kind < 0.8:
            blocks.append("<ul>" + "".join(f"<li>{text(int(rng.integers(20, 70)))}</li>" for _ in range(4)) + "</ul>")
        else:
            blocks.append(f"<h2>{title()}</h2>")
    paper, ink = pick(rng, COLOURS)
    size, leading = int(rng.integers(16, 21)), rng.uniform(1.3, 1.65)
    align = pick(rng, ("left", "left", "justify"))
    return f"""<!doctype html><html lang="{language}"><meta charset="utf-8"><style>{css(sources, face)}
* {{ margin: 0; padding: 0; box-sizing: border-box }}
html {{ background: {paper}; color: {ink} }}
body {{ font: {size}px/{leading:.2f} held-out; padding: {int(rng.integers(10, 34))}px; hyphens: none }}
#page {{ column-count: {columns}; column-gap: 28px; column-fill: balance; text-align: {align} }}
h1 {{ font-size: {rng.uniform(1.3, 1.7):.2f}em; column-span: all; text-align: {pick(rng, ("left", "center"))} }}
h2 {{ font-size: 1.15em; margin-top: .5em }}
p {{ margin: .4em 0; text-indent: {pick(rng, ("0", "0", "1.2em"))} }} ul {{ margin: .4em 0 .4em 1.4em }}
</style><body><div id="page">{"".join(blocks)}</div>"""


def score(item: Item, answer: str) -> Scores:
    return {"CER": character_errors(unmarked(item.truth), unmarked(answer))}


SUITE = Suite(
    name="pages",
    about="pages of about 20 lines, laid out by Chromium",
    score=score,
    measures={"CER": "less"},
    bars=(Bar("CER", "", 0.06), Bar("CER", "Latin", 0.06)),
    max_new_tokens=1024,
    transcribes=True,
    peers="text",
    build=build,
)
