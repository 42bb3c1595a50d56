"""Answers of a `MiniCPMV`: where `Chat` takes its ids from when PyTorch computes.

transformers' `generate` does the work. It pushes its tokens and `Chat` pulls them, so it runs in a thread of its own.
The options of an answer mean what they mean on the device side (`engine/sampling.py`, `engine/beam.py`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
import torch
from torch.nn.functional import pad
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from handlens.backend import Progress
from handlens.checkpoint import read_json
from handlens.config import ModelConfig, official_config
from handlens.engine.cache import ImageCache
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError, ModelFileError
from handlens.gguf.blocks import Tensor
from handlens.gguf.names import from_gguf_language, from_gguf_vision
from handlens.images import SlicedImage
from handlens.model.configuration import MiniCPMVConfig
from handlens.model.minicpmv import MiniCPMV, merge
from handlens.model.processing import shared_tokenizer, slice_tensors
from handlens.processor import Inputs
from handlens.tokenizer import Tokenizer
from handlens.weights import (
    ROPE_FACTORS,
    LoadedModel,
    ModelFiles,
    check_vocabulary,
    open_pair,
    open_tokenizer,
)


class TorchGenerator:
    """Implements `chat.Generator`. Safe to call from many threads: each answer is computed by itself.

    Encoded images are remembered, so a model whose weights change needs a new generator.
    """

    def __init__(self, model: MiniCPMV, config: ModelConfig, image_cache_bytes: int = 256 << 20):
        self.model = model
        self.config = config
        self.images = ImageCache(self, image_cache_bytes)
        # What is not said in a call would be taken from here; nothing of a checkpoint's shall mix with SamplingParams.
        model.llm.generation_config = GenerationConfig()

    def generate(
        self, inputs: Inputs, params: SamplingParams, stop_ids: tuple[int, ...], progress: Progress | None = None
    ) -> Iterator[int]:
        """The ids of one answer as they are chosen, without the stop token that ends it.

        Beam search knows its answer only at the end. Closing the iterator ends the computation with its present step.
        """
        answer = Answer()
        prompt = self.embeddings(inputs, progress)
        thread = Thread(target=self._answer, args=(answer, prompt, params, stop_ids), name="handlens-generate")
        thread.start()
        try:
            yield from takewhile(lambda token: token not in stop_ids, answer)
        finally:
            answer.closed.set()
            thread.join()

    @torch.no_grad()
    def embeddings(self, inputs: Inputs, progress: Progress | None = None) -> torch.Tensor:
        """The prompt [1, n, D]: token embeddings with the slices' vectors put in their places."""
        device = self.model.device
        embeds = self.model.embed(torch.from_numpy(inputs.input_ids).long()[None].to(device))
        if not inputs.images:
            return embeds
        vectors = np.concatenate(self.images.encode(inputs.images, progress))  # [N * Q, D]
        bounds = torch.from_numpy(inputs.image_bound).long()
        vectors = torch.from_numpy(vectors).view(len(bounds), -1, vectors.shape[-1])  # [N, Q, D]
        return merge(embeds, vectors, torch.zeros(len(bounds), dtype=torch.long), bounds)

    @torch.no_grad()
    def encode(self, images: Sequence[SlicedImage], longest: int, progress: Progress | None = None) -> list[np.ndarray]:
        """The vectors of each image, [its slices * Q, D] float32; see `backend.Backend`. Progress is told image by
        image, the slices of one being a batch."""
        total, done, encoded = sum(len(image.slices) for image in images), 0, []
        for image in images:
            vectors = self._encode(image, longest)  # [N, Q, D]
            encoded.append(vectors.flatten(0, 1).float().cpu().numpy())
            done += len(image.slices)
            if progress is not None:
                progress(done, total)
        return encoded

    def _encode(self, image: SlicedImage, longest: int) -> torch.Tensor:
        """The vectors [N, Q, D] of the slices of one image, of a request whose longest slice has `longest` patches."""
        tensors = {name: tensor.to(self.model.device) for name, tensor in slice_tensors([image]).items()}
        pixel_values, tgt_sizes = tensors["pixel_values"], tensors["tgt_sizes"]
        lacking = longest - pixel_values.shape[-1] // image.plan.patch_size
        if lacking and self.config.vision.position_mode == "reference":
            # The longest slice is in another image. A grey one of its length takes its place beside these.
            pixel_values = pad(pixel_values, (0, lacking * image.plan.patch_size, 0, 0, 0, 0, 0, 1))
            tgt_sizes = torch.cat([tgt_sizes, tgt_sizes.new_tensor([[1, longest]])])
        features = self.model.vpm(pixel_values, tgt_sizes, torch.zeros_like(tgt_sizes[:, 0]))  # [N or N + 1, L, kv_dim]
        count = len(image.slices)
        return self.model.resampler(features[:count], tgt_sizes[:count])

    def _answer(
        self, answer: "Answer", prompt: torch.Tensor, params: SamplingParams, stop_ids: tuple[int, ...]
    ) -> None:
        """Runs in the thread: the ids, or the error, go into the answer."""
        try:
            ids = self.model.llm.generate(
                inputs_embeds=prompt,
                attention_mask=torch.ones_like(prompt[..., 0], dtype=torch.long),
                generation_config=generation_config(params, stop_ids),
                logits_processor=logits_processors(params),
                stopping_criteria=StoppingCriteriaList([answer]),
                streamer=answer if params.num_beams == 1 else None,  # transformers streams no beams
            )
            if params.num_beams > 1:
                answer.put(ids)
        except BaseException as error:  # whatever it is, it belongs to who waits for the answer
            answer.queue.put(error)
        else:
            answer.queue.put(None)


class Answer(BaseStreamer, StoppingCriteria):
    """The ids of one answer on their way from the thread that makes them to the one that wants them.

    `queue` holds ids, and at the end None or an error. When `closed` is set, nobody wants more of them.
    """

    def __init__(self):
        self.queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.closed = Event()

    def __iter__(self) -> Iterator[int]:
        while (item := self.queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def put(self, value: torch.Tensor) -> None:
        """Takes new ids; the prompt, which comes first, has none."""
        for token in value.flatten().tolist():
            self.queue.put(token)

    def end(self) -> None:
        """Nothing; that the call has returned says more."""

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        """Whether to stop, for each row of the batch."""
        return torch.full((len(input_ids),), self.closed.is_set(), dtype=torch.bool, device=input_ids.device)


def generation_config(params: SamplingParams, stop_ids: tuple[int, ...]) -> GenerationConfig:
    """The options of an answer under transformers' names. Draws are made by a logits processor, with own numbers."""
    beams = {"num_beams": params.num_beams, "length_penalty": float(params.length_penalty), "early_stopping": False}
    return GenerationConfig(
        max_new_tokens=params.max_new_tokens,
        do_sample=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=stop_ids[0] if stop_ids else None,
        **(beams if params.num_beams > 1 else {}),
    )


def logits_processors(params: SamplingParams) -> LogitsProcessorList:
    """What happens to logits before the likeliest token is taken: the steps of `engine/sampling.py`, in their order.

    The prompt has no ids here, so the penalty sees generated tokens only.
    """
    steps = LogitsProcessorList([Finite()])
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty)))
    if params.num_beams > 1 or params.temperature == 0:
        return steps
    steps.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k > 0:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(float(params.top_p)))
    steps.append(Draw(params.seed))
    return steps


class Finite(LogitsProcessor):
    """Passes logits on; ModelFileError for those that are not numbers."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(scores).all():
            raise ModelFileError(
                "the model computed values that are not numbers; its file is damaged, made for another design, or too "
                "large for the number type it is computed in"
            )
        return scores


class Draw(LogitsProcessor):
    """Leaves the one token that is drawn. The random numbers are the answer's own, so neither other threads nor who
    sets torch's seed change them."""

    def __init__(self, seed: int | None):
        self.seed = seed
        self.generator: torch.Generator | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.generator is None:
            self.generator = torch.Generator(scores.device)
            if self.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.seed)
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=self.generator)  # [B, 1]
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def load_torch(
    files: ModelFiles,
    *,
    position_mode: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> LoadedModel:
    """The model in these files on a device, the CPU unless told otherwise. `dtype` defaults to float32 on the CPU and
    to bfloat16 elsewhere; the tensors of a GGUF pair are dequantised to it."""
    device = checked_device(device)
    options = {"dtype": checked_dtype(dtype, device)}
    if device.type != "cpu":
        options["device_map"] = {"": device}
    if files.model.is_dir():
        config, tokenizer = folder_config(files.model), open_tokenizer(files.model)
        if position_mode is not None:
            config = replace(config, vision=replace(config.vision, position_mode=position_mode))
            options["vit_position_mode"] = position_mode
        check_vocabulary(files.model, tokenizer, config)
        source = files.model
    else:
        config, tensors, tokenizer = open_pair(files, position_mode=position_mode)
        if config.vision is None:
            raise InputError(f"{files.model} is a language file alone; the torch backend wants the projector as well")
        check_vocabulary(files.model, tokenizer, config)
        source = None
        options["config"] = MiniCPMVConfig.from_model_config(config)
        options["state_dict"] = official_state(config, *tensors, options["dtype"])
    with no_progress_bars():
        model = MiniCPMV.from_pretrained(source, **options).eval()
    return LoadedModel(files, config, tokenizer, TorchGenerator(model, config), str(model.device))


def as_loaded(model: MiniCPMV, tokenizer: Tokenizer | PreTrainedTokenizerBase | None = None) -> LoadedModel:
    """What `Chat` wants, around a model that is in memory. Without a tokenizer it is read from the model's folder."""
    folder = Path(model.name_or_path) if model.name_or_path else None
    if tokenizer is None:
        if folder is None or not folder.is_dir():
            raise InputError("the model was not loaded from a folder of this machine, so give the tokenizer as well")
        tokenizer = open_tokenizer(folder)
    config, tokenizer = model.config.model_config(folder and preprocessor_values(folder)), shared_tokenizer(tokenizer)
    check_vocabulary(folder or "the tokenizer given", tokenizer, config)
    return LoadedModel(None, config, tokenizer, TorchGenerator(model, config), str(model.device))


def folder_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint in the official layout."""
    return official_config(read_json(folder / "config.json"), preprocessor_values(folder))


def preprocessor_values(folder: Path) -> dict | None:
    """What the preprocessor_config.json of a folder says, None if there is none."""
    path = folder / "preprocessor_config.json"
    return read_json(path) if os.path.exists(path) else None


def official_state(
    config: ModelConfig, language: dict[str, Tensor], vision: dict[str, Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF pair under official names. One after another, so that float32 is never there of all."""
    language = dict(language)
    factors = language.pop(ROPE_FACTORS, None)
    if factors is not None and (factors.dequantize() != 1).any():
        raise ModelFileError(
            "the language file scales RoPE by factors, which the cpu backend computes and torch does not"
        )
    heads = config.llm.num_attention_heads, config.llm.num_key_value_heads
    state = {}
    for name, tensor in language.items():
        for official, array in from_gguf_language({name: tensor.dequantize()}, *heads).items():
            state[official] = torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
    state.setdefault("llm.lm_head.weight", state["llm.model.embed_tokens.weight"])
    arrays = {name: tensor.dequantize() for name, tensor in vision.items()}
    for official, array in from_gguf_vision(arrays, config.family.tower).items():
        state[official] = torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
    return state


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device of this name; InputError says what this machine has if it has no such one."""
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    there += ["mps"] * torch.backends.mps.is_available()
    try:
        found = torch.device("cpu" if device is None else device)
    except RuntimeError:
        found = None
    if found is None or not {str(found), f"{found}:0"} & {*there}:
        raise InputError(
            f"there is no device {str(device)!r} for torch {torch.__version__} on this machine; there is "
            f"{', '.join(there)}"
        )
    return found


def checked_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The number type to compute in."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.float16, torch.bfloat16):
        raise InputError(f"dtype is {dtype!r}; float32, float16 or bfloat16 is wanted")
    return found


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing on standard error while it loads."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
