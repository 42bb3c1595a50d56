"""Ctrl-C ends `handlens ask` at once, whatever it does. By hand, with its times: pytest tests/test_interrupt.py -s."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.make_model import write
from tests import tiny

#: Most seconds from the signal to the end of the process, with room for other work on the machine.
LIMIT = 1.0


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """Asks about a picture of ten slices that take a while each, for an answer that takes longer still."""
    folder = tmp_path_factory.mktemp("slow")
    config = tiny.config(scale_resolution=448, num_hidden_layers=8)
    vision = replace(config.vision, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8)
    config = replace(config, vision=vision, resampler=replace(config.resampler, kv_dim=512))
    model, _ = write(folder, "Q4_0", 8, "F16", 8, config)
    pixels = np.random.default_rng(0).integers(0, 256, (1344, 1344, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    ask = ["ask", str(folder / "picture.png"), "What?", "--model", str(model), "--temperature", "2", "-q"]
    return [sys.executable, "-m", "handlens", *ask]


def start(command: list[str], *options: str) -> subprocess.Popen:
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def interrupted(process: subprocess.Popen) -> tuple[float, bytes, bytes]:
    """The seconds from Ctrl-C to the end, and what was still written."""
    sent = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, told = process.communicate(timeout=20)
    taken = time.perf_counter() - sent
    print(f"\n{taken * 1000:.0f} ms", end=" ")
    assert process.returncode == 130
    return taken, out, told


@pytest.mark.skipif(not Path("/proc").exists(), reason="signals of another kind")
@pytest.mark.parametrize("share", [0.2, 0.4])
def test_while_an_image_is_encoded(command, share):
    whole = start(command, "--json", "--max-new-tokens", "1")
    started = time.perf_counter()
    facts = json.loads(whole.communicate(timeout=60)[0])
    at_start = time.perf_counter() - started - facts["seconds_to_end"]  # of the interpreter, which the facts leave out
    encoding = facts["seconds_to_first_text"] - facts["seconds_to_load"]
    assert encoding > 0.5, "too quick to be interrupted: make the model of this test larger"
    process = start(command)
    time.sleep(at_start + facts["seconds_to_load"] + share * encoding)
    taken, out, told = interrupted(process)
    assert taken < LIMIT and (out, told) == (b"", b"")


@pytest.mark.skipif(not Path("/proc").exists(), reason="signals of another kind")
def test_while_an_answer_is_made(command):
    process = start(command, "--max-new-tokens", "2500")
    first = process.stdout.read(1)
    time.sleep(0.1)
    taken, out, told = interrupted(process)
    assert taken < LIMIT and (first + out).endswith(b"\n") and told == b""
