"""Where the parts of a model go when one device is too small, and what each device then holds. Nothing is loaded.

The rule is that of the original (docs/inference_on_multiple_gpus.md of the MiniCPM-V repository): embeddings, head,
vision tower, resampler and the first layer share the first device, because image vectors are put among the embeddings
there and logits are wanted where the ids are; a decoder layer stays whole. The original counts weights alone, under a
cap well below the memory of the cards. Here keys, values and scratch are counted too, so the caps are the memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from handlens.config import ModelConfig
from handlens.errors import InputError, ModelFileError

#: The modules that go with the first layer, and those that go with the last.
FIRST = ("llm.model.embed_tokens", "llm.lm_head", "vpm", "resampler")
LAST = ("llm.model.norm", "llm.model.rotary_emb")
LAYER = "llm.model.layers."

#: What a process takes on a GPU before it computes: the driver's context, workspaces of libraries, fragments.
RESERVED = 512 << 20


@dataclass(frozen=True)
class Share:
    """What one device holds, in bytes; `limit` is what it may hold, None where that is not counted."""

    device: int | str
    layers: int
    weights: int
    cache: int
    scratch: int
    limit: int | None

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.scratch


@dataclass(frozen=True)
class Placement:
    """A plan: `device_map` is what `from_pretrained` takes."""

    device_map: dict[str, int | str]
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Needs:
    """Bytes of everything that has to be somewhere."""

    first: int  # weights beside the first layer
    layers: tuple[int, ...]  # weights of each layer; the norm goes with the last
    cache: int  # keys and values of a layer
    first_scratch: int  # on the device that encodes images
    layer_scratch: int  # on each other device

    def with_offloaded(self, number: int) -> "Needs":
        """The same without the last layers. Each of them visits the first device to compute; its keys and values stay
        there."""
        if number == 0:
            return self
        visitor = max(self.layers)
        kept = self.layers[: len(self.layers) - number]
        return Needs(
            self.first, kept, self.cache, self.first_scratch + visitor + number * self.cache, self.layer_scratch
        )


def plan_placement(
    config: ModelConfig,
    modules: Mapping[str, int],
    max_memory: Mapping[int | str, int],
    *,
    context_length: int | None = None,
    batch: int = 1,
    itemsize: int = 2,
    offload: str | None = None,
    reserved: int = RESERVED,
) -> Placement:
    """The placement of a model whose modules have these bytes (`computed_bytes`, `stored_bytes`) on some devices.

    The fewest devices that suffice are used, first ones first: one computes at a time, so more of them are no faster.
    Among these the layers are spread so that the fullest device has the largest part of its memory left. What fits
    nowhere goes to `offload` ("cpu" or "disk"), last layers first; without it, InputError says what is missing.
    """
    if not max_memory or min(max_memory.values()) < 1:
        raise InputError(f"devices of {list(max_memory.values())} bytes were given; each needs at least one")
    context_length = config.llm.max_position_embeddings if context_length is None else context_length
    if not 1 <= context_length <= config.llm.max_position_embeddings or batch < 1:
        raise InputError(
            f"a context of {context_length} tokens for {batch} requests was asked for; from 1 to "
            f"{config.llm.max_position_embeddings} tokens and at least one request can be planned"
        )
    needs = _needs(config, modules, context_length, batch, itemsize, reserved)
    names, limits = list(max_memory), list(max_memory.values())
    for offloaded in range(len(needs.layers) if offload else 1):
        kept = needs.with_offloaded(offloaded)
        for number in range(1, len(limits) + 1):
            if counts := _balanced(kept, limits[:number]):
                shares = _shares(kept, names, limits, counts)
                if offloaded:
                    shares.append(Share(offload, offloaded, sum(needs.layers[-offloaded:]), 0, 0, None))
                return Placement(_device_map(shares), tuple(shares))
    raise InputError(_complaint(config, needs, limits, context_length, batch))


def computed_bytes(config: ModelConfig, itemsize: int = 2, int4: bool = False) -> dict[str, int]:
    """Module -> bytes of its weights, of so many each; with `int4` those that NF4 quantises take half a byte and their
    share of the scales."""
    sizes = {}
    for module, (matrices, rest) in _parameters(config).items():
        quantised = matrices // 2 + matrices // 64 + matrices // 4096 if int4 else matrices * itemsize
        sizes[module] = quantised + rest * itemsize
    return sizes


def stored_bytes(config: ModelConfig, tensors: Mapping[str, int]) -> dict[str, int]:
    """Module -> bytes of its tensors, given the bytes of each tensor of a checkpoint in the official layout."""
    sizes = dict.fromkeys(_parameters(config), 0)
    for name, size in tensors.items():
        parts = name.split(".")
        owner = next((module for n in (1, 2, 3, 4) if (module := ".".join(parts[:n])) in sizes), None)
        if owner is None:
            raise ModelFileError(f"the tensor {name!r:.200} has no place in a model of this design")
        sizes[owner] += size
    # A head that shares the weights of the embeddings has none of its own.
    if empty := [module for module, size in sizes.items() if size == 0 and module != "llm.lm_head"]:
        raise ModelFileError(f"the checkpoint holds no tensors of {', '.join(empty[:3])}; it is incomplete")
    return sizes


def _parameters(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Module -> parameters that the official int4 checkpoint quantises, and the others."""
    llm, vision, resampler = config.llm, config.vision, config.resampler
    if vision is None:
        raise InputError("only a language file was given; a plan is made for a whole model, projector included")
    width, kv_width = llm.hidden_size, llm.num_key_value_heads * llm.head_dim
    layer = 2 * width * width + 2 * width * kv_width + 3 * width * llm.intermediate_size, 2 * width
    tower, inner, depth = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
    block = 3 * tower * tower + 2 * tower * inner, (3 * tower + inner + tower) + tower * tower + tower + 4 * tower
    ends = (3 * vision.patch_size**2 + 1) * tower + vision.position_side**2 * tower + 2 * tower
    queries = resampler.query_num * (1 + resampler.query_position)
    wide = resampler.embed_dim
    reading = queries * wide + resampler.kv_dim * wide + (3 * wide * wide + 3 * wide) + (wide * wide + wide)
    return {
        "llm.model.embed_tokens": (0, llm.vocab_size * width),
        "llm.lm_head": (0, llm.vocab_size * width),
        "vpm": (depth * block[0], depth * block[1] + ends),
        "resampler": (0, reading + 6 * wide + wide * wide),
        **{f"{LAYER}{index}": layer for index in range(llm.num_hidden_layers)},
        "llm.model.norm": (0, width),
    }


def _needs(
    config: ModelConfig, modules: Mapping[str, int], context_length: int, batch: int, itemsize: int, reserved: int
) -> Needs:
    """The bytes of weights, and of what comes and goes while images are encoded and the longest prompt is read.

    Scratch counts the widest moment of each: inputs and outputs of the feed-forward layers, of the tower for an
    overview and all cells, of the language model for a prompt that fills the context; the resampler's keys and values.
    """
    llm, vision, resampler, slices = config.llm, config.vision, config.resampler, config.slices
    tokens = batch * context_length
    patches = batch * (slices.max_slice_nums + 1) * (slices.scale_resolution // slices.patch_size) ** 2
    reading = tokens * (2 * llm.hidden_size + 3 * llm.intermediate_size) * itemsize
    seeing = patches * (2 * vision.hidden_size + 2 * vision.intermediate_size) * itemsize
    resampling = patches * (vision.hidden_size + 4 * resampler.embed_dim) * itemsize
    layers = [modules[f"{LAYER}{index}"] for index in range(llm.num_hidden_layers)]
    layers[-1] += modules["llm.model.norm"]
    return Needs(
        first=sum(modules[module] for module in FIRST),
        layers=tuple(layers),
        cache=2 * llm.num_key_value_heads * llm.head_dim * tokens * itemsize,
        first_scratch=reserved + max(reading, seeing, resampling),  # images are encoded before the prompt is read
        layer_scratch=reserved + reading,
    )


def _balanced(needs: Needs, limits: Sequence[int]) -> list[int] | None:
    """How many layers each device takes so that the fullest is as empty as can be; None if they do not fit."""
    counts = _fill(needs, limits, 1.0)
    low, high = 0.0, 1.0
    for _ in range(30 if counts else 0):
        level = (low + high) / 2
        if found := _fill(needs, limits, level):
            counts, high = found, level
        else:
            low = level
    return counts


def _fill(needs: Needs, limits: Sequence[int], level: float) -> list[int] | None:
    """How many layers each device takes if it is filled to this part of its memory before the next one is begun; None
    if some are left, or if the first layer is not on the first device."""
    counts, device, used = [0] * len(limits), 0, needs.first + needs.first_scratch
    for layer in needs.layers:
        while used + layer + needs.cache > level * limits[device]:
            device += 1
            if device == len(limits) or counts[0] == 0:
                return None
            used = needs.layer_scratch
        counts[device] += 1
        used += layer + needs.cache
    return counts


def _shares(needs: Needs, names: Sequence[int | str], limits: Sequence[int], counts: Sequence[int]) -> list[Share]:
    """What each device holds. `counts` are the layers that it takes."""
    shares, start = [], 0
    for name, limit, count in zip(names, limits, counts):  # only the devices that are used have a count
        weights = sum(needs.layers[start : start + count]) + (needs.first if start == 0 else 0)
        scratch = needs.first_scratch if start == 0 else needs.layer_scratch
        if count:
            shares.append(Share(name, count, weights, count * needs.cache, scratch, limit))
        start += count
    return shares


def _device_map(shares: Sequence[Share]) -> dict[str, int | str]:
    devices = [share.device for share in shares for _ in range(share.layers)]
    layers = {f"{LAYER}{index}": device for index, device in enumerate(devices)}
    return dict.fromkeys(FIRST, devices[0]) | layers | dict.fromkeys(LAST, devices[-1])


def _complaint(config: ModelConfig, needs: Needs, limits: Sequence[int], context_length: int, batch: int) -> str:
    """One sentence on what is missing and one on what would help."""
    weights, cache = needs.first + sum(needs.layers), len(needs.layers) * needs.cache
    scratch = needs.first_scratch + (len(limits) - 1) * needs.layer_scratch
    wanted, given = weights + cache + scratch, sum(limits)
    least = needs.first + needs.first_scratch + needs.layers[0] + needs.cache
    if least > limits[0]:
        problem = (
            f"the first device has {_gib(limits[0])}, but embeddings, head, vision tower, resampler and one layer need "
            f"{_gib(least)} there, {_gib(least - limits[0])} more"
        )
    elif wanted > given:
        problem = f"{_gib(wanted)} are needed and {_gib(given)} given, {_gib(wanted - given)} too little"
    else:
        problem = f"{_gib(wanted)} are needed and {_gib(given)} given, but whole layers do not fit between the limits"
    int4 = sum(computed_bytes(config, int4=True).values())
    helps = ["give more memory"]
    if int4 < weights:
        helps.append(f"load in int4 (weights of {_gib(int4)} instead of {_gib(weights)})")
    return (
        f"the model does not fit: {problem} (weights {_gib(weights)}, keys and values of {batch} x {context_length} "
        f"tokens {_gib(cache)}, scratch {_gib(scratch)}); {', '.join(helps)}, or ask for a shorter context"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 28 else f"{size / 2**20:.2f} MiB"
