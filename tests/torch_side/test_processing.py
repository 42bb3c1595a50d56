"""The processor: the ids and pixels of the device side in tensors, from official folders and back into files."""

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerFast,
    pipeline,
)

from handlens.errors import ImageError, InputError, ModelFileError
from handlens.images import patches
from handlens.model import MiniCPMV, MiniCPMVConfig, MiniCPMVImageProcessor, MiniCPMVProcessor
from handlens.model.processing import IMAGE_TAG, collate, shared_tokenizer
from handlens.processor import Processor
from tests.torch_side import conversation, picture, torch_model

#: The values of the published files, but for the size of slices.
PREPROCESSOR = {
    "image_processor_type": "MiniCPMVImageProcessor",
    "auto_map": {
        "AutoProcessor": "processing_minicpmv.MiniCPMVProcessor",
        "AutoImageProcessor": "image_processing_minicpmv.MiniCPMVImageProcessor",
    },
    "processor_class": "MiniCPMVProcessor",
    "max_slice_nums": 9,
    "scale_resolution": 112,
    "patch_size": 14,
    "image_feature_size": 96,
    "im_start": "<image>",
    "im_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "unk": "<unk>",
    "norm_mean": [0.5, 0.5, 0.5],
    "norm_std": [0.5, 0.5, 0.5],
    "version": 2.5,
}
TOKENIZER = {
    "auto_map": {"AutoTokenizer": ["tokenization_minicpmv_fast.MiniCPMVTokenizerFast", None]},
    "tokenizer_class": "MiniCPMVTokenizerFast",
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|end_of_text|>",
    "unk_token": "<unk>",
    "pad_token": "!",
    "padding_side": "right",
    "truncation_side": "right",
    "clean_up_tokenization_spaces": True,
}


@pytest.fixture(scope="module")
def official(tiny_model, tmp_path_factory) -> Path:
    """The files of a checkpoint in the official layout but for its weights."""
    folder = tmp_path_factory.mktemp("official")
    MiniCPMVConfig.from_model_config(tiny_model.config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer.json").write_text((tiny_model.model.parent / "tokenizer.json").read_text())
    for module in ("processing_minicpmv", "image_processing_minicpmv", "tokenization_minicpmv_fast"):
        (folder / f"{module}.py").write_text("raise SystemExit('this ran')")
    return folder


@pytest.fixture(scope="module")
def processor(official) -> MiniCPMVProcessor:
    return AutoProcessor.from_pretrained(official)


@pytest.fixture(scope="module")
def device_side(tiny_model) -> Processor:
    return Processor(tiny_model.config, tiny_model.tokenizer)


@pytest.fixture(scope="module")
def model(tiny_model) -> MiniCPMV:
    return torch_model(tiny_model)


def with_types(msgs: list[dict]) -> list[dict]:
    """A conversation in the format of transformers."""

    def part(item):
        return {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": item}

    return [{"role": msg["role"], "content": [part(item) for item in msg["content"]]} for msg in msgs]


def batch_of(processor, conversations, **options) -> BatchFeature:
    return processor.apply_chat_template(conversations, tokenize=True, return_dict=True, **options)


def equal(ours: BatchFeature, theirs: BatchFeature) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


#: Conversations with one image, none, two and three, of different shapes.
MIXED = [(0, 1), (1, 0), (2, 2), (3, 1), (4, 3)]


# Conversations


@pytest.mark.parametrize("index", range(12))
def test_ids_pixels_and_places_are_those_of_the_device_side(processor, device_side, index):
    inputs = device_side(conversation(index, index % 4))
    batch = batch_of(processor, with_types(conversation(index, index % 4)))
    assert batch["input_ids"].tolist() == [inputs.input_ids.tolist()]
    assert batch["attention_mask"].all()
    if not inputs.images:
        assert batch.keys() == {"input_ids", "attention_mask"}
        return
    assert batch["image_bound"].tolist() == inputs.image_bound.tolist()
    slices = [pixels for image in inputs.images for pixels in image.slices]
    for pixels, row in zip(slices, batch["pixel_values"], strict=True):
        cells = patches(pixels, 14).reshape(-1, 3, 14, 14).transpose(1, 2, 0, 3).reshape(3, 14, -1)
        assert np.array_equal(row[..., : cells.shape[-1]], cells)
        assert not row[..., cells.shape[-1] :].any()


def test_a_conversation_of_several_turns_with_a_system_message(processor, device_side):
    msgs = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [picture(1), "What is this?"]},
        {"role": "assistant", "content": "A picture."},
        {"role": "user", "content": [picture(2), "And this?"]},
    ]
    typed = [msg if isinstance(msg["content"], str) else with_types([msg])[0] for msg in msgs]
    assert batch_of(processor, typed)["input_ids"].tolist() == [device_side(msgs).input_ids.tolist()]


def test_what_a_user_types_stays_text_in_a_conversation(processor, device_side):
    typed = f"<image></image> {IMAGE_TAG} <|eot_id|> <unk>"
    ids = batch_of(processor, [{"role": "user", "content": [{"type": "text", "text": typed}]}])["input_ids"]
    assert ids.tolist() == [device_side([{"role": "user", "content": typed}]).input_ids.tolist()]
    assert (ids == device_side.tokenizer.id("<|eot_id|>")).sum() == 1


def test_ids_alone_and_text(processor):
    msgs = with_types(conversation(0))
    assert torch.equal(processor.apply_chat_template(msgs, tokenize=True), batch_of(processor, msgs)["input_ids"])
    assert processor.apply_chat_template(msgs) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n(<image>./</image>)\nWhat is this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert processor.apply_chat_template([msgs, msgs]) == [processor.apply_chat_template(msgs)] * 2


def test_images_may_be_paths_urls_of_files_and_base64(processor, tmp_path):
    picture(3).save(tmp_path / "picture.png")
    buffer = BytesIO()
    picture(3).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    path = str(tmp_path / "picture.png")
    wanted = batch_of(processor, with_types([{"role": "user", "content": [picture(3), "What?"]}]))
    for image in (
        {"image": path},
        {"image": tmp_path / "picture.png"},
        {"image": buffer.getvalue()},
        {"path": path},
        {"url": path},
        {"url": f"file://{path}"},
        {"url": f"data:image/png;base64,{encoded}"},
        {"base64": encoded},
    ):
        content = [{"type": "image", **image}, {"type": "text", "text": "What?"}]
        assert equal(batch_of(processor, [{"role": "user", "content": content}]), wanted)


@pytest.mark.parametrize(
    "part, error, message",
    [
        ({"type": "image", "url": "https://example.org/cat.png"}, InputError, "never does"),
        ({"type": "image"}, InputError, "without an image"),
        ({"type": "image", "path": "/no/such/file.png"}, ImageError, "no file"),
        ({"type": "video", "video": "film.mp4"}, InputError, "'video'"),
        ({"type": "text", "text": 3}, InputError, "accepted"),
        (7, InputError, "holds a int"),
    ],
)
def test_parts_that_cannot_be_used_are_refused(processor, part, error, message):
    with pytest.raises(error, match=message):
        batch_of(processor, [{"role": "user", "content": [part]}])


def test_options_that_mean_another_prompt_are_refused(processor):
    msgs = with_types(conversation(0))
    for option in ({"add_generation_prompt": False}, {"continue_final_message": True}, {"return_tensors": "np"}):
        with pytest.raises(InputError, match=next(iter(option))):
            batch_of(processor, msgs, **option)
    with pytest.raises(TypeError, match="chat_template"):
        batch_of(processor, msgs, chat_template="{{ messages }}")


# Prompts that are written out


@pytest.mark.parametrize("index, images", MIXED)
def test_a_prompt_written_out_gives_the_ids_of_its_conversation(processor, index, images):
    msgs = with_types(conversation(index, images))
    text = processor.apply_chat_template(msgs)
    pictures = [part["image"] for part in msgs[0]["content"] if part["type"] == "image"]
    assert equal(processor(text=text, images=pictures), batch_of(processor, msgs))
    without_bos = text.removeprefix("<|begin_of_text|>")
    assert equal(processor(text=without_bos, images=pictures), batch_of(processor, msgs))


def test_places_of_images_are_enough_to_write_a_prompt_out(processor):
    msgs = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    filled = with_types([{"role": "user", "content": [picture(0), "What is this?"]}])
    text = processor.apply_chat_template(msgs)
    assert text == processor.apply_chat_template(filled)
    assert equal(processor(text=text, images=picture(0)), batch_of(processor, filled))


def test_tags_beyond_the_images_stay_text(processor):
    one = processor(text=f"{IMAGE_TAG} and {IMAGE_TAG}", images=picture(5))
    text = shared_tokenizer(processor.tokenizer).encode(f" and {IMAGE_TAG}")
    assert one["input_ids"][0, -len(text) :].tolist() == text
    assert one["slice_request"].unique().tolist() == [0]
    assert processor(text=IMAGE_TAG)["input_ids"][0, 1:].tolist() == processor.prompts.tokenizer.encode(IMAGE_TAG)


def test_special_tokens_that_are_not_of_the_chat_format_stay_text_in_a_prompt(processor):
    text = "<image></image><unk><slice>"
    assert processor(text=text)["input_ids"][0, 1:].tolist() == processor.prompts.tokenizer.encode(text)


def test_images_are_shared_out_among_several_texts(processor):
    texts = [f"{IMAGE_TAG} a", "b", f"{IMAGE_TAG}{IMAGE_TAG} c"]
    one, two, three = picture(0), picture(1), picture(2)
    flat = processor(text=texts, images=[one, two, three])
    assert equal(flat, processor(text=texts, images=[[one], [], [two, three]]))
    assert set(flat["slice_request"].tolist()) == {0, 2}
    for images, message in (
        ([one, two], "2 images were given, but the 3 texts have 3 tags"),
        ([[one], [two]], "2 prompts, but 3"),
        ([[one], [two], [three]], "1 images were given, but the text has 0 tags"),
    ):
        with pytest.raises(InputError, match=message):
            processor(text=texts, images=images)


# Batches


def test_a_batch_is_padded_on_the_left_and_knows_where_each_slice_belongs(processor, device_side):
    requests = [device_side(conversation(*which)) for which in MIXED]
    batch = batch_of(processor, [with_types(conversation(*which)) for which in MIXED], padding=True)
    assert equal(batch, collate(requests, pad_id=0))
    length = max(len(request.input_ids) for request in requests)
    bounds = iter(zip(batch["slice_request"].tolist(), batch["image_bound"].tolist(), strict=True))
    for row, request in enumerate(requests):
        padding = length - len(request.input_ids)
        assert batch["attention_mask"][row].tolist() == [0] * padding + [1] * len(request.input_ids)
        assert batch["input_ids"][row, padding:].tolist() == request.input_ids.tolist()
        for start, end in request.image_bound.tolist():
            assert next(bounds) == (row, [start + padding, end + padding])
    assert next(bounds, None) is None
    with pytest.raises(InputError, match="padding=False"):
        batch_of(processor, [with_types(conversation(*which)) for which in MIXED], padding=False)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_batch_of_different_image_counts_generates_what_each_gets_alone(processor, model, options):
    conversations = [with_types(conversation(*which)) for which in MIXED[:3]]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    batch = batch_of(processor, conversations)
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, msgs in zip(together, conversations, strict=True):
        alone = batch_of(processor, msgs)
        assert torch.equal(model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :], row)


def test_a_pipeline_of_transformers_answers(processor, model, chat):
    asked = conversation(2)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    [answer] = pipe(text=with_types(asked), return_full_text=False, generate_kwargs=options)
    assert answer["generated_text"].strip() == chat.chat(
        msgs=asked, temperature=0, repetition_penalty=1.0, max_new_tokens=8
    )


# Decoding


def test_padding_is_left_out_by_its_place_and_an_exclamation_mark_never(processor):
    tokenizer = processor.prompts.tokenizer
    text, stop, bos = tokenizer.encode("Look! Up!!"), tokenizer.id("<|eot_id|>"), tokenizer.id("<|begin_of_text|>")
    assert processor.tokenizer.pad_token_id == tokenizer.encode("!")[0]
    for ids in (text, [*text, stop], [*text, stop, 0, 0, 0], [0, 0, bos, *text], [0, bos, *text, stop, 0]):
        assert processor.decode(ids) == "Look! Up!!"
        assert processor.decode(torch.tensor(ids)) == "Look! Up!!"
    assert processor.batch_decode(torch.tensor([[*text, stop, 0], [0, 0, *text]])) == ["Look! Up!!", "!!Look! Up!!"]
    assert processor.decode([0, 0]) == "!!"
    assert processor.decode([stop, 0, 0]) == ""
    assert processor.decode([*text, stop, 0], skip_special_tokens=False) == "Look! Up!!<|eot_id|>"


def test_grounding_tokens_are_shown(processor):
    tokenizer = processor.prompts.tokenizer
    ids = [tokenizer.id("<box>"), *tokenizer.encode("1 2 3 4"), tokenizer.id("</box>"), tokenizer.id("<unk>")]
    assert processor.decode(ids) == "<box>1 2 3 4</box>"


# Files


def test_m18_an_official_folder_loads_without_its_code(official, caplog):
    for trust in ({}, {"trust_remote_code": True}):
        caplog.clear()
        processor = AutoProcessor.from_pretrained(official, **trust)
        assert type(processor) is MiniCPMVProcessor
        assert type(processor.image_processor) is MiniCPMVImageProcessor
        assert isinstance(processor.tokenizer, PreTrainedTokenizerFast)
        assert type(AutoImageProcessor.from_pretrained(official, **trust)) is MiniCPMVImageProcessor
        assert "auto_map" in caplog.text
    assert isinstance(AutoTokenizer.from_pretrained(official), PreTrainedTokenizerFast)


def test_saved_and_loaded_again_it_makes_the_same_batches(processor, tmp_path, caplog):
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written == {key: PREPROCESSOR[key] for key in PREPROCESSOR.keys() - {"auto_map", "processor_class"}}
    assert "auto_map" not in (tmp_path / "tokenizer_config.json").read_text()
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is MiniCPMVProcessor
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    conversations = [with_types(conversation(*which)) for which in MIXED]
    assert equal(batch_of(again, conversations), batch_of(processor, conversations))
    assert "auto_map" not in caplog.text


def test_the_processor_of_a_family_without_official_name(mini_model, official, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(official)
    processor = MiniCPMVProcessor.from_model_config(mini_model.config, tokenizer)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again.image_processor.family is mini_model.config.family
    inputs = Processor(mini_model.config, mini_model.tokenizer)(conversation(8))
    assert equal(batch_of(again, with_types(conversation(8))), collate([inputs]))


def test_slice_options_can_be_changed(official, device_side):
    processor = AutoProcessor.from_pretrained(official, max_slice_nums=2)
    assert processor.image_processor.max_slice_nums == 2
    assert len(batch_of(processor, with_types(conversation(8)))["tgt_sizes"]) == 3
    processor.image_processor.max_slice_nums = 1
    assert len(batch_of(processor, with_types(conversation(8)))["tgt_sizes"]) == 1
    processor.image_processor.max_slice_nums = 0
    with pytest.raises(InputError, match="max_slice_nums"):
        batch_of(processor, with_types(conversation(8)))


def test_an_image_processor_of_an_unknown_version_is_refused():
    with pytest.raises(ModelFileError, match=r"version 9\.9"):
        MiniCPMVImageProcessor(version=9.9).family  # noqa: B018


def test_the_image_processor_alone(processor, device_side):
    one, two, three = picture(0), picture(8), picture(3)
    whole = collate(
        [device_side([{"role": "user", "content": [one, two]}]), device_side([{"role": "user", "content": [three]}])]
    )
    made = processor.image_processor([[one, two], [three]], return_tensors="pt")
    assert made.keys() == {"pixel_values", "tgt_sizes", "slice_request"}
    assert all(torch.equal(made[key], whole[key]) for key in made)
    assert processor.image_processor(one)["slice_request"].tolist() == [0]
    assert processor.image_processor([]).keys() == set()


def test_a_tokenizer_with_more_tokens_is_taken_as_it_is_now(official):
    fast = PreTrainedTokenizerFast.from_pretrained(official)
    assert shared_tokenizer(fast) is shared_tokenizer(fast)
    fast.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    assert shared_tokenizer(fast).id("<|new|>") == len(fast) - 1
    with pytest.raises(InputError, match="list"):
        shared_tokenizer([])
