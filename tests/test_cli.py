"""The command line, as a person or a script sees it: what is printed where, and with which exit code."""

import io
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import handlens
from handlens.chat import load
from handlens.cli import run
from handlens.cli.read import INSTRUCTION
from handlens.cli.reference import page
from handlens.cli.terminal import harmless
from handlens.cpu import ops
from handlens.engine.sampling import SamplingParams
from handlens.gguf import GGUFFile, write_gguf
from tests import tiny

PROGRAM = [sys.executable, "-m", "handlens"]
SHORT = ["--max-new-tokens", "12"]
GREEDY = SamplingParams.greedy(max_new_tokens=12)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Two image files: one that is cut into slices, one that is not."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    paths = []
    for name, shape in (("large.png", (150, 260, 3)), ("small.png", (60, 80, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(folder / name)
        paths.append(folder / name)
    return paths


@pytest.fixture
def cli(capsys):
    """Runs the program in this process: (exit code, standard output, standard error)."""

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def model(tiny_model) -> list[str]:
    """The options that name the tiny model."""
    return ["--model", str(tiny_model.model)]


def user(*content):
    return {"role": "user", "content": list(content)}


def changed(source: Path, target: Path, metadata=(), without=()) -> Path:
    """A copy of a GGUF file with other metadata and fewer tensors."""
    with GGUFFile(source) as file:
        keys = {key: (file.types[key], value) for key, value in file.metadata.items()} | dict(metadata)
        write_gguf(target, keys, {name: tensor for name, tensor in file.tensors.items() if name not in without})
    return target


# ask


def test_ask_prints_the_answer_and_nothing_else(cli, chat, model, pictures):
    answer = chat.reply([user(pictures[0], "What is this?")], GREEDY)
    assert cli("ask", pictures[0], "What is this?", *model, *SHORT, "--greedy", "-q") == (0, answer + "\n", "")


def test_an_answer_that_is_cut_off_says_so_on_standard_error(cli, model, pictures):
    _, _, told = cli("ask", pictures[1], "What?", *model, *SHORT)
    assert told == "handlens: the answer was cut off after 12 tokens; --max-new-tokens N allows more\n"


def test_the_same_question_gets_the_same_answer_and_another_seed_another_one(cli, model, pictures):
    answers = [
        cli("ask", pictures[1], "What?", *model, *SHORT, "--temperature", "2", *seed)
        for seed in ([], [], ["--seed", "1"])
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


@pytest.mark.parametrize(
    "options, params",
    [
        ("--beams 2", SamplingParams.beam(num_beams=2, max_new_tokens=12)),
        ("--greedy --repetition-penalty 1.3", SamplingParams.greedy(repetition_penalty=1.3, max_new_tokens=12)),
        (
            "--temperature 1.5 --top-p 0.9 --top-k 7 --repetition-penalty 1.1 --seed 5",
            SamplingParams(temperature=1.5, top_p=0.9, top_k=7, repetition_penalty=1.1, seed=5, max_new_tokens=12),
        ),
    ],
)
def test_sampling_options_reach_the_engine(cli, chat, model, pictures, options, params):
    answer = chat.reply([user(pictures[1], "Why?")], params)
    assert cli("ask", pictures[1], "Why?", *model, *SHORT, *options.split())[1] == answer + "\n"


def test_more_images_and_a_system_prompt_reach_the_prompt(cli, chat, model, pictures):
    answer = chat.reply([user(*pictures, "Which?")], GREEDY, system_prompt="Be brief.")
    options = ["--image", pictures[1], "--system", "Be brief.", "--greedy"]
    assert cli("ask", pictures[0], "Which?", *options, *model, *SHORT)[1] == answer + "\n"


def test_the_position_mode_reaches_the_vision_tower(cli, model, tiny_model, pictures):
    by_grid = load(tiny_model.model, position_mode="grid_2d").reply([user(pictures[0], "What?")], GREEDY)
    option = ["--position-mode", "grid_2d", "--greedy"]
    assert cli("ask", pictures[0], "What?", *model, *SHORT, *option)[1] == by_grid + "\n"
    assert cli("ask", pictures[0], "What?", *model, *SHORT, "--greedy")[1] != by_grid + "\n"


def test_an_image_may_come_on_standard_input(cli, model, pictures, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pictures[0].read_bytes())))
    assert cli("ask", "-", "What?", *model, *SHORT) == cli("ask", pictures[0], "What?", *model, *SHORT)


def test_a_model_is_found_by_its_name_below_the_models_folder(cli, model, tiny_model, pictures, monkeypatch):
    monkeypatch.setenv("HANDLENS_MODELS", str(tiny_model.model.parent.parent))
    named = cli("ask", pictures[1], "What?", "--model", tiny_model.model.parent.name, *SHORT)
    assert named == cli("ask", pictures[1], "What?", *model, *SHORT)


def test_json_tells_what_was_asked_and_what_it_took(cli, chat, model, tiny_model, pictures):
    inputs = chat.prepare([user(pictures[0], "What?")], GREEDY)
    code, out, _ = cli("ask", pictures[0], "What?", *model, *SHORT, "--greedy", "--json")
    facts = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert facts["answer"] == chat.reply([user(pictures[0], "What?")], GREEDY)
    assert facts["model"] == {
        "name": "tiny",
        "file": str(tiny_model.model),
        "mmproj": str(tiny_model.mmproj),
        "family": "minicpm-llama3-v-2.5",
    }
    cols, rows = inputs.images[0].plan.grid
    tokens = (96 + 2) * (cols * rows + 1) + 2 + rows - 1
    assert facts["images"] == [
        {
            "file": str(pictures[0]),
            "size": [260, 150],
            "grid": [cols, rows],
            "slices": cols * rows + 1,
            "tokens": tokens,
        }
    ]
    assert facts["image_tokens"] == tokens
    assert facts["prompt_tokens"] == len(inputs.input_ids)
    assert facts["answer_tokens"] == 12 and facts["cut_off"] is True and facts["notices"] == []
    assert 0 < facts["seconds_to_load"] < facts["seconds_to_first_text"] <= facts["seconds_to_end"]


def test_the_shipped_model_says_what_it_is_and_how_to_load_another(cli, pictures):
    code, _, told = cli("ask", pictures[1], "What?", "--max-new-tokens", "2")
    assert code == 0
    assert told.count("small one that ships") == 1 and "--model" in told and "8 billion parameters" in told
    assert cli("ask", pictures[1], "What?", "--max-new-tokens", "2", "--quiet")[2] == ""


# errors


@pytest.mark.parametrize(
    "command, says",
    [
        ("ask {image}.missing What? {model}", "there is no file"),
        ("ask {text} What? {model}", "not in a format that is accepted"),
        ("ask {image} What? --model nowhere", "nowhere"),
        ("ask {image} What? --model {text}", "not a GGUF file"),
        ("ask {image} What? --mmproj {text}", "without a model"),
        ("ask {image} What? {model} --temperature -1", "temperature is -1.0"),
        ("ask {image} What? {model} --beams 0", "num_beams is 0"),
        ("ask {image} What? {model} --greedy --beams 3", "exclude each other"),
        ("ask {image} What? {model} --greedy --top-k 3", "cannot go with --top-k"),
        ("ask {image} What? {model} --max-pixels 100", "at most 100 are accepted"),
        ("ask {image} What? {model} --max-pixels 0", "max_pixels is 0"),
        ("ask {image} What? {model} --context-length 99999", "from 1 to 4096"),
        ("ask {image} What? {model} --context-length 1200", "image(s) take"),
        ("ask {image} What? {model} --position-mode guess", "--position-mode"),
        ("ask {image} {model}", "QUESTION"),
        ("ask {image} What? --modle x", "--modle"),
        ("chat {image}.missing {model}", "there is no file"),
        ("read {image} {model} --max-new-tokens 0", "max_new_tokens is 0"),
        ("read {image} {model} --out {image}.missing/page.md", "there is no folder"),
        ("info nowhere", "nowhere"),
        ("dance", "dance"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(cli, model, pictures, command, says):
    values = {"image": str(pictures[0]), "text": __file__, "model": " ".join(model)}
    code, out, told = cli(*command.format(**values).split())
    assert (code, out) == (2, "")
    assert says in told and told.startswith("handlens: ") and told.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["--debug", "ask", "none.png", "What?"], ["ask", "none.png", "What?", "--debug"]]
)
def test_debug_shows_the_traceback_before_or_after_the_command(cli, arguments):
    code, _, told = cli(*arguments)
    assert code == 2
    assert told.startswith("Traceback") and told.splitlines()[-1].startswith("handlens: there is no file 'none.png'")


def test_an_unexpected_error_is_one_line_and_exit_code_1(cli, monkeypatch):
    class CutWire(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, _):
            raise RuntimeError("the wire is cut")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(CutWire())))
    code, out, told = cli("ask", "-", "What?")
    assert (code, out) == (1, "")
    assert told.startswith("handlens: unexpected RuntimeError: the wire is cut.") and told.count("\n") == 1
    assert "--debug" in told
    assert cli("--debug", "ask", "-", "What?")[2].startswith("Traceback")


def test_a_line_about_a_hostile_file_holds_no_control_characters(cli):
    code, _, told = cli("ask", "a\x1b]0;owned\x07\nb.png", "What?")
    assert code == 2 and told.count("\n") == 1
    assert "\x1b" not in told and "\x07" not in told


def test_a_closed_pipe_ends_the_program_quietly(model, pictures):
    command = [*PROGRAM, "ask", str(pictures[1]), "What?", *model, "--max-new-tokens", "2000", "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(model, pictures):
    command = [*PROGRAM, "ask", str(pictures[1]), "What?", *model, *SHORT]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert "handlens: [Errno 28] No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert done.returncode != 0


def test_ctrl_c_ends_a_long_answer_at_once(model, pictures):
    command = [*PROGRAM, "ask", str(pictures[1]), "What?", *model, "--max-new-tokens", "3000", "--temperature", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(1)
    sent = time.perf_counter()
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.perf_counter() - sent < 3
    assert (first + rest).endswith(b"\n") and told == b""


# chat


def talk(model, lines, *options, image=None) -> tuple[int, str, str]:
    """A conversation on pipes: (exit code, standard output, standard error)."""
    command = [*PROGRAM, "chat", *([str(image)] if image else []), *model, *SHORT, "--greedy", "-q", *options]
    done = subprocess.run(command, input="\n".join([*lines, ""]).encode(), capture_output=True, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_programs_that_tests_start_compute_with_the_kernels_of_the_tests():
    code = "from handlens.cpu import ops; print([ops.__file__, ops.native and ops.native.__file__])"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert started.strip() == str([ops.__file__, ops.native and ops.native.__file__])


def test_a_conversation_keeps_its_turns_and_images(chat, model, pictures):
    msgs = [user(pictures[0], "What is this?")]
    first = chat.reply(msgs, GREEDY)
    msgs += [{"role": "assistant", "content": first}, user(pictures[1], "And this?")]
    second = chat.reply(msgs, GREEDY)
    lines = ["What is this?", f"/image {pictures[1]}", "And this?", "/quit", "unread"]
    said = "(image of 80x60 pixels, for the next message)\n"
    assert talk(model, lines, image=pictures[0]) == (0, f"{first}\n{second}\n", said)


def test_an_error_leaves_its_turn_out_and_the_conversation_goes_on(chat, model):
    first = chat.reply([user("Hello.")], GREEDY)
    second = chat.reply([user("Hello."), {"role": "assistant", "content": first}, user("Why?")], GREEDY)
    code, out, told = talk(model, ["Hello.", "too long " * 4000, "/image none.png", "/dance", "Why?"])
    assert (code, out) == (0, f"{first}\n{second}\n")
    errors = told.splitlines()
    assert len(errors) == 3
    assert "tokens" in errors[0] and "none.png" in errors[1] and "no command /dance" in errors[2]


def test_new_starts_over_and_system_changes_the_instructions(chat, model):
    plain = chat.reply([user("Hello.")], GREEDY)
    guided = chat.reply([user("Hello.")], GREEDY, system_prompt="Be brief.")
    _, out, _ = talk(model, ["Hello.", "/new", "/system Be brief.", "Hello.", "/new", "/system", "Hello."])
    assert out == f"{plain}\n{guided}\n{plain}\n"
    assert plain != guided


SHOW_CURSOR = "\x1b[?25h"


class Terminal:
    """A program on a pseudo-terminal of its own."""

    def __init__(self, command: list[str], stdout=None, **environment):
        pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
        self.near, far = pty.openpty()
        modes = termios.tcgetattr(far)
        modes[3] |= termios.NOFLSH  # Ctrl-C would throw away what the program has just said
        termios.tcsetattr(far, termios.TCSANOW, modes)
        self.process = subprocess.Popen(
            command,
            stdin=far,
            stdout=stdout or far,
            stderr=far,
            preexec_fn=self._take_terminal,
            env={**os.environ, "TERM": "xterm", **environment},
        )
        os.close(far)
        self.seen = ""

    @staticmethod
    def _take_terminal():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def type(self, text: str) -> None:
        os.write(self.near, text.encode())

    def wait_for(self, text: str, typing: str = "") -> None:
        """Reads up to and with `text`, typing something while nothing comes."""
        self._read_until(lambda: text in self.seen, text, typing)
        self.seen = self.seen.partition(text)[2]

    def wait_for_more(self, count: int) -> None:
        """Reads until as many characters have come that nobody waited for."""
        self._read_until(lambda: len(self.seen) >= count, f"{count} characters")

    def _read_until(self, came, what: str, typing: str = "") -> None:
        end = time.monotonic() + 20
        while not came():
            assert time.monotonic() < end, f"{what} did not come; this did: {self.seen[-2000:]!r}"
            if select.select([self.near], [], [], 0.5)[0]:
                self.seen += os.read(self.near, 65536).decode(errors="replace")
            else:
                self.type(typing)

    def close(self) -> int:
        """The exit code; what was still to be read is in `seen`."""
        try:
            while chunk := os.read(self.near, 65536):
                self.seen += chunk.decode(errors="replace")
        except OSError:  # Linux: the other end is closed
            pass
        os.close(self.near)
        return self.process.wait(20)


def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_conversation(model, tmp_path):
    command = [*PROGRAM, "chat", *model, "--max-new-tokens", "3000", "--temperature", "2", "-q"]
    terminal = Terminal(command, XDG_STATE_HOME=str(tmp_path))
    terminal.wait_for("> ")
    terminal.type("Tell me everything.\n")
    terminal.wait_for("everything.\r\n")
    terminal.wait_for(SHOW_CURSOR)  # the end of the progress bar
    terminal.wait_for_more(20)  # part of an answer
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    # Again and again, because Python's readline misses one that comes just before it begins to wait.
    terminal.wait_for("(Ctrl-D or /quit leaves)", typing="\x03")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.close() == 0
    history = tmp_path / "handlens" / "history"
    assert "Tell me everything." in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_no_history_keeps_nothing(model, tmp_path):
    terminal = Terminal([*PROGRAM, "chat", *model, *SHORT, "-q", "--no-history"], XDG_STATE_HOME=str(tmp_path))
    terminal.wait_for("> ")
    terminal.type("A secret.\n")
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.close() == 0
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_on_a_terminal_only_and_leaves_it_as_it_was(chat, model, pictures):
    terminal = Terminal([*PROGRAM, "ask", str(pictures[0]), "What?", *model, *SHORT, "--greedy", "-q"], subprocess.PIPE)
    out = terminal.process.stdout.read().decode()
    assert terminal.close() == 0
    assert out == chat.reply([user(pictures[0], "What?")], GREEDY) + "\n"
    assert "loading the model" in terminal.seen
    hidden, shown = terminal.seen.rfind("\x1b[?25l"), terminal.seen.rfind(SHOW_CURSOR)
    assert 0 <= hidden < shown


def test_a_terminal_gets_no_control_characters_from_an_answer_and_a_pipe_gets_all():
    code = "from handlens.cli.terminal import put; put('a\\x1b[31m\\x9bb\\tc\\r\\n')"
    terminal = Terminal([sys.executable, "-c", code])
    assert terminal.close() == 0
    assert terminal.seen == "a\ufffd[31m\ufffdb\tc\ufffd\r\n"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert piped.stdout.decode() == "a\x1b[31m\x9bb\tc\r\n"


def test_harmless_keeps_every_character_that_is_not_a_control_character():
    text = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x3000), 0x1F600])) + "\n\t"
    assert harmless(text) == text
    assert set(harmless("".join(map(chr, [*range(9), *range(11, 0x20), *range(0x7F, 0xA0)])))) == {"\ufffd"}


# read


def test_read_prints_the_greedy_transcription(cli, chat, model, pictures):
    text = chat.reply([user(pictures[0], INSTRUCTION)], GREEDY)
    assert cli("read", pictures[0], *model, *SHORT, "-q") == (0, text + "\n", "")


def test_read_writes_a_file_whole_and_prints_nothing(cli, chat, model, pictures, tmp_path):
    text = chat.reply([user(pictures[0], f"{INSTRUCTION} The text is in German.")], GREEDY)
    out = tmp_path / "page.md"
    out.write_text("what was there before")
    assert cli("read", pictures[0], *model, *SHORT, "-q", "--lang", "German", "--out", out) == (0, "", "")
    assert out.read_bytes().decode() == text + "\n"
    assert list(tmp_path.iterdir()) == [out]


def test_read_uses_what_room_the_context_has(cli, model, pictures):
    code, _, told = cli("read", pictures[1], *model, "--context-length", "300")
    assert code == 0
    assert "cut off after" in told


def test_read_leaves_the_old_file_when_it_is_stopped(model, pictures, tmp_path):
    out = tmp_path / "page.md"
    out.write_text("what was there before")
    command = [*PROGRAM, "read", str(pictures[0]), *model, "--max-new-tokens", "3000", "--out", str(out)]
    process = subprocess.Popen(command)
    end = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert list(tmp_path.iterdir()) == [out] and out.read_text() == "what was there before"


# info


def report(cli, *arguments) -> tuple[int, dict]:
    code, out, _ = cli("info", *arguments, "--json")
    return code, json.loads(out)


def test_info_tells_what_a_pair_is(cli, tiny_model):
    code, facts = report(cli, tiny_model.model)
    assert code == 0 and facts["usable"] and facts["faults"] == facts["notices"] == []
    assert facts["kind"] == "language file and projector"
    assert facts["family"] == "minicpm-llama3-v-2.5"
    assert facts["language"]["num_hidden_layers"] == 2 and facts["language"]["vocab_size"] == 1042
    assert facts["vision"]["position_mode"] == "reference" and facts["resampler"]["query_num"] == 96
    assert facts["slices"]["scale_resolution"] == 112
    language, projector = facts["files"]
    assert language["path"] == str(tiny_model.model) and projector["path"] == str(tiny_model.mmproj)
    with GGUFFile(tiny_model.model) as file:
        held = sum(tensor.nbytes for tensor in file.tensors.values())
        assert language["types"]["F32"]["bytes"] == held == 4 * language["parameters"]
        assert language["tensors"] == len(file.tensors)
    # 2 layers of keys and values, 2 heads of 64, 4 bytes, 4096 positions
    assert facts["memory"]["full_context"] == 2 * 2 * 2 * 64 * 4 * 4096
    assert facts["memory"]["weights"] == 4 * (language["parameters"] + projector["parameters"])
    assert report(cli, tiny_model.model.parent) == (code, facts)


def test_info_shows_a_table(cli, tiny_model):
    code, out, told = cli("info", tiny_model.model)
    assert (code, told) == (0, "")
    for text in ("MiniCPM-Llama3-V 2.5", "2 layers, width 256", "96 tokens a slice", "4096 tokens", "F32", "usable"):
        assert text in out
    assert "\x1b" not in out


def test_info_without_a_file_tells_about_the_program(cli):
    code, facts = report(cli)
    assert code == 0
    assert facts["handlens"] == handlens.__version__
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["arithmetic"].startswith(f"numpy {np.__version__}") and facts["cpu"]


def test_info_knows_each_file_alone(cli, tiny_model, tmp_path):
    code, facts = report(cli, tiny_model.mmproj)
    assert code == 0 and facts["kind"] == "projector alone" and facts["keys"]["clip.minicpmv_query_num"] == 96
    alone = changed(tiny_model.model, tmp_path / "alone.gguf")
    code, facts = report(cli, alone)
    assert code == 0 and facts["kind"] == "language file alone, which cannot see" and facts["vision"] is None


def test_info_knows_a_checkpoint_folder(cli, tiny_model, tmp_path):
    llm, vision = asdict(tiny_model.config.llm), asdict(tiny_model.config.vision)
    del llm["head_dim"]
    named = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    config = {
        **llm,
        "model_type": "minicpmv",
        "version": "2.5",
        "query_num": 96,
        "drop_vision_last_layer": False,
        "batch_vision_input": True,
        "slice_config": {"scale_resolution": 112, "max_slice_nums": 9},
        "vision_config": {name: vision[name] for name in named} | {"image_size": 980},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text(tiny.tokenizer_json())
    save_file(tiny_model.official, tmp_path / "model.safetensors")
    code, facts = report(cli, tmp_path)
    assert code == 0 and facts["faults"] == [] and facts["kind"] == "checkpoint folder in the official layout"
    pair = report(cli, tiny_model.model)[1]
    assert all(facts[part] == pair[part] for part in ("family", "language", "vision", "resampler", "slices"))


def test_a_corrected_fault_is_a_notice_of_info_and_of_ask(cli, tiny_model, pictures, tmp_path):
    said = {"clip.vision.block_count": ("u32", 1)}
    changed(tiny_model.mmproj, tmp_path / "mmproj.gguf", said)
    language = changed(tiny_model.model, tmp_path / "model.gguf")
    code, facts = report(cli, language)
    assert code == 0 and facts["usable"]
    assert len(facts["notices"]) == 1 and "says 1 vision layers but holds 2" in facts["notices"][0]
    assert "says 1 vision layers but holds 2" in cli("info", language)[1]
    question = ["ask", pictures[1], "What?", "--model", language, *SHORT]
    assert cli(*question)[2].count(facts["notices"][0]) == 1
    assert cli(*question, "--quiet")[2] == ""
    assert json.loads(cli(*question, "--json")[1])["notices"] == facts["notices"]


@pytest.mark.parametrize(
    "which, change, says",
    [
        ("mmproj", {"metadata": {"clip.projector_type": ("str", "mlp")}}, "type 'mlp'"),
        ("mmproj", {"metadata": {"clip.minicpmv_version": ("i32", 3)}}, "MiniCPM-V 2.6"),
        ("mmproj", {"without": ["v.blk.1.attn_q.weight"]}, "v.blk.1.attn_q.weight"),
        ("model", {"without": ["blk.0.ffn_up.weight"]}, "blk.0.ffn_up.weight"),
        ("model", {"metadata": {"llama.feed_forward_length": ("u32", 768)}}, "768"),
        ("model", {"drop": "llama.block_count"}, "llama.block_count"),
    ],
)
def test_what_makes_files_unusable_is_a_fault_and_exit_code_2(cli, tiny_model, tmp_path, which, change, says):
    for part in ("model", "mmproj"):
        source, target = getattr(tiny_model, part), tmp_path / f"{part}.gguf"
        with GGUFFile(source) as file:
            keys = {key: (file.types[key], value) for key, value in file.metadata.items()}
            tensors = dict(file.tensors)
            keys.pop("handlens.family")  # as in files of others
            if part == which:
                keys |= change.get("metadata", {})
                keys.pop(change.get("drop"), None)
                tensors = {name: held for name, held in tensors.items() if name not in change.get("without", ())}
            write_gguf(target, keys, tensors)
    code, facts = report(cli, tmp_path / "model.gguf")
    assert code == 2 and not facts["usable"]
    assert len(facts["faults"]) == 1 and says in facts["faults"][0]
    code, out, _ = cli("info", tmp_path / "model.gguf")
    assert code == 2 and "not usable" in out


def test_a_projector_of_another_model_is_known_by_name(cli, tiny_model, tmp_path):
    with GGUFFile(tiny_model.mmproj) as file:
        keys = {key: (file.types[key], value) for key, value in file.metadata.items() if key != "handlens.family"}
        write_gguf(tmp_path / "other.gguf", keys | {"clip.minicpmv_version": ("i32", 4)}, file.tensors)
    code, facts = report(cli, tmp_path / "other.gguf")
    assert code == 2 and "MiniCPM-o 2.6 (version 4)" in facts["faults"][0]


def test_info_as_json_is_json_even_for_what_is_no_model(cli):
    code, facts = report(cli, __file__)
    assert code == 2 and not facts["usable"] and "not a GGUF file" in facts["faults"][0]


# the program itself


def test_the_help_texts_in_the_docs_are_up_to_date():
    docs = Path(__file__).parents[1] / "docs" / "cli.md"
    assert docs.read_text(encoding="utf-8") == page(), "run: python -m handlens.cli.reference > docs/cli.md"


def test_version_and_help(cli):
    assert cli("--version") == (0, f"handlens {handlens.__version__}\n", "")
    assert cli() == cli("--help")
    assert cli("--help")[0] == 0 and "Examples:" in cli("--help")[1]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from handlens.cli import run; run(['ask', '--help']); "
        "print(sorted({'numpy', 'PIL', 'tokenizers', 'rich', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
