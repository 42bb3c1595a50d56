"""Keys and values of one request serve another, and nothing in the answer tells."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from handlens.chat import load
from handlens.cpu import ops
from handlens.cpu.backend import KERNELS_VARIABLE
from handlens.engine import engine as engine_module
from handlens.engine.engine import Engine
from handlens.engine.prefix import Context, PrefixCache
from handlens.engine.sampling import SamplingParams
from handlens.errors import ModelFileError
from tests.multilingual import lines
from tests.test_kernels import needs_bf16

GREEDY = SamplingParams.greedy(max_new_tokens=12)


def picture(width, height, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def user(*content):
    return {"role": "user", "content": list(content)}


@pytest.fixture(params=["numpy", "float kernels", "kernels"])
def fresh(request, tiny_model, quantized_model, monkeypatch):
    """Makes a chat that remembers nothing yet."""
    made = {"numpy": tiny_model, "float kernels": tiny_model, "kernels": quantized_model}[request.param]
    if request.param == "numpy":
        monkeypatch.setenv(KERNELS_VARIABLE, "off")
    elif ops.native is None:
        pytest.skip("built without kernels")

    def make():
        chat = load(made.model, made.mmproj)
        assert chat.generator.backend.row_independent == (request.param != "numpy")
        return chat

    return make


def counted(chat, monkeypatch) -> list[int]:
    """The positions of each sequence in each forward call of the chat from now on."""
    read, forward = [], chat.generator.backend.forward

    def counting(inputs, caches, *rest):
        read.extend(len(x) for x in inputs)
        return forward(inputs, caches, *rest)

    monkeypatch.setattr(chat.generator.backend, "forward", counting)
    return read


def asked(ids, images=()) -> Context:
    """What a prompt without an earlier answer leaves."""
    return Context(np.asarray(ids, np.int32), np.zeros(len(ids), bool), images)


def remembered(chat):
    """The newest entry's ids, keys and values."""
    entry = chat.generator.prefixes.entries[-1]
    rows = [array[:, : entry.cache.length] for array in entry.cache._keys + entry.cache._values]
    return entry.context.ids, np.stack(rows)


def assert_same_bits(one, other):
    for mine, theirs in zip(remembered(one), remembered(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_second_question_about_an_image_reads_the_question_only(fresh, monkeypatch):
    image = picture(300, 300)
    chat, other = fresh(), fresh()
    first = chat.prepare([user(image, "What is this?")], GREEDY)
    chat.reply([user(image, "What is this?")], GREEDY)
    monkeypatch.setattr(chat.generator.backend, "encode", None)  # no vision work
    read = counted(chat, monkeypatch)
    answer = chat.reply([user(image, "And what colour does it have?")], GREEDY)
    question = len(chat.prepare([user(image, "And what colour does it have?")], GREEDY).input_ids)
    assert read[0] <= question - first.image_bound[-1][1] < question / 20
    assert answer == other.reply([user(image, "And what colour does it have?")], GREEDY)
    assert_same_bits(chat, other)


def test_a_long_prompt_in_pieces_is_read_again_from_a_place_where_the_pieces_meet(fresh, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 64)
    text = " ".join(lines()[:12])
    chat, other = fresh(), fresh()
    chat.reply([user(picture(100, 90), text, "What?")], GREEDY)
    read = counted(chat, monkeypatch)
    answer = chat.reply([user(picture(100, 90), text, "Why?")], GREEDY)
    assert read[0] <= 64
    assert answer == other.reply([user(picture(100, 90), text, "Why?")], GREEDY)
    assert_same_bits(chat, other)


def test_every_turn_of_a_conversation_equals_the_same_conversation_from_the_start(fresh):
    chat = fresh()
    messages = []
    for content in ([picture(260, 150), "What is it?"], ["Really?"], [picture(80, 70, 5), "And this?"], ["Why?"]):
        messages.append(user(*content))
        answer = chat.reply(messages, GREEDY)
        other = fresh()
        assert answer == other.reply(messages, GREEDY)
        assert_same_bits(chat, other)
        messages.append({"role": "assistant", "content": answer})
    assert chat.generator.prefixes.bytes <= chat.generator.prefixes.max_bytes


@needs_bf16
def test_where_prompts_differ_an_earlier_answer_is_read_as_an_answer(quantized_model, monkeypatch):
    chat = load(quantized_model.model, quantized_model.mmproj)
    backend, calls = chat.generator.backend, []
    assert backend.prompts_differ
    forward = backend.forward

    def noting(inputs, caches, tails, prompt):
        calls.append((prompt, [len(x) for x in inputs]))
        return forward(inputs, caches, tails, prompt)

    monkeypatch.setattr(backend, "forward", noting)
    messages = [user("What?"), {"role": "assistant", "content": "A lens, held in a hand."}, user("Why?")]
    inputs = chat.prepare(messages, GREEDY)
    chat.reply(messages, GREEDY)
    (start, end), length = inputs.answers[0].tolist(), len(inputs.input_ids)
    assert calls[:3] == [(True, [start]), (False, [end - start]), (True, [length - end])]
    assert all(not prompt for prompt, _ in calls[3:])


@needs_bf16
def test_where_prompts_differ_they_go_apart_from_the_answers_of_others(quantized_model, monkeypatch):
    chat, other = (load(quantized_model.model, quantized_model.mmproj) for _ in range(2))
    questions = [[user("What?")], [user(picture(200, 140), "Where?")]]
    wanted = [other.reply(question, GREEDY) for question in questions]
    backend, kinds = chat.generator.backend, []
    forward = backend.forward
    monkeypatch.setattr(backend, "forward", lambda *args: kinds.append(args[3]) or forward(*args))
    stream = chat.stream(questions[0], GREEDY)
    begun = next(stream)  # so that the first answer goes on while the second question is read
    assert chat.reply(questions[1], GREEDY) == wanted[1]
    assert begun + "".join(stream) == wanted[0]
    assert kinds[0] and not kinds[1] and True in kinds[2:]


@pytest.mark.parametrize(
    "params", [SamplingParams.beam(max_new_tokens=8), SamplingParams(max_new_tokens=12, seed=3, temperature=1.3)]
)
def test_other_ways_of_answering_leave_and_find_the_same_beginnings(fresh, params):
    chat, other = fresh(), fresh()
    image = picture(120, 120)
    chat.reply([user(image, "What is this?")], params)
    chat.reply([user(image, "Where is it?")], params)
    assert chat.reply([user(image, "What is this?")], GREEDY) == other.reply([user(image, "What is this?")], GREEDY)
    assert_same_bits(chat, other)
    assert chat.reply([user(image, "Where?")], params) == fresh().reply([user(image, "Where?")], params)


def test_i05_two_images_with_the_same_ids_never_share_a_beginning(fresh):
    twins = []
    for palette in ([0, 0, 0, 255, 255, 255], [255, 0, 0, 0, 0, 255]):
        image = Image.frombytes("P", (32, 32), bytes(i % 2 for i in range(1024)))
        image.putpalette(palette)
        twins.append(image)
    chat = fresh()
    cases = [*twins, picture(40, 30, 1), picture(40, 30, 2)]
    for images in [*([image] for image in cases), [cases[2], cases[3]], [cases[3], cases[2]]]:
        ids = [chat.prepare([user(image, "?")], GREEDY).input_ids.tolist() for image in images]
        assert ids[0] == ids[-1]
        other = fresh()
        assert chat.reply([user(*images, "?")], GREEDY) == other.reply([user(*images, "?")], GREEDY)
        assert_same_bits(chat, other)


def test_a_request_that_was_broken_off_may_be_asked_again(fresh, monkeypatch):
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 64)
    msgs = [user(picture(250, 120), "What is written here?")]
    chat = fresh()
    forward, calls = chat.generator.backend.forward, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(chat.generator.backend, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat.reply(msgs, GREEDY)
    stream = chat.stream(msgs, GREEDY)
    next(stream)
    stream.close()
    other = fresh()
    assert chat.reply(msgs, GREEDY) == other.reply(msgs, GREEDY)
    assert_same_bits(chat, other)


def test_questions_at_the_same_time_do_not_meet_in_one_cache(fresh):
    image, questions = picture(200, 140), [f"{number}: what is this?" for number in range(8)]
    chat = fresh()
    wanted = [fresh().reply([user(image, question)], GREEDY) for question in questions]
    for _ in range(2):
        answers = [None] * len(questions)

        def ask(index, answers=answers):
            answers[index] = chat.reply([user(image, questions[index])], GREEDY)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(questions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert answers == wanted


def test_a_poisoned_request_leaves_nothing_behind(tiny_model, monkeypatch):
    chat = load(tiny_model.model, tiny_model.mmproj)
    width = chat.config.llm.hidden_size
    monkeypatch.setattr(chat.generator.backend, "embed", lambda ids: np.full((len(ids), width), np.nan, np.float32))
    with pytest.raises(ModelFileError, match="not numbers"):
        chat.reply([user("Hello")], GREEDY)
    assert chat.generator.prefixes.entries == []


def test_memory_is_bounded_and_the_longest_unused_goes_first(tiny_model):
    backend = load(tiny_model.model).generator.backend
    store = PrefixCache(1 << 30, row_independent=True)
    contexts = [asked(np.arange(start, start + 20)) for start in range(4)]
    for context in contexts[:3]:
        cache = backend.new_cache()
        backend.forward([backend.embed(context.ids)], [cache])
        store.keep(context, cache, ())
    store.max_bytes = store.bytes
    assert store.take(contexts[0].first(9), ()).length == 8  # used just now
    store.keep(contexts[3], store.take(contexts[0].first(9), ()), ())
    assert [int(entry.context.ids[0]) for entry in store.entries] == [2, 0, 3]
    assert 0 < store.bytes <= store.max_bytes
    store.max_bytes = 1
    store.keep(contexts[1], cache, ())
    assert store.entries == [] and store.bytes == 0


def test_a_request_that_comes_once_leaves_nothing_and_is_answered_alike(fresh):
    chat, image = fresh(), picture(300, 300)
    inputs = chat.prepare([user(image, "What is this?")], GREEDY)
    answer = "".join(chat.run(replace(inputs, once=True), GREEDY))
    assert not chat.generator.prefixes.entries
    assert "".join(chat.run(inputs, GREEDY)) == answer and len(chat.generator.prefixes.entries) == 1


def test_no_memory_means_no_memory(tiny_model):
    chat = load(tiny_model.model, tiny_model.mmproj, prefix_cache_bytes=0)
    assert chat.reply([user("Hello")], GREEDY) == chat.reply([user("Hello")], GREEDY)
    assert chat.generator.prefixes.entries == []


def test_what_two_contexts_have_in_common():
    ids = np.arange(10, dtype=np.int32)
    a, b = ("a", None), ("b", None)
    both = asked(ids, ((2, a), (6, b)))
    assert both.common(both) == 10
    assert both.common(asked(ids, ((2, b), (6, b)))) == 2
    assert both.common(asked(ids, ((2, a), (6, a)))) == 6
    assert both.common(asked(ids, ((2, a),))) == both.common(asked(ids, ((2, a), (7, b)))) == 6
    assert both.common(asked([0, 1, 2, 3, 9], ((2, a),))) == 4
    assert both.first(5).images == ((2, a),)
    longer = both.then([7, 7])
    assert longer.ids.tolist() == [*range(10), 7, 7] and longer.answered.tolist() == [False] * 10 + [True] * 2
    # What was asked is not what was answered, though it has the same ids.
    assert longer.common(asked([*range(10), 7, 7], both.images)) == 10


def test_a_cache_is_taken_whole_or_copied(tiny_model):
    engine: Engine = load(tiny_model.model).generator
    ids = np.arange(20, dtype=np.int32)
    cache = engine.backend.new_cache()
    engine.backend.forward([engine.backend.embed(ids)], [cache])
    store = PrefixCache(1 << 30, row_independent=True)
    store.keep(asked(ids), cache, ())
    part = store.take(asked(ids[:8]), ())
    assert part is not cache and part.length == 7 and cache.length == 20
    assert not any(np.shares_memory(mine, theirs) for mine, theirs in zip(part._keys, cache._keys))
    assert store.take(asked(np.append(ids, 3)), ()) is cache
    assert store.take(asked(np.append(ids, 3)), ()) is None
