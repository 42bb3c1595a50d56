"""Sets of samples: what can be drawn, and many drawn by several processes into folders that can be resumed.

A set is a folder of shards. A shard is a folder of pictures with a row for each in `samples.jsonl`; it appears whole or
not at all. `set.json` says what the set holds, so that a second call goes on and does not mix two sets.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from handlens.atomic import appearing, replacing
from handlens.data.degrade import degrade
from handlens.data.questions import LANGUAGES, ask, checked
from handlens.data.sample import SPLITS, TRAIN, Sample
from handlens.data.sources import INDEX, Sources
from handlens.data.tasks import GROUPS, KEEP, TASKS
from handlens.errors import HandlensError, InputError

SET, ROWS = "set.json", "samples.jsonl"
#: How often text is asked for in its own language.
OWN_LANGUAGE = 0.5
FORMATS = {"png": {"compress_level": 3}, "jpeg": {"quality": 92}}
Progress = Callable[[int, int], None]  # samples done, samples in all


@dataclass(frozen=True)
class Plan:
    """What a set holds. Sample i is of task i mod the number of tasks; the languages take turns likewise."""

    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    n: int
    seed: int
    split: str
    shard_size: int
    degrade: float  # how much pictures are degraded; 0 leaves them as drawn
    format: str
    glyphs: bool  # whether rows tell every character and its centre
    sources: int  # the check sum of the index of the prepared folder

    @property
    def shards(self) -> int:
        return -(-self.n // self.shard_size)

    def samples(self, shard: int) -> range:
        """The numbers of the samples of a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.n))

    def draw(self, sources: Sources, i: int) -> Sample:
        """Sample i."""
        turn, task = divmod(i, len(self.tasks))
        language = self.languages[turn % len(self.languages)]
        return draw(sources, self.tasks[task], language, self.seed, i, self.split, self.degrade)


@dataclass(frozen=True)
class Made:
    """What a call of `generate` has done."""

    folder: Path
    samples: int
    drawn: int  # by this call; the others were there


def draw(
    sources: Sources, task: str, language: str, seed: int, i: int, split: str = TRAIN, strength: float = 1.0
) -> Sample:
    """Sample i of a task in a language: the same for the same arguments, whatever else is drawn.

    It is degraded as `strength` says, except in what the answer speaks of, and always asks something.
    """
    rng = np.random.default_rng([seed, zlib.crc32(f"{split} {task} {language}".encode()), i])
    sample = TASKS[task](rng, sources, language, split)
    if strength > 0:
        image, centres = degrade(sample.image, sample.centres, rng, strength, KEEP.get(task, ()))
        sample = replace(sample, image=image, centres=centres)
    return sample if sample.question else replace(sample, question=ask(rng, "read", _asked_in(rng, sample.language)))


def _asked_in(rng: np.random.Generator, language: str) -> str:
    """The language that text in a language is asked for in: often its own, else English as often as any other. Who asks
    need not know what he will see, and what is read is written as it stands there."""
    if rng.random() < OWN_LANGUAGE:
        return language
    return "en" if rng.random() < 0.5 else LANGUAGES[rng.integers(len(LANGUAGES))]


def resolved(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks of these names, which may be names of groups; InputError with all names if there is no such task."""
    tasks: list[str] = []
    for name in names:
        if name not in GROUPS and name not in TASKS:
            raise InputError(
                f"there is no task {name!r}; the tasks are {', '.join(TASKS)}, and groups of them {', '.join(GROUPS)}"
            )
        tasks += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(tasks))


def generate(
    sources: Sources | str | Path,
    tasks: Sequence[str],
    languages: Sequence[str],
    n: int,
    out: str | Path,
    *,
    seed: int = 0,
    split: str = TRAIN,
    workers: int = 1,
    shard_size: int = 500,
    strength: float = 1.0,
    format: str = "png",
    glyphs: bool = False,
    progress: Progress | None = None,
) -> Made:
    """Draws n samples into the folder `out`, tasks and languages in turn; what is there of the same set already stays.

    `strength` is that of the degradations; `progress` hears how many samples are drawn.
    """
    if not isinstance(sources, Sources):
        sources = Sources.open(sources)
    _check(sources, languages, n, seed, split, workers, shard_size, strength, format)
    digest = zlib.crc32((sources.folder / INDEX).read_bytes())
    plan = Plan(
        resolved(tasks), tuple(dict.fromkeys(languages)), n, seed, split, shard_size, strength, format, glyphs, digest
    )
    folder = Path(out)
    _claim(folder, plan)
    missing = [shard for shard in range(plan.shards) if not _shard(folder, shard).is_dir()]
    wanted = sum(len(plan.samples(shard)) for shard in missing)

    def tell(drawn: int) -> None:
        if progress is not None:
            progress(n - wanted + drawn, n)

    tell(0)
    if workers == 1 or len(missing) < 2:
        _draw_here(plan, sources, folder, missing, tell)
    else:
        _draw_in_workers(plan, sources, folder, missing, min(workers, len(missing)), tell)
    return Made(folder, n, wanted)


def rows(folder: str | Path) -> Iterator[tuple[Path, dict]]:
    """The samples of a set, in order, as far as they are drawn: the path of the picture, and the row."""
    folder = Path(folder)
    if not (folder / SET).is_file():
        raise InputError(f"{folder} is no set of samples: it has no {SET}; make one with: handlens data make")
    for shard in sorted(folder.glob("shard-*")):
        with (shard / ROWS).open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield shard / row["image"], row


def _check(sources, languages, n, seed, split, workers, shard_size, strength, format) -> None:
    """InputError for arguments that cannot be used."""
    for language in languages:
        if language not in sources.languages:
            known = ", ".join(sources.languages)
            raise InputError(f"the sources in {sources.folder} have no language {language!r}; they have {known}")
        checked(language)
    if not languages:
        raise InputError(f"no language was given; there are {', '.join(sources.languages)}")
    if split not in SPLITS:
        raise InputError(f"the split {split!r} is not one of {', '.join(SPLITS)}")
    if format not in FORMATS:
        raise InputError(f"the format {format!r} is not one of {', '.join(FORMATS)}")
    for name, value, least in (
        ("number of samples", n, 1),
        ("seed", seed, 0),
        ("number of workers", workers, 1),
        ("size of a shard", shard_size, 1),
        ("strength of degradation", strength, 0),
    ):
        if value < least:
            raise InputError(f"the {name} is {value}, but must be at least {least}")


def _claim(folder: Path, plan: Plan) -> None:
    """Makes the folder that of this set, or finds that it is; InputError if it holds something else."""
    said = json.loads(json.dumps(asdict(plan)))
    try:
        known = json.loads((folder / SET).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} holds other files; give an empty or a new folder") from None
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / SET, InputError, encoding="utf-8", newline="\n") as file:
            json.dump(said, file, indent=1)
        return
    except ValueError:
        raise InputError(f"{folder / SET} is damaged; give a new folder") from None
    differing = [f"{key} {known.get(key)}, not {value}" for key, value in said.items() if known.get(key) != value]
    if differing:
        raise InputError(f"{folder} is another set: {'; '.join(differing)}. Give a new folder, or the same arguments")
    for temporary in folder.glob(".shard-*.tmp"):
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed


def _shard(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05}"


def _draw_shard(plan: Plan, sources: Sources, folder: Path, shard: int, tick: Callable[[], None]) -> None:
    """Draws one shard; `tick` is called after each sample and may raise to give the shard up."""
    suffix = "jpg" if plan.format == "jpeg" else plan.format
    with (
        appearing(_shard(folder, shard), InputError) as temporary,
        (temporary / ROWS).open("w", encoding="utf-8", newline="\n") as lines,
    ):
        for i in plan.samples(shard):
            sample = plan.draw(sources, i)
            name = f"{i:08}.{suffix}"
            Image.fromarray(sample.image).save(temporary / name, plan.format, **FORMATS[plan.format])
            lines.write(json.dumps(_row(sample, name, plan.glyphs), ensure_ascii=False) + "\n")
            tick()


def _row(sample: Sample, image: str, glyphs: bool) -> dict:
    row = {"image": image} | {key: getattr(sample, key) for key in ("question", "answer", "task", "language")}
    if glyphs:
        characters = [character.rstrip() for character in sample.characters]
        row |= {"characters": characters, "centres": np.round(sample.centres.astype(float), 1).tolist()}
    return row


def _draw_here(plan: Plan, sources: Sources, folder: Path, shards: Sequence[int], tell: Callable[[int], None]) -> None:
    drawn = 0

    def tick() -> None:
        nonlocal drawn
        drawn += 1
        tell(drawn)

    for shard in shards:
        _draw_shard(plan, sources, folder, shard, tick)


def _draw_in_workers(
    plan: Plan, sources: Sources, folder: Path, shards: Sequence[int], workers: int, tell: Callable[[int], None]
) -> None:
    # Workers are started afresh: forked ones would share the caller's threads, open files and random state.
    context = multiprocessing.get_context("spawn")
    drawn, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start, (plan, sources.folder, folder, drawn, stop))
    try:
        with _children_ignoring_interrupts():
            pending = {pool.submit(_work, shard) for shard in shards}
        while pending:
            finished, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            tell(drawn.value)
    except BrokenProcessPool:
        raise HandlensError(
            "a worker was ended from outside, perhaps for its use of memory; call again to go on, with fewer workers"
        ) from None
    finally:
        stop.set()  # before waiting: what is still being drawn is given up
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _children_ignoring_interrupts() -> Iterator[None]:
    """Processes started in the block leave Ctrl-C to this one, from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread may choose, and none hears of Ctrl-C
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Stopped(Exception):
    """The caller wants no more samples."""


#: In a worker: what it draws, and how it hears of the caller and tells it what was done.
_worker: tuple = ()


def _start(plan: Plan, sources: Path, folder: Path, drawn, stop) -> None:
    global _worker
    threading.Thread(target=_end_with_caller, daemon=True).start()
    _worker = plan, Sources.open(sources), folder, drawn, stop


def _end_with_caller() -> None:
    """Ends this process when the one that started it was killed, and so cannot say that it is over."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(shard: int) -> None:
    plan, sources, folder, drawn, stop = _worker

    def tick() -> None:
        with drawn.get_lock():
            drawn.value += 1
        if stop.is_set():
            raise _Stopped

    _draw_shard(plan, sources, folder, shard, tick)
