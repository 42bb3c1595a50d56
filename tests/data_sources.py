"""A small prepared folder, for tests that draw: made by the code that makes the real one, without a network.

Fonts are those inside of matplotlib; sentences, names and pictures were written for this file.
"""

from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from handlens.data import lexicon, pictures, prose, typefaces
from handlens.data.prepare import MANIFEST, write_index
from handlens.data.sample import HELD_OUT, TRAIN
from handlens.data.sources import Sources
from handlens.data.words import LABELS

#: File -> family, outlines, style, split.
FONTS = {
    "DejaVuSans.ttf": ("DejaVu Sans", "dejavu-sans", "sans", TRAIN),
    "DejaVuSans-Bold.ttf": ("DejaVu Sans", "dejavu-sans", "sans", TRAIN),
    "DejaVuSansMono.ttf": ("DejaVu Sans Mono", "dejavu-mono", "mono", TRAIN),
    "STIXGeneral.ttf": ("STIX", "stix", "serif", TRAIN),
    "DejaVuSerif.ttf": ("DejaVu Serif", "dejavu-serif", "serif", HELD_OUT),
    "DejaVuSerif-Bold.ttf": ("DejaVu Serif", "dejavu-serif", "serif", HELD_OUT),
}
SENTENCES = {
    "en": ("On the first page we read {}, and on the last one {}.", "Nobody knows why {} was written before {} here."),
    "de": (
        "Auf der ersten Seite lesen wir {}, auf der letzten {}.",
        "Niemand weiß, warum hier {} vor {} geschrieben steht.",
    ),
    "fr": ("Sur la première page on lit {}, sur la dernière {}.", "Personne ne sait pourquoi {} est écrit avant {}."),
    "es": ("En la primera página leemos {}, y en la última {}.", "Nadie sabe por qué {} está escrito antes de {}."),
    "it": ("Nella prima pagina leggiamo {}, nell'ultima {}.", "Nessuno sa perché {} è scritto prima di {}."),
    "pt": ("Na primeira página lemos {}, e na última {}.", "Ninguém sabe por que {} está escrito antes de {}."),
    "nl": ("Op de eerste bladzijde lezen we {}, op de laatste {}.", "Niemand weet waarom {} hier voor {} staat."),
    "pl": ("Na pierwszej stronie czytamy {}, a na ostatniej {}.", "Nikt nie wie, dlaczego {} stoi tu przed {}."),
    "cs": ("Na první stránce čteme {}, na poslední {}.", "Nikdo neví, proč je zde {} napsáno před {}."),
    "tr": ("İlk sayfada {}, son sayfada ise {} okuyoruz.", "Burada {} neden {} sözünden önce yazılmış kimse bilmiyor."),
    "vi": ("Ở trang đầu chúng ta đọc {}, ở trang cuối {}.", "Không ai biết vì sao {} được viết trước {} ở đây."),
    "ru": ("На первой странице мы читаем {}, а на последней {}.", "Никто не знает, почему {} стоит здесь перед {}."),
    "uk": ("На першій сторінці ми читаємо {}, а на останній {}.", "Ніхто не знає, чому {} стоїть тут перед {}."),
    "el": (
        "Στην πρώτη σελίδα διαβάζουμε {}, στην τελευταία {}.",
        "Κανείς δεν ξέρει γιατί {} είναι γραμμένο πριν από {}.",
    ),
}
ENDINGS = {"ru": "аеиоу", "uk": "аеиоу", "el": "αειου"}
#: Parts of names that every language can write; the pieces are joined in all ways.
PIECES = {"ru": ("Ми", "Ла", "Ро", "Та", "Не", "Ко"), "el": ("Μι", "Λα", "Ρο", "Τα", "Νε", "Κο")}
LATIN_PIECES = ("Mi", "La", "Ro", "Ta", "Ne", "Ko")
KINDS = ("person", "first", "last", "company", "street", "city", "country", "language", "job", "product")
SHAPES = {"●": "circle", "■": "square", "▲": "triangle", "▬": "bar", "◆": "diamond", "✚": "cross"}
POINTS = {
    "square": ((8, 8), (56, 8), (56, 56), (8, 56)),
    "triangle": ((32, 6), (58, 56), (6, 56)),
    "bar": ((4, 26), (60, 26), (60, 38), (4, 38)),
    "diamond": ((32, 4), (56, 32), (32, 60), (8, 32)),
    "cross": (
        *((24, 4), (40, 4), (40, 24), (60, 24), (60, 40), (40, 40)),
        *((40, 60), (24, 60), (24, 40), (4, 40)),
        (4, 24),
        (24, 24),
    ),
}
SETS = {"red": (TRAIN, (200, 30, 30)), "blue": (TRAIN, (30, 60, 200)), "green": (HELD_OUT, (20, 140, 60))}


def small(folder: Path) -> Sources:
    """Sources of three training families and one held-out, hundreds of words and lines, six shapes in three colours."""
    for part, write in {"fonts": _fonts, "text": _text, "names": _names, "words": _words, "sprites": _sprites}.items():
        (folder / part).mkdir(parents=True)
        (folder / MANIFEST.name).write_text("# a folder for tests\n", encoding="utf-8")
        write_index(folder, part, write(folder / part))
    return Sources.open(folder)


def _fonts(folder: Path) -> dict:
    import matplotlib

    package = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    keys = ("family", "outlines", "style", "split")
    rows = [(dict(zip(keys, facts, strict=True)) | {"files": [name]}, package) for name, facts in FONTS.items()]
    return typefaces.write_fonts(rows, folder, folder.parent)


def _text(folder: Path) -> dict:
    documents = folder.parent / "documents"
    documents.mkdir()
    rows = []
    for language, patterns in SENTENCES.items():
        words = [word for word in LABELS[language].values() if word.isalpha()]
        pairs = list(zip(words, words[1:] + words[:1], strict=True))
        lines = [pattern.format(*pair) for pair, pattern in product(pairs, patterns)]
        html = "".join(f"<p class='line'>{line}</p>\n" for line in lines)
        (documents / f"{language}.html").write_text(html, encoding="utf-8")
        rows.append(
            ({"language": language, "reader": "markup", "files": [f"{language}.html"], "most": 10**6}, documents)
        )
    return prose.write_text(rows, folder, folder.parent)


def _syllables(language: str) -> list[str]:
    pieces = PIECES.get("ru" if language == "uk" else language, LATIN_PIECES)
    ends = ENDINGS.get(language, "aeiou")
    return ["".join(parts).capitalize() for parts in product(pieces, pieces, ends)]


def _names(folder: Path) -> dict:
    for language, kind in product(SENTENCES, KINDS):
        names = _syllables(language)
        if kind == "person":
            names = [f"{first} {last}" for first, last in zip(names, reversed(names), strict=True)]
        elif kind == "street":
            names = [f"{name} {number}" for number, name in enumerate(names, 1)]
        lexicon.write_split(folder, f"{language}.{kind}", names)
    return {}


def _words(folder: Path) -> dict:
    for language in SENTENCES:
        labels = [word for word in LABELS[language].values() if lexicon.is_word(word, language)]
        lexicon.write_split(folder, language, [*labels, *(name.lower() for name in _syllables(language))])
    return {}


def _sprites(folder: Path) -> dict:
    languages = tuple(SENTENCES)
    things = {
        key: (
            "Shapes",
            {language: _syllables(language)[n].lower() if language != "en" else shape for language in languages},
        )
        for n, (key, shape) in enumerate(SHAPES.items())
    }
    sets = {
        name: (split, np.array([_shape(shape, colour) for shape in SHAPES.values()]))
        for name, (split, colour) in SETS.items()
    }
    pictures.write_piles(folder, things, sets)
    return {}


def _shape(shape: str, colour: tuple[int, int, int]) -> np.ndarray:
    image = Image.new("RGBA", (pictures.SIDE, pictures.SIDE))
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((6, 6, 58, 58), fill=(*colour, 255))
    else:
        draw.polygon(POINTS[shape], fill=(*colour, 255))
    return np.asarray(image)
