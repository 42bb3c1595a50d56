"""Fits the readout that names things (handlens/naming.py) to a vision tower: `python -m recipes.default.names`.

Things are drawn as in use, alone and cut out of their picture (handlens/things.py), every one several times in each of
the drawing styles for training. A ridge regression from what the tower makes of them, their pixels and their colours to
their names is solved in closed form, then kept in few dimensions. What scores mean is found with styles and names left
out of further regressions; the held-out style is only measured.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from handlens.chat import Chat, load
from handlens.data import scenes
from handlens.data.questions import COLOURS, SHAPES
from handlens.data.raster import Canvas
from handlens.data.sample import HELD_OUT, TRAIN
from handlens.data.sources import Sources
from handlens.errors import HandlensError
from handlens.naming import Limits, Readout, appearance, looks, sureness, vectors
from handlens.things import find_things

#: How often a thing is drawn in each style, and a shape for each of them; how often a drawing may fail to stand alone.
DRAWN, SHAPES_DRAWN, TRIES = 3, 12, 20
#: Values that are kept of each vector of the tower, dimensions of the regression, and its penalty, in shares of the
#: mean square of a feature.
KEPT, RANK, PENALTY = 80, 360, 1.0
#: One name in so many is left out where scores of unknown things are looked at.
LEFT_OUT = 5
#: So many things are in a picture in which one that is absent is looked for; among so many a name has to be right.
AMONG, OF = 4, 3
#: Of the things that are there this share may be said to be absent.
MISSED = 0.1
#: What a wrong name costs beside what a right one earns: what the decoder says instead is wrong as well, and as sure.
WRONG = 0.5


@dataclass(frozen=True, eq=False)
class Drawn:
    """Things that were drawn, n of them: what the tower makes of each [n, squares, V], how it appears [n, features],
    in which style it was drawn and the place of its name, [n] each. Shapes have the style -1."""

    squares: np.ndarray
    appearance: np.ndarray
    style: np.ndarray
    name: np.ndarray

    def of(self, chosen: np.ndarray) -> "Drawn":
        """Those chosen by bool [n]."""
        return Drawn(*(values[chosen] for values in vars(self).values()))


def draw(chat: Chat, sources: Sources, split: str, times: int, seed: int, tell: Callable[[str], None]) -> Drawn:
    """Every thing of a split `times` in each of its styles, and shapes where it is the one for training."""
    backend, config = chat.generator.backend, chat.config
    rows = []
    for style, name, thing in _things(sources, split, times, seed, tell):
        look = looks(thing)
        rows.append((vectors(look, backend.tower, config).astype(np.float16), appearance(look), style, name))
    return Drawn(*(np.array(column) for column in zip(*rows, strict=True)))


def _things(
    sources: Sources, split: str, times: int, seed: int, tell: Callable[[str], None]
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(style, name, thing cut out) of all things to be drawn."""
    sprites = sources.sprites(split)
    for turn in range(times):
        for style, called in enumerate(sprites.sets):
            for name in range(len(sprites.keys)):
                rng = np.random.default_rng([seed, turn, style, name])
                for _ in range(TRIES):
                    found = _alone(scenes.draw_alone(rng, sources, split, name, style)[0])
                    if found is not None:
                        yield style, name, found
                        break
            tell(f"{called}: drawn {turn + 1} of {times} times")
    for number in range(SHAPES_DRAWN * times if split == TRAIN else 0):
        for place in range(len(SHAPES)):
            rng = np.random.default_rng([seed, number, place])
            while (found := _alone(_shape(rng, SHAPES[place]))) is None:
                pass
            yield -1, len(sprites.keys) + place, found


def _alone(picture: np.ndarray) -> np.ndarray | None:
    """The only thing in a picture, cut out; None where it is not found as one."""
    things = find_things(Image.fromarray(picture))
    return things.cut_out(0) if things is not None and len(things.boxes) == 1 else None


def _shape(rng: np.random.Generator, shape: str) -> np.ndarray:
    """A shape in one colour on a ground of another, uint8 [side, side, 3]."""
    side = int(rng.choice(scenes.SIDES))
    ground, ink = (scenes.shade(rng, colour) for colour in rng.permutation(COLOURS)[:2].tolist())
    canvas = Canvas(2 * side, 2 * side, ground)
    radius = side * rng.uniform(0.15, 0.6)
    scenes.OUTLINES[shape](canvas, *rng.uniform(radius, 2 * side - radius, 2), radius, ink, ground)
    return canvas.finish(0.5)[0]


def fit(drawn: Drawn, named: dict[str, tuple[str, ...]], vision: str = "", limits: Limits | None = None) -> Readout:
    """The readout of what was drawn. Of a name that is not in it the scores mean nothing."""
    squares = drawn.squares.astype(np.float32)
    flat = squares.reshape(-1, squares.shape[-1])
    _, directions = np.linalg.eigh(np.cov(flat[:: max(len(flat) // 50_000, 1)], rowvar=False))
    project = directions[:, -KEPT:].astype(np.float16)
    features = np.concatenate(
        [(squares @ project.astype(np.float32)).reshape(len(squares), -1), drawn.appearance], axis=1
    )
    centre, spread = features.mean(axis=0), features.std(axis=0) + 1e-3
    # As they will be read.
    centre, spread = (values.astype(np.float16).astype(np.float32) for values in (centre, spread))
    features = (features - centre) / spread
    number = len(next(iter(named.values()))) + len(SHAPES)
    wanted = np.zeros((len(features), number), np.float32)
    wanted[np.arange(len(features)), drawn.name] = 1
    # Each name counts as often as any other.
    weight = 1 / np.bincount(drawn.name, minlength=number)[drawn.name]
    weight = np.sqrt(weight / weight.mean())[:, None].astype(np.float32)
    share = (weight**2 * wanted).mean(axis=0)
    inputs, outputs = weight * features, weight * (wanted - share)
    gram = inputs.T @ inputs / len(inputs)
    gram[np.diag_indices_from(gram)] += PENALTY * np.trace(gram) / len(gram)
    solution = np.linalg.solve(gram, inputs.T @ outputs / len(inputs))  # [F, N]
    # The dimensions in which what it says differs most.
    said = inputs @ solution
    _, axes = np.linalg.eigh(said.T @ said)
    axes = axes[:, -RANK:]
    return Readout(project, centre, spread, solution @ axes, axes.T, share, named, limits or Limits(0, 0, 0), vision)


def scored(readout: Readout, drawn: Drawn) -> np.ndarray:
    """The scores of all names for all that was drawn, float32 [n, names]."""
    return readout.scores(drawn.squares.astype(np.float32), drawn.appearance)


@dataclass(frozen=True)
class Meanings:
    """What scores mean for a style that was not learned from. How sure the best name of each thing is and whether it is
    the right one; how sure that of things is whose names were left out; what the names of things score, and the best of
    AMONG others for a name."""

    sure: np.ndarray
    right: np.ndarray
    unknown: np.ndarray
    present: np.ndarray
    absent: np.ndarray

    @property
    def limits(self) -> Limits:
        """A name is said as far as right names earn more than wrong ones cost, those of unknown things among these.
        What is there is told from what is not with the fewest mistakes, and what scores less than all but MISSED of
        what is there is surely not."""
        sure = np.concatenate([self.sure, self.unknown])
        gain = np.concatenate([np.where(self.right, 1, -WRONG), np.full(len(self.unknown), -WRONG)])
        order = np.argsort(-sure)
        steps = np.unique(np.concatenate([self.present, self.absent]))
        missed = [(self.present < limit).mean() + (self.absent >= limit).mean() for limit in steps]
        return Limits(
            float(sure[order][gain[order].cumsum().argmax()]),
            float(steps[np.argmin(missed)]),
            float(np.quantile(self.present, MISSED)),
        )

    def describe(self, limits: Limits) -> str:
        """What limits do to these things."""
        said = self.sure >= limits.named
        missed, taken = (
            [f"{(scores < limit).mean():.1%}" for limit in (limits.absent, limits.there)]
            for scores in (self.present, self.absent)
        )
        return (
            f"{self.right.mean():.1%} of {len(said)} things named rightly; with the limits {said.mean():.1%} named, "
            f"{_share(self.right[said]):.1%} of these rightly, and {(self.unknown >= limits.named).mean():.1%} of "
            f"{len(self.unknown)} whose names were left out; of what is there {missed[0]} surely absent, {missed[1]} "
            f"rather so; of what is not there among {AMONG} others {taken[0]} and {taken[1]}"
        )


def _share(right: np.ndarray) -> float:
    """The share of those that are right; 0 of none."""
    return float(right.sum()) / max(len(right), 1)


def meanings(drawn: Drawn, named: dict[str, tuple[str, ...]], seed: int) -> list[Meanings]:
    """What scores mean: each style for training once as one that is new, with one name in LEFT_OUT unknown."""
    rng = np.random.default_rng(seed)
    found = []
    for style in range(drawn.style.max() + 1):
        new = drawn.style == style
        missing = (drawn.name + style) % LEFT_OUT == 0
        known = drawn.of(new & ~missing)
        readout = fit(drawn.of(~new & ~missing), named)
        scores, foreign = scored(readout, known), scored(readout, drawn.of(new & missing))
        others = rng.integers(len(scores), size=(len(scores), AMONG))
        absent = np.where(known.name[others] == known.name[:, None], -np.inf, scores[others, known.name[:, None]])
        present = scores[np.arange(len(scores)), known.name]
        right = scores.argmax(axis=1) == known.name
        found.append(Meanings(sureness(scores), right, sureness(foreign), present, absent.max(axis=1)))
    return found


def limits_of(found: list[Meanings]) -> Limits:
    """The limits of the styles in the middle, for one may be unlike all others."""
    each = [meaning.limits for meaning in found]
    return Limits(*(float(np.median([getattr(limits, name) for limits in each])) for name in vars(each[0])))


def accuracy(scores: np.ndarray, names: np.ndarray, seed: int) -> tuple[float, float]:
    """How often the best name is the right one, and how often the right one of OF things scores best for its name."""
    chosen = np.random.default_rng(seed).integers(len(scores), size=(20_000, OF))
    chosen = chosen[[len(set(row)) == OF for row in names[chosen].tolist()]]
    found = scores[chosen, names[chosen[:, :1]]].argmax(axis=1) == 0
    return float((scores.argmax(axis=1) == names).mean()), float(found.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="the folder that handlens data prepare wrote")
    parser.add_argument("--model", type=Path, help="the language file (default: the shipped)")
    parser.add_argument("--mmproj", type=Path, help="the projector file (default: the one beside the model)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write: MODEL.names.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        sources, chat = Sources.open(options.sources), load(options.model, options.mmproj)
        drawn = draw(chat, sources, TRAIN, DRAWN, options.seed, print)
        named = sources.sprites(TRAIN).names
        found = meanings(drawn, named, options.seed)
        limits = limits_of(found)
        fit(drawn, named, chat.generator.backend.vision_key.split()[0], limits).save(options.out)
        print("limits: " + ", ".join(f"{name} {value:.3f}" for name, value in vars(limits).items()))
        for style, meaning in zip(sources.sprites(TRAIN).sets, found, strict=True):
            print(f"{style} left out: {meaning.describe(limits)}")
        held_out = draw(chat, sources, HELD_OUT, 1, options.seed, print)
        scores = scored(Readout.open(options.out), held_out)
        top, of = accuracy(scores, held_out.name, options.seed)
        said = sureness(scores) >= limits.named
        right = _share((scores.argmax(axis=1) == held_out.name)[said])
        print(f"{len(scores)} things in a held-out style: {top:.1%} named rightly, the right one of {OF} in {of:.1%}")
        print(f"with the limit {said.mean():.1%} of them are named, {right:.1%} of these rightly")
        print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    except HandlensError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
