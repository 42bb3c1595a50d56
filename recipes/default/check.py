"""How well the model reads a small fixed set of held-out samples, in numbers and as a sheet to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from handlens.data.sample import HELD_OUT
from handlens.tokenizer import Tokenizer
from recipes.default.batch import Example, collate
from recipes.default.decode import greedy
from recipes.default.feed import Plan, examples
from recipes.default.model import Mini
from recipes.default.stages import Stage

#: Samples of the set; few, so that a check costs seconds.
COUNT = 64
#: Samples that are answered at a time, and the most tokens of an answer.
TOGETHER, LONGEST_ANSWER = 32, 96
#: Not a seed of training, and another side of the sources anyway.
SEED = 20_24_05


@dataclass(frozen=True)
class Answered:
    """A sample of the set and what the model said."""

    example: Example
    answer: str


def held_out(plan: Plan, stage: Stage) -> list[Example]:
    """The set of a stage: the same samples at every check."""
    return list(islice(examples(plan, stage, SEED, HELD_OUT), COUNT))


@torch.no_grad()
def answer(model: Mini, tokenizer: Tokenizer, held: Sequence[Example], device: torch.device) -> list[Answered]:
    """The model's greedy answers."""
    found = []
    for start in range(0, len(held), TOGETHER):
        chunk = held[start : start + TOGETHER]
        arrays = collate(chunk, model.config)
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        lengths = torch.tensor([example.answer_start for example in chunk], device=device)
        prompt = tensors["input_ids"]
        vectors = None
        if len(tensors["pixels"]):
            features = model.features(tensors["pixels"], tensors["position_ids"], tensors["patch_mask"])
            vectors = model.vectors(features, tensors["places"], tensors["patch_mask"])
        embedded = model.embeddings(prompt, vectors, tensors["vectors"], tensors["vector_index"])[
            :, : int(lengths.max())
        ]
        stop = chunk[0].input_ids[-1]
        most = min(LONGEST_ANSWER, max(len(one.input_ids) - one.answer_start for one in chunk) * 2)
        answers = greedy(model, embedded, lengths, stop, most)
        found += [Answered(one, tokenizer.decode(ids).strip()) for one, ids in zip(chunk, answers, strict=True)]
    return found


def character_error_rate(answered: Sequence[Answered]) -> float:
    """Edits from what was said to what is right, a character of what is right; at most 1 for each sample."""
    edits = sum(
        min(distance(one.answer, one.example.sample.answer), len(one.example.sample.answer)) for one in answered
    )
    return edits / sum(len(one.example.sample.answer) for one in answered)


def exact(answered: Sequence[Answered]) -> float:
    return sum(one.answer == one.example.sample.answer.strip() for one in answered) / len(answered)


def distance(a: str, b: str) -> int:
    """The least number of characters to insert, delete or replace that makes b of a (Levenshtein)."""
    row = np.arange(len(b) + 1)
    letters = np.array(list(b))
    for number, letter in enumerate(a, start=1):
        replaced = row[:-1] + (letters != letter)
        row[1:] = np.minimum(row[1:] + 1, replaced)
        row[0] = number
        # Insertions: each is one more than its left neighbour, unless it is less already.
        steps = np.arange(len(row))
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])


def sheet(answered: Sequence[Answered], title: str, width: int = 900) -> Image.Image:
    """A picture of samples: the image, what is right, and what was said (red where it is wrong)."""
    font = ImageFont.load_default(15)
    rows = []
    for one in answered:
        picture = Image.fromarray(one.example.sample.image)
        picture.thumbnail((width // 2, 160))
        rows.append((picture, one.example.sample.answer, one.answer))
    height = 30 + sum(max(picture.height + 8, 44) for picture, *_ in rows)
    out = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(out)
    draw.text((6, 6), title, "black", font)
    y = 30
    for picture, right, said in rows:
        out.paste(picture, (4, y))
        for offset, text, colour in ((0, right, "black"), (20, said, "green" if said == right.strip() else "red")):
            draw.text((width // 2 + 10, y + offset), text.replace("\n", " / ")[:70], colour, font)
        y += max(picture.height + 8, 44)
    return out
