"""Cached decoding equals the full forward, sequences do not touch each other, and the cache itself."""

from types import SimpleNamespace

import numpy as np
import pytest

from handlens.cpu import reference
from handlens.cpu.llama import KVCache, Llama
from handlens.errors import ContextError, InputError
from handlens.gguf.names import to_gguf_language
from tests import tiny

LENGTH = 150  # more than the cache starts with, so it grows on the way


@pytest.fixture(scope="module")
def config():
    return tiny.config().llm


@pytest.fixture(scope="module")
def weights(config):
    official = tiny.official_tensors(tiny.config())
    return to_gguf_language(official, config.num_attention_heads, config.num_key_value_heads)


@pytest.fixture(scope="module")
def llama(config, weights):
    return Llama(config, weights)


@pytest.fixture(scope="module")
def inputs(config, llama):
    return llama.embed(np.random.default_rng(5).integers(0, config.vocab_size, LENGTH))


@pytest.fixture(scope="module")
def full(config, llama, inputs):
    """The logits of every position from one forward pass."""
    return llama.forward([inputs], [KVCache(config)], all_logits=True)[0]


def assert_close(ours, wanted):
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("chunk", [1, 7, 64, LENGTH])
def test_cached_decode_equals_full_forward(config, llama, inputs, full, chunk):
    cache = KVCache(config)
    for start in range(0, LENGTH, chunk):
        logits = llama.forward([inputs[start : start + chunk]], [cache])
        assert cache.length == min(start + chunk, LENGTH)
        assert_close(logits[0], full[cache.length - 1])


def test_sequences_together_equal_each_alone(config, llama, inputs):
    """Prefill and decode in one batch, over caches of different lengths."""
    pasts, counts = [0, 90, 30, 1], [25, 1, 8, 1]
    together, alone = [], []
    for caches in (together, alone):
        for past in pasts:
            cache = KVCache(config)
            if past:
                llama.forward([inputs[:past]], [cache])
            caches.append(cache)
    news = [inputs[past : past + count] for past, count in zip(pasts, counts, strict=True)]
    batched = llama.forward(news, together, all_logits=True)
    for new, cache, rows in zip(news, alone, batched, strict=True):
        assert_close(rows, llama.forward([new], [cache], all_logits=True)[0])
    assert [cache.length for cache in together] == [cache.length for cache in alone] == [25, 91, 38, 2]


def test_last_logits_are_the_last_of_all_logits(config, llama, inputs, full):
    logits = llama.forward([inputs, inputs[:40]], [KVCache(config), KVCache(config)])
    assert logits.shape == (2, config.vocab_size)
    assert_close(logits, full[[LENGTH - 1, 39]])


@pytest.mark.parametrize("call", [0, 3, 4])
def test_interrupted_forward_leaves_the_cache_as_it_was(config, weights, llama, inputs, full, call):
    """Two norms a layer and one before the logits: interrupted in the first layer, in the second, after the last."""
    calls = 0

    def interrupted(name):
        def function(*args, **options):
            nonlocal calls
            calls += 1
            if calls > call:
                raise KeyboardInterrupt
            return getattr(reference, name)(*args, **options)

        return function

    cache, other = KVCache(config), KVCache(config)
    llama.forward([inputs[:60]], [cache])
    functions = {name: interrupted(name) for name in ("norm_linears", "gated_feed_forward")}
    broken = Llama(config, weights, ops=SimpleNamespace(**{**vars(reference), **functions}))
    with pytest.raises(KeyboardInterrupt):
        broken.forward([inputs[:50], inputs[:9]], [cache, other])
    assert (cache.length, other.length) == (60, 0)
    assert_close(llama.forward([inputs[60:100]], [cache])[0], full[99])


def test_truncated_cache_continues_as_if_the_rest_had_never_been(config, llama, inputs, full):
    cache = KVCache(config)
    llama.forward([inputs[:80]], [cache])
    llama.forward([inputs[:20]], [cache])  # something else
    cache.truncate(80)
    assert_close(llama.forward([inputs[80:90]], [cache])[0], full[89])
    with pytest.raises(InputError, match="90 positions cannot be cut to 91"):
        cache.truncate(91)


def test_copies_continue_on_their_own(config, llama, inputs, full):
    cache = KVCache(config)
    llama.forward([inputs[:70]], [cache])
    twin = cache.copy()
    llama.forward([inputs[:5]], [cache])
    assert (cache.length, twin.length) == (75, 70)
    assert_close(llama.forward([inputs[70:75]], [twin])[0], full[74])
    cache.truncate(70)
    assert_close(llama.forward([inputs[70:75]], [cache])[0], full[74])


def test_copy_takes_memory_for_what_is_used_only(config, llama, inputs):
    cache = KVCache(config, capacity=4000)
    llama.forward([inputs[:10]], [cache])
    assert cache.copy().nbytes < cache.nbytes / 50


def test_update_returns_everything_so_far(config):
    rng = np.random.default_rng(1)
    cache = KVCache(config)
    shape = config.num_key_value_heads, 10, config.head_dim
    k, v = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
    for layer_idx in range(config.num_hidden_layers):
        keys, values = cache.update(k[:, :6], v[:, :6], layer_idx)
        np.testing.assert_array_equal(keys, k[:, :6])
    cache.advance(6)
    keys, values = cache.update(k[:, 6:], v[:, 6:], 1)
    np.testing.assert_array_equal(keys, k)
    np.testing.assert_array_equal(values, v)


def test_cache_grows_by_shares_and_not_past_the_model(config):
    cache = KVCache(config)
    assert cache.nbytes == 0
    one = np.zeros((config.num_key_value_heads, 1, config.head_dim), np.float32)
    sizes = []
    while cache.length < config.max_position_embeddings:
        for layer_idx in range(config.num_hidden_layers):
            cache.update(one, one, layer_idx)
        cache.advance(1)
        sizes.append(cache.nbytes)
    assert len(set(sizes)) < 16  # moves of the whole cache
    position = 2 * config.num_hidden_layers * one.nbytes
    assert sizes[-1] == position * config.max_position_embeddings
    with pytest.raises(ContextError, match="4097 positions, but the model has 4096"):
        cache.update(one, one, 0)


def test_sequences_without_input_or_cache_are_refused(config, llama, inputs):
    cache = KVCache(config)
    for news, caches in [
        ([], []),
        ([inputs[:0]], [cache]),
        ([inputs[:2], inputs[:3]], [cache]),
        ([inputs[:2], inputs[:3]], [cache, cache]),
    ]:
        with pytest.raises(InputError, match="a cache of its own"):
            llama.forward(news, caches)


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_unknown_token_ids_are_refused(llama, token_id):
    with pytest.raises(InputError, match=str(token_id)):
        llama.embed([1, token_id])
