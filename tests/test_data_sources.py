"""Training and held-out sources share nothing; the prepared folder holds what its index says."""

import gzip
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from handlens.data import lexicon, packages, pictures, prepare, prose, typefaces
from handlens.data.alphabets import LANGUAGES, characters
from handlens.data.sample import HELD_OUT, SPLITS, TRAIN
from handlens.data.sources import INDEX, Sources, SourcesError, load
from handlens.data.words import LABELS, MONTHS, WEEKDAYS
from handlens.errors import InputError
from tests.data_sources import KINDS, small

#: A prepared folder to check besides the small one.
FULL = os.environ.get("HANDLENS_SOURCES")
FREE = (
    "OFL",
    "Apache",
    "MIT",
    "CC-BY",
    "CC0",
    "Unicode",
    "public domain",
    "Bitstream-Vera",
    "BSD",
    "MPL",
    "EPL",
    "ParaType",
)
GPL = ("GPL", "LGPL", "AGPL")


@pytest.fixture(
    scope="module",
    params=["small", pytest.param("full", marks=pytest.mark.skipif(not FULL, reason="HANDLENS_SOURCES"))],
)
def sources(request) -> Sources:
    return Sources.open(FULL if request.param == "full" else request.getfixturevalue("whole"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return small(tmp_path_factory.mktemp("whole")).folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A folder that a test may damage."""
    return shutil.copytree(whole, tmp_path / "sources")


def sides(rows, *keys) -> dict:
    """key -> {value of the row: splits in which it occurs}."""
    found = {key: defaultdict(set) for key in keys}
    for row in rows:
        for key in keys:
            found[key][row[key]].add(row["split"])
    return found


def test_no_family_and_no_drawing_of_letters_is_on_both_sides_of_the_manifest():
    for key, values in sides(prepare.manifest()["fonts"], "family", "outlines").items():
        assert not [value for value, splits in values.items() if len(splits) > 1], key


def test_no_font_file_is_listed_twice():
    files = [(row["package"], name) for row in prepare.manifest()["fonts"] for name in row["files"]]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("twin", ["arimo", "tinos", "cousine", "carlito", "croscore", "droid serif", "freesans"])
def test_twins_of_held_out_families_are_not_taken(twin):
    rows = prepare.manifest()["fonts"]
    assert not [row for row in rows if twin in f"{row['family']} {row['package']}".lower()]


def test_emoji_sets_are_on_one_side_each():
    rows = [row for row in prepare.manifest()["sprites"] if row["reader"] == "icons"]
    assert all(len(splits) == 1 for splits in sides(rows, "set")["set"].values())
    assert {row["split"] for row in rows} == set(SPLITS)


def test_every_package_of_the_manifest_is_used_once_declared_and_free():
    table = prepare.manifest()
    used = {row["package"] for part in prepare.PARTS for row in table[part]}
    assert used == set(table["packages"])
    for name, row in table["packages"].items():
        assert row["ecosystem"] in {*packages.CLIENTS, "extra"}
        assert any(licence in row["licence"] for licence in (*FREE, *GPL)), row
        # Training input, of which nothing is in this repository; but for the names of things.
        assert row["shipped"] is (name == "cldr-annotations-full")


def test_every_language_has_rows_in_every_part():
    table = prepare.manifest()
    for part in ("text", "words", "names"):
        assert {row["language"] for row in table[part]} == set(LANGUAGES)


def test_families_and_drawings_of_fonts_are_disjoint(sources):
    for attribute in ("family", "outlines"):
        train, held = ({getattr(font, attribute) for font in sources.faces if font.split == split} for split in SPLITS)
        assert train and held and not train & held


def test_drawings_differ_in_fact(sources):
    """The same letters of a training and a held-out font are never the same pixels."""
    seen = defaultdict(set)
    for font in sources.faces:
        seen[bytes(load(font.path, 40).getmask("Rag2"))].add(font.split)
    assert all(len(splits) == 1 for splits in seen.values())


def test_words_are_disjoint_in_any_case(sources):
    train, held = (
        {word.casefold() for language in sources.languages for word in sources.words(language, split)}
        for split in SPLITS
    )
    assert train and held and not train & held


def test_lines_are_disjoint(sources):
    for language in sources.languages:
        train, held = ({prose.fold(line) for line in sources.lines(language, split)} for split in SPLITS)
        assert train and held and not train & held, language


def test_names_are_disjoint(sources):
    for language in sources.languages:
        for kind in KINDS:
            train, held = ({name.casefold() for name in sources.names(language, split, kind)} for split in SPLITS)
            assert train and held and not train & held, (language, kind)


def test_sprites_are_of_other_sets_and_the_same_things(sources):
    train, held = sources.sprites(TRAIN), sources.sprites(HELD_OUT)
    assert train.sets and held.sets and not set(train.sets) & set(held.sets)
    assert train.keys == held.keys and len(train.keys) == len(train.categories) == train.images.shape[1]
    for names in train.names.values():
        assert len(names) == len(train.keys) == len({name.casefold() for name in names})
    assert train.images.dtype == np.uint8 and train.images.shape[2:] == (64, 64, 4)
    assert all(pile.images[..., 3].max(axis=(2, 3)).min() > 200 for pile in (train, held))  # none is blank


def test_every_font_draws_all_texts_of_its_languages(sources):
    for language in sources.languages:
        used = set().union(*(sources.text(language, split) for split in SPLITS)) - {"\n"}
        assert used <= characters(language)
        for split in SPLITS:
            for font in sources.fonts(language, split):
                assert font.covers("".join(used)), (font.path.name, language)
                assert font.covers("".join(LABELS[language].values()))


def test_fonts_are_drawn_with_ink_where_they_cover(sources):
    font = sources.fonts("de", TRAIN)[0]
    missing = bytes(load(font.path, 30).getmask("\ufffe"))
    for character in "aßÄ€8":
        mask = bytes(load(font.path, 30).getmask(character))
        assert any(mask) and mask != missing
    assert not font.covers("a\u4e00") and font.covers("a b")


def test_choices_follow_the_generator_and_fonts_are_kept(sources):
    def draw(seed):
        rng = np.random.default_rng(seed)
        name = sources.name(rng, "fr", TRAIN, "person")
        return name, sources.font(rng, "fr", TRAIN, 20)

    first, second = draw(3), draw(3)
    assert first == second and first[1] is second[1]
    assert len({draw(seed)[0] for seed in range(20)}) > 5


def test_each_family_is_as_likely(sources):
    rng = np.random.default_rng(0)
    families = {font.family for font in sources.fonts("en", TRAIN)}
    times = defaultdict(int)
    for _ in range(60 * len(families)):
        times[sources.face(rng, "en", TRAIN).family] += 1
    assert set(times) == families and max(times.values()) < 3 * min(times.values())


def test_a_missing_folder_says_how_to_make_it(tmp_path):
    with pytest.raises(SourcesError, match="handlens data prepare"):
        Sources.open(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_a_damaged_file_is_named(folder, damage):
    path = folder / "text" / "de.train.xz"
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SourcesError, match=r"de\.train\.xz.*handlens data prepare"):
        Sources.open(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 0}', "\x00\xff"])
def test_a_damaged_index_is_refused(folder, text):
    (folder / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(SourcesError, match="handlens data prepare"):
        Sources.open(folder)


def test_what_is_not_there_is_asked_for_by_its_part(folder):
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["files"] = {
        name: digest for name, digest in index["files"].items() if not name.startswith(("text/", "sprites/"))
    }
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    sources = Sources.open(folder)
    with pytest.raises(SourcesError, match="--parts text"):
        sources.text("en", TRAIN)
    with pytest.raises(SourcesError, match="--parts sprites"):
        sources.sprites(TRAIN)
    with pytest.raises(SourcesError, match="no sources for the language 'xx'"):
        sources.words("xx", TRAIN)
    with pytest.raises(SourcesError, match="'test' is not one of"):
        sources.words("en", "test")


def test_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(InputError, match="no part 'sounds'"):
        prepare.prepare(tmp_path, ["sounds"])


def test_a_part_whose_client_is_missing_is_left_out_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare.prepare(tmp_path / "out", ["fonts"]) == {"fonts": ["apt-get", "dpkg"]}
    assert "fonts: left out, for want of apt-get, dpkg" in caplog.text
    assert not (tmp_path / "out" / INDEX).exists()


def test_a_client_that_fails_is_quoted(tmp_path, monkeypatch):
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\necho no such package >&2\nexit 3\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(packages.PackageError, match=r"npm package thing 1\.0(.|\n)*no such package"):
        packages.unpacked("npm", "thing", "1.0", tmp_path / "packages")
    assert not list((tmp_path / "packages" / "npm").iterdir())


def test_packages_may_be_kept_in_a_folder_named_from_here(tmp_path, monkeypatch):
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\nmkdir package && echo hello > package/words.txt && tar czf thing.tgz package\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    folder = packages.unpacked("npm", "thing", "1.0", Path("kept"))
    assert (folder / "package" / "words.txt").read_text() == "hello\n"


def test_held_out_does_not_depend_on_case():
    for word in ("Straße", "STRASSE", "ΣΟΦΟΣ", "İzmir", "Київ"):
        assert len({lexicon.held_out(form) for form in (word, word.casefold(), word.upper().casefold())}) == 1


@pytest.mark.parametrize(
    ("language", "line", "kept"),
    [
        ("en", "The quick reader turns the page and goes on.", True),
        ("en", "turns the page and goes on without a capital.", False),
        ("en", "Use --force to remove the files in the folder.", False),
        ("en", "See http://example.org for all the other pages.", False),
        ("en", "The reader turns the page (and then goes on.", False),
        ("en", "The reader turns the page and never ends", False),
        ("en", "Too short a line.", False),
        ("de", "Wählen Sie die Schaltfläche und bestätigen Sie die Größe.", True),
        ("de", "Choose the button and confirm that you are ready for this.", False),
        ("de", "Der Leser liest das Wort Київ in der Zeitung vor.", False),
        ("ru", "Читатель перевернул страницу и пошёл дальше.", True),
        ("ru", "The reader turns the page and goes on.", False),
    ],
)
def test_only_prose_of_the_language_is_kept(language, line, kept):
    assert prose.is_prose(line, language) == kept


def test_manual_pages_lose_requests_and_escapes(tmp_path):
    page = (
        ".TH LS 1\n.SH NAME\nls \\- list things\n.PP\nThe \\fBfirst\\fP paragraph is\nset in two well\\-made lines.\n"
        ".PP\nThis one names\n.BR ls (1)\nin the middle of it all.\n.nf\nA literal block of words is no prose.\n.fi\n"
        ".PP\nThe last paragraph is here and it is whole.\n"
    )
    (tmp_path / "ls.1.gz").write_bytes(gzip.compress(page.encode()))
    found = list(prose.lines(prose.paragraphs([tmp_path / "ls.1.gz"], "manual"), "en"))
    assert found == [
        "The first paragraph is set in two well-made lines.",
        "The last paragraph is here and it is whole.",
    ]


def test_fortunes_lose_their_authors():
    text = (
        "A wise man reads the page\nbefore he turns it.\n\t\t-- Somebody\n%\nAnother wise man turns the page at once.\n"
    )
    assert list(prose.lines(prose.fortunes(text), "en")) == [
        "A wise man reads the page before he turns it.",
        "Another wise man turns the page at once.",
    ]


def test_long_paragraphs_are_cut_at_sentences():
    sentence = "This sentence says very little and comes again and again in the text."
    lines = list(prose.lines([" ".join([sentence] * 20)], "en"))
    assert " ".join(lines) == " ".join([sentence] * 20)
    assert max(map(len, lines)) <= prose.LONGEST and all(line.endswith("text.") for line in lines)


def test_text_that_a_translation_left_in_english_is_dropped(tmp_path):
    english = "Hyperlink buttons must be edited in form design mode."
    (tmp_path / "en.html").write_text(f"<p>{english}</p>")
    (tmp_path / "tr.html").write_text(f"<p>{english}</p><p>Bu sayfada iki satır yazı daha vardır.</p>")
    rows = [
        ({"language": language, "reader": "markup", "files": [f"{language}.html"], "most": 1000}, tmp_path)
        for language in ("en", "tr")
    ]
    (tmp_path / "text").mkdir()
    prose.write_text(rows, tmp_path / "text", tmp_path)
    assert lexicon._read(tmp_path / "text" / "tr.train.xz") == ["Bu sayfada iki satır yazı daha vardır."]


def test_emoji_of_one_artist_are_drawn(tmp_path):
    pytest.importorskip("resvg_py")
    red = '<rect x="2" width="6" height="10" fill="#f00"/>'
    icons = {"icons": {"apple": {"body": red, "width": 10, "height": 10}}, "width": 16, "height": 16}
    metadata = {"categories": {"Food & Drink": ["apple"]}}
    for name, content in (("icons", icons), ("chars", {"1f34e": "apple"}), ("metadata", metadata)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    emoji = pictures._Set(tmp_path)
    assert emoji.categories == {"\N{RED APPLE}": "Food & Drink"}
    drawn = emoji.draw("\N{RED APPLE}")
    assert drawn.shape == (64, 64, 4)
    assert drawn[32, 32].tolist() == [255, 0, 0, 255] and drawn[32, 3, 3] == 0 and drawn[32, 60, 3] == 0


def test_fonts_are_cut_to_what_is_read(sources):
    font = next(face for face in sources.faces if face.family == "DejaVu Sans")
    assert font.path.stat().st_size < 200_000
    assert {"en", "vi", "ru", "el"} <= font.languages and not font.covers("\u05d0")
    assert typefaces._ranges(frozenset("abcx")) == [[97, 99], [120, 120]]


def test_labels_are_whole_and_in_the_alphabet():
    for language, table in LABELS.items():
        assert set(table) == set(LABELS["en"]) and all(word == word.strip() and word for word in table.values())
        if language in LANGUAGES:
            assert set().union(*table.values()) <= characters(language)
    assert set(LANGUAGES) <= set(LABELS)
    assert (len(MONTHS), len(WEEKDAYS)) == (12, 7)
