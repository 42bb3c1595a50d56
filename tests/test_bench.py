"""`handlens bench` measures what it says it measures."""

import json

import pytest

from handlens.chat import load
from handlens.cli import run
from handlens.cpu import ops
from handlens.measure import (
    READ_PASSES,
    decode_seconds,
    fastest_numbers,
    machine_limits,
    prefill_seconds,
    read_bandwidth,
    weight_bytes,
    weight_count,
)

EVERYWHERE = {"load_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"}
LIMITED = {"read_bytes_per_second", "peak_operations_per_second", "fp32_operations_per_second"}
LIMITED |= {"prefill_share", "decode_share"}
SEEING = {"slice_seconds", "first_token_seconds", "second_question_seconds", "second_question_share"}
kernels = pytest.mark.skipif(ops.native is None, reason="built without kernels")


@pytest.fixture
def bench(capsys):
    """Runs `handlens bench --json` in this process: the report."""

    def call(*options) -> dict:
        assert run(["bench", "--json", "--quiet", "--quick", *map(str, options)]) == 0
        return json.loads(capsys.readouterr().out)

    return call


@kernels
def test_everything_is_measured_of_a_model_that_sees(bench, tiny_model):
    report = bench("--model", tiny_model.model)
    results = report["results"]
    assert results.keys() >= EVERYWHERE | LIMITED | SEEING | {"peak_memory_bytes", "rounds"}
    assert all(results[name] > 0 for name in EVERYWHERE | LIMITED | SEEING)
    assert report["machine"]["kernels"] is True and report["machine"]["threads"] >= 1
    assert results["second_question_seconds"] < results["first_token_seconds"]
    assert 1e8 < results["read_bytes_per_second"] < 1e13
    llm = tiny_model.config.llm
    layer = 256 * 256 * 2 + 2 * 128 * 256 + 3 * 512 * 256
    assert report["model"]["weights"] == 2 * layer + llm.vocab_size * 256
    share = report["model"]["bytes_per_token"] * results["decode_tokens_per_second"] / results["read_bytes_per_second"]
    assert results["decode_share"] == pytest.approx(share)


def test_where_numpy_computes_it_says_so(bench, exact, tiny_model, capsys):
    report = bench("--model", tiny_model.model)
    assert report["machine"]["kernels"] is False
    assert report["results"].keys() >= EVERYWHERE | SEEING and not report["results"].keys() & LIMITED
    assert run(["bench", "--quick", "--model", str(tiny_model.model)]) == 0
    assert "numpy computes" in capsys.readouterr().out


def test_a_model_without_a_projector_has_no_rows_of_images(bench, tiny_model, tmp_path):
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(tiny_model.model.read_bytes())
    assert not bench("--model", alone)["results"].keys() & SEEING


@kernels
def test_the_table_shows_each_value_with_its_share(tiny_model, capsys):
    assert run(["bench", "--quick", "--model", str(tiny_model.model)]) == 0
    table = capsys.readouterr().out
    for words in (
        f"{fastest_numbers()} peak",
        "GB/s",
        "tokens/s",
        "first token",
        "of the read bandwidth",
        "of the first question",
        "MiB",
    ):
        assert words in table


@pytest.mark.parametrize(
    "options, says",
    [
        (["--backend", "torch"], "backend cpu"),
        (["--device", "cuda"], "backend cpu"),
        (["--cache-dir", "x"], "--cache-dir"),
        (["--rounds", "0"], "--rounds"),
        (["--context-length", "10"], "no room"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_model, capsys, options, says):
    assert run(["bench", "--quick", "--model", str(tiny_model.model), *options]) == 2
    assert says in capsys.readouterr().err


@kernels
def test_limits_and_speeds_are_those_of_the_same_machine(quantized_model):
    """No more weights are read than memory can give; small models may sit in the processor's caches."""
    backend = load(quantized_model.model).generator.backend
    limits = machine_limits()
    assert limits.fastest > limits.floating > 1e8
    assert 2 * weight_count(backend) * 64 / prefill_seconds(backend, 64) < 2 * limits.fastest
    assert weight_bytes(backend) * 8 / decode_seconds(backend, 4, 8) < 20 * limits.read


@kernels
def test_the_read_bandwidth_is_that_of_the_best_pass(monkeypatch):
    class Clock:
        passes = [3e9 + number for number in range(READ_PASSES - 1)] + [1e9]

        def read_rate(self, memory):
            assert memory.nbytes == 1 << 30
            return self.passes.pop(0)

    clock = Clock()
    monkeypatch.setattr(ops, "native", clock)
    assert read_bandwidth() == 3e9 + READ_PASSES - 2 and not clock.passes
