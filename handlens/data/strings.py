"""Texts that no dictionary has: numbers, prices, dates, serial numbers, addresses on the web, letters in any order.

A decoder that knows the language guesses words instead of reading them; these it has to read.
"""

import datetime
import string
from collections.abc import Callable, Sequence

import numpy as np

ALPHANUMERIC = string.ascii_letters + string.digits
PRINTABLE = string.ascii_letters + string.digits + string.punctuation
CURRENCIES = ("€", "$", "£", "EUR", "USD", "CHF", "%", "kg", "km", "°C", "m²", "ml")
DATES = ("%d.%m.%Y", "%d.%m.%y", "%Y-%m-%d", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d-%m-%y", "%d.%m.", "%m/%y")
TIMES = ("%H:%M", "%H:%M:%S", "%I:%M %p", "%H.%M")
DOMAINS = ("com", "org", "net", "eu", "info", "io", "de", "fr", "es", "it", "pl", "ru", "gr", "co.uk")


def number(rng: np.random.Generator) -> str:
    """A number as people group it: 1234, 1,234.50, 1.234,50, 1 234, -12.5."""
    digits = int(rng.integers(1, 8))
    value = int(rng.integers(0, 10**digits))
    group, point = [("", "."), (",", "."), (".", ","), (" ", ","), ("'", ".")][rng.integers(5)]
    places = int(rng.choice([0, 0, 1, 2, 2, 3]))
    fraction = point + "".join(map(str, rng.integers(0, 10, places))) if places else ""
    return ("-" if rng.random() < 0.08 else "") + f"{value:,}".replace(",", group) + fraction


def amount(rng: np.random.Generator) -> str:
    """A number with its unit before or behind it."""
    unit = str(rng.choice(CURRENCIES))
    if unit in "$£" or (unit == "€" and rng.random() < 0.4):
        return unit + number(rng).lstrip("-")
    return f"{number(rng)}{'' if rng.random() < 0.3 else ' '}{unit}"


def date(rng: np.random.Generator) -> str:
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=int(rng.integers(0, 60000)))
    return day.strftime(str(rng.choice(DATES)))


def time(rng: np.random.Generator) -> str:
    moment = datetime.time(int(rng.integers(0, 24)), int(rng.integers(0, 60)), int(rng.integers(0, 60)))
    return moment.strftime(str(rng.choice(TIMES)))


def phone(rng: np.random.Generator) -> str:
    start = ("+" + str(rng.integers(1, 999)) + " ") if rng.random() < 0.5 else "0"
    groups = ["".join(map(str, rng.integers(0, 10, size))) for size in rng.integers(2, 5, rng.integers(2, 5))]
    return start + str(rng.choice([" ", "-", "/", "."])).join(groups)


def serial(rng: np.random.Generator) -> str:
    """Capitals and digits in groups, as on labels, tickets and in accounts."""
    alphabet = string.ascii_uppercase + string.digits * 2
    groups = [pick(rng, alphabet, size) for size in rng.integers(2, 6, rng.integers(1, 5))]
    return str(rng.choice(["-", " ", "", "/", "."])).join(groups)


def scramble(rng: np.random.Generator) -> str:
    """Printable ASCII in any order."""
    return pick(rng, PRINTABLE, int(rng.integers(3, 14)))


def password(rng: np.random.Generator) -> str:
    return pick(rng, ALPHANUMERIC, int(rng.integers(4, 16)))


def hexadecimal(rng: np.random.Generator) -> str:
    digits = pick(rng, "0123456789abcdef", int(rng.choice([4, 6, 8, 12, 16])))
    return str(rng.choice(["", "0x", "#"])) + (digits.upper() if rng.random() < 0.3 else digits)


def version(rng: np.random.Generator) -> str:
    return ("v" if rng.random() < 0.3 else "") + ".".join(map(str, rng.integers(0, 30, rng.integers(2, 5))))


#: What needs no words.
STRINGS: tuple[Callable[[np.random.Generator], str], ...] = (
    number,
    number,
    amount,
    amount,
    date,
    time,
    phone,
    serial,
    serial,
    scramble,
    scramble,
    password,
    hexadecimal,
    version,
)


def any_string(rng: np.random.Generator) -> str:
    """One of all kinds."""
    return STRINGS[rng.integers(len(STRINGS))](rng)


def address(rng: np.random.Generator, words: Sequence[str]) -> str:
    """A web or mail address, or the path of a file, made of these words (those in ASCII) and digits."""
    parts = [word.lower() for word in words if word.isascii() and word.isalnum()]
    parts += [pick(rng, string.ascii_lowercase, int(rng.integers(2, 9))) for _ in range(4 - len(parts))]
    domain = f"{parts[0]}.{rng.choice(DOMAINS)}"
    forms = (
        f"www.{domain}",
        f"https://{domain}/{parts[1]}",
        f"https://www.{domain}/{parts[1]}/{parts[2]}?id={rng.integers(10000)}",
        f"{parts[1]}@{domain}",
        f"{parts[1]}.{parts[2]}@{domain}",
        f"{parts[1]}_{rng.integers(100)}@{domain}",
        f"/{parts[1]}/{parts[2]}/{parts[3]}.txt",
        f"C:\\{parts[1]}\\{parts[2]}_{rng.integers(100)}.pdf",
    )
    return forms[rng.integers(len(forms))]


def letters(rng: np.random.Generator, words: Sequence[str], length: int) -> str:
    """Characters of these words in any order: what cannot be guessed, in the script of the words."""
    return pick(rng, "".join(words), length)


def pick(rng: np.random.Generator, alphabet: str, length: int) -> str:
    """Characters of the alphabet, each drawn for itself."""
    return "".join(alphabet[index] for index in rng.integers(0, len(alphabet), length))
