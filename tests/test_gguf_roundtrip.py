"""What is written is what is read: our writer and reader, the `gguf` package's, and official names there and back."""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile, Tensor, names, write_gguf
from handlens.gguf.blocks import BLOCKS
from handlens.gguf.writer import DeferredTensor

METADATA = {
    "general.architecture": ("str", "test"),
    "test.empty": ("str", ""),
    "test.text": ("str", "héllo \U0001f50d\n"),
    "test.u8": ("u8", 255),
    "test.i8": ("i8", -128),
    "test.u16": ("u16", 65_535),
    "test.i16": ("i16", -32_768),
    "test.u32": ("u32", 2**32 - 1),
    "test.i32": ("i32", -(2**31)),
    "test.u64": ("u64", 2**64 - 1),
    "test.i64": ("i64", -(2**63)),
    "test.f32": ("f32", 0.1),
    "test.f64": ("f64", 0.1),
    "test.bool": ("bool", True),
    "test.tokens": ("arr[str]", ["<s>", "", "ä", "Ġthe", "\U0001f600"]),
    "test.scores": ("arr[f32]", [0.5, -1.25, float("inf")]),
    "test.kinds": ("arr[i32]", [1, 2, -3]),
    "test.flags": ("arr[bool]", [True, False, True]),
    "test.large": ("arr[u64]", [0, 2**64 - 1]),
}


def tensors() -> dict[str, Tensor]:
    """A tensor of every type, of one to four dimensions, their sizes not multiples of the alignment."""
    rng = np.random.default_rng(0)
    made = {}
    for number, (name, block) in enumerate(BLOCKS.items()):
        shape = ((), (3,), (2, 3), (2, 1, 3))[number % 4] + (block.weights * (1 + number % 3),)
        rows = int(np.prod(shape[:-1]))
        data = rng.integers(0, 256, (rows, shape[-1] // block.weights * block.nbytes), dtype=np.uint8)
        made[f"blk.{number}.{name.lower()}.weight"] = Tensor(name, shape, data)
    return made


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def written(file: GGUFFile) -> dict:
    """The metadata of an open file, as `write_gguf` takes it."""
    return {key: (file.types[key], value) for key, value in file.metadata.items()}


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_what_we_write_we_read(tmp_path, alignment):
    write_gguf(tmp_path / "a.gguf", METADATA, tensors(), alignment)
    with GGUFFile(tmp_path / "a.gguf") as file:
        assert (file.version, file.alignment) == (3, alignment)
        for key, (type_name, value) in METADATA.items():
            assert file.types[key] == type_name
            if type_name == "f32":
                value = float(np.float32(value))
            assert plain(file.metadata[key]) == value and type(plain(file.metadata[key])) is type(value)
        assert file.metadata["test.kinds"].dtype == np.int32
        assert list(file.tensors) == list(tensors())
        for name, tensor in tensors().items():
            read = file.tensors[name]
            assert (read.type, read.shape) == (tensor.type, tensor.shape)
            np.testing.assert_array_equal(read.data, tensor.data)


@pytest.mark.parametrize("alignment", [32, 128])
def test_the_gguf_package_reads_what_we_write(tmp_path, alignment):
    write_gguf(tmp_path / "a.gguf", METADATA, tensors(), alignment)
    theirs = GGUFReader(tmp_path / "a.gguf")
    for key, (type_name, value) in METADATA.items():
        field = theirs.get_field(key)
        expected = np.float32(value).item() if type_name == "f32" else value
        assert field.contents() == expected
    assert theirs.alignment == alignment
    assert [tensor.name for tensor in theirs.tensors] == list(tensors())
    for read, tensor in zip(theirs.tensors, tensors().values(), strict=True):
        assert read.tensor_type == GGMLQuantizationType[tensor.type]
        assert tuple(reversed(read.shape.tolist())) == tensor.shape
        assert read.data.tobytes() == tensor.data.tobytes()


def write_with_the_gguf_package(path, alignment=None):
    writer = GGUFWriter(path, "test")
    if alignment:
        writer.add_custom_alignment(alignment)
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"test.{kind}", 100)
    writer.add_float32("test.float32", 0.1)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.bool", False)
    writer.add_string("test.string", "héllo")
    writer.add_array("test.tokens", ["a", "ä", ""])
    writer.add_array("test.floats", [0.5, 1.5])
    writer.add_array("test.ints", [1, -2])
    writer.add_array("test.bools", [True, False])
    writer.add_key_value("test.bytes", [1, 2, 255], GGUFValueType.ARRAY, GGUFValueType.UINT8)
    arrays = {
        "vector": np.arange(5, dtype=np.float32),
        "half": np.arange(12, dtype=np.float16).reshape(3, 4),
        "kernel": np.arange(96, dtype=np.float32).reshape(2, 3, 4, 4),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    packed = np.arange(2 * 68, dtype=np.uint8).reshape(2, 68)
    writer.add_tensor("packed", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays, packed


@pytest.mark.parametrize("alignment", [None, 64])
def test_we_read_what_the_gguf_package_writes(tmp_path, alignment):
    arrays, packed = write_with_the_gguf_package(tmp_path / "a.gguf", alignment)
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.alignment == (alignment or 32)
    for key, field in GGUFReader(tmp_path / "a.gguf").fields.items():
        if not key.startswith("GGUF."):  # the package's own names for the header's numbers
            assert plain(file.metadata[key]) == field.contents()
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.tensors[name].dequantize(), array)
    assert (file.tensors["packed"].type, file.tensors["packed"].shape) == ("Q8_0", (2, 64))
    np.testing.assert_array_equal(file.tensors["packed"].data, packed)


@pytest.mark.parametrize("alignment", [None, 64])
@pytest.mark.parametrize("author", ["ours", "gguf package"])
def test_a_file_written_again_is_the_same_bytes(tmp_path, author, alignment):
    if author == "ours":
        write_gguf(tmp_path / "a.gguf", METADATA, tensors(), alignment or 32)
    else:
        write_with_the_gguf_package(tmp_path / "a.gguf", alignment)
    with GGUFFile(tmp_path / "a.gguf") as file:
        write_gguf(tmp_path / "b.gguf", written(file), file.tensors, file.alignment)
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_a_file_may_be_rewritten_over_itself(tmp_path):
    path = tmp_path / "a.gguf"
    write_gguf(path, METADATA, tensors())
    before = path.read_bytes()
    file = GGUFFile(path)
    write_gguf(path, written(file), file.tensors)
    assert path.read_bytes() == before
    # The tensors still are those of the old file, which lives on without a name.
    np.testing.assert_array_equal(file.tensors["blk.0.f32.weight"].data, tensors()["blk.0.f32.weight"].data)


def test_tensors_outlive_the_file_that_they_came_from(tmp_path):
    write_gguf(tmp_path / "a.gguf", METADATA, tensors())
    with GGUFFile(tmp_path / "a.gguf") as file:
        tensor = file.tensors["blk.7.q8_0.weight"]
    assert not file.tensors
    del file
    gc.collect()
    np.testing.assert_array_equal(tensor.data, tensors()["blk.7.q8_0.weight"].data)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_the_map_goes_with_the_last_tensor(tmp_path):
    write_gguf(tmp_path / "a.gguf", METADATA, tensors())
    before = len(os.listdir("/proc/self/fd"))
    file = GGUFFile(tmp_path / "a.gguf")
    tensor = file.tensors["blk.7.q8_0.weight"]
    file.close()
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del tensor
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert len(os.listdir("/proc/self/fd")) == before


def test_deferred_tensors_are_made_one_at_a_time(tmp_path):
    shape = (1024, 1024)  # 4 MiB each

    def deferred(number):
        return DeferredTensor("F32", shape, lambda: Tensor.from_array(np.full(shape, number, np.float32)))

    tracemalloc.start()
    try:
        write_gguf(tmp_path / "a.gguf", {}, {f"t{number}": deferred(number) for number in range(8)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    file = GGUFFile(tmp_path / "a.gguf")
    assert [file.tensors[f"t{number}"].dequantize(5, 6)[0, 7] for number in range(8)] == list(range(8))


def fail(error):
    raise error


@pytest.mark.parametrize("error", [RuntimeError("made no tensor"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_failure_midway_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / "a.gguf"
    write_gguf(path, METADATA, tensors())
    before = path.read_bytes()
    broken = {**tensors(), "last": DeferredTensor("F32", (2, 4), lambda: fail(error))}
    with pytest.raises(ModelFileError if isinstance(error, OSError) else type(error)):
        write_gguf(path, METADATA, broken)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.gguf"]


def test_a_deferred_tensor_that_is_not_as_announced_is_refused(tmp_path):
    wrong = DeferredTensor("F32", (2, 4), lambda: Tensor.from_array(np.zeros((2, 5))))
    with pytest.raises(InputError, match=r"F32 \(2, 4\).*F32 \(2, 5\)"):
        write_gguf(tmp_path / "a.gguf", {}, {"w": wrong})
    assert not os.listdir(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"none/a\.gguf cannot be written: No such file"):
        write_gguf(tmp_path / "none" / "a.gguf", {}, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelFileError, match="folder cannot be written"):
        write_gguf(tmp_path / "folder", {}, {})
    assert os.listdir(tmp_path) == ["folder"]


def test_a_new_file_has_ordinary_permissions(tmp_path):
    write_gguf(tmp_path / "a.gguf", {}, {})
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("u8", 256),
        ("u32", -1),
        ("i32", 1.5),
        ("u64", 2**64),
        ("bool", 2),
        ("u32", [1]),
        ("arr[u32]", 1),
        ("arr[u8]", [1, 256]),
        ("arr[i32]", [0.5]),
        ("arr[f32]", ["a"]),
        ("f32", "1.5"),
        ("arr[u64]", [0, 2**64]),
        ("arr[u32]", np.array([1.5])),
        ("arr[f32]", [[1.0]]),
        ("str", 5),
        ("str", "\ud800"),
        ("arr[str]", ["a", 5]),
        ("int", 5),
        ("arr[int]", [5]),
        ("arr[u8", [5]),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_refused(tmp_path, type_name, value):
    with pytest.raises(InputError, match="'the_key'"):
        write_gguf(tmp_path / "a.gguf", {"the_key": (type_name, value)}, {})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "name", "shape", "alignment", "words"),
    [
        ({}, "w" * 64, (4,), 32, "64 bytes; from 1 to 63"),
        ({}, "", (4,), 32, "0 bytes; from 1 to 63"),
        ({"": ("u8", 1)}, "w", (4,), 32, "0 bytes; from 1 to 65535"),
        ({}, "w", (1, 1, 1, 1, 4), 32, r"\(1, 1, 1, 1, 4\); from 1 to 4 dimensions"),
        ({}, "w", (0, 4), 32, r"\(0, 4\)"),
        ({}, "w", (4,), 0, "alignment is 0"),
        ({}, "w", (4,), 48, "alignment is 48"),
        ({"general.alignment": ("u32", 64)}, "w", (4,), 32, "64.*but alignment is 32"),
    ],
)
def test_what_other_readers_would_refuse_is_not_written(tmp_path, metadata, name, shape, alignment, words):
    with pytest.raises(InputError, match=words):
        write_gguf(tmp_path / "a.gguf", metadata, {name: Tensor.from_array(np.zeros(shape))}, alignment)
    assert not os.listdir(tmp_path)


# Official names


LAYERS, WIDTH, HEADS, KV_HEADS, FFN = 2, 16, 4, 2, 24
VISION_WIDTH, VISION_FFN = 8, 12


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of a tiny checkpoint of 2.5, written out from the list of the published one."""
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {
        "llm.model.embed_tokens.weight": (32, WIDTH),
        "llm.model.norm.weight": (WIDTH,),
        "llm.lm_head.weight": (32, WIDTH),
        "vpm.embeddings.patch_embedding.weight": (VISION_WIDTH, 3, 14, 14),
        "vpm.embeddings.patch_embedding.bias": (VISION_WIDTH,),
        "vpm.embeddings.position_embedding.weight": (4900, VISION_WIDTH),
        "vpm.post_layernorm.weight": (VISION_WIDTH,),
        "vpm.post_layernorm.bias": (VISION_WIDTH,),
        "resampler.query": (5, WIDTH),
        "resampler.kv_proj.weight": (WIDTH, VISION_WIDTH),
        "resampler.attn.in_proj_weight": (3 * WIDTH, WIDTH),
        "resampler.attn.in_proj_bias": (3 * WIDTH,),
        "resampler.attn.out_proj.weight": (WIDTH, WIDTH),
        "resampler.attn.out_proj.bias": (WIDTH,),
        "resampler.proj": (WIDTH, WIDTH),
    }
    for norm in ("ln_q", "ln_kv", "ln_post"):
        shapes |= {f"resampler.{norm}.weight": (WIDTH,), f"resampler.{norm}.bias": (WIDTH,)}
    for n in range(LAYERS):
        layer = f"llm.model.layers.{n}"
        shapes |= {
            f"{layer}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{layer}.self_attn.k_proj.weight": (kv, WIDTH),
            f"{layer}.self_attn.v_proj.weight": (kv, WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{layer}.mlp.gate_proj.weight": (FFN, WIDTH),
            f"{layer}.mlp.up_proj.weight": (FFN, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, FFN),
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
        }
        layer = f"vpm.encoder.layers.{n}"
        for module in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}.self_attn.{module}.weight"] = (VISION_WIDTH, VISION_WIDTH)
            shapes[f"{layer}.self_attn.{module}.bias"] = (VISION_WIDTH,)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": (VISION_WIDTH,), f"{layer}.{norm}.bias": (VISION_WIDTH,)}
        shapes |= {
            f"{layer}.mlp.fc1.weight": (VISION_FFN, VISION_WIDTH),
            f"{layer}.mlp.fc1.bias": (VISION_FFN,),
            f"{layer}.mlp.fc2.weight": (VISION_WIDTH, VISION_FFN),
            f"{layer}.mlp.fc2.bias": (VISION_WIDTH,),
        }
    return shapes


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in official_shapes().items()}


def assert_same_tensors(ours, theirs):
    assert set(ours) == set(theirs)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def part(official, *firsts):
    return {name: array for name, array in official.items() if name.split(".")[0] in firsts}


def test_language_names_there_and_back(official):
    there = names.to_gguf_language(official, HEADS, KV_HEADS)
    assert set(there) == set(names.language_names(LAYERS))
    assert_same_tensors(names.from_gguf_language(there, HEADS, KV_HEADS), part(official, "llm"))


def test_vision_names_there_and_back(official):
    there = names.to_gguf_vision(official)
    assert set(there) == set(names.vision_names(LAYERS))
    assert_same_tensors(names.from_gguf_vision(there), part(official, "vpm", "resampler"))


def test_names_through_a_file(official, tmp_path):
    arrays = names.to_gguf_language(official, HEADS, KV_HEADS) | names.to_gguf_vision(official)
    write_gguf(tmp_path / "a.gguf", {}, {name: Tensor.from_array(array) for name, array in arrays.items()})
    with GGUFFile(tmp_path / "a.gguf") as file:
        read = {name: tensor.dequantize() for name, tensor in file.tensors.items()}
    language = {name: read[name] for name in names.language_names(LAYERS)}
    vision = {name: read[name] for name in names.vision_names(LAYERS)}
    back = names.from_gguf_language(language, HEADS, KV_HEADS) | names.from_gguf_vision(vision)
    assert_same_tensors(back, official)


def test_one_tensor_at_a_time_gives_the_same(official):
    whole = names.to_gguf_language(official, HEADS, KV_HEADS) | names.to_gguf_vision(official)
    single = {}
    for name, array in official.items():
        single |= names.to_gguf_language({name: array}, HEADS, KV_HEADS) | names.to_gguf_vision({name: array})
    assert_same_tensors(single, whole)


def test_the_names_of_2_5_are_as_many_as_its_checkpoint_has():
    assert len(names.language_names(32)) == 291
    assert len({*names.language_names(32).values(), *names.vision_names(27).values()}) == 741
    assert set(names.language_names(32)) - set(names.language_names(32, tied=True)) == {"output.weight"}


def test_official_names_are_those_of_transformers():
    from transformers import Idefics2VisionConfig, LlamaConfig, LlamaForCausalLM
    from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    llm = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32))
    vpm = Idefics2VisionTransformer(Idefics2VisionConfig(**sizes, image_size=28, patch_size=14))
    assert {f"llm.{name}" for name in llm.state_dict()} == set(names.language_names(LAYERS).values())
    vision = {name for name in names.vision_names(LAYERS).values() if name.startswith("vpm.")}
    assert {f"vpm.{name}" for name in vpm.state_dict()} == vision


def test_q_and_k_in_gguf_order_give_the_same_scores():
    """RoPE over halves of official rows and over neighbouring pairs of GGUF rows: the same dot products."""
    rng = np.random.default_rng(6)
    heads, size, width, position = 3, 8, 10, 7
    angles = position * 500000.0 ** (-np.arange(size // 2) / (size // 2))
    turn = np.exp(1j * angles)
    x = rng.standard_normal(width)
    q, k = (rng.standard_normal((heads * size, width)) for _ in "qk")

    def halves(rows):
        v = (rows @ x).reshape(heads, size)
        return (v[:, : size // 2] + 1j * v[:, size // 2 :]) * turn

    def pairs(rows):
        v = (rows @ x).reshape(heads, size)
        return (v[:, ::2] + 1j * v[:, 1::2]) * turn

    for rows in (q, k):
        moved = names.interleave_rows(rows, heads)
        np.testing.assert_allclose(pairs(moved), halves(rows), rtol=1e-12)
        np.testing.assert_array_equal(names.deinterleave_rows(moved, heads), rows)


def test_projector_layouts(official):
    there = names.to_gguf_vision(official)
    np.testing.assert_array_equal(there["resampler.proj.weight"], official["resampler.proj"].T)
    np.testing.assert_array_equal(
        there["resampler.attn.k.bias"], official["resampler.attn.in_proj_bias"][WIDTH : 2 * WIDTH]
    )
    # The swap of the published files: ffn_down is the first linear layer.
    np.testing.assert_array_equal(there["v.blk.1.ffn_down.weight"], official["vpm.encoder.layers.1.mlp.fc1.weight"])
    np.testing.assert_array_equal(there["v.blk.1.ffn_up.bias"], official["vpm.encoder.layers.1.mlp.fc2.bias"])


def test_ffn_names_are_mended_by_shape(official):
    swapped = {name: Tensor.from_array(array) for name, array in names.to_gguf_vision(official).items()}
    language = names.to_gguf_language(official, HEADS, KV_HEADS)
    assert names.fix_ffn_names(language, VISION_WIDTH, VISION_FFN) == language  # its ffn names are others' business
    natural = names.fix_ffn_names(swapped, VISION_WIDTH, VISION_FFN)
    assert set(natural) == set(swapped)
    for n in range(LAYERS):
        assert natural[f"v.blk.{n}.ffn_up.weight"].shape == (VISION_FFN, VISION_WIDTH)
        assert natural[f"v.blk.{n}.ffn_up.bias"].shape == (VISION_FFN,)
        assert natural[f"v.blk.{n}.ffn_down.weight"].shape == (VISION_WIDTH, VISION_FFN)
    # A file that has the natural names already stays as it is, and reads the same.
    assert names.fix_ffn_names(natural, VISION_WIDTH, VISION_FFN) == natural
    back = names.from_gguf_vision({name: tensor.dequantize() for name, tensor in natural.items()})
    assert_same_tensors(back, part(official, "vpm", "resampler"))
    with pytest.raises(ModelFileError, match=r"v\.blk\.0\.ffn_down\.weight has shape \(12, 8\).*8 and 13"):
        names.fix_ffn_names(swapped, VISION_WIDTH, 13)


def test_the_position_table_of_a_projector_file_is_left_out(official):
    there = names.to_gguf_vision(official) | {names.POSITION_TABLE: np.zeros((4900, WIDTH), np.float32)}
    assert_same_tensors(names.from_gguf_vision(there), part(official, "vpm", "resampler"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: names.to_gguf_language({"llm.model.layers.0.mlp.experts.weight": x}, 4, 2), "experts.*no place"),
        (lambda x: names.to_gguf_language({"llm.model.layers.01.mlp.up_proj.weight": x}, 4, 2), "01.*no place"),
        (lambda x: names.to_gguf_language({"model.norm.weight": x}, 4, 2), r"'model\.norm\.weight'.*begin with llm"),
        (lambda x: names.to_gguf_language({"llm.model.layers.0.self_attn.q_proj.weight": x}, 3, 3), "16 rows.*3 heads"),
        (lambda x: names.to_gguf_vision({"resampler.pos_embed": x}), "pos_embed.*no place"),
        (lambda x: names.to_gguf_vision({"resampler.attn.in_proj_weight": x}), "16 rows.*q, k and v"),
        (lambda x: names.from_gguf_language({"blk.0.attn_q.bias": x}, 4, 2), r"attn_q\.bias.*no place"),
        (lambda x: names.from_gguf_vision({"v.post_ln.weight": x}), r"'v\.blk\.0\.ffn_up\.weight' is missing"),
    ],
)
def test_tensors_that_do_not_belong_are_named(call, words):
    with pytest.raises(ModelFileError, match=words):
        call(np.zeros((16, 16), np.float32))


def test_a_missing_tensor_is_named(official):
    there = names.to_gguf_vision(official)
    for name in ("resampler.attn.k.bias", "resampler.proj.weight", "v.post_ln.weight"):
        with pytest.raises(ModelFileError, match="missing"):
            names.from_gguf_vision({key: array for key, array in there.items() if key != name})
