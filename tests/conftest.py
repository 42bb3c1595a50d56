"""Models that many tests share; each is written once a session."""

import os
import signal
from pathlib import Path

import pytest

import handlens
from handlens.chat import Chat, load
from handlens.config import FAMILIES
from handlens.cpu.backend import KERNELS_VARIABLE
from tests import tiny


def pytest_configure():
    # Programs that tests start compute with the package that the tests import. Python would look in the working
    # directory first, where the source tree lies: it has no kernels in it if the package was installed elsewhere.
    os.environ["PYTHONSAFEPATH"] = "1"
    paths = str(Path(handlens.__file__).parents[1]), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Jobs in the background ignore Ctrl-C, and so would the programs that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def exact(monkeypatch):
    """Computes quantised weights as the numbers they stand for; the kernels round activations to 8 bits besides."""
    monkeypatch.setenv(KERNELS_VARIABLE, "off")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> tiny.TinyModel:
    """A pair in float32 with the rules of 2.5."""
    return tiny.write(tmp_path_factory.mktemp("tiny"), tiny.config())


@pytest.fixture(scope="session")
def quantized_model(tmp_path_factory) -> tiny.TinyModel:
    """The same with all matrices in Q8_0, which the kernels take."""
    return tiny.write(tmp_path_factory.mktemp("quantized"), tiny.config(), type="Q8_0")


@pytest.fixture(scope="session")
def mini_model(tmp_path_factory) -> tiny.TinyModel:
    """A pair in float32 with the rules of our small models (the true grid), slices of 224 pixels."""
    config = tiny.config(FAMILIES["handlens-mini"], scale_resolution=224)
    return tiny.write(tmp_path_factory.mktemp("mini"), config)


@pytest.fixture(scope="session")
def chat(tiny_model) -> Chat:
    return load(tiny_model.model, tiny_model.mmproj)
