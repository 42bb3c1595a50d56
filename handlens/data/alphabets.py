"""The characters of each language: what a font must have to write it, and all that its text is made of."""

import string
from functools import cache

#: Letters and quotation marks beyond the common ones; what is written in another script may still hold Latin words.
LETTERS = {
    "en": "",
    "de": "äöüß„",
    "fr": "àâæçéèêëîïôœùûüÿ«»",
    "es": "áéíñóúü¿¡ªº«»",
    "it": "àèéìíòóùú«»",
    "pt": "áàâãçéêíóôõúüªº«»",
    "nl": "áäèéêëíïóöúü",
    "pl": "ąćęłńóśźż„",
    "cs": "áčďéěíňóřšťúůýž„",
    "tr": "çğıöşüâîûİ",
    "vi": "àáâãèéêìíòóôõùúýăđĩũơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя«»№",
    "uk": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя«»№",
    "el": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ«»",
}
LANGUAGES = tuple(LETTERS)
#: Languages that are not written in Latin letters.
OWN_SCRIPT = frozenset({"ru", "uk", "el"})

#: What every font has, whatever the language.
COMMON = frozenset(string.ascii_letters + string.digits + string.punctuation + " –—‘’“”…°€£·•×©®")

#: Kept in fonts that have them; a maker asks `Font.covers` first.
WELCOME = frozenset(
    "„«»§±¢¥¤¦¬¯´µ¶¸¹²³¼½¾÷†‡‰‹›‚№™−√∞≈≠≤≥←↑→↓↔■□▪▫▲△▶▼▽◆◇○●★☆☐☑☒✓✔✗✘♀♂♠♣♥♦♪₫₴₺₽₹₩₿ΩπΣ∂∑∏∫−⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄"
)


@cache
def letters(language: str) -> frozenset[str]:
    """The characters that a language adds to the common ones, small and capital."""
    small = LETTERS[language]
    return frozenset(small) | {letter.upper() for letter in small if len(letter.upper()) == 1}


@cache
def characters(language: str) -> frozenset[str]:
    """Everything that texts and words of this language may hold."""
    return COMMON | letters(language)


def language_like(text: str) -> str:
    """The language whose own letters most of the text's are; "en" for a text that has only common ones."""
    own = [character for character in text if character not in COMMON]
    counts = {language: sum(character in letters(language) for character in own) for language in LANGUAGES}
    return max(counts, key=lambda language: counts[language])  # the first of equals


def every_character() -> frozenset[str]:
    """All that is kept of a font."""
    return COMMON.union(WELCOME, *map(letters, LANGUAGES))
