"""Stock llama.cpp beside handlens, on the same files: what the interop test and the benchmark of agreement share.

llama.cpp comes as the wheel `xllamacpp`, which holds its server; the server is asked as any program would ask it.
"""

import base64
import io
import json
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import xllamacpp
from PIL import Image

from handlens.chat import Chat
from handlens.cpu import reference
from handlens.engine.sampling import SamplingParams
from handlens.processor import Inputs

#: How many of the most likely tokens are compared at each step.
TOP = 20


@dataclass(frozen=True)
class Answer:
    """What llama.cpp made of a prompt: `log_probs` holds the most likely ids of each step and their logarithms."""

    prompt_tokens: int
    prompt_text: str  # special tokens included, image vectors left out
    tokens: list[int]
    log_probs: list[dict[int, float]]


class LlamaCpp:
    """One pair of files in llama.cpp. With `exact` it computes attention as handlens does, in float32; its own default
    is flash attention over keys and values of float16."""

    def __init__(self, model: Path, mmproj: Path, *, exact: bool = True):
        params = xllamacpp.CommonParams()
        params.model.path, params.mmproj.path = str(model), str(mmproj)
        params.n_ctx, params.n_parallel, params.verbosity = 4096, 1, 0
        # Its threads wait for each other in busy loops: on a machine that has other work, two are slower than one.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup = params.fit_params = params.cache_prompt = False
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
        if exact:
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(params)
        self.image_mark = self._ask("/props")["media_marker"]

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text. With `special` the names of special tokens mean those tokens, and bos comes first."""
        wish = {"content": text, "parse_special": special, "add_special": special}
        return self._ask("/tokenize", wish)["tokens"]

    def render(self, question: str, images: int = 0) -> str:
        """The prompt that the file's chat template makes of some images and a question."""
        content = "\n".join([self.image_mark] * images + [question])
        return self._ask("/apply-template", {"messages": [{"role": "user", "content": content}]})["prompt"]

    def complete(self, prompt: str, images: Sequence[Image.Image], count: int) -> Answer:
        """The `count` most likely tokens after a prompt, one by one."""
        body = {
            "prompt": {"prompt_string": prompt, "multimodal_data": [_png(image) for image in images]},
            "n_predict": count,
            "temperature": 0,
            "samplers": ["temperature"],
            "n_probs": TOP,
            "return_tokens": True,
            "cache_prompt": False,
        }
        got = self._ask("/completion", body)
        steps = [
            {top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in got["completion_probabilities"]
        ]
        # A step whose text is not a whole character is left out there; tests/tiny.py makes models that have none.
        if len(steps) != len(got["tokens"]):
            raise RuntimeError(f"llama.cpp gave {len(got['tokens'])} tokens, but probabilities for {len(steps)}")
        return Answer(got["tokens_evaluated"], got["prompt"], got["tokens"], steps)

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.server.listening_address + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)


@dataclass(frozen=True)
class Comparison:
    """One answer of llama.cpp beside what handlens computes for every step of it."""

    inputs: Inputs
    theirs: Answer
    ours: np.ndarray  # the logarithms of all chances [steps, V], each step after llama.cpp's tokens

    @property
    def same_length(self) -> bool:
        """Whether both prompts have the same number of positions: for one image, whether it is cut into as many."""
        return len(self.inputs.input_ids) == self.theirs.prompt_tokens

    @property
    def changed(self) -> int:
        """The number of steps at which handlens would have chosen another token."""
        return int((self.ours.argmax(axis=1) != self.theirs.tokens).sum())

    @property
    def error(self) -> float:
        """The largest difference of a logarithm among llama.cpp's most likely tokens of all steps."""
        return max(
            abs(float(row[token]) - value)
            for row, step in zip(self.ours, self.theirs.log_probs, strict=True)
            for token, value in step.items()
        )

    @property
    def margin(self) -> float:
        """The smallest lead of handlens' most likely token over its second, in logarithms of chances."""
        best = np.sort(self.ours, axis=1)[:, -2:]
        return float((best[:, 1] - best[:, 0]).min())


def compare(chat: Chat, theirs: LlamaCpp, question: str, images: Sequence[Image.Image], count: int) -> Comparison:
    """Both programs' continuation of the same conversation by `count` tokens."""
    answer = theirs.complete(theirs.render(question, len(images)), images, count)
    inputs = ask(chat, question, images, count)
    return Comparison(inputs, answer, log_probs(chat, inputs, answer.tokens))


def ask(chat: Chat, question: str, images: Sequence[Image.Image], count: int) -> Inputs:
    """The same conversation as handlens feeds it."""
    msgs = [{"role": "user", "content": [*images, question]}]
    return chat.prepare(msgs, SamplingParams.greedy(max_new_tokens=count))


def log_probs(chat: Chat, inputs: Inputs, tokens: Sequence[int]) -> np.ndarray:
    """handlens' logarithms of the chances [steps, V] before each of these tokens, by prefill and cached decoding."""
    backend = chat.generator.backend
    cache = backend.new_cache()
    steps = [chat.generator.embeddings(inputs), *backend.embed(np.array(tokens[:-1]))[:, None]]
    logits = np.concatenate([backend.forward([step], [cache]) for step in steps]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def round_as_llama_cpp(chat: Chat) -> Chat:
    """The model with the two roundings to float16 in llama.cpp's vision tower: pixels, and either side of GELU."""

    def half(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float32)

    def feed_forward(x: np.ndarray, norm: tuple, eps: float, up: tuple, _: str, down: tuple) -> np.ndarray:
        (inner,) = reference.norm_linears(x, norm, eps, up)
        return x + reference.linear(half(reference.gelu_tanh(half(inner))), *down)

    chat.generator.backend.tower.ops = SimpleNamespace(
        **{
            **vars(reference),
            "patch_embed": lambda patches, *layer: reference.patch_embed(half(patches), *layer),
            "feed_forward": feed_forward,
        }
    )
    return chat


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth ground with some rectangles: structure for the vision tower at every size."""
    rng = np.random.default_rng([seed, width, height])
    across, down = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
    pixels = across * rng.integers(0, 256, 3) + down * rng.integers(0, 256, 3)
    for x, y in zip(rng.integers(0, width, 6), rng.integers(0, height, 6), strict=True):
        pixels[y : y + height // 4 + 1, x : x + width // 4 + 1] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
