"""`device_map="auto"`: our plan in place of transformers', which puts the vision side behind the last layer."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import get_max_memory

from handlens.model.configuration import CODE_KEYS, MiniCPMVConfig
from handlens.model.quantize import loads_in_int4
from handlens.placement import RESERVED, computed_bytes, plan_placement

#: What transformers lets one write for a map. Their differences are about how even the shares are; ours are.
AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")

#: Tokens that keys and values are planned for: ten slices and a long conversation.
CONTEXT_LENGTH = 4096

#: Options of `from_pretrained` that say where a checkpoint is.
_WHERE = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def config_of(path: str | os.PathLike | None, options: Mapping[str, Any]) -> MiniCPMVConfig:
    """The config of a checkpoint, given the options of `from_pretrained`; loading tells what there is to notice."""
    config = options.get("config")
    if isinstance(config, MiniCPMVConfig):
        return config
    values, _ = MiniCPMVConfig.get_config_dict(path, **{name: options[name] for name in _WHERE if name in options})
    return MiniCPMVConfig(**{key: value for key, value in values.items() if key not in CODE_KEYS})


def planned_device_map(config: MiniCPMVConfig, options: Mapping[str, Any]) -> dict[str, int | str]:
    """The device map for a checkpoint and the options of `from_pretrained`, `max_memory` and `dtype` among them.

    What does not fit on the GPUs goes to the CPU, and without GPUs from the CPU to disk; not so in int4, because
    bitsandbytes computes where the weights are. InputError says what is missing.
    """
    memory = get_max_memory(options.get("max_memory"))
    gpus = {name: int(size) for name, size in memory.items() if name not in ("cpu", "disk") and size}
    devices = gpus or {"cpu": int(memory["cpu"])}
    int4, itemsize = loads_in_int4(config, options), itemsize_of(config, options)
    sizes = config.model_config()
    placement = plan_placement(
        sizes,
        computed_bytes(sizes, itemsize, int4),
        devices,
        context_length=min(CONTEXT_LENGTH, sizes.llm.max_position_embeddings),
        itemsize=itemsize,
        offload=None if int4 else "cpu" if gpus else "disk",
        reserved=RESERVED if gpus else 0,
    )
    used = set(placement.device_map.values())
    return {"": used.pop()} if len(used) == 1 else placement.device_map


def itemsize_of(config: MiniCPMVConfig, options: Mapping[str, Any]) -> int:
    """The bytes of a weight that is not quantised; that of the checkpoint unless the options say another type."""
    dtype = options.get("dtype", options.get("torch_dtype"))
    dtype = config.dtype if dtype in (None, "auto") else dtype
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return (dtype or torch.float32).itemsize
