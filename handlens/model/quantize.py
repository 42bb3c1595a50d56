"""int4 weights: bitsandbytes' NF4 with the settings of the published MiniCPM-Llama3-V 2.5 int4 checkpoint.

    MiniCPMV.from_pretrained(folder, quantization_config=nf4_config())

quantises while loading; what `save_pretrained` then writes has the published layout and loads without any option.
Facts: config.json of the published int4 repository.
"""

import json
from collections import Counter
from collections.abc import Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from handlens.checkpoint import weight_files
from handlens.errors import ModelFileError

#: Linear layers that stay as they are, by the end of their names: all `out_proj`, of the tower and of the resampler.
#: The original reads the resampler's without calling it, which packed weights do not stand.
SKIPPED = ("out_proj", "kv_proj", "lm_head")

#: Weights that share a scale, scales that share a scale of theirs, and the numbers in the two code books.
BLOCK, NESTED_BLOCK, CODES, NESTED_CODES = 64, 256, 16, 256

#: The tensor that says how a weight is packed, as JSON, and the most bytes that it is read to.
STATE, MAX_STATE_BYTES = "quant_state.bitsandbytes__nf4", 4096


def nf4_config(compute_dtype: torch.dtype = torch.float16) -> BitsAndBytesConfig:
    """The settings of the published checkpoint. Activations are cast to `compute_dtype` for each product."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=list(SKIPPED),
        llm_int8_threshold=6.0,
        llm_int8_enable_fp32_cpu_offload=False,
    )


def loads_in_int4(config: PreTrainedConfig, options: Mapping[str, Any]) -> bool:
    """Whether the weights will be four bits wide, by the options or as they are stored."""
    settings = options.get("quantization_config") or getattr(config, "quantization_config", None) or {}
    if isinstance(settings, Mapping):
        return settings.get("load_in_4bit") is True
    return getattr(settings, "load_in_4bit", False)


def check_int4(folder: Path, model_class: type[nn.Module], config: PreTrainedConfig) -> None:
    """ModelFileError if a folder holds an int4 checkpoint that does not fit a model of this class and config."""
    if loads_in_int4(config, {}):
        with torch.device("meta"):
            wanted = model_class(config).state_dict()
        if config.tie_word_embeddings:
            wanted.pop("llm.lm_head.weight")
        check_packed(folder, {name: tuple(tensor.shape) for name, tensor in wanted.items()})


def check_packed(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ModelFileError that names the tensors that an int4 checkpoint lacks, has too much, or packs in another way than
    weights of these shapes are. The loader trusts what a file says of itself; kernels would then read past its end."""
    held = _stored(folder)
    missing, strange = [], []
    for name, shape in shapes.items():
        dtype, found, _ = held.pop(name, (None, (), None))
        if dtype is None:
            missing.append(name)
        elif dtype != "U8":
            strange += [] if found == shape else [f"{name} ({list(found)}, {list(shape)} is wanted)"]
        else:
            blocks = ceil(prod(shape) / BLOCK)
            counts = {
                "absmax": blocks,
                "nested_absmax": ceil(blocks / NESTED_BLOCK),
                "quant_map": CODES,
                "nested_quant_map": NESTED_CODES,
            }
            states = {part: held.pop(f"{name}.{part}", None) for part in (*counts, STATE)}
            missing += [f"{name}.{part}" for part, state in states.items() if state is None]
            wrong = prod(found) != ceil(prod(shape) / 2) or not _says(states[STATE], shape)
            if wrong or any(states[part] and prod(states[part][1]) != count for part, count in counts.items()):
                strange.append(f"{name} (no NF4 weight of {list(shape)})")
    problems = {"lacks": missing, "holds, of no known use,": sorted(held), "holds in another shape": strange}
    told = [
        f"{verb} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
        for verb, names in problems.items()
        if names
    ]
    if told:
        raise ModelFileError(f"{folder} {'; '.join(told)}: it is incomplete, damaged or of another model")


def _stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes | None]]:
    """Name -> type, shape, and of the tensors that say how a weight is packed the content."""
    held = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    view = file.get_slice(name)
                    dtype, shape = view.get_dtype(), tuple(view.get_shape())
                    small = name.endswith(STATE) and dtype == "U8" and prod(shape) <= MAX_STATE_BYTES
                    held[name] = dtype, shape, file.get_tensor(name).tobytes() if small else None
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{path} is not a sound safetensors file: {error}") from None
    return held


def _says(state: tuple[str, tuple[int, ...], bytes | None] | None, shape: tuple[int, ...]) -> bool:
    """Whether the note on a packed weight says what is computed here; one that is missing has been told already."""
    if state is None:
        return True
    try:
        said = json.loads(state[2] or b"")
    except (ValueError, RecursionError):
        return False
    wanted = {"quant_type": "nf4", "blocksize": BLOCK, "nested_blocksize": NESTED_BLOCK, "shape": list(shape)}
    return isinstance(said, dict) and all(said.get(key) == value for key, value in wanted.items())


def keep_layout(model: nn.Module) -> nn.Module:
    """The model, whose int4 weights stay as they are stored when it computes on a CPU.

    On a CPU with AVX512-BF16 bitsandbytes repacks a layer at its first call. That rounds the scales, so that a model
    saved afterwards is another one, and it fails for layers whose widths are no multiples of 32 and 64: those of the
    vision tower, 4304 wide.
    """
    from bitsandbytes.nn import Linear4bit  # needed by who has int4 weights only

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def memory_by_type(model: nn.Module) -> dict[str, int]:
    """Bytes of the weights by the class of the module that holds them, largest first; scales of int4 weights count."""
    sizes: Counter[str] = Counter()
    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            sizes[type(module).__name__] += tensor.nbytes + _state_bytes(tensor)
    return dict(sizes.most_common())


def _state_bytes(tensor: torch.Tensor) -> int:
    """The bytes of scales that bitsandbytes keeps beside a packed weight; code books are shared."""
    state = getattr(tensor, "quant_state", None)
    if state is None:
        return 0
    return state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
