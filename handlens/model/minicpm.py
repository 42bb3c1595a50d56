"""The language model of MiniCPM-V 2.0: MiniCPM-2.4B, a Llama whose embeddings, residual branches and logits are scaled.

Reference: modeling_minicpm.py of the MiniCPM-V 2.0 model repository (keys scale_emb, scale_depth, dim_model_base). The
factors stand apart from the weights here, as in training; `gguf.convert.folded_factor` makes a plain Llama of them.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaRMSNorm,
)

from handlens.model.configuration import MiniCPMVConfig


class ScaledEmbedding(nn.Embedding):
    """Embeddings of tokens times a factor. Image vectors take places among them unscaled."""

    factor: float = 1.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.factor


class ScaledRMSNorm(LlamaRMSNorm):
    """The last norm, times the factor that the original applies between it and the head."""

    factor: float = 1.0

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) * self.factor


class MiniCPMDecoderLayer(LlamaDecoderLayer):
    """A layer of Llama that adds its two branches times a factor."""

    def __init__(self, config: MiniCPMVConfig, layer_idx: int, factor: float):
        super().__init__(config, layer_idx)
        self.factor = factor

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended * self.factor
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)) * self.factor


class MiniCPMModel(LlamaModel):
    """The layers between embeddings and head."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        scaling = config.model_config().scaling
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.embed_tokens.factor = scaling.embedding
        self.layers = nn.ModuleList(
            MiniCPMDecoderLayer(config, index, scaling.residual) for index in range(config.num_hidden_layers)
        )
        self.norm = ScaledRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm.factor = scaling.logits
        self.post_init()


class MiniCPMForCausalLM(LlamaForCausalLM):
    """The language model, under the names of Llama's tensors."""

    _no_split_modules: ClassVar = ["MiniCPMDecoderLayer"]

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        self.model = MiniCPMModel(config)
        self.post_init()
