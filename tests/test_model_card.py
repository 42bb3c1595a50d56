"""A script written for the published model card runs when its import is changed, and means what it meant there."""

import logging

import numpy as np
import pytest
from PIL import Image

from handlens import AutoModel, AutoTokenizer
from handlens.engine.sampling import SamplingParams


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 140, 3), np.uint8)).convert("RGB")


@pytest.fixture(scope="module")
def model(tiny_model):
    model = AutoModel.from_pretrained(tiny_model.model.parent, trust_remote_code=True, torch_dtype="float16")
    model = model.to(device="cuda")
    model.eval()
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model.model.parent, trust_remote_code=True)


MSGS = [{"role": "user", "content": "What is in the image?"}]


def test_the_first_script_answers(model, tokenizer, image):
    res = model.chat(image=image, msgs=MSGS, tokenizer=tokenizer, sampling=True, temperature=0.7, max_new_tokens=16)
    assert isinstance(res, str) and res


def test_the_second_script_streams_the_same_answer(model, tokenizer, image):
    options = dict(tokenizer=tokenizer, sampling=True, temperature=0.7, max_new_tokens=16, seed=3)
    res = model.chat(image=image, msgs=MSGS, stream=True, **options)
    generated_text = ""
    pieces = 0
    for new_text in res:
        generated_text += new_text
        pieces += 1
    assert pieces > 1
    assert generated_text == model.chat(image=image, msgs=MSGS, **options)


def test_the_image_stands_before_the_text_of_the_first_message(model, image):
    greedy = SamplingParams.greedy(max_new_tokens=16)
    inside = [{"role": "user", "content": [image, "What is in the image?"]}]
    outside = model.chat(image=image, msgs=MSGS, temperature=0, repetition_penalty=1.0, max_new_tokens=16)
    assert outside == model.reply(inside, greedy)


def test_without_sampling_it_is_the_original_beam_search(model, image):
    beams = SamplingParams(num_beams=3, repetition_penalty=1.2, max_new_tokens=8)
    inside = [{"role": "user", "content": [image, "What is in the image?"]}]
    assert model.chat(image=image, msgs=MSGS, sampling=False, max_new_tokens=8) == model.reply(inside, beams)


def test_the_caller_s_messages_stay_as_they_were(model, image):
    msgs = [{"role": "user", "content": "What?"}]
    model.chat(image=image, msgs=msgs, max_new_tokens=2)
    assert msgs == [{"role": "user", "content": "What?"}]


def test_a_device_that_is_not_used_is_said(model, caplog):
    with caplog.at_level(logging.WARNING, logger="handlens"):
        assert model.to(device="cuda") is model
        assert model.to("cpu") is model
    assert len(caplog.records) == 1 and "cuda" in caplog.text


def test_unknown_options_are_refused(model, image, tiny_model):
    with pytest.raises(TypeError, match="num_bemas"):
        model.chat(image=image, msgs=MSGS, sampling=False, num_bemas=3)
    with pytest.raises(TypeError, match="revizion"):
        AutoModel.from_pretrained(tiny_model.model, revizion="main")
