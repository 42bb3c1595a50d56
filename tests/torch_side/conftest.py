"""The tiny pair on the PyTorch side, for the tests of this folder that only read it."""

import pytest

from handlens.chat import Chat, load
from handlens.cpu.backend import KERNELS_VARIABLE
from handlens.model import MiniCPMV
from handlens.processor import Processor
from tests.torch_side import torch_model


@pytest.fixture(scope="module")
def model(tiny_model) -> MiniCPMV:
    return torch_model(tiny_model)


@pytest.fixture(scope="module")
def processor(tiny_model) -> Processor:
    return Processor(tiny_model.config, tiny_model.tokenizer)


@pytest.fixture(scope="package", autouse=True)
def numpy_computes():
    """The device side computes in numpy here: both sides are compared with the truth, kernels elsewhere with numpy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KERNELS_VARIABLE, "off")
        yield


@pytest.fixture(scope="module")
def chat(tiny_model) -> Chat:
    return load(tiny_model.model, tiny_model.mmproj)
