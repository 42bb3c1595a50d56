"""What things are called: how well each of some hundred names fits a thing that was cut out of its picture (things.py).

The names are read off what the vision tower makes of the thing, its pixels and its colours, by a linear readout: a
ridge regression that `recipes/default/names.py` fits to drawn things, in closed form, and keeps in few dimensions and
bytes. It belongs to the weights of one vision tower, and lies beside the model as MODEL.names.safetensors. Other models
have none.
"""

import json
import logging
import lzma
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from handlens.config import ModelConfig
from handlens.data.questions import SHAPES, phrases
from handlens.errors import ModelFileError
from handlens.images import cut, patches

log = logging.getLogger("handlens")

#: What a readout's file is called, in place of the ".gguf" of the language file.
SUFFIX = ".names.safetensors"
FORMAT = "handlens names 1"
#: Things are looked at in so many pixels a side, before a ground of this grey.
SIDE, GREY = 112, 192
#: The tower's vectors, the pixels and the colours are means of squares, so many a side.
VECTORS, PIXELS, COLOURED = 4, 8, 7
#: Colours are told at squares of so many pixels: how near each is to these, and near is within so many of 255 levels.
SQUARE, NEAR = 4, 40.0
#: Words of so many letters have no ending to be left out.
SHORTEST = 3
#: With how many other names the best one is compared.
RIVALS = 9
ANCHORS = np.array(
    [
        (15, 15, 15), (60, 60, 80), (128, 128, 128), (250, 250, 250), (215, 30, 35), (245, 135, 20), (250, 220, 40),
        (40, 150, 60), (35, 80, 205), (120, 200, 240), (120, 45, 150), (250, 140, 185), (115, 70, 35), (255, 205, 160),
    ],
    np.float32,
)  # fmt: skip


class Tower(Protocol):
    """What of `cpu.vision.VisionTower` is needed here."""

    def encode(self, cells: np.ndarray, tgt_size: tuple[int, int], longest: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Limits:
    """Where scores begin to mean something; found by the recipe in styles that the regression had not learned from."""

    named: float  # a thing is called something where the best name is at least so sure (`sureness`)
    there: float  # what scores this is as likely in the picture as not
    absent: float  # what scores less is surely not in the picture


def looks(thing: np.ndarray) -> np.ndarray:
    """A thing that was cut out (`Things.cut_out`), uint8 [side, side, 4], as it is looked at: uint8 [SIDE, SIDE, 4]."""
    shown = thing[..., 3:] > 0
    colours = Image.fromarray(np.where(shown, thing[..., :3], np.uint8(GREY)))
    mask = Image.fromarray(thing[..., 3])
    size = SIDE, SIDE
    return np.dstack([np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in (colours, mask)])


def vectors(look: np.ndarray, tower: Tower, config: ModelConfig) -> np.ndarray:
    """What the tower makes of a thing (`looks`), in squares: float32 [VECTORS ** 2, width of the tower]."""
    vision = config.vision
    options = replace(config.slices, scale_resolution=SIDE)
    sliced = cut(Image.fromarray(look[..., :3]), options, vision.image_mean, vision.image_std)
    (tgt_size,) = sliced.plan.tgt_sizes
    seen = tower.encode(patches(sliced.slices[0], vision.patch_size), tgt_size, tgt_size[0] * tgt_size[1])
    return _squares(np.asarray(seen, np.float32).reshape(*tgt_size, -1), VECTORS).reshape(VECTORS**2, -1)


def appearance(look: np.ndarray) -> np.ndarray:
    """The pixels and the colours of a thing (`looks`), in squares: float32 [PIXELS ** 2 * 4 + COLOURED ** 2 * 14]."""
    pixels = look.astype(np.float32)
    coarse = _squares(pixels, SIDE // SQUARE)
    far = ((coarse[..., None, :3] - ANCHORS) ** 2).sum(axis=-1) / (2 * NEAR**2)
    near = np.exp(far.min(axis=-1, keepdims=True) - far)
    near *= coarse[..., 3:] / 255 / near.sum(axis=-1, keepdims=True)
    # Roots of shares: that there is some of a colour says more than how much.
    return np.concatenate([_squares(pixels, PIXELS).ravel() / 255, np.sqrt(_squares(near, COLOURED)).ravel()])


def sureness(scores: np.ndarray) -> np.ndarray:
    """By how much the best of the names [n, N] scores more than the RIVALS after it, on average: [n]."""
    best = -np.sort(-scores, axis=1)[:, : RIVALS + 1]
    return best[:, 0] - best[:, 1:].mean(axis=1)


def _squares(values: np.ndarray, count: int) -> np.ndarray:
    """The means of [n, n, c] in count x count squares, [count, count, c]."""
    side = len(values) // count
    return values.reshape(count, side, count, side, -1).mean(axis=(1, 3))


@dataclass(frozen=True, eq=False)
class Readout:
    """Scores of names. F features: C a square of the tower's V values, then the appearance; R dimensions; N names, of
    which the last are those of SHAPES."""

    project: np.ndarray  # float16 [V, C]
    centre: np.ndarray  # float32 [F]
    spread: np.ndarray  # float32 [F]
    down: np.ndarray  # float32 [F, R]
    up: np.ndarray  # float32 [R, N]
    bias: np.ndarray  # float32 [N]
    named: dict[str, tuple[str, ...]]  # by language: the names of the first N - len(SHAPES)
    limits: Limits
    vision: str  # the digest of the weights that it belongs to

    def scores(self, squares: np.ndarray, appearance: np.ndarray) -> np.ndarray:
        """How well each name fits, in standard deviations of the thing's scores of all names: float32 [n, N] from
        `vectors` [n, squares, V] and `appearance` [n, features] of n things."""
        projected = (squares @ self.project.astype(np.float32)).reshape(len(squares), -1)
        features = (np.concatenate([projected, appearance], axis=1) - self.centre) / self.spread
        scores = features @ self.down @ self.up + self.bias
        return (scores - scores.mean(axis=1, keepdims=True)) / np.maximum(scores.std(axis=1, keepdims=True), 1e-9)

    @property
    def shapes(self) -> slice:
        """Where the scores of SHAPES are."""
        return slice(len(self.bias) - len(SHAPES), len(self.bias))

    def names(self, language: str) -> tuple[str, ...]:
        """All names in a language; those that it lacks are empty."""
        things = self.named.get(language) or ("",) * (len(self.bias) - len(SHAPES))
        return (*things, *phrases(language).shapes.values())

    def meant(self, words: str, language: str) -> list[int]:
        """The places of the names that these words of a question mean in a language: the very name, also in another
        number, or else names that have all of the words. None where they are not known."""
        asked = _stems(words)
        if not asked:
            return []
        stems = _all_stems(self.names(language))
        same = [place for place, name in enumerate(stems) if name == asked]
        return same or [place for place, name in enumerate(stems) if set(asked) <= set(name)]

    def spoken_of(self, question: str, languages: Sequence[str]) -> tuple[str, list[int]] | None:
        """Of the names in these languages that a question in any words has in it the longest: its language and its
        places, for several things may be called so; None without one."""
        best: tuple[int, str, list[int]] | None = None
        said = _stems(question)
        for language in languages:
            names = _all_stems(self.names(language))
            known: dict[tuple[str, ...], list[int]] = {}
            for place, name in enumerate(names):
                if name:
                    known.setdefault(name, []).append(place)
            for start in range(len(said)):
                for end in range(start + 1, len(said) + 1):
                    length = sum(map(len, said[start:end]))
                    if said[start:end] in known and (best is None or length > best[0]):
                        best = length, language, known[said[start:end]]
        return best and best[1:]

    def save(self, path: Path) -> None:
        """Writes the readout; its large matrices in four bits a number, with a scale a column."""
        text = json.dumps(self.named, ensure_ascii=False, separators=(",", ":")).encode()
        down, down_scale = _packed(self.down)
        up, up_scale = _packed(self.up)
        tensors = {
            "project": self.project,
            "centre": self.centre.astype(np.float16),
            "spread": self.spread.astype(np.float16),
            "down": down,
            "down_scale": down_scale,
            "up": up,
            "up_scale": up_scale,
            "bias": self.bias,
            "names": np.frombuffer(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME), np.uint8),
        }
        facts = {"format": FORMAT, "vision": self.vision, "shapes": ",".join(SHAPES)}
        facts |= {name: repr(float(value)) for name, value in vars(self.limits).items()}
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, facts)

    @classmethod
    def open(cls, path: Path) -> "Readout":
        """The readout in a file; ModelFileError where it holds none."""
        try:
            with safe_open(path, framework="numpy") as file:
                facts = file.metadata() or {}
                stored = file.keys()
                found = {name: file.get_tensor(name) for name in stored}
            if facts.get("format") != FORMAT or facts["shapes"] != ",".join(SHAPES):
                raise ModelFileError(f"{path} holds no names that this version of handlens reads")
            limits = Limits(*(float(facts[name]) for name in ("named", "there", "absent")))
            named = json.loads(lzma.decompress(found["names"].tobytes()))
            values = (found[name].astype(np.float32) for name in ("centre", "spread"))
            down = _unpacked(found["down"], found["down_scale"], len(found["centre"]))
            up = _unpacked(found["up"], found["up_scale"], down.shape[1])
            vision = facts["vision"]
            return cls(found["project"], *values, down, up, found["bias"], _tuples(named), limits, vision)
        except (OSError, SafetensorError, KeyError, ValueError, lzma.LZMAError) as failure:
            raise ModelFileError(f"{path} cannot be read as names of things: {failure}") from None


def _tuples(named: dict[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    return {language: tuple(names) for language, names in named.items()}


#: Codes of the large matrices go from -LEVELS to LEVELS; of the scales that give the largest number of a column these
#: shares, the one is taken with the least error.
LEVELS, SHARES = 7, (1.0, 0.8, 0.65, 0.5)


def _packed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [n, m] in codes of four bits, uint8 [n / 2, m] of two rows each (of an odd number the last is one of
    zeros), and what its columns were divided by, float16 [m]."""
    columns = np.arange(matrix.shape[1])
    tried, errors = [], []
    for share in SHARES:
        scale = np.maximum(np.abs(matrix).max(axis=0) * share / LEVELS, 1e-6).astype(np.float16)
        codes = np.clip(np.rint(matrix / scale.astype(np.float32)), -LEVELS, LEVELS)
        tried.append((codes, scale))
        errors.append(((codes * scale.astype(np.float32) - matrix) ** 2).sum(axis=0))
    best = np.argmin(errors, axis=0)
    codes = np.stack([codes for codes, _ in tried])[best, :, columns].T
    scale = np.stack([scale for _, scale in tried])[best, columns]
    codes = np.pad(codes, ((0, len(codes) % 2), (0, 0))).astype(np.int8) + LEVELS
    return (codes[::2] | codes[1::2] << 4).astype(np.uint8), scale


def _unpacked(codes: np.ndarray, scale: np.ndarray, rows: int) -> np.ndarray:
    """The matrix [rows, m] that was packed, float32."""
    both = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1, codes.shape[1])[:rows]
    return (both.astype(np.float32) - LEVELS) * scale.astype(np.float32)


def _stems(words: str) -> tuple[str, ...]:
    """The words without case, marks and the ending of the plural in English, French, Spanish and Portuguese, which
    names of things may lack and questions have, or the other way about."""
    letters = "".join(character if character.isalnum() else " " for character in words.casefold())
    return tuple(_stem(word) for word in letters.split())


@lru_cache(maxsize=32)
def _all_stems(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(map(_stems, names))


def _stem(word: str) -> str:
    for ending in ("s", "e"):
        if word.endswith(ending) and not word.endswith("ss") and len(word) > SHORTEST:
            word = word.removesuffix(ending)
    return word


class Names:
    """The readout of one loaded model, opened when it is first asked for. Safe for many threads."""

    def __init__(self, model: Any):
        self.model = model  # weights.LoadedModel
        self.lock = threading.Lock()
        self.tried = False
        self.found: Readout | None = None

    @property
    def readout(self) -> Readout | None:
        """The readout that belongs to the model; None where it has none, or one of other weights, which is said."""
        with self.lock:
            if not self.tried:
                self.tried, self.found = True, self._open()
            return self.found

    def _open(self) -> Readout | None:
        files, backend = self.model.files, getattr(self.model.generator, "backend", None)
        if files is None or backend is None or self.model.config.vision is None:
            return None
        path = files.model.with_suffix(SUFFIX)
        if not path.is_file():
            return None
        readout = Readout.open(path)
        if readout.vision != backend.vision_key.split()[0]:
            log.warning("%s belongs to other vision weights than those loaded: things are not named by it", path)
            return None
        return readout

    def scores(self, things: Sequence[np.ndarray]) -> np.ndarray:
        """How well each name of the readout fits each of the things that were cut out, float32 [things, names]."""
        backend, config = self.model.generator.backend, self.model.config
        seen = [looks(thing) for thing in things]
        try:
            squares = np.stack([vectors(look, backend.tower, config) for look in seen])
        finally:
            if backend.low_memory:
                backend.encode([], 0)  # the tower leaves memory again
        return self.readout.scores(squares, np.stack([appearance(look) for look in seen]))
