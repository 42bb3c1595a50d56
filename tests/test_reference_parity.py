"""The numpy model against its references (torch, transformers), and the arithmetic against plain formulas."""

import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from benchmarks.parity import (
    language_stages,
    resampler_stage,
    transformers_llama,
    transformers_vision,
    vision_stages,
)
from handlens.cpu import reference
from handlens.cpu.llama import KVCache, Llama
from handlens.cpu.vision import Resampler, VisionTower
from handlens.errors import ModelFileError
from handlens.gguf.blocks import Tensor
from handlens.gguf.names import fix_ffn_names, to_gguf_language, to_gguf_vision
from tests import tiny

BOUND = 1e-4  # largest difference as a share of the largest number, for every stage

# Counts of patches for which today's transformers and the original code agree on the position ids (they round
# differently; tests/test_vision_positions.py holds ours to the original for every count).
GRIDS = [(5, 6), (4, 7), (8, 3), (1, 24)]


@pytest.fixture(scope="module")
def config():
    return tiny.config()


@pytest.fixture(scope="module")
def official(config):
    return tiny.official_tensors(config)


@pytest.fixture(scope="module")
def language(config, official):
    return to_gguf_language(official, config.llm.num_attention_heads, config.llm.num_key_value_heads)


@pytest.fixture(scope="module")
def vision(config, official):
    return fix_ffn_names(to_gguf_vision(official), config.vision.hidden_size, config.vision.intermediate_size)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(7)


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


# The model, stage by stage


def test_every_stage_of_the_language_model_equals_transformers(config, official, language, rng):
    ids = rng.integers(0, config.llm.vocab_size, 150)
    stages = list(language_stages(config.llm, language, transformers_llama(config.llm, official), ids))
    assert len(stages) == config.llm.num_hidden_layers + 2
    assert {stage.name: stage.relative_error for stage in stages if stage.relative_error > BOUND} == {}


@pytest.mark.parametrize("mode", ["reference", "masked_1d", "grid_2d"])
def test_every_stage_of_the_vision_tower_equals_transformers(config, official, vision, rng, mode):
    patches = [rng.uniform(-1, 1, (rows * cols, 588)).astype(np.float32) for rows, cols in GRIDS]
    tower = transformers_vision(config.vision, official)
    stages = list(vision_stages(replace(config.vision, position_mode=mode), vision, tower, patches, GRIDS))
    assert len(stages) == config.vision.num_hidden_layers + 2
    assert {stage.name: stage.relative_error for stage in stages if stage.relative_error > BOUND} == {}


@pytest.mark.parametrize("query_position", [False, True])
def test_resampler_equals_torch_on_a_padded_batch(config, official, vision, rng, query_position):
    sizes = replace(config.resampler, query_position=query_position)
    if query_position:
        position = {"resampler.pos_embed": normal(rng, sizes.query_num, sizes.embed_dim)}
        official, vision = official | position, vision | position
    grids = [*GRIDS, (2, 75)]  # wider than the 70 columns that the original computes ahead
    features = [normal(rng, rows * cols, sizes.kv_dim) for rows, cols in grids]
    assert resampler_stage(sizes, vision, official, features, grids).relative_error < BOUND


def test_rope_factors_equal_the_scaled_frequencies_of_transformers(config, official, language, rng):
    """`rope_freqs.weight` is how GGUF files of Llama 3.1 say `rope_type: llama3`."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    theirs = transformers_llama(config.llm, official, scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs.config, "cpu")
    plain = reference.rope_frequencies(config.llm.head_dim, config.llm.rope_theta)
    factors = {"rope_freqs.weight": plain / scaled.numpy()}
    ids = rng.integers(0, config.llm.vocab_size, 100)
    with_factors = list(language_stages(config.llm, language | factors, theirs, ids))
    assert max(stage.relative_error for stage in with_factors) < BOUND
    without = list(language_stages(config.llm, language, theirs, ids))
    assert without[-1].relative_error > 100 * BOUND


@pytest.mark.parametrize("theta", [500000.0, 10000.0])
def test_rope_turns_as_in_transformers_at_the_end_of_the_context(config, official, theta):
    theirs = transformers_llama(replace(config.llm, rope_theta=theta), official).model.rotary_emb
    positions = np.arange(8192)
    wanted = theirs(torch.zeros(1), torch.from_numpy(positions)[None])
    frequencies = reference.rope_frequencies(config.llm.head_dim, theta)
    for ours, both_halves in zip(reference.rope_table(positions, frequencies), wanted, strict=True):
        np.testing.assert_allclose(ours, both_halves[0, :, : config.llm.head_dim // 2].numpy(), rtol=0, atol=2e-6)


def test_missing_output_matrix_means_the_embeddings(config, language):
    tied = {name: tensor for name, tensor in language.items() if name != "output.weight"}
    twice = tied | {"output.weight": language["token_embd.weight"]}
    logits = [
        Llama(config.llm, weights).forward([Llama(config.llm, weights).embed([1, 2, 3])], [KVCache(config.llm)])
        for weights in (tied, twice, language)
    ]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 0.1


# Quantised weights


def test_quantised_model_equals_the_model_of_its_dequantised_weights(config, language, monkeypatch):
    quantised = {
        name: Tensor.from_array(array, "Q8_0") if array.ndim == 2 else array for name, array in language.items()
    }
    dequantised = {name: reference.dense(weight) for name, weight in quantised.items()}
    monkeypatch.setattr(reference, "DEQUANTIZED_BYTES", 100 * 4 * config.llm.hidden_size)  # 100 rows at a time
    results = []
    for weights in (quantised, dequantised):
        llama = Llama(config.llm, weights)
        results.append(llama.forward([llama.embed([5, 900, 5, 6, 7, 1])], [KVCache(config.llm)]))
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-5 * np.abs(results[1]).max())


def test_vision_of_float16_tensors_equals_their_float32_values(config, vision, rng):
    stored = {
        name: Tensor.from_array(array, "F16" if name.endswith("weight") else "F32") if array.ndim > 1 else array
        for name, array in vision.items()
    }
    dense = {name: reference.dense(weight) for name, weight in stored.items()}
    patches = rng.uniform(-1, 1, (30, 588)).astype(np.float32)
    vectors = []
    for weights in (stored, dense):
        features = VisionTower(config.vision, weights).encode(patches, (5, 6), 30)
        vectors.append(Resampler(config.resampler, weights).forward(features, (5, 6)))
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=0, atol=1e-5 * np.abs(vectors[1]).max())


def test_embedding_reads_only_the_wanted_rows(rng, monkeypatch):
    table = Tensor.from_array(normal(rng, 500, 64), "Q8_0")
    ids = np.array([499, 3, 4, 3, 0, 120])
    wanted = table.dequantize()[ids]
    read = []
    dequantize = Tensor.dequantize

    def watched(tensor, start=None, stop=None):
        read.append((start, stop))
        return dequantize(tensor, start, stop)

    monkeypatch.setattr(Tensor, "dequantize", watched)
    np.testing.assert_array_equal(reference.embedding(ids, table), wanted)
    assert read == [(0, 1), (3, 5), (120, 121), (499, 500)]


# The arithmetic


@pytest.mark.parametrize("dtype", ["float32", "Q8_0"])
def test_no_ids_have_no_embeddings(rng, dtype):
    table = normal(rng, 8, 32)
    table = table if dtype == "float32" else Tensor.from_array(table, dtype)
    assert reference.embedding(np.array([], np.int64), table).shape == (0, 32)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_blocks_equals_torch(rng, causal, monkeypatch):
    n, m, heads, kv_heads, width = 37, 53, 6, 2, 8
    q, keys, values = normal(rng, n, heads, width), normal(rng, kv_heads, m, width), normal(rng, kv_heads, m, width)
    if not causal:
        keys, values = np.repeat(keys, heads // kv_heads, axis=0), np.repeat(values, heads // kv_heads, axis=0)
    mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else None
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x)[None] for x in (q.swapaxes(0, 1).copy(), keys, values)), attn_mask=mask, enable_gqa=True
    )[0].numpy()
    for rows in (n, 5, 1):  # queries a block
        monkeypatch.setattr(reference, "SCORE_BYTES", rows * 4 * heads * m)
        if causal:
            out = reference.causal_attention(q, keys, values)
        else:
            out = reference.attention(q, keys.swapaxes(0, 1), values.swapaxes(0, 1))
        np.testing.assert_allclose(out.swapaxes(0, 1), wanted, rtol=0, atol=1e-6)


def test_attention_reads_only_the_counted_keys(rng):
    q, k, v = normal(rng, 4, 2, 8), normal(rng, 9, 2, 8), normal(rng, 9, 2, 8)
    np.testing.assert_array_equal(reference.attention(q, k, v, key_count=5), reference.attention(q, k[:5], v[:5]))


def test_scores_of_many_patches_stay_within_their_bound(rng):
    patches, heads = 2048, 16  # all scores at once would take 256 MB
    q, k, v = (normal(rng, patches, heads, 4) for _ in range(3))
    tracemalloc.start()
    reference.attention(q, k, v)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < reference.SCORE_BYTES + (16 << 20)


def test_activations_and_norms_equal_torch(rng):
    x, weight, bias = 3 * normal(rng, 50, 64), normal(rng, 64), normal(rng, 64)
    tensors = [torch.from_numpy(array) for array in (x, weight, bias)]
    pairs = [
        (reference.gelu_tanh(x), torch.nn.functional.gelu(tensors[0], approximate="tanh")),
        (reference.silu(x), torch.nn.functional.silu(tensors[0])),
        (reference.softmax(x), torch.softmax(tensors[0], -1)),
        (reference.layer_norm(x, weight, bias, 1e-6), torch.nn.functional.layer_norm(tensors[0], (64,), *tensors[1:])),
        (reference.rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(tensors[0], (64,), tensors[1], 1e-5)),
    ]
    for ours, theirs in pairs:
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=2e-6)


def test_huge_inputs_give_limits_and_no_warnings():
    x = np.array([[-1e4, -100.0, 0.0, 100.0, 1e4]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(reference.silu(x), [[0, 0, 0, 100, 1e4]], atol=1e-30)
        np.testing.assert_allclose(reference.gelu_tanh(x), [[0, 0, 0, 100, 1e4]])
        np.testing.assert_allclose(reference.softmax(x), [[0, 0, 0, 0, 1]])


# Weights that do not fit the config


@pytest.mark.parametrize(
    "name, shape",
    [
        ("blk.1.attn_k.weight", (64, 256)),
        ("blk.0.ffn_down.weight", (512, 256)),
        ("output.weight", (1000, 256)),
        ("rope_freqs.weight", (64,)),
        ("token_embd.weight", (1042, 128)),
    ],
)
def test_language_tensor_of_a_wrong_shape_is_named(config, language, name, shape):
    with pytest.raises(ModelFileError) as error:
        Llama(config.llm, language | {name: np.zeros(shape, np.float32)})
    assert name in str(error.value) and str(list(shape)) in str(error.value)


@pytest.mark.parametrize("name", ["v.blk.1.ln2.bias", "v.position_embd.weight", "resampler.proj.weight"])
def test_missing_vision_tensor_is_named(config, vision, name):
    fewer = {key: value for key, value in vision.items() if key != name}
    with pytest.raises(ModelFileError, match=name):
        VisionTower(config.vision, fewer)
        Resampler(config.resampler, fewer)


def test_sizes_that_heads_cannot_share_are_refused(config, language, vision):
    with pytest.raises(ModelFileError, match="3 heads"):
        VisionTower(replace(config.vision, num_attention_heads=3), vision)
    with pytest.raises(ModelFileError, match="7 heads"):
        Resampler(replace(config.resampler, num_heads=7), vision)
    with pytest.raises(ModelFileError, match="3 key-value heads"):
        Llama(replace(config.llm, num_key_value_heads=3), language)
