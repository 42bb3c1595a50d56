"""The prepared folder, written: what manifest.toml lists is got from packages, cut to size and laid out for sources.py.

The folder holds fonts/, text/, words/, names/, sprites/, a copy of the manifest and index.json. A part whose clients
are not all on this machine is left out and named in the result; one that is in the folder already is made anew.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from handlens.atomic import replacing
from handlens.data import lexicon, packages, pictures, prose, typefaces
from handlens.data.alphabets import LANGUAGES
from handlens.data.sources import INDEX, VERSION, SourcesError
from handlens.errors import InputError

log = logging.getLogger("handlens")

MANIFEST = Path(__file__).with_name("manifest.toml")
Progress = Callable[[str, int, int], None]  # part, rows done, rows in all


def manifest() -> dict:
    """The tables of manifest.toml; `packages` by name."""
    table = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    return {**table, "packages": {row["name"]: row for row in table["packages"]}}


def prepare(
    out: str | Path,
    parts: Sequence[str] | None = None,
    progress: Progress | None = None,
    downloads: str | Path | None = None,
) -> dict[str, list[str]]:
    """Writes the parts (all of them if None) into the folder `out`; returns what parts lacked, and so were left out.

    `downloads` is a folder where the packages stay for the next time; without it they are thrown away at the end.
    """
    parts = tuple(PARTS if parts is None else parts)
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    table, lacking = manifest(), {}
    with tempfile.TemporaryDirectory(prefix="handlens-") as temporary:
        for part in (part for part in PARTS if part in parts):
            if gone := _missing(table, part):
                lacking[part] = gone
                log.warning("%s: left out, for want of %s", part, ", ".join(gone))
            else:
                _write(out, part, _rows(table, part, Path(downloads or temporary), progress))
    return lacking


def _missing(table: dict, part: str) -> list[str]:
    """The programs and Python packages that a part needs and this machine lacks."""
    needs = {("extra", name) for name in PARTS[part].needs}
    for row in table[part]:
        package = table["packages"][row["package"]]
        needs.add((package["ecosystem"], package["name"] if package["ecosystem"] == "extra" else ""))
    return sorted({program for ecosystem, name in needs for program in packages.missing(ecosystem, name)})


def _rows(table: dict, part: str, downloads: Path, progress: Progress | None) -> packages.Rows:
    """The rows of a part, each with its package got."""
    rows = table[part]
    for done, row in enumerate(rows):
        if progress:
            progress(part, done, len(rows))
        package = table["packages"][row["package"]]
        version = package.get("version", "")
        yield row, packages.unpacked(package["ecosystem"], package["name"], version, downloads)
    if progress:
        progress(part, len(rows), len(rows))


def _write(out: Path, part: str, rows: packages.Rows) -> None:
    """Makes one part and puts it into the index; the other parts stay as they are."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".part-") as temporary:
        folder = Path(temporary) / part
        folder.mkdir()
        facts = PARTS[part].write(rows, folder, out)
        shutil.rmtree(out / part, ignore_errors=True)
        folder.rename(out / part)
    shutil.copyfile(MANIFEST, out / MANIFEST.name)
    write_index(out, part, facts)


def write_index(out: Path, part: str, facts: dict) -> None:
    """Puts the files of a part, and what is to be known about it, into index.json."""
    path = out / INDEX
    index = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if index.get("version") != VERSION:
        index = {"version": VERSION, "files": {}}
    index |= {"languages": LANGUAGES, **facts}
    index["files"] = {name: digest for name, digest in index["files"].items() if not name.startswith(f"{part}/")}
    for file in [out / MANIFEST.name, *sorted((out / part).rglob("*"))]:
        if file.is_file():
            index["files"][file.relative_to(out).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    with replacing(path, SourcesError, encoding="utf-8") as stream:
        json.dump(index, stream, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Part:
    """How a part is written: from the rows of the manifest into a folder, beside parts that are there already."""

    write: Callable[[packages.Rows, Path, Path], dict]
    needs: tuple[str, ...] = ()  # Python packages


#: In the order in which they build on each other: words take their case from texts, and from names.
PARTS = {
    "fonts": Part(typefaces.write_fonts, ("fontTools",)),
    "text": Part(prose.write_text),
    "names": Part(lexicon.write_names),
    "words": Part(lexicon.write_words, ("msgpack",)),
    "sprites": Part(pictures.write_sprites, ("resvg_py",)),
}
