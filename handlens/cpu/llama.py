"""The language model: Llama 3 with grouped-query attention, and the cache of keys and values that makes decoding cheap.

Tensors have the names of GGUF files of the llama architecture. Letters: n positions, H query heads, K key-value heads,
d width of a head, D width of the model, V tokens in the vocabulary.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from handlens.config import LlamaConfig
from handlens.cpu import reference
from handlens.errors import ContextError, InputError, ModelFileError


class KVCache:
    """The keys and values of one sequence, a pair of arrays [K, capacity, d] a layer that grow as it gets longer; they
    are float32 or float16.

    `length` positions are valid. `update` writes behind them and `advance` makes them valid, so a forward pass that is
    broken off half-way leaves the cache as it was.
    """

    def __init__(self, config: LlamaConfig, capacity: int = 0, dtype: type[np.floating] = np.float32):
        shape = config.num_key_value_heads, capacity, config.head_dim
        self.config = config
        self.length = 0
        self._keys = [np.empty(shape, dtype) for _ in range(config.num_hidden_layers)]
        self._values = [np.empty(shape, dtype) for _ in range(config.num_hidden_layers)]

    @property
    def nbytes(self) -> int:
        """The bytes that are allocated, used or not."""
        return sum(array.nbytes for array in self._keys + self._values)

    def update(self, k: np.ndarray, v: np.ndarray, layer_idx: int) -> tuple[np.ndarray, np.ndarray]:
        """All keys and all values [K, length + n, d] of one layer after k and v [K, n, d] were added."""
        end = self.length + k.shape[1]
        self._make_room(self._keys, layer_idx, end)
        self._make_room(self._values, layer_idx, end)
        keys, values = self._keys[layer_idx][:, :end], self._values[layer_idx][:, :end]
        keys[:, self.length :] = k
        values[:, self.length :] = v
        return keys, values

    def rooms(self, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The arrays of keys and of values [K, capacity, d] of all layers, with room for `count` more positions."""
        end = self.length + count
        for arrays in (self._keys, self._values):
            for index, array in enumerate(arrays):
                if end > array.shape[1]:
                    self._make_room(arrays, index, end)
        return self._keys, self._values

    def advance(self, count: int) -> None:
        """Makes the `count` positions that were last added to every layer valid."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on."""
        if not 0 <= length <= self.length:
            raise InputError(f"a cache of {self.length} positions cannot be cut to {length}")
        self.length = length

    def copy(self, length: int | None = None) -> "KVCache":
        """A cache of its own with the same valid positions, or the first of them, for another continuation."""
        twin = KVCache(self.config)
        twin._keys, twin._values = self._keys, self._values
        twin.length = self.length
        twin.truncate(self.length if length is None else length)
        twin._keys = [twin._resized(array, twin.length + 1) for array in self._keys]
        twin._values = [twin._resized(array, twin.length + 1) for array in self._values]
        return twin

    def _make_room(self, arrays: list[np.ndarray], layer_idx: int, end: int) -> None:
        limit = self.config.max_position_embeddings
        if end > limit:
            raise ContextError(
                f"the conversation needs {end} positions, but the model has {limit}; "
                "start a new one, or send fewer or smaller images"
            )
        if end > arrays[layer_idx].shape[1]:
            arrays[layer_idx] = self._resized(arrays[layer_idx], end)

    def _resized(self, array: np.ndarray, end: int) -> np.ndarray:
        """A copy of the valid part of an array with room up to `end` and half as much again."""
        kv_heads, _, head_dim = array.shape
        capacity = min(max(64, end + end // 2), max(end, self.config.max_position_embeddings))
        resized = np.empty((kv_heads, capacity, head_dim), array.dtype)
        resized[:, : self.length] = array[:, : self.length]
        return resized


class Llama:
    """The decoder. `weights` holds arrays or quantised tensors by name, `ops` the functions that compute."""

    def __init__(self, config: LlamaConfig, weights: Mapping[str, reference.Weight], ops=reference):
        if config.num_attention_heads % config.num_key_value_heads or config.head_dim % 2:
            raise ModelFileError(
                f"{config.num_attention_heads} heads of width {config.head_dim} cannot share "
                f"{config.num_key_value_heads} key-value heads: the counts must divide and the width must be even"
            )
        self.config = config
        self.ops = ops
        self.layers = [
            reference.require_tensors(weights, _layer_shapes(config), f"blk.{index}.")
            for index in range(config.num_hidden_layers)
        ]
        vocabulary = config.vocab_size, config.hidden_size
        tied = "output.weight" not in weights
        shapes = {"token_embd.weight": vocabulary, "output_norm.weight": (config.hidden_size,)}
        shapes |= {} if tied else {"output.weight": vocabulary}
        shapes |= {"rope_freqs.weight": (config.head_dim // 2,)} if "rope_freqs.weight" in weights else {}
        modules = reference.require_tensors(weights, shapes)
        (self.token_embd,) = modules["token_embd"]
        (self.output_norm,) = modules["output_norm"]
        (self.output,) = modules["token_embd" if tied else "output"]
        sizes = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps
        #: Does what `layer` does for all layers at once, if there is such a thing.
        self.decoder = ops.decoder(self.layers, self.output_norm, self.output, *sizes)
        (factors,) = modules.get("rope_freqs", (None,))
        self.frequencies = reference.rope_frequencies(
            config.head_dim, config.rope_theta, None if factors is None else reference.dense(factors)
        )
        #: Cosines and sines of the first positions, as many as were wanted yet.
        self._turns = (np.empty((0, config.head_dim // 2), np.float32),) * 2

    def embed(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The embeddings [n, D] of token ids [n]."""
        ids = np.asarray(ids, np.int64)
        strangers = [token for token in ids.tolist() if not 0 <= token < self.config.vocab_size]
        if strangers:
            raise InputError(f"token id {strangers[0]} is not in the vocabulary of {self.config.vocab_size}")
        return self.ops.embedding(ids, self.token_embd)

    def forward(
        self,
        inputs: Sequence[np.ndarray],
        caches: Sequence[KVCache],
        all_logits: bool = False,
        tails: Sequence[int] | None = None,
        prompt: bool = False,
    ) -> np.ndarray | list[np.ndarray]:
        """The logits of the last position of each sequence [batch, V], and lengthens the caches.

        inputs: the embeddings [n_i, D] of each sequence's new positions; caches: what came before, one a sequence.
        With `tails` the logits of the last so many positions of each sequence come back, one behind the other; with
        `all_logits` those of all new positions as a list of [n_i, V]. Positions of a `prompt` come many at a time, for
        which kernels may multiply in bfloat16.
        """
        counts = [len(x) for x in inputs]
        if not counts or 0 in counts or len({id(cache) for cache in caches}) != len(counts):
            raise InputError(
                f"{len(counts)} sequences with {counts} new positions and {len(caches)} caches were given; "
                "each sequence needs at least one position and a cache of its own"
            )
        rotation = self._rotation([(cache.length, count) for cache, count in zip(caches, counts, strict=True)])
        x = np.concatenate(inputs)  # [n, D], all sequences one behind the other
        tails = counts if all_logits else tails or [1] * len(counts)
        if self.decoder is None:
            spans = _spans(counts)
            for index in range(self.config.num_hidden_layers):
                x = self.layer(x, index, rotation, spans, caches, prompt)
            lasts = [x[span.stop - tail : span.stop] for span, tail in zip(spans, tails, strict=True)]
            logits = self.logits(np.concatenate(lasts))
        else:
            rooms = [cache.rooms(count) for cache, count in zip(caches, counts, strict=True)]
            keys, values = ([array for room in rooms for array in room[which]] for which in (0, 1))
            logits = np.empty((sum(tails), self.config.vocab_size), np.float32)
            lengths = [cache.length for cache in caches]
            self.decoder.forward(x, *rotation, counts, lengths, keys, values, tails, logits, prompt)
        for cache, count in zip(caches, counts, strict=True):
            cache.advance(count)
        return [logits[span] for span in _spans(counts)] if all_logits else logits

    def _rotation(self, runs: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """The cosines and the sines [n, d / 2] of runs of positions, each given as (first, count)."""
        end = max(first + count for first, count in runs)
        if end > len(self._turns[0]):
            self._turns = self.ops.rope_table(np.arange(max(64, end + end // 2)), self.frequencies)
        cos, sin = ([table[first : first + count] for first, count in runs] for table in self._turns)
        return (cos[0], sin[0]) if len(runs) == 1 else (np.concatenate(cos), np.concatenate(sin))

    def layer(
        self,
        x: np.ndarray,
        index: int,
        rotation: tuple[np.ndarray, np.ndarray],
        spans: Sequence[slice],
        caches: Sequence[KVCache],
        prompt: bool = False,
    ) -> np.ndarray:
        """x [n, D] after one layer. Only the attention sees sequences: their rows are `spans`."""
        ops, w = self.ops, self.layers[index]
        n, head_dim, eps = len(x), self.config.head_dim, self.config.rms_norm_eps
        q, k, v = ops.norm_linears(x, w["attn_norm"], eps, w["attn_q"], w["attn_k"], w["attn_v"], bf16=prompt)
        q = ops.rope(q.reshape(n, -1, head_dim), *rotation)  # [n, H, d]
        k = ops.rope(k.reshape(n, -1, head_dim), *rotation)  # [n, K, d]
        v = v.reshape(n, -1, head_dim)  # [n, K, d]
        read = []
        for span, cache in zip(spans, caches, strict=True):
            keys, values = cache.update(k[span].swapaxes(0, 1), v[span].swapaxes(0, 1), index)
            read.append(ops.causal_attention(q[span], keys, values, bf16=prompt))
        joined = (read[0] if len(read) == 1 else np.concatenate(read)).reshape(n, -1)  # [n, H * d]
        x = ops.linear(joined, *w["attn_output"], residual=x, bf16=prompt)
        ffn = w["ffn_gate"], w["ffn_up"], w["ffn_down"]
        return ops.gated_feed_forward(x, w["ffn_norm"], eps, *ffn, bf16=prompt)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """The logits [n, V] of the last layer's rows x [n, D]."""
        (logits,) = self.ops.norm_linears(x, (self.output_norm,), self.config.rms_norm_eps, (self.output,))
        return logits


def _spans(counts: Sequence[int]) -> list[slice]:
    """The rows of each sequence, where all stand one behind the other."""
    return [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]


def _layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of one layer."""
    width, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    return {
        "attn_norm.weight": (width,),
        "attn_q.weight": (queries, width),
        "attn_k.weight": (keys, width),
        "attn_v.weight": (keys, width),
        "attn_output.weight": (width, queries),
        "ffn_norm.weight": (width,),
        "ffn_gate.weight": (inner, width),
        "ffn_up.weight": (inner, width),
        "ffn_down.weight": (width, inner),
    }
