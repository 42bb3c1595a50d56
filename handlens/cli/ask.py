"""`handlens ask`: one question about an image, one answer."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handlens.cli.opening import answer, is_cut, notices, open_chat, open_pictures, tell_if_cut
from handlens.cli.options import ByLines, ModelOptions, SamplingOptions, System
from handlens.cli.terminal import print_streamed, put

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
    by_lines: ByLines = None,
    model_options: ModelOptions,
    sampling: SamplingOptions,
) -> None:
    """Ask a question about an image; the answer comes as it is made.

    The same question gets the same answer, unless another --seed is given.
    """
    started = time.perf_counter()
    paths = [image, *(more or [])]
    params = sampling.params()
    pictures = open_pictures(paths, model_options)
    chat = open_chat(model_options)
    loaded = time.perf_counter()
    msgs = [{"role": "user", "content": [*pictures, question]}]
    if not as_json:
        print_streamed(answer(chat, msgs, params, system, by_lines), [])
        tell_if_cut(chat, params, model_options)
        return
    text, first = "", None
    for piece in answer(chat, msgs, params, system, by_lines):
        first = first or time.perf_counter()
        text += piece
    times = {"load": loaded, "first_text": first, "end": time.perf_counter()}
    inputs = chat.prepare(msgs, params, system_prompt=system)  # again, to tell about it: not while somebody waits
    facts = {"answer": text, **about(chat, inputs, paths), "answer_tokens": chat.generator.count}
    facts |= {"cut_off": is_cut(chat, params), "notices": notices(chat.model)}
    facts |= {f"seconds_to_{what}": round(when - started, 3) for what, when in times.items()}
    put(json.dumps(facts, ensure_ascii=False) + "\n")


def about(chat: "Chat", inputs: "Inputs", paths: list[Path]) -> dict[str, Any]:
    """What was asked of which model: names, sizes and counts of tokens."""
    from handlens.images import count_tokens

    config, files = chat.config, chat.model.files
    images = [
        {
            "file": str(path),
            "size": list(image.size),
            "grid": list(image.plan.grid) if image.plan.grid else None,
            "slices": len(image.plan.sizes),
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
