"""`handlens ask`: one question about an image, one answer."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handlens.cli.opening import answer, notices, open_chat, open_pictures
from handlens.cli.options import ModelOptions, SamplingOptions
from handlens.cli.terminal import put

if TYPE_CHECKING:
    from handlens.chat import Chat
    from handlens.processor import Inputs

EXAMPLES = """
\b
Examples:
  handlens ask photo.jpg "What is on the table?"
  handlens ask receipt.png "What is the total?" --model ggml-model-Q4_K_M.gguf
  handlens ask before.png "What has changed?" --image after.png
  curl -s https://example.org/cat.jpg | handlens ask - "What breed is it?" --json
"""

System = Annotated[str, typer.Option("--system", metavar="TEXT", help="Instructions that stand before the conversation.")]


def ask_once(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file, or - for standard input.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")],
    *,
    more: Annotated[
        list[Path] | None, typer.Option("--image", metavar="PATH", help="One more image; may be given several times.")
    ] = None,
    system: System = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object with the answer and facts about it.")
    ] = False,
    model_options: ModelOptions,
    sampling: SamplingOptions,
) -> None:
    """Ask a question about an image; the answer comes as it is made.

    The same question gets the same answer, unless another --seed is given.
    """
    paths = [image, *(more or [])]
    params = sampling.params()
    pictures = open_pictures(paths, model_options)
    chat = open_chat(model_options)
    started = time.perf_counter()
    msgs = [{"role": "user", "content": [*pictures, question]}]
    inputs = chat.prepare(msgs, params, system_prompt=system)
    if as_json:
        counter = chat.generator = Counted(chat.generator)
        text, first = "", None
        for piece in answer(chat, inputs, params):
            first = first or time.perf_counter()
            text += piece
        times = {"seconds_to_first_text": first - started, "seconds": time.perf_counter() - started}
        facts = {"answer": text, **about(chat, inputs, paths), "answer_tokens": counter.count}
        facts |= {name: round(value, 3) for name, value in times.items()}
        put(json.dumps(facts | {"notices": notices(chat.model)}, ensure_ascii=False) + "\n")
        return
    print_streamed(answer(chat, inputs, params))


def print_streamed(pieces: Iterator[str]) -> None:
    """Prints the pieces as they come, and ends the line even if they break off."""
    written = False
    try:
        for piece in pieces:
            put(piece)
            written = True
    finally:
        if written:
            put("\n")


def about(chat: "Chat", inputs: "Inputs", paths: list[Path]) -> dict[str, Any]:
    """What was asked of which model: names, sizes and counts of tokens."""
    from handlens.images import count_tokens

    config, files = chat.config, chat.model.files
    images = [
        {
            "file": str(path),
            "size": list(image.size),
            "grid": list(image.plan.grid) if image.plan.grid else None,
            "slices": len(image.slices),
            "tokens": count_tokens(image.plan, config.resampler.query_num),
        }
        for path, image in zip(paths, inputs.images, strict=True)
    ]
    return {
        "model": {
            "name": files.model.stem,
            "file": str(files.model),
            "mmproj": str(files.mmproj) if files.mmproj else None,
            "family": config.family.name,
        },
        "images": images,
        "image_tokens": sum(image["tokens"] for image in images),
        "prompt_tokens": len(inputs.input_ids),
    }


class Counted:
    """A generator of answers that counts the tokens it passes on."""

    def __init__(self, generator):
        self.generator = generator
        self.count = 0

    def generate(self, *request) -> Iterator[int]:
        """The ids of the answer."""
        for token in self.generator.generate(*request):
            self.count += 1
            yield token
