"""MiniCPM-V as one transformers model: vision tower, resampler, merge, language model.

Reference: modeling_minicpmv.py of the MiniCPM-Llama3-V 2.5 model repository; its tensor names.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationMixin, LlamaForCausalLM, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from handlens.checkpoint import check_names, read_json, weight_files
from handlens.errors import InputError, ModelFileError
from handlens.model.configuration import MiniCPMVConfig
from handlens.model.devices import AUTOMATIC, config_of, planned_device_map
from handlens.model.minicpm import MiniCPMForCausalLM
from handlens.model.quantize import check_int4, keep_layout
from handlens.model.resampler import CrossAttention, Resampler
from handlens.model.vision import VisionTower
from handlens.model.vision2 import TimmVisionTower

log = logging.getLogger("handlens")


@dataclass(frozen=True)
class Parts:
    """The classes that a family is made of. Both are built from a MiniCPMVConfig; a tower is called with pixel_values,
    tgt_sizes and slice_request."""

    llm: type[PreTrainedModel]
    vpm: type[nn.Module]


PARTS = {
    "minicpm-llama3-v-2.5": Parts(llm=LlamaForCausalLM, vpm=VisionTower),
    "minicpm-v-2.0": Parts(llm=MiniCPMForCausalLM, vpm=TimmVisionTower),
    "handlens-mini": Parts(llm=LlamaForCausalLM, vpm=VisionTower),
}


class MiniCPMV(PreTrainedModel, GenerationMixin):
    """Text and images in, the next tokens out.

    The image tensors of a batch, as `MiniCPMVProcessor` makes them, hold the N slices of all its B requests:
    `pixel_values` [N, 3, p, p * L], patches side by side, zeros behind them up to the longest; `tgt_sizes` [N, 2], rows
    and columns of patches; `slice_request` [N], the row of the batch that a slice belongs to; `image_bound` [N, 2],
    [start, end) of its query positions in that row. A batch without images has none of the four.
    """

    config_class = MiniCPMVConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["LlamaDecoderLayer", "VisionTower", "TimmVisionTower", "Resampler"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config)
        sizes = config.model_config()
        parts = PARTS[sizes.family.name]
        self.llm = parts.llm(config)
        self.vpm = parts.vpm(config)
        self.resampler = Resampler(sizes.resampler)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
        slice_request: torch.Tensor | None = None,
        image_bound: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The logits [B, T, V], and the loss when there are `labels` [B, T] (-100 where nothing is to be learned).

        Takes `input_ids` [B, T] or `inputs_embeds` [B, T, D], and the image tensors; see the class.
        """
        inputs_embeds = self.embed(input_ids, pixel_values, tgt_sizes, slice_request, image_bound, inputs_embeds)
        return self.llm(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def embed(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
        slice_request: torch.Tensor | None = None,
        image_bound: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The input of the language model [B, T, D]: embeddings of tokens, image vectors in their places."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)  # [B, T, D]
        if pixel_values is None:
            if self.training and torch.is_grad_enabled():
                inputs_embeds = inputs_embeds + self._no_image().to(inputs_embeds)
            return inputs_embeds
        vectors = self.get_image_features(pixel_values, tgt_sizes, slice_request)  # [N, Q, D]
        return merge(inputs_embeds, vectors, slice_request, image_bound)

    def get_image_features(
        self, pixel_values: torch.Tensor, tgt_sizes: torch.Tensor, slice_request: torch.Tensor
    ) -> torch.Tensor:
        """The vectors [N, Q, D] of slices; see the class for the tensors."""
        features = self.vpm(pixel_values, tgt_sizes, slice_request)  # [N, L, kv_dim]
        return self.resampler(features, tgt_sizes)

    def _no_image(self) -> torch.Tensor:
        """Zero, by way of the vision weights: in distributed training every process must use all weights in every step,
        also one whose batch has no image."""
        side = self.config.model_config().vision.patch_size
        patch = torch.zeros(1, 3, side, side, device=self.resampler.query.device)
        one = torch.ones(1, 2, dtype=torch.long, device=patch.device)
        return (self.get_image_features(patch, one, one[:, 0]) * 0).sum()

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args,
        pixel_values: torch.Tensor | None = None,
        tgt_sizes: torch.Tensor | None = None,
        slice_request: torch.Tensor | None = None,
        image_bound: torch.Tensor | None = None,
        **kwargs,
    ):
        """The prompts and what follows them, as transformers' `generate` returns it, whose options all hold.

        Images are encoded here, once, however many beams or sequences each prompt gets. Prompts of different lengths
        are padded on the left and come with an `attention_mask`; without one nothing is taken for padding (transformers
        would guess from the padding token, which in this vocabulary is an ordinary "!").
        """
        input_ids = kwargs.get("input_ids", inputs)
        if input_ids is not None and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(input_ids)
        if pixel_values is not None:
            embeds = kwargs.pop("inputs_embeds", None)
            with torch.no_grad():
                kwargs["inputs_embeds"] = self.embed(
                    input_ids if embeds is None else None, pixel_values, tgt_sizes, slice_request, image_bound, embeds
                )
        return super().generate(inputs, *args, **kwargs)

    def chat(self, image: Any = None, msgs: Any = None, tokenizer: Any = None, **options) -> str | Iterator[str]:
        """The answer, under the names of the published model's `chat`; see `handlens.Chat.chat`."""
        from handlens.chat import Chat  # the one import that goes up
        from handlens.model.generator import as_loaded

        return Chat(as_loaded(self, tokenizer)).chat(image, msgs, **options)

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.llm.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.llm.get_decoder()

    def set_decoder(self, decoder: nn.Module) -> None:
        self.llm.set_decoder(decoder)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the original trains from scratch: see `Resampler` in its resampler.py."""
        super()._init_weights(module)
        if isinstance(module, Resampler):
            init.trunc_normal_(module.query, std=0.02)
            init.normal_(module.proj, std=module.proj.shape[0] ** -0.5)
            if module.pos_embed is not None:
                init.trunc_normal_(module.pos_embed, std=0.02)
        elif isinstance(module, CrossAttention):
            init.trunc_normal_(module.in_proj_weight, std=0.02)
            init.zeros_(module.in_proj_bias)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, **kwargs):
        """The model in a folder (or repository) of the official layout, as transformers loads it, but strictly:
        safetensors only, and ModelFileError names tensors that are missing, left over or of another shape."""
        if kwargs.pop("use_safetensors", None) is False:
            raise InputError("use_safetensors=False asks for a pickle, which can run code when read; leave it out")
        if kwargs.pop("trust_remote_code", None):
            log.warning("trust_remote_code is not needed: handlens runs no code of a checkpoint")
        if pretrained_model_name_or_path is not None and os.path.exists(pretrained_model_name_or_path):
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder", ""))
            check_files(folder)
            check_int4(folder, cls, config_of(pretrained_model_name_or_path, kwargs))
        if kwargs.get("device_map") in AUTOMATIC:
            kwargs["device_map"] = planned_device_map(config_of(pretrained_model_name_or_path, kwargs), kwargs)
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                use_safetensors=True,
                weights_only=True,
                ignore_mismatched_sizes=True,  # so that all of them are told, below
                output_loading_info=True,
                **kwargs,
            )
        except SafetensorError as error:
            raise ModelFileError(f"{pretrained_model_name_or_path}: {error}") from None
        check_loading(pretrained_model_name_or_path or "the state dict", info)
        if getattr(model, "is_loaded_in_4bit", False):
            keep_layout(model)
        return (model, info) if wants_info else model


def merge(
    inputs_embeds: torch.Tensor, vectors: torch.Tensor, slice_request: torch.Tensor, image_bound: torch.Tensor
) -> torch.Tensor:
    """The embeddings [B, T, D] with the vectors [N, Q, D] of each slice at its positions, [start, end) of its row.

    A new tensor: the original writes into the embeddings, which fails where they are trained.
    """
    batch, length, _ = inputs_embeds.shape
    _, queries, _ = vectors.shape
    bounds, rows = image_bound.tolist(), slice_request.tolist()
    for row, (start, end) in zip(rows, bounds, strict=True):
        if not (0 <= row < batch and 0 <= start <= end <= length and end - start == queries):
            raise InputError(
                f"a slice of {queries} vectors cannot take the positions {start} to {end} of row {row} in a batch of "
                f"{batch} rows of {length} tokens"
            )
    device = inputs_embeds.device
    columns = image_bound[:, :1].to(device) + torch.arange(queries, device=device)  # [N, Q]
    places = slice_request[:, None].to(device).expand_as(columns), columns
    return inputs_embeds.index_put(places, vectors.to(inputs_embeds))


def check_files(path: Path) -> None:
    """ModelFileError unless what transformers would read at a path is safetensors and nothing else."""
    if not path.is_dir():
        raise ModelFileError(f"{path} is a file; give the folder that holds config.json and *.safetensors")
    weight_files(path)
    for index in path.glob("*.index*.json"):
        weights = read_json(index).get("weight_map")
        named = set(weights.values()) if isinstance(weights, dict) else {weights}
        strangers = [name for name in named if not isinstance(name, str) or not name.endswith(".safetensors")]
        if index.name.startswith("model.") and strangers:
            raise ModelFileError(f"{index} names {strangers[0]!r:.80}, which is not a safetensors file")


def check_loading(where: Any, info: Mapping[str, Any]) -> None:
    """ModelFileError that names what a checkpoint lacks, has too much, or has in other shapes."""
    check_names(where, held=info["unexpected_keys"], wanted=info["missing_keys"])
    if info["mismatched_keys"]:
        name, found, wanted = min(info["mismatched_keys"])
        others = len(info["mismatched_keys"]) - 1
        raise ModelFileError(
            f"{where}: {name} has shape {list(found)}, its config wants {list(wanted)}"
            + (f", and so it is with {others} more tensors" if others else "")
        )
