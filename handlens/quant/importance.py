"""How much each column of each matrix matters: the mean square of what it is multiplied with.

An error in a column of a weight changes the output by the error times the input of that column. So the model is shown
examples, images and texts, and the squares of the inputs of every linear layer are added up: language model, vision
tower and resampler alike. Stored as llama.cpp stores its importance matrices, which are read as well.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from handlens.chat import Chat
from handlens.decode import open_image
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, Tensor, write_gguf

#: What is asked of an image, and how many tokens of the answer are looked at.
QUESTION = "Describe the image, and write down the text in it."
ANSWER_TOKENS = 32
#: A text is read in pieces of so many tokens.
PIECE_TOKENS = 512

TEXTS = {".txt", ".md"}
IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}

#: Names in importance files, behind the name of a matrix.
SUMS, COUNTS = ".in_sum2", ".counts"

#: Name of a matrix, ffn names of the vision tower by role -> how much each of its columns matters.
Importance = Mapping[str, np.ndarray]


@dataclass
class _Sums:
    """The sums of squares by name, and of how many rows."""

    squares: dict[str, np.ndarray] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, x: np.ndarray) -> None:
        self.squares[name] = self.squares.get(name, 0.0) + np.einsum("nd,nd->d", x, x, dtype=np.float64)
        self.rows[name] = self.rows.get(name, 0) + len(x)


def measure(chat: Chat, folder: Path, progress: Callable[[int, int], None] | None = None) -> Importance:
    """The importance from the images and texts in a folder, for a model of the device side.

    The model computes as it always does, but notes what each linear layer is given. `progress` is told (files, of all).
    """
    examples = _examples(folder)
    sums = _Sums()
    _observe(chat.generator.backend, sums)
    for done, path in enumerate(examples, 1):
        if path.suffix.lower() in TEXTS:
            _read_text(chat, path)
        else:
            msgs = [{"role": "user", "content": [open_image(path), QUESTION]}]
            chat.reply(msgs, SamplingParams.greedy(max_new_tokens=ANSWER_TOKENS), by_lines=False)
        if progress is not None:
            progress(done, len(examples))
    return {name: (squares / sums.rows[name]).astype(np.float32) for name, squares in sums.squares.items()}


def _examples(folder: Path) -> list[Path]:
    """The images and texts below a folder; InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; one with images and texts is wanted to calibrate with")
    examples = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXTS | IMAGES and path.is_file())
    if not examples:
        kinds = ", ".join(sorted(IMAGES | TEXTS))
        raise InputError(f"{folder} holds nothing to calibrate with; images or texts are wanted ({kinds})")
    return examples


def _read_text(chat: Chat, path: Path) -> None:
    """Runs a text through the language model, in pieces that each begin as a text of its own."""
    try:
        ids = chat.tokenizer.encode(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; leave it out of the examples") from None
    backend, start = chat.generator.backend, chat.tokenizer.id(chat.config.family.tokens.bos)
    step = min(PIECE_TOKENS, chat.context_length) - 1
    for first in range(0, len(ids), step):
        piece = np.array([start, *ids[first : first + step]])
        backend.forward([backend.embed(piece)], [backend.new_cache()], prompt=True)


def _observe(backend: Any, sums: _Sums) -> None:
    """Puts functions that note their inputs in the place of the linear layers of a `cpu.backend.CpuBackend`."""
    parts = [backend.llama] + ([backend.tower, backend.resampler] if backend.config.vision else [])
    names = {id(weight): name for name, weight in _matrices(backend)}

    def note(x: np.ndarray, *layers: tuple) -> None:
        for weight, *_ in layers:
            if id(weight) in names:
                sums.add(names[id(weight)], x)

    backend.llama.decoder = None  # which calls no functions
    for part in parts:
        part.ops = _observed(part.ops, note)


def _observed(ops: Any, note: Callable[..., None]) -> SimpleNamespace:
    """The functions of `ops`, of which those with linear layers tell `note` what each layer is given."""

    def linear(x: np.ndarray, weight: Any, *rest: Any, **options: Any) -> np.ndarray:
        note(x, (weight,))
        return ops.linear(x, weight, *rest, **options)

    def linears(x: np.ndarray, *layers: tuple, **options: Any) -> list[np.ndarray]:
        note(x, *layers)
        return ops.linears(x, *layers, **options)

    def norm_linears(x: np.ndarray, norm: tuple, eps: float, *layers: tuple, **options: Any) -> list[np.ndarray]:
        normalise = ops.layer_norm if len(norm) == 2 else ops.rms_norm
        note(normalise(x, *norm, eps), *layers)
        return ops.norm_linears(x, norm, eps, *layers, **options)

    def self_attention(x: np.ndarray, norm: tuple, eps: float, heads: int, *layers: tuple) -> np.ndarray:
        q, k, v = (part.reshape(len(x), heads, -1) for part in norm_linears(x, norm, eps, *layers[:3]))
        return linear(ops.attention(q, k, v).reshape(len(x), -1), *layers[3], residual=x)

    def feed_forward(x: np.ndarray, norm: tuple, eps: float, up: tuple, activation: str, down: tuple) -> np.ndarray:
        (inner,) = norm_linears(x, norm, eps, up)
        return linear(getattr(ops, activation)(inner), *down, residual=x)

    def gated_feed_forward(
        x: np.ndarray, norm: tuple, eps: float, gate: tuple, up: tuple, down: tuple, **options: Any
    ) -> np.ndarray:
        gates, ups = norm_linears(x, norm, eps, gate, up, **options)
        return linear(ops.silu(gates) * ups, *down, residual=x, **options)

    observers = linear, linears, norm_linears, self_attention, feed_forward, gated_feed_forward
    return SimpleNamespace(**vars(ops) | {observer.__name__: observer for observer in observers})


def _matrices(backend: Any) -> Iterator[tuple[str, Any]]:
    """The names and weights of all linear layers, but for the output matrix, which only sees ends of prompts."""
    modules = {f"blk.{n}.": layer for n, layer in enumerate(backend.llama.layers)}
    if backend.config.vision:
        modules |= {f"v.blk.{n}.": layer for n, layer in enumerate(backend.tower.layers)}
        modules["resampler."] = backend.resampler.modules
    for prefix, module in modules.items():
        for name, (weight, *_) in module.items():
            if len(weight.shape) == 2:
                yield f"{prefix}{name}.weight", weight


def save_importance(path: Path, importance: Importance) -> None:
    """Writes an importance file, whole or not at all."""
    metadata = {
        "general.type": ("str", "imatrix"),
        "imatrix.datasets": ("arr[str]", ["handlens"]),
        "imatrix.chunk_count": ("u32", 1),
        "imatrix.chunk_size": ("u32", PIECE_TOKENS),
    }
    tensors = {}
    for name, values in importance.items():
        tensors[name + SUMS] = Tensor.from_array(values.astype(np.float32))
        tensors[name + COUNTS] = Tensor.from_array(np.ones(1, np.float32))
    write_gguf(path, metadata, tensors)


def read_importance(path: Path) -> Importance:
    """What an importance file says: ours, or one of llama.cpp in GGUF."""
    with GGUFFile(path) as file:
        tensors = {name: tensor.dequantize().reshape(-1) for name, tensor in file.tensors.items()}
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    if not names:
        raise ModelFileError(f"{path} is no importance file: it holds no tensor whose name ends with {SUMS}")
    importance = {}
    for name in names:
        counts = tensors.get(name + COUNTS)
        if counts is None or counts.shape != (1,) or not counts[0] > 0:
            raise ModelFileError(f"{path}: {name}{SUMS} has no count of the rows that it is the sum of")
        importance[name] = tensors[name + SUMS] / counts[0]
    return importance
