"""Official tensors and a tokenizer -> the GGUF pair: a language file and a projector (mmproj) file.

Reference for what goes where: llama.cpp's converters of the language model and of MiniCPM-V projectors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from handlens.config import ModelConfig
from handlens.gguf.blocks import Tensor
from handlens.gguf.keys import language_metadata, projector_metadata
from handlens.gguf.names import POSITION_TABLE, to_gguf_language, to_gguf_vision
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


def write_language(
    path: Path, config: ModelConfig, tokenizer: Tokenizer, official: Mapping[str, np.ndarray], type: str = "F16"
) -> None:
    """Writes the language file: matrices as `type`, norms as F32."""
    metadata = language_metadata(config.family, config.llm) | _tokenizer_metadata(config, tokenizer)
    metadata["general.file_type"] = ("u32", FILE_TYPES[type])
    if config.family.template == "llama3":
        metadata["tokenizer.chat_template"] = ("str", LLAMA3_TEMPLATE)
    heads, kv_heads = config.llm.num_attention_heads, config.llm.num_key_value_heads
    write_gguf(path, metadata, _typed(to_gguf_language(official, heads, kv_heads), type))


def write_projector(
    path: Path, config: ModelConfig, official: Mapping[str, np.ndarray], type: str = "F16", positions: str = "F32"
) -> None:
    """Writes the projector file: matrices as `type`, the patch kernel as F16, everything else as F32.

    The table POSITION_TABLE is derived from sizes alone and not read by handlens; llama.cpp insists on it.
    `positions` is its type.
    """
    metadata = projector_metadata(config.family, config.vision, config.resampler, config.slices)
    metadata["general.file_type"] = ("u32", FILE_TYPES[type])
    tensors = _typed(to_gguf_vision(official), type)
    side = config.vision.position_side
    table = grid_positions(side, side, config.resampler.embed_dim)
    tensors[POSITION_TABLE] = _deferred(table, positions)
    write_gguf(path, metadata, tensors)


def _tokenizer_metadata(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, tuple[str, Any]]:
    names = config.family.tokens
    end_of_turn = next(name for name in reversed(names.stop) if name in tokenizer.special)
    return tokenizer.to_gguf(bos=names.bos, eos=end_of_turn)


def _typed(arrays: Mapping[str, np.ndarray], type: str) -> dict[str, DeferredTensor]:
    """Matrices with the given type, kernels as F16 (llama.cpp knows no other); vectors and queries stay F32. Each is
    made when it is written, so that a large model is never in memory twice."""
    types = {2: type, 4: "F16"}
    return {
        name: _deferred(array, types.get(array.ndim, "F32") if name.endswith(".weight") else "F32")
        for name, array in arrays.items()
    }


def _deferred(array: np.ndarray, type: str) -> DeferredTensor:
    return DeferredTensor(type, array.shape, lambda: Tensor.from_array(array, type))
