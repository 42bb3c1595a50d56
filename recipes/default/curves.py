"""loss.png: how losses and held-out errors went, from metrics.jsonl, with Pillow alone."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

#: The curves of a panel and their colours.
PANELS = (
    ("loss", {"answers": (30, 90, 200), "dense": (200, 110, 20)}),
    ("share", {"dense_right": (20, 140, 60), "cer": (200, 30, 50), "exact": (120, 60, 180)}),
)
SIZE, MARGIN = (900, 360), 48


def draw_curves(out: Path) -> None:
    """Writes OUT/loss.png; nothing without metrics."""
    path = out / "metrics.jsonl"
    if not path.exists():
        return
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    picture = Image.new("RGB", (SIZE[0], SIZE[1] * len(PANELS)), "white")
    for number, (title, colours) in enumerate(PANELS):
        curves = {
            name: [(row["minutes"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
            for name in colours
        }
        _panel(ImageDraw.Draw(picture), number * SIZE[1], title, curves, colours)
    picture.save(out / "loss.png")


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, curves: dict, colours: dict) -> None:
    font = ImageFont.load_default(13)
    points = [point for curve in curves.values() for point in curve]
    right, high = (max((point[axis] for point in points), default=1) or 1 for axis in (0, 1))
    width, height = SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN
    bottom = top + MARGIN + height
    draw.rectangle((MARGIN, top + MARGIN, MARGIN + width, bottom), outline=(180, 180, 180))
    for step in range(5):
        y = bottom - height * step / 4
        draw.line((MARGIN, y, MARGIN + width, y), fill=(230, 230, 230))
        draw.text((6, y - 7), f"{high * step / 4:.2f}", "black", font)
        draw.text((MARGIN + width * step / 4 - 10, bottom + 6), f"{right * step / 4:.0f}", "black", font)
    draw.text((MARGIN, top + 12), f"{title} by minutes", "black", font)
    for number, (name, curve) in enumerate(curves.items()):
        draw.text((MARGIN + 160 + 120 * number, top + 12), name, colours[name], font)
        line = [(MARGIN + x / right * width, bottom - y / high * height) for x, y in curve]
        if len(line) > 1:
            draw.line(line, fill=colours[name], width=2)
