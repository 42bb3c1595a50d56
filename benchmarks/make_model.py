"""Writes a pair of GGUF files with the sizes of MiniCPM-Llama3-V 2.5 and random weights, for measuring speed.

    python -m benchmarks.make_model FOLDER --type Q4_0                        full size, 4.6 GB + 1.1 GB
    python -m benchmarks.make_model FOLDER --type Q4_K --layers 8 --vision-layers 9

Widths, vocabulary size and slices are the published ones, so a layer takes as long as a layer takes there; what the
model says means nothing. Names and order of the tensors come from `handlens.gguf.convert`, and one tensor is in memory
at a time. Text is cut into smaller tokens than by the published vocabulary, which is not ours to give away.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from handlens.config import FAMILIES, LlamaConfig, ModelConfig, ResamplerConfig, VisionConfig
from handlens.gguf.blocks import BLOCKS, PLAIN, Tensor
from handlens.gguf.convert import Content, language_content, projector_content
from handlens.gguf.writer import DeferredTensor, write_gguf
from handlens.tokenizer import Tokenizer
from tests.tiny import tokenizer_json

#: Types of blocks: where in a block their float16 scales lie, and the scale that gives random codes a deviation of 1.
SCALES = {"Q4_0": ((0,), 1 / 4.6), "Q4_K": ((0, 2), 1 / 165), "Q6_K": ((208,), 1 / 1360), "Q8_0": ((0,), 1 / 74)}
TYPES = (*SCALES, *PLAIN)
#: Values of `general.file_type`.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 14, "Q6_K": 18, "BF16": 32}
#: Weights are this much smaller than what keeps the deviation of activations.
GAIN = 0.5


def main() -> None:
    """Writes model.gguf and model.mmproj.gguf."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="of the language model's matrices")
    parser.add_argument("--layers", type=int, default=32, help="of the language model, at most 32")
    parser.add_argument("--vision-type", choices=TYPES, default="F16")
    parser.add_argument("--vision-layers", type=int, default=27)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for path in write(args.folder, args.type, args.layers, args.vision_type, args.vision_layers):
        print(f"{path} {path.stat().st_size / 1e9:.2f} GB")


def write(
    folder: Path, type: str, layers: int, vision_type: str, vision_layers: int, config: ModelConfig | None = None
) -> list[Path]:
    """Writes the pair and returns its paths. A config given takes the place of the published sizes."""
    config = config or published(layers, vision_layers)
    # Outlines tell shapes and take no memory.
    outlines = {name: np.broadcast_to(np.float32(0), shape) for name, shape in official_shapes(config).items()}
    of_language = {name: array for name, array in outlines.items() if name.startswith("llm.")}
    of_vision = {name: array for name, array in outlines.items() if not name.startswith("llm.")}
    contents = {
        "model.gguf": random_content(language_content(config, tokenizer(config), of_language), type),
        "model.mmproj.gguf": random_content(projector_content(config, of_vision), vision_type),
    }
    for name, content in contents.items():
        write_gguf(folder / name, content.metadata, content.tensors)
    return [folder / name for name in contents]


def published(layers: int, vision_layers: int) -> ModelConfig:
    """The sizes of MiniCPM-Llama3-V 2.5 with other numbers of layers."""
    family = FAMILIES["minicpm-llama3-v-2.5"]
    return ModelConfig(
        family=family,
        llm=LlamaConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=128256,
            max_position_embeddings=8192,
        ),
        vision=VisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=vision_layers,
            num_attention_heads=16,
            position_mode=family.position_mode,
        ),
        resampler=ResamplerConfig(query_num=family.query_num, embed_dim=4096, kv_dim=1152, num_heads=32),
        slices=family.slices,
    )


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of the official checkpoint."""
    llm, vision, resampler = config.llm, config.vision, config.resampler
    width, keys, inner = llm.hidden_size, llm.num_key_value_heads * llm.head_dim, llm.intermediate_size
    shapes = {f"llm.{name}.weight": (llm.vocab_size, width) for name in ("model.embed_tokens", "lm_head")}
    shapes["llm.model.norm.weight"] = (width,)
    for index in range(llm.num_hidden_layers):
        layer = f"llm.model.layers.{index}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (keys, width) for name in "kv"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = width, inner
        shapes |= {f"{layer}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    hidden, patch = vision.hidden_size, vision.patch_size
    modules = {"vpm.embeddings.patch_embedding": (hidden, 3, patch, patch), "vpm.post_layernorm": (hidden,)}
    for index in range(vision.num_hidden_layers):
        layer = f"vpm.encoder.layers.{index}"
        modules |= {f"{layer}.self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
        modules |= {f"{layer}.mlp.fc1": (vision.intermediate_size, hidden)}
        modules |= {f"{layer}.mlp.fc2": (hidden, vision.intermediate_size)}
        modules |= {f"{layer}.layer_norm{number}": (hidden,) for number in (1, 2)}
    out = resampler.embed_dim
    modules |= {f"resampler.{name}": (out,) for name in ("ln_q", "ln_kv", "ln_post")}
    modules["resampler.attn.out_proj"] = out, out
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {
        "vpm.embeddings.position_embedding.weight": (vision.position_side**2, hidden),
        "resampler.query": (resampler.query_num, out),
        "resampler.kv_proj.weight": (out, resampler.kv_dim),
        "resampler.attn.in_proj_weight": (3 * out, out),
        "resampler.attn.in_proj_bias": (3 * out,),
        "resampler.proj": (out, out),
    }


def tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer of the tests with as many tokens as the model has; no text leads to those that are added."""
    spec = json.loads(tokenizer_json())
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in spec["added_tokens"]}
    vocabulary |= {f"<unused {number}>": number for number in range(len(vocabulary), config.llm.vocab_size)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        return Tokenizer.from_file(path)


def random_content(content: Content, type: str) -> Content:
    """The same file with random tensors, its matrices of a type."""
    metadata = content.metadata | {"general.file_type": ("u32", FILE_TYPES[type])}
    tensors = {}
    for seed, (name, tensor) in enumerate(content.tensors.items()):
        is_matrix = tensor.type == "F16" and len(tensor.shape) == 2
        fits = tensor.shape[-1] % BLOCKS[type].weights == 0
        kind = type if is_matrix and fits else tensor.type
        tensors[name] = DeferredTensor(kind, tensor.shape, partial(random_tensor, kind, tensor.shape, seed))
    return Content(metadata, tensors)


def random_tensor(type: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Valid random blocks. Vectors lie around 1, as norms do; of matrices a product keeps the size of its input."""
    rng = np.random.default_rng(seed)
    size = GAIN / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
    if type in PLAIN:
        pool = size * rng.standard_normal(1 << 20, np.float32) + np.float32(len(shape) == 1)
        return Tensor.from_array(np.resize(pool, math.prod(shape) + 1)[1:].reshape(shape), type)
    places, scale = SCALES[type]
    block = BLOCKS[type]
    rows, blocks = math.prod(shape[:-1]), shape[-1] // block.weights
    data = np.frombuffer(bytearray(rng.bytes(rows * blocks * block.nbytes)), np.uint8).reshape(
        rows, blocks, block.nbytes
    )
    for place in places:
        data[..., place : place + 2] = np.array([size * scale], np.float16).view(np.uint8)
    return Tensor(type, shape, data.reshape(rows, -1))


if __name__ == "__main__":
    main()
