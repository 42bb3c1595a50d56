"""How many sizes the installed Pillow resizes otherwise than handlens, which resizes as Pillow 10.1 did.

    python -m benchmarks.resize_order

prints one line: the version, that number, and a digest of handlens' pictures, which is the same under every version.
"""

import argparse
import hashlib
import random

import PIL
from PIL import Image

from handlens.images import resize

COUNT = 150


def main() -> None:
    """Prints the line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rng = random.Random(0)
    different, digest = 0, hashlib.sha256()
    for _ in range(COUNT):
        width, height = rng.randint(1, 3000), rng.randint(1, 3000)
        size = 14 * rng.randint(1, 60), 14 * rng.randint(1, 60)
        noise = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
        ours = resize(noise, size).tobytes()
        different += ours != noise.resize(size, Image.Resampling.BICUBIC).tobytes()
        digest.update(ours)
    print(f"Pillow {PIL.__version__}: {different} of {COUNT} sizes differ, ours have digest {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
