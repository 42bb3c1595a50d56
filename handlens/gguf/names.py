"""Tensor names and layouts: official checkpoints (`llm.*`, `vpm.*`, `resampler.*`) <-> GGUF files, both ways.

The tables follow llama.cpp's converters of Llama and of MiniCPM-V projectors. Six things are more than a name:

- The rows of q and k. RoPE turns the two halves of a head against each other in official weights and neighbouring pairs
  in GGUF ones, so the rows of each head are interleaved there.
- `resampler.attn.in_proj_*` is three tensors in GGUF: q, k and v.
- `resampler.proj` is transposed.
- 2.0 alone: `vpm.blocks.N.attn.qkv.*` is three tensors too, and `vpm.pos_embed` has no batch dimension.
- The ViT's feed-forward layers have each other's names in the projector files that exist: `ffn_down` is fc1. Files with
  the natural names exist too. llama.cpp tells them apart by shape, and so does `fix_ffn_names`.
- `resampler.pos_embed_k` follows from sizes alone. It has no official name, and where it is found it is not used.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from handlens.errors import ModelFileError

#: The parts of an official checkpoint, by the first word of a name.
LANGUAGE_PARTS = ("llm",)
VISION_PARTS = ("vpm", "resampler")

POSITION_TABLE = "resampler.pos_embed_k"


@dataclass(frozen=True)
class _Table:
    """Names on the left and on the right: of single tensors, and within a layer below a numbered prefix."""

    single: Mapping[str, str]
    layer_prefix: tuple[str, str]
    layer: Mapping[str, str]

    def inverse(self) -> "_Table":
        return _Table(_inverse(self.single), self.layer_prefix[::-1], _inverse(self.layer))

    def names(self, layers: int) -> dict[str, str]:
        """All names of a model with so many layers, left -> right."""
        left, right = self.layer_prefix
        numbered = {f"{left}.{n}.{a}": f"{right}.{n}.{b}" for n in range(layers) for a, b in self.layer.items()}
        return {**self.single, **numbered}

    def rename(self, name: str) -> str:
        """The right name for a left one."""
        if name in self.single:
            return self.single[name]
        left, right = self.layer_prefix
        match = re.fullmatch(rf"{re.escape(left)}\.(0|[1-9]\d{{0,3}})\.(.+)", name)
        if match and match[2] in self.layer:
            return f"{right}.{match[1]}.{self.layer[match[2]]}"
        raise ModelFileError(f"the tensor {name!r} has no place in a model of this design")


def _inverse(mapping: Mapping[str, str]) -> dict[str, str]:
    return {value: key for key, value in mapping.items()}


def _weight_and_bias(modules: Mapping[str, str]) -> dict[str, str]:
    return {f"{a}.{part}": f"{b}.{part}" for a, b in modules.items() for part in ("weight", "bias")}


_LANGUAGE = _Table(
    {
        "llm.model.embed_tokens.weight": "token_embd.weight",
        "llm.model.norm.weight": "output_norm.weight",
        "llm.lm_head.weight": "output.weight",
    },
    ("llm.model.layers", "blk"),
    {
        "input_layernorm.weight": "attn_norm.weight",
        "self_attn.q_proj.weight": "attn_q.weight",
        "self_attn.k_proj.weight": "attn_k.weight",
        "self_attn.v_proj.weight": "attn_v.weight",
        "self_attn.o_proj.weight": "attn_output.weight",
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
    },
)

_RESAMPLER = {
    "resampler.query": "resampler.query",
    "resampler.kv_proj.weight": "resampler.kv.weight",
    "resampler.proj": "resampler.proj.weight",
    **_weight_and_bias(
        {
            "resampler.attn.out_proj": "resampler.attn.out",
            "resampler.ln_q": "resampler.ln_q",
            "resampler.ln_kv": "resampler.ln_kv",
            "resampler.ln_post": "resampler.ln_post",
        }
    ),
}

#: The vision side by whose tower it is (`Family.tower`). The feed-forward layers have names by their role here; see
#: `fix_ffn_names` for what files say.
TOWERS = {
    "idefics2": _Table(
        {
            **_RESAMPLER,
            "vpm.embeddings.position_embedding.weight": "v.position_embd.weight",
            **_weight_and_bias({"vpm.embeddings.patch_embedding": "v.patch_embd", "vpm.post_layernorm": "v.post_ln"}),
        },
        ("vpm.encoder.layers", "v.blk"),
        _weight_and_bias(
            {
                "layer_norm1": "ln1",
                "layer_norm2": "ln2",
                "self_attn.q_proj": "attn_q",
                "self_attn.k_proj": "attn_k",
                "self_attn.v_proj": "attn_v",
                "self_attn.out_proj": "attn_out",
                "mlp.fc1": "ffn_up",
                "mlp.fc2": "ffn_down",
            }
        ),
    ),
    "timm": _Table(
        {
            **_RESAMPLER,
            "resampler.pos_embed": "resampler.pos_embed",
            "vpm.pos_embed": "v.position_embd.weight",
            **_weight_and_bias({"vpm.patch_embed.proj": "v.patch_embd", "vpm.norm": "v.post_ln"}),
        },
        ("vpm.blocks", "v.blk"),
        _weight_and_bias(
            {
                "norm1": "ln1",
                "norm2": "ln2",
                "attn.proj": "attn_out",
                "mlp.fc1": "ffn_up",
                "mlp.fc2": "ffn_down",
            }
        ),
    ),
}

_PARTS = ("weight", "bias")
#: The packed tensors of every model, and the three that each of them is in GGUF.
_PACKED = {f"resampler.attn.in_proj_{part}": [f"resampler.attn.{letter}.{part}" for letter in "qkv"] for part in _PARTS}


def _packed(tower: str, layers: Iterable[int]) -> dict[str, list[str]]:
    """All packed tensors of a model with these layers."""
    in_layers = {
        f"vpm.blocks.{n}.attn.qkv.{part}": [f"v.blk.{n}.attn_{letter}.{part}" for letter in "qkv"]
        for n in layers
        for part in _PARTS
    }
    return _PACKED | (in_layers if tower == "timm" else {})


def language_names(layers: int, *, tied: bool = False) -> dict[str, str]:
    """Every tensor of a language file, GGUF name -> official name. Tied embeddings have no `output.weight`."""
    names = _inverse(_LANGUAGE.names(layers))
    if tied:
        del names["output.weight"]
    return names


def vision_names(layers: int, tower: str = "idefics2") -> dict[str, str]:
    """Every tensor of a projector file that is used, GGUF name (ffn by role) -> official name."""
    packed = {gguf: official for official, thirds in _packed(tower, range(layers)).items() for gguf in thirds}
    return _inverse(TOWERS[tower].names(layers)) | packed


def to_gguf_language(
    official: Mapping[str, np.ndarray], num_attention_heads: int, num_key_value_heads: int
) -> dict[str, np.ndarray]:
    """The `llm.*` tensors of a checkpoint, or some of them, under GGUF names and in GGUF layout."""
    tensors = {_LANGUAGE.rename(name): array for name, array in _part(official, LANGUAGE_PARTS, VISION_PARTS).items()}
    return _by_head(interleave_rows, tensors, num_attention_heads, num_key_value_heads)


def from_gguf_language(
    tensors: Mapping[str, np.ndarray], num_attention_heads: int, num_key_value_heads: int
) -> dict[str, np.ndarray]:
    """The tensors of a language file, or some of them, under official names and in official layout."""
    tensors = _by_head(deinterleave_rows, tensors, num_attention_heads, num_key_value_heads)
    table = _LANGUAGE.inverse()
    return {table.rename(name): array for name, array in tensors.items()}


def to_gguf_vision(official: Mapping[str, np.ndarray], tower: str = "idefics2") -> dict[str, np.ndarray]:
    """The `vpm.*` and `resampler.*` tensors of a checkpoint, or some of them, under GGUF names and in GGUF layout.

    The ffn names are swapped, as in the files that exist. `resampler.pos_embed_k`, which llama.cpp also wants, is not
    made here.
    """
    arrays = _part(official, VISION_PARTS, LANGUAGE_PARTS)
    packed, tensors = _packed(tower, _layers_in(arrays)), {}
    for name, array in arrays.items():
        if name in packed:
            if len(array) % 3:
                raise ModelFileError(f"{name} has {len(array)} rows, which are not q, k and v of equal size")
            tensors |= zip(packed[name], np.split(array, 3), strict=True)
        else:
            tensors[_swap_ffn(TOWERS[tower].rename(name))] = _reshaped(name, array)
    return tensors


def from_gguf_vision(tensors: Mapping[str, np.ndarray], tower: str = "idefics2") -> dict[str, np.ndarray]:
    """The tensors of a whole projector file, ffn names swapped or not, under official names and in official layout."""
    hidden = len(_present(tensors, "v.post_ln.weight"))
    tensors = fix_ffn_names(tensors, hidden, _present(tensors, "v.blk.0.ffn_up.weight").size // hidden)
    for name in chain(["resampler.proj.weight"], *_PACKED.values()):
        _present(tensors, name)
    return from_gguf_vision_part({name: array for name, array in tensors.items() if name != POSITION_TABLE}, tower)


def from_gguf_vision_part(tensors: Mapping[str, np.ndarray], tower: str = "idefics2") -> dict[str, np.ndarray]:
    """The tensors of a projector file, or those that some official tensors are made of, ffn names by role, under
    official names and in official layout."""
    table, official, used = TOWERS[tower].inverse(), {}, set()
    for name, thirds in _packed(tower, _layers_in(tensors)).items():
        if tensors.keys() & set(thirds):
            official[name] = np.concatenate([_present(tensors, third) for third in thirds])
            used.update(thirds)
    for gguf_name in tensors.keys() - used:
        name = table.rename(gguf_name)
        official[name] = _reshaped(name, tensors[gguf_name])
    return official


def _layers_in(names: Iterable[str]) -> set[int]:
    """The numbers of the layers that names are of."""
    return {int(match[1]) for name in names if (match := re.match(r"(?:vpm\.blocks|v\.blk)\.(0|[1-9]\d{0,3})\.", name))}


def _reshaped(name: str, array: np.ndarray) -> np.ndarray:
    """A tensor of this official name from either side as it is on the other."""
    if name == "resampler.proj":
        return array.T
    if name == "vpm.pos_embed":  # timm has it as a batch of one
        return array[0] if array.ndim == 3 else array[None]
    return array


def fix_ffn_names(tensors: Mapping[str, Any], hidden: int, intermediate: int) -> dict[str, Any]:
    """The tensors with the ViT's ffn names by role: `ffn_up` is fc1 (hidden -> intermediate), `ffn_down` is fc2.

    Values are anything that has a `shape`, rows first. Other tensors, also a language model's, stay as they are. Where
    the two widths are equal, shapes cannot tell; the names are taken as swapped, which llama.cpp does too.
    """
    layers = {match[1] for name in tensors if (match := re.fullmatch(r"(v\.blk\.\d+)\.ffn_down\.weight", name))}
    swapped = {layer for layer in layers if tensors[f"{layer}.ffn_down.weight"].shape == (intermediate, hidden)}
    for layer in sorted(layers - swapped):
        shape = tensors[f"{layer}.ffn_down.weight"].shape
        if shape != (hidden, intermediate):
            raise ModelFileError(
                f"{layer}.ffn_down.weight has shape {shape}; widths of {hidden} and {intermediate} are wanted"
            )
    return {_swap_ffn(name) if name.split(".ffn_")[0] in swapped else name: tensor for name, tensor in tensors.items()}


def interleave_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of an official q or k in GGUF's order: of each head, the rows of its two halves in turn."""
    return _reorder(rows, heads, 2, -1)


def deinterleave_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a GGUF q or k in the official order. Rows move whole, so packed ones (`Tensor.data`) may be given."""
    return _reorder(rows, heads, -1, 2)


def _reorder(rows: np.ndarray, heads: int, *split: int) -> np.ndarray:
    return rows.reshape(heads, *split, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _by_head(reorder: Callable, tensors: Mapping[str, np.ndarray], q: int, k: int) -> dict[str, np.ndarray]:
    """The tensors with q and k of every layer reordered; all have GGUF names."""
    heads = {"attn_q.weight": q, "attn_k.weight": k}
    parts = {name: name.split(".", 2)[-1] for name in tensors}
    for name, array in tensors.items():
        if parts[name] in heads and len(array) % (2 * heads[parts[name]]):
            raise ModelFileError(
                f"{name}: {len(array)} rows of a q or k weight cannot be split into {heads[parts[name]]} heads of even "
                "size"
            )
    return {
        name: reorder(array, heads[parts[name]]) if parts[name] in heads else array for name, array in tensors.items()
    }


def _swap_ffn(name: str) -> str:
    other = {"up": "down", "down": "up"}
    return re.sub(r"(?<=\.ffn_)(up|down)(?=\.)", lambda match: other[match[0]], name)


def _part(official: Mapping[str, np.ndarray], own: tuple[str, ...], other: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The tensors whose names begin with one of `own`; those of `other` are left out, and there are no more."""
    firsts = {name: name.split(".", 1)[0] for name in official}
    strangers = sorted(name for name, first in firsts.items() if first not in own + other)
    if strangers:
        raise ModelFileError(
            f"the tensor {strangers[0]!r} is not of an official checkpoint, whose names begin with "
            f"{', '.join(own + other)}"
        )
    return {name: array for name, array in official.items() if firsts[name] in own}


def _present(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in tensors:
        raise ModelFileError(f"the tensor {name!r} is missing")
    return tensors[name]
