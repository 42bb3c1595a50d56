"""MiniCPMV: the official names, the arithmetic of the device side, and what training asks of it."""

import json
import pickle
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from handlens.config import POSITION_MODES
from handlens.cpu.llama import KVCache
from handlens.errors import InputError, ModelFileError
from handlens.images import patches
from handlens.model import MiniCPMV, MiniCPMVConfig
from handlens.model.minicpmv import merge
from handlens.model.processing import collate
from handlens.positions import patch_position_ids
from handlens.weights import load_model
from tests.test_config import PUBLISHED
from tests.torch_side import conversation, torch_model

BOUND = 1e-4  # largest difference as a share of the largest number
MODES = [mode for mode in POSITION_MODES if mode != "interpolated"]  # which is that of 2.0 alone


def official_table() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of the published checkpoint of MiniCPM-Llama3-V 2.5."""
    wide, inner, kv, vocabulary = 4096, 14336, 1024, 128256
    yield "llm.model.embed_tokens.weight", (vocabulary, wide)
    yield "llm.model.norm.weight", (wide,)
    yield "llm.lm_head.weight", (vocabulary, wide)
    for index in range(32):
        layer = f"llm.model.layers.{index}."
        yield f"{layer}self_attn.q_proj.weight", (wide, wide)
        yield f"{layer}self_attn.o_proj.weight", (wide, wide)
        yield f"{layer}self_attn.k_proj.weight", (kv, wide)
        yield f"{layer}self_attn.v_proj.weight", (kv, wide)
        yield f"{layer}mlp.gate_proj.weight", (inner, wide)
        yield f"{layer}mlp.up_proj.weight", (inner, wide)
        yield f"{layer}mlp.down_proj.weight", (wide, inner)
        yield f"{layer}input_layernorm.weight", (wide,)
        yield f"{layer}post_attention_layernorm.weight", (wide,)
    tower, middle = 1152, 4304
    modules = {"vpm.embeddings.patch_embedding": (tower, 3, 14, 14), "vpm.post_layernorm": (tower,)}
    for index in range(27):
        layer = f"vpm.encoder.layers.{index}."
        modules |= {f"{layer}self_attn.{name}": (tower, tower) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        modules |= {f"{layer}mlp.fc1": (middle, tower), f"{layer}mlp.fc2": (tower, middle)}
        modules |= {f"{layer}layer_norm1": (tower,), f"{layer}layer_norm2": (tower,)}
    modules |= {"resampler.attn.out_proj": (wide, wide)}
    modules |= {f"resampler.{name}": (wide,) for name in ("ln_q", "ln_kv", "ln_post")}
    for name, shape in modules.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    yield "vpm.embeddings.position_embedding.weight", (4900, tower)
    yield "resampler.query", (96, wide)
    yield "resampler.kv_proj.weight", (wide, tower)
    yield "resampler.attn.in_proj_weight", (3 * wide, wide)
    yield "resampler.attn.in_proj_bias", (3 * wide,)
    yield "resampler.proj", (wide, wide)


@pytest.fixture(scope="module")
def batch(processor) -> dict[str, torch.Tensor]:
    """Three requests: one image, none, two."""
    return collate([processor(conversation(3)), processor(conversation(1, 0)), processor(conversation(2, 2))])


@pytest.fixture
def folder(model, tmp_path):
    """The tiny model as a checkpoint of several shards."""
    model.save_pretrained(tmp_path, max_shard_size="2MB")
    return tmp_path


def error(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """The largest difference as a share of the largest number."""
    return float(np.abs(ours - theirs.numpy()).max() / np.abs(ours).max())


# Names and config


def test_names_and_shapes_equal_the_official_index():
    with torch.device("meta"):
        model = MiniCPMV(MiniCPMVConfig.from_dict(PUBLISHED))
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == dict(official_table())
    assert len(model.state_dict()) == 741
    assert sum(tensor.numel() for tensor in model.parameters()) == 8_537_092_336


def test_a_dropped_last_layer_of_the_tower_has_no_tensors(tiny_model):
    config = MiniCPMVConfig.from_model_config(tiny_model.config)
    config.drop_vision_last_layer = True
    names = MiniCPMV(config).state_dict()
    assert "vpm.encoder.layers.0.mlp.fc1.weight" in names
    assert "vpm.encoder.layers.1.mlp.fc1.weight" not in names


def test_official_config_is_written_back_as_it_was(tmp_path, caplog):
    """All but: the version of transformers that wrote it, `use_cache`, which has no effect, and `auto_map`."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | {"auto_map": {"AutoConfig": "code.Config"}, "new": 1}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MiniCPMVConfig
    assert "auto_map" in caplog.text
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}
    assert config.use_cache
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    changed = {"transformers_version", "use_cache", "vision_config"}
    assert {key: written[key] for key in PUBLISHED.keys() - changed} == {
        key: PUBLISHED[key] for key in PUBLISHED.keys() - changed
    }
    assert written["vision_config"].items() >= PUBLISHED["vision_config"].items()
    assert written["new"] == 1
    assert written.keys() - PUBLISHED.keys() == {"new", "head_dim", "mlp_bias", "pad_token_id"}
    assert AutoConfig.from_pretrained(tmp_path / "again").model_config() == config.model_config()


def test_config_equals_that_of_the_device_side(tiny_model, mini_model):
    for made in (tiny_model, mini_model):
        config = MiniCPMVConfig.from_model_config(made.config)
        assert config.model_config() == made.config
        assert MiniCPMVConfig.from_dict(json.loads(config.to_json_string())).model_config() == made.config


def test_config_that_lacks_a_size_is_refused_as_on_the_device_side():
    for key in ("query_num", "hidden_size", "drop_vision_last_layer", "vision_config"):
        with pytest.raises(ModelFileError, match=key):
            MiniCPMVConfig.from_dict({name: value for name, value in PUBLISHED.items() if name != key})


def test_position_mode_can_be_chosen_while_loading(folder):
    model = MiniCPMV.from_pretrained(folder, vit_position_mode="grid_2d")
    assert model.vpm.position_mode == "grid_2d"
    with pytest.raises(ModelFileError, match="diagonal"):
        MiniCPMV.from_pretrained(folder, vit_position_mode="diagonal")


# Checkpoints


def test_saved_and_loaded_again_it_computes_the_same(model, folder, batch):
    assert len(list(folder.glob("*.safetensors"))) > 2
    again = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(again) is MiniCPMV
    assert again.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_m18_code_that_a_checkpoint_names_is_reported_and_never_run(folder, caplog):
    values = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(values | {"auto_map": names}))
    (folder / "evil.py").write_text("raise SystemExit('this ran')")
    for trust in ({}, {"trust_remote_code": True}):
        caplog.clear()
        model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
        assert type(model) is MiniCPMV
        assert "auto_map" in caplog.text
    assert "trust_remote_code is not needed" in caplog.text
    model.save_pretrained(folder / "again")
    assert "auto_map" not in json.loads((folder / "again" / "config.json").read_text())


class Trap:
    """Fails the test where it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def test_m16_pickles_are_refused_before_they_are_read(folder):
    trap = pickle.dumps(Trap())
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    index = folder / "model.safetensors.index.json"
    (folder / "pytorch_model.bin").write_bytes(trap)
    for load in (MiniCPMV.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        with pytest.raises(ModelFileError, match=r"pytorch_model\.bin.*can run code"):
            load(folder)
    with pytest.raises(ModelFileError, match="is a file"):
        MiniCPMV.from_pretrained(folder / "pytorch_model.bin", config=MiniCPMVConfig.from_pretrained(folder))
    with pytest.raises(InputError, match="use_safetensors"):
        MiniCPMV.from_pretrained(folder, use_safetensors=False)
    save_file({"x": torch.zeros(1)}, folder / "decoy.safetensors")
    index.write_text(json.dumps({"weight_map": {"llm.model.norm.weight": "pytorch_model.bin"}}))
    with pytest.raises(ModelFileError, match=r"names 'pytorch_model\.bin', which is not a safetensors file"):
        MiniCPMV.from_pretrained(folder)


def rewrite(folder, change) -> None:
    """Changes the tensors of the shard that holds a norm of the resampler."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"]["resampler.ln_post.weight"]
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})


def test_tensors_that_are_missing_left_over_or_misshapen_are_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("resampler.ln_post.weight"))
    with pytest.raises(ModelFileError, match=r"lacks 'resampler\.ln_post\.weight'"):
        MiniCPMV.from_pretrained(folder)
    rewrite(folder, lambda tensors: tensors.update({"resampler.ln_post.weight": torch.zeros(3)}))
    told = re.escape("resampler.ln_post.weight has shape [3], its config wants [256]")
    with pytest.raises(ModelFileError, match=told):
        MiniCPMV.from_pretrained(folder)
    rewrite(folder, lambda tensors: tensors.update({"resampler.ln_post.weight": torch.zeros(256)}))
    rewrite(folder, lambda tensors: tensors.update({"resampler.extra": torch.zeros(3)}))
    with pytest.raises(ModelFileError, match=r"holds 'resampler\.extra' of no known use"):
        AutoModelForImageTextToText.from_pretrained(folder)


def test_a_damaged_safetensors_file_is_a_model_file_error(folder):
    shard = min(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ModelFileError, match=re.escape(str(folder))):
        MiniCPMV.from_pretrained(folder)


# The same answers as the device side


@pytest.mark.parametrize("mode", MODES)
def test_every_stage_equals_the_device_side(tiny_model, processor, mode):
    engine = load_model(tiny_model.model, tiny_model.mmproj, position_mode=mode).generator
    backend, model = engine.backend, torch_model(tiny_model, mode)
    inputs = processor(conversation(8))
    images = inputs.images
    sizes = [size for image in images for size in image.plan.tgt_sizes]
    longest = max(rows * cols for rows, cols in sizes)
    assert len({rows * cols for rows, cols in sizes}) > 1  # so that there is padding

    seen = {}
    stages = {"embeddings": model.vpm.embeddings, "post norm": model.vpm.post_layernorm, "resampler": model.resampler}
    stages |= {f"layer {index}": layer for index, layer in enumerate(model.vpm.encoder.layers)}
    stages |= {"merged": model.llm}
    keep = {name: lambda _, args, kwargs, out, name=name: seen.update({name: out}) for name in stages}
    keep["merged"] = lambda _, args, kwargs, out: seen.update(merged=kwargs["inputs_embeds"])
    hooks = [module.register_forward_hook(keep[name], with_kwargs=True) for name, module in stages.items()]
    with torch.no_grad():
        logits = model(**collate([inputs])).logits
    for hook in hooks:
        hook.remove()

    tower = backend.tower
    for index, (pixels, size) in enumerate(
        zip([pixels for image in images for pixels in image.slices], sizes, strict=True)
    ):
        cells = patches(pixels, 14)
        ids = patch_position_ids(mode, *size, longest, tower.config.position_side)
        x = tower.embed(np.pad(cells, ((0, len(ids) - len(cells)), (0, 0))), ids)
        assert error(x, seen["embeddings"][index, : len(ids)]) < BOUND
        for layer in range(tower.config.num_hidden_layers):
            x = tower.layer(x, layer)
            assert error(x, seen[f"layer {layer}"][index, : len(ids)]) < BOUND
        features = tower.post_norm(x[: len(cells)])
        assert error(features, seen["post norm"][index, : len(cells)]) < BOUND
        assert error(backend.resampler.forward(features, size), seen["resampler"][index]) < BOUND
    merged = engine.embeddings(inputs)
    assert error(merged, seen["merged"][0]) < BOUND
    [ours] = backend.llama.forward([merged], [KVCache(tiny_model.config.llm)], all_logits=True)
    assert error(ours, logits[0]) < BOUND


# Batches


@pytest.mark.parametrize("mode", MODES)
def test_what_a_request_sees_does_not_depend_on_the_others(tiny_model, processor, mode):
    model = torch_model(tiny_model, mode)
    alone = [collate([processor(conversation(index))]) for index in (3, 8, 5)]
    together = collate([processor(conversation(index)) for index in (3, 8, 5)])
    lengths = [batch["pixel_values"].shape[-1] for batch in alone]
    assert len(set(lengths)) > 1
    with torch.no_grad():
        vectors = model.get_image_features(*(together[key] for key in ("pixel_values", "tgt_sizes", "slice_request")))
        for row, batch in enumerate(alone):
            own = model.get_image_features(*(batch[key] for key in ("pixel_values", "tgt_sizes", "slice_request")))
            assert torch.allclose(vectors[together["slice_request"] == row], own, rtol=0, atol=1e-5 * own.abs().max())


def test_in_reference_mode_the_longest_slice_of_the_request_counts(model, processor):
    """What the masks guard against: were all slices of one request, a short one would see other positions."""
    batch = collate([processor(conversation(3)), processor(conversation(8))])
    pixels, sizes, request = (batch[key] for key in ("pixel_values", "tgt_sizes", "slice_request"))
    with torch.no_grad():
        apart = model.get_image_features(pixels, sizes, request)
        as_one = model.get_image_features(pixels, sizes, request * 0)
    assert (apart - as_one).abs().max() > 1e-2 * apart.abs().max()


def test_padding_on_the_left_does_not_change_the_logits(model, processor, batch):
    requests = [processor(conversation(3)), processor(conversation(1, 0)), processor(conversation(2, 2))]
    with torch.no_grad():
        logits = model(**batch).logits
        for row, request in enumerate(requests):
            alone = model(**collate([request])).logits[0]
            assert torch.allclose(logits[row, -len(alone) :], alone, rtol=0, atol=1e-4 * alone.abs().max())


def test_image_tensors_that_do_not_fit_are_refused(model, batch):
    for key, value in {
        "image_bound": batch["image_bound"] + 10_000,
        "slice_request": batch["slice_request"] + 3,
        "tgt_sizes": batch["tgt_sizes"] * 9,
    }.items():
        with pytest.raises(InputError):
            model(**batch | {key: value})
    with pytest.raises(InputError, match="96 vectors"):
        model(**batch | {"image_bound": batch["image_bound"] - torch.tensor([1, 0])})
    with pytest.raises(InputError, match="either input_ids or inputs_embeds"):
        model(pixel_values=batch["pixel_values"])


# Training


@pytest.fixture
def trained(tiny_model) -> MiniCPMV:
    """A model of its own to each test, in training mode."""
    return torch_model(tiny_model).train()


def test_loss_is_the_cross_entropy_of_the_next_tokens(model, batch):
    labels = batch["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    labels[batch["attention_mask"] == 0] = -100
    with torch.no_grad():
        out = model(**batch, labels=labels)
        shares = torch.log_softmax(out.logits[:, :-1].double(), dim=-1)  # [B, T - 1, V]
    told = labels[:, 1:] != -100
    by_hand = -shares[told].gather(1, labels[:, 1:][told][:, None]).mean()
    assert torch.allclose(out.loss.double(), by_hand, rtol=1e-5)


def test_gradients_reach_every_part(trained, batch):
    trained(**batch, labels=batch["input_ids"]).loss.backward()
    missed = [name for name, tensor in trained.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    # A bias of all keys moves all scores of a query alike, so it has no gradient but for rounding.
    assert [name for name in missed if not name.endswith("k_proj.bias")] == []


def test_merge_leaves_the_embeddings_as_they_are(trained, batch):
    """The original writes into a view of them, which autograd refuses where they are trained."""
    table = trained.get_input_embeddings().weight
    embeds = trained.get_input_embeddings()(batch["input_ids"])
    before = embeds.detach().clone()
    vectors = torch.ones(len(batch["tgt_sizes"]), 96, 256, requires_grad=True)
    merged = merge(embeds, vectors, batch["slice_request"], batch["image_bound"])
    assert torch.equal(embeds, before)
    merged.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))
    filler = batch["input_ids"][batch["slice_request"][0], batch["image_bound"][0, 0]]
    assert not table.grad[filler].any()  # its embedding was replaced everywhere
    assert (merged == 1).all(dim=-1).sum() == vectors.shape[0] * vectors.shape[1]


def test_a_batch_without_images_touches_the_vision_weights_while_training(trained, processor):
    batch = collate([processor(conversation(1, 0))])
    assert "pixel_values" not in batch
    out = trained(**batch, labels=batch["input_ids"])
    out.loss.backward()
    vision = [tensor for name, tensor in trained.named_parameters() if not name.startswith("llm.")]
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in vision)
    trained.eval()
    assert torch.equal(trained(**batch, labels=batch["input_ids"]).loss, out.loss)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # the name that all of 5.x knows
def test_gradient_checkpointing_gives_the_same_gradients(trained, batch):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            trained.gradient_checkpointing_enable()
        trained.zero_grad()
        trained(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append([tensor.grad.clone() for tensor in trained.parameters()])
    assert trained.is_gradient_checkpointing
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, rtol=0, atol=1e-6)


def test_a_new_model_is_initialised_everywhere(tiny_model):
    torch.manual_seed(0)
    model = MiniCPMV(MiniCPMVConfig.from_model_config(tiny_model.config))
    for name, tensor in model.named_parameters():
        assert tensor.isfinite().all()
        constant = 1.0 if "norm.weight" in name or re.search(r"(norm\d|ln_\w+)\.weight", name) else 0.0
        if tensor.ndim == 1:
            assert (tensor == constant).all(), name
        else:
            assert 0.01 < tensor.std() < 0.1, name
