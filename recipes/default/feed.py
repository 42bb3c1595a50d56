"""Batches without end, drawn here or in processes of their own while the device computes."""

import logging
import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import compress, count
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing

from handlens.config import ModelConfig
from handlens.data.alphabets import OWN_SCRIPT
from handlens.data.make import draw
from handlens.data.questions import ask
from handlens.data.sample import TRAIN, Sample
from handlens.data.sources import Sources
from handlens.tokenizer import Tokenizer
from recipes.default.batch import Encoder, Example, collate, shape_of
from recipes.default.crops import thing
from recipes.default.frozen import FrozenLayers
from recipes.default.notes import note
from recipes.default.stages import Stage
from recipes.default.transcripts import LONGEST, Transcript

logger = logging.getLogger("handlens")

#: Batches that each process makes ahead, and those that wait in this process.
AHEAD, READY = 3, 4
#: Lines that are shown besides the text of a sample.
LINES = 6
#: The sides of pages on which a line stands alone; how often it stands in the middle, how often only a part of it is
#: there, and how much of it that is.
PAGE, CENTRED, PARTLY, PART = (60, 672), 0.5, 0.3, (0.1, 0.95)
#: How often such a line is asked for in English: in Latin letters, and in others.
IN_ENGLISH, IN_ENGLISH_OTHERS = 0.5, 0.15
#: So many questions are asked about a text, and this share of them is followed by another one.
QUESTIONS, FOLLOWED = 3, 0.15
#: After so many other texts each is shown once more, with other mistakes: finding the layout is what costs.
AGAIN = 100
#: How much less a patch costs where all layers of the tower are frozen.
FROZEN_SAVES = 0.75
#: Batches that are kept to be shown again.
KEPT = 64
#: Where tensors in one piece of memory begin: at a multiple of so many bytes.
ALIGNED = 64
#: English is drawn this much more often than other languages, and so are those with letters of their own.
ENGLISH, OWN_LETTERS = 3.0, 2.0
#: Makers that fail for more than this share of samples are broken; fewer failures are reported and passed over.
MOST_FAILURES = 0.01


#: Name, type, shape and first byte of each tensor.
Layout = Sequence[tuple[str, torch.dtype, tuple[int, ...], int]]


@dataclass(frozen=True)
class Plan:
    """What a process needs to make batches: files and numbers only."""

    config: ModelConfig
    sources: Path
    tokenizer: Path
    cost: int  # of a batch, about: patches and tokens
    seed: int
    frozen: int = 0  # so many of the tower's first layers are computed with the batch (frozen.py), of `checkpoint`
    checkpoint: Path | None = None
    few_shapes: bool = True  # for compilers and libraries that prepare themselves for each shape (batch.shape_of)

    @property
    def patch_cost(self) -> float:
        """What a patch costs where a token costs 1: less, the more of its layers are frozen."""
        return 1 - FROZEN_SAVES * self.frozen / self.config.vision.num_hidden_layers


@cache
def _sources(folder: Path) -> Sources:
    return Sources.open(folder)


def samples(sources: Sources, stage: Stage, seed: int, split: str) -> Iterator[Sample]:
    """Samples of a stage without end, the same for the same seed."""
    rng = np.random.default_rng(seed)
    tasks, shares = list(stage.tasks), np.array(list(stage.tasks.values()))
    failed = 0
    for number in count():
        task = tasks[rng.choice(len(tasks), p=shares / shares.sum())]
        language = any_language(rng, sources)
        try:
            yield draw(sources, task, language, seed, number, split, stage.strength)
        except Exception:
            failed += 1
            logger.exception("sample %d of task %r, language %r and seed %d failed", number, task, language, seed)
            if failed > 3 + MOST_FAILURES * number:
                raise


def any_language(rng: np.random.Generator, sources: Sources) -> str:
    """One of the languages; some of them are drawn more often than others."""
    return sources.languages[rng.choice(len(sources.languages), p=_chances(sources.languages))]


@cache
def _chances(languages: tuple[str, ...]) -> np.ndarray:
    often = {"en": ENGLISH} | dict.fromkeys(OWN_SCRIPT, OWN_LETTERS)
    weights = np.array([often.get(language, 1.0) for language in languages])
    return weights / weights.sum()


def examples(plan: Plan, stage: Stage, seed: int, split: str = TRAIN) -> Iterator[Example]:
    """Examples of a stage without end, the same for the same seed (but for the tokenizer's dropout)."""
    rng = np.random.default_rng(seed)
    dropout, turns = (stage.dropout, stage.turns) if split == TRAIN else (0.0, 1)
    encoder = Encoder(plan.config, Tokenizer.from_file(plan.tokenizer), dropout, turns)
    sources = _sources(plan.sources)
    drawn, shown = samples(sources, stage, seed, split), deque()
    while True:
        if split == TRAIN and rng.random() < stage.notes:
            language = any_language(rng, sources)
            made = note(rng, sources, language)
            found = list(_about_text(made.sample(language), made.text, made.asked, encoder, rng))
        elif split == TRAIN and stage.things and rng.random() < stage.things:
            found = [encoder.example(thing(rng, sources, any_language(rng, sources)), 0, rng)]
        else:
            found = _of_sample(next(drawn), encoder, stage, rng, shown)
        for example in found:
            if example is not None and example.cost(bool(stage.answers), plan.patch_cost) <= plan.cost:
                yield example


def _of_sample(
    sample: Sample, encoder: Encoder, stage: Stage, rng: np.random.Generator, shown: deque[Transcript]
) -> list[Example | None]:
    """The examples that a sample makes: itself, or some of its lines and its text. Texts that were `shown` come again
    later."""
    strip = stage.strips[rng.integers(len(stage.strips))]
    if sample.task == "line" and stage.sparse and rng.random() < stage.sparse:
        return [encoder.example(on_a_page(sample, rng), 0, rng)]
    transcript = Transcript.of(sample) if rng.random() < stage.by_lines else None
    if transcript is None:
        return [encoder.example(sample, strip, rng)]
    found = [encoder.example(line, strip, rng) for line in transcript.lines(rng, LINES)]
    shown.append(transcript)
    for one in (transcript, *([shown.popleft()] if len(shown) > AGAIN else ())):
        text = one.text(rng)
        asked = one.questions(rng, text)
        if 0 < len(text) <= LONGEST:
            found += _about_text(one.sample, text, asked, encoder, rng)
    return found


def on_a_page(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample somewhere on an otherwise empty page of its ground's colour, now and then cut off at the page's sides;
    asked for in English as often as not where its letters are those of English, and seldom elsewhere."""
    partly = rng.random() < PARTLY
    if partly:
        sample = _part_of(sample, rng)
    high, wide = sample.image.shape[:2]
    height, width = (max(side, int(rng.uniform(*PAGE))) for side in (high, wide))
    if partly:
        width = wide
    if rng.random() < CENTRED:
        top, left = (height - high) // 2, (width - wide) // 2
    else:
        top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    edge = np.concatenate([sample.image[0], sample.image[-1]])
    page = np.full((height, width, 3), np.median(edge, axis=0), np.uint8)
    page[top : top + high, left : left + wide] = sample.image
    foreign = sample.language in OWN_SCRIPT
    language = "en" if rng.random() < (IN_ENGLISH_OTHERS if foreign else IN_ENGLISH) else sample.language
    centres = sample.centres + np.array([left, top], sample.centres.dtype)
    return replace(sample, image=page, centres=centres, question=ask(rng, "read", language))


def _part_of(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample cut off at its sides, with the letters of which most is left; the whole of it where none is."""
    wide = sample.image.shape[1]
    width = int(wide * rng.uniform(*PART))
    left = int(rng.choice([0, (wide - width) // 2, rng.integers(wide - width + 1)]))
    shown = [(left <= x < left + width) for x, _ in sample.centres]
    characters = tuple(compress(sample.characters, shown))
    if "".join(sample.characters).strip() != sample.answer or not (text := "".join(characters).strip()):
        return sample
    centres = sample.centres[shown] - np.array([left, 0], sample.centres.dtype)
    image = sample.image[:, left : left + width]
    return replace(sample, image=image, answer=text, characters=characters, centres=centres)


def _about_text(
    sample: Sample, text: str, asked: Sequence[tuple[str, str]], encoder: Encoder, rng: np.random.Generator
) -> Iterator[Example]:
    """Some questions about a text, now and then two of them one after another."""
    left = list(asked)
    for _ in range(QUESTIONS):
        count = 2 if rng.random() < FOLLOWED else 1
        if left:
            yield encoder.written(sample, text, left[:count])
            del left[:count]


def batches(plan: Plan, stage: Stage, seed: int) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Batches without end: the tasks of the examples, and the tensors of `collate`.

    A batch is full of examples of about one shape, as many as cost `plan.cost` together. So little of it is padding,
    and there can be few shapes of tensors: where something is prepared for each, that takes as long as a step. With
    `plan.frozen` the place of pixels is taken by `hidden`, what stands behind so many layers of the tower.
    """
    frozen = FrozenLayers(plan.checkpoint, plan.frozen) if plan.frozen else None
    waiting: dict[tuple[int, int, int], list[Example]] = defaultdict(list)
    for example in examples(plan, stage, seed):
        shape = _, patches, tokens = shape_of(example, plan.few_shapes)
        chosen = waiting[shape]
        chosen.append(example)
        cost = plan.patch_cost * sum(len(one.slices) for one in chosen) * patches
        cost += bool(stage.answers) * len(chosen) * tokens
        if cost + cost / len(chosen) > plan.cost:  # another one like these would be too much
            del waiting[shape]
            arrays = collate(chosen, plan.config)
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            if frozen:
                del tensors["pixels"]
                tensors["hidden"] = frozen(arrays["pixels"], arrays["position_ids"], arrays["patch_mask"])
            yield [one.sample.task for one in chosen], tensors


class Feed:
    """Batches of the stage that was asked for last, from `workers` processes; with 0 they are made on demand.

    Where no new batch is ready and `repeats` allows it, one that was shown before is shown again, so many times at
    most: that is worth more than a device that waits. `waited` counts the seconds that the device had nothing to do.
    With `pin`, tensors lie in memory that a GPU copies from by itself.
    """

    def __init__(self, plan: Plan, workers: int, repeats: int = 0, pin: bool = False):
        self.plan = plan
        self.repeats = repeats
        self.pin = pin
        self.waited = 0.0
        self.repeated = 0
        self._stage: Stage | None = None
        self._own: Iterator | None = None
        self._rounds = 0
        self._shown: deque[tuple[int, list]] = deque(maxlen=KEPT)
        self._ready: queue.Queue = queue.Queue(READY)
        context = torch.multiprocessing.get_context("spawn")
        self._queue = context.Queue(max(workers * AHEAD, 1))
        self._orders = [context.SimpleQueue() for _ in range(workers)]
        self._processes = [
            context.Process(target=_work, args=(plan, plan.seed + 1000 * (n + 1), orders, self._queue), daemon=True)
            for n, orders in enumerate(self._orders)
        ]
        for process in self._processes:
            process.start()
        if workers:
            threading.Thread(target=self._fetch, daemon=True).start()

    def next(self, stage: Stage) -> tuple[list[str], dict[str, torch.Tensor]]:
        start = time.perf_counter()
        if stage != self._stage:
            self._stage = stage
            self._rounds += 1
            self._shown.clear()
            self._own = None if self._processes else batches(self.plan, stage, self.plan.seed + self._rounds)
            for orders in self._orders:
                orders.put((self._rounds, stage))
        found = next(self._own) if self._own else self._from_processes()
        self.waited += time.perf_counter() - start
        return found

    def _from_processes(self):
        while True:
            try:
                made_for, *found = self._ready.get(timeout=0.001 if self._shown else 60)
            except queue.Empty:
                if not all(process.is_alive() for process in self._processes):
                    raise RuntimeError("a process that makes batches has ended; its error stands above") from None
                if self._shown:
                    times, found = self._shown.popleft()  # the one that was shown longest ago
                    self._remember(times + 1, found)
                    self.repeated += 1
                    return found
                continue
            if made_for == self._rounds:
                self._remember(0, found)
                return found

    def _remember(self, times: int, found: list) -> None:
        if times < self.repeats:
            self._shown.append((times, found))

    def _fetch(self) -> None:
        """Takes batches over from the processes as they come."""
        while True:
            made_for, tasks, layout, memory = self._queue.get()
            if made_for == self._rounds:
                tensors = unpacked(layout, memory.pin_memory() if self.pin else memory)
                self._ready.put((made_for, tasks, tensors))

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


def _work(plan: Plan, seed: int, orders, made) -> None:
    """Makes batches of the stage ordered last, until it is stopped."""
    torch.set_num_threads(1)
    source = None
    while True:
        while source is None or not orders.empty():
            number, stage = orders.get()
            source = batches(plan, stage, seed + number)
        tasks, tensors = next(source)
        made.put((number, tasks, *packed(tensors)))


def packed(tensors: Mapping[str, torch.Tensor]) -> tuple[Layout, torch.Tensor]:
    """What is where in the bytes [n] that hold all the tensors, and those bytes: another process is handed one tensor,
    which is a system call or two, and not a dozen."""
    layout, size = [], 0
    for name, tensor in tensors.items():
        layout.append((name, tensor.dtype, tuple(tensor.shape), size))
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
    memory = torch.empty(size, dtype=torch.uint8)
    for name, tensor in unpacked(layout, memory).items():
        tensor.copy_(tensors[name])
    return layout, memory


def unpacked(layout: Layout, memory: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors that lie in the bytes, without a copy."""
    return {
        name: memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for name, dtype, shape, start in layout
    }
