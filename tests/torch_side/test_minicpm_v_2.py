"""MiniCPM-V 2.0: its tensors, its scaled language model, its resampled positions, and the device side of them."""

import json
import math
from dataclasses import replace
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
import xllamacpp
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from handlens.chat import load
from handlens.checkpoint import open_checkpoint
from handlens.config import FAMILIES, ModelConfig, Scaling, official_config, official_values
from handlens.conversion import to_checkpoint, to_gguf
from handlens.cpu import reference
from handlens.cpu.llama import KVCache, Llama
from handlens.engine.sampling import SamplingParams
from handlens.errors import InputError, ModelFileError
from handlens.gguf import GGUFFile
from handlens.gguf.names import from_gguf_vision, language_names, to_gguf_language, to_gguf_vision, vision_names
from handlens.images import patches
from handlens.model import MiniCPMV, MiniCPMVConfig
from handlens.model.processing import collate
from handlens.positions import patch_position_ids, resampled_table
from handlens.processor import Processor
from handlens.tokenizer import Tokenizer
from tests import tiny
from tests.test_config import PUBLISHED_20
from tests.test_tokenizer import trained
from tests.torch_side import conversation

GREEDY = SamplingParams.greedy(max_new_tokens=12)
NAMES = FAMILIES["minicpm-v-2.0"].tokens
SPECIAL = [NAMES.image_open, NAMES.image_close, *NAMES.shown, NAMES.slice_open, NAMES.slice_close]


def tokenizer_json() -> str:
    """A SentencePiece vocabulary with the special tokens of 2.0 behind it."""
    spec = json.loads(trained("llama"))
    spec["added_tokens"] = spec["added_tokens"][:3]  # <unk>, <s>, </s>
    vocab = spec["model"]["vocab"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] += [
        {"id": len(vocab) + number, "content": name, "special": True, **flags} for number, name in enumerate(SPECIAL)
    ]
    return json.dumps(spec)


def tiny_config(vocab_size: int) -> ModelConfig:
    config = tiny.config(FAMILIES["minicpm-v-2.0"], vocab_size=vocab_size, num_key_value_heads=4, rope_theta=10000.0)
    return replace(
        config,
        scaling=Scaling(embedding=12.0, residual=1.4 / math.sqrt(2), logits=0.25),
        vision=replace(config.vision, position_side=27, hidden_act="gelu"),
        resampler=replace(config.resampler, query_position=True),
    )


def official_tensors(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Random tensors under the names of timm, special tokens the least likely."""
    tensors = tiny.official_tensors(config)
    language = {name: array for name, array in tensors.items() if name.startswith("llm.")}
    language["llm.lm_head.weight"][list(tokenizer.special.values())] = 0
    vision = from_gguf_vision(to_gguf_vision(tensors), "timm")
    rng = np.random.default_rng(3)
    shape = config.resampler.query_num, config.resampler.embed_dim
    return language | vision | {"resampler.pos_embed": rng.standard_normal(shape).astype(np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint of 2.0, float32."""
    folder = tmp_path_factory.mktemp("2.0")
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    config = tiny_config(tokenizer.vocab_size)
    (folder / "config.json").write_text(json.dumps(official_values(config)), encoding="utf-8")
    tensors = official_tensors(config, tokenizer)
    save_file(
        {name: torch.from_numpy(np.array(a, order="C")) for name, a in tensors.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.fixture(scope="module")
def model(folder) -> MiniCPMV:
    return MiniCPMV.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):
    return to_gguf(folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf", type="F32").paths


# Names and sizes


def test_the_tensors_are_those_of_the_published_index():
    """694 of them with 3,434,965,792 numbers, which in bfloat16 make the 6,869,931,584 bytes of its total size."""
    with torch.device("meta"):
        model = MiniCPMV(MiniCPMVConfig.from_dict(PUBLISHED_20))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(shapes) == 694
    assert sum(map(math.prod, shapes.values())) == 3_434_965_792
    layer, block = "llm.model.layers.39.", "vpm.blocks.25."
    assert shapes == shapes | {
        "llm.model.embed_tokens.weight": (122753, 2304),
        "llm.lm_head.weight": (122753, 2304),
        "llm.model.norm.weight": (2304,),
        **{f"{layer}self_attn.{name}_proj.weight": (2304, 2304) for name in "qkvo"},
        f"{layer}mlp.gate_proj.weight": (5760, 2304),
        f"{layer}mlp.down_proj.weight": (2304, 5760),
        "vpm.pos_embed": (1, 729, 1152),
        "vpm.patch_embed.proj.weight": (1152, 3, 14, 14),
        f"{block}attn.qkv.weight": (3456, 1152),
        f"{block}attn.qkv.bias": (3456,),
        f"{block}mlp.fc1.weight": (4304, 1152),
        f"{block}mlp.fc2.bias": (1152,),
        "vpm.norm.bias": (1152,),
        "resampler.query": (64, 2304),
        "resampler.pos_embed": (64, 2304),
        "resampler.kv_proj.weight": (2304, 1152),
        "resampler.attn.in_proj_weight": (6912, 2304),
        "resampler.proj": (2304, 2304),
    }
    assert shapes.keys() == {*language_names(40).values(), *vision_names(26, "timm").values()}


def test_names_there_and_back(model):
    official = {name: tensor.numpy() for name, tensor in model.state_dict().items() if not name.startswith("llm.")}
    there = to_gguf_vision(official, "timm")
    assert there.keys() == vision_names(2, "timm").keys()
    assert there["v.position_embd.weight"].shape == (729, 64)
    back = from_gguf_vision(there, "timm")
    assert back.keys() == official.keys()
    for name, array in official.items():
        np.testing.assert_array_equal(back[name], array)
    q = model.vpm.blocks[1].attn.qkv.weight[:64].detach().numpy()
    np.testing.assert_array_equal(there["v.blk.1.attn_q.weight"], q)


def test_missing_and_strange_tensors_are_named(folder, tmp_path, model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("vpm.blocks.1.attn.qkv.bias", "resampler.pos_embed", "vpm.pos_embed"):
        for path in folder.glob("*.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        save_file({other: tensor for other, tensor in state.items() if other != name}, tmp_path / "model.safetensors")
        for read in (open_checkpoint, MiniCPMV.from_pretrained):
            with pytest.raises(ModelFileError, match=f"lacks .*{name}"):
                read(tmp_path)
        (tmp_path / "model.safetensors").unlink()


# The language model


def prompt(model: MiniCPMV) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 17)))


def test_folded_weights_compute_what_the_scaled_ones_do(folder, model):
    """As a plain Llama of transformers and as ours."""
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config.scaling == Scaling()
    plain = MiniCPMV(MiniCPMVConfig.from_model_config(checkpoint.config)).eval()
    sizes = checkpoint.config.llm
    factors = {"embed_tokens.weight": 12, "o_proj.weight": 1.4 / 2**0.5, "down_proj.weight": 1.4 / 2**0.5}
    state = {}
    for name, tensor in model.state_dict().items():
        factor = next((factor for end, factor in factors.items() if name.endswith(end)), 1)
        state[name] = tensor * (0.25 if name == "llm.lm_head.weight" else factor)
    plain.load_state_dict(state)
    ids = prompt(model)
    with torch.no_grad():
        scaled, folded = model(input_ids=ids).logits, plain(input_ids=ids).logits
        unscaled = plain.llm(input_ids=ids).logits
    assert torch.equal(folded, unscaled)
    scale = scaled.abs().max()
    assert (folded - scaled).abs().max() < 1e-5 * scale

    weights = {name: tensor.dequantize() for name, tensor in checkpoint.language.items()}
    wanted = to_gguf_language({name: t.numpy() for name, t in state.items()}, *[sizes.num_attention_heads] * 2)
    for name, array in wanted.items():
        np.testing.assert_allclose(weights[name], array, rtol=1e-6, atol=1e-7)
    llama = Llama(sizes, weights)
    for row, logits in zip(ids.numpy(), scaled.numpy(), strict=True):
        ours = llama.forward([llama.embed(row)], [KVCache(sizes)], all_logits=True)[0]
        assert np.abs(ours - logits).max() < 1e-5 * float(scale)


def test_stock_llama_cpp_runs_the_folded_model(model, pair):
    """It sees a Llama and gives the tokens and the chances of the scaled form."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(pair[0]), 512, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = params.cache_prompt = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    wish = {"n_predict": 16, "temperature": 0, "samplers": ["temperature"], "return_tokens": True, "n_probs": 5}
    for ids in prompt(model):
        body = json.dumps({"prompt": ids.tolist(), **wish}).encode()
        request = Request(server.listening_address + "/completion", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            theirs = json.load(response)
        with torch.no_grad():
            ours = model.generate(ids[None], max_new_tokens=16, do_sample=False, eos_token_id=None)[0, len(ids) :]
            chances = model(input_ids=ids[None]).logits[0, -1].log_softmax(-1)
        assert theirs["tokens"] == ours.tolist()
        first = theirs["completion_probabilities"][0]["top_logprobs"]
        assert max(abs(float(chances[top["id"]]) - top["logprob"]) for top in first) < 1e-4


def test_every_factor_counts(folder, model):
    ids = prompt(model)
    values = json.loads((folder / "config.json").read_text())
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        for key in ("scale_emb", "scale_depth", "dim_model_base"):
            other = MiniCPMV(MiniCPMVConfig.from_dict(values | {key: values[key] * 2})).eval()
            other.load_state_dict(model.state_dict())
            assert (other(input_ids=ids).logits - logits).abs().max() > 0.1


def test_cached_decoding_equals_the_full_forward(model):
    ids = prompt(model)
    with torch.no_grad():
        full = model(input_ids=ids).logits
        start = model(input_ids=ids[:, :9], use_cache=True)
        rest = model(input_ids=ids[:, 9:], past_key_values=start.past_key_values).logits
    assert (torch.cat([start.logits, rest], dim=1) - full).abs().max() < 1e-4


# The vision side


@pytest.mark.parametrize("size", [(27, 27), (32, 32), (20, 50), (14, 73), (1, 3), (60, 17), (1, 1)])
def test_positions_are_resampled_as_timm_does_it(size):
    table = np.random.default_rng(0).standard_normal((27 * 27, 8)).astype(np.float32)
    square = torch.from_numpy(table).reshape(1, 27, 27, 8).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(square, size=size, mode="bicubic", antialias=True, align_corners=False)
    given = resampled_table(table, *size)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, wanted[0].flatten(1).T.numpy(), atol=2e-5)
    if size == (27, 27):
        np.testing.assert_array_equal(given, table)
    np.testing.assert_array_equal(patch_position_ids("interpolated", *size, 9999, 27), np.arange(len(given)))


def test_the_exact_gelu():
    x = np.concatenate([np.linspace(-12, 12, 100_001), [0, -1e4, 1e4, np.inf]]).astype(np.float32)
    wanted = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(reference.gelu(x), wanted, atol=1e-6)


def test_features_and_vectors_are_those_of_the_device_side(model, pair):
    backend = load(*pair).generator.backend
    for rows, cols in [(8, 8), (5, 11), (13, 4), (27, 27), (1, 1)]:
        pixels = np.random.default_rng(rows).standard_normal((3, 14 * rows, 14 * cols)).astype(np.float32)
        cells = patches(pixels, 14)
        features = backend.tower.encode(cells, (rows, cols), rows * cols)
        values = torch.from_numpy(cells).reshape(1, -1, 3, 14, 14).permute(0, 2, 3, 1, 4).flatten(3)
        sizes = torch.tensor([[rows, cols]])
        with torch.no_grad():
            theirs = model.vpm(values, sizes, torch.zeros(1, dtype=torch.long))
            vectors = model.resampler(theirs, sizes)
        assert np.abs(features - theirs[0].numpy()).max() < 1e-4
        assert np.abs(backend.resampler.forward(features, (rows, cols)) - vectors[0].numpy()).max() < 1e-4


def test_slices_do_not_know_of_each_other(model, pair):
    processor = load(*pair).processor
    requests = [processor(conversation(index)) for index in (3, 4, 8)]
    with torch.no_grad():
        batch = collate(requests)
        together = model.get_image_features(batch["pixel_values"], batch["tgt_sizes"], batch["slice_request"])
        alone = []
        for request in requests:
            one = collate([request])
            alone.append(model.get_image_features(one["pixel_values"], one["tgt_sizes"], one["slice_request"]))
    assert (torch.cat(alone) - together).abs().max() < 1e-4


def test_a_slice_that_does_not_fit_is_refused(model):
    for sizes in ([[3, 3]], [[0, 4]]):
        with pytest.raises(InputError, match="do not fit"):
            model.vpm(torch.zeros(1, 3, 14, 14 * 8), torch.tensor(sizes), torch.zeros(1, dtype=torch.long))


# Everything together


def test_the_prompt_is_that_of_the_original(folder):
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    processor = Processor(official_config(json.loads((folder / "config.json").read_text())), tokenizer)
    image = Image.new("RGB", (112, 112))
    inputs = processor([{"role": "user", "content": [image, "What is this?"]}])
    text, marks = tokenizer.encode, tokenizer.special
    assert inputs.input_ids.tolist() == [
        marks["<s>"],
        *text("<用户>"),
        marks["<image>"],
        *[marks["<unk>"]] * 64,
        marks["</image>"],
        *text("\nWhat is this?<AI>"),
    ]
    (start, end) = inputs.image_bound[0]
    assert set(inputs.input_ids[start:end].tolist()) == {marks["<unk>"]} and end - start == 64
    assert processor.stop_ids == (marks["</s>"],)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_every_way_in_gives_the_same_tokens(folder, model, pair, tmp_path, backend):
    to_gguf(folder, tmp_path / "one.gguf", single=True)
    to_checkpoint(*pair, tmp_path / "back")
    chats = [
        load(*files, backend=backend) for files in (pair, (folder,), (tmp_path / "one.gguf",), (tmp_path / "back",))
    ]
    for index in (0, 3, 4):
        msgs, answers = conversation(index), []
        batch = collate([chats[0].processor(msgs)])
        for chat in chats:
            answers.append(list(chat.generator.generate(chat.prepare(msgs, GREEDY), GREEDY, ())))
        answers.append(model.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()[-12:])
        assert answers == answers[:1] * 5 and len(set(answers[0])) > 2


def test_a_checkpoint_of_bfloat16_becomes_float16(folder, tmp_path):
    """The factors cost bits, and float16 has three more."""
    half = tmp_path / "half"
    MiniCPMV.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(half)
    (half / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    written = to_gguf(half, tmp_path / "a.gguf")
    assert written.type == "F16"
    with GGUFFile(written.paths[0]) as file, GGUFFile(written.paths[1]) as projector:
        assert file.metadata["handlens.family"] == projector.metadata["handlens.family"] == "minicpm-v-2.0"
        assert projector.metadata["handlens.vit_position_mode"] == "interpolated"
        assert projector.metadata["clip.minicpmv_version"] == 1
    exact, given = load(half), load(*written.paths)
    msgs = conversation(1)
    wanted, made = (c.generator.embeddings(c.prepare(msgs, GREEDY)) for c in (exact, given))
    assert np.abs(made - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_a_folder_made_of_gguf_files_loads_through_the_auto_classes(model, pair, tmp_path):
    to_checkpoint(*pair, tmp_path / "back")
    processor = AutoProcessor.from_pretrained(tmp_path / "back")
    image = Image.effect_noise((90, 150), 60)
    msgs = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(msgs, **options)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "back")
    chat = load(*pair)
    ours = list(chat.generator.generate(chat.prepare(msgs, GREEDY), GREEDY, ()))
    assert again.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, -12:].tolist() == ours


def test_saved_and_loaded_again_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = MiniCPMV.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.config.model_config() == model.config.model_config()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_position_mode_of_another_design_is_refused(folder, pair):
    for files in ((folder,), pair):
        for backend in ("cpu", "torch"):
            with pytest.raises(InputError, match=r"'grid_2d' cannot be that of MiniCPM-V 2\.0"):
                load(*files, position_mode="grid_2d", backend=backend)
