"""The sizes that can be trained: a row of `PRESETS` is one model and the batches that suit its machine."""

from dataclasses import dataclass

from handlens.config import FAMILIES, LlamaConfig, ModelConfig, ResamplerConfig, VisionConfig

FAMILY = FAMILIES["handlens-mini"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One model and how it is fed. GGUF wants `llm_width` and `llm_inner` to be multiples of 256."""

    vision_width: int
    vision_inner: int
    vision_layers: int
    vision_heads: int
    llm_width: int  # that of the resampler too
    llm_inner: int
    llm_layers: int
    llm_heads: int
    llm_kv_heads: int
    vocabulary: int  # without special tokens
    batch_cost: int  # about as many patches and tokens are in a batch, whatever their shares
    learning_rate: float  # the highest of Muon (optimiser.py), in stages whose own factor is 1


PRESETS = {
    "gpu": Preset(
        vision_width=256,
        vision_inner=1024,
        vision_layers=12,
        vision_heads=4,
        llm_width=512,
        llm_inner=1024,
        llm_layers=6,
        llm_heads=8,
        llm_kv_heads=4,
        vocabulary=8192,
        batch_cost=1 << 17,
        learning_rate=2e-3,
    ),
    "cpu": Preset(
        vision_width=256,
        vision_inner=1024,
        vision_layers=8,
        vision_heads=4,
        llm_width=256,
        llm_inner=768,
        llm_layers=8,
        llm_heads=4,
        llm_kv_heads=2,
        vocabulary=8192,
        batch_cost=4096,
        learning_rate=3e-3,
    ),
    # For tests: a minute on one thread.
    "tiny": Preset(
        vision_width=128,
        vision_inner=256,
        vision_layers=3,
        vision_heads=2,
        llm_width=256,
        llm_inner=256,
        llm_layers=2,
        llm_heads=4,
        llm_kv_heads=2,
        vocabulary=1024,
        batch_cost=512,
        learning_rate=5e-3,
    ),
}


def model_config(preset: Preset, vocab_size: int) -> ModelConfig:
    """The config of a preset's model; `vocab_size` counts special tokens too."""
    return ModelConfig(
        family=FAMILY,
        llm=LlamaConfig(
            hidden_size=preset.llm_width,
            intermediate_size=preset.llm_inner,
            num_hidden_layers=preset.llm_layers,
            num_attention_heads=preset.llm_heads,
            num_key_value_heads=preset.llm_kv_heads,
            head_dim=preset.llm_width // preset.llm_heads,
            vocab_size=vocab_size,
            max_position_embeddings=4096,
            rope_theta=1e4,
        ),
        vision=VisionConfig(
            hidden_size=preset.vision_width,
            intermediate_size=preset.vision_inner,
            num_hidden_layers=preset.vision_layers,
            num_attention_heads=preset.vision_heads,
            position_mode=FAMILY.position_mode,
        ),
        resampler=ResamplerConfig(
            query_num=FAMILY.query_num,
            embed_dim=preset.llm_width,
            kv_dim=preset.vision_width,
            num_heads=preset.llm_width // FAMILY.resampler_head_dim,
        ),
        slices=FAMILY.slices,
    )
