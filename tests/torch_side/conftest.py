"""The tiny pair on the PyTorch side, for the tests of this folder that only read it."""

import pytest

from handlens.model import MiniCPMV
from handlens.processor import Processor
from tests.torch_side import torch_model


@pytest.fixture(scope="module")
def model(tiny_model) -> MiniCPMV:
    return torch_model(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model) -> Processor:
    return Processor(tiny_model.config, tiny_model.tokenizer)
