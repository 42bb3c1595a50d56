"""Trains a model of the family handlens-mini: `python -m recipes.default.train --sources DIR --out DIR`.

A run lasts a given time by the clock and goes on where the last one in OUT stopped, from its weights alone. What OUT
holds: model/ (opens in handlens as it is), head.safetensors, state.json, metrics.jsonl, loss.png, sheets/.
"""

import argparse
import contextlib
import json
import logging
import math
import shutil
import signal
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handlens.data.tasks import TASKS
from handlens.errors import HandlensError
from handlens.tokenizer import Tokenizer
from recipes.default.batch import BLANK, CLASSES, IGNORED
from recipes.default.check import answer, character_error_rate, exact, held_out, sheet
from recipes.default.curves import draw_curves
from recipes.default.feed import Feed, Plan
from recipes.default.model import CELLS, DenseHead, Mini
from recipes.default.optimiser import Optimiser
from recipes.default.peers import Peers
from recipes.default.precision import PRECISIONS, Twins, has_matrix_units
from recipes.default.presets import PRESETS, Preset, model_config
from recipes.default.stages import STAGES, Stage, shared_out, stage_at, stage_named
from recipes.default.start import initialise
from recipes.default.weights import MODEL, STATE, State, load_run, save_run

logger = logging.getLogger("handlens")

#: The weight of a blank cell beside one with a character, of which there are fewer.
BLANK_WEIGHT = 0.3
CLIP = 1.0
#: The learning rate falls along a cosine to this share of the highest, at the end of the plan.
FLOOR = 0.05
#: Steps after the start of a run in which the learning rate rises: the optimiser begins anew each time.
WARM_UP = 20


@dataclass(frozen=True)
class Options:
    """The options of the command, see `--help`."""

    sources: Path
    out: Path
    preset: str
    minutes: float
    steps: int | None
    plan_minutes: float
    stage: str | None
    first_stage: str | None
    threads: int
    workers: int
    repeats: int
    rate: float | None
    batch: int | None
    seed: int
    log_seconds: float
    check_minutes: float
    save_minutes: float
    compile: bool
    precision: str
    share: list[tuple[str, float]]
    frozen_layers: int


class Trainer:
    """One run."""

    def __init__(self, options: Options):
        self.options = options
        self.preset: Preset = PRESETS[options.preset]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(options.threads)
        torch.set_float32_matmul_precision("high")
        self.peers = Peers()
        if self.peers.leads:
            options.out.mkdir(parents=True, exist_ok=True)
            _copy_tokenizer(options)
        self.peers.wait()
        self.tokenizer = Tokenizer.from_file(options.out / "tokenizer.json")
        self.config = model_config(self.preset, self.tokenizer.vocab_size)
        self.model = Mini(self.config)
        self.head = DenseHead(self.config.vision.hidden_size, len(CLASSES))
        initialise(self.model, self.head, options.seed)
        self.state = State(options.preset, classes=CLASSES)
        if (options.out / STATE).exists():
            self.state = load_run(options.out, self.model, self.head, CLASSES)
        self.model.to(self.device)
        self.head.to(self.device)
        self.optimiser = Optimiser(self.model, self.head)
        half = has_matrix_units() if options.precision == "auto" else options.precision == "bfloat16"
        self.autocast = self.device.type == "cuda" and options.precision != "float32"
        self.twins = Twins(self.model, self.head) if half and self.device.type == "cpu" else None
        #: The token of each class of the dense head, the first one where a character has several.
        ids = [self.tokenizer.encode(name)[0] for name in CLASSES]
        self.characters = torch.tensor(ids, device=self.device)
        #: What computes; what learns is `model` and `head`.
        self.computing, self.computing_head = self.twins.copies if self.twins else (self.model, self.head)
        if options.compile:
            for layer in [*self.computing.vpm.encoder["layers"], *self.computing.language.layers]:
                layer.compile(dynamic=True)
        self.before = self.state.minutes  # of earlier runs
        self.preparation = 0.0  # minutes until the first step was done
        self.started = time.perf_counter()
        self.now = 0.0  # minutes of this run that all its processes agree on, when a step begins
        self.stopped = False
        on_cpu = self.device.type == "cpu"
        if on_cpu and options.frozen_layers and self.peers.leads and not (options.out / MODEL).exists():
            self.save()  # what frozen layers are read from
        self.peers.wait()
        self.plan = Plan(
            self.config,
            options.sources,
            options.out / "tokenizer.json",
            options.batch or self.preset.batch_cost,
            # Another one each run and process, so that none sees the samples of another one.
            seed=options.seed + 7919 * self.state.steps + 1_000_003 * self.peers.rank,
            frozen=options.frozen_layers if on_cpu else 0,
            checkpoint=options.out / MODEL,
            few_shapes=on_cpu,
        )

    # -- time ----------------------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Minutes of this run."""
        return (time.perf_counter() - self.started) / 60

    @property
    def position(self) -> float:
        """How much of the plan is done: of all runs together, or of this one where it keeps to one stage.

        The time until the first step is over, in which much is compiled, is no part of it."""
        done, whole = self.before + self.now, self.options.plan_minutes
        if self.options.stage:
            done, whole = self.now, self.options.minutes
        return max(done - self.preparation, 0.0) / max(whole - self.preparation, 1e-9)

    @property
    def stage(self) -> Stage:
        options = self.options
        stage = stage_named(options.stage) if options.stage else stage_at(self.position, options.first_stage)
        return shared_out(stage, dict(options.share))

    def rate(self, stage: Stage, step: int) -> float:
        highest = (self.options.rate or self.preset.learning_rate) * stage.rate
        cosine = 0.5 * (1 + math.cos(math.pi * min(self.position, 1.0)))
        return highest * min(1.0, (step + 1) / WARM_UP) * (FLOOR + (1 - FLOOR) * cosine)

    # -- one step ------------------------------------------------------------------------------------------------------

    def losses(self, batch: dict[str, Tensor], stage: Stage) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what it is made of: numbers for the log."""
        model = self.computing
        with self._autocast():
            patch_mask = batch.get("patch_mask")
            looks = len(batch["position_ids"]) > 0
            total, parts = torch.zeros((), device=self.device), {}
            with torch.set_grad_enabled("vpm" in stage.trains):
                if "hidden" in batch and looks:
                    features = model.features_after(self.options.frozen_layers, batch["hidden"], patch_mask)
                elif looks:
                    features = model.features(batch["pixels"], batch["position_ids"], patch_mask)
            if stage.dense and len(batch["cells"]):
                logits = self.computing_head(features, batch["cells"]).float()
                classes = batch["classes"]
                weights = torch.where(classes == BLANK, BLANK_WEIGHT, 1.0) * (classes != IGNORED)
                each = F.cross_entropy(logits, classes, reduction="none")
                dense = (each * weights).sum() / weights.sum().clamp(min=1)
                glyphs = classes > BLANK
                parts["dense"] = dense.detach()
                # Means by weights and not by selections, whose sizes a GPU would have to be waited for.
                parts["dense_right"] = ((logits.argmax(dim=-1) == classes) * glyphs).sum() / glyphs.sum().clamp(min=1)
                total = total + stage.dense * dense
            if stage.answers:
                if stage.pull < 1 and looks:
                    features = torch.lerp(features.detach(), features, stage.pull)
                vectors = model.vectors(features, batch["places"], patch_mask) if looks else None
                if stage.spelling and looks:
                    spelling = self._spelling(vectors, batch)
                    parts["spelling"] = spelling.detach()
                    total = total + stage.spelling * spelling
                embedded = model.embeddings(batch["input_ids"], vectors, batch["vectors"], batch["vector_index"])
                hidden = model.language(embedded).flatten(0, 1)[batch["label_index"]]
                each = F.cross_entropy(model.logits(hidden).float(), batch["labels"], reduction="none")
                answers = each.sum() / (batch["labels"] != IGNORED).sum()
                parts["answers"] = answers.detach()
                parts["each"] = each.detach()
                total = total + stage.answers * answers
        return total, parts

    def _spelling(self, vectors: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """How far the vectors [S, Q, W] are from the embeddings of the characters that stand in their columns.

        Query i begins with a look at column i (start.py). What it finds there is a character's embedding from then on,
        so a line reaches the decoder as its letters do in a text, and only has to be copied.
        """
        cells = batch["spelled"]
        patches = cells // (CELLS[0] * CELLS[1])
        slices, columns = patches // batch["places"].shape[1], batch["places"].flatten(0, 1)[patches, 1]
        found = vectors[slices, columns.clamp(max=vectors.shape[1] - 1)]  # [m, W]
        spelled = self.computing.language.embed_tokens(self.characters)  # [C, W]
        classes = batch["spelled_classes"].where(columns < vectors.shape[1], IGNORED)
        each = F.cross_entropy((found @ spelled.mT).float(), classes, reduction="sum")
        return each / (classes != IGNORED).sum().clamp(min=1)

    def _autocast(self):
        return torch.autocast("cuda", torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def step(self, batch: dict[str, Tensor], stage: Stage, number: int) -> dict[str, Tensor]:
        loss, parts = self.losses(batch, stage)
        loss.backward()
        if self.twins:
            self.twins.hand_over_gradients()
        self.peers.average(self.learned)
        parts["gradient"] = self.optimiser.step(self.rate(stage, number), CLIP)
        if self.twins:
            self.twins.take_weights()
        return parts

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        options = self.options
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._stop)
        feed = Feed(self.plan, options.workers, options.repeats, pin=self.device.type == "cuda")
        steps = 0
        window = Window(options.out / "metrics.jsonl", self.device, self.peers.count)
        saved = checked = self.elapsed
        try:
            while True:
                self.now, stopped = self.peers.highest([self.elapsed, self.stopped], self.device)
                if steps == 1:
                    self.preparation = self.now
                if stopped or self.now >= options.minutes or steps == options.steps:
                    break
                stage = self.stage
                self._freeze(stage)
                tasks, batch = feed.next(stage)
                whole = batch["patch_mask"].all()
                batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
                if whole:
                    del batch["patch_mask"]
                parts = self.step(batch, stage, steps)
                steps += 1
                self.state.steps += 1
                self.state.samples += len(tasks) * self.peers.count
                self.state.minutes = self.before + self.elapsed
                if not self.peers.leads:
                    continue
                window.add(tasks, batch, parts)
                if window.seconds > options.log_seconds:
                    window.close(self.state, stage, self.rate(stage, steps), feed)
                if stage.answers and self.elapsed - checked > options.check_minutes:
                    self.check(stage, window)
                    checked = self.elapsed
                if self.elapsed - saved > options.save_minutes:
                    self.save()
                    saved = self.elapsed
            if self.peers.leads:
                window.close(self.state, self.stage, self.rate(self.stage, steps), feed)
                if self.stage.answers and not self.stopped:
                    self.check(self.stage, window)
        finally:
            feed.close()
            if self.peers.leads:
                self.save()
                draw_curves(options.out)
            self.peers.close()

    @property
    def learned(self) -> list[nn.Parameter]:
        """The parameters that are not frozen."""
        originals, computing = (
            [*a.parameters(), *b.parameters()]
            for a, b in ((self.model, self.head), (self.computing, self.computing_head))
        )
        return [original for original, twin in zip(originals, computing, strict=True) if twin.requires_grad]

    def _freeze(self, stage: Stage) -> None:
        for name in ("vpm", "resampler", "llm"):
            getattr(self.computing, name).requires_grad_(name in stage.trains)
        if self.options.frozen_layers:
            tower = self.computing.vpm
            for part in (tower.embeddings, *tower.encoder["layers"][: self.options.frozen_layers]):
                part.requires_grad_(False)

    def _stop(self, *_) -> None:
        print("stopping: the weights are written after this step", flush=True)
        self.stopped = True

    def check(self, stage: Stage, window: "Window") -> None:
        """Reads the held-out set of the stage; writes numbers and a sheet."""
        held = held_out(replace(self.plan, seed=0), stage)
        # What is compiled for training would be compiled once more for answers, which takes longer than they do.
        with self._autocast(), torch.compiler.set_stance("force_eager"):
            answered = answer(self.computing, self.tokenizer, held, self.device)
        window.write(
            self.state,
            stage,
            {"cer": round(character_error_rate(answered), 4), "exact": round(exact(answered), 4), "n": len(answered)},
        )
        sheets = self.options.out / "sheets"
        sheets.mkdir(exist_ok=True)
        title = f"{stage.name}, {self.state.minutes:.0f} min, CER {character_error_rate(answered):.1%}"
        sheet(answered[:24], title).save(sheets / f"{self.state.minutes:06.1f}-{stage.name}.png")
        draw_curves(self.options.out)

    def save(self) -> None:
        """Writes the run, unless its numbers are broken: then what was saved last stays."""
        if not all(tensor.isfinite().all() for tensor in self.model.parameters()):
            print("not saved: there are weights that are no numbers any more", flush=True)
            return
        half = self.device.type == "cuda"
        save_run(self.options.out, self.config, self.model, self.head, self.state, half)


class TrainingError(HandlensError):
    """Training that cannot go on."""


class Window:
    """Means over the steps since the last line of the log, of this process; what was done in a second, by all."""

    def __init__(self, path: Path, device: torch.device, processes: int):
        self.path = path
        self.processes = processes
        self.by_task = torch.zeros(2, len(TASKS), device=device)  # the losses of labels and their number
        self._begin(0.0)

    def _begin(self, waited: float) -> None:
        self.start, self.waited_before = time.perf_counter(), waited
        self.parts: dict[str, list[Tensor]] = defaultdict(list)
        self.counts: dict[str, int] = defaultdict(int)
        self.steps = 0
        self.by_task.zero_()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def add(self, tasks: list[str], batch: dict[str, Tensor], parts: dict[str, Tensor]) -> None:
        each = parts.pop("each", None)
        if each is not None:
            known = (batch["labels"] != IGNORED).float()
            tasks_of_labels = batch["tasks"][batch["label_row"]]
            self.by_task[0].index_add_(0, tasks_of_labels, each * known)
            self.by_task[1].index_add_(0, tasks_of_labels, known)
        for name, value in parts.items():
            self.parts[name].append(value)
        self.counts["samples"] += len(tasks)
        self.counts["slices"] += len(batch["position_ids"])
        self.counts["patches"] += batch["position_ids"].numel()
        self.counts["tokens"] += batch["input_ids"].numel()
        self.steps += 1

    def close(self, state: State, stage: Stage, rate: float, feed: Feed) -> None:
        """Writes a line and begins the next window."""
        if self.steps:
            seconds = self.seconds
            values = {name: round(float(torch.stack(list(found)).mean()), 4) for name, found in self.parts.items()}
            losses, counts = self.by_task.tolist()
            of_tasks = zip(TASKS, losses, counts, strict=True)
            values |= {f"answers.{name}": round(loss / count, 4) for name, loss, count in of_tasks if count}
            together = seconds / self.processes
            values |= {f"{name}/s": round(count / together, 2) for name, count in self.counts.items()}
            values |= {
                "steps/s": round(self.steps / seconds, 2),
                "rate": round(rate, 7),
                "waited": round((feed.waited - self.waited_before) / seconds, 3),
            }
            if feed.repeated:
                values["repeated"] = feed.repeated
            self.write(state, stage, values)
            if not math.isfinite(values["gradient"]):
                raise TrainingError("the loss is not a number any more: go on from what is saved, at a lower --rate")
        self._begin(feed.waited)

    def write(self, state: State, stage: Stage, values: dict) -> None:
        line = {"minutes": round(state.minutes, 2), "step": state.steps, "stage": stage.name, **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)


def _copy_tokenizer(options: Options) -> None:
    """A run keeps the tokenizer that lay beside the sources when it began."""
    if not (options.out / "tokenizer.json").exists():
        shutil.copy(options.sources / "tokenizer.json", options.out)


def parse(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sources", type=Path, required=True, help="the prepared folder, with a tokenizer.json in it")
    add("--out", type=Path, required=True, help="the folder of the run; what is in it is gone on from")
    add("--preset", choices=PRESETS, default="cpu", help="the size of the model (default cpu)")
    add("--minutes", type=float, default=9.5, help="how long this run lasts (default 9.5)")
    add("--steps", type=int, help="end after so many steps, if that is earlier")
    add("--plan-minutes", type=float, default=180.0, help="how long all runs last: stages and rate follow it (180)")
    add("--stage", choices=[stage.name for stage in STAGES], help="keep to one stage; the rate falls within this run")
    add("--first-stage", choices=[stage.name for stage in STAGES], help="begin the plan with this stage")
    add("--threads", type=int, default=1, help="threads of torch on a CPU (default 1)")
    add("--workers", type=int, default=0, help="processes that draw samples (default 0: this one does)")
    add("--repeats", type=int, default=0, help="show a batch so often again while no new one is ready (default 0)")
    add("--rate", type=float, help="the highest learning rate (default: the preset's)")
    add("--batch", type=int, help="patches and tokens in a batch (default: the preset's)")
    add("--seed", type=int, default=0)
    add("--log-seconds", type=float, default=15.0)
    add("--check-minutes", type=float, default=5.0, help="how often the held-out set is read (default 5)")
    add("--save-minutes", type=float, default=2.0, help="how often weights are written (default 2)")
    add("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(), help="torch.compile")
    add("--precision", choices=PRECISIONS, default="auto", help="of the products (default: bfloat16 where it is fast)")
    add(
        "--share",
        type=_share,
        action="append",
        default=[],
        metavar="TASK=FACTOR",
        help="draw a task, or a group of tasks, so many times as often as the stage does; may be given several times",
    )
    add("--frozen-layers", type=int, default=0, help="so many of the tower's first layers stay as they are (default 0)")
    return Options(**vars(parser.parse_args(arguments)))


def _share(text: str) -> tuple[str, float]:
    name, _, factor = text.partition("=")
    if not factor or float(factor) < 0:
        raise ValueError
    return name, float(factor)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING)
    options = parse(arguments)
    try:
        Trainer(options).run()
    except HandlensError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
