"""The part "text" of the prepared folder: prose out of web pages, manual pages and fortune files, without markup."""

import gzip
import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from handlens.data.alphabets import OWN_SCRIPT, characters, letters
from handlens.data.packages import Rows, files, write_list
from handlens.data.sample import HELD_OUT, TRAIN

#: Shorter lines are titles; longer paragraphs are cut at the ends of sentences.
SHORTEST, LONGEST = 30, 320
WORDS = 4
#: A line with one of these is a path, an option, a formula or a table.
MARKUP = frozenset("{}<>|\\^~`=@#_[]$")
TRACES = ("--", "...", "//", " ,", "( ")
ENDS = tuple('.!?…:;»”“"’)')
#: Untranslated paragraphs of a translated book are told by these words, which no other language read here has.
ENGLISH = {"the", "and", "you", "with", "for", "this", "are", "that", "from", "which", "your"}


def write_text(rows: Rows, folder: Path, out: Path) -> dict:
    """The lines of each language in `folder`, no two alike; the last fifth of each row is held out.

    Rows in English come first: what other languages left untranslated is found among their lines.
    """
    kept: dict[str, list[str]] = defaultdict(list)
    seen: dict[str, set[str]] = defaultdict(set)
    for row, package in rows:
        language = row["language"]
        found = []
        for line in lines(paragraphs(files(package, row["files"]), row["reader"]), language):
            key = fold(line)
            if key not in seen[language] and key not in seen["en"]:
                seen[language].add(key)
                found.append(line)
        found = evenly(found, row["most"])
        cut = len(found) - len(found) // 5
        kept[f"{language}.{TRAIN}"] += found[:cut]
        kept[f"{language}.{HELD_OUT}"] += found[cut:]
    for name, side in kept.items():
        write_list(folder / f"{name}.xz", side)
    return {}


def evenly(found: list[str], most: int) -> list[str]:
    """At most about `most` characters, taken evenly from the whole and in order."""
    total = sum(map(len, found))
    if total <= most:
        return found
    wanted = round(len(found) * most / total)
    return [found[i * len(found) // wanted] for i in range(wanted)]


def markup(text: str) -> Iterator[str]:
    """The paragraphs of HTML, and of everything else that calls them <p>."""
    for paragraph in re.findall(r"<p(?:\s[^>]*)?>(.*?)</p>", text, re.DOTALL):
        yield html.unescape(re.sub(r"<[^>]*>", "", paragraph))


def fortunes(text: str) -> Iterator[str]:
    """The paragraphs of a fortune file, without who said them."""
    for cookie in re.split(r"^%+$", text, flags=re.MULTILINE):
        body = re.split(r"^\s*(?:--|—|–)\s", cookie, maxsplit=1, flags=re.MULTILINE)[0]
        yield from re.split(r"\n\s*\n|\n(?=\s*[-*•])", body)


#: Requests that end a paragraph of a manual page and leave no trace in it.
BREAKS = {
    *(".PP", ".P", ".LP", ".TP", ".TQ", ".IP", ".HP", ".SH", ".SS", ".TH"),
    *(".br", ".sp", ".RS", ".RE", ".nf", ".fi", ".EX", ".EE"),
}
ESCAPES = (
    (r"\\f(?:\[\w*\]|\(\w\w|\w)", ""),
    (r"\\[&,/|^:%]", ""),
    (r"\\-", "-"),
    (r"\\(?:\(aq|\[aq\])", "'"),
    (r"\\e", r"\\"),
)


def manual(text: str) -> Iterator[str]:
    """The paragraphs of a manual page that hold no requests to the typesetter."""
    lines, clean, literal = [], True, False
    for line in [*text.splitlines(), ".PP"]:
        request = line.split(None, 1)[0] if line.startswith((".", "'")) and line.strip() else ""
        if not request:
            clean = clean and not literal
            lines.append(line)
        elif request.startswith(('.\\"', "'\\")):
            continue
        elif request in BREAKS:
            if clean and lines:
                paragraph = "\n".join(lines)
                for pattern, replacement in ESCAPES:
                    paragraph = re.sub(pattern, replacement, paragraph)
                yield paragraph
            lines, clean = [], True
            literal = request in (".nf", ".EX") or (literal and request not in (".fi", ".EE"))
        else:
            clean = False


READERS: dict[str, Callable[[str], Iterator[str]]] = {"markup": markup, "fortunes": fortunes, "manual": manual}


def paragraphs(documents: Iterable[Path], reader: str) -> Iterator[str]:
    """The raw paragraphs of documents, in order; documents that are not UTF-8 are passed over."""
    for path in documents:
        data = path.read_bytes()
        try:
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
        except UnicodeDecodeError:
            continue
        yield from READERS[reader](text)


def lines(raw: Iterable[str], language: str) -> Iterator[str]:
    """Clean lines of running prose in NFC, made of nothing but the characters of the language."""
    for paragraph in raw:
        text = " ".join(unicodedata.normalize("NFC", paragraph).split())
        for line in _cut(text):
            if is_prose(line, language):
                yield line


def _cut(text: str) -> Iterator[str]:
    """The paragraph in pieces of whole sentences, each no longer than LONGEST if its sentences are not."""
    piece = ""
    for sentence in re.split(r"(?<=[.!?…]) (?=\S)", text):
        if piece and len(piece) + 1 + len(sentence) > LONGEST:
            yield piece
            piece = sentence
        else:
            piece = f"{piece} {sentence}" if piece else sentence
    yield piece


def is_prose(line: str, language: str) -> bool:
    """Whether a line is one or more sentences of this language and nothing else."""
    if not SHORTEST <= len(line) <= LONGEST or not line.endswith(ENDS) or not set(line) <= characters(language):
        return False
    if not MARKUP.isdisjoint(line) or any(trace in line for trace in TRACES) or line.count("(") != line.count(")"):
        return False
    words = line.split()
    starts = line.lstrip("\"'“„«»¿¡(‘")[:1].isupper()
    if len(words) < WORDS or not starts or sum(map(str.isalpha, line)) < 0.72 * len(line):
        return False
    if max(map(len, words)) > 30 or sum(word.isupper() for word in words) > 0.3 * len(words):
        return False
    if language == "en":
        return True
    if language in OWN_SCRIPT:
        return sum(letter in letters(language) for letter in line) > 0.6 * len(line)
    return sum(word.casefold() in ENGLISH for word in words) < 0.1 * len(words)


def fold(line: str) -> str:
    """What two lines share that differ in case, digits, spaces and punctuation only."""
    return "".join(filter(str.isalpha, line.casefold()))
