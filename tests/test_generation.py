"""Generation equals transformers' `generate` on the same tiny model, and streams keep their promises."""

import threading

import numpy as np
import pytest
import torch
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from benchmarks.parity import transformers_llama
from handlens.engine.sampling import SamplingParams, probabilities
from handlens.errors import InputError, ModelFileError
from tests.multilingual import lines


@pytest.fixture(scope="session")
def llama(tiny_model):
    """transformers' Llama with the official tensors of the tiny model; where answers stop is left to each call."""
    model = transformers_llama(tiny_model.config.llm, tiny_model.official)
    model.generation_config.bos_token_id = model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="session")
def prompts(chat) -> list[np.ndarray]:
    """The embeddings of 56 prompts of different lengths in many languages."""
    texts = lines()[::20][:56]
    return [
        chat.generator.embeddings(chat.prepare([{"role": "user", "content": text}], SamplingParams(max_new_tokens=24)))
        for text in texts
    ]


def ours(chat, embeddings, params, stop_ids) -> list[int]:
    engine = chat.generator
    request = engine.submit(embeddings, params, stop_ids)
    while not request.done:
        engine.step()
    engine.cancel(request)
    return list(request.strategy.certain)


def theirs(llama, embeddings, stop_ids, **options) -> list[int]:
    inputs = torch.from_numpy(embeddings)[None]
    with torch.no_grad():
        ids = llama.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
            eos_token_id=list(stop_ids),
            pad_token_id=0,
            **options,
        )[0].tolist()
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[:position]
    return ids


@pytest.fixture(scope="session")
def stop_ids(chat, llama, prompts) -> tuple[int, ...]:
    """Two ids that often come up in greedy answers, so that answers end at different lengths."""
    seen = [token for prompt in prompts[:8] for token in theirs(llama, prompt, (), max_new_tokens=24, do_sample=False)]
    values, counts = np.unique(seen, return_counts=True)
    return tuple(int(value) for value in values[np.argsort(-counts)][:2])


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_tokens_equal_transformers(chat, llama, prompts, stop_ids, penalty):
    params = SamplingParams.greedy(max_new_tokens=24, repetition_penalty=penalty)
    answers = [ours(chat, prompt, params, stop_ids) for prompt in prompts]
    expected = [
        theirs(llama, prompt, stop_ids, max_new_tokens=24, do_sample=False, repetition_penalty=penalty)
        for prompt in prompts
    ]
    assert answers == expected
    assert len({tuple(answer) for answer in answers}) > len(answers) // 2  # the prompts matter
    assert len({len(answer) for answer in answers}) > 3  # the stops matter


@pytest.mark.parametrize("beams, length_penalty", [(3, 1.0), (2, 0.0), (5, 2.0)])
def test_beam_tokens_equal_transformers(chat, llama, prompts, stop_ids, beams, length_penalty):
    params = SamplingParams.beam(max_new_tokens=16, num_beams=beams, length_penalty=length_penalty)
    for prompt in prompts if beams == 3 else prompts[:12]:
        expected = theirs(
            llama,
            prompt,
            stop_ids,
            max_new_tokens=16,
            do_sample=False,
            num_beams=beams,
            repetition_penalty=1.2,
            length_penalty=length_penalty,
            early_stopping=False,
        )
        assert ours(chat, prompt, params, stop_ids) == expected


@pytest.mark.parametrize("temperature, top_k, top_p", [(0.7, 100, 0.8), (1.5, 5, 1.0), (0.3, 0, 0.5), (1.0, 1, 1.0)])
def test_sampling_probabilities_equal_transformers(temperature, top_k, top_p):
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.standard_normal(1000).astype(np.float32) * 3
        scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None])
        if top_k:
            scores = TopKLogitsWarper(top_k)(None, scores)
        if top_p < 1:
            scores = TopPLogitsWarper(top_p)(None, scores)
        expected = torch.softmax(scores.double(), -1)[0].numpy()
        chances = probabilities(logits, SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p))
        np.testing.assert_allclose(chances, expected, atol=1e-6)


def test_same_seed_same_text_other_seed_other_text(chat):
    msgs = [{"role": "user", "content": "Tell me about the train."}]
    options = dict(max_new_tokens=40, temperature=1.5)
    texts = {seed: chat.reply(msgs, SamplingParams(seed=seed, **options)) for seed in range(4)}
    assert texts == {seed: chat.reply(msgs, SamplingParams(seed=seed, **options)) for seed in range(4)}
    assert len(set(texts.values())) == 4


def test_a_draw_follows_the_probabilities(chat):
    from handlens.engine.sampling import Sampling

    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampling(SamplingParams(temperature=1, top_k=0, top_p=1, repetition_penalty=1, seed=1), ())
    counts = np.bincount([sampler.choose(logits) for _ in range(20000)], minlength=3) / 20000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.015)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams.greedy(max_new_tokens=20),
        SamplingParams(max_new_tokens=20, temperature=1.2, seed=7),
        SamplingParams.beam(max_new_tokens=12),
    ],
    ids=["greedy", "sampling", "beam"],
)
def test_n_prompts_together_equal_each_alone(chat, prompts, stop_ids, params):
    alone = [ours(chat, prompt, params, stop_ids) for prompt in prompts[:9]]
    engine = chat.generator
    requests = []
    for prompt in prompts[:9]:  # they join one after another, so lengths and phases mix
        requests.append(engine.submit(prompt, params, stop_ids))
        engine.step()
    while not all(request.done for request in requests):
        engine.step()
    together = [list(request.strategy.certain) for request in requests]
    for request in requests:
        engine.cancel(request)
    assert together == alone


def test_threads_that_stream_at_once_get_their_own_answers(chat):
    params = SamplingParams.greedy(max_new_tokens=24)
    questions = [f"question {number}: {text}" for number, text in enumerate(lines()[:12])]
    alone = [chat.reply([{"role": "user", "content": question}], params) for question in questions]
    together = [None] * len(questions)

    def ask(index):
        together[index] = chat.reply([{"role": "user", "content": questions[index]}], params)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone
    assert chat.generator.requests == []


def test_a_long_prompt_in_pieces_equals_one_forward(chat, monkeypatch):
    from handlens.engine import engine as module

    msgs = [{"role": "user", "content": " ".join(lines()[:30])}]
    params = SamplingParams.greedy(max_new_tokens=12)
    whole = chat.reply(msgs, params)
    monkeypatch.setattr(module, "PREFILL_CHUNK", 37)
    assert chat.reply(msgs, params) == whole


def test_a_closed_stream_frees_its_request(chat):
    stream = chat.stream([{"role": "user", "content": "go on"}], SamplingParams.greedy(max_new_tokens=200))
    next(stream)
    assert len(chat.generator.requests) == 1
    stream.close()
    assert chat.generator.requests == []


def test_a08_a_poisoned_request_fails_alone(chat, prompts):
    params = SamplingParams.greedy(max_new_tokens=16)
    engine = chat.generator
    expected = ours(chat, prompts[0], params, ())
    good = engine.submit(prompts[0], params, ())
    bad = engine.submit(np.full_like(prompts[1], np.nan), params, ())
    while not (good.done and bad.done):
        engine.step()
    engine.cancel(good)
    engine.cancel(bad)
    assert isinstance(bad.error, ModelFileError)
    assert list(good.strategy.certain) == expected


def test_an_interrupted_step_can_be_repeated(chat, prompts, monkeypatch):
    params = SamplingParams.greedy(max_new_tokens=16)
    engine = chat.generator
    expected = ours(chat, prompts[2], params, ())
    request = engine.submit(prompts[2], params, ())
    engine.step()
    engine.step()
    llama = engine.backend.llama
    computed = llama.layer

    def interrupted(x, index, *rest):
        if index == 1:
            raise KeyboardInterrupt
        return computed(x, index, *rest)

    monkeypatch.setattr(llama, "decoder", None)  # or all layers would be one call
    monkeypatch.setattr(llama, "layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    while not request.done:
        engine.step()
    engine.cancel(request)
    assert list(request.strategy.certain) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2**40},
        {"max_new_tokens": True},
        {"max_new_tokens": 1.5},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"repetition_penalty": 0},
        {"num_beams": 0},
        {"num_beams": 1000},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": ["a"]},
        {"length_penalty": None},
    ],
)
def test_a01_wrong_options_are_refused_by_name(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SamplingParams(**options)


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.7)
