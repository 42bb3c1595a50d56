"""Official tensors and a tokenizer -> GGUF, in two files or one, and GGUF tensors -> official ones.

Reference for what goes where: llama.cpp's converters of the language model and of MiniCPM-V projectors. Official
tensors are arrays as a checkpoint holds them (see `blocks.PLAIN`). Each tensor that is written is made when its turn
comes, so that a large model is never in memory: names and shapes are known before, from outlines that hold no numbers.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from handlens.config import ModelConfig, Scaling
from handlens.errors import ModelFileError
from handlens.gguf.blocks import BLOCKS, PLAIN, Tensor
from handlens.gguf.keys import language_metadata, projector_metadata
from handlens.gguf.names import (
    POSITION_TABLE,
    from_gguf_language,
    from_gguf_vision_part,
    language_names,
    to_gguf_language,
    to_gguf_vision,
    vision_names,
)
from handlens.gguf.writer import DeferredTensor, write_gguf
from handlens.positions import grid_positions
from handlens.tokenizer import Tokenizer

#: The chat format as the template text that other programs read from the file; handlens itself never runs templates.
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

#: Numbers of `general.file_type` for the types that a whole file can have here.
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}

#: The most numbers of a tensor that are float32 at a time when its type is changed.
PIECE = 1 << 20

#: Official arrays -> arrays under GGUF names, or the other way; a function of `names`.
Renaming = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Content:
    """What a GGUF file is to hold."""

    metadata: dict[str, tuple[str, Any]]
    tensors: dict[str, DeferredTensor]

    def __or__(self, other: "Content") -> "Content":
        """Both in one; of keys that both have, those of the other count."""
        return Content(self.metadata | other.metadata, self.tensors | other.tensors)


def language_content(
    config: ModelConfig, tokenizer: Tokenizer, official: Mapping[str, np.ndarray], type: str = "F16"
) -> Content:
    """The language file: matrices as `type`, norms as F32."""
    metadata = language_metadata(config.family, config.llm) | _tokenizer_metadata(config, tokenizer)
    metadata["general.file_type"] = ("u32", FILE_TYPES[type])
    if config.family.template == "llama3":
        metadata["tokenizer.chat_template"] = ("str", LLAMA3_TEMPLATE)
    heads, kv_heads = config.llm.num_attention_heads, config.llm.num_key_value_heads
    rename = partial(to_gguf_language, num_attention_heads=heads, num_key_value_heads=kv_heads)
    return Content(metadata, _to_gguf(official, rename, type, partial(folded_factor, config.scaling)))


def projector_content(
    config: ModelConfig, official: Mapping[str, np.ndarray], type: str = "F16", positions: str = "F32"
) -> Content:
    """The projector file: matrices as `type`, the patch kernel as F16, everything else as F32.

    The table POSITION_TABLE is derived from sizes alone and not read by handlens; llama.cpp insists on it.
    `positions` is its type.
    """
    metadata = projector_metadata(config.family, config.vision, config.resampler, config.slices)
    metadata["general.file_type"] = ("u32", FILE_TYPES[type])
    rename = partial(to_gguf_vision, tower=config.family.tower)
    tensors = _to_gguf(official, rename, type)
    side, width = config.vision.position_side, config.resampler.embed_dim
    tensors[POSITION_TABLE] = DeferredTensor(
        positions, (side * side, width), lambda: Tensor.from_array(grid_positions(side, side, width), positions)
    )
    return Content(metadata, tensors)


def write_language(
    path: Path, config: ModelConfig, tokenizer: Tokenizer, official: Mapping[str, np.ndarray], type: str = "F16"
) -> None:
    """Writes the language file."""
    content = language_content(config, tokenizer, official, type)
    write_gguf(path, content.metadata, content.tensors)


def write_projector(
    path: Path, config: ModelConfig, official: Mapping[str, np.ndarray], type: str = "F16", positions: str = "F32"
) -> None:
    """Writes the projector file."""
    content = projector_content(config, official, type, positions)
    write_gguf(path, content.metadata, content.tensors)


def official_tensors(
    config: ModelConfig, language: Mapping[str, Tensor], vision: Mapping[str, Tensor], type: str | None = None
) -> dict[str, DeferredTensor]:
    """The official tensors of a model whose GGUF tensors these are (ffn names by role), in the official layout.

    Numbers are stored as `type`. Without one those of a plain type stay as they are, and blocks become F16.
    """
    heads, kv_heads = config.llm.num_attention_heads, config.llm.num_key_value_heads
    rename = partial(from_gguf_language, num_attention_heads=heads, num_key_value_heads=kv_heads)
    tied = "output.weight" not in language
    names = language_names(config.llm.num_hidden_layers, tied=tied)
    tower = config.family.tower
    for_vision = vision_names(config.vision.num_hidden_layers, tower)
    return {
        **_to_official(language, names, rename, type),
        **_to_official(vision, for_vision, partial(from_gguf_vision_part, tower=tower), type),
    }


def main_type(tensors: Mapping[str, Tensor | DeferredTensor]) -> str:
    """The type that most of the numbers have."""
    counts = Counter()
    for tensor in tensors.values():
        counts[tensor.type] += prod(tensor.shape)
    return max(counts, key=counts.get)


def folded_factor(scaling: Scaling, name: str) -> float:
    """What the weights of this official name are multiplied by, so that nothing else is: MiniCPM's factors become part
    of the linear maps before them, and what is left is an ordinary Llama."""
    if name == "llm.model.embed_tokens.weight":
        return scaling.embedding
    if name == "llm.lm_head.weight":
        return scaling.logits
    return scaling.residual if name.endswith((".self_attn.o_proj.weight", ".mlp.down_proj.weight")) else 1.0


def convert(name: str, tensor: Tensor, type: str, factor: float = 1.0) -> Tensor:
    """The tensor, times a factor, as `type`, made piece by piece; ModelFileError if it has numbers that are too large
    for that."""
    if tensor.type == type and factor == 1.0:
        return tensor
    rows, columns = tensor.data.shape[0], tensor.shape[-1]
    data = np.empty((rows, columns // BLOCKS[type].weights * BLOCKS[type].nbytes), np.uint8)
    step = max(1, PIECE // columns)
    with np.errstate(over="ignore"):
        for start in range(0, rows, step):
            numbers = tensor.dequantize(start, start + step) * np.float32(factor)
            if type == "F16" and np.abs(numbers).max() > np.finfo(np.float16).max:
                raise ModelFileError(
                    f"tensor {name} holds {np.abs(numbers).max():g}, which F16 has no number for; take BF16 or F32"
                )
            data[start : start + step] = Tensor.from_array(numbers, type).data
    return Tensor(type, tensor.shape, data)


def _tokenizer_metadata(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, tuple[str, Any]]:
    names = config.family.tokens
    end_of_turn = next(name for name in reversed(names.stop) if name in tokenizer.special)
    return tokenizer.to_gguf(bos=names.bos, eos=end_of_turn)


def _outline(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape in the memory of one number: renamed as a tensor is, it tells the shape it then has."""
    return np.broadcast_to(np.uint8(0), shape)


def _to_gguf(
    official: Mapping[str, np.ndarray], rename: Renaming, type: str, factor: Callable[[str], float] = lambda name: 1.0
) -> dict[str, DeferredTensor]:
    """The tensors that one of the files holds; `factor` says what an official tensor is multiplied by."""
    tensors = {}
    for name, array in official.items():
        for gguf_name, outline in rename({name: _outline(array.shape)}).items():
            kind = _written_type(gguf_name, outline.shape, type)
            tensors[gguf_name] = DeferredTensor(
                kind, outline.shape, partial(_renamed, {name: array}, rename, gguf_name, kind, factor(name))
            )
    return tensors


def _written_type(name: str, shape: tuple[int, ...], type: str) -> str:
    """Matrices have the given type, F16 where their rows are not whole blocks; kernels are F16 (llama.cpp knows no
    other); vectors and queries stay F32."""
    if not name.endswith(".weight"):
        return "F32"
    matrix = type if shape[-1] % BLOCKS[type].weights == 0 else "F16"
    return {2: matrix, 4: "F16"}.get(len(shape), "F32")


def _renamed(arrays: Mapping[str, np.ndarray], rename: Renaming, name: str, type: str, factor: float) -> Tensor:
    return convert(name, Tensor.from_bits(rename(arrays)[name]), type, factor)


def _to_official(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], rename: Renaming, type: str | None
) -> dict[str, DeferredTensor]:
    """The official tensors of a part, `names` being GGUF name -> official name."""
    parts = defaultdict(list)
    for gguf_name, name in names.items():
        parts[name].append(gguf_name)
    official = {}
    for name, gguf_names in parts.items():
        sources = {gguf_name: tensors[gguf_name] for gguf_name in gguf_names}
        shape = rename({gguf_name: _outline(tensor.shape) for gguf_name, tensor in sources.items()})[name].shape
        stored = {tensor.type for tensor in sources.values()}
        kind = type or (stored.pop() if len(stored) == 1 and stored <= PLAIN.keys() else "F16")
        official[name] = DeferredTensor(kind, shape, partial(_joined, sources, rename, name, kind))
    return official


def _joined(sources: Mapping[str, Tensor], rename: Renaming, name: str, type: str) -> Tensor:
    arrays = {gguf_name: convert(gguf_name, tensor, type).bits for gguf_name, tensor in sources.items()}
    return Tensor.from_bits(rename(arrays)[name])
