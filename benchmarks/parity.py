"""How far the numpy model is from the reference, stage by stage: transformers' Llama and Idefics2 vision tower, and the
resampler built from torch's attention and norms.

    python -m benchmarks.parity

prints a table for a tiny random model in float32. Needs torch and transformers; the tests hold the same stages to a
bound.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import Idefics2VisionConfig, LlamaForCausalLM
from transformers import LlamaConfig as TransformersLlamaConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

from handlens.config import POSITION_MODES, LlamaConfig, ResamplerConfig, VisionConfig
from handlens.cpu.llama import KVCache, Llama
from handlens.cpu.vision import Resampler, VisionTower, patch_position_ids

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Stage:
    """One intermediate result, computed twice."""

    name: str
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def max_error(self) -> float:
        """The largest absolute difference."""
        return float(np.abs(self.ours - self.theirs).max())

    @property
    def relative_error(self) -> float:
        """The largest absolute difference as a share of the largest number."""
        return self.max_error / float(np.abs(self.theirs).max())


def transformers_llama(config: LlamaConfig, official: Arrays, rope_scaling: Mapping | None = None) -> LlamaForCausalLM:
    """transformers' model with the official `llm.*` tensors."""
    theirs = TransformersLlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_theta": config.rope_theta, **(rope_scaling or {"rope_type": "default"})},
        attn_implementation="eager",
    )
    return _loaded(LlamaForCausalLM(theirs), official, "llm.")


def transformers_vision(config: VisionConfig, official: Arrays) -> Idefics2VisionTransformer:
    """transformers' vision tower with the official `vpm.*` tensors."""
    theirs = Idefics2VisionConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        image_size=config.position_side * config.patch_size,
        layer_norm_eps=config.layer_norm_eps,
        attn_implementation="eager",
    )
    return _loaded(Idefics2VisionTransformer(theirs), official, "vpm.")


class TorchResampler(torch.nn.Module):
    """The published resampler, from torch's own parts and under its official names.

    B slices, L patches of the longest, Q queries, D width.
    """

    def __init__(self, config: ResamplerConfig):
        super().__init__()
        width, norm = config.embed_dim, lambda: torch.nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.query = torch.nn.Parameter(torch.empty(config.query_num, width))
        self.proj = torch.nn.Parameter(torch.empty(width, width))
        if config.query_position:
            self.pos_embed = torch.nn.Parameter(torch.empty(config.query_num, width))
        self.kv_proj = torch.nn.Linear(config.kv_dim, width, bias=False)
        self.attn = torch.nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.ln_q, self.ln_kv, self.ln_post = norm(), norm(), norm()

    def forward(self, features: torch.Tensor, tgt_sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        kv = self.ln_kv(self.kv_proj(features))  # [B, L, D]
        positions = torch.zeros_like(kv)  # [B, L, D]
        padding = torch.ones(kv.shape[:2], dtype=torch.bool)  # [B, L]
        for index, (rows, cols) in enumerate(tgt_sizes):
            for patch in range(rows * cols):
                positions[index, patch] = self.position(patch // cols, patch % cols)
            padding[index, : rows * cols] = False
        q = self.ln_q(self.query) + getattr(self, "pos_embed", 0)  # [Q, D]
        q = q.expand(len(features), -1, -1)  # [B, Q, D]
        out = self.attn(q, kv + positions, kv, key_padding_mask=padding, need_weights=False)[0]  # [B, Q, D]
        return self.ln_post(out) @ self.proj

    def position(self, y: int, x: int) -> torch.Tensor:
        """The position [D] of row y, column x."""
        quarter = self.proj.shape[0] // 4
        omega = 1 / 10000 ** (torch.arange(quarter) / quarter)
        return torch.cat([torch.sin(x * omega), torch.cos(x * omega), torch.sin(y * omega), torch.cos(y * omega)])


def language_stages(config: LlamaConfig, weights: Arrays, reference: LlamaForCausalLM, ids: np.ndarray):
    """Yields the embeddings, the output of every layer and the logits of all positions of one text."""
    layers = {f"llm layer {index}": layer for index, layer in enumerate(reference.model.layers)}
    modules = {"llm embeddings": reference.model.embed_tokens, **layers, "llm logits": reference.lm_head}
    theirs = _outputs(modules, lambda: reference(torch.from_numpy(ids)[None]))
    llama, cache = Llama(config, weights), KVCache(config)
    x = llama.embed(ids)
    yield Stage("llm embeddings", x, theirs["llm embeddings"][0])
    rotation = llama.ops.rope_table(np.arange(len(ids)), llama.frequencies)
    for index, name in enumerate(layers):
        x = llama.layer(x, index, rotation, [slice(0, len(ids))], [cache])
        yield Stage(name, x, theirs[name][0])
    logits = llama.forward([llama.embed(ids)], [KVCache(config)], all_logits=True)[0]
    yield Stage("llm logits", logits, theirs["llm logits"][0])


def vision_stages(
    config: VisionConfig,
    weights: Arrays,
    reference: Idefics2VisionTransformer,
    patches: Sequence[np.ndarray],
    tgt_sizes: Sequence[tuple[int, int]],
) -> Iterator[Stage]:
    """Yields the embeddings, the output of every layer and the features of several slices.

    transformers gets all slices in one batch, laid out and masked as the position mode says: in a row and unmasked
    (`reference`), in a row and masked (`masked_1d`), or as the true grid and masked.
    """
    layers = {f"vpm layer {index}": layer for index, layer in enumerate(reference.encoder.layers)}
    modules = {"vpm embeddings": reference.embeddings, **layers, "vpm features": reference.post_layernorm}
    grids = [(rows, cols) if config.position_mode == "grid_2d" else (1, rows * cols) for rows, cols in tgt_sizes]
    height, width = np.max(grids, axis=0)
    p, longest = config.patch_size, max(map(len, patches))
    pixels = np.zeros((len(grids), 3, height * p, width * p), np.float32)
    mask = np.zeros((len(grids), height, width), bool)
    for index, (rows, cols) in enumerate(grids):
        cells = patches[index].reshape(rows, cols, 3, p, p).transpose(2, 0, 3, 1, 4)  # [3, rows, p, cols, p]
        pixels[index, :, : rows * p, : cols * p] = cells.reshape(3, rows * p, cols * p)
        mask[index, :rows, :cols] = True
    if config.position_mode == "reference":
        mask[:] = True
    theirs = _outputs(modules, lambda: reference(torch.from_numpy(pixels), patch_attention_mask=torch.from_numpy(mask)))
    flat = mask.reshape(len(grids), -1)

    tower = VisionTower(config, weights)
    xs = []
    for slice_patches, (rows, cols) in zip(patches, tgt_sizes, strict=True):
        ids = patch_position_ids(config.position_mode, rows, cols, longest, config.position_side)
        xs.append(tower.embed(np.pad(slice_patches, ((0, len(ids) - len(slice_patches)), (0, 0))), ids))
    yield Stage("vpm embeddings", np.concatenate(xs), theirs["vpm embeddings"][flat])
    for index, name in enumerate(layers):
        xs = [tower.layer(x, index) for x in xs]
        yield Stage(name, np.concatenate(xs), theirs[name][flat])
    features = np.concatenate(tower.forward(patches, tgt_sizes))
    own = [row[keep][: len(cells)] for row, keep, cells in zip(theirs["vpm features"], flat, patches, strict=True)]
    yield Stage("vpm features", features, np.concatenate(own))


def resampler_stage(
    config: ResamplerConfig,
    weights: Arrays,
    official: Arrays,
    features: Sequence[np.ndarray],
    tgt_sizes: Sequence[tuple[int, int]],
) -> Stage:
    """The query vectors of several slices, their features padded to the longest; torch gets them as one batch."""
    longest = max(map(len, features))
    batch = np.stack([np.pad(rows, ((0, longest - len(rows)), (0, 0)), constant_values=9.0) for rows in features])
    with torch.no_grad():
        theirs = _loaded(TorchResampler(config), official, "resampler.")(torch.from_numpy(batch), tgt_sizes).numpy()
    resampler = Resampler(config, weights)
    ours = [resampler.forward(rows, tgt_size) for rows, tgt_size in zip(batch, tgt_sizes, strict=True)]
    return Stage("resampler", np.stack(ours), theirs)


def _loaded(module: torch.nn.Module, official: Arrays, prefix: str) -> torch.nn.Module:
    """The module with exactly the official tensors under a prefix."""
    own = {name.removeprefix(prefix): array for name, array in official.items() if name.startswith(prefix)}
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in own.items()})
    return module.eval()


def _outputs(modules: Mapping[str, torch.nn.Module], call: Callable[[], object]) -> dict[str, np.ndarray]:
    """What each of these modules puts out while `call` runs."""
    caught = {}

    def catcher(name):
        def catch(module, args, output):
            caught[name] = (output[0] if isinstance(output, tuple) else output).numpy()

        return catch

    handles = [module.register_forward_hook(catcher(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return caught


def main() -> None:
    """Prints the table."""
    from handlens.gguf.names import fix_ffn_names, to_gguf_language, to_gguf_vision
    from tests.tiny import config as tiny_config
    from tests.tiny import official_tensors

    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    config = tiny_config()
    official = official_tensors(config)
    llm = config.llm
    rng = np.random.default_rng(0)
    vision = fix_ffn_names(to_gguf_vision(official), config.vision.hidden_size, config.vision.intermediate_size)
    tgt_sizes = [(5, 6), (4, 7), (8, 3)]
    patches = [rng.uniform(-1, 1, (rows * cols, 588)).astype(np.float32) for rows, cols in tgt_sizes]
    features = [rng.standard_normal((rows * cols, config.vision.hidden_size), np.float32) for rows, cols in tgt_sizes]
    tower = transformers_vision(config.vision, official)

    stages = [
        (mode, stage)
        for mode in POSITION_MODES
        for stage in vision_stages(replace(config.vision, position_mode=mode), vision, tower, patches, tgt_sizes)
    ]
    stages.append(("", resampler_stage(config.resampler, vision, official, features, tgt_sizes)))
    language = to_gguf_language(official, llm.num_attention_heads, llm.num_key_value_heads)
    ids = rng.integers(0, llm.vocab_size, 200)
    stages += [("", stage) for stage in language_stages(llm, language, transformers_llama(llm, official), ids)]
    print(f"{'stage':<16}{'position mode':<16}{'max error':>12}{'relative':>12}")
    for mode, stage in stages:
        print(f"{stage.name:<16}{mode:<16}{stage.max_error:>12.1e}{stage.relative_error:>12.1e}")


if __name__ == "__main__":
    main()
