"""Blocks of lines out of real PDFs with a text layer: manuals in Debian packages, drawn by pdftoppm. Never shipped."""

import gzip
import io
import itertools
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from handlens.data import packages as clients
from handlens.data.alphabets import OWN_SCRIPT, characters, letters
from handlens.data.sources import Sources
from handlens.data.structured import MAX_AREA
from handlens.eval.benchmarks.lines import SCRIPTS, read
from handlens.eval.metrics import LIGATURES, character_errors, unmarked
from handlens.eval.suite import Bar, Drawn, Item, Missing, Scores, Suite, seeded

#: Debian package, file, language. None of them is among the packages that training text comes from.
DOCUMENTS = (
    ("debian-history", "**/project-history.en.pdf", "en"),
    ("debian-policy", "**/policy.pdf.gz", "en"),
    ("debian-history", "**/project-history.de.pdf", "de"),
    ("debian-faq-fr", "**/debian-faq.fr.pdf.gz", "fr"),
    ("debian-history", "**/project-history.es.pdf", "es"),
    ("debian-faq-it", "**/debian-faq.it.pdf.gz", "it"),
    ("debian-history", "**/project-history.pt.pdf", "pt"),
    ("maint-guide-vi", "**/maint-guide.vi.pdf", "vi"),
    ("debian-faq-ru", "**/debian-faq.ru.pdf.gz", "ru"),
    ("debian-history", "**/project-history.ru.pdf", "ru"),
)
#: Pixels from line to line: what is drawn from, and the least where the page is wide. Pixels of a picture's width.
PITCH, LEAST_PITCH, WIDEST = (19, 26), 17, 1000
MOST_LINES = 12


@dataclass(frozen=True)
class Line:
    """A printed line: its box in points from the top left of its page, and its text."""

    left: float
    top: float
    right: float
    bottom: float
    text: str

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    if lacking := [program for program in ("pdftotext", "pdftoppm", "apt-get", "dpkg") if not shutil.which(program)]:
        raise Missing(f"{', '.join(lacking)} not found; on Debian: apt-get install poppler-utils")
    with tempfile.TemporaryDirectory() as folder:
        documents = []
        for package, pattern, language in DOCUMENTS:
            unpacked = clients.unpacked("apt", package, "", packages)
            path = clients.files(unpacked, [pattern])[0]
            plain = Path(folder, path.name.removesuffix(".gz"))
            plain.write_bytes(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
            documents.append((plain, pages(plain), language))
        for i in range(n):
            rng = seeded(seed, "pdfs", i)
            path, found, language = documents[i % len(documents)]
            while True:
                number = int(rng.integers(len(found)))
                chosen = block(rng, found[number], language)
                if chosen:
                    break
            text = "\n".join(line.text for line in chosen)
            group = next(script for script, languages in SCRIPTS.items() if language in languages)
            yield Drawn(cut(rng, path, number, found[number], chosen), read(language), text, group, language)


def pages(path: Path) -> list[list[Line]]:
    """The lines of each page, in reading order."""
    ran = subprocess.run(["pdftotext", "-bbox-layout", str(path), "-"], capture_output=True, check=True)
    # Control characters, which some text layers hold, are not XML.
    text = bytes(byte for byte in ran.stdout if byte >= 32 or byte in b"\n\t")
    tree = ElementTree.fromstring(text)
    return [[_line(line) for line in _all(page, "line")] for page in _all(tree, "page")]


def _all(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return element.iter(f"{{http://www.w3.org/1999/xhtml}}{name}")


def _line(element: ElementTree.Element) -> Line:
    box = (float(element.attrib[key]) for key in ("xMin", "yMin", "xMax", "yMax"))
    return Line(*box, " ".join(word.text or "" for word in _all(element, "word")).translate(LIGATURES))


def block(rng: np.random.Generator, lines: Sequence[Line], language: str) -> list[Line]:
    """Some lines one below the other, of plain text; [] where the page has none at the place that was drawn."""
    if len(lines) < 4:
        return []
    start = int(rng.integers(len(lines) - 2))
    chosen = list(lines[start : start + int(rng.integers(2, MOST_LINES + 1))])
    steps = [below.middle - above.middle for above, below in itertools.pairwise(chosen)]
    sizes = [line.bottom - line.top for line in chosen]
    top, bottom = chosen[0].middle, chosen[-1].middle
    others = [line for line in lines if line not in chosen and top - 4 < line.middle < bottom + 4]
    one_column = not others and min(steps) > 0.5 * max(sizes) and max(steps) < 4 * min(sizes)
    readable = pitch(chosen) * WIDEST / width(chosen) >= LEAST_PITCH and max(sizes) < 1.7 * min(sizes)
    return chosen if one_column and readable and is_plain([line.text for line in chosen], language) else []


def is_plain(texts: Sequence[str], language: str) -> bool:
    """Whether these lines are text in the characters of the language, and no table of contents."""
    text = "".join(texts).replace(" ", "")
    enough = sum(map(str.isalpha, text)) > 0.7 * len(text)
    own = language not in OWN_SCRIPT or sum(sign in letters(language) for sign in text) > 0.5 * len(text)
    return enough and own and set(text) <= characters(language) and not any(". . ." in line for line in texts)


def pitch(chosen: Sequence[Line]) -> float:
    """The points from line to line, or the height of a line where they stand further apart."""
    steps = [below.middle - above.middle for above, below in itertools.pairwise(chosen)]
    return min([float(np.median([line.bottom - line.top for line in chosen])), *steps])


def width(chosen: Sequence[Line]) -> float:
    """The points from the left of the lines to their right, with a margin."""
    return max(line.right for line in chosen) - min(line.left for line in chosen) + 12


def cut(rng: np.random.Generator, path: Path, number: int, lines: Sequence[Line], chosen: Sequence[Line]) -> np.ndarray:
    """The picture of the lines, no larger than MAX_AREA: as large as a pitch that is drawn, or as WIDEST allows."""
    above = max((line.middle for line in lines if line.middle < chosen[0].middle), default=0)
    below = min((line.middle for line in lines if line.middle > chosen[-1].middle), default=10_000)
    top = max(chosen[0].top - 3, (above + chosen[0].middle) / 2)
    bottom = min(chosen[-1].bottom + 3, (below + chosen[-1].middle) / 2)
    wide, high = width(chosen), bottom - top
    scale = min(rng.uniform(*PITCH) / pitch(chosen), WIDEST / wide, (MAX_AREA / (wide * high)) ** 0.5)
    left = min(line.left for line in chosen) - 6
    corner = [max(round(side * scale), 0) for side in (left, top, wide, high)]
    box = [part for name, value in zip("xyWH", corner) for part in (f"-{name}", str(value))]
    page = str(number + 1)
    command = ["pdftoppm", "-r", f"{72 * scale:.3f}", "-f", page, "-l", page, *box, str(path)]
    ran = subprocess.run(command, capture_output=True, check=True)  # a PPM image
    with Image.open(io.BytesIO(ran.stdout)) as image:
        return np.asarray(image.convert("RGB"))


def score(item: Item, answer: str) -> Scores:
    return {"CER": character_errors(unmarked(item.truth), unmarked(answer))}


SUITE = Suite(
    name="pdfs",
    about="blocks of lines out of real PDFs (Debian manuals)",
    score=score,
    measures={"CER": "less"},
    bars=(Bar("CER", "", 0.10, 0.25),),
    max_new_tokens=512,
    transcribes=True,
    peers="text",
    build=build,
)
