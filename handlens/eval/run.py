"""Asks the questions of suites and keeps the answers, so that a run that was stopped goes on where it was.

Whoever answers is a `Reader`: a model, or one of the peers (peers.py). Answers lie in a JSONL file for each reader,
named after its digest, one row an item, keyed by the item's digest and the most tokens of an answer.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from handlens.chat import Chat
from handlens.decode import open_image
from handlens.engine.sampling import SamplingParams
from handlens.errors import ContextError, ImageError, InputError
from handlens.eval.suite import Item, Suite
from handlens.reading import read_by_lines
from handlens.weights import ModelFiles


class Reader(Protocol):
    """Who answers. `digest` names the weights, programs and settings that the answers depend on."""

    name: str
    digest: str

    def answers(self, suite: Suite, item: Item) -> bool:
        """Whether this reader takes part in an item."""

    def answer(self, suite: Suite, item: Item) -> str: ...

    def how(self, suite: Suite) -> str:
        """How items of a suite are shown, where that is not as they are: answers are kept for each way."""


@dataclass(frozen=True)
class Answered:
    """An item with its answer and the seconds that it took."""

    item: Item
    answer: str
    seconds: float


class Model:
    """A model as a reader: greedy, each image with its question and nothing else. With `by_lines` (by default where the
    family reads lines) it is shown one by one the lines of pictures that hold more than one (reading.py)."""

    def __init__(self, chat: Chat, name: str, settings: str = "", by_lines: bool | None = None):
        self.chat, self.name = chat, name
        self.by_lines = chat.reads_by_lines(by_lines)
        self.digest = digest(chat.model.files, settings)

    def answers(self, suite: Suite, item: Item) -> bool:
        return True

    def answer(self, suite: Suite, item: Item) -> str:
        image = open_image(item.image)
        by_lines = bool(self.how(suite))
        if by_lines and suite.transcribes and (text := "".join(read_by_lines(self.chat, image))):
            return text
        msgs = [{"role": "user", "content": [image, item.question]}]
        try:
            params = SamplingParams.greedy(max_new_tokens=self._room(msgs, suite))
            return self.chat.reply(msgs, params, by_lines=by_lines and suite.asks)
        except (ContextError, ImageError):
            return ""  # an item that is too much for this model is one that it gets wrong

    def how(self, suite: Suite) -> str:
        return "by lines" if self.by_lines and (suite.transcribes or suite.asks) else ""

    def _room(self, msgs: list, suite: Suite) -> int:
        taken = len(self.chat.prepare(msgs, SamplingParams.greedy(max_new_tokens=1)).input_ids)
        return max(1, min(suite.max_new_tokens, self.chat.context_length - taken))


def digest(files: ModelFiles | None, settings: str = "") -> str:
    """Of the content of a model's files and of how it is set up."""
    if files is None:
        raise InputError("a model that was not loaded from files has no digest to keep its answers by")
    found = hashlib.sha256(settings.encode())
    for path in filter(None, (files.model, files.mmproj)):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as opened:
                    found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()[:32]


def ask(
    reader: Reader, suite: Suite, items: Sequence[Item], folder: Path, tell: Callable[[int, int], None] | None = None
) -> list[Answered]:
    """The answers of a reader to the items that it takes part in; known ones are taken from its file in `folder`."""
    items = [item for item in items if reader.answers(suite, item)]
    path = folder / f"{reader.digest}.jsonl"
    known = {row["key"]: row for row in _rows(path)}
    found = []
    if not items:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        for done, item in enumerate(items, 1):
            key = f"{item.digest()}-{suite.max_new_tokens}{reader.how(suite)}"
            if key not in known:
                start = time.perf_counter()
                answer = reader.answer(suite, item)
                seconds = round(time.perf_counter() - start, 4)
                known[key] = {"key": key, "id": item.id, "reader": reader.name, "answer": answer, "seconds": seconds}
                file.write(json.dumps(known[key], ensure_ascii=False) + "\n")
                file.flush()
            found.append(Answered(item, known[key]["answer"], known[key]["seconds"]))
            if tell:
                tell(done, len(items))
    return found


def _rows(path: Path) -> Iterator[dict]:
    """The rows of a file of answers; one that a stopped run left half written is passed over and asked again."""
    if not path.is_file():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        path.write_bytes(data)
    # Not splitlines: an answer may hold other characters that it takes for the end of a line.
    yield from map(json.loads, data.decode("utf-8").split("\n")[:-1])
