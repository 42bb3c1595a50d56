"""The vision tower of MiniCPM-Llama3-V 2.5: SigLIP on slices of any shape, patches side by side in one row.

Reference: `get_vllm_embedding` in modeling_minicpmv.py of the model repository, and transformers' Idefics2 vision
modules, which do the arithmetic here. What differs is where a patch is said to be, and what it attends to.
"""

from collections.abc import Sequence

import torch
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionEmbeddings, Idefics2VisionTransformer

from handlens.errors import InputError
from handlens.model.configuration import MiniCPMVConfig
from handlens.positions import patch_position_ids

# N slices of all requests of a batch, L patches of the longest, p side of a patch, D width


class VisionEmbeddings(Idefics2VisionEmbeddings):
    """The input of the first layer. Positions are given; the parent would derive them from a mask."""

    def forward(self, pixel_values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, L, D] of patches that lie side by side [N, 3, p, p * L] at positions [N, L]."""
        pixel_values = pixel_values.to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # [N, L, D]
        return patches + self.position_embedding(position_ids.to(patches.device))


class VisionTower(Idefics2VisionTransformer):
    """Turns the patches of slices into features. A request has the features that it has alone, whatever else is in the
    batch: what a slice does not attend to is masked."""

    def __init__(self, config: MiniCPMVConfig):
        super().__init__(config.vision_config)
        vision = config.model_config().vision
        self.embeddings = VisionEmbeddings(config.vision_config)
        del self.encoder.layers[vision.num_hidden_layers :]  # a dropped last layer is not in the checkpoint either
        self.position_mode = vision.position_mode
        self.position_side = vision.position_side

    def forward(self, pixel_values: torch.Tensor, tgt_sizes: torch.Tensor, slice_request: torch.Tensor) -> torch.Tensor:
        """The features [N, L, D] of slices [N, 3, p, p * L] of sizes [N, 2] in (rows, columns).

        `slice_request` [N] says which request of the batch a slice belongs to. Features of padding mean nothing.
        """
        sizes, longest = tgt_sizes.tolist(), pixel_values.shape[-1] // self.config.patch_size
        lengths = self.attended_lengths(sizes, slice_request.tolist())
        if min(map(min, sizes)) < 1 or max(lengths) > longest:
            raise InputError(f"slices of {sizes} patches (rows, columns) do not fit into pixel values for {longest}")
        position_ids = torch.zeros(len(sizes), longest, dtype=torch.long)
        for row, (rows, cols), length in zip(position_ids, sizes, lengths, strict=True):
            ids = patch_position_ids(self.position_mode, rows, cols, length, self.position_side)
            row[:length] = torch.from_numpy(ids)
        x = self.embeddings(pixel_values, position_ids)  # [N, L, D]
        mask = None
        if min(lengths) < longest:
            real = torch.arange(longest) < torch.tensor(lengths)[:, None]  # [N, L]
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=real.to(x.device))
        x = self.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
        return self.post_layernorm(x)

    def attended_lengths(self, sizes: Sequence[Sequence[int]], requests: Sequence[int]) -> list[int]:
        """How many patches take part in the attention of each slice: its own, or in the position mode `reference` as
        many as the longest slice of its request has; those behind its own are mid grey."""
        own = [rows * cols for rows, cols in sizes]
        if self.position_mode != "reference":
            return own
        longest = {}
        for length, request in zip(own, requests, strict=True):
            longest[request] = max(length, longest.get(request, 0))
        return [longest[request] for request in requests]
