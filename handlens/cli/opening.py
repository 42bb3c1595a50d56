"""Brings the model and the images of a command into memory, and says what there is to say about them."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlens.cli.options import ModelOptions
from handlens.cli.terminal import tell, working

if TYPE_CHECKING:
    from PIL import Image

    from handlens.chat import Chat, Generator
    from handlens.decode import Limits
    from handlens.engine.sampling import SamplingParams
    from handlens.weights import LoadedModel

DEFAULT = (
    "no model was named, so the small one that ships with handlens answers: it reads printed text line by line, looks "
    "up in it what is asked for, names and counts simple things, and mostly guesses at what else has to be seen "
    "(docs/default-model.md). Load the real one, MiniCPM-Llama3-V 2.5 with 8 billion parameters, with --model "
    "FILE.gguf, its mmproj file beside it or given with --mmproj."
)

#: The name that stands for an image on standard input.
STDIN = Path("-")


def limits(options: ModelOptions) -> "Limits":
    """How large images may be."""
    from handlens.decode import Limits

    if options.max_pixels is None:
        return Limits()
    return Limits(max_pixels=options.max_pixels, max_total_pixels=max(options.max_pixels, Limits.max_total_pixels))


def open_chat(options: ModelOptions) -> "Chat":
    """The model that the options name, its notices told."""
    with working("loading the model"):
        from handlens.chat import load

        chat = load(
            options.model,
            options.mmproj,
            context_length=options.context_length,
            position_mode=options.position_mode and options.position_mode.value,
            backend=options.backend and options.backend.value,
            device=options.device,
            threads=options.threads,
            vision_precision=options.vision_precision and options.vision_precision.value,
            low_memory=options.low_memory,
            cache_dir=options.cache_dir,
            limits=limits(options),
        )
    chat.generator = Counted(chat.generator)
    if not options.quiet:
        for notice in notices(chat.model):
            tell(f"handlens: {notice}")
    return chat


def notices(model: "LoadedModel") -> list[str]:
    """What a person should know about a model before believing its answers."""
    return [DEFAULT] * model.files.is_default + list(model.config.notices)


def open_pictures(paths: Sequence[Path], options: ModelOptions) -> list["Image.Image"]:
    """The images in files, or on standard input for the path `-`, checked as one request."""
    from handlens.decode import check_request, open_image

    allowed = limits(options)
    pictures = []
    for path in paths:
        # One byte more than allowed is enough to refuse an endless stream.
        pictures.append(open_image(sys.stdin.buffer.read(allowed.max_bytes + 1) if path == STDIN else path, allowed))
        check_request(pictures, allowed)
    return pictures


def answer(
    chat: "Chat", msgs: list[dict[str, Any]], params: "SamplingParams", system: str = "", by_lines: bool | None = None
) -> Iterator[str]:
    """The pieces of the answer; until the first comes, a terminal shows what is being done. The request is checked
    before this returns."""
    seen = any(not isinstance(part, str) for msg in msgs for part in msg["content"])
    unit = "lines" if chat.reads_by_lines(by_lines) else "slices"
    with working("looking at the image" if seen else "reading the prompt", unit) as progress:
        pieces = chat.stream(msgs, params, system_prompt=system, progress=progress, by_lines=by_lines)
        first = next(pieces, "")
    return chain([first], pieces)


class Counted:
    """A generator of answers that counts the tokens of the latest one."""

    def __init__(self, generator: "Generator"):
        self.generator = generator
        self.images = generator.images
        self.count = 0

    def generate(self, *request) -> Iterator[int]:
        """The ids of the answer."""
        self.count = 0
        for token in self.generator.generate(*request):
            self.count += 1
            yield token


def is_cut(chat: "Chat", params: "SamplingParams") -> bool:
    """Whether the latest answer broke off because it had as many tokens as were allowed."""
    return chat.generator.count >= params.max_new_tokens


def tell_if_cut(chat: "Chat", params: "SamplingParams", options: ModelOptions) -> None:
    """Says so if the latest answer is not complete."""
    if is_cut(chat, params) and not options.quiet:
        tell(f"handlens: the answer was cut off after {params.max_new_tokens} tokens; --max-new-tokens N allows more")
