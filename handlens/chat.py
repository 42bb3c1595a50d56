"""Questions in, text out: what every door (command line, server, pages, evaluation) calls.

Tokens become text in three layers of one loop: `generator.generate` yields ids, `run` yields text, `reply` joins it.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from handlens.backend import Progress
from handlens.decode import Limits
from handlens.engine.cache import ImageCache
from handlens.engine.loops import until_loop
from handlens.engine.sampling import SamplingParams
from handlens.errors import ContextError, InputError
from handlens.looking import answer_by_things
from handlens.naming import Names
from handlens.processor import Inputs, Processor, as_messages
from handlens.reading import Texts, answer_by_lines
from handlens.tokenizer import StreamDecoder
from handlens.weights import LoadedModel, load_model

log = logging.getLogger("handlens")


class Generator(Protocol):
    """Anything that turns inputs into ids: `engine.Engine` on the device side, `model.generator.TorchGenerator` where
    PyTorch computes."""

    images: ImageCache

    def generate(
        self, inputs: Inputs, params: SamplingParams, stop_ids: tuple[int, ...], progress: Progress | None = None
    ) -> Iterator[int]: ...


def load(
    model: str | Path | None = None,
    mmproj: str | Path | None = None,
    *,
    context_length: int | None = None,
    position_mode: str | None = None,
    backend: str | None = None,
    device: Any = None,
    dtype: Any = None,
    threads: int | None = None,
    vision_precision: str | None = None,
    low_memory: bool = False,
    cache_dir: str | Path | None = None,
    prefix_cache_bytes: int = 1 << 30,
    limits: Limits = Limits(),
) -> "Chat":
    """A model, ready to be asked. Without a path it is the one that ships with handlens.

    `model` is a GGUF file, a folder with one, or a folder with safetensors in the official layout; `mmproj` is the
    projector file, looked for beside the model when it is not given. `context_length` defaults to what the model was
    made for, `position_mode` to the family's (see docs/faithfulness.md). `backend="torch"` lets PyTorch compute, and so
    does a `device` other than "cpu", such as "cuda" (see docs/pytorch.md).

    The backend cpu has more: `threads` compute, by default one for each physical core; the vision tower computes in
    the `vision_precision` "bf16", "int8" or "f32", by default bf16 where the processor multiplies it, int8 where it
    has dot products of bytes (never for the shipped model) and f32 elsewhere; with `low_memory` its weights are in
    memory only while images are encoded; vectors of images are kept in the folder `cache_dir`, up to 1 GiB
    (docs/python.md says what they tell), and weights as the kernels want them, so that the next start is faster;
    `prefix_cache_bytes` of keys and values, at most, serve later requests that begin alike.
    """
    loaded = load_model(
        model,
        mmproj,
        position_mode=position_mode,
        backend=backend,
        device=device,
        dtype=dtype,
        threads=threads,
        vision_precision=vision_precision,
        low_memory=low_memory,
        cache_dir=cache_dir,
        prefix_cache_bytes=prefix_cache_bytes,
    )
    return Chat(loaded, context_length=context_length, limits=limits)


class Chat:
    """One loaded model and the methods to ask it. Many threads may ask at once; the device side computes their answers
    together."""

    def __init__(self, model: LoadedModel, *, context_length: int | None = None, limits: Limits = Limits()):
        self.model = model
        self.config = model.config
        self.tokenizer = model.tokenizer
        self.generator: Generator = model.generator
        self.processor = Processor(model.config, model.tokenizer, limits)
        longest = model.config.llm.max_position_embeddings
        if context_length is not None and not 1 <= context_length <= longest:
            raise InputError(f"context_length is {context_length}; this model reads from 1 to {longest} tokens")
        self.context_length = context_length or longest
        self.texts = Texts()
        self.names = Names(model)

    def stream(
        self,
        msgs: Any,
        params: SamplingParams = SamplingParams(),
        *,
        system_prompt: str = "",
        progress: Progress | None = None,
        by_lines: bool | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer as they come, whole characters only. The request is checked before this returns.

        `msgs` is a list of {"role": "user" or "assistant", "content": text or a list of texts and images}. With
        `by_lines`, by default for models that read lines better than pages, the text of an image is read first and
        the answer comes out of it where it can (reading.py); where there is none, things are named, counted and found
        (looking.py).
        """
        inputs = self.prepare(msgs, params, system_prompt=system_prompt)
        return self._answer(inputs, msgs, params, system_prompt, progress, by_lines)

    def reply(
        self,
        msgs: Any,
        params: SamplingParams = SamplingParams(),
        *,
        system_prompt: str = "",
        by_lines: bool | None = None,
    ) -> str:
        """The whole answer."""
        return "".join(self.stream(msgs, params, system_prompt=system_prompt, by_lines=by_lines))

    def _answer(
        self,
        inputs: Inputs,
        msgs: Any,
        params: SamplingParams,
        system_prompt: str,
        progress: Progress | None = None,
        by_lines: bool | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer: out of the text of the image or what its things are, where that is wanted and tells, or
        else to the inputs."""
        pieces = None
        if inputs.images and self.reads_by_lines(by_lines):
            pieces = answer_by_lines(self, msgs, params, system_prompt, progress) or answer_by_things(self, msgs)
        yield from self.run(inputs, params, progress) if pieces is None else pieces

    def reads_by_lines(self, wanted: bool | None = None) -> bool:
        """Whether images are read line by line: what is wanted, or else what suits the model."""
        return self.config.family.reads_lines if wanted is None else wanted

    def prepare(
        self,
        msgs: Any,
        params: SamplingParams = SamplingParams(),
        *,
        system_prompt: str = "",
        max_input_tokens: int | None = None,
    ) -> Inputs:
        """The model's inputs for a conversation; ContextError if prompt and answer together do not fit."""
        room = self.context_length - params.max_new_tokens
        if room < 1:
            raise ContextError(
                f"an answer of up to {params.max_new_tokens} tokens leaves no room for the prompt in a context of "
                f"{self.context_length}; ask for fewer new tokens or raise the context length"
            )
        if system_prompt:
            msgs = [{"role": "system", "content": system_prompt}, *as_messages(msgs)]
        return self.processor(msgs, max_tokens=min(room, max_input_tokens or room))

    def look(self, image: Image.Image) -> None:
        """Encodes an image ahead of the requests about it alone, which find its vectors."""
        self.generator.images.encode([self.processor.cut(image)])

    def run(
        self, inputs: Inputs, params: SamplingParams, progress: Progress | None = None, *, warns: bool = True
    ) -> Iterator[str]:
        """Pieces of the answer to prepared inputs. Where it ends because it only repeated itself, a warning says so."""
        ids = self.generator.generate(inputs, params, self.processor.stop_ids, progress)
        if self.config.family.ends_loops:
            ids = until_loop(ids, warns)
        return stripped(until_stop(self._text(ids), params.stop))

    def _text(self, ids: Iterable[int]) -> Iterator[str]:
        decoder = StreamDecoder(self.tokenizer, shown=self.processor.shown_ids)
        for token in ids:
            if text := decoder.push(token):
                yield text
        if text := decoder.flush():
            yield text

    def chat(
        self,
        image: Any = None,
        msgs: Any = None,
        tokenizer: Any = None,
        processor: Any = None,
        max_new_tokens: int = 1024,
        sampling: bool = True,
        max_inp_length: int | None = None,
        system_prompt: str = "",
        stream: bool = False,
        **options,
    ) -> str | Iterator[str]:
        """The answer under the names of the published model's `chat`, so that its scripts run.

        `sampling=False` is beam search (3 beams, repetition penalty 1.2). `tokenizer` and `processor` are accepted and
        not needed. Unlike the original: unknown options raise, an input that is too long raises instead of being cut,
        a "!" is never lost from an answer, and a stream may come from beam search (in one piece, at its end).
        """
        if image is not None:
            msgs = _with_image(image, as_messages([] if msgs is None else msgs))
        if not sampling:
            ignored = {"temperature", "top_p", "top_k", "seed"} & options.keys()
            if ignored:
                raise InputError(f"{', '.join(sorted(ignored))} do nothing with sampling=False, which is beam search")
            options = {"temperature": 0, "num_beams": 3, "repetition_penalty": 1.2, **options}
        elif options.get("num_beams", 1) != 1:
            raise InputError(f"num_beams={options['num_beams']} is beam search; it goes with sampling=False")
        params = SamplingParams(max_new_tokens=max_new_tokens, **options)
        inputs = self.prepare(msgs, params, system_prompt=system_prompt, max_input_tokens=max_inp_length)
        pieces = self._answer(inputs, msgs, params, system_prompt)
        return pieces if stream else "".join(pieces)

    def eval(self) -> "Chat":
        """This model; it has no training mode."""
        return self

    def to(self, device: Any = None, dtype: Any = None) -> "Chat":
        """This model, which stays where it was loaded, in its precision; says so if another device is asked for."""
        here = self.model.device
        if device is not None and str(device) not in (here, here.partition(":")[0]):
            log.warning("this model was loaded to run on %s; load it with device=%r for another", here, str(device))
        return self


def _with_image(image: Any, msgs: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with the image before the text of the first one, as the original's `image=` does."""
    if not msgs:
        raise InputError("image= was given without messages; pass msgs=[{'role': 'user', 'content': question}]")
    first = msgs[0]
    if not isinstance(first["content"], str):
        raise InputError("image= goes before a text, but the first message holds a list: put the image into that list")
    return [{**first, "content": [image, first["content"]]}, *msgs[1:]]


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The text up to the first of the `stop` strings, which may begin in one piece and end in a later one."""
    if not stop:
        yield from pieces
        return
    held = ""
    for piece in pieces:
        held += piece
        found = [at for at in (held.find(text) for text in stop) if at >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        # What could still become a stop string is held back.
        keep = max(
            (size for text in stop for size in range(1, len(text)) if held.endswith(text[:size])),
            default=0,
        )
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def stripped(pieces: Iterable[str]) -> Iterator[str]:
    """The text without white space at either end, still piece by piece."""
    held, started = "", False
    for piece in pieces:
        held += piece
        text = held if started else held.lstrip()
        body = text.rstrip()
        if body:
            yield body
            started = True
        held = text[len(body) :]
