"""Generation: the tokens of the device side, and the same tokens whatever is in the batch and however it is run."""

from unittest.mock import patch

import pytest
import torch
from transformers import CompileConfig, StaticCache
from transformers.generation.streamers import BaseStreamer

from handlens.engine.sampling import SamplingParams
from handlens.model import MiniCPMV
from handlens.model.processing import collate
from handlens.processor import Inputs
from tests.torch_side import conversation

NEW_TOKENS = 8


@pytest.fixture(scope="module")
def mixed(processor) -> list[Inputs]:
    """Requests with one image, none, two and three, of different shapes."""
    return [processor(conversation(index, images)) for index, images in enumerate((1, 0, 2, 1, 3))]


def answers(model: MiniCPMV, requests: list[Inputs], **options) -> list[list[int]]:
    """The new tokens of each sequence of a batch; none ends by itself."""
    batch = collate(requests)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0} | options
    ids = model.generate(**batch, eos_token_id=None, **options)
    prompts = batch["input_ids"].repeat_interleave(options.get("num_return_sequences", 1), dim=0)
    assert torch.equal(ids[:, : prompts.shape[1]], prompts)
    return ids[:, prompts.shape[1] :].tolist()


def test_tokens_equal_the_device_side_over_50_image_prompts(model, processor, chat):
    requests = [processor(conversation(index)) for index in range(50)]
    params = SamplingParams.greedy(max_new_tokens=NEW_TOKENS)
    expected = [list(chat.generator.generate(request, params, ())) for request in requests]
    batches = [answers(model, requests[start : start + 10]) for start in range(0, 50, 10)]
    assert [answer for batch in batches for answer in batch] == expected
    assert len({tuple(answer) for answer in expected}) > 40  # images and questions matter


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_batch_gives_each_request_the_tokens_it_gets_alone(model, mixed, options):
    together = answers(model, mixed, **options)
    assert together == [answers(model, [request], **options)[0] for request in mixed]
    assert len({tuple(answer) for answer in together}) == len(mixed)


def test_beam_tokens_equal_the_device_side(model, mixed, chat):
    params = SamplingParams.beam(max_new_tokens=NEW_TOKENS, repetition_penalty=1.0)
    expected = [list(chat.generator.generate(request, params, ())) for request in mixed]
    assert answers(model, mixed, num_beams=params.num_beams, early_stopping=False) == expected


def test_several_samples_of_a_prompt_see_its_image(model, mixed):
    torch.manual_seed(0)
    drawn = answers(model, mixed[:1], do_sample=True, top_k=1, num_return_sequences=3)
    assert drawn == answers(model, mixed[:1]) * 3


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_images_are_encoded_once_a_call(model, mixed, options):
    with patch.object(model.vpm, "forward", wraps=model.vpm.forward) as tower:
        answers(model, mixed, **options)
    assert tower.call_count == 1
    assert len(tower.call_args.args[0]) == len(collate(mixed)["pixel_values"])


def test_static_cache_gives_the_same_tokens(model, mixed):
    assert answers(model, mixed, cache_implementation="static") == answers(model, mixed)


def test_compiled_decoding_gives_the_same_tokens(model, mixed):
    """In one graph without a break, so it can become a CUDA graph, and the same graph for every token."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiling = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    compiling._compile_all_devices = True  # on a GPU it is compiled without being asked
    compiled = answers(model, mixed, cache_implementation="static", compile_config=compiling)
    assert len(graphs) == 1
    assert compiled == answers(model, mixed)


def test_a_compiled_step_on_a_static_cache_equals_a_full_forward(model, mixed):
    batch = collate(mixed)
    length = batch["input_ids"].shape[1]
    cache = StaticCache(config=model.config, max_cache_len=length + NEW_TOKENS)
    step = torch.compile(model.__call__, backend="eager", fullgraph=True)
    mask, ids = batch["attention_mask"], batch["input_ids"]
    with torch.no_grad():
        logits = model(**batch, past_key_values=cache).logits[:, -1]
        for _ in range(3):
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            position_ids = torch.full((len(ids), 1), ids.shape[1] - 1)
            logits = step(
                input_ids=ids[:, -1:], attention_mask=mask, position_ids=position_ids, past_key_values=cache
            ).logits[:, -1]
            full = model(**batch | {"input_ids": ids, "attention_mask": mask}).logits[:, -1]
            assert torch.allclose(logits, full, rtol=0, atol=1e-4 * full.abs().max())


class Ids(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.given, self.ended = [], False

    def put(self, value):
        self.given.append(value.tolist())

    def end(self):
        self.ended = True


def test_a_streamer_gets_the_tokens_as_they_come(model, mixed):
    streamer = Ids()
    [expected] = answers(model, mixed[2:3], streamer=streamer)
    prompt, *tokens = streamer.given
    assert [token for [token] in tokens] == expected
    assert prompt == collate(mixed[2:3])["input_ids"].tolist()
    assert streamer.ended


def test_embeddings_alone_give_the_new_tokens_alone(model, mixed):
    """As the original generates: no prompt ids, so a repetition penalty sees generated tokens only."""
    batch = collate(mixed)
    mask = batch.pop("attention_mask")
    with torch.no_grad():
        embeds = model.embed(**batch)
    ids = model.generate(
        inputs_embeds=embeds,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert ids.tolist() == answers(model, mixed)


def test_the_padding_token_in_a_text_is_no_padding(model, processor):
    """Id 0 is "!" in the vocabulary of 2.5; transformers takes it for padding where no mask is given."""
    request = processor([{"role": "user", "content": "Is it so? Yes! No!"}])
    ids = torch.from_numpy(request.input_ids).long()[None]
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    frequent = int(ids[0, -3])
    assert torch.equal(
        model.generate(ids, pad_token_id=frequent, **options),
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options),
    )
