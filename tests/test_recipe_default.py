"""The recipe of the default model: its twin in torch, its batches, its tokenizer, and some training."""

import hashlib
import json
import lzma
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from handlens.chat import load
from handlens.data.make import draw
from handlens.data.questions import phrases, templates
from handlens.data.sample import HELD_OUT, TRAIN, Sample
from handlens.data.sources import Sources
from handlens.data.tasks import TASKS
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError
from handlens.gguf.reader import GGUFFile
from handlens.images import cut
from handlens.reading import LOOK, READ, asked_of
from handlens.tokenizer import Tokenizer
from recipes.default import tokenizer as tokenizer_recipe
from recipes.default.average import average
from recipes.default.batch import CHARACTERS, CLASSES, Encoder, collate, pictures, plan_slices, shape_of
from recipes.default.check import distance
from recipes.default.crops import thing
from recipes.default.decode import greedy
from recipes.default.export import export
from recipes.default.feed import Feed, Plan, batches, on_a_page
from recipes.default.frozen import FrozenLayers
from recipes.default.grow import grow, grow_tower
from recipes.default.model import CELLS, DenseHead, Mini, VisionTower
from recipes.default.precision import Twins
from recipes.default.presets import PRESETS, model_config
from recipes.default.regrid import regrid
from recipes.default.resume import keep, resume
from recipes.default.stages import STAGES, shared_out, stage_at, stage_named
from recipes.default.start import initialise
from recipes.default.train import Trainer, main, parse
from recipes.default.transcripts import Transcript, answer_stands_in
from recipes.default.weights import State, load_run, read_state, save_run
from tests.data_sources import small
from tests.multilingual import SENTENCES, lines

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(tokenizer_recipe.train(iter(lines()), 1024), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(tokenizer_file):
    """A model of the tiny preset, a little away from its start so that every tensor counts, and the folder it is in."""
    config = model_config(PRESETS["tiny"], Tokenizer.from_file(tokenizer_file).vocab_size)
    model, head = Mini(config), DenseHead(config.vision.hidden_size, len(CLASSES))
    initialise(model, head)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.05 * torch.randn_like(tensor)
    save_run(tokenizer_file.parent, config, model, head, State("tiny", CLASSES, minutes=3.5), half=False)
    return config, model, head, tokenizer_file.parent


def noise(width: int, height: int) -> Sample:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Sample(image, "What is it?", "A small answer.", "photo", "en")


def embedded(model: Mini, examples) -> torch.Tensor:
    batch = {name: torch.from_numpy(array) for name, array in collate(examples, model.config).items()}
    features = model.features(batch["pixels"], batch["position_ids"], batch["patch_mask"])
    vectors = model.vectors(features, batch["places"], batch["patch_mask"])
    return model.embeddings(batch["input_ids"], vectors, batch["vectors"], batch["vector_index"])


@pytest.mark.parametrize("size", [(90, 30), (200, 210), (500, 300)])
@torch.no_grad()
def test_ids_are_those_of_a_chat_and_logits_those_of_the_device_side(run, exact, size):
    config, model, _, folder = run
    sample, chat = noise(*size), load(folder / "model")
    msgs = [{"role": "user", "content": [Image.fromarray(sample.image), sample.question]}]
    inputs = chat.prepare(msgs, SamplingParams.greedy(max_new_tokens=8))
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    example = Encoder(config, tokenizer).example(sample, 0, np.random.default_rng(0))
    prompt, answer = example.input_ids[: example.answer_start], example.input_ids[example.answer_start :]
    assert prompt == inputs.input_ids.tolist()
    assert tokenizer.decode(answer) == sample.answer and answer[-1] == tokenizer.id("<|eot_id|>")
    x = embedded(model, [example])[:, : len(prompt)]
    ours = model.logits(model.language(x))[0, -1].numpy()
    backend = chat.generator.backend
    theirs = backend.forward([chat.generator.embeddings(inputs)], [backend.new_cache()])[0]
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_ids_of_further_questions_are_those_of_a_chat(run):
    config, _, _, folder = run
    sample = replace(noise(90, 30), more=(("And what else?", "Nothing."), ("Why?", "It is noise."), ("?", "No more.")))
    chat, tokenizer = load(folder / "model"), Tokenizer.from_file(folder / "tokenizer.json")
    encoder = Encoder(config, tokenizer, turns=3)
    example = encoder.example(sample, 0, np.random.default_rng(0))
    texts = [sample.answer, "Nothing.", "It is noise."]
    assert [tokenizer.decode(example.input_ids[start:end]) for start, end in example.answers] == texts
    said = [sample.question, sample.answer, *sample.more[0], sample.more[1][0]]
    msgs = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    msgs[0]["content"] = [Image.fromarray(sample.image), sample.question]
    inputs = chat.prepare(msgs, SamplingParams.greedy(max_new_tokens=8))
    # Line ends before an answer that is known merge with it, before one that is still to come they do not: texts are
    # the same, and so are the ids from the last answer on.
    prompt, theirs = example.input_ids[: example.answers[-1][0]], inputs.input_ids.tolist()
    assert tokenizer.decode(prompt) == tokenizer.decode(theirs)
    last = len(prompt) - example.answers[-2][1] + 1
    assert prompt[-last:] == theirs[-last:]
    batch = collate([example], config)
    labels = batch["labels"][batch["labels"] >= 0]
    assert labels.tolist() == [i for start, end in example.answers for i in example.input_ids[start:end]]
    places = batch["label_index"][: len(labels)]
    assert places.tolist() == [i - 1 for start, end in example.answers for i in range(start, end)]
    assert len(encoder.example(sample, 2, np.random.default_rng(0)).answers) == 1  # strips are for reading alone


def test_slices_are_those_of_use(run):
    config = run[0]
    image = Image.fromarray(noise(500, 300).image)
    theirs = cut(image, config.slices, config.vision.image_mean, config.vision.image_std)
    ours = pictures(image, plan_slices(*image.size, config.slices))
    for pixels, picture in zip(theirs.slices, ours, strict=True):
        np.testing.assert_array_equal(np.rint((pixels * 0.5 + 0.5) * 255), np.asarray(picture).transpose(2, 0, 1))


def test_padding_and_neighbours_change_nothing(run):
    config, model, _, folder = run
    encoder = Encoder(config, Tokenizer.from_file(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    examples = [encoder.example(noise(*size), strip, rng) for size, strip in (((90, 30), 2), ((500, 300), 0))]
    with torch.no_grad():
        together = model.language(embedded(model, examples))
        alone = model.language(embedded(model, examples[:1]))[0]
    torch.testing.assert_close(together[0, : len(alone)], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(224, 224), (448, 448), (448, 224)])
def test_a_glyph_labels_the_cell_that_shows_it(run, size):
    """Light dots stand for glyphs: after cutting and scaling, the cells with these labels are the light ones."""
    config, folder = run[0], run[3]
    image = np.zeros((size[1], size[0], 3), np.uint8)
    centres = np.float32([(61.5, 40.5), (205.5, 120.5), (130.5, 210.5)])
    for x, y in centres.astype(int):
        image[y - 8 : y + 9, x - 8 : x + 9] = 255
    sample = Sample(image, "?", "abc", "dots", "en", ("a", "b", "c"), centres)
    encoder = Encoder(config, Tokenizer.from_file(folder / "tokenizer.json"))
    example = encoder.example(sample, 0, np.random.default_rng(0))
    found = set()
    for pixels, (rows, cols), cells in zip(example.slices, example.tgt_sizes, example.cells, strict=True):
        grey = pixels.reshape(rows, cols, 3, 14, 14).mean(2).transpose(0, 2, 1, 3).reshape(rows * 14, cols * 14)
        places = np.flatnonzero(cells > 0)
        for place, label in zip(places, cells[places], strict=True):
            patch, inner = divmod(place, CELLS[0] * CELLS[1])
            row, col = (patch // cols) * CELLS[1] + inner // CELLS[0], (patch % cols) * CELLS[0] + inner % CELLS[0]
            assert grey[row * 7 : row * 7 + 7, int(col * 3.5) : int(col * 3.5 + 3.5)].mean() > 100
            found.add((len(example.slices) == 1, label))
    assert {label for _, label in found} == {CHARACTERS[letter] for letter in "abc"}


@torch.no_grad()
def test_cached_greedy_answers_are_those_of_full_forwards(run):
    config, model, _, folder = run
    encoder = Encoder(config, Tokenizer.from_file(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    examples = [encoder.example(noise(*size), 0, rng) for size in ((90, 30), (300, 240))]
    lengths = torch.tensor([example.answer_start for example in examples])
    x = embedded(model, examples)
    answers = greedy(model, x[:, : lengths.max()], lengths, stop=-1, most=6)
    for number, length in enumerate(lengths.tolist()):
        sequence, expected = x[number : number + 1, :length], []
        for _ in range(6):
            expected.append(int(model.logits(model.language(sequence)[:, -1]).argmax()))
            sequence = torch.cat([sequence, model.language.embed_tokens(torch.tensor([expected[-1:]]))], dim=1)
        assert answers[number] == expected


@torch.no_grad()
def test_answers_can_be_read_under_autocast(run):
    config, model, _, folder = run
    encoder = Encoder(config, Tokenizer.from_file(folder / "tokenizer.json"))
    example = encoder.example(noise(90, 30), 0, np.random.default_rng(0))
    x = embedded(model, [example])[:, : example.answer_start]
    with torch.autocast("cpu", torch.bfloat16):
        (answer,) = greedy(model, x, torch.tensor([example.answer_start]), stop=-1, most=3)
    assert len(answer) == 3


@torch.no_grad()
def test_frozen_layers_are_those_of_the_tower(run):
    config, model, _, folder = run
    encoder = Encoder(config, Tokenizer.from_file(folder / "tokenizer.json"))
    examples = [encoder.example(noise(*size), 0, np.random.default_rng(0)) for size in [(90, 30), (200, 210)]]
    arrays = collate(examples, config)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    whole = model.features(batch["pixels"], batch["position_ids"], batch["patch_mask"])
    frozen = FrozenLayers(folder / "model", 2)(arrays["pixels"], arrays["position_ids"], arrays["patch_mask"])
    assert frozen.dtype == torch.bfloat16 and not frozen[~batch["patch_mask"]].any()
    features = model.features_after(2, frozen.float(), batch["patch_mask"])
    known = batch["patch_mask"]
    assert torch.cosine_similarity(features[known], whole[known], dim=-1).min() > 0.999
    without = model.features_after(2, torch.zeros_like(frozen).float(), known)
    assert torch.cosine_similarity(without[known], whole[known], dim=-1).max() < 0.9


@torch.no_grad()
def test_a_tower_that_has_grown_has_the_features_of_the_small_one(run, tmp_path):
    config, model, _, _folder = run
    deeper = VisionTower(replace(config.vision, num_hidden_layers=config.vision.num_hidden_layers + 2))
    grow_tower(deeper, model.vpm)
    patches = torch.randn(2, 16, 588)
    positions = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(deeper(patches, positions, None), model.vpm(patches, positions, None))
    assert not torch.equal(
        deeper.encoder["layers"][1].mlp["fc1"].weight, model.vpm.encoder["layers"][1].mlp["fc1"].weight
    )


@torch.no_grad()
def test_a_run_begins_with_the_tower_of_another_one(run, tmp_path):
    config, model, head, folder = run
    grow(folder, "tiny", tmp_path / "run")
    other, other_head = Mini(config), DenseHead(config.vision.hidden_size, len(CLASSES))
    state = load_run(tmp_path / "run", other, other_head, CLASSES)
    assert (state.preset, state.steps, state.minutes) == ("tiny", 0, 0.0)
    for name, tensor in model.vpm.state_dict().items():
        torch.testing.assert_close(other.vpm.state_dict()[name], tensor, atol=0, rtol=0)
    torch.testing.assert_close(other_head.state_dict(), head.state_dict(), atol=0, rtol=0)
    with pytest.raises(InputError, match="holds a run already"):
        grow(folder, "tiny", tmp_path / "run")
    with pytest.raises(InputError, match="are 128 and 256 wide"):
        grow(folder, "gpu", tmp_path / "other")


def test_twins_in_half_precision_compute_the_same_and_hand_their_gradients_over(run):
    config, model, head, folder = run
    encoder = Encoder(config, Tokenizer.from_file(folder / "tokenizer.json"))
    example = encoder.example(noise(90, 30), 0, np.random.default_rng(0))
    twins = Twins(model, head)
    twin, _ = twins.copies
    assert twin.language.frequencies.dtype == torch.float32 and next(twin.parameters()).dtype == torch.bfloat16
    for one in (model, twin):
        one.language(embedded(one, [example])).float().square().mean().backward()
    exact = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    twins.hand_over_gradients()
    assert all(parameter.grad is None for parameter in twin.parameters())
    for name, gradient in exact.items():
        handed = model.get_parameter(name).grad
        assert handed.dtype == torch.float32
        if gradient.numel() > 1000:
            assert torch.cosine_similarity(handed.ravel(), gradient.ravel(), dim=0) > 0.98, name
    model.zero_grad()
    with torch.no_grad():
        model.resampler.proj += 1.0
        twins.take_weights()
        torch.testing.assert_close(twin.resampler.proj.float(), model.resampler.proj, atol=0, rtol=0.01)
        model.resampler.proj -= 1.0


@torch.no_grad()
def test_heads_are_turned_to_the_fields_of_a_slice(run, tmp_path):
    config, _, _, folder = run
    regrid(folder, tmp_path / "new")
    found = {}
    for name, path in (("before", folder), ("after", tmp_path / "new")):
        model = Mini(config)
        load_run(path, model, DenseHead(config.vision.hidden_size, len(CLASSES)), CLASSES)
        found[name] = model
    before, after = found["before"].state_dict(), found["after"].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"resampler.attn.in_proj_weight", "resampler.attn.in_proj_bias"}
    resampler = found["after"].resampler
    width, heads = config.resampler.embed_dim, config.resampler.num_heads
    values = before["resampler.attn.in_proj_weight"][2 * width :]
    torch.testing.assert_close(resampler.attn.in_proj_weight[2 * width :], values, atol=0, rtol=0)
    # Where nothing but its place tells patches apart, a query looks at its half of its field.
    places = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"), dim=-1).view(1, 256, 2)
    keys = torch.cat([resampler.axis[places[..., 1]], resampler.axis[places[..., 0]]], dim=-1)
    (q, k, _), (q_bias, k_bias, _) = (
        part.chunk(3) for part in (resampler.attn.in_proj_weight, resampler.attn.in_proj_bias)
    )
    queries = (resampler.ln_q(resampler.query) @ q.T + q_bias).view(64, heads, -1).transpose(0, 1)
    scores = queries @ (keys[0] @ k.T + k_bias).view(256, heads, -1).permute(1, 2, 0)
    looks = (scores / queries.shape[-1] ** 0.5).softmax(dim=-1).view(heads, 8, 8, 16, 16)
    along = torch.arange(16.0)
    rows = (looks.sum(dim=-1) * along).sum(dim=-1)[0]  # [8, 8]
    columns = (looks.sum(dim=-2) * along).sum(dim=-1)[0]
    assert ((rows[1:-1] - torch.arange(1, 7)[:, None] * 17 / 8 - 0.5).abs() < 1).all()
    assert ((columns[:, 1:-1] - torch.arange(1, 7) * 17 / 8 - 0.1).abs() < 1).all()
    assert looks[0].flatten(2).amax(dim=-1).min() > 0.1
    with pytest.raises(InputError, match="is not empty"):
        regrid(folder, tmp_path / "new")


@pytest.mark.parametrize("half", [False, True])
def test_a_run_goes_on_from_what_it_wrote(run, tmp_path, half):
    config, model, head, folder = run
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    for minutes in (1.0, 2.0):  # the second time there is something to replace
        save_run(tmp_path, config, model, head, State("tiny", CLASSES, minutes=minutes), half)
    assert max(path.stat().st_size for path in (tmp_path / "model").iterdir()) <= 15 << 20
    other, other_head = Mini(config), DenseHead(config.vision.hidden_size, len(CLASSES))
    assert load_run(tmp_path, other, other_head, CLASSES).minutes == 2.0
    for name, tensor in model.state_dict().items():
        wanted = tensor.to(torch.bfloat16).float() if half else tensor
        torch.testing.assert_close(other.state_dict()[name], wanted, atol=0, rtol=0)
    fewer = DenseHead(config.vision.hidden_size, 10)
    load_run(tmp_path, other, fewer, (*CLASSES[:9], "字"))
    torch.testing.assert_close(fewer.classify.weight[:9], head.classify.weight[:9])


def test_training_goes_on_from_the_exported_pair_and_what_was_kept(run, tmp_path):
    config, model, head, folder = run
    export(folder, tmp_path / "mini.gguf", "F32")
    keep(folder, tmp_path / "kept")
    resume(tmp_path / "run", tmp_path / "mini.gguf", tmp_path / "kept")
    other, other_head = Mini(config), DenseHead(config.vision.hidden_size, len(CLASSES))
    assert load_run(tmp_path / "run", other, other_head, CLASSES).minutes == 3.5
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, atol=2e-3, rtol=2e-3)  # the patch kernel is F16
    torch.testing.assert_close(other_head.classify.weight, head.classify.weight, atol=1e-2, rtol=1e-2)
    ours = Tokenizer.from_file(folder / "tokenizer.json")
    theirs = Tokenizer.from_file(tmp_path / "run" / "tokenizer.json")
    assert [theirs.encode(line) for line in lines(100)] == [ours.encode(line) for line in lines(100)]
    with pytest.raises(InputError, match="is not empty"):
        resume(tmp_path / "run", tmp_path / "mini.gguf", tmp_path / "kept")


def test_the_exported_pair_answers(run, tmp_path):
    export(run[3], tmp_path / "mini.gguf")
    with GGUFFile(tmp_path / "mini.gguf") as file:
        assert file.metadata["tokenizer.ggml.pre"] == "smollm" and "output.weight" not in file.tensors
    chat = load(tmp_path / "mini.gguf", tmp_path / "mini.mmproj.gguf")
    msgs = [{"role": "user", "content": [Image.fromarray(noise(90, 30).image), "What?"]}]
    assert chat.reply(msgs, SamplingParams.greedy(max_new_tokens=4)) is not None


def test_ids_are_the_same_from_json_from_gguf_and_in_llama_cpp(run, tmp_path):
    llama_cpp = pytest.importorskip("tests.llama_cpp", reason="llama.cpp's wheel is not installed")
    export(run[3], tmp_path / "mini.gguf")
    ours = Tokenizer.from_file(run[3] / "tokenizer.json")
    with GGUFFile(tmp_path / "mini.gguf") as file:
        inside = Tokenizer.from_gguf(file.metadata)
    theirs = llama_cpp.LlamaCpp(tmp_path / "mini.gguf", tmp_path / "mini.mmproj.gguf")
    different = []
    for line in lines(1000):
        ids = ours.encode(line)
        assert inside.encode(line) == ids and ours.decode(ids) == line
        if theirs.tokenize(line) != ids:
            different.append(line)
    assert different == []


def test_dropout_respells_answers_only(run):
    config, folder = run[0], run[3]
    encoder = Encoder(config, Tokenizer.from_file(folder / "tokenizer.json"), dropout=0.5)
    examples = [encoder.example(noise(90, 30), 0, np.random.default_rng(0)) for _ in range(8)]
    assert len({tuple(one.input_ids[: one.answer_start]) for one in examples}) == 1
    assert len({tuple(one.input_ids[one.answer_start :]) for one in examples}) > 1
    assert {encoder.tokenizer.decode(one.input_ids[one.answer_start :]) for one in examples} == {"A small answer."}


def test_special_tokens_in_a_picture_are_text(run):
    config, folder = run[0], run[3]
    sample = Sample(noise(90, 30).image, "?", "<image> <|eot_id|>", "noise", "en")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    example = Encoder(config, tokenizer).example(sample, 0, np.random.default_rng(0))
    assert not any(map(tokenizer.is_special, example.input_ids[example.answer_start : -1]))


def test_a_run_between_two_has_weights_between_theirs(run, tmp_path):
    config, model, head, folder = run
    other = Mini(config)
    other.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    (tmp_path / "second").mkdir()
    (tmp_path / "second/tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    save_run(tmp_path / "second", config, other, head, State("tiny", CLASSES, minutes=9.0), half=False)
    average(folder, tmp_path / "second", 0.25, tmp_path / "out")
    found, found_head = Mini(config), DenseHead(config.vision.hidden_size, len(CLASSES))
    assert load_run(tmp_path / "out", found, found_head, CLASSES).minutes == 9.0
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name] + 0.25, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="is not empty"):
        average(folder, tmp_path / "second", 0.25, tmp_path / "out")


def test_stages_follow_the_plan():
    last = [stage for stage in STAGES if stage.share][-1]
    assert stage_at(0.0) == STAGES[0] and stage_at(1.5) == last
    assert stage_at(0.0, "lines").name == "lines" and stage_at(0.99, "lines") == last
    assert stage_at(0.5, "things") == stage_named("things")
    assert all(set(stage.tasks) <= set(TASKS) for stage in STAGES)
    places = np.linspace(0, 1, 1000, endpoint=False)
    share = np.mean([stage_at(place).name == "words" for place in places])
    assert share == pytest.approx(stage_named("words").share / sum(stage.share for stage in STAGES), abs=0.01)


def test_tasks_are_drawn_so_many_times_as_often():
    stage = stage_named("everything")
    changed = shared_out(stage, {"receipts": 2.0, "receipt": 0.5, "count": 3.0})
    factors = {task: share / stage.tasks[task] for task, share in changed.tasks.items() if share != stage.tasks[task]}
    assert factors == pytest.approx({"receipt": 0.5, "invoice": 2.0, "count": 3.0})
    assert replace(changed, tasks=stage.tasks) == stage
    options = parse(["--sources", "s", "--out", "o", "--share", "count=3", "--share", "charts=.5"])
    assert options.share == [("count", 3.0), ("charts", 0.5)]
    for wrong in ("count", "count=-1", "count=x"):
        with pytest.raises(SystemExit):
            parse(["--sources", "s", "--out", "o", "--share", wrong])
    glyphs = stage_named("glyphs")
    assert shared_out(glyphs, {"count": 2.0}) == glyphs
    with pytest.raises(InputError, match="there is no task 'counts'"):
        shared_out(glyphs, {"counts": 2.0})
    with pytest.raises(InputError, match="nothing is left of the stage glyphs"):
        shared_out(glyphs, {"texts": 0.0})


@pytest.mark.parametrize(
    "a, b, edits", [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_distance_counts_edits(a, b, edits):
    assert distance(a, b) == edits


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, tokenizer_file) -> Path:
    """A prepared folder in small: three of the fonts that matplotlib carries, and the tests' own sentences."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    folder = tmp_path_factory.mktemp("prepared")
    names = {"en": "English", "de": "German"}
    files, fonts = {}, []

    def put(name: str, data: bytes) -> str:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()
        return name

    for stem, split in (("DejaVuSans", TRAIN), ("DejaVuSansMono", TRAIN), ("DejaVuSerif", HELD_OUT)):
        path = put(f"fonts/{stem}.ttf", (Path(get_data_path()) / f"fonts/ttf/{stem}.ttf").read_bytes())
        row = {"family": stem, "outlines": stem, "style": "sans", "weight": 400, "italic": False, "split": split}
        fonts.append(row | {"path": path, "languages": list(names), "characters": [[0x20, 0x7E], [0xA1, 0x17F]]})
        ImageFont.truetype(str(folder / path), 12)
    for language, name in names.items():
        found = [line for line in lines(4000) if any(line.startswith(s[:6]) for s in SENTENCES[name])]
        words = sorted({word for line in found for word in line.split() if word.isalpha()})
        for split, part in ((TRAIN, 0), (HELD_OUT, 1)):
            for kind, texts in (("text", found[part::2]), ("words", words[part::2])):
                put(f"{kind}/{language}.{split}.xz", lzma.compress("\n".join(texts).encode()))
    index = {"version": 1, "languages": list(names), "fonts": fonts, "files": files}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return folder


def test_processes_make_the_batches_that_this_one_makes(prepared, tokenizer_file):
    config = model_config(PRESETS["tiny"], Tokenizer.from_file(tokenizer_file).vocab_size)
    plan = Plan(config, prepared, tokenizer_file, 512, seed=1)
    stage = replace(stage_named("glyphs"), dropout=0.0)  # the library draws what it drops from a generator of its own
    feed = Feed(plan, workers=1)
    try:
        made = [feed.next(stage) for _ in range(2)]
    finally:
        feed.close()
    here = islice(batches(plan, stage, plan.seed + 1000 + 1), 2)
    for (tasks, tensors), (other_tasks, others) in zip(made, here, strict=True):
        assert tasks == other_tasks
        torch.testing.assert_close(tensors, others, atol=0, rtol=0)


def test_examples_of_one_size_share_a_batch_whatever_their_slices(prepared, tokenizer_file):
    config = model_config(PRESETS["tiny"], Tokenizer.from_file(tokenizer_file).vocab_size)
    plan = Plan(config, prepared, tokenizer_file, 8192, seed=1, few_shapes=False)
    encoder = Encoder(config, Tokenizer.from_file(tokenizer_file))
    two, one = (encoder.example(noise(*size), 0, np.random.default_rng(0)) for size in ((300, 240), (200, 210)))
    assert (
        shape_of(one, few=False)[0] == shape_of(two, few=False)[0] and shape_of(one, True)[0] != shape_of(two, True)[0]
    )
    for tasks, tensors in islice(batches(plan, stage_named("lines"), plan.seed), 2):
        assert len(tasks) == len(tensors["tasks"]) == len(tensors["input_ids"])
        assert tensors["patch_mask"].numel() + tensors["input_ids"].numel() <= 1.1 * plan.cost
        patches = tensors["patch_mask"].sum(dim=1)
        assert patches.min() > 0.7 * patches.max()


def test_batches_are_shown_again_while_no_new_one_is_ready(prepared, tokenizer_file):
    config = model_config(PRESETS["tiny"], Tokenizer.from_file(tokenizer_file).vocab_size)
    feed = Feed(Plan(config, prepared, tokenizer_file, 2048, seed=1), workers=1, repeats=2)
    try:
        stage = stage_named("glyphs")
        shown = [feed.next(stage)[1] for _ in range(12)]
        assert feed.repeated > 0
        times = [sum(one is other for other in shown) for one in shown]
        assert max(times) <= 3 and sum(count == 1 for count in times) < 12
        feed.next(stage_named("words"))
        assert not any(tensors is shown[-1] for _, (_, tensors) in feed._shown)
    finally:
        feed.close()


def test_frozen_layers_stay_as_they_are(prepared, tmp_path):
    command = ["--sources", str(prepared), "--out", str(tmp_path), "--preset", "tiny", "--stage", "words"]
    trainer = Trainer(parse([*command, "--steps", "2", "--frozen-layers", "1"]))
    before = {name: tensor.clone() for name, tensor in trainer.model.vpm.state_dict().items()}
    trainer.run()
    after = trainer.model.vpm.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith(("embeddings", "encoder.layers.0.")) for name in changed)


def torchrun(folder: Path, code: str, *arguments: str) -> None:
    """Runs code in two processes that train together. It finds the recipes here, the package where it is installed."""
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.append({str(ROOT)!r})\n{code}\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_processes_take_the_mean_of_their_gradients(tmp_path):
    torchrun(
        tmp_path,
        "import torch\n"
        "from recipes.default.peers import Peers\n"
        "peers = Peers()\n"
        "first, second = (torch.nn.Parameter(torch.zeros(*shape)) for shape in ((2, 3), (4,)))\n"
        "first.grad = torch.full((2, 3), float(peers.rank + 1))\n"
        "second.grad = torch.arange(4.0) if peers.leads else None\n"
        "peers.average([first, second])\n"
        "assert torch.equal(first.grad, torch.full((2, 3), 1.5)), first.grad\n"
        "assert torch.equal(second.grad, torch.arange(4) / 2), second.grad\n"
        "assert peers.highest([peers.rank, -peers.rank], torch.device('cpu')) == [1.0, 0.0]\n"
        "peers.close()",
    )


def test_two_processes_train_one_model(prepared, tmp_path):
    out = tmp_path / "run"
    command = ["--sources", str(prepared), "--out", str(out), "--preset", "tiny", "--stage", "words", "--steps", "3"]
    code = "from recipes.default.train import main\nmain()"
    torchrun(tmp_path, code, *command, "--frozen-layers", "1", "--log-seconds", "0")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "answers" in row] == [1, 2, 3]
    assert read_state(out).steps == 3 and (out / "model").exists()


def test_some_training_lowers_the_loss_and_goes_on(prepared, tmp_path):
    """The whole command, twice. Words are read only after longer; see the README of the recipe."""
    command = ["--sources", str(prepared), "--out", str(tmp_path), "--preset", "tiny", "--log-seconds", "1"]
    main([*command, "--stage", "glyphs", "--steps", "150"])
    main([*command, "--stage", "words", "--steps", "10"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    glyphs = [row for row in rows if row["stage"] == "glyphs"]
    assert glyphs[-1]["dense"] < 0.8 * glyphs[0]["dense"]
    assert glyphs[-1]["dense_right"] > glyphs[0]["dense_right"] + 0.02
    words = [row for row in rows if "answers" in row]
    assert words[0]["step"] > glyphs[-1]["step"] and words[0]["dense"] < glyphs[0]["dense"]
    assert any("cer" in row for row in rows)
    assert (tmp_path / "loss.png").exists() and list((tmp_path / "sheets").iterdir())


@pytest.fixture(scope="module")
def sources(tmp_path_factory, tokenizer_file) -> Sources:
    """A prepared folder with names for every maker."""
    folder = tmp_path_factory.mktemp("sources") / "small"
    made = small(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    return made


def transcripts(sources: Sources, task: str, count: int):
    samples = (draw(sources, task, "en", 1, number, strength=0.0) for number in range(count))
    return [found for found in map(Transcript.of, samples) if found is not None]


def test_the_text_of_a_picture_is_what_was_drawn_and_answers_stand_in_it(sources, monkeypatch):
    monkeypatch.setattr("recipes.default.transcripts.MISREAD", 0.0)
    monkeypatch.setattr("recipes.default.transcripts.JUNK", 0.0)
    monkeypatch.setattr("recipes.default.transcripts.UNACCENTED", 0.0)
    rng, answers = np.random.default_rng(0), []
    for found in transcripts(sources, "receipt", 20):
        text = found.text(rng)
        drawn = Counter("".join(found.sample.characters).replace(" ", ""))
        lacking = drawn - Counter(text)
        assert lacking.total() < 0.03 * drawn.total()
        answers += [answer for _, answer in found.questions(rng, text) if answer != READ]
        for line in found.lines(rng, 3):
            assert line.answer in text or line.answer == phrases(line.language).no_text
            assert line.image.shape[1] >= 3.9 * line.image.shape[0] and line.task == "line"
    assert len(answers) > 40
    assert sum(answer == LOOK for answer in answers) < 0.1 * len(answers)


def test_text_is_misread_but_not_where_it_is_the_answer(sources):
    rng, changed = np.random.default_rng(0), 0
    for found in transcripts(sources, "invoice", 12):
        texts = [found.text(rng) for _ in range(2)]
        changed += texts[0] != texts[1]
        for question, answer in found.questions(rng, texts[0]):
            assert answer in (LOOK, READ) or answer_stands_in(answer, texts[0]), (question, answer, texts[0])
    assert changed > 8


def test_what_a_text_cannot_tell_has_to_be_looked_at(sources):
    rng = np.random.default_rng(0)
    image = transcripts(sources, "receipt", 3)[0].sample.image
    scene = Sample(image, "How many stars?", "3", "count", "en", more=(("How many bars?", "2"),))
    found = Transcript.of(scene)
    assert {answer for _, answer in found.questions(rng, found.text(rng))} == {LOOK}
    refused = phrases("en").absent
    known = transcripts(sources, "absent", 60)
    known = [one for one in known if one.sample.characters and one.sample.answer == refused]
    assert known
    for one in known:
        assert dict(one.questions(rng, one.text(rng)))[one.sample.question] == refused


def test_a_thing_alone_is_asked_for_its_name_in_several_languages(sources):
    rng = np.random.default_rng(0)
    names, samples = sources.sprites("train").names, [thing(rng, sources, "de") for _ in range(40)]
    spoken = Counter()
    for sample in samples:
        high, wide, _ = sample.image.shape
        assert high == wide
        asked = [(sample.question, sample.answer), *sample.more]
        if len(asked) < 3:  # a shape
            assert sample.answer in (*phrases("de").shapes.values(), *phrases("de").colours.values())
            continue
        for question, answer in asked:
            languages = [language for language in sources.languages if question in templates("name", language)]
            assert any(answer in names[language] for language in languages)
        spoken += Counter(language for language in ("de", "en") if sample.question in templates("name", language))
    assert set(spoken) == {"de", "en"}


def test_a_line_on_a_page_stands_where_its_glyphs_are_said_to_be(sources):
    rng, parts = np.random.default_rng(0), 0
    for number in range(24):
        line = draw(sources, "line", "en", 2, number, strength=0.0)
        page = on_a_page(line, rng)
        assert page.image.shape[0] >= 60 and len(page.characters) == len(page.centres)
        assert any(_stands_at(page, line, first) for first in range(len(line.centres) - len(page.centres) + 1))
        assert page.answer in ("".join(page.characters).strip(), line.answer)
        parts += page.answer != line.answer
    assert 3 < parts < 12


def _stands_at(page: Sample, line: Sample, first: int) -> bool:
    """Whether a page shows the glyphs of a line from one on, as far as it is wide, in the places that it says."""
    chosen = slice(first, first + len(page.centres))
    steps = page.centres - line.centres[chosen]
    if page.characters != line.characters[chosen] or np.ptp(steps, axis=0).max() > 1e-3:
        return False
    left, top = (round(float(step)) for step in steps[0])
    high, wide = line.image.shape[:2]
    shown = line.image[:, max(-left, 0) : min(page.image.shape[1] - left, wide)]
    window = page.image[top : top + high, max(left, 0) : max(left, 0) + shown.shape[1]]
    return np.array_equal(window, shown)


@pytest.mark.parametrize(
    ("answer", "text", "stands"),
    [
        ("07458 3935173", "| 07458 | 3935173 |", True),
        ("4.25", "| 1 | 14.25 |", False),
        ("19977", "| 1 9 9 7 7 |", True),
        ("199", "1 9 9", False),
    ],
)
def test_an_answer_stands_in_a_text_as_whole_words(answer, text, stands):
    assert answer_stands_in(answer, text) == stands


def test_questions_about_a_text_are_those_of_use_and_take_no_vision(run):
    config, model, _, folder = run
    tokenizer, chat = Tokenizer.from_file(folder / "tokenizer.json"), load(folder / "model")
    encoder = Encoder(config, tokenizer, turns=2)
    text, asked = "Total 4.25\n\nCash 5.00", [("Total?", "4.25"), ("Cash?", "5.00"), ("Date?", LOOK)]
    example = encoder.written(noise(90, 30), text, asked)
    msgs = [{"role": "user", "content": asked_of(text, "Total?")}]
    inputs = chat.prepare(msgs, SamplingParams.greedy(max_new_tokens=8))
    assert example.input_ids[: example.answer_start] == inputs.input_ids.tolist()
    assert [tokenizer.decode(example.input_ids[a:b]) for a, b in example.answers] == ["4.25", "5.00"]
    assert example.sample.answer == "4.25" and example.cost(True) == len(example.input_ids)
    batch = {name: torch.from_numpy(array) for name, array in collate([example], config).items()}
    assert len(batch["pixels"]) == len(batch["vectors"]) == 0
    hidden = model.embeddings(batch["input_ids"], None, batch["vectors"], batch["vector_index"])
    assert model.language(hidden).shape == (1, batch["input_ids"].shape[1], config.llm.hidden_size)


def test_the_decoder_learns_from_text_while_the_tower_stays(sources, tmp_path):
    command = ["--sources", str(sources.folder), "--out", str(tmp_path), "--preset", "tiny", "--stage", "text"]
    trainer = Trainer(parse([*command, "--steps", "12", "--frozen-layers", "2", "--log-seconds", "0"]))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.run()
    after = trainer.model.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"llm"}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("slices/s") == 0 for row in rows) and any(row.get("slices/s", 0) > 0 for row in rows)
