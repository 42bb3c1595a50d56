"""`Chat` on PyTorch: the text of the device side, and the manners of its generator."""

import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from handlens import AutoModel, load
from handlens.chat import Chat
from handlens.cli import run
from handlens.engine.sampling import Sampling, SamplingParams, penalised, probabilities
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, write_gguf
from handlens.gguf.blocks import Tensor
from handlens.gguf.convert import write_language, write_projector
from handlens.model import MiniCPMV
from handlens.model.generator import as_loaded, logits_processors
from handlens.weights import load_model
from tests.torch_side import conversation, picture, torch_model

GREEDY = SamplingParams.greedy(max_new_tokens=8)
THREAD = "handlens-generate"


@pytest.fixture(scope="module")
def torch_chat(tiny_model) -> Chat:
    return load(tiny_model.model, tiny_model.mmproj, backend="torch")


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """The tiny model as a checkpoint in the official layout, with options of its own for generation."""
    path = tmp_path_factory.mktemp("checkpoint")
    torch_model(tiny_model).save_pretrained(path)
    GenerationConfig(repetition_penalty=5.0, no_repeat_ngram_size=1, max_length=3, eos_token_id=5).save_pretrained(path)
    (path / "tokenizer.json").write_text((tiny_model.model.parent / "tokenizer.json").read_text())
    return path


@contextmanager
def hooked(module: torch.nn.Module, action: Callable[[], Any] = lambda: None) -> Iterator[list]:
    """Does something whenever a module is called; yields a list with one entry a call."""
    calls = []

    def hook(*_):
        calls.append(action())

    handle = module.register_forward_pre_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


# The same text as the device side


def test_50_image_prompts_get_the_text_of_the_device_side(chat, torch_chat):
    asked = [conversation(index) for index in range(50)]
    answers = [torch_chat.reply(msgs, GREEDY) for msgs in asked]
    assert answers == [chat.reply(msgs, GREEDY) for msgs in asked]
    assert len(set(answers)) > 40


@pytest.mark.parametrize("length_penalty", [1.0, -2.0])
def test_10_image_prompts_get_the_beams_of_the_device_side(chat, torch_chat, length_penalty):
    params = SamplingParams.beam(max_new_tokens=8, length_penalty=length_penalty)
    for index in range(10):
        assert torch_chat.reply(conversation(index), params) == chat.reply(conversation(index), params)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_an_answer_ends_at_the_stop_tokens_of_the_device_side(chat, torch_chat, options):
    params = SamplingParams.greedy(max_new_tokens=12, **options)
    requests = [chat.prepare(conversation(index), params) for index in range(6)]
    whole = [list(chat.generator.generate(inputs, params, ())) for inputs in requests]
    stops = tuple({ids[2 + index] for index, ids in enumerate(whole)})
    ended = [list(torch_chat.generator.generate(inputs, params, stops)) for inputs in requests]
    assert ended == [list(chat.generator.generate(inputs, params, stops)) for inputs in requests]
    assert not {*stops} & {token for ids in ended for token in ids}
    assert len({len(ids) for ids in ended}) > 2


@pytest.mark.parametrize("penalty", [1.3, 1, 0.7])
def test_the_repetition_penalty_sees_generated_tokens_only(chat, torch_chat, penalty):
    params = SamplingParams.greedy(max_new_tokens=24, repetition_penalty=penalty)
    for index in range(5):
        assert torch_chat.reply(conversation(index), params) == chat.reply(conversation(index), params)


@pytest.mark.parametrize("mode", ["reference", "masked_1d", "grid_2d"])
def test_every_position_mode_on_either_backend_from_either_kind_of_file(tiny_model, folder, mode):
    msgs = conversation(8, 2)
    expected = load(tiny_model.model, position_mode=mode).reply(msgs, GREEDY)
    assert load(tiny_model.model, position_mode=mode, backend="torch").reply(msgs, GREEDY) == expected
    assert load(folder, position_mode=mode, backend="torch").reply(msgs, GREEDY) == expected


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_a_quantised_pair_is_dequantised(tiny_model, tmp_path, kind):
    write_language(tmp_path / "m.gguf", tiny_model.config, tiny_model.tokenizer, tiny_model.official, kind)
    write_projector(tmp_path / "m.mmproj.gguf", tiny_model.config, tiny_model.official, "F16")
    here, there = (load(tmp_path, backend=backend) for backend in ("cpu", "torch"))
    for index in range(5):
        assert there.reply(conversation(index), GREEDY) == here.reply(conversation(index), GREEDY)


def test_the_shipped_model_runs_on_torch(exact):
    assert load(backend="torch").reply(conversation(0), GREEDY) == load().reply(conversation(0), GREEDY)


def test_text_without_images(chat, torch_chat):
    msgs = [{"role": "user", "content": "Hello! Is this only text?"}]
    assert torch_chat.reply(msgs, GREEDY) == chat.reply(msgs, GREEDY)


def test_bfloat16_is_computed_in_bfloat16(folder):
    chat = load(folder, backend="torch", dtype="bfloat16")
    assert chat.model.generator.model.dtype == torch.bfloat16
    assert chat.reply(conversation(0), GREEDY)


# Streams and samples


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(seed=4, max_new_tokens=12), SamplingParams.beam(max_new_tokens=6)]
)
def test_stream_joined_is_the_reply(torch_chat, params):
    for index in range(3):
        pieces = list(torch_chat.stream(conversation(index), params))
        assert "".join(pieces) == torch_chat.reply(conversation(index), params)
        assert len(pieces) > 1 or params.num_beams > 1


def test_tokens_come_one_by_one(torch_chat):
    """Each step waits here until the token of the one before has been read."""
    read = threading.Semaphore(1)
    inputs = torch_chat.prepare(conversation(0), GREEDY)
    with hooked(torch_chat.generator.model.llm.lm_head, lambda: read.acquire(timeout=30)) as steps:
        for count, _ in enumerate(torch_chat.generator.generate(inputs, GREEDY, ())):
            assert len(steps) == count + 1
            read.release()
    assert len(steps) == GREEDY.max_new_tokens


def test_one_seed_gives_one_text_whatever_else_is_drawn(torch_chat):
    params = SamplingParams(seed=7, temperature=1.5, max_new_tokens=12)
    msgs = conversation(0)
    alone = torch_chat.reply(msgs, params)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        others = [replace(params, seed=seed) for seed in (7, 1, 7, None, 2, 7)]
        texts = list(pool.map(lambda one: torch_chat.reply(msgs, one), others))
    assert [texts[0], texts[2], texts[5]] == [alone] * 3
    assert len({*texts}) == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert torch_chat.reply(msgs, replace(params, seed=None)) != torch_chat.reply(msgs, replace(params, seed=None))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_p": 0.8, "top_k": 100},
        {"temperature": 1, "top_p": 1, "top_k": 0},
        {"temperature": 2.5, "top_p": 0.3, "top_k": 0, "repetition_penalty": 2},
        {"temperature": 1.0, "top_p": 1.0, "top_k": 3},
        {"temperature": 0.01, "top_p": 0.9, "top_k": 1 << 24},
    ],
)
def test_tokens_are_drawn_from_the_distribution_of_the_device_side(options):
    params = SamplingParams(seed=0, **{"repetition_penalty": 1.0, **options})
    logits = np.random.default_rng(0).normal(size=40).astype(np.float32) * 3
    ids = [3, 7, 3]
    expected = probabilities(penalised(logits, ids, params.repetition_penalty), params)
    rows = torch.from_numpy(logits).repeat(20000, 1)
    steps = logits_processors(params)
    before = torch.tensor([ids]).expand(len(rows), -1)
    *warpers, draw = steps
    warped = rows
    for step in warpers:
        warped = step(before, warped)
    assert np.allclose(warped[0].double().softmax(-1).numpy(), expected, atol=1e-6)
    drawn = draw(before, warped).argmax(-1)
    shares = np.bincount(drawn.numpy(), minlength=40) / len(rows)
    assert np.abs(shares - expected).max() < 0.02
    assert Sampling(params, ()).choose(logits) in np.flatnonzero(shares)


# Manners


def test_closing_early_ends_the_computation_and_the_thread(torch_chat):
    """Each step waits until the token of the one before has been read, so closing falls into the second."""
    read = threading.Semaphore(1)
    inputs = torch_chat.prepare(conversation(0), GREEDY)
    with hooked(torch_chat.generator.model.llm.lm_head, lambda: read.acquire(timeout=30)) as steps:
        answer = torch_chat.generator.generate(inputs, GREEDY, ())
        next(answer)
        assert len(threads()) == 1
        releasing = threading.Timer(0.2, read.release)
        releasing.start()
        answer.close()
    assert threads() == []
    assert len(steps) == 2


def test_closing_early_ends_a_beam_search(torch_chat):
    """Nobody has a token to read before the end, so it is a Ctrl-C that comes while waiting."""
    params = SamplingParams.beam(max_new_tokens=3000)

    def interrupt():
        if len(steps) == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A job in the background was started with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with hooked(torch_chat.generator.model.llm, interrupt) as steps, pytest.raises(KeyboardInterrupt):
            torch_chat.reply(conversation(0), params)
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads() == []
    assert len(steps) < 100


def test_an_answer_that_nobody_begins_to_read_costs_nothing(torch_chat):
    stream = torch_chat.stream(conversation(0), GREEDY)
    assert threads() == []
    stream.close()


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_new_tokens=4), SamplingParams.beam(max_new_tokens=4)])
def test_an_error_in_the_thread_reaches_the_caller(tiny_model, params):
    model = torch_model(tiny_model)
    chat = Chat(as_loaded(model, tiny_model.tokenizer))
    with torch.no_grad():
        model.llm.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelFileError, match="not numbers"):
        chat.reply(conversation(0), params)
    assert threads() == []
    with hooked(model.llm, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
        chat.reply(conversation(0), params)
    assert threads() == []


def test_a_second_question_about_an_image_costs_no_vision_work(torch_chat, chat):
    """In reference mode the vectors depend on the longest slice of the request, which may be another image's."""
    short, long = picture(104), picture(102)  # 63 and 64 patches at most
    for images, encoded in (([short], 1), ([short], 0), ([long], 1), ([short, long], 1), ([long, short], 0)):
        msgs = [{"role": "user", "content": [*images, "What is it?"]}]
        with hooked(torch_chat.generator.model.vpm) as calls:
            assert torch_chat.reply(msgs, GREEDY) == chat.reply(msgs, GREEDY)
        assert len(calls) == encoded


@pytest.mark.parametrize("mode", ["reference", "masked_1d", "grid_2d"])
def test_vectors_are_those_of_the_device_side_when_images_come_one_by_one(tiny_model, mode):
    here, there = (load_model(tiny_model.model, position_mode=mode, backend=name) for name in ("cpu", "torch"))
    inputs = Chat(here).prepare([{"role": "user", "content": [picture(4), picture(8), picture(0)]}], GREEDY)
    longest = max(rows * cols for image in inputs.images for rows, cols in image.plan.tgt_sizes)
    told = []
    for image in inputs.images:
        [ours] = here.generator.backend.encode([image], longest)
        [theirs] = there.generator.encode([image], longest, lambda *progress: told.append(progress))
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()
    assert told == [(len(image.slices),) * 2 for image in inputs.images]


def test_loading_draws_nothing_and_leaves_the_settings_of_transformers(folder, capfd):
    assert transformers_logging.is_progress_bar_enabled()
    load(folder, backend="torch")
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled()


# The model card


def test_the_scripts_of_the_model_card_run_on_the_model_itself(folder, chat):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    image, msgs = picture(3), [{"role": "user", "content": "What is in the image?"}]
    greedy = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 12}
    for given in (tokenizer, chat.tokenizer, None):
        assert model.chat(image=image, msgs=msgs, tokenizer=given, **greedy) == chat.chat(image, msgs, **greedy)
    beams = {"sampling": False, "max_new_tokens": 6}
    assert model.chat(image, msgs, tokenizer, **beams) == chat.chat(image, msgs, **beams)
    drawn = {"sampling": True, "temperature": 0.7, "seed": 1, "max_new_tokens": 12}
    pieces = list(model.chat(image=image, msgs=msgs, tokenizer=tokenizer, stream=True, **drawn))
    assert len(pieces) > 1 and "".join(pieces) == model.chat(image=image, msgs=msgs, tokenizer=tokenizer, **drawn)
    assert model.generation_config.repetition_penalty == 5.0  # what belongs to the user stays as it is


def test_a_model_without_a_folder_wants_a_tokenizer(tiny_model, caplog):
    model = torch_model(tiny_model)
    with pytest.raises(InputError, match="give the tokenizer"):
        model.chat(msgs=conversation(0))
    loaded = as_loaded(model, tiny_model.tokenizer)
    assert loaded.files is None and loaded.device == "cpu" and isinstance(loaded.generator.model, MiniCPMV)
    with caplog.at_level(logging.WARNING, logger="handlens"):
        Chat(loaded).to("cpu").to(device="cuda")
        Chat(replace(loaded, device="cuda:0")).to("cuda").to("cuda:0")
    assert [record.args for record in caplog.records] == [("cpu", "cuda")]


# Which backend, which device


def test_the_command_line_gives_the_same_text_on_either_backend(tiny_model, folder, tmp_path, capsys):
    path = tmp_path / "picture.png"
    picture(3).save(path)
    answers = []
    for where in (
        ["--backend", "cpu"],
        ["--backend", "torch"],
        ["--backend", "torch", "--device", "cpu"],
        ["--device", "cpu"],
    ):
        assert (
            run(
                [
                    "ask",
                    str(path),
                    "Why?",
                    "--model",
                    str(tiny_model.model),
                    "--greedy",
                    "--max-new-tokens",
                    "8",
                    *where,
                    "-q",
                ]
            )
            == 0
        )
        answers.append(capsys.readouterr().out)
    for backend in ("cpu", "torch"):
        arguments = ["--model", str(folder), "--backend", backend, "--max-new-tokens", "8", "-q"]
        assert run(["read", str(path), *arguments]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers[:4])) == 1 and answers[4] == answers[5]
    for command in ("ask", "chat", "read"):
        assert run([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--backend" in text and "--device" in text


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "cuda"}, r"no device 'cuda'.*there is cpu"),
        ({"device": "cuda:3"}, "no device 'cuda:3'"),
        ({"device": "quantum", "backend": "torch"}, "no device 'quantum'"),
        ({"device": "meta"}, "no device 'meta'"),
        ({"device": torch.device("cuda")}, "no device 'cuda'"),
        ({"backend": "cpu", "device": "cuda"}, "backend cpu cannot have device='cuda'"),
        ({"backend": "cpu", "dtype": "float16"}, "backend cpu cannot have dtype='float16'"),
        ({"backend": "jax"}, "backend is 'jax'; cpu or torch"),
        ({"backend": "torch", "dtype": "int8"}, "float32, float16 or bfloat16"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that must not be there")
def test_a_backend_or_device_that_cannot_be_had_is_refused(tiny_model, options, message):
    with pytest.raises(InputError, match=message):
        load(tiny_model.model, **options)


def test_missing_packages_are_named_with_the_command_that_installs_them(tiny_model, tmp_path):
    path = tmp_path / "picture.png"
    picture(0).save(path)
    arguments = ["ask", str(path), "What?", "--model", str(tiny_model.model), "--backend", "torch"]
    code = f"""
import sys
sys.modules["transformers"] = None  # as if it were not installed
from handlens.cli import run
sys.exit(run({arguments!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "handlens[torch]"' in done.stderr and "transformers" in done.stderr


def test_a_language_file_alone_and_scaled_rope_are_refused(tiny_model, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    write_language(alone / "m.gguf", tiny_model.config, tiny_model.tokenizer, tiny_model.official, "F32")
    with pytest.raises(InputError, match="projector"):
        load(alone, backend="torch")
    with GGUFFile(tiny_model.model) as file:
        keys = {key: (file.types[key], value) for key, value in file.metadata.items()}
        factors = np.ones(tiny_model.config.llm.head_dim // 2, np.float32)
        write_gguf(tmp_path / "ones.gguf", keys, file.tensors | {"rope_freqs.weight": Tensor.from_array(factors)})
        write_gguf(tmp_path / "scaled.gguf", keys, file.tensors | {"rope_freqs.weight": Tensor.from_array(factors * 8)})
    assert load(tmp_path / "ones.gguf", tiny_model.mmproj, backend="torch").model.device == "cpu"
    with pytest.raises(ModelFileError, match="RoPE"):
        load(tmp_path / "scaled.gguf", tiny_model.mmproj, backend="torch")


def test_loading_is_strict_on_torch_too(tiny_model, folder, tmp_path):
    with GGUFFile(tiny_model.model) as file:
        keys = {key: (file.types[key], value) for key, value in file.metadata.items()}
        tensors = {name: tensor for name, tensor in file.tensors.items() if name != "output_norm.weight"}
        write_gguf(tmp_path / "m.gguf", keys, tensors)
    with pytest.raises(ModelFileError, match=r"output_norm\.weight"):
        load(tmp_path / "m.gguf", tiny_model.mmproj, backend="torch")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "m.gguf").unlink()
    save_file({"resampler.extra": torch.zeros(1)}, tmp_path / "more.safetensors")
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 1}))
    with pytest.raises(ModelFileError, match=r"llm\.model\.layers\.1"):
        load(tmp_path, backend="torch")


def test_a_tokenizer_of_another_model_is_refused_on_torch_too(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    spec = json.loads((folder / "tokenizer.json").read_text())
    count = spec["added_tokens"][-1]["id"] + 1
    spec["added_tokens"].append(spec["added_tokens"][-1] | {"id": count, "content": "<new>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ModelFileError, match="the tokenizer has"):
        load(tmp_path, backend="torch")
    other = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="the tokenizer has"):
        AutoModelForImageTextToText.from_pretrained(folder).chat(msgs=conversation(0), tokenizer=other)


def test_the_script_of_the_model_card_still_runs_on_the_device_side(folder, chat):
    model = AutoModel.from_pretrained(folder).eval()
    assert model.chat(msgs=conversation(0), temperature=0, max_new_tokens=4)
