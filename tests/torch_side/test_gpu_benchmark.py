"""The GPU benchmark at tiny size on the CPU, and the fast decoding that it measures beside transformers' own."""

import json
import math

import pytest
import torch

from benchmarks import gpu
from handlens.errors import ContextError, InputError
from handlens.model import MiniCPMV, MiniCPMVConfig
from handlens.model.fast import FastDecoder, compile_vision
from handlens.model.processing import collate
from handlens.placement import computed_bytes
from handlens.processor import Processor
from tests.torch_side import conversation, torch_model

TOKENS = 20


@pytest.fixture
def model(tiny_model) -> MiniCPMV:
    return torch_model(tiny_model)


@pytest.fixture(scope="module")
def batch(tiny_model) -> dict[str, torch.Tensor]:
    """Requests with one image, none and two: two of them are padded."""
    processor = Processor(tiny_model.config, tiny_model.tokenizer)
    return collate([processor(conversation(0)), processor(conversation(1, 0)), processor(conversation(2, 2))])


def slow_truth(model: MiniCPMV, batch: dict[str, torch.Tensor]) -> list[list[int]]:
    ids = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
    return ids[:, batch["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    "backend", [None, "eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=str
)
def test_fast_decoding_gives_the_tokens_of_generate(model, batch, backend):
    decoder = FastDecoder(model, 3, batch["input_ids"].shape[1] + TOKENS + 5, backend=backend)
    expected = slow_truth(model, batch)
    assert decoder.generate(TOKENS, **batch) == expected
    assert decoder.generate(TOKENS, **batch) == expected  # nothing is left of the first answers
    assert len({tuple(answer) for answer in expected}) == 3


def test_the_step_is_compiled_once_in_one_graph(model, batch):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    decoder = FastDecoder(model, 3, batch["input_ids"].shape[1] + TOKENS, backend=backend)
    decoder.generate(TOKENS, **batch)
    shorter = {name: tensor[:, -40:] for name, tensor in batch.items() if name in ("input_ids", "attention_mask")}
    decoder.generate(TOKENS, **shorter)
    assert len(graphs) == 1


def test_answers_end_before_a_stop_id(model, batch):
    expected = slow_truth(model, batch)
    stop = expected[0][5]
    decoder = FastDecoder(model, 3, batch["input_ids"].shape[1] + TOKENS, backend=None)
    ends = [answer.index(stop) if stop in answer else TOKENS for answer in expected]
    assert decoder.generate(TOKENS, [stop], **batch) == [
        answer[:end] for answer, end in zip(expected, ends, strict=True)
    ]
    assert ends[0] < TOKENS
    long = FastDecoder(model, 3, batch["input_ids"].shape[1] + 2000, backend=None)
    assert long.generate(2000, range(1042), **batch) == [[], [], []]  # all ended, so it does not go on
    assert int(long.written) < batch["input_ids"].shape[1] + 100


def test_a_batch_that_does_not_fit_is_refused(model, batch):
    decoder = FastDecoder(model, 2, 500, backend=None)
    with pytest.raises(InputError, match="3 requests"):
        decoder.generate(5, **batch)
    two = {name: batch[name][:2] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ContextError, match="fit"):
        decoder.generate(1000, **two)
    with pytest.raises(InputError, match="at least one token"):
        decoder.generate(0, **two)


def test_a_compiled_tower_sees_the_same_and_is_compiled_once_for_all_layers(model, batch):
    images = [batch[key] for key in ("pixel_values", "tgt_sizes", "slice_request")]
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = model.get_image_features(*images)
        compile_vision(model, backend)
        assert torch.equal(model.get_image_features(*images), expected)
        assert len(model.vpm.encoder.layers) > len(graphs) == 1
        twice = model.get_image_features(*(torch.cat([tensor, tensor]) for tensor in images))
    assert torch.allclose(twice, torch.cat([expected, expected]), atol=1e-4)
    assert len(graphs) == 1  # for another number of slices too


def test_the_tables_come_out(tmp_path, capsys):
    gpu.main(["--size", "tiny", "--device", "cpu", "--json", str(tmp_path / "rows.json")])
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    for text in ("weights", "encoding 10 slices", "first token of 336x336", "decoding, batch 1,", "decoding, batch 4,"):
        assert sum(line.startswith("|") and text in line for line in out.splitlines()) == 1
    assert "failed" not in out and "not measured" not in out and "not applied" in out
    numbers = [row[key] for row in rows for key in ("ours", "plain", "limit") if row[key] is not None]
    assert len(rows) == 11 and all(number > 0 and math.isfinite(number) for number in numbers)
    assert len([row for row in rows if row["plain"] and row["limit"]]) == 6


def test_no_part_begins_after_the_time_is_over(capsys):
    gpu.main(["--size", "tiny", "--device", "cpu", "--minutes", "0"])
    _, _, *parts = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(parts) == 7 and all("not measured: 0 minutes are over" in part for part in parts)


def test_what_the_limits_are_computed_from_are_the_sizes_of_the_model():
    full = gpu.SIZES["full"].config
    sizes = computed_bytes(full)
    assert sum(sizes.values()) == 2 * 8_537_092_336
    layers = 32 * (gpu.layer_parameters(full.llm) + 2 * 4096)
    assert 2 * layers == sum(size for module, size in sizes.items() if ".layers." in module)
    with torch.device("meta"):
        model = MiniCPMV(MiniCPMVConfig.from_model_config(full)).to(torch.bfloat16)
    read = gpu.step_bytes(model, full.llm, batch=16, context=1000)
    assert read == 2 * (layers + 128256 * 4096 + 4096) + 16 * 1000 * 32 * 2 * 1024 * 2
    # Two operations a parameter and token, and little for attention.
    assert gpu.prefill_flops(full.llm, 1000) == pytest.approx(2 * layers * 1000, rel=0.03)
    tower = sizes["vpm"] // 2 - 4900 * 1152
    ten = gpu.vision_flops(full, [1024] * 10)
    assert 2 * tower * 10240 < ten < 1.5 * 2 * tower * 10240


def test_bars_say_whether_they_were_kept():
    row = gpu.Row("decoding", "tokens/s", 50.0, 20.0, 100.0, (("at least 75 %", False), ("2.5x", True)))
    assert (row.share, row.gain) == (0.5, 2.5)
    assert "at least 75 %: MISS; 2.5x: pass" in row.markdown(apply_bars=True)
    row = gpu.Row("encoding", "ms", 50.0, 100.0, 40.0)
    assert (row.share, row.gain) == (0.8, 2.0)
