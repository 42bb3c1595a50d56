"""Which type each tensor of a file gets: a file type is a block type for most matrices, and more bits where they help.

The rules are those of llama.cpp (`llama_tensor_get_type_impl` of llama-quant.cpp), for models without experts, so that
a file is as large, and its tensors have the types, that everyone expects of its name. Values of attention and the way
down of the feed-forward layer get more bits in some layers, and the output matrix 6 bits everywhere.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from handlens.errors import InputError
from handlens.gguf.blocks import BLOCKS


@dataclass(frozen=True)
class Place:
    """Where in a model a matrix stands, and what is known of it."""

    layer: int
    layers: int
    queries_per_key: int
    important: bool  # whether an importance matrix is used


Condition = Callable[[Place], bool]


def _always(at: Place) -> bool:
    return True


def _in_first(count: int) -> Condition:
    return lambda at: at.layer < count


def _in_first_share(divisor: int) -> Condition:
    return lambda at: at.layer < at.layers // divisor


def _at_ends_and_every_third(at: Place) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    eighth = at.layers // 8
    return at.layer < eighth or at.layer >= 7 * at.layers // 8 or (at.layer - eighth) % 3 == 2


def _shared_keys(at: Place) -> bool:
    return at.queries_per_key >= 4


def _early_by_importance(at: Place) -> bool:
    return at.important and _in_first_share(8)(at)


def _early_without_importance(at: Place) -> bool:
    return not at.important and _in_first_share(8)(at)


@dataclass(frozen=True)
class Mix:
    """A file type: its number in `general.file_type`, the type of most matrices, and for some roles in the order of
    asking (when, which other type)."""

    number: int
    base: str
    rules: Mapping[str, tuple[tuple[Condition, str], ...]] = field(default_factory=dict)


_IQ4_RULES = {"attn_v": ((_shared_keys, "Q5_K"),), "ffn_down": ((_early_without_importance, "Q5_K"),)}
_MORE_IN_SOME_LAYERS = ((_at_ends_and_every_third, "Q6_K"),)

#: The file types of language files. For all but F16, BF16 and Q8_0 the output matrix, or the embedding where there is
#: no other, is Q6_K.
MIXES = {
    "F16": Mix(1, "F16"),
    "BF16": Mix(32, "BF16"),
    "Q8_0": Mix(7, "Q8_0"),
    "Q6_K": Mix(18, "Q6_K"),
    "Q5_1": Mix(9, "Q5_1"),
    "Q5_K_M": Mix(17, "Q5_K", {"attn_v": _MORE_IN_SOME_LAYERS, "ffn_down": _MORE_IN_SOME_LAYERS}),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_0": Mix(8, "Q5_0", {"ffn_down": ((_early_by_importance, "Q5_1"),)}),
    "Q4_1": Mix(3, "Q4_1"),
    "Q4_K_M": Mix(15, "Q4_K", {"attn_v": _MORE_IN_SOME_LAYERS, "ffn_down": _MORE_IN_SOME_LAYERS}),
    "Q4_K_S": Mix(14, "Q4_K", {"attn_v": ((_in_first(4), "Q5_K"),), "ffn_down": ((_in_first_share(8), "Q5_K"),)}),
    "Q4_0": Mix(2, "Q4_0", {"ffn_down": ((_early_by_importance, "Q4_1"),)}),
    "IQ4_NL": Mix(25, "IQ4_NL", _IQ4_RULES),
    "IQ4_XS": Mix(30, "IQ4_XS", _IQ4_RULES),
    "Q3_K_L": Mix(
        13,
        "Q3_K",
        {"attn_v": ((_always, "Q5_K"),), "attn_output": ((_always, "Q5_K"),), "ffn_down": ((_always, "Q5_K"),)},
    ),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        {
            "attn_v": ((_in_first(2), "Q5_K"), (_always, "Q4_K")),
            "attn_output": ((_always, "Q4_K"),),
            "ffn_down": ((_in_first_share(16), "Q5_K"), (_always, "Q4_K")),
        },
    ),
    "Q3_K_S": Mix(11, "Q3_K"),
    "Q2_K": Mix(
        10,
        "Q2_K",
        {
            "attn_v": ((_shared_keys, "Q4_K"), (_always, "Q3_K")),
            "attn_output": ((_always, "Q3_K"),),
            "ffn_down": ((_always, "Q3_K"),),
        },
    ),
}
#: The file types that a projector gets without being asked for: what is lost in an image cannot be made up for. In a
#: smaller one all of its matrices have the type of most matrices of the language model.
VISION_TYPES = ("F16", "BF16", "Q8_0")
#: Other names of the same.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

#: What rows that are not whole blocks of 256 get instead: blocks of 32 with as many bits or more.
_NARROW = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
#: Matrices that are no linear layers.
_TABLES = (".position_embd.", ".patch_embd.", "_norm.")


def mix_named(name: str) -> tuple[str, Mix]:
    """The file type of this name or alias, and its proper name; InputError lists those there are."""
    proper = ALIASES.get(name.upper(), name.upper())
    if proper not in MIXES:
        raise InputError(f"no file type is called {name!r}; there are {', '.join(MIXES)}")
    return proper, MIXES[proper]


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor gets a type of the mix; vectors, kernels and tables of positions stay what they are."""
    return len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in _TABLES)


def language_type(mix: Mix, name: str, columns: int, place: Place, *, is_output: bool) -> str:
    """The type of a matrix of the language model. `is_output`: it makes the logits."""
    wanted = mix.base
    if is_output and mix.base not in VISION_TYPES:
        wanted = "Q6_K"
    else:
        role = name.removesuffix(".weight").rsplit(".", 1)[-1]
        wanted = next((type for condition, type in mix.rules.get(role, ()) if condition(place)), wanted)
    return fitting(wanted, columns)


def fitting(type: str, columns: int) -> str:
    """The type, or what comes next to it of which rows of so many numbers are whole blocks."""
    for candidate in (type, _NARROW.get(type, "F16")):
        if columns % BLOCKS[candidate].weights == 0:
            return candidate
    return "F16"


def layer_of(name: str) -> int:
    """The number of the layer that a tensor of the language model is of; 0 outside of them."""
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else 0
