"""The quality card: what each size of a model costs, and what it still can."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from handlens.chat import Chat, load
from handlens.decode import open_image
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError
from handlens.measure import decode_seconds, prefill_seconds, weight_bytes
from handlens.proof.check import Opened, open_files, worst_error
from handlens.weights import ModelFiles

#: Tokens of a text that are read together, and of which each but the first is predicted from those before.
WINDOW = 256
#: Tokens of the prompt and of the answer whose speed is measured.
PREFILL, DECODE = 256, 32
SPEED_ROUNDS = 3
#: Tokens of an answer to a question of the evaluation set.
ANSWER_TOKENS = 64

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """One item of an evaluation set."""

    image: Path
    question: str
    answer: str


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
    accuracy: float | None  # questions answered exactly
    stage_error: float  # the worst stage's, fast arithmetic beside numpy
    prefill: float
    decode: float
    weights_in_memory: int


def measure_card(
    models: Sequence[tuple[str, ModelFiles]],
    text: str,
    questions: Sequence[Question] = (),
    tell: Progress = lambda what: None,
) -> list[Row]:
    """A row for each of the models, (name, files); the first is the reference that the others are compared with."""
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
                accuracy=_accuracy(chat, questions, lambda done, name=name: tell(f"{name}: question {done}")),
                stage_error=worst_error(opened, lambda what, name=name: tell(f"{name}: {what}")),
                **_speeds(chat),
                weights_in_memory=weight_bytes(chat.generator.backend),
            )
        )
    return rows


def read_questions(folder: Path, most: int | None = None) -> list[Question]:
    """The items of a set that `handlens data make` wrote, or of any folder with rows of image, question and answer in
    files *.jsonl."""
    found = []
    for path in sorted(folder.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if not {"image", "question", "answer"} <= row.keys():
                raise InputError(f"{path} holds a row without image, question and answer: {line:.120}")
            found.append(Question(path.parent / row["image"], row["question"], row["answer"]))
    if not found:
        raise InputError(
            f"{folder} holds no questions: rows of image, question and answer in a file *.jsonl are wanted"
        )
    return found[:most]


def markdown(rows: Sequence[Row]) -> str:
    """The card as a Markdown table; the first row is the reference."""
    with_accuracy = any(row.accuracy is not None for row in rows)
    heads = ["size", "language file", "bits a weight", "projector", "perplexity", "KL from the first", "same token"]
    heads += ["right answers"] * with_accuracy
    heads += ["worst stage", "prompt", "answer", "weights in memory"]
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        cells = [
            row.name,
            f"{row.language_bytes / 1e6:.1f} MB",
            f"{row.bits:.2f}",
            f"{row.projector_bytes / 1e6:.1f} MB",
        ]
        cells += [f"{row.perplexity:.4g}", f"{row.divergence:.4f}", f"{row.same_token:.1%}"]
        cells += ["" if row.accuracy is None else f"{row.accuracy:.1%}"] * with_accuracy
        cells += [f"{row.stage_error:.2%}", f"{row.prefill:.0f} tokens/s", f"{row.decode:.0f} tokens/s"]
        lines.append(_line([*cells, f"{row.weights_in_memory / 1e6:.1f} MB"]))
    return "\n".join(lines) + "\n"


def as_json(rows: Sequence[Row]) -> str:
    """The card for programs."""
    return json.dumps([asdict(row) for row in rows], indent=2) + "\n"


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draws what is kept of the answers over the bytes of the language file."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InputError('drawing needs matplotlib: pip install "handlens[data]"') from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    by_answers = all(row.accuracy is not None for row in rows)
    heights = [100 * (row.accuracy if by_answers else row.same_token) for row in rows]
    sizes = [row.language_bytes / 1e6 for row in rows]
    axes.plot(sizes, heights, "o")
    for row, size, height in zip(rows, sizes, heights, strict=True):
        axes.annotate(row.name, (size, height), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("language file, MB")
    axes.set_ylabel("right answers, %" if by_answers else f"same token as {rows[0].name}, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


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
        logits = backend.forward([inputs], [backend.new_cache()], [len(piece)])
        yield logits, np.array(piece)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _bits(opened: Opened) -> float:
    tensors = opened.language.tensors.values()
    return 8 * sum(tensor.nbytes for tensor in tensors) / sum(int(np.prod(tensor.shape)) for tensor in tensors)


def _accuracy(chat: Chat, questions: Sequence[Question], tell: Callable[[int], None]) -> float | None:
    """The share of questions answered exactly, but for white space; None without questions."""
    if not questions:
        return None
    right = 0
    for done, item in enumerate(questions, 1):
        tell(done)
        msgs = [{"role": "user", "content": [open_image(item.image), item.question]}]
        said = chat.reply(msgs, SamplingParams.greedy(max_new_tokens=ANSWER_TOKENS))
        right += said.split() == item.answer.split()
    return right / len(questions)


def _speeds(chat: Chat) -> dict[str, float]:
    """Medians of a few rounds."""
    backend = chat.generator.backend
    prefill = [PREFILL / prefill_seconds(backend, PREFILL) for _ in range(SPEED_ROUNDS)]
    decode = [DECODE / decode_seconds(backend, PREFILL, DECODE) for _ in range(SPEED_ROUNDS)]
    return {"prefill": float(np.median(prefill)), "decode": float(np.median(decode))}
