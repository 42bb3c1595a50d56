"""The PyTorch side on the tiny random models: what its tests share. torch is imported here and nowhere above."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from handlens.model import MiniCPMV, MiniCPMVConfig
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
