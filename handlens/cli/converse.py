"""`handlens chat`: a conversation about images in the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from handlens.cli.opening import answer, open_chat, open_pictures, tell_if_cut
from handlens.cli.options import ModelOptions, SamplingOptions, System
from handlens.cli.terminal import print_streamed, tell
from handlens.errors import HandlensError, InputError

if TYPE_CHECKING:
    from PIL import Image

    from handlens.chat import Chat
    from handlens.engine.sampling import SamplingParams

EXAMPLES = """
\b
Examples:
  handlens chat photo.jpg
  handlens chat --model ggml-model-Q4_K_M.gguf --system "Answer in one sentence."
  printf 'What is this?\\nWhat colour is it?\\n' | handlens chat photo.jpg

\b
In the conversation:
  /image PATH    add an image to the next message
  /new           start over
  /system TEXT   instructions that stand before the conversation; without TEXT: none
  /help          this list
  /quit, Ctrl-D  leave
  Ctrl-C         stop the answer; what has come of it stays in the conversation
"""

PROMPT = "> "
HISTORY_LINES = 1000


def converse(
    image: Annotated[Path | None, typer.Argument(metavar="IMAGE", help="Image file to talk about.")] = None,
    *,
    system: System = "",
    no_history: Annotated[bool, typer.Option("--no-history", help="Do not keep what is typed in a file.")] = False,
    model_options: ModelOptions,
    sampling: SamplingOptions,
) -> None:
    """Talk about images in the terminal. Questions on a pipe are read line by line.

    What is typed in a terminal is kept in $XDG_STATE_HOME/handlens/history (~/.local/state/handlens/history), which
    nobody else can read; answers and images are not kept.
    """
    params = sampling.params()
    pictures = open_pictures([image] if image else [], model_options)
    chat = open_chat(model_options)
    conversation = Conversation(chat, params, model_options, system, pictures)
    if sys.stdin.isatty():
        tell("Ask about the image. /help lists the commands, Ctrl-D leaves.")
    with line_editing(None if no_history else history_file()):
        while conversation.goes_on:
            try:
                line = read_line()
                if line is None:
                    break
                conversation.take(line.strip())
            except KeyboardInterrupt:
                if not sys.stdin.isatty():
                    raise
                tell("")
                tell("(Ctrl-D or /quit leaves)")


@dataclass
class Conversation:
    """The turns so far, the images that go with the next one, and what can be done in between."""

    chat: "Chat"
    params: "SamplingParams"
    options: ModelOptions
    system: str
    pictures: list["Image.Image"]
    messages: list[dict[str, Any]] = field(default_factory=list)
    goes_on: bool = True

    def take(self, line: str) -> None:
        """Acts on one line: a command or a question. An error is told, and the conversation stays as it was."""
        name, _, rest = line.partition(" ")
        try:
            if name in COMMANDS:
                COMMANDS[name](self, rest.strip())
            elif name.startswith("/"):
                raise InputError(f"there is no command {name}; /help lists them")
            elif line:
                self.ask(line)
        except (HandlensError, MemoryError) as error:
            tell(f"handlens: {error or 'there is not enough memory for this'}")

    def ask(self, question: str) -> None:
        """Prints the answer and remembers the turn. A turn without any answer is left out."""
        turn = {"role": "user", "content": [*self.pictures, question]}
        self.pictures = []
        said: list[str] = []
        try:
            print_streamed(answer(self.chat, [*self.messages, turn], self.params, self.system), said)
            tell_if_cut(self.chat, self.params, self.options)
        except KeyboardInterrupt:
            tell("(stopped)")
            if not said:
                return
        self.messages += [turn, {"role": "assistant", "content": "".join(said)}]

    def add_image(self, path: str) -> None:
        """Adds an image to the next message; the path may have the quotes that terminals add to a dropped file."""
        if not path:
            raise InputError("/image wants the path of an image file")
        self.pictures += open_pictures([Path(path.strip("'\"")).expanduser()], self.options)
        width, height = self.pictures[-1].size
        tell(f"(image of {width}x{height} pixels, for the next message)")

    def start_over(self, _: str) -> None:
        """Forgets all turns and images; the system prompt stays."""
        self.messages, self.pictures = [], []
        tell("(a new conversation)")

    def set_system(self, text: str) -> None:
        """Changes the system prompt from the next answer on."""
        self.system = text
        tell("(system prompt set)" if text else "(no system prompt)")

    def help(self, _: str) -> None:
        """Lists the commands."""
        for line in EXAMPLES.partition("In the conversation:\n")[2].splitlines():
            tell(line)

    def quit(self, _: str) -> None:
        """Ends the conversation."""
        self.goes_on = False


COMMANDS = {
    "/image": Conversation.add_image,
    "/new": Conversation.start_over,
    "/system": Conversation.set_system,
    "/help": Conversation.help,
    "/quit": Conversation.quit,
}


def read_line() -> str | None:
    """The next line, None at the end of the input. Only people are prompted."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        try:
            return input(PROMPT)
        except EOFError:
            print(file=sys.stderr)
            return None
    if sys.stdin.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline() or None


def history_file() -> Path:
    """Where typed lines are kept, after the XDG base directory specification."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "handlens" / "history"


@contextmanager
def line_editing(history: Path | None) -> Iterator[None]:
    """Lines can be edited and recalled while the block runs, and are kept in the file if one is given."""
    try:
        import readline
    except ImportError:  # Windows; some builds of Python
        yield
        return
    if history is None or not sys.stdin.isatty():
        yield
        return
    with suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        try:
            history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            history.touch(mode=0o600)  # private before anything is in it
            history.chmod(0o600)
            readline.write_history_file(history)
        except OSError as error:
            tell(f"handlens: what was typed cannot be kept in {history}: {error.strerror}")
