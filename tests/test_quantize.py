"""Files become smaller ones: each tensor in the type of the mix, everything else as it was, whole or not at all."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from handlens.chat import load
from handlens.cli import run
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, Tensor, write_gguf
from handlens.gguf.convert import write_language
from handlens.gguf.names import POSITION_TABLE
from handlens.joining import CARD_KEY, join, split
from handlens.proof.check import BAD, check
from handlens.proof.seal import read_seal
from handlens.proof.sealing import seal_files
from handlens.quant.mixes import ALIASES, MIXES, Place, fitting, is_quantized, language_type, mix_named
from handlens.quant.quantize import quantize_model
from handlens.weights import ModelFiles
from tests import tiny
from tests.test_checkpoint import GREEDY, QUESTION, write_folder

#: Matrices of these mixes are within this relative error of the root mean square.
ERRORS = {"F16": 1e-3, "BF16": 4e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q4_K_M": 0.09, "Q2_K": 0.3}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tiny.TinyModel:
    return tiny.write(tmp_path_factory.mktemp("pair"), tiny.config(), type="F16")


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint"), made)


def tensors_of(path) -> dict[str, Tensor]:
    with GGUFFile(path) as file:
        return dict(file.tensors)


def types_of(path) -> dict[str, str]:
    return {name: tensor.type for name, tensor in tensors_of(path).items()}


def left_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Mixes


def types_by_layer(type: str, role: str, layers: int = 32, *, shared: int = 4, important: bool = False) -> list[str]:
    """The type that a matrix of 4096 columns gets in each layer."""
    _, mix = mix_named(type)
    return [
        language_type(mix, f"blk.{n}.{role}.weight", 4096, Place(n, layers, shared, important), is_output=False)
        for n in range(layers)
    ]


def test_the_announced_sizes_are_there_with_the_numbers_of_llama_cpp():
    numbers = "F16 1, Q4_0 2, Q4_1 3, Q8_0 7, Q5_0 8, Q5_1 9, Q2_K 10, Q3_K_S 11, Q3_K_M 12, Q3_K_L 13, Q4_K_S 14, "
    numbers += "Q4_K_M 15, Q5_K_S 16, Q5_K_M 17, Q6_K 18, IQ4_NL 25, IQ4_XS 30, BF16 32"
    assert {name: mix.number for name, mix in MIXES.items()} == {
        name: int(number) for name, number in (entry.split() for entry in numbers.split(", "))
    }
    assert all(target in MIXES for target in ALIASES.values())


def test_q4_k_m_has_six_bits_at_both_ends_and_in_every_third_layer():
    more = [n < 4 or n >= 28 or (n - 4) % 3 == 2 for n in range(32)]
    for role in ("attn_v", "ffn_down"):
        assert types_by_layer("Q4_K_M", role) == ["Q6_K" if here else "Q4_K" for here in more]
        assert types_by_layer("Q5_K_M", role) == ["Q6_K" if here else "Q5_K" for here in more]
    assert set(types_by_layer("Q4_K_M", "ffn_up") + types_by_layer("Q4_K_M", "attn_output")) == {"Q4_K"}


@pytest.mark.parametrize(
    "type, role, options, wanted",
    [
        ("Q4_K_S", "attn_v", {}, {"Q5_K": 4, "Q4_K": 28}),
        ("Q4_K_S", "ffn_down", {}, {"Q5_K": 4, "Q4_K": 28}),
        ("Q3_K_M", "attn_v", {}, {"Q5_K": 2, "Q4_K": 30}),
        ("Q3_K_M", "ffn_down", {}, {"Q5_K": 2, "Q4_K": 30}),
        ("Q3_K_M", "attn_output", {}, {"Q4_K": 32}),
        ("Q3_K_L", "attn_output", {}, {"Q5_K": 32}),
        ("Q3_K_S", "ffn_down", {}, {"Q3_K": 32}),
        ("Q2_K", "attn_v", {}, {"Q4_K": 32}),
        ("Q2_K", "attn_v", {"shared": 2}, {"Q3_K": 32}),
        ("Q2_K", "attn_k", {}, {"Q2_K": 32}),
        ("IQ4_XS", "attn_v", {}, {"Q5_K": 32}),
        ("IQ4_XS", "attn_v", {"shared": 1}, {"IQ4_XS": 32}),
        ("IQ4_NL", "ffn_down", {}, {"Q5_K": 4, "IQ4_NL": 28}),
        ("IQ4_NL", "ffn_down", {"important": True}, {"IQ4_NL": 32}),
        ("Q4_0", "ffn_down", {}, {"Q4_0": 32}),
        ("Q4_0", "ffn_down", {"important": True}, {"Q4_1": 4, "Q4_0": 28}),
        ("Q5_0", "ffn_down", {"important": True}, {"Q5_1": 4, "Q5_0": 28}),
    ],
)
def test_more_bits_go_where_llama_cpp_gives_them(type, role, options, wanted):
    assert Counter(types_by_layer(type, role, **options)) == wanted


@pytest.mark.parametrize("type", MIXES)
def test_the_output_matrix_has_six_bits_or_the_type_of_the_whole_file(type):
    proper, mix = mix_named(type)
    got = language_type(mix, "output.weight", 4096, Place(0, 32, 4, False), is_output=True)
    assert got == (type if proper in ("F16", "BF16", "Q8_0") else "Q6_K")


@pytest.mark.parametrize(
    "type, columns, wanted",
    [
        ("Q4_K", 4096, "Q4_K"),
        ("Q4_K", 4128, "Q5_0"),
        ("Q6_K", 1152, "Q8_0"),
        ("Q2_K", 96, "Q4_0"),
        ("Q4_K", 4304, "F16"),
    ]
    + [("Q8_0", 4304, "F16"), ("IQ4_XS", 576, "IQ4_NL"), ("Q5_K", 32, "Q5_1"), ("F16", 7, "F16")],
)
def test_rows_that_are_not_whole_blocks_get_the_next_type_that_fits(type, columns, wanted):
    assert fitting(type, columns) == wanted


def test_only_matrices_are_quantised():
    assert is_quantized("blk.0.ffn_up.weight", (8, 256))
    for name, shape in [
        ("blk.0.attn_norm.weight", (256,)),
        ("v.position_embd.weight", (4900, 1152)),
        ("v.patch_embd.weight", (1152, 3, 14, 14)),
        ("resampler.query", (96, 4096)),
        ("resampler.pos_embed_k", (4900, 4096)),
        ("v.blk.0.ln1.bias", (1152,)),
    ]:
        assert not is_quantized(name, shape)


def test_names_are_read_as_people_write_them():
    assert mix_named("q4_k_m")[0] == mix_named("Q4_K")[0] == "Q4_K_M"
    with pytest.raises(InputError, match=r"'Q4_K_XL'; there are F16, BF16, Q8_0"):
        mix_named("Q4_K_XL")


# Files


@pytest.mark.parametrize("type", MIXES)
def test_a_language_file_gets_the_types_of_its_mix_and_keeps_the_rest(made, tmp_path, type):
    out = tmp_path / "out.gguf"
    quantize_model(made.model, out, type)
    with GGUFFile(made.model) as source, GGUFFile(out) as file:
        changed = {"general.file_type", "general.quantization_version"}
        assert file.metadata["general.file_type"] == MIXES[type].number
        assert file.metadata["general.quantization_version"] == 2
        assert [key for key in file.metadata if key not in changed] == [
            key for key in source.metadata if key not in changed
        ]
        for key in source.metadata.keys() - changed:
            assert file.types[key] == source.types[key]
            np.testing.assert_array_equal(file.metadata[key], source.metadata[key])
        assert list(file.tensors) == list(source.tensors)
        for name, tensor in file.tensors.items():
            if tensor.type == source.tensors[name].type:
                np.testing.assert_array_equal(tensor.data, source.tensors[name].data)
            else:
                wanted = source.tensors[name].dequantize()
                error = np.sqrt(np.square(tensor.dequantize() - wanted).mean() / np.square(wanted).mean())
                assert error < ERRORS.get(type, 0.3)
        layers = {
            name: tensor.type for name, tensor in file.tensors.items() if name.startswith("blk.") and "norm" not in name
        }
        assert MIXES[type].base in layers.values()
    assert load(out, made.mmproj).reply([{"role": "user", "content": "Hello."}])


def test_a_projector_keeps_what_is_no_matrix_and_answers_nearly_the_same(made, tmp_path, exact):
    out = tmp_path / "out.mmproj.gguf"
    quantize_model(made.mmproj, out, "Q8_0")
    source, types, tensors = types_of(made.mmproj), types_of(out), tensors_of(out)
    changed = {name: type for name, type in types.items() if type != source[name]}
    assert changed.pop(POSITION_TABLE) == fitting("Q2_K", tensors[POSITION_TABLE].shape[-1])  # nobody reads it
    assert changed == {name: "Q8_0" for name, tensor in tensors.items() if is_quantized(name, tensor.shape)}
    assert types["v.position_embd.weight"] == source["v.position_embd.weight"]
    chats = load(made.model, out), load(made.model, made.mmproj)
    ours, wanted = (chat.generator.embeddings(chat.prepare(QUESTION, GREEDY)) for chat in chats)
    assert 0 < np.square(ours - wanted).mean() < 2e-3 * np.square(wanted).mean()


@pytest.mark.parametrize("type", MIXES)
def test_a_projector_gets_every_type_that_is_asked_for(made, tmp_path, type):
    """The widths here are 64 and 128 in the tower and 256 in the resampler, so both kinds of blocks are there."""
    out = tmp_path / "out.mmproj.gguf"
    quantize_model(made.mmproj, out, type)
    with GGUFFile(out) as file:
        assert file.metadata["general.file_type"] == MIXES[type].number
        base = MIXES[type].base
        assert file.tensors["resampler.proj.weight"].type == base
        assert file.tensors["v.blk.0.attn_q.weight"].type == fitting(base, 64)
    for name, tensor in tensors_of(made.mmproj).items():
        if not is_quantized(name, tensor.shape) and name != POSITION_TABLE:
            assert types_of(out)[name] == tensor.type
    assert load(made.model, out).reply(QUESTION, GREEDY)


def test_a_joined_file_becomes_what_its_parts_become(made, tmp_path):
    join(made.model, made.mmproj, tmp_path / "one.gguf", card="of the large one")
    seal_files(ModelFiles(tmp_path / "one.gguf", None))
    quantize_model(tmp_path / "one.gguf", tmp_path / "small.gguf", "Q4_K_M")
    with GGUFFile(tmp_path / "small.gguf") as file:
        assert read_seal(file) is None and CARD_KEY not in file.metadata
    split(tmp_path / "small.gguf", tmp_path / "a.gguf", tmp_path / "a.mmproj.gguf")
    quantize_model(made.model, tmp_path / "b.gguf", "Q4_K_M", mmproj=made.mmproj)
    for suffix in (".gguf", ".mmproj.gguf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_the_seal_of_the_source_is_not_that_of_the_result(made, tmp_path):
    for path in (made.model, made.mmproj):
        shutil.copy(path, tmp_path)
    sealed = ModelFiles(tmp_path / made.model.name, tmp_path / made.mmproj.name)
    seal_files(sealed)
    written = quantize_model(sealed.model, tmp_path / "out.gguf", "Q8_0", mmproj=sealed.mmproj)
    assert not [finding for finding in check(ModelFiles(*written.paths)) if finding.verdict == BAD]
    with GGUFFile(written.paths[0]) as file:
        assert read_seal(file) is None


def test_a_folder_becomes_a_pair_and_so_does_a_pair(made, folder, tmp_path):
    for name, source, mmproj in (("a", folder, None), ("b", made.model, made.mmproj)):
        out = tmp_path / name / "model.gguf"
        out.parent.mkdir()
        written = quantize_model(source, out, "Q4_K_M", mmproj=mmproj)
        assert written.paths == (out, tmp_path / name / "model.mmproj.gguf")
        assert written.nbytes < written.nbytes_before
        assert Counter(types_of(out).values()).keys() == {"F32", "Q4_K", "Q6_K"}
        assert "Q8_0" in types_of(written.paths[1]).values()
        assert load(out).reply([{"role": "user", "content": "Hello."}])
    # F16 lies between the tensors of the folder and those of the pair.
    assert types_of(tmp_path / "a" / "model.gguf") == types_of(tmp_path / "b" / "model.gguf")


@pytest.mark.parametrize("vision_type, wanted", [(None, "Q8_0"), ("F16", "F16"), ("BF16", "BF16"), ("Q4_K_M", "Q5_0")])
def test_the_vision_side_has_a_type_of_its_own(made, folder, tmp_path, vision_type, wanted):
    single = tmp_path / "single.gguf"
    assert run(["convert", str(folder), "--out", str(single), "--single", "--quiet"]) == 0
    out = tmp_path / "out.gguf"
    quantize_model(single, out, "Q3_K_M", vision_type=vision_type)
    types = types_of(out)
    assert types["v.blk.0.attn_q.weight"] == wanted
    assert types["resampler.proj.weight"] == {"Q5_0": "Q4_K"}.get(wanted, wanted)
    assert types["blk.0.attn_q.weight"] == "Q3_K"
    assert load(out).reply([{"role": "user", "content": "Hello."}])


def test_tied_embeddings_are_the_output_matrix(tmp_path):
    config = tiny.config()
    made = tiny.write(tmp_path, config)
    official = {name: array for name, array in made.official.items() if name != "llm.lm_head.weight"}
    write_language(tmp_path / "tied.gguf", config, made.tokenizer, official, "F16")
    quantize_model(tmp_path / "tied.gguf", tmp_path / "out.gguf", "Q4_0")
    assert types_of(tmp_path / "out.gguf")["token_embd.weight"] == "Q6_K"
    assert types_of(made.model)["token_embd.weight"] == "F32"


def test_quantising_again_is_warned_of_and_the_same_type_is_copied(made, tmp_path, capsys):
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    assert quantize_model(made.model, first, "Q4_K_S").notices == ()
    written = quantize_model(first, second, "Q3_K_S")
    assert len(written.notices) == 1 and re.search(r"first\.gguf is quantised already \(Q4_K", written.notices[0])
    copied = quantize_model(first, tmp_path / "copy.gguf", "Q4_K_S")
    assert copied.notices == ()
    assert (tmp_path / "copy.gguf").read_bytes() == first.read_bytes()
    assert run(["quantize", str(first), str(tmp_path / "third.gguf"), "Q2_K"]) == 0
    assert "is quantised already" in capsys.readouterr().err


def test_an_alignment_of_its_own_is_kept(made, tmp_path):
    with GGUFFile(made.model) as file:
        metadata = {key: (file.types[key], value) for key, value in file.metadata.items()}
        write_gguf(tmp_path / "aligned.gguf", metadata, file.tensors, alignment=256)
    quantize_model(tmp_path / "aligned.gguf", tmp_path / "out.gguf", "Q4_0")
    with GGUFFile(tmp_path / "out.gguf") as file:
        assert file.alignment == 256


# Refusals


def test_a_tensor_that_cannot_be_stored_is_named_and_nothing_is_left(made, tmp_path):
    with GGUFFile(made.model) as file:
        metadata = {key: (file.types[key], value) for key, value in file.metadata.items()}
        tensors = dict(file.tensors)
    broken = tensors["blk.1.ffn_up.weight"].dequantize()
    broken[100, 7] = np.nan
    tensors["blk.1.ffn_up.weight"] = Tensor.from_array(broken)
    write_gguf(tmp_path / "nan.gguf", metadata, tensors)
    (tmp_path / "out.gguf").write_text("old")
    with pytest.raises(ModelFileError, match=r"tensor blk\.1\.ffn_up\.weight cannot be Q4_K: it holds .*not a number"):
        quantize_model(tmp_path / "nan.gguf", tmp_path / "out.gguf", "Q4_K_S", overwrite=True)
    assert left_in(tmp_path) == {"nan.gguf", "out.gguf"} and (tmp_path / "out.gguf").read_text() == "old"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"type": "Q9"}, "no file type is called 'Q9'"),
        ({"vision_type": "Q10"}, "no file type is called 'Q10'"),
        ({"mmproj_out": "x.gguf"}, "none was given"),
        ({"mmproj": "model"}, "should be a language file and its projector"),
        ({"importance": lambda: {"blk.9.attn_q.weight": np.ones(256)}}, "was it measured on another one"),
        ({"importance": lambda: {"blk.0.attn_q.weight": np.ones(255)}}, "blk.0.attn_q.weight has 256 columns"),
    ],
)
def test_options_that_do_not_fit_are_refused(made, tmp_path, options, message):
    options = {"type": "Q4_0"} | options
    if "mmproj" in options:
        options["mmproj"] = made.model
    with pytest.raises((InputError, ModelFileError), match=message):
        quantize_model(made.model, tmp_path / "out.gguf", options.pop("type"), **options)
    assert left_in(tmp_path) == set()


def test_a_folder_takes_no_projector_and_old_files_stay_unless_asked_for(made, folder, tmp_path):
    with pytest.raises(InputError, match="a projector of its own"):
        quantize_model(folder, tmp_path / "out.gguf", "Q4_0", mmproj=made.mmproj)
    (tmp_path / "out.mmproj.gguf").write_text("old")
    with pytest.raises(InputError, match=r"out\.mmproj\.gguf is there already"):
        quantize_model(folder, tmp_path / "out.gguf", "Q4_0")
    assert left_in(tmp_path) == {"out.mmproj.gguf"}


def test_unreadable_input_leaves_the_old_file(made, tmp_path, capsys):
    (tmp_path / "out.gguf").write_text("old")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(made.model.read_bytes()[:-1000])
    for source, message in (
        (cut, "damaged or was not downloaded to its end"),
        (tmp_path / "none.gguf", "cannot be read"),
        (tmp_path / "out.gguf", "is not a GGUF file"),
    ):
        assert run(["quantize", str(source), str(tmp_path / "out.gguf"), "Q4_0", "--force"]) == 2
        assert message in capsys.readouterr().err
        assert left_in(tmp_path) == {"out.gguf", "cut.gguf"} and (tmp_path / "out.gguf").read_text() == "old"


@pytest.mark.parametrize("at", [0.2, 0.9])
def test_ctrl_c_leaves_no_half_file_and_the_old_ones(made, folder, tmp_path, at):
    def press(done, total):
        if done > at * total:
            raise KeyboardInterrupt

    (tmp_path / "out.gguf").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        quantize_model(folder, tmp_path / "out.gguf", "Q4_K_M", overwrite=True, progress=press)
    assert left_in(tmp_path) == {"out.gguf"} and (tmp_path / "out.gguf").read_text() == "old"


def test_a_real_ctrl_c_ends_the_program_soon(tmp_path):
    large = Tensor.from_array(np.random.default_rng(0).standard_normal((8192, 4096)).astype(np.float32))
    metadata = {"general.architecture": ("str", "llama")}
    write_gguf(tmp_path / "in.gguf", metadata, {"blk.0.ffn_up.weight": large, "blk.0.ffn_down.weight": large})
    command = [sys.executable, "-m", "handlens", "quantize", tmp_path / "in.gguf", tmp_path / "out.gguf", "IQ4_XS"]
    running = subprocess.Popen(command, env={**os.environ, "HANDLENS_THREADS": "1"})
    while not any(path.name.endswith(".tmp") for path in tmp_path.iterdir()):
        assert running.poll() is None
        time.sleep(0.01)
    start = time.perf_counter()
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) == 130
    assert time.perf_counter() - start < 5
    assert left_in(tmp_path) == {"in.gguf"}


FULL = """
import resource, sys
from handlens.cli import run
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
sys.exit(run(["quantize", *sys.argv[1:]]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_a_disk_that_takes_no_more_leaves_the_old_file(made, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, made.model, out, "Q4_0", "--force"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert re.search(r"out\.gguf cannot be written: File too large", done.stderr)
    assert left_in(tmp_path) == {"out.gguf"} and out.read_text() == "old"


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """An 8B model is quantised in the memory of its largest tensor."""
    monkeypatch.setattr("handlens.quant.tensors.PIECE", 1 << 14)
    rng = np.random.default_rng(0)
    tensors = {
        f"blk.{n}.ffn_up.weight": Tensor.from_array(rng.standard_normal((512, 1024)).astype(np.float32), "F16")
        for n in range(40)
    }
    write_gguf(tmp_path / "in.gguf", {"general.architecture": ("str", "llama")}, tensors)
    del tensors
    tracemalloc.start()
    quantize_model(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q8_0")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one = 512 * 1024
    assert peak < 4 * one < 0.2 * (tmp_path / "out.gguf").stat().st_size


PEAK = """
import sys
from pathlib import Path
from handlens.measure import own_peak_memory
from handlens.quant.quantize import quantize_model
before = own_peak_memory()
quantize_model(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
print(own_peak_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="nobody counts")
@pytest.mark.parametrize("type", ["F16", "Q8_0"])
def test_pages_of_the_source_leave_memory_when_they_were_written(tmp_path, type):
    """Tensors that are copied as they are, too."""
    matrix = np.broadcast_to(np.float16(1), (4096, 1024))
    tensors = {f"blk.{n}.ffn_up.weight": Tensor.from_bits(np.ascontiguousarray(matrix)) for n in range(24)}
    write_gguf(tmp_path / "in.gguf", {"general.architecture": ("str", "llama")}, tensors)
    command = [sys.executable, "-c", PEAK, tmp_path / "in.gguf", tmp_path / "out.gguf", type]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert grown < 64 << 20 < (tmp_path / "in.gguf").stat().st_size // 2


def test_the_command_says_what_it_wrote(made, tmp_path, capsys):
    out = tmp_path / "out.gguf"
    arguments = ["quantize", str(made.model), str(out), "q4_k_m", "--mmproj", str(made.mmproj), "--vision-type", "F16"]
    assert run(arguments) == 0
    said = capsys.readouterr().err
    assert re.search(r"wrote .*out\.gguf and .*out\.mmproj\.gguf: \d+\.\d MB became \d+\.\d MB", said)
    assert run(arguments) == 2
    assert "is there already" in capsys.readouterr().err
