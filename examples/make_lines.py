"""Draws the pictures in lines/, which the model that ships reads in the tests. Run from anywhere; needs Pillow only.

The words and the drawing are ours; the font is the one inside Pillow (Aileron by Sora Sagano, CC0).
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

#: Name of the picture: its text, the size of the font, ink and paper.
LINES = {
    "english": ("The parcel will arrive on Monday", 20, "black", "white"),
    "german": ("Bitte die Rechnung heute bezahlen", 22, "#1a2a4a", "#fdf6e3"),
    "french": ("Le train part dans une heure", 18, "black", "#eeeeee"),
    "spanish": ("La puerta de la casa es verde", 24, "white", "#2c4a6e"),
    "price": ("Total 47.50", 28, "black", "white"),
    "word": ("Library", 32, "#7a1020", "white"),
}


def draw(text: str, size: int, ink: str, paper: str) -> Image.Image:
    """The picture of a line, cut out with a margin."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (round(right - left + size), round(bottom - top + size * 0.8)), paper)
    ImageDraw.Draw(image).text((size / 2 - left, size * 0.4 - top), text, ink, font)
    return image


def main() -> None:
    folder = Path(__file__).with_name("lines")
    folder.mkdir(exist_ok=True)
    for name, line in LINES.items():
        draw(*line).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
