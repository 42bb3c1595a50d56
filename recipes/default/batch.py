"""Samples -> what one training step takes.

Ids come from the same processor as in use, so training and asking cannot differ. There is one exception: early stages
look at strips, images scaled to a height of a few patches instead of to the area of a slice, because reading is learned
from them at a quarter of the cost.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import tokenizers
from PIL import Image

from handlens.config import FAMILIES, ModelConfig
from handlens.data.alphabets import every_character
from handlens.data.questions import templates
from handlens.data.sample import Sample
from handlens.data.tasks import TASKS
from handlens.images import SlicePlan, patches, pictures, plan_slices
from handlens.passages import passages
from handlens.positions import patch_position_ids
from handlens.processor import Processor
from handlens.prompts import TEMPLATES, ImageSlot, Message, render
from handlens.reading import asked_of
from handlens.tokenizer import Tokenizer
from recipes.default.model import CELLS, LONGEST_SIDE

#: The classes of a cell: nothing, a character that has no class of its own, and the characters.
CLASSES = ("<blank>", "<other>", *sorted(every_character()))
BLANK, OTHER = 0, 1
CHARACTERS = {character: number for number, character in enumerate(CLASSES)}
TASK_NUMBERS = {task: number for number, task in enumerate(TASKS)}
#: The share of the blank cells that is looked at. Most cells are blank; few of them teach as much.
BLANKS_KEPT = 0.25
#: What lengths of arrays are rounded up to.
PATCH_STEP, TOKEN_STEP, CELL_STEP, LABEL_STEP = 16, 32, 2048, 512
#: A class or a label that only fills up; torch's cross entropy passes over it.
IGNORED = -100
#: Slices in which more glyphs than this share a cell with another are too small to be read: they get no labels.
MOST_CROWDED = 0.1


@dataclass(frozen=True, eq=False)
class Example:
    """One sample as the model takes it."""

    sample: Sample
    slices: list[np.ndarray]  # uint8 [L, 3 * p * p] each, as many as there are vectors' places in the ids
    tgt_sizes: list[tuple[int, int]]
    cells: list[np.ndarray]  # the class of each cell of a slice, int16 [L * cells], -1 where it is not looked at
    input_ids: list[int]
    answers: list[tuple[int, int]]  # where in the ids each answer begins and ends
    bounds: list[tuple[int, int]]  # where in the ids the vectors of each slice stand

    @property
    def answer_start(self) -> int:
        """Where in the ids the first answer begins."""
        return self.answers[0][0]

    def cost(self, answers: bool, patch: float = 1.0) -> float:
        """Patches, and tokens where answers are learned: either takes about as much time, or a patch that much less."""
        return patch * sum(map(len, self.slices)) + answers * len(self.input_ids)


class Encoder:
    """Makes examples. `dropout` is the chance that a merge of the tokenizer is left out in an answer, so that the
    decoder meets words in many spellings and has to read them. `turns` is how many questions an image is asked at
    most, one after another: what costs is the image."""

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, dropout: float = 0.0, turns: int = 1):
        self.config = config
        self.tokenizer = tokenizer
        self.turns = turns
        self.stop = tokenizer.id("<|eot_id|>")
        spec = json.loads(tokenizer.to_json())
        spec["added_tokens"] = []  # what stands in a picture is text
        self.answers = tokenizers.Tokenizer.from_str(json.dumps(spec))
        if dropout:
            self.answers.model.dropout = dropout

    def example(self, sample: Sample, strip: int, rng: np.random.Generator) -> Example | None:
        """The example of a sample, as a strip of so many patches in height, or with 0 cut as in use. None if the image
        is too long for its kind."""
        height, width = sample.image.shape[:2]
        plan = (
            strip_plan(width, height, strip, self.config) if strip else plan_slices(width, height, self.config.slices)
        )
        if max(map(max, plan.tgt_sizes)) > LONGEST_SIDE:
            return None
        # Strips are for reading: a short question leaves the time to the picture.
        question = min(templates("read", sample.language), key=len) if strip else sample.question
        ids, bounds = self._prompt(
            strip_queries(plan) if strip else self.config.resampler.query_num, plan.grid, question
        )
        asked = [(ids, sample.answer)]
        if not strip:
            asked += [(self._turn(question), answer) for question, answer in sample.more[: self.turns - 1]]
        input_ids, answers = self._conversation(
            asked, lambda answer: self.answers.encode(answer, add_special_tokens=False).ids
        )
        shown = pictures(Image.fromarray(sample.image), plan)
        return Example(
            sample,
            [patches(np.asarray(picture).transpose(2, 0, 1), plan.patch_size) for picture in shown],
            plan.tgt_sizes,
            [_cells(sample, *window, rng) for window in _windows(plan, width, height)],
            input_ids,
            answers,
            bounds,
        )

    def written(self, sample: Sample, text: str, asked: Sequence[tuple[str, str]]) -> Example:
        """The example of questions about the text of a sample, each with its answer; nothing is looked at. As in use,
        only the lines that they speak of are shown."""
        question, answer = asked[0]
        sample = replace(sample, question=question, answer=answer, more=tuple(asked[1:]))
        found = passages(text, *(question for question, _ in asked[: self.turns]))
        parts = render([Message("user", (asked_of(found, question),))], TEMPLATES["llama3"], self._whole.names)
        asked = [(self._whole.encode(parts, [])[0], answer)]
        asked += [(self._turn(question), answer) for question, answer in sample.more[: self.turns - 1]]
        # Spelled as in the text, for most answers are copied from there.
        return Example(sample, [], [], [], *self._conversation(asked, self.tokenizer.encode), [])

    def _conversation(
        self, asked: Sequence[tuple[Sequence[int], str]], spell: Callable[[str], list[int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of prompts and answers by turns, and where in them each answer stands."""
        input_ids, answers = [], []
        for prompt, answer in asked:
            start = len(input_ids) + len(prompt)
            input_ids += [*prompt, *spell(answer.strip()), self.stop]
            answers.append((start, len(input_ids)))
        return input_ids, answers

    @property
    def _whole(self) -> Processor:
        return self._processor(self.config.resampler.query_num)

    @lru_cache(maxsize=2048)  # noqa: B019 (there is one encoder a process)
    def _prompt(self, queries: int, grid: tuple[int, int] | None, question: str):
        """Ids and bounds of a question about an image that is cut into this grid: sizes do not matter for them."""
        processor = self._processor(queries)
        parts = render([Message("user", (ImageSlot(0), question))], TEMPLATES["llama3"], processor.names)
        patch = self.config.slices.patch_size
        return processor.encode(parts, [SlicePlan((patch, patch), grid, (patch, patch), patch)])[:2]

    @lru_cache(maxsize=2048)  # noqa: B019
    def _turn(self, question: str) -> list[int]:
        """The ids of a further question, from the end of the answer before to where its own answer begins."""
        user, assistant = (TEMPLATES["llama3"].turns[role] for role in ("user", "assistant"))
        parts = [*user.before, question, *user.after, *assistant.before]
        return self._whole.encode(parts, [])[0]

    @lru_cache(maxsize=8)  # noqa: B019
    def _processor(self, queries: int) -> Processor:
        config = replace(self.config, resampler=replace(self.config.resampler, query_num=queries))
        return Processor(config, self.tokenizer)


def strip_plan(width: int, height: int, rows: int, config: ModelConfig) -> SlicePlan:
    """One slice of so many rows of patches, of about the image's shape: few different widths need little padding."""
    patch = config.slices.patch_size
    columns = width * rows / height
    step = 2 if columns < 16 else 4
    columns = max(round(columns / step), 1) * step
    return SlicePlan((columns * patch, rows * patch), None, None, patch)


def strip_queries(plan: SlicePlan) -> int:
    """How many of the queries are shown to the decoder: those that begin at the columns of the strip (start.py). A word
    would cost four times as much with all of them."""
    (_, columns), *_ = plan.tgt_sizes
    return min(-(-columns // 16) * 16, FAMILIES["handlens-mini"].query_num)


def _windows(plan: SlicePlan, width: int, height: int):
    """For each slice (scale x, scale y, left, top, its (rows, columns) in patches, patch size) of the image in it."""
    size = plan.patch_size
    (across, down), *_ = plan.sizes
    yield across / width, down / height, 0, 0, plan.tgt_sizes[0], size
    if plan.grid:
        (cols, rows), (across, down) = plan.grid, plan.cell
        for row in range(rows):
            for col in range(cols):
                scales = cols * across / width, rows * down / height
                yield *scales, col * across, row * down, plan.tgt_sizes[1], size


def _cells(sample: Sample, scale_x, scale_y, left, top, tgt_size, patch: int, rng: np.random.Generator) -> np.ndarray:
    """The class of each cell of a slice [L * cells], -1 for those that are not looked at."""
    rows, cols = tgt_size
    across, down = CELLS
    cells = np.where(rng.random(rows * cols * across * down) < BLANKS_KEPT, BLANK, -1).astype(np.int16)
    places = sample.centres * np.float32([scale_x, scale_y]) - np.float32([left, top])  # [n, 2]
    column = np.floor(places[:, 0] * (across / patch)).astype(np.int64)
    row = np.floor(places[:, 1] * (down / patch)).astype(np.int64)
    inside = (column >= 0) & (column < cols * across) & (row >= 0) & (row < rows * down)
    column, row = column[inside], row[inside]
    index = ((row // down * cols + column // across) * down + row % down) * across + column % across
    found, first, counts = np.unique(index, return_index=True, return_counts=True)
    if len(index) - len(found) > MOST_CROWDED * len(index):
        return np.full_like(cells, -1)
    known = (CHARACTERS.get(character.rstrip(), OTHER) for character in sample.characters)
    classes = np.fromiter(known, np.int16, len(sample.characters))
    cells[found] = np.where(counts > 1, -1, classes[inside][first])
    return cells


def shape_of(example: Example, few: bool) -> tuple[int, int, int]:
    """What examples that share a batch have in common: slices, patches of a slice, tokens. With `few`, tensors get few
    different shapes; else slices may differ, and sizes by up to a fourth."""
    patches, tokens = max(map(len, example.slices), default=0), len(example.input_ids)
    if few:
        return len(example.slices), _up(patches, PATCH_STEP), _up(tokens, TOKEN_STEP)
    return 0, _rounded(patches, PATCH_STEP), _rounded(tokens, TOKEN_STEP)


def _rounded(count: int, step: int) -> int:
    """The count rounded up, to a multiple of `step` that is one of four sizes between two powers of two."""
    return _up(count, max(step, 1 << max(count.bit_length() - 3, 0)))


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def _padded(numbers: np.ndarray, step: int, value: int) -> np.ndarray:
    """The numbers [n], and so many more of one value that their count is a multiple of `step`."""
    return np.pad(numbers, (0, _up(len(numbers), step) - len(numbers)), constant_values=value)


def collate(examples: Sequence[Example], config: ModelConfig) -> dict[str, np.ndarray]:
    """The arrays of one step. Their lengths are rounded up, so that there are few different ones.

    pixels uint8 [S, L, 3 * p * p], position_ids and places [S, L] and [S, L, 2], patch_mask [S, L] (False at padding);
    cells [m] counted through [S, L, cells], and their classes [m]; spelled [k] and spelled_classes [k], those whose
    character has a class of its own; tasks [B] (TASK_NUMBERS); input_ids [B, n]; vectors [v], counted through
    [S, Q], go to vector_index [v], and labels [t] are predicted at label_index [t], both counted through [B, n];
    label_row [t], the example of a label. Classes and labels that stand behind the end are IGNORED.
    """
    queries, side = config.resampler.query_num, config.vision.position_side
    slices = [patches for example in examples for patches in example.slices]
    tgt_sizes = [size for example in examples for size in example.tgt_sizes]
    classes = [cells for example in examples for cells in example.cells]
    longest = _up(max(map(len, slices), default=0), PATCH_STEP)
    per_patch = CELLS[0] * CELLS[1]
    pixels = np.zeros((len(slices), longest, 3 * config.vision.patch_size**2), np.uint8)
    position_ids = np.zeros((len(slices), longest), np.int64)
    places = np.zeros((len(slices), longest, 2), np.int64)
    patch_mask = np.zeros((len(slices), longest), bool)
    every_cell = np.full((len(slices), longest * per_patch), -1, np.int64)
    for number, (rows, cols) in enumerate(tgt_sizes):
        count = rows * cols
        pixels[number, :count] = slices[number]
        position_ids[number, :count] = patch_position_ids(config.vision.position_mode, rows, cols, count, side)
        places[number, :count] = np.stack(np.divmod(np.arange(count), cols), axis=1)
        patch_mask[number, :count] = True
        every_cell[number, : count * per_patch] = classes[number]
    every_cell = every_cell.ravel()
    cells = np.flatnonzero(every_cell >= 0)
    known = np.flatnonzero(every_cell > OTHER)

    length = _up(max(len(example.input_ids) for example in examples), TOKEN_STEP)
    input_ids = np.zeros((len(examples), length), np.int64)
    vectors, vector_index, label_index, labels, label_row = [], [], [], [], []
    for number, example in enumerate(examples):
        ids = example.input_ids
        input_ids[number, : len(ids)] = ids
        for first, last in example.bounds:
            vectors.append(np.arange(last - first) + len(vectors) * queries)
            vector_index.append(np.arange(first, last) + number * length)
        for start, end in example.answers:
            label_index.append(np.arange(start - 1, end - 1) + number * length)
            labels.append(ids[start:end])
            label_row.append(np.full(end - start, number))
    return {
        "pixels": pixels,
        "position_ids": position_ids,
        "places": places,
        "patch_mask": patch_mask,
        "cells": _padded(cells, CELL_STEP, 0),
        "classes": _padded(every_cell[cells], CELL_STEP, IGNORED),
        "spelled": _padded(known, CELL_STEP, 0),
        "spelled_classes": _padded(every_cell[known], CELL_STEP, IGNORED),
        "tasks": np.array([TASK_NUMBERS[example.sample.task] for example in examples]),
        "input_ids": input_ids,
        "vectors": np.concatenate(vectors or [np.zeros(0, np.int64)]),
        "vector_index": np.concatenate(vector_index or [np.zeros(0, np.int64)]),
        "label_index": _padded(np.concatenate(label_index), LABEL_STEP, 0),
        "labels": _padded(np.concatenate(labels), LABEL_STEP, IGNORED),
        "label_row": _padded(np.concatenate(label_row), LABEL_STEP, 0),
    }
