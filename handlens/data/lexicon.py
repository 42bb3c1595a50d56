"""The parts "words" and "names" of the prepared folder: plain lists, split by a hash of the case-folded entry."""

import gzip
import hashlib
import json
import lzma
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from pathlib import Path

from handlens.data.alphabets import OWN_SCRIPT, characters, letters
from handlens.data.packages import Rows, files, write_list
from handlens.data.sample import HELD_OUT, SPLITS, TRAIN
from handlens.data.written import WRITTEN

#: The share of words and names, in 256ths, that is held out.
HELD_OUT_SHARE = 20
LONGEST_WORD = 24
LATIN = frozenset("abcdefghijklmnopqrstuvwxyz")


def held_out(entry: str) -> bool:
    """Whether a word or name is on the held-out side: the same answer for every case, language and list."""
    return hashlib.sha256(entry.casefold().encode()).digest()[0] < HELD_OUT_SHARE


def write_split(folder: Path, name: str, entries: Iterable[str]) -> None:
    """The two sides of a list."""
    entries = tuple(dict.fromkeys(entries))
    write_list(folder / f"{name}.{TRAIN}.xz", (entry for entry in entries if not held_out(entry)))
    write_list(folder / f"{name}.{HELD_OUT}.xz", (entry for entry in entries if held_out(entry)))


def write_words(rows: Rows, folder: Path, out: Path) -> dict:
    """The most frequent words of each language, in the case that its texts and names give them."""
    for row, package in rows:
        language = row["language"]
        (source,) = files(package, row["files"])
        cased = _casing(out, language)
        words = (cased.get(word, word) for word in _frequent(source))
        if language == "el":  # the list is case-folded, and so without the sigma that ends words
            words = (word[:-1] + "ς" if word.endswith("σ") else word for word in words)
        words = dict.fromkeys(word for word in words if is_word(word, language))
        write_split(folder, language, list(words)[: row["most"]])
    return {}


def _frequent(source: Path) -> Iterator[str]:
    """The words of a wordfreq list, the frequent ones first: a header, then lists of equally frequent words."""
    import msgpack

    for words in msgpack.unpackb(gzip.decompress(source.read_bytes()))[1:]:
        yield from words


def is_word(word: str, language: str) -> bool:
    """Whether a word is made of letters of the language; it may hold hyphens and apostrophes."""
    body = word.casefold().replace("'", "").replace("-", "").replace("’", "")
    own = letters(language) if language in OWN_SCRIPT else letters(language) | LATIN
    return bool(body) and len(word) <= LONGEST_WORD and body.isalpha() and set(word.lower()) - set("'-’") <= own


def _casing(out: Path, language: str) -> dict[str, str]:
    """How texts write each word inside of sentences most often, by its case-folded form; names where no text has it."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for split in SPLITS:
        for line in _read(out / "text" / f"{language}.{split}.xz"):
            for before, word in pairwise(line.split()):
                if before[-1].isalnum() or before[-1] == ",":
                    word = word.strip(".,;:!?()«»„“”\"'…")
                    counts[word.casefold()][word] += 1
    names = {
        name.casefold(): name
        for kind in ("city", "country", "first", "last")
        for split in SPLITS
        for name in _read(out / "names" / f"{language}.{kind}.{split}.xz")
    }
    best = {key: forms.most_common(1)[0] for key, forms in counts.items()}
    return names | {key: form for key, (form, times) in best.items() if times >= 2 and not form.isupper()}


def _read(path: Path) -> list[str]:
    """The lines of a list; none if it is not there."""
    return lzma.decompress(path.read_bytes()).decode("utf-8").splitlines() if path.exists() else []


def write_names(rows: Rows, folder: Path, out: Path) -> dict:
    """Lists of names of people, companies, places and things of each language."""
    entries: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row, package in rows:
        language = row["language"]
        for kind, name in READERS[row["reader"]](row, package):
            name = " ".join(unicodedata.normalize("NFC", name).split())
            if name and set(name) <= characters(language):
                entries[language, kind].append(name)
    entries |= {key: names.split(", ") for key, names in WRITTEN.items()}
    for (language, kind), names in entries.items():
        if min(Counter(map(held_out, names))[side] for side in (True, False)) >= FEWEST:
            write_split(folder, f"{language}.{kind}", names)
    for language, split in product({language for language, _ in entries}, SPLITS):
        first, last = (_read(folder / f"{language}.{kind}.{split}.xz") for kind in ("first", "last"))
        if first and last:
            write_list(folder / f"{language}.person.{split}.xz", _people(first, last, language in FAMILY_FIRST))
    return {}


def _people(first: list[str], last: list[str], family_first: bool) -> list[str]:
    """Names of people: those of one side of the split have both parts from there."""
    rng = random.Random(0)
    pairs = ((rng.choice(first), rng.choice(last)) for _ in range(PEOPLE))
    return list(dict.fromkeys(" ".join(reversed(pair) if family_first else pair) for pair in pairs))


#: Kinds of names that faker invents, and how many are drawn.
INVENTED = {
    "first_name": ("first", 3000),
    "last_name": ("last", 3000),
    "company": ("company", 1500),
    "street_address": ("street", 1500),
    "city": ("city", 1500),
    "job": ("job", 1000),
}
#: Where the family name comes first.
FAMILY_FIRST = {"vi"}
PEOPLE = 3000
#: A kind of names with fewer on one side is left out.
FEWEST = 3


def _invented(row: dict, package: Path) -> Iterator[tuple[str, str]]:
    from faker import Faker

    fake = Faker(row["locale"])
    fake.seed_instance(0)
    for method, (kind, times) in INVENTED.items():
        for name in sorted({getattr(fake, method)() for _ in range(times)}):
            if (row["language"], kind) not in WRITTEN:
                yield kind, name


def _cldr(kind: str, table: str) -> Callable[[dict, Path], Iterator[tuple[str, str]]]:
    """A reader of one table of localised names: codes of two letters, and no variants of names."""

    def read(row: dict, package: Path) -> Iterator[tuple[str, str]]:
        content = json.loads((package / f"package/main/{row['language']}/{table}.json").read_text(encoding="utf-8"))
        names = content["main"][row["language"]]["localeDisplayNames"][table]
        yield from ((kind, name) for code, name in names.items() if len(code) == 2 and code.isalpha() and code != "ZZ")

    return read


#: Emoji of food, clothes, tools and machines: what a shop may sell. First and last code points.
GOODS = (
    *((0x1F32D, 0x1F330), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB), (0x1FAD0, 0x1FADB)),
    *((0x1F451, 0x1F462), (0x1F488, 0x1F490), (0x1F4BB, 0x1F4F7), (0x1F526, 0x1F52D), (0x1F97B, 0x1F97F)),
    *((0x1F9E2, 0x1F9F8), (0x1FA70, 0x1FA7C), (0x1FA91, 0x1FAAF), (0x1F380, 0x1F381), (0x1F3B7, 0x1F3C0)),
)


def _goods(row: dict, package: Path) -> Iterator[tuple[str, str]]:
    path = package / f"package/annotations/{row['language']}/annotations.json"
    for emoji, names in json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"].items():
        if len(emoji) == 1 and any(first <= ord(emoji) <= last for first, last in GOODS) and "tts" in names:
            yield "product", names["tts"][0]


READERS: dict[str, Callable[[dict, Path], Iterator[tuple[str, str]]]] = {
    "faker": _invented,
    "countries": _cldr("country", "territories"),
    "languages": _cldr("language", "languages"),
    "goods": _goods,
}
