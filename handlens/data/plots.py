"""Charts drawn by matplotlib (extra `data`): 20 times slower than charts.py, and another look; no glyph centres."""

import numpy as np

from handlens.data.chart_values import Chart, invent
from handlens.data.charts import PALETTES
from handlens.data.raster import Canvas
from handlens.data.sample import Sample
from handlens.data.sources import Sources, pick
from handlens.data.structured import Drawn, between, chance, fitted, to_sample

STYLES = (
    "default",
    "classic",
    "ggplot",
    "bmh",
    "seaborn-v0_8",
    "seaborn-v0_8-whitegrid",
    "fivethirtyeight",
    "grayscale",
    "dark_background",
)
KINDS = ("bar", "bar", "flat bar", "line", "pie", "donut")


def plot(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Sample:
    return to_sample(rng, draw_plot(rng, sources, language, split), "plot", language, reading_share=0.1)


@fitted
def draw_plot(rng: np.random.Generator, sources: Sources, language: str, split: str) -> Drawn:
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    content = invent(rng, sources, language, split, KINDS)
    font = FontProperties(fname=str(sources.face(rng, language, split).path), size=between(rng, 10, 13))
    dots = 100
    with matplotlib.style.context(pick(rng, STYLES)):
        letters = max(sum(map(len, content.labels)), sum(len(content.write(tick)) for tick in content.ticks))
        wide = max(4.2, 0.12 * letters) + rng.uniform(0, 1.2)
        figure = Figure((min(wide, 7), rng.uniform(3, 4.2)), dpi=dots, layout="tight")
        axes = figure.add_subplot()
        paint(rng, axes, content, font)
        if content.title:
            axes.set_title(content.title, fontproperties=font)
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_fontproperties(font)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    image = np.asarray(canvas.buffer_rgba())
    page = Canvas(image.shape[1], image.shape[0])
    page.paste(0, 0, image)
    return Drawn(page, content.reading(), content.facts())


def paint(rng: np.random.Generator, axes, content: Chart, font) -> None:
    """Draws the series on matplotlib's axes."""
    count, several = len(content.labels), len(content.series) > 1
    places = np.arange(count)
    if content.kind in ("pie", "donut"):
        own = chance(rng, 0.5)
        legend = chance(rng, 0.3) or min(content.values) < 0.12 * sum(content.values)
        colours = [tuple(part / 255 for part in colour) for colour in pick(rng, PALETTES)]
        texts = [f"{label} {content.write(value)}" for label, value in zip(content.labels, content.values)]
        hole = {"width": rng.uniform(0.35, 0.6)} if content.kind == "donut" else {}
        axes.pie(
            content.values,
            labels=None if legend else texts,
            startangle=rng.uniform(0, 360),
            textprops={"fontproperties": font},
            wedgeprops=hole,
            colors=colours if own else None,
        )
        if legend:
            axes.legend(texts, prop=font, loc="center left", bbox_to_anchor=(1, 0.5))
        return
    for number, (name, values) in enumerate(content.series.items()):
        if content.kind == "line":
            axes.plot(places, values, marker=pick(rng, ("o", "s", "^", "D", "x")), label=name)
            if content.shown:
                for place, value in zip(places, values):
                    axes.annotate(
                        content.write(value),
                        (place, value),
                        xytext=(0, 6),
                        textcoords="offset points",
                        ha="center",
                        fontproperties=font,
                    )
            continue
        room = 0.8 / len(content.series)
        draw = axes.barh if content.kind == "flat bar" else axes.bar
        marks = draw(places + (number - (len(content.series) - 1) / 2) * room, values, room, label=name)
        if content.shown:
            axes.bar_label(marks, [content.write(value) for value in values], padding=2, fontproperties=font)
    numbers = list(content.ticks)
    flat = content.kind == "flat bar"
    (axes.set_yticks if flat else axes.set_xticks)(places, content.labels)
    if not flat and sum(map(len, content.labels)) > 50:
        axes.tick_params(axis="x", rotation=30)
    (axes.set_xticks if flat else axes.set_yticks)(numbers, [content.write(number) for number in numbers])
    (axes.set_xlim if flat else axes.set_ylim)(0, content.top * 1.15)
    if not content.shown:
        axes.grid(True, axis="x" if flat else "y", alpha=0.5)
        axes.set_axisbelow(True)
    if content.axis:
        (axes.set_xlabel if flat else axes.set_ylabel)(content.axis, fontproperties=font)
    if several:
        axes.legend(prop=font)
