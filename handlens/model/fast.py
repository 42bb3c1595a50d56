"""Greedy answers as fast as the memory of a GPU allows: a static cache, one compiled step a token, and no host in it.

Decoding reads every weight once a token. What is in the way of the memory's speed is everything else: launches of small
kernels, copies of keys for grouped heads, and a host that waits for each token. So the step is compiled into few
kernels, it reads keys and values as they lie in the cache, its state lives on the device, and on CUDA the whole step is
one graph. `generate` of transformers stays the slow truth beside it.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, DynamicCache, StaticCache

from handlens.errors import ContextError, InputError
from handlens.model.minicpmv import MiniCPMV

# B requests, T tokens, S places of the cache, G heads of keys and values, R query heads for each, d width of a head

GROUPED = "handlens_grouped"

#: Tokens between two looks at whether all answers have ended; the device is not waited for in between.
LOOK_EVERY = 16


def grouped_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention of one token [B, G * R, 1, d] to keys and values [B, G, S, d], under transformers' names and result.

    The query heads of a group are rows of one product, so keys and values are read once and never repeated.
    """
    batch, heads, _, width = query.shape
    grouped = query.view(batch, key.shape[1], -1, width)  # [B, G, R, d]
    scores = (grouped @ key.transpose(2, 3)) * scaling  # [B, G, R, S]
    scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).view(batch, 1, heads, width), weights


class FastDecoder:
    """Answers batches of one size. Made once: compiling takes a minute or two for the 8B model, answers then none."""

    def __init__(self, model: MiniCPMV, batch_size: int, max_length: int, *, backend: str | None = "inductor"):
        """`max_length` bounds prompt and answer together. `backend` is that of `torch.compile`, None for none."""
        self.model, self.max_length = model, max_length
        embeddings = model.get_input_embeddings().weight
        device, llm = embeddings.device, model.config
        self.cache = StaticCache(config=llm, max_cache_len=max_length)
        self.cache.early_initialization(batch_size, llm.num_key_value_heads, llm.head_dim, embeddings.dtype, device)
        self.ids = torch.zeros(batch_size, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.written = torch.zeros(1, dtype=torch.long, device=device)  # places of the cache that are taken
        self.attended = torch.ones(batch_size, max_length, dtype=torch.bool, device=device)  # all but padding
        self.tokens = torch.zeros(batch_size, max_length, dtype=torch.long, device=device)
        AttentionInterface.register(GROUPED, grouped_attention)
        # Products of a matrix and one vector become kernels of inductor's own, tuned on the device.
        options = {"coordinate_descent_tuning": True} if backend == "inductor" and device.type == "cuda" else None
        self._next = self._next_ids
        if backend is not None:
            self._next = torch.compile(self._next_ids, fullgraph=True, dynamic=False, backend=backend, options=options)
        self._graph = self._capture() if device.type == "cuda" else None

    @torch.no_grad()
    def generate(self, max_new_tokens: int, stop_ids: Collection[int] = (), **batch: torch.Tensor) -> list[list[int]]:
        """The new tokens of each request of a batch as `MiniCPMV` takes it; an answer ends before its first stop id."""
        stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=self.ids.device)
        start = batch["input_ids"].shape[1]
        ended = torch.zeros_like(self.ids[:, 0], dtype=torch.bool)
        for count in self._advance(max_new_tokens, batch):
            if count % LOOK_EVERY == 0 and len(stops):
                ended |= torch.isin(self.tokens[:, start : start + count], stops).any(dim=1)
                if ended.all():
                    break
        answers = self.tokens[:, start : start + count].tolist()
        return [answer[: _first(answer, stop_ids)] for answer in answers]

    def _advance(self, max_new_tokens: int, batch: dict[str, torch.Tensor]) -> Iterator[int]:
        """Makes one token after the other and yields their number; nothing waits for them."""
        self.prefill(max_new_tokens, **batch)
        yield 1
        for count in range(2, max_new_tokens + 1):
            self.step()
            yield count

    @torch.no_grad()
    def prefill(
        self, max_new_tokens: int, *, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **images
    ) -> torch.Tensor:
        """The first tokens [B, 1] of the answers; `step` makes the next ones."""
        rows, length = input_ids.shape
        if rows != len(self.ids) or max_new_tokens < 1:
            raise InputError(
                f"{rows} requests for {max_new_tokens} tokens were given; this decoder answers {len(self.ids)} at a "
                "time, with at least one token"
            )
        if length + max_new_tokens > self.max_length:
            raise ContextError(f"{length} tokens and {max_new_tokens} new ones were asked for; {self.max_length} fit")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embeds = self.model.embed(input_ids, **images)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        # A growing cache lets attention take its fastest way; what it holds is then laid into the static one.
        read = DynamicCache(config=self.model.config)
        out = self.model.llm(
            inputs_embeds=embeds,
            attention_mask=None if mask.all() else mask,
            position_ids=positions,
            past_key_values=read,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.reset()
        for layer, (kept, new) in enumerate(zip(self.cache.layers, read.layers, strict=True)):
            kept.update(new.keys, new.values, layer)
        self.attended.fill_(True)
        self.attended[:, :length] = mask.bool()
        self.positions.copy_(positions[:, -1:] + 1)
        self.written.fill_(length)
        return self._keep(out.logits[:, -1].argmax(dim=-1, keepdim=True))

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """The next token of each answer [B, 1]."""
        if self._graph is not None:
            self._graph.replay()
            return self.ids
        return self._run()

    def _run(self) -> torch.Tensor:
        with attending(self.model, GROUPED):
            ids = self._next(self.ids, self.positions, self.written, self.attended)
        self.positions += 1
        self.written += 1
        return self._keep(ids)

    def _keep(self, ids: torch.Tensor) -> torch.Tensor:
        self.ids.copy_(ids)
        self.tokens.index_copy_(1, self.written, self.ids)
        return self.ids

    def _next_ids(
        self, ids: torch.Tensor, positions: torch.Tensor, written: torch.Tensor, attended: torch.Tensor
    ) -> torch.Tensor:
        """The likeliest tokens [B, 1] after these [B, 1]: what is compiled."""
        places = torch.arange(self.max_length, device=ids.device)
        mask = attended & (places <= written)  # [B, S]
        out = self.model.llm(
            input_ids=ids,
            attention_mask=mask[:, None, None],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1].argmax(dim=-1, keepdim=True)

    @torch.no_grad()
    def _capture(self) -> "torch.cuda.CUDAGraph":
        """The whole step as one CUDA graph. Compiles and warms up first, as capturing demands."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        return graph


def compile_vision(model: MiniCPMV, backend: str = "inductor") -> None:
    """Compiles the layers of the vision tower in place: one compilation serves them all, for any number of slices."""
    for layer in model.vpm.encoder.layers:
        layer.compile(backend=backend, dynamic=True)


@contextmanager
def attending(model: MiniCPMV, way: str) -> Iterator[None]:
    """While the block runs, the language model attends in this way; the vision tower as before."""
    before = model.llm.config._attn_implementation
    model.llm.config._attn_implementation = {"": way}
    try:
        yield
    finally:
        model.llm.config._attn_implementation = {"": before}


def _first(answer: list[int], stop_ids: Collection[int]) -> int:
    return next((place for place, token in enumerate(answer) if token in stop_ids), len(answer))
