"""Sets of samples: whole shards, resumed to the same bytes, and the commands around them."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image, ImageFont

from handlens.cli import data
from handlens.cli.options import Settings
from handlens.data.make import ROWS, SET, draw, generate, rows
from handlens.data.sheet import ANSWER, CELL, GAP, QUESTION
from handlens.data.sources import INDEX, Sources, SourcesError
from handlens.data.tasks import GROUPS, KEEP, TASKS
from handlens.errors import InputError
from tests.test_data_scenes import add_squares

#: Tasks that need pictures and no fonts.
PLAIN = ("count", "shapes", "blank")


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Sources:
    return add_squares(tmp_path_factory.mktemp("squares"))


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command(*arguments: object) -> None:
    """Runs `handlens data` with these arguments."""
    typer.main.get_command(data.app).main([str(a) for a in arguments], standalone_mode=False, obj=Settings())


def test_a_set_holds_what_was_asked_for(squares, tmp_path):
    heard = []
    made = generate(
        squares, PLAIN, ("en", "de"), 14, tmp_path / "set", shard_size=5, progress=lambda *a: heard.append(a)
    )
    assert (made.samples, made.drawn) == (14, 14)
    assert heard == [(done, 14) for done in range(15)]
    found = list(rows(tmp_path / "set"))
    assert len(found) == 14
    assert Counter(row["task"] for _, row in found) == {"count": 5, "shapes": 5, "blank": 4}
    assert Counter(row["language"] for _, row in found) == {"en": 8, "de": 6}
    for path, row in found:
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.format == "PNG"
        assert row["question"] and row["answer"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        SET,
        "shard-00000",
        "shard-00001",
        "shard-00002",
    ]


def test_a_sample_depends_on_its_number_and_not_on_what_else_is_drawn(squares, tmp_path):
    generate(squares, ("count",), ("en",), 4, tmp_path / "set", seed=3)
    for i, (path, row) in enumerate(rows(tmp_path / "set")):
        sample = draw(squares, "count", "en", 3, i)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), sample.image)
        assert (row["question"], row["answer"]) == (sample.question, sample.answer)
    assert draw(squares, "count", "en", 4, 0).image.tobytes() != draw(squares, "count", "en", 3, 0).image.tobytes()


def test_a_stopped_set_goes_on_to_the_same_bytes(squares, tmp_path):
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 12:
            raise Stop

    options = {"shard_size": 5, "glyphs": True, "format": "jpeg"}
    generate(squares, PLAIN, ("en",), 19, tmp_path / "one go", **options)
    with pytest.raises(Stop):
        generate(squares, PLAIN, ("en",), 19, tmp_path / "stopped", progress=stop, **options)
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == [SET, "shard-00000", "shard-00001"]
    (tmp_path / "stopped/.shard-00002.00000000.tmp").mkdir()  # as a process leaves it that is killed
    made = generate(squares, PLAIN, ("en",), 19, tmp_path / "stopped", **options)
    assert made.drawn == 9
    assert content(tmp_path / "stopped") == content(tmp_path / "one go")
    assert generate(squares, PLAIN, ("en",), 19, tmp_path / "stopped", **options).drawn == 0


SCRIPT = """
import sys
from handlens.data.make import generate
if __name__ == "__main__":
    try:
        generate(sys.argv[1], ("count", "shapes"), ("en",), 2000, sys.argv[2], workers=2, shard_size=10)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_ctrl_c_ends_all_workers_and_leaves_whole_shards_only(squares, tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "set"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, script, squares.folder, folder],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (folder / "shard-00003").is_dir():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # to all of them, as a terminal does
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == SET and all(re.fullmatch(r"shard-\d{5}", name) for name in names[1:])
    assert 4 <= len(names) - 1 < 200
    for shard in folder.glob("shard-*"):
        with (shard / ROWS).open() as lines:
            found = [json.loads(line) for line in lines]
        assert len(found) == 10 == len(list(shard.glob("*.png")))
        # Two processes drew it; one draws the same.
        number = int(shard.name[6:]) * 10
        again = draw(squares, ("count", "shapes")[number % 2], "en", 0, number)
        assert (found[0]["question"], found[0]["answer"]) == (again.question, again.answer)


def test_another_set_in_the_same_folder_is_refused_with_what_differs(squares, tmp_path):
    generate(squares, ("blank",), ("en",), 2, tmp_path / "set")
    with pytest.raises(InputError, match=r"is another set: seed 0, not 7\. Give"):
        generate(squares, ("blank",), ("en",), 2, tmp_path / "set", seed=7)
    with pytest.raises(InputError, match=r"n 2, not 3; .*format png, not jpeg"):
        generate(squares, ("blank",), ("en",), 3, tmp_path / "set", format="jpeg")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").touch()
    with pytest.raises(InputError, match="holds other files"):
        generate(squares, ("blank",), ("en",), 2, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("recipe",)}, r"no task 'recipe'; the tasks are word, .*receipt, .*groups of them .*refusals"),
        ({"languages": ("sv",)}, r"no language 'sv'; they have en, de, fr"),
        ({"languages": ()}, "no language was given; there are en, de, fr"),
        ({"n": 0}, "number of samples is 0, but must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"workers": 0}, "number of workers is 0"),
        ({"split": "test"}, "'test' is not one of train, held-out"),
        ({"format": "gif"}, "'gif' is not one of png, jpeg"),
        ({"strength": -0.5}, "strength of degradation is -0.5"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(squares, tmp_path, change, message):
    arguments = {"tasks": ("blank",), "languages": ("en",), "n": 2} | change
    with pytest.raises(InputError, match=message):
        generate(squares, out=tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_groups_and_exceptions_speak_of_tasks():
    assert set(KEEP) <= set(TASKS) and not set(GROUPS) & set(TASKS)
    assert {task for group in GROUPS.values() for task in group} == set(TASKS)


def test_the_help_lists_every_task():
    listed = data.MAKE_EXAMPLES.split("groups:\n")[1].split("\n\n")[0]
    for line in listed.splitlines()[:-1]:
        group, *tasks = line.split()
        assert GROUPS[group] == tuple(tasks)
    assert {line.split()[0] for line in listed.splitlines()} == set(GROUPS)


def test_commands_make_a_set_and_go_on(squares, tmp_path, capsys):
    arguments = ("make", "--sources", squares.folder, "--task", "count,blank", "--lang", "de,fr", "-n", 6)
    arguments += ("--out", tmp_path / "set", "--workers", 1, "--shard-size", 4)
    command(*arguments)
    assert capsys.readouterr().err == f"handlens: {tmp_path / 'set'} holds 6 samples\n"
    assert [row["language"] for _, row in rows(tmp_path / "set")] == ["de", "de", "fr", "fr", "de", "de"]
    command(*arguments)
    assert "6 were there already" in capsys.readouterr().err


def add_font(folder: Path) -> None:
    """Puts the font that comes with Pillow into a folder of sources."""
    font = ImageFont.load_default(20).font_bytes
    (folder / "fonts").mkdir()
    (folder / "fonts/plain.ttf").write_bytes(font)
    index = json.loads((folder / INDEX).read_text())
    index["files"]["fonts/plain.ttf"] = hashlib.sha256(font).hexdigest()
    row = {"path": "fonts/plain.ttf", "family": "Aileron", "outlines": "Aileron", "style": "sans", "weight": 400}
    row |= {"italic": False, "split": "train", "languages": index["languages"], "characters": [[33, 126]]}
    (folder / INDEX).write_text(json.dumps(index | {"fonts": [row]}))


def test_the_contact_sheet_shows_pictures_with_their_questions(tmp_path):
    folder = add_squares(tmp_path).folder
    add_font(folder)
    command("make", "--sources", folder, "--task", "count", "-n", 7, "--out", tmp_path / "set", "--degrade", 0)
    command("sheet", tmp_path / "set", "--sources", folder, "--out", tmp_path / "sheet.png", "-n", 6, "--columns", 3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 3 * (CELL + GAP) + GAP
    first, _ = next(rows(tmp_path / "set"))
    with Image.open(first) as image:
        image.thumbnail((CELL, CELL))
        left = GAP + (CELL - image.width) // 2
        assert np.array_equal(pixels[GAP : GAP + image.height, left : left + image.width], np.asarray(image))
    below = pixels[GAP + image.height :, GAP : GAP + CELL].reshape(-1, 3).tolist()
    assert list(QUESTION) in below and list(ANSWER) in below


def test_commands_refuse_folders_that_are_none(squares, tmp_path):
    with pytest.raises(SourcesError, match="is no prepared folder"):
        command("make", "--sources", tmp_path, "--task", "blank", "--out", tmp_path / "set")
    with pytest.raises(InputError, match="is no set of samples"):
        command("sheet", tmp_path, "--sources", squares.folder, "--out", tmp_path / "sheet.png")
