"""All that can be drawn: makers by the names of their tasks, groups of them, and what degradation must leave alone."""

from handlens.data import (
    charts,
    empty,
    forms,
    listings,
    pages,
    plots,
    receipts,
    refusals,
    scenes,
    screens,
    tables,
    text,
)
from handlens.data.sample import Maker

TASKS: dict[str, Maker] = {
    "word": text.word,
    "line": text.line,
    "paragraph": text.paragraph,
    "block": text.block,
    "notice": text.notice,
    "code": listings.code,
    "page": pages.page,
    "letter": pages.letter,
    "table": tables.table,
    "receipt": receipts.receipt,
    "invoice": receipts.invoice,
    "form": forms.form,
    "menu": forms.menu,
    "screen": screens.screen,
    "chart": charts.chart,
    "plot": plots.plot,
    "name": scenes.name,
    "count": scenes.count,
    "locate": scenes.locate,
    "shapes": scenes.shapes,
    "present": scenes.present,
    "absent": refusals.absent,
    "writing": refusals.writing,
    "language": refusals.language_of,
    "blank": empty.blank,
    "unreadable": empty.unreadable,
    "photo": empty.photo,
}

#: Names that stand for several tasks.
GROUPS: dict[str, tuple[str, ...]] = {
    "texts": ("word", "line", "paragraph", "block", "notice", "code"),
    "pages": ("page", "letter"),
    "tables": ("table",),
    "receipts": ("receipt", "invoice"),
    "forms": ("form", "menu"),
    "screens": ("screen",),
    "charts": ("chart", "plot"),
    "scenes": ("name", "count", "locate", "shapes", "present"),
    "refusals": ("absent", "writing", "blank", "unreadable", "photo"),
    "all": tuple(TASKS),
}

#: What the answers of a task speak of; see degrade.py.
KEEP: dict[str, tuple[str, ...]] = {
    "name": ("colours",),
    "count": ("colours",),
    "locate": ("colours", "places"),
    "shapes": ("colours", "places"),
    "present": ("colours",),
    "absent": ("colours", "places"),
    "chart": ("colours",),
    "plot": ("colours",),
}
