"""Receipts, invoices and forms laid out by Chromium from templates that training does not have, with held-out names:
one printed value is asked for."""

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from handlens.data.questions import ask
from handlens.data.receipts import Bill, address, meta_lines, payment_lines, sell, totals
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Font, Sources, load, pick
from handlens.data.structured import PLACES, Fact, between, captions, chance, clear, date
from handlens.eval.browser import Browser, css
from handlens.eval.metrics import anls, field
from handlens.eval.suite import Bar, Drawn, Item, Scores, Suite, face_to_read, seeded

Pairs = Sequence[tuple[str, str]]
WIDEST = HIGHEST = 672


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    with Browser() as browser:
        for i in range(n):
            rng = seeded(seed, "receipts", i)
            group = list(MAKERS)[i % len(MAKERS)]
            language = sources.languages[i // len(MAKERS) % len(sources.languages)]
            while True:
                face = face_to_read(rng, sources, language)
                body, facts, width = MAKERS[group](rng, sources, language, face)
                known = [f for f in facts if all(map(face.covers, (f.answer, *f.slots.values()))) and f.answer]
                image, _ = browser.draw(page(rng, sources, language, face, body), width)
                if known and image.shape[0] <= HIGHEST:
                    break
            kind = pick(rng, sorted({fact.kind for fact in known}))
            fact = pick(rng, [fact for fact in known if fact.kind == kind])
            yield Drawn(image, ask(rng, kind, language, **fact.slots), fact.answer, group, language)


#: Classes of the parts of documents.
STYLES = """* { box-sizing: border-box; margin: 0 }
table { border-collapse: collapse; width: 100% } td, th { padding: 1px 4px; text-align: left; vertical-align: top }
td + td:last-child, th:last-child { text-align: right } .c { text-align: center } .big { font-size: 1.35em }
.box { border: 1px solid #777; border-radius: 8px; padding: 6px; margin-top: 8px }
.sum { text-align: center; font-size: 1.35em; font-weight: bold; background: #eee; margin-top: 8px; padding: 4px }
.head { color: #666; border-bottom: 2px dotted #999; margin: 8px 0 3px } .foot { margin-top: 10px }
.bold { font-weight: bold } .apart { margin-right: 14px; white-space: nowrap } .goods { margin: 10px 0 }
.goods table { border: 1px solid #bbb } .pair { display: flex; gap: 16px } .wide { flex: 1 } .grey { color: #555 }
.side { background: #e8ecf2; padding: 8px; min-width: 150px } .strip { display: flex; gap: 4px; margin-top: 8px }
.cell { border: 1px solid #999; padding: 4px; flex: 1 } .one { display: grid; gap: 7px; margin-top: 8px }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; margin-top: 8px }
.over .name { font-size: .85em; color: #555 }
.over .value { border: 1px solid #888; border-radius: 4px; padding: 3px 6px }
.row { border-bottom: 1px solid #555 } .row div { display: inline } 
.row .value { color: #1b2f80; float: right }
.row::after { content: ""; display: block; clear: both } .row .name { margin-right: 12px }
.block { border: 1px solid #555 } .block .name { background: #ddd; padding: 0 5px }
.block .value { padding: 3px 5px }"""


def page(rng: np.random.Generator, sources: Sources, language: str, face: Font, body: str) -> str:
    paper = pick(rng, ("#fff", "#fff", "#fbfaf3", "#f6f7f9"))
    return f"""<!doctype html><html lang="{language}"><meta charset="utf-8"><style>{css(sources, face)}{STYLES}
html {{ background: {paper} }}
body {{ font: {between(rng, 14, 17)}px/{pick(rng, (1.25, 1.4, 1.55))} held-out; padding: {between(rng, 8, 22)}px }}
</style><body>{body}"""


def part(kind: str, *inside: str) -> str:
    """A part of a document, of one of the classes of STYLES."""
    return f'<div class="{kind}">{"".join(inside)}</div>'


def table(rows: Sequence[Sequence[str]], tag: str = "td") -> str:
    cells = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def lines(texts: Sequence[str]) -> str:
    return "<br>".join(map(html.escape, texts))


# --------------------------------------------------------------------------------------------------------- receipts


def receipt(rng: np.random.Generator, sources: Sources, language: str, face: Font) -> tuple[str, Sequence[Fact], int]:
    """A till receipt: its body, what can be asked of it, and its width."""
    words, currency = captions(sources, language), PLACES[language].currency(rng, load(face.path, 14))
    bill = sell(rng, sources, language, HELD_OUT, currency, between(rng, 2, 8), 60, 22)
    meta, sums, paid = meta_lines(rng, words, bill), totals(rng, bill, words), payment_lines(rng, words, bill)
    items = [(item.name, f"{item.quantity} × {bill.bare(item.price)}", bill.bare(item.amount)) for item in bill.items]
    shop = sources.name(rng, language, HELD_OUT, "company")
    head = part("c", part("big bold", html.escape(shop)), lines(address(rng, sources, language, HELD_OUT)))
    body = pick(rng, RECEIPTS)(head, meta, items, sums, paid, words)
    facts = [Fact("receipt-field", value, {"field": label.removesuffix(":")}) for label, value in (*meta, *sums, *paid)]
    facts += [
        Fact("receipt-item-price", bill.bare(item.amount), {"item": item.name})
        for item in bill.items
        if item.quantity == 1
    ]
    return body, clear(facts), between(rng, 320, 460)


def framed(head: str, meta: Pairs, items: Sequence, sums: Pairs, paid: Pairs, words: dict[str, str]) -> str:
    """Everything in boxes below each other, the total first where it is the last of the sums."""
    first = sums[-1][0] == words["total"]
    total = part("sum", html.escape(" ".join(sums[-1]))) if first else ""
    boxes = (items, [*(sums[:-1] if first else sums), *paid], meta)
    return head + total + "".join(part("box", table(rows)) for rows in boxes if rows)


def slip(head: str, meta: Pairs, items: Sequence, sums: Pairs, paid: Pairs, words: dict[str, str]) -> str:
    """One column of grey headings, each with a table below; the shop at the end."""
    parts = ((words["items"], items), (words["amount"], sums), (words["payment"], paid))
    tables = (part("head", html.escape(name)) + table(rows) for name, rows in parts if rows)
    return table(meta) + "".join(tables) + part("foot", head)


def columns(head: str, meta: Pairs, items: Sequence, sums: Pairs, paid: Pairs, words: dict[str, str]) -> str:
    """Stars between the parts; items as names with the numbers below."""
    stars = part("c", "* * * * *")
    goods = [row for name, count, price in items for row in ((name,), (f"\u2003{count}", price))]
    facts = " ".join(f'<span class="apart">{html.escape(" ".join(pair))}</span>' for pair in meta)
    return "".join((head, stars, facts, stars, table(goods), stars, part("bold", table(sums)), table(paid)))


RECEIPTS: tuple[Callable[..., str], ...] = (framed, slip, columns)


# ------------------------------------------------------------------------------------------------- invoices, forms


def invoice(rng: np.random.Generator, sources: Sources, language: str, face: Font) -> tuple[str, Sequence[Fact], int]:
    """An invoice: a side bar with the facts, or the facts in a strip of boxes."""
    words, place = captions(sources, language), PLACES[language]
    bill: Bill = sell(
        rng, sources, language, HELD_OUT, place.currency(rng, load(face.path, 14)), between(rng, 1, 5), 900, 20
    )
    day = pick(rng, place.dates)
    meta = [
        (words["invoice_number"], str(between(rng, 100, 10**7))),
        (words["date"], date(rng).strftime(day)),
        (words["due_date"], date(rng).strftime(day)),
        (words["customer_number"], str(between(rng, 1000, 10**6))),
    ][: between(rng, 2, 4)]
    sums = totals(rng, bill, words)
    seller, buyer = (sources.name(rng, language, HELD_OUT, kind) for kind in ("company", "person"))
    head = [(words["description"], words["quantity"], words["unit_price"], words["amount"])]
    goods = [(item.name, str(item.quantity), bill.bare(item.price), bill.bare(item.amount)) for item in bill.items]
    # Names of columns and goods are one table, so that they stand above one another.
    below = part("goods", table([*head, *goods])) + table(sums)
    where = lines(address(rng, sources, language, HELD_OUT))
    to = html.escape(words["bill_to"]) + part("bold", html.escape(buyer)) + where
    title = part("big", f"<b>{html.escape(words['invoice'])}</b> · {html.escape(seller)}")
    pairs = [(html.escape(name), html.escape(value)) for name, value in meta]
    if chance(rng, 0.5):
        side = "".join(part("grey", name) + part("bold", value) for name, value in pairs)
        body = title + part("pair", part("side", side), part("wide", to, below))
    else:
        strip = (part("cell", f"<small>{name}</small><br>{value}") for name, value in pairs)
        body = title + to + part("strip", *strip) + below
    facts = [Fact("invoice-field", value, {"field": label}) for label, value in (*meta, *sums)]
    return body, clear(facts), WIDEST


#: The fields of forms: a label and the kind of name that fills it in.
FIELDS = {
    "first_name": "first",
    "last_name": "last",
    "street": "street",
    "city": "city",
    "country": "country",
    "company": "company",
    "occupation": "job",
    "language": "language",
}


def form(rng: np.random.Generator, sources: Sources, language: str, face: Font) -> tuple[str, Sequence[Fact], int]:
    """A form on a screen or on paper, filled in."""
    words, place = captions(sources, language), PLACES[language]
    keys = [list(FIELDS)[j] for j in rng.permutation(len(FIELDS))[: between(rng, 3, 6)]]
    pairs = [(words[key], sources.name(rng, language, HELD_OUT, FIELDS[key])) for key in keys]
    pairs.append((words["date_of_birth"], date(rng).strftime(pick(rng, place.dates))))
    pairs.append((words["phone"], f"0{between(rng, 100, 9999)} {between(rng, 10000, 9999999)}"))
    pairs = [pairs[j] for j in rng.permutation(len(pairs))]
    style, layout = pick(rng, ("over", "row", "block")), pick(rng, ("one", "two"))
    fields = (part(style, part("name", html.escape(name)), part("value", html.escape(value))) for name, value in pairs)
    body = part("big bold", html.escape(words["form"])) + part(layout, *fields)
    return body, clear([Fact("form-field", value, {"field": name}) for name, value in pairs]), between(rng, 480, WIDEST)


MAKERS = {"receipts": receipt, "invoices": invoice, "forms": form}


def score(item: Item, answer: str) -> Scores:
    return {"exact field": field(item.truth, answer), "ANLS": anls([item.truth], answer)}


SUITE = Suite(
    name="receipts",
    about="a value on receipts, invoices and forms laid out by Chromium",
    score=score,
    measures={"exact field": "more", "ANLS": "more"},
    bars=(Bar("exact field", "", 0.8, 0.5), Bar("exact field", "receipts", 0.8, 0.5)),
    asks=True,
    build=build,
)
