"""Guessed tokens change how fast an answer comes, and nothing else."""

import threading

import numpy as np
import pytest

from handlens.chat import Chat, load
from handlens.cpu import ops
from handlens.engine.engine import Engine
from handlens.engine.lookup import LONGEST, MOST, PER_TOKEN, ROW_COST, START, Lookup
from handlens.engine.sampling import SamplingParams
from handlens.gguf.convert import write_language
from tests.multilingual import lines

pytestmark = pytest.mark.skipif(ops.native is None, reason="built without kernels")

GREEDY = SamplingParams.greedy(max_new_tokens=60)


@pytest.fixture
def made(quantized_model):
    """Makes a chat with or without guesses that remembers nothing of others."""
    chat = load(quantized_model.model, quantized_model.mmproj)

    def make(lookup: bool | None) -> Chat:
        chat.generator = Engine(chat.generator.backend, prefix_cache_bytes=0, lookup=lookup)
        return chat

    return make


def asked(chat: Chat, texts: list[str], params: SamplingParams) -> tuple[list[list[int]], int]:
    """The ids of the answers, and how many steps they took."""
    steps, forward = 0, chat.generator.backend.forward

    def counting(*args):
        nonlocal steps
        steps += 1
        return forward(*args)

    chat.generator.backend.forward = counting
    try:
        inputs = [chat.prepare([{"role": "user", "content": text}], params) for text in texts]
        answers = [list(chat.generator.generate(each, params, chat.processor.stop_ids)) for each in inputs]
    finally:
        del chat.generator.backend.forward
    return answers, steps


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams.greedy(max_new_tokens=60, repetition_penalty=1.02),
        SamplingParams(max_new_tokens=60, temperature=0.3, repetition_penalty=1.0, seed=5),
        SamplingParams.beam(max_new_tokens=10),
        SamplingParams.greedy(max_new_tokens=1),
    ],
    ids=["greedy", "penalty", "drawn", "beam", "one token"],
)
def test_answers_are_the_same_with_and_without_guesses(made, params):
    texts = [f"{text} {text}" for text in lines()[::50]]
    plain, plain_steps = asked(made(False), texts, params)
    guessed, steps = asked(made(None), texts, params)
    assert guessed == plain
    if params.num_beams == 1 and params.max_new_tokens > 1:
        assert steps < plain_steps  # and some guesses were right


def test_guesses_that_pay_save_most_steps(tiny_model, tmp_path):
    """A model that says the same thirty tokens over and over: each token is the answer to the one before it."""
    official = dict(tiny_model.official)
    for index in range(tiny_model.config.llm.num_hidden_layers):
        for module in ("self_attn.o_proj", "mlp.down_proj"):
            name = f"llm.model.layers.{index}.{module}.weight"
            official[name] = np.zeros_like(official[name])
    embeddings = official["llm.model.embed_tokens.weight"]
    loop = np.arange(300, 330)
    official["llm.lm_head.weight"] = np.zeros_like(embeddings)
    official["llm.lm_head.weight"][np.roll(loop, -1)] = embeddings[loop]
    write_language(tmp_path / "loop.gguf", tiny_model.config, tiny_model.tokenizer, official, "Q8_0")
    chat = load(tmp_path / "loop.gguf")
    params = SamplingParams.greedy(max_new_tokens=200)
    steps = []
    for lookup in (False, None):
        chat.generator = Engine(chat.generator.backend, prefix_cache_bytes=0, lookup=lookup)
        [answer], count = asked(chat, ["Hello"], params)
        assert answer[40:] == answer[10:-30] and len(set(answer[10:])) == 30
        steps.append(count)
    assert steps[0] == 200
    assert steps[1] < 30 + 5 + 170 / LONGEST + 5


def test_answers_at_the_same_time_are_those_of_each_alone(made):
    texts = lines()[:16:2]
    wanted, _ = asked(made(False), texts, GREEDY)
    chat = made(True)
    answers = [None] * len(texts)

    def ask(index):
        inputs = chat.prepare([{"role": "user", "content": texts[index]}], GREEDY)
        answers[index] = list(chat.generator.generate(inputs, GREEDY, chat.processor.stop_ids))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == wanted


def test_stop_strings_and_streams_do_not_see_guesses(made):
    msgs = [{"role": "user", "content": lines()[0]}]
    whole = made(False).reply(msgs, GREEDY)
    chat = made(True)
    assert "".join(chat.stream(msgs, GREEDY)) == whole
    stop = whole[len(whole) // 2 :][:3]
    stopped = chat.reply(msgs, SamplingParams.greedy(max_new_tokens=60, stop=(stop,)))
    assert stopped == whole[: whole.index(stop)].rstrip()


def test_where_numpy_computes_nothing_is_guessed(tiny_model, exact):
    engine = load(tiny_model.model, tiny_model.mmproj).generator
    assert engine.lookup is False and engine.backend.row_independent is False


def test_what_followed_the_latest_words_the_last_time_is_guessed():
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    assert lookup.guess(8) == [4, 5, 6]
    assert lookup.guess(2) == [4, 5]
    lookup.follow([4])
    assert lookup.guess(1) == [5]
    lookup.follow([77])
    assert lookup.guess(8) == []  # 4, 77 is new
    lookup.follow([2, 3])
    assert lookup.guess(8) == [4, 77, 2]  # of two places with 2, 3 the later one


def test_a_guess_that_reaches_its_own_beginning_repeats_itself():
    lookup = Lookup([9, 1, 2, 1, 2])
    assert lookup.guess(8) == [1, 2, 1]


def test_guesses_grow_while_they_are_right_and_end_when_they_are_not():
    lookup = Lookup([1, 2, 3] * 20)
    lengths = []
    for _ in range(4):
        guess = lookup.guess(100)
        lookup.learn(len(guess), len(guess))
        lengths.append(len(guess))
    assert lengths == [3, 6, LONGEST, LONGEST]
    for _ in range(20):
        guess = lookup.guess(100)
        lookup.learn(len(guess), 0)
    assert len(lookup.guess(100)) <= 1


def test_the_loss_is_bounded():
    """Guesses that are always possible and always wrong, in a thousand steps and after good times."""
    for good in (0, 100):
        lookup = Lookup([1, 2, 3] * 20)
        for _ in range(good):
            lookup.learn(LONGEST, LONGEST)
        lost = 0.0
        for step in range(1, 1001):
            guess = lookup.guess(100)
            lookup.learn(len(guess), 0)
            lost += len(guess) * ROW_COST
            assert lost <= (MOST if good else START) + PER_TOKEN * step + 1e-9


def test_an_empty_or_short_prompt_is_no_trouble():
    for prompt in ([], [1], [1, 1]):
        assert isinstance(Lookup(prompt).guess(8), list)
    assert Lookup(np.arange(3).tolist()).guess(8) == []
