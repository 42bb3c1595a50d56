"""Draws receipt.png, the image that the README asks about. Run from anywhere; needs Pillow only.

The words and the drawing are ours; the font is the one inside Pillow (Aileron by Sora Sagano, CC0).
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LINES = [
    ("CORNER BAKERY", None, 40),
    ("12 Mill Lane", None, 24),
    ("", None, 24),
    ("2 x Rye bread", "7.80", 30),
    ("1 x Apple cake", "3.40", 30),
    ("3 x Espresso", "6.30", 30),
    ("", None, 16),
    ("Subtotal", "17.50", 30),
    ("Tax 8 %", "1.40", 30),
    ("TOTAL", "18.90", 40),
    ("", None, 24),
    ("Paid by card  2026-11-23  09:41", None, 24),
    ("Thank you!", None, 30),
]
WIDTH, MARGIN = 560, 40


def main() -> None:
    height = 2 * MARGIN + sum(int(size * 1.5) for _, _, size in LINES)
    image = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    y = MARGIN
    for left, right, size in LINES:
        font = ImageFont.load_default(size)
        if right is None:
            draw.text((WIDTH / 2, y), left, "black", font, anchor="ma")
        else:
            draw.text((MARGIN, y), left, "black", font)
            draw.text((WIDTH - MARGIN, y), right, "black", font, anchor="ra")
        y += int(size * 1.5)
    image.save(Path(__file__).with_name("receipt.png"), optimize=True)


if __name__ == "__main__":
    main()
