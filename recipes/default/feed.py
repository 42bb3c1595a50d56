"""Batches without end, drawn here or in processes of their own while the device computes."""

import logging
import queue
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing

from handlens.config import ModelConfig
from handlens.data.make import draw
from handlens.data.sample import TRAIN, Sample
from handlens.data.sources import Sources
from handlens.tokenizer import Tokenizer
from recipes.default.batch import Encoder, Example, collate, shape_of
from recipes.default.stages import Stage

logger = logging.getLogger("handlens")

#: Batches that each process makes ahead.
AHEAD = 3
#: English is drawn this much more often than any other language.
ENGLISH = 3.0
#: Makers that fail for more than this share of samples are broken; fewer failures are reported and passed over.
MOST_FAILURES = 0.01


@dataclass(frozen=True)
class Plan:
    """What a process needs to make batches: files and numbers only."""

    config: ModelConfig
    sources: Path
    tokenizer: Path
    cost: int  # of a batch, about: patches and tokens
    seed: int


@cache
def _sources(folder: Path) -> Sources:
    return Sources.open(folder)


def samples(sources: Sources, stage: Stage, seed: int, split: str) -> Iterator[Sample]:
    """Samples of a stage without end, the same for the same seed."""
    rng = np.random.default_rng(seed)
    tasks, shares = list(stage.tasks), np.array(list(stage.tasks.values()))
    weights = np.array([ENGLISH if language == "en" else 1.0 for language in sources.languages])
    failed = 0
    for number in count():
        task = tasks[rng.choice(len(tasks), p=shares / shares.sum())]
        language = sources.languages[rng.choice(len(weights), p=weights / weights.sum())]
        try:
            yield draw(sources, task, language, seed, number, split, stage.strength)
        except Exception:
            failed += 1
            logger.exception("sample %d of task %r, language %r and seed %d failed", number, task, language, seed)
            if failed > 3 + MOST_FAILURES * number:
                raise


def examples(plan: Plan, stage: Stage, seed: int, split: str = TRAIN) -> Iterator[Example]:
    """Examples of a stage without end, the same for the same seed (but for the tokenizer's dropout)."""
    rng = np.random.default_rng(seed)
    encoder = Encoder(plan.config, Tokenizer.from_file(plan.tokenizer), stage.dropout if split == TRAIN else 0.0)
    for sample in samples(_sources(plan.sources), stage, seed, split):
        strip = stage.strips[rng.integers(len(stage.strips))]
        example = encoder.example(sample, strip, rng)
        if example is not None and example.cost(bool(stage.answers)) <= plan.cost:
            yield example


def batches(plan: Plan, stage: Stage, seed: int) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """Batches without end: the tasks of the examples, and the tensors of `collate`.

    A batch is full of examples of one shape, as many as cost `plan.cost` together. So there are few shapes of tensors:
    compilers and libraries prepare themselves for each shape that they meet, which takes as long as a step.
    """
    waiting: dict[tuple[int, int, int], list[Example]] = defaultdict(list)
    for example in examples(plan, stage, seed):
        shape = slices, patches, tokens = shape_of(example)
        chosen = waiting[shape]
        chosen.append(example)
        if len(chosen) >= plan.cost // (slices * patches + bool(stage.answers) * tokens):
            del waiting[shape]
            tensors = {name: torch.from_numpy(array) for name, array in collate(chosen, plan.config).items()}
            yield [one.sample.task for one in chosen], tensors


class Feed:
    """Batches of the stage that was asked for last, from `workers` processes; with 0 of them they are made on demand.

    `waited` counts the seconds that the device had nothing to do.
    """

    def __init__(self, plan: Plan, workers: int):
        self.plan = plan
        self.waited = 0.0
        self._stage: Stage | None = None
        self._own: Iterator | None = None
        self._rounds = 0
        context = torch.multiprocessing.get_context("spawn")
        self._queue = context.Queue(max(workers * AHEAD, 1))
        self._orders = [context.SimpleQueue() for _ in range(workers)]
        self._processes = [
            context.Process(target=_work, args=(plan, plan.seed + 1000 * (n + 1), orders, self._queue), daemon=True)
            for n, orders in enumerate(self._orders)
        ]
        for process in self._processes:
            process.start()

    def next(self, stage: Stage) -> tuple[list[str], dict[str, torch.Tensor]]:
        start = time.perf_counter()
        if stage != self._stage:
            self._stage = stage
            self._rounds += 1
            self._own = None if self._processes else batches(self.plan, stage, self.plan.seed + self._rounds)
            for orders in self._orders:
                orders.put((self._rounds, stage))
        found = next(self._own) if self._own else self._from_processes()
        self.waited += time.perf_counter() - start
        return found

    def _from_processes(self):
        while True:
            try:
                made_for, *found = self._queue.get(timeout=60)
            except queue.Empty:
                if not all(process.is_alive() for process in self._processes):
                    raise RuntimeError("a process that makes batches has ended; its error stands above") from None
                continue
            if made_for == self._rounds:
                return found

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
        made.put((number, *next(source)))
