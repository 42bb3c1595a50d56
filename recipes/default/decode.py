"""Greedy answers of the model in torch, many at a time: how well it reads while it is being trained."""

import torch
from torch import Tensor

from recipes.default.model import Mini


class Cache:
    """Keys and values [B, K, m, d] of one layer; new rows stand at `places` [B, n]."""

    def __init__(self, keys: Tensor, values: Tensor):
        self.keys, self.values = keys, values
        self.places: Tensor | None = None

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, with the new ones [B, K, n, d] in their places."""
        index = self.places[:, None, :, None].expand_as(k)
        # Under autocast layers compute in another type than the embeddings have, which the rows were made for.
        self.keys, self.values = (
            old.scatter(2, index, new.to(old.dtype)) for old, new in ((self.keys, k), (self.values, v))
        )
        return self.keys, self.values


@torch.no_grad()
def greedy(model: Mini, embedded: Tensor, lengths: Tensor, stop: int, most: int) -> list[list[int]]:
    """The most likely ids after each prompt, without the stop: `embedded` [B, n, W], of which `lengths` [B] count."""
    batch, longest, _ = embedded.shape
    config = model.config.llm
    shape = (batch, config.num_key_value_heads, longest + most, config.head_dim)
    caches = [Cache(embedded.new_zeros(shape), embedded.new_zeros(shape)) for _ in range(config.num_hidden_layers)]
    keys = torch.arange(longest + most, device=embedded.device)
    places = torch.arange(longest, device=embedded.device).expand(batch, -1)
    x, answers, running = embedded, [[] for _ in range(batch)], torch.ones(batch, dtype=torch.bool)
    for step in range(most):
        for cache in caches:
            cache.places = places
        seen = keys <= places[..., None]  # [B, n, m]: padding stands behind the prompt until it is written over
        hidden = model.language(x, places, caches, seen[:, None])
        last = hidden[torch.arange(batch), lengths - 1] if step == 0 else hidden[:, 0]
        chosen = model.logits(last).argmax(dim=-1)
        for number, token in enumerate(chosen.tolist()):
            running[number] &= token != stop
            if running[number]:
                answers[number].append(token)
        if not running.any():
            break
        x = model.language.embed_tokens(chosen)[:, None]
        places = (lengths + step)[:, None]
    return answers
