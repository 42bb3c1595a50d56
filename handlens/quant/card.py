"""The quality card: what each size of a model costs, and what it still can."""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from handlens.chat import Chat, load
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError
from handlens.eval.build import POCKETDOCS
from handlens.eval.metrics import field
from handlens.eval.report import ALL, Result, percent
from handlens.eval.report import rows as scores_of
from handlens.eval.run import Model, ask
from handlens.eval.suite import FACTS, Item, Suite, facts_of
from handlens.measure import decode_seconds, own_peak_memory, prefill_seconds
from handlens.proof.check import Opened, open_files, stage_errors
from handlens.proof.probe import probe_picture
from handlens.weights import ModelFiles

#: Tokens of a text that are read together, and of which each but the first is predicted from those before.
WINDOW = 256
#: Tokens of the prompt and of the answer whose speed is measured.
PREFILL, DECODE = 256, 32
SPEED_ROUNDS = 3
#: Tokens of the answer whose memory is measured.
SHORT_ANSWER = 8
#: What the name of a vision or language block begins with, by its name in the table of stages.
BLOCKS = {"language block": "language blocks", "vision block": "vision blocks"}

Progress = Callable[[str], None]
#: A suite, and those of its items that are asked.
Exam = tuple[Suite, Sequence[Item]]


@dataclass(frozen=True)
class Score:
    """What a model reached in the first measure of a suite, and its 95 % interval."""

    suite: str
    measure: str
    better: str  # "more" or "less" of it
    n: int
    value: float
    low: float
    high: float

    @property
    def share(self) -> float:
        """From 0 to 1, and more is better."""
        return self.value if self.better == "more" else 1 - min(1.0, self.value)


@dataclass(frozen=True)
class Row:
    """One size. Shares are from 0 to 1, sizes in bytes, speeds in tokens a second."""

    name: str
    language_bytes: int
    projector_bytes: int
    bits: float  # of a weight of the language model, on average
    perplexity: float
    divergence: float  # from the reference's predictions: Kullback-Leibler, mean over tokens, in nats
    same_token: float  # positions whose likeliest token is the reference's
    scores: tuple[Score, ...]
    stages: dict[str, float]  # the error of each stage, fast arithmetic beside numpy
    prefill: float
    decode: float
    memory: int | None  # peak of a process that loads the model and answers a question about a picture

    @property
    def accuracy(self) -> float | None:
        """The mean of the scores; None without any."""
        return float(np.mean([score.share for score in self.scores])) if self.scores else None


def measure_card(
    models: Sequence[tuple[str, ModelFiles]],
    text: str,
    exams: Sequence[Exam] = (),
    answers: Path | None = None,
    tell: Progress = lambda what: None,
) -> list[Row]:
    """A row for each of the models, (name, files); the first is the reference that the others are compared with.

    Answers to the exams are kept in the folder `answers`, and taken from there where they are known.
    """
    expected: list[np.ndarray] = []
    rows = []
    for name, files in models:
        tell(f"{name}: loading")
        chat, opened = load(files.model, files.mmproj), open_files(files)
        found, losses, differences = [], [], []
        for number, (logits, targets) in enumerate(_predictions(chat, text)):
            tell(f"{name}: reading the text, piece {number + 1}")
            log_chances = _log_softmax(logits)
            losses.append(-log_chances[np.arange(len(targets)), targets])
            if number < len(expected):
                wanted = expected[number]
                differences.append((np.exp(wanted) * (wanted - log_chances)).sum(axis=1))
                found.append(wanted.argmax(axis=1) == log_chances.argmax(axis=1))
            else:
                expected.append(log_chances)
        rows.append(
            Row(
                name=name,
                language_bytes=files.model.stat().st_size,
                projector_bytes=files.mmproj.stat().st_size if files.mmproj else 0,
                bits=_bits(opened),
                perplexity=float(np.exp(np.concatenate(losses).mean())),
                divergence=float(np.concatenate(differences).mean()) if differences else 0.0,
                same_token=float(np.concatenate(found).mean()) if found else 1.0,
                scores=tuple(_scores(chat, name, exams, answers, tell)),
                stages=stage_errors(opened, lambda what, name=name: tell(f"{name}: {what}")),
                **_speeds(chat),
                memory=_memory(files),
            )
        )
    return rows


def read_exams(folder: Path, names: Sequence[str] = (), most: int | None = None) -> list[Exam]:
    """What can be asked from a folder: the suites that `handlens eval build` wrote there, all or those of these names,
    or the questions of a set that `handlens data make` wrote, or of any folder with rows of image, question and answer
    in files *.jsonl."""
    there = [suite for suite in POCKETDOCS.values() if facts_of(folder / suite.name)]
    if there:
        if lacking := set(names) - {suite.name for suite in there}:
            raise InputError(
                f"{folder} holds no suite {', '.join(sorted(lacking))}; there are "
                f"{', '.join(suite.name for suite in there)}"
            )
        return [(suite, suite.load(folder / suite.name)[:most]) for suite in there if not names or suite.name in names]
    if names or (folder / FACTS).is_file():
        raise InputError(f"{folder} holds no suites; name the folder that `handlens eval build pocketdocs` has written")
    return [(OWN_QUESTIONS, _questions(folder)[:most])]


def _questions(folder: Path) -> list[Item]:
    found = []
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if not isinstance(row, dict) or not {"image", "question", "answer"} <= row.keys():
                raise InputError(f"{path} holds a row without image, question and answer: {line:.120}")
            found.append(Item(f"question-{len(found)}", path.parent / row["image"], row["question"], row["answer"], ""))
    if not found:
        raise InputError(
            f"{folder} holds no questions: suites of `handlens eval build pocketdocs`, or rows of image, question and "
            "answer in a file *.jsonl are wanted"
        )
    return found


#: Questions of a folder that is no suite.
OWN_QUESTIONS = Suite(
    name="questions",
    about="the printed value is asked for",
    score=lambda item, answer: {"right": field(item.truth, answer)},
    measures={"right": "more"},
)


def markdown(rows: Sequence[Row]) -> str:
    """The card as two Markdown tables; the first row is the reference."""
    return f"{_table_of_sizes(rows)}\n{_table_of_stages(rows)}"


def _table_of_sizes(rows: Sequence[Row]) -> str:
    heads = ["size", "language file", "bits a weight", "projector", "perplexity", "KL from the first", "same token"]
    heads += [f"{score.suite}: {score.measure}" for score in rows[0].scores]
    heads += ["prompt", "answer", "memory"]
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [
            row.name,
            f"{row.language_bytes / 1e6:.1f} MB",
            f"{row.bits:.2f}",
            f"{row.projector_bytes / 1e6:.1f} MB",
        ]
        cells += [f"{row.perplexity:.4g}", f"{row.divergence:.4f}", f"{row.same_token:.1%}"]
        cells += [percent(score.value) for score in row.scores]
        cells += [f"{row.prefill:.0f} tokens/s", f"{row.decode:.0f} tokens/s"]
        lines.append(_line([*cells, "" if row.memory is None else f"{row.memory / 1e6:.0f} MB"]))
    return "\n".join(lines) + "\n"


def _table_of_stages(rows: Sequence[Row]) -> str:
    """The errors of the stages, of blocks the worst of them all."""
    grouped = [_grouped(row.stages) for row in rows]
    heads = ["stage by stage", *grouped[0]]
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for row, stages in zip(rows, grouped, strict=True):
        lines.append(_line([row.name, *(f"{error:.2%}" for error in stages.values())]))
    return "\n".join(lines) + "\n"


def _grouped(stages: dict[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, error in stages.items():
        head = next((shown for prefix, shown in BLOCKS.items() if name.startswith(prefix)), name)
        found[head] = max(error, found.get(head, 0.0))
    return found


def as_json(rows: Sequence[Row]) -> str:
    """The card for programs."""
    return json.dumps([asdict(row) | {"accuracy": row.accuracy} for row in rows], indent=2) + "\n"


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draws how much is answered rightly over the bytes of the language file."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InputError('drawing needs matplotlib: pip install "handlens[data]"') from None
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    by_answers = all(row.scores for row in rows)
    heights = [100 * (row.accuracy if by_answers else row.same_token) for row in rows]
    sizes = [row.language_bytes / 1e6 for row in rows]
    axes.plot(sizes, heights, "o")
    # Sizes lie close to each other, so their names stand above and below by turns.
    for place, index in enumerate(np.argsort(sizes)):
        up = place % 2
        where = {"xytext": (0, 8 if up else -8), "textcoords": "offset points", "ha": "center"}
        turned = {"va": "bottom" if up else "top", "rotation": 90, "fontsize": 8}
        axes.annotate(rows[index].name, (sizes[index], heights[index]), **where, **turned)
    axes.set_xscale("log")
    ticks = [size for size in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100) for size in (size, 100 * size)]
    axes.set_xticks([size for size in ticks if 0.8 * min(sizes) < size < 1.25 * max(sizes)], minor=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(0.08, 0.3)
    axes.set_xlabel("language file, MB")
    axes.set_ylabel(_measured(rows[0].scores) if by_answers else f"same token as {rows[0].name}, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _measured(scores: Sequence[Score]) -> str:
    if len(scores) > 1:
        return f"mean of {', '.join(score.suite for score in scores)}, %"
    less = "100 % - " if scores[0].better == "less" else ""
    return f"{less}{scores[0].suite}: {scores[0].measure}, %"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _predictions(chat: Chat, text: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of a text: the logits [n, V] before each of the tokens [n] that follow."""
    ids = chat.tokenizer.encode(text)
    if len(ids) < 2:
        raise InputError(f"a text of {len(ids)} tokens predicts nothing; give a longer one")
    backend, bos = chat.generator.backend, chat.tokenizer.id(chat.config.family.tokens.bos)
    for start in range(0, len(ids), WINDOW):
        piece = ids[start : start + WINDOW]
        inputs = backend.embed(np.array([bos, *piece[:-1]]))
        logits = backend.forward([inputs], [backend.new_cache()], [len(piece)], prompt=True)
        yield logits, np.array(piece)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _bits(opened: Opened) -> float:
    tensors = opened.language.tensors.values()
    return 8 * sum(tensor.nbytes for tensor in tensors) / sum(int(np.prod(tensor.shape)) for tensor in tensors)


def _scores(chat: Chat, name: str, exams: Sequence[Exam], answers: Path | None, tell: Progress) -> Iterator[Score]:
    """What a model reaches in the first measure of each suite."""
    reader = Model(chat, name)
    for suite, items in exams:
        answered = ask(
            reader, suite, items, answers, lambda done, n, suite=suite: tell(f"{name}: {suite.name} {done} of {n}")
        )
        measure = next(iter(suite.measures))
        row = next(
            row for row in scores_of(Result(suite, name, answered)) if (row.measure, row.group) == (measure, ALL)
        )
        yield Score(suite.name, measure, suite.measures[measure], row.n, row.value, row.low, row.high)


def _memory(files: ModelFiles) -> int | None:
    """The peak of a process of its own that loads the model and answers about the built-in picture."""
    with multiprocessing.get_context("spawn").Pool(1) as process:
        return process.apply(_answer_and_weigh, (files,))


def _answer_and_weigh(files: ModelFiles) -> int | None:
    chat = load(files.model, files.mmproj)
    content = [probe_picture()] * (chat.config.vision is not None) + ["What is it?"]
    msgs = [{"role": "user", "content": content}]
    chat.reply(msgs, SamplingParams.greedy(max_new_tokens=SHORT_ANSWER), by_lines=False)
    return own_peak_memory()


def _speeds(chat: Chat) -> dict[str, float]:
    """Medians of a few rounds."""
    backend = chat.generator.backend
    prefill = [PREFILL / prefill_seconds(backend, PREFILL) for _ in range(SPEED_ROUNDS)]
    decode = [DECODE / decode_seconds(backend, PREFILL, DECODE) for _ in range(SPEED_ROUNDS)]
    return {"prefill": float(np.median(prefill)), "decode": float(np.median(decode))}
