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
from handlens.eval.suite import Bar, Drawn, Item, Scores, Suite, seeded

Pairs = Sequence[tuple[str, str]]
WIDEST = HIGHEST = 672


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    with Browser() as browser:
        for i in range(n):
            rng = seeded(seed, "receipts", i)
            group = list(MAKERS)[i % len(MAKERS)]
            language = sources.languages[i // len(MAKERS) % len(sources.languages)]
            while True:
                face = sources.face(rng, language, HELD_OUT)
                body, facts, width = MAKERS[group](rng, sources, language, face)
                known = [f for f in facts if all(map(face.covers, (f.answer, *f.slots.values()))) and f.answer]
                image, _ = browser.draw(page(rng, sources, language, face, body), width)
                if known and image.shape[0] <= HIGHEST:
                    break
            kind = pick(rng, sorted({fact.kind for fact in known}))
            fact = pick(rng, [fact for fact in known if fact.kind == kind])
            yield Drawn(image, ask(rng, kind, language, **fact.slots), fact.answer, group, language)


def page(rng: np.random.Generator, sources: Sources, language: str, face: Font, body: str) -> str:
    paper = pick(rng, ("#fff", "#fff", "#fbfaf3", "#f6f7f9"))
    return f"""<!doctype html><html lang="{language}"><meta charset="utf-8"><style>{css(sources, face)}
* {{ box-sizing: border-box; margin: 0 }} html {{ background: {paper} }}
body {{ font: {between(rng, 14, 17)}px/{pick(rng, (1.25, 1.4, 1.55))} held-out; padding: {between(rng, 8, 22)}px }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ padding: 1px 4px; text-align: left; vertical-align: top }}
td:last-child, th:last-child {{ text-align: right }} .c {{ text-align: center }} .big {{ font-size: 1.35em }}
</style><body>{body}"""


def rows(pairs: Pairs, tag: str = "td") -> str:
    return "".join(f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in pair)}</tr>" for pair in pairs)


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
    head = f'<div class="c"><b class="big">{html.escape(shop)}</b><br>{lines(address(rng, sources, language, HELD_OUT))}</div>'
    body = pick(rng, RECEIPTS)(head, meta, items, sums, paid, words)
    facts = [Fact("receipt-field", value, {"field": label.removesuffix(":")}) for label, value in (*meta, *sums, *paid)]
    facts += [
        Fact("receipt-item-price", bill.bare(item.amount), {"item": item.name}) for item in bill.items if item.quantity == 1
    ]
    return body, clear(facts), between(rng, 320, 460)


def framed(head: str, meta: Pairs, items: Sequence, sums: Pairs, paid: Pairs, words: dict[str, str]) -> str:
    """Everything in boxes below each other, the total first."""
    box = '<div style="border:1px solid #777;border-radius:8px;padding:6px;margin-top:8px"><table>{}</table></div>'
    total = f'<div class="c big" style="background:#eee;margin-top:8px;padding:4px"><b>{html.escape(" ".join(sums[-1]))}</b></div>'
    first = sums[-1][0] == words["total"]
    rest = sums[:-1] if first else sums
    return head + (total if first else "") + box.format(rows(items)) + box.format(rows([*rest, *paid])) + box.format(rows(meta))


def slip(head: str, meta: Pairs, items: Sequence, sums: Pairs, paid: Pairs, words: dict[str, str]) -> str:
    """One column of grey headings, each with a table below."""
    title = '<div style="color:#666;border-bottom:2px dotted #999;margin:8px 0 3px">{}</div>'
    parts = ((words["items"], items), (words["subtotal"] if len(sums) > 2 else words["amount"], sums), (words["payment"], paid))
    tables = "".join(title.format(html.escape(name)) + f"<table>{rows(part)}</table>" for name, part in parts if part)
    return f"<table>{rows(meta)}</table>{tables}<div style='margin-top:10px'>{head}</div>"


def columns(head: str, meta: Pairs, items: Sequence, sums: Pairs, paid: Pairs, words: dict[str, str]) -> str:
    """Stars between the parts; items as names with the numbers below."""
    stars = '<div class="c">* * * * *</div>'
    goods = "".join(
        f"<tr><td colspan='2'>{html.escape(name)}</td></tr><tr><td>&emsp;{html.escape(count)}</td><td>{html.escape(price)}</td></tr>"
        for name, count, price in items
    )
    facts = " ".join(f"<span style='margin-right:14px'>{html.escape(' '.join(pair))}</span>" for pair in meta)
    return f"{head}{stars}<div>{facts}</div>{stars}<table>{goods}</table>{stars}<table style='font-weight:bold'>{rows(sums)}</table><table>{rows(paid)}</table>"


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
    table = f"<table style='margin:10px 0;border:1px solid #bbb'>{rows(head, 'th')}{rows(goods)}</table><table>{rows(sums)}</table>"
    to = f"{html.escape(words['bill_to'])}<br><b>{html.escape(buyer)}</b><br>{lines(address(rng, sources, language, HELD_OUT))}"
    title = f"<div class='big'><b>{html.escape(words['invoice'])}</b> · {html.escape(seller)}</div>"
    if chance(rng, 0.5):
        side = "".join(f"<div style='color:#555'>{html.escape(name)}</div><b>{html.escape(value)}</b>" for name, value in meta)
        body = f"{title}<div style='display:flex;gap:16px'><div style='background:#e8ecf2;padding:8px;min-width:150px'>{side}</div><div style='flex:1'>{to}{table}</div></div>"
    else:
        strip = "".join(
            f"<div style='border:1px solid #999;padding:4px;flex:1'><small>{html.escape(name)}</small><br>{html.escape(value)}</div>"
            for name, value in meta
        )
        body = f"{title}{to}<div style='display:flex;gap:4px;margin-top:8px'>{strip}</div>{table}"
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
    style = pick(rng, FORMS)
    fields = "".join(style.format(html.escape(name), html.escape(value)) for name, value in pairs)
    two = "display:grid;grid-template-columns:1fr 1fr;gap:8px" if chance(rng, 0.5) else "display:grid;gap:7px"
    body = f"<div class='big' style='margin-bottom:8px'><b>{html.escape(words['form'])}</b></div><div style='{two}'>{fields}</div>"
    return body, clear([Fact("form-field", value, {"field": name}) for name, value in pairs]), between(rng, 480, WIDEST)


FORMS = (
    "<div><div style='font-size:.85em;color:#555'>{0}</div><div style='border:1px solid #888;border-radius:4px;padding:3px 6px'>{1}</div></div>",
    "<div style='border-bottom:1px solid #555'>{0} <span style='color:#1b2f80;float:right'>{1}</span></div>",
    "<div style='border:1px solid #555'><div style='background:#ddd;padding:0 5px'>{0}</div><div style='padding:3px 5px;color:#113'>{1}</div></div>",
)
MAKERS = {"receipts": receipt, "invoices": invoice, "forms": form}


def score(item: Item, answer: str) -> Scores:
    return {"exact field": field(item.truth, answer), "ANLS": anls([item.truth], answer)}


SUITE = Suite(
    name="receipts",
    about="a value on receipts, invoices and forms laid out by Chromium",
    score=score,
    measures={"exact field": "more", "ANLS": "more"},
    bars=(Bar("exact field", "", 0.8, 0.5), Bar("exact field", "receipts", 0.8, 0.5)),
    build=build,
)
