"""Charts by Vega-Lite, which training does not use: the value of a label, printed at the mark or read off the axis, and
which label has the highest."""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from handlens.data.chart_values import Chart, invent
from handlens.data.questions import ask
from handlens.data.sample import HELD_OUT
from handlens.data.sources import Sources, pick
from handlens.data.structured import between, chance
from handlens.eval.metrics import field, number, relaxed
from handlens.eval.suite import Bar, Drawn, Item, Missing, Scores, Suite, face_to_read, seeded

KINDS = ("bar", "bar", "flat bar", "line", "pie", "area")
SCHEMES = ("tableau10", "set2", "dark2", "category20b", "accent", "pastel1")
CONFIGS = (
    {},
    {"view": {"stroke": None}, "axis": {"domain": False, "gridColor": "#ddd"}},
    {"background": "#f9f9f9", "axis": {"grid": False}},
    {"view": {"fill": "#e5e5e5"}, "axis": {"gridColor": "#fff", "ticks": False}},
)


def build(sources: Sources, n: int, seed: int, packages: Path) -> Iterator[Drawn]:
    try:
        import vl_convert
    except ModuleNotFoundError:
        raise Missing("vl-convert-python is not installed: pip install 'handlens[eval]'") from None
    with tempfile.TemporaryDirectory() as folder:
        families = write_families(sources, Path(folder))
        vl_convert.register_font_directory(folder)
        for i in range(n):
            rng = seeded(seed, "charts", i)
            language = pick(rng, sources.languages)
            face = face_to_read(rng, sources, language)
            while True:
                content = invent(rng, sources, language, HELD_OUT, KINDS)
                texts = (*content.labels, content.title, content.axis, *map(content.write, content.values))
                if len(content.series) == 1 and all(map(face.covers, texts)):
                    break
            png = vl_convert.vegalite_to_png(spec(rng, content, families[face.path]), scale=1)
            with Image.open(io.BytesIO(png)) as image:
                pixels = np.asarray(image.convert("RGB"))
            facts = [fact for fact in content.facts() if fact.kind in ("chart-value", "chart-highest")]
            kind = "chart-value" if chance(rng, 0.8) else "chart-highest"
            fact = pick(rng, [fact for fact in facts if fact.kind == kind])
            value = "labelled value" if content.shown else "value off the axis"
            group = value if kind == "chart-value" else "highest"
            yield Drawn(pixels, ask(rng, kind, language, **fact.slots), fact.answer, group, language)


def write_families(sources: Sources, folder: Path) -> dict[Path, str]:
    """Copies of the held-out fonts, each a family of its own, so that no font of this machine stands in for one; the
    names of the families by the fonts' own paths. Prepared fonts lack a name that the renderer wants."""
    from fontTools.ttLib import TTFont

    families = {}
    for i, face in enumerate(face for face in sources.faces if face.split == HELD_OUT):
        family = families[face.path] = f"held-out-{i}"
        with TTFont(face.path) as font:
            for name in (1, 4, 6):
                font["name"].setName(family, name, 3, 1, 0x409)
            font.save(folder / f"{family}{face.path.suffix}")
    return families


def spec(rng: np.random.Generator, content: Chart, family: str) -> dict:
    """The chart as Vega-Lite."""
    rows = [
        {"label": label, "value": number(content.write(value)), "text": content.write(value)}
        for label, value in zip(content.labels, content.values)
    ]
    size = between(rng, 12, 16)
    order = {"field": "label", "type": "nominal", "sort": None, "title": None, "axis": {"labelAngle": 0}}
    amount = {"field": "value", "type": "quantitative", "title": content.axis or None}
    scheme = {"scheme": pick(rng, SCHEMES)}
    text = {"field": "text", "type": "nominal"}
    if content.kind == "pie":
        colour = {"field": "label", "type": "nominal", "sort": None, "scale": scheme, "title": None}
        arc = {"theta": {"field": "value", "type": "quantitative", "stack": True}}
        arc["order"] = {"field": "place", "type": "quantitative"}
        rows = [row | {"place": place} for place, row in enumerate(rows)]
        marks = [
            {"mark": {"type": "arc", "outerRadius": 95}, "encoding": {"color": colour}},
            {"mark": {"type": "text", "radius": 120}, "encoding": {"text": text}},
        ]
        marks[1]["encoding"]["detail"] = {"field": "label", "type": "nominal"}
        encoding = arc
        side = {"width": 280, "height": 280}
    else:
        flat = content.kind == "flat bar"
        if flat:
            order["axis"] = {}
        encoding = {"y": order, "x": amount} if flat else {"x": order, "y": amount}
        mark = {"type": content.kind.split()[-1], "point": content.kind in ("line", "area")}
        colour = {"field": "label", "type": "nominal", "scale": scheme, "legend": None}
        many = content.kind.endswith("bar") and chance(rng, 0.4)
        marks = [{"mark": mark, "encoding": {"color": colour} if many else {}}]
        if not many:
            mark["color"] = pick(rng, ("#4c78a8", "#e45756", "#54a24b", "#b279a2", "#333"))
            mark |= {"opacity": 0.6} if content.kind == "area" else {}
        if content.shown:
            place = {"align": "left", "dx": 4} if flat else {"baseline": "bottom", "dy": -5}
            marks.append({"mark": {"type": "text", **place}, "encoding": {"text": text}})
        longest = max(map(len, content.labels))
        wide = max(260, len(rows) * (longest * size * 0.62 + 12)) if not flat else 300
        if wide > 560:
            order["axis"] = {"labelAngle": -40}
        side = {"width": min(int(wide), 560), "height": between(rng, 200, 320)}
    look, sizes = pick(rng, CONFIGS), {"labelFontSize": size, "titleFontSize": size}
    config = look | {"font": family, "axis": look.get("axis", {}) | sizes, "legend": sizes}
    config["text"] = {"fontSize": size, "color": "#000"}
    title = {"title": {"text": content.title, "fontSize": size + 3}} if content.title else {}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": rows},
        "encoding": encoding,
        "layer": marks,
        "config": config,
        "padding": 12,
        **title,
        **side,
    }


def score(item: Item, answer: str) -> Scores:
    return {"within 5 %": (field if item.group == "highest" else relaxed)(item.truth, answer)}


SUITE = Suite(
    name="charts",
    about="charts by Vega-Lite: a value within 5 %, or the label of the highest",
    score=score,
    measures={"within 5 %": "more"},
    bars=(Bar("within 5 %", "labelled value", 0.8, 0.3),),
    asks=True,
    build=build,
)
