"""Tiny random models of the published design, made by our own writer: what the tests run on.

Widths are multiples of 256 where GGUF's block types want it. Weights are scaled so that logits are spread out: greedy
tokens then differ from prompt to prompt and from image to image, with margins far above rounding.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from handlens.config import (
    FAMILIES,
    Family,
    LlamaConfig,
    ModelConfig,
    ResamplerConfig,
    VisionConfig,
)
from handlens.gguf.convert import write_language, write_projector
from handlens.tokenizer import Tokenizer
from handlens.vocabulary import LLAMA3_WORDS
from tests.multilingual import lines

SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<unk>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "</image>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<quad>",
    "</quad>",
    "<point>",
    "</point>",
    "<slice>",
    "</slice>",
]


@cache
def tokenizer_json(vocab_size: int = 1024) -> str:
    """A tokenizer.json of the form of Llama-3's, trained on our multilingual sample."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(lines(), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer.to_str()


@cache
def _not_text() -> list[int]:
    """The ids whose tokens are special or not whole characters."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json())
    special = set(tokenizer.get_added_tokens_decoder())
    return [id for id in range(tokenizer.get_vocab_size()) if id in special or "\ufffd" in tokenizer.decode([id])]


def config(family: Family = FAMILIES["minicpm-llama3-v-2.5"], scale_resolution: int = 112, **llm) -> ModelConfig:
    """A tiny model of a family. Slices are 112 pixels wide unless told otherwise, so that tests take milliseconds."""
    sizes = dict(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=1024 + len(SPECIAL),
        max_position_embeddings=4096,
    )
    return ModelConfig(
        family=family,
        llm=LlamaConfig(**{**sizes, **llm}),
        vision=VisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            position_mode=family.position_mode,
        ),
        resampler=ResamplerConfig(query_num=family.query_num, embed_dim=256, kv_dim=64, num_heads=2),
        slices=replace(family.slices, scale_resolution=scale_resolution),
    )


def official_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors under the names of the official checkpoint."""
    rng = np.random.default_rng(seed)

    def matrix(rows, columns, gain=1.0):
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    def vector(size, centre=0.0):
        return (centre + 0.1 * rng.standard_normal(size)).astype(np.float32)

    llm, vision, resampler = config.llm, config.vision, config.resampler
    width, kv_width = llm.hidden_size, llm.num_key_value_heads * llm.head_dim
    tensors = {
        "llm.model.embed_tokens.weight": rng.standard_normal((llm.vocab_size, width)).astype(np.float32),
        "llm.model.norm.weight": vector(width, 1.0),
        "llm.lm_head.weight": matrix(llm.vocab_size, width, gain=4.0),
    }
    # Special tokens and broken characters never win, so that answers are text and do not end by chance.
    tensors["llm.lm_head.weight"][_not_text()] = 0
    for index in range(llm.num_hidden_layers):
        layer = f"llm.model.layers.{index}."
        tensors |= {
            f"{layer}self_attn.q_proj.weight": matrix(width, width, gain=1.5),
            f"{layer}self_attn.k_proj.weight": matrix(kv_width, width, gain=1.5),
            f"{layer}self_attn.v_proj.weight": matrix(kv_width, width),
            f"{layer}self_attn.o_proj.weight": matrix(width, width),
            f"{layer}mlp.gate_proj.weight": matrix(llm.intermediate_size, width),
            f"{layer}mlp.up_proj.weight": matrix(llm.intermediate_size, width),
            f"{layer}mlp.down_proj.weight": matrix(width, llm.intermediate_size),
            f"{layer}input_layernorm.weight": vector(width, 1.0),
            f"{layer}post_attention_layernorm.weight": vector(width, 1.0),
        }
    hidden, patch = vision.hidden_size, vision.patch_size
    # llama.cpp computes with a kernel of float16, so it is one here.
    kernel = matrix(hidden, 3 * patch * patch, gain=2.0).reshape(hidden, 3, patch, patch).astype(np.float16)
    tensors |= {
        "vpm.embeddings.patch_embedding.weight": kernel.astype(np.float32),
        "vpm.embeddings.patch_embedding.bias": vector(hidden),
        "vpm.embeddings.position_embedding.weight": (
            0.5 * rng.standard_normal((vision.position_side**2, hidden))
        ).astype(np.float32),
        "vpm.post_layernorm.weight": vector(hidden, 1.0),
        "vpm.post_layernorm.bias": vector(hidden),
    }
    for index in range(vision.num_hidden_layers):
        layer = f"vpm.encoder.layers.{index}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{layer}self_attn.{name}.weight"] = matrix(hidden, hidden)
            tensors[f"{layer}self_attn.{name}.bias"] = vector(hidden)
        tensors |= {
            f"{layer}mlp.fc1.weight": matrix(vision.intermediate_size, hidden),
            f"{layer}mlp.fc1.bias": vector(vision.intermediate_size),
            f"{layer}mlp.fc2.weight": matrix(hidden, vision.intermediate_size),
            f"{layer}mlp.fc2.bias": vector(hidden),
            f"{layer}layer_norm1.weight": vector(hidden, 1.0),
            f"{layer}layer_norm1.bias": vector(hidden),
            f"{layer}layer_norm2.weight": vector(hidden, 1.0),
            f"{layer}layer_norm2.bias": vector(hidden),
        }
    tensors |= {
        "resampler.query": rng.standard_normal((resampler.query_num, width)).astype(np.float32),
        "resampler.kv_proj.weight": matrix(width, resampler.kv_dim),
        "resampler.attn.in_proj_weight": matrix(3 * width, width, gain=1.5),
        "resampler.attn.in_proj_bias": vector(3 * width),
        "resampler.attn.out_proj.weight": matrix(width, width),
        "resampler.attn.out_proj.bias": vector(width),
        "resampler.proj": matrix(width, width),
    }
    for name in ("ln_q", "ln_kv", "ln_post"):
        tensors[f"resampler.{name}.weight"] = vector(width, 1.0)
        tensors[f"resampler.{name}.bias"] = vector(width)
    return tensors


@dataclass(frozen=True)
class TinyModel:
    """A written pair and what it was made from."""

    config: ModelConfig
    official: dict[str, np.ndarray]
    tokenizer: Tokenizer
    model: Path
    mmproj: Path


def write(folder: Path, config: ModelConfig, *, type: str = "F32", name: str = "tiny", seed: int = 0) -> TinyModel:
    """Writes a random model of this config into a folder."""
    official = official_tensors(config, seed)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    made = TinyModel(config, official, tokenizer, folder / f"{name}.gguf", folder / f"{name}.mmproj.gguf")
    write_language(made.model, config, tokenizer, official, type)
    write_projector(made.mmproj, config, official, type)
    return made
