"""Vectors of images on the disk: what is kept serves the next process, and what is damaged is not believed."""

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handlens.chat import load
from handlens.engine.sampling import SamplingParams
from handlens.engine.store import ImageStore
from handlens.errors import InputError
from tests import tiny

GREEDY = SamplingParams.greedy(max_new_tokens=8)


def picture(width=100, height=60, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def user(*content):
    return [{"role": "user", "content": list(content)}]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def vectors(chat, image) -> np.ndarray:
    return chat.generator.embeddings(chat.prepare(user(image, "?"), GREEDY))


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "kept" / "images"


@pytest.fixture
def opened(tiny_model, folder):
    """Loads the model as a new process would; its vision tower may be gone."""

    def open_chat(blind=False, made=tiny_model, **options):
        chat = load(made.model, made.mmproj, cache_dir=folder, **options)
        if blind:
            chat.generator.backend.encode = None
        return chat

    return open_chat


def test_the_next_process_does_no_vision_work_and_answers_the_same(opened, folder):
    answer = opened().reply(user(picture(300, 200), "What?"), GREEDY)
    assert len(files(folder)) == 1 and folder.stat().st_mode & 0o077 == 0
    assert opened(blind=True).reply(user(picture(300, 200), "What?"), GREEDY) == answer
    with pytest.raises(TypeError):
        opened(blind=True).reply(user(picture(300, 200, seed=1), "What?"), GREEDY)


def test_what_is_kept_has_the_same_bits(opened):
    computed = vectors(opened(), picture())
    np.testing.assert_array_equal(vectors(opened(blind=True), picture()), computed)


def test_the_picture_is_not_in_the_folder(opened, folder):
    image = picture(60, 60)
    vectors(opened(), image)
    held = b"".join(path.read_bytes() for path in files(folder))
    assert image.tobytes()[:64] not in held and len(held) < 96 * 256 * 4 + 2000


@pytest.mark.parametrize("other", ["weights", "position mode", "precision"])
def test_another_model_or_way_of_computing_has_entries_of_its_own(opened, folder, tmp_path, other):
    vectors(opened(), picture())
    chat = {
        "weights": lambda: opened(made=tiny.write(tmp_path, tiny.config(), seed=1)),
        "position mode": lambda: opened(position_mode="grid_2d"),
        "precision": lambda: opened(vision_precision="f32"),
    }[other]()
    vectors(chat, picture())
    assert len(files(folder)) == 2


def test_i05_images_that_look_alike_in_bytes_have_files_of_their_own(opened, folder):
    data = picture(40, 30).tobytes()
    chat = opened()
    for size in ((40, 30), (30, 40), (120, 10)):
        vectors(chat, Image.frombytes("RGB", size, data))
    assert len(files(folder)) == 3


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-5],
    "longer": lambda data: data + bytes(1 << 15),
    "one bit": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "no safetensors": lambda data: bytes(len(data)),
    "another key": lambda data: re.sub(rb'("key":"[0-9a-f]*) ', rb"\1_", data),
    "header past the end": lambda data: (1 << 60).to_bytes(8, "little") + data[8:],
    "no checksum": lambda data: data.replace(b'"sha256"', b'"sha257"'),
    "other numbers": lambda data: data.replace(b'"F32"', b'"I32"'),
    "other shape": lambda data: data.replace(b"[96,256]", b"[256,96]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_told_of_and_written_anew(opened, folder, caplog, damage):
    computed = vectors(opened(), picture())
    [path] = files(folder)
    sound = path.read_bytes()
    assert damage(sound) != sound
    path.write_bytes(damage(sound))
    with caplog.at_level(logging.WARNING, logger="handlens"):
        np.testing.assert_array_equal(vectors(opened(), picture()), computed)
    assert "encoded again" in caplog.text and path.name in caplog.text
    np.testing.assert_array_equal(vectors(opened(blind=True), picture()), computed)


def test_the_file_of_one_image_is_not_taken_for_another(opened, folder):
    chat = opened()
    computed = [vectors(chat, picture(seed=seed)) for seed in (1, 2)]
    one, two = files(folder)
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    chat = opened()
    for seed, wanted in zip((1, 2), computed):
        np.testing.assert_array_equal(vectors(chat, picture(seed=seed)), wanted)


def test_the_folder_is_bounded_and_the_longest_unused_go_first(folder):
    store = ImageStore(folder, max_bytes=4500)
    numbers = {name: np.full((8, 32), ord(name), np.float32) for name in "abcd"}  # 1024 bytes and a header each
    for age, name in enumerate("abc"):
        store.put(name, numbers[name])
        os.utime(store._path(name), (1000 + age, 1000 + age))
    (folder / "a-file-of-mine.safetensors").write_bytes(bytes(5000))
    assert store.get("a", (8, 32)) is not None  # used just now
    store.put("d", numbers["d"])
    assert [store.get(name, (8, 32)) is not None for name in "abcd"] == [True, False, True, True]
    assert (folder / "a-file-of-mine.safetensors").exists()
    kept = [path for path in files(folder) if len(path.name) > 60]
    assert sum(path.stat().st_size for path in kept) <= 4500
    store.put("e", np.zeros((1000, 32), np.float32))  # larger than all that may be kept
    assert len([path for path in files(folder) if len(path.name) > 60]) == len(kept)


def test_a_folder_that_cannot_be_written_costs_a_notice_only(opened, folder, caplog, tiny_model):
    chat = opened()
    folder.rmdir()
    with caplog.at_level(logging.WARNING, logger="handlens"):
        assert chat.reply(user(picture(), "What?"), GREEDY) == load(tiny_model.model).reply(
            user(picture(), "What?"), GREEDY
        )
    assert "not kept" in caplog.text


def test_a_file_where_the_folder_should_be_is_refused(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used to keep encoded images"):
        load(tiny_model.model, cache_dir=tmp_path / "file")
