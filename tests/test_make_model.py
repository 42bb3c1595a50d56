"""The maker of models for measurements writes files that are valid and loaded like any other."""

import numpy as np
import pytest

from benchmarks.make_model import TYPES, official_shapes, published, write
from handlens.chat import load
from handlens.engine.sampling import SamplingParams
from handlens.gguf import GGUFFile
from tests import tiny


@pytest.mark.parametrize("type", TYPES)
def test_a_small_pair_of_each_type_answers(tmp_path, type):
    config = tiny.config()
    model, mmproj = write(tmp_path, type, 2, "F16", 2, config)
    chat = load(model, mmproj)
    assert chat.config.llm == config.llm and chat.config.vision == config.vision
    inputs = chat.prepare([{"role": "user", "content": "Hello"}], SamplingParams.greedy(max_new_tokens=3))
    assert len(list(chat.generator.generate(inputs, SamplingParams.greedy(max_new_tokens=3), ()))) == 3
    with GGUFFile(model) as file:
        assert file.tensors["blk.1.ffn_down.weight"].type == file.tensors["output.weight"].type == type
        deviation = file.tensors["blk.0.ffn_up.weight"].dequantize().std() * 16
        assert 0.3 < deviation < 0.7, "weights are far too large or too small"


def test_shapes_are_those_of_the_official_checkpoint():
    config = tiny.config()
    wanted = {name: array.shape for name, array in tiny.official_tensors(config).items()}
    assert official_shapes(config) == wanted


def test_full_size_is_the_published_size():
    shapes = official_shapes(published(32, 27)).values()
    assert sum(int(np.prod(shape)) for shape in shapes) == 8_537_092_336  # as the published index has it
