"""The PyTorch side on the tiny random models: what its tests share. torch is imported here and nowhere above."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from handlens.images import patches
from handlens.model import MiniCPMV, MiniCPMVConfig
from handlens.processor import Inputs
from tests.tiny import TinyModel

#: (width, height): one slice or several, broad and tall, and slices of one image that differ in length.
SHAPES = [(112, 112), (150, 90), (90, 260), (300, 300), (333, 77), (40, 31), (224, 112), (101, 203), (400, 250)]
QUESTIONS = ["What is this?", "Read the text.", "如何？", "List all numbers in the table, then add them up.", "?"]


def torch_model(made: TinyModel, position_mode: str | None = None) -> MiniCPMV:
    """A model of the tensors of a tiny pair, float32."""
    config = made.config
    if position_mode is not None:
        config = replace(config, vision=replace(config.vision, position_mode=position_mode))
    model = MiniCPMV(MiniCPMVConfig.from_model_config(config))
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in made.official.items()})
    return model.eval()


def picture(index: int) -> Image.Image:
    """A noisy picture, another one for each number."""
    width, height = SHAPES[index % len(SHAPES)]
    pixels = np.random.default_rng(index).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def conversation(index: int, images: int = 1) -> list[dict]:
    """A question about some pictures."""
    pictures = [picture(7 * index + number) for number in range(images)]
    return [{"role": "user", "content": [*pictures, QUESTIONS[index % len(QUESTIONS)]]}]


def collate(requests: Sequence[Inputs], patch_size: int = 14) -> dict[str, torch.Tensor]:
    """The batch of some requests in the layout that `MiniCPMV` takes, shorter prompts padded on the left."""
    longest = max(len(request.input_ids) for request in requests)
    padding = [longest - len(request.input_ids) for request in requests]
    ids = np.stack([np.pad(request.input_ids, (left, 0)) for request, left in zip(requests, padding)])
    mask = np.stack([np.pad(np.ones_like(request.input_ids), (left, 0)) for request, left in zip(requests, padding)])
    batch = {"input_ids": torch.from_numpy(ids).long(), "attention_mask": torch.from_numpy(mask).long()}
    slices, sizes, rows, bounds = [], [], [], []
    for row, (request, left) in enumerate(zip(requests, padding)):
        for image in request.images:
            slices += [torch.from_numpy(patches(pixels, patch_size)) for pixels in image.slices]  # [L, 3 * p * p]
            sizes += image.plan.tgt_sizes
        bounds += (request.image_bound + left).tolist()
        rows += [row] * len(request.image_bound)
    if not slices:
        return batch
    padded = torch.nn.utils.rnn.pad_sequence(slices, batch_first=True)  # [N, L, 3 * p * p]
    cells = padded.unflatten(-1, (3, patch_size, patch_size))  # [N, L, 3, p, p]
    return batch | {
        "pixel_values": cells.permute(0, 2, 3, 1, 4).flatten(3),  # [N, 3, p, L * p]
        "tgt_sizes": torch.tensor(sizes),
        "slice_request": torch.tensor(rows),
        "image_bound": torch.tensor(bounds),
    }
