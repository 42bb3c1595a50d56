"""The device side's backend: the tensors of a file pair, the vision tower, the resampler and the language model."""

import hashlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from handlens.backend import Progress
from handlens.config import ModelConfig
from handlens.cpu import ops, reference
from handlens.cpu.llama import KVCache, Llama
from handlens.cpu.memory import give_back, let_go
from handlens.cpu.packs import PackStore
from handlens.cpu.threads import check_thread_count
from handlens.cpu.vision import Resampler, VisionTower
from handlens.errors import InputError
from handlens.gguf.blocks import Tensor
from handlens.images import SlicedImage, patches

log = logging.getLogger("handlens")

#: Models up to this many float32 bytes are held dequantised; larger ones are dequantised piece by piece in each call.
DENSE_BYTES = 1 << 30
#: Set to "off", all arithmetic is numpy's.
KERNELS_VARIABLE = "HANDLENS_KERNELS"
#: Matrices that are only looked up in, row by row. The first is multiplied with where there is no `output.weight`.
TABLES = ("token_embd.weight", "v.position_embd.weight", "resampler.query", "resampler.pos_embed")
#: Float matrices that stay floats in int8 as well: what they compute chooses places, and a trained model may choose
#: sharply, so that int8 with a scale a row changes what it sees (tests/test_default_model.py).
EXACT = ("resampler.attn.q.weight", "resampler.attn.k.weight")
#: What the vision tower and the resampler compute in: bfloat16, matrices and the tower's attention, where the processor
#: can (`ops.multiplies_bf16`); int8 with float32 totals (see `ops.pack`); or float32.
VISION_PRECISIONS = ("bf16", "int8", "f32")


class CpuBackend:
    """Implements `backend.Backend` with the kernels or in numpy. `language` and `vision` are tensors by the names of
    GGUF files, with the vision tower's ffn names in their natural roles (see `gguf.names.fix_ffn_names`).
    `vision_precision` is one of VISION_PRECISIONS (see `choose_precision`). With `low_memory` the vision side is in
    memory only while images are encoded. `packs` keeps packed weights for the next start."""

    def __init__(
        self,
        config: ModelConfig,
        language: Mapping[str, Tensor],
        vision: Mapping[str, Tensor] | None = None,
        vision_precision: str | None = None,
        low_memory: bool = False,
        packs: PackStore | None = None,
    ):
        self.config = config
        self.arithmetic = choose_arithmetic()
        self.vision_precision = choose_precision(vision_precision, self.arithmetic, config.family.int8_vision)
        self.llama = Llama(config.llm, _in_memory("language", language, self.arithmetic, packs=packs), self.arithmetic)
        self.row_independent = _is_row_independent(self.llama)
        # What quantised weights make is less exact than float16; float models keep what they compute.
        quantised = any(tensor.type not in ops.FLOAT_TYPES for tensor in language.values())
        self.cache_type = np.float16 if quantised else np.float32
        self.prompts_differ = quantised and self.arithmetic is ops and ops.multiplies_bf16()
        self.low_memory = low_memory
        self._vision = vision
        self._packs = packs
        self._eyes: tuple[VisionTower, Resampler] | None = None
        self._lock = threading.Lock()
        if low_memory:
            check_vision(config, vision)
        else:
            self.open_eyes()

    def open_eyes(self) -> tuple[VisionTower, Resampler] | None:
        """The vision side in memory, if the model has one."""
        with self._lock:
            if self._eyes is None and self.config.vision is not None:
                weights = _in_memory("vision", self._vision, self.arithmetic, self.vision_precision, self._packs)
                tower = VisionTower(self.config.vision, weights, self.arithmetic)
                self._eyes = tower, Resampler(self.config.resampler, weights, self.arithmetic)
            return self._eyes

    @property
    def tower(self) -> VisionTower:
        """The vision tower."""
        return self.open_eyes()[0]

    @property
    def resampler(self) -> Resampler:
        """The resampler."""
        return self.open_eyes()[1]

    @cached_property
    def vision_key(self) -> str:
        """A digest of the vision side's weights and sizes, and how it computes."""
        digest = hashlib.sha256(repr((self.config.vision, self.config.resampler)).encode())
        for name, tensor in sorted(self._vision.items()):
            digest.update(f"{name} {tensor.type} {tensor.shape}\n".encode())
            digest.update(np.ascontiguousarray(tensor.data))
            let_go(tensor.data)
        how = {"bf16": "bf16", "int8": "int8 in runs of 64, keys exact", "f32": "f32"}[self.vision_precision]
        return f"{digest.hexdigest()} {how if self.arithmetic is ops else 'numpy'}"

    def encode(self, images: Sequence[SlicedImage], longest: int, progress: Progress | None = None) -> list[np.ndarray]:
        """The vectors [slices * Q, D] of each image; progress is told after each slice."""
        try:
            return self._encode(images, longest, progress, *self.open_eyes())
        finally:
            if self.low_memory:
                self._eyes = None
                give_back(tensor.data for tensor in self._vision.values())

    def _encode(
        self,
        images: Sequence[SlicedImage],
        longest: int,
        progress: Progress | None,
        tower: VisionTower,
        resampler: Resampler,
    ) -> list[np.ndarray]:
        total = sum(len(image.plan.sizes) for image in images)
        done = 0
        encoded = []
        for image in images:
            vectors = []
            for pixels, tgt_size in zip(image.slices, image.plan.tgt_sizes, strict=True):
                cells = patches(pixels, self.config.vision.patch_size)
                vectors.append(resampler.forward(tower.encode(cells, tgt_size, longest), tgt_size))
                done += 1
                if progress is not None:
                    progress(done, total)
            encoded.append(np.concatenate(vectors))
        return encoded

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """The embeddings [n, D] of token ids [n]."""
        return self.llama.embed(input_ids)

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self.config.llm, dtype=self.cache_type)

    def forward(
        self,
        inputs: Sequence[np.ndarray],
        caches: Sequence[KVCache],
        tails: Sequence[int] | None = None,
        prompt: bool = False,
    ) -> np.ndarray:
        """The logits [sequences, V] after the last position of each sequence's new inputs [n_i, D]; with `tails`, those
        after the last so many positions of each, one behind the other. `prompt`: the positions are a prompt's."""
        return self.llama.forward(inputs, caches, tails=tails, prompt=prompt)


def check_shapes(config: ModelConfig, language: Mapping[str, Any], vision: Mapping[str, Any] | None = None) -> None:
    """ModelFileError for the first tensor whose shape is not that of the config; of tensors only `shape` is asked."""
    Llama(config.llm, language)
    check_vision(config, vision)


def check_vision(config: ModelConfig, vision: Mapping[str, Any] | None) -> None:
    """As `check_shapes`, for the vision side of a model that has one."""
    if config.vision is not None:
        VisionTower(config.vision, vision)
        Resampler(config.resampler, vision)


def use_threads(count: int) -> None:
    """Sets how many threads the kernels compute with, in the whole process."""
    check_thread_count(count)
    if choose_arithmetic() is ops:
        ops.set_threads(count)
    else:
        log.warning("numpy computes here, with as many threads as OMP_NUM_THREADS says; %d threads have no use", count)


def choose_arithmetic() -> ModuleType:
    """The functions to compute with: `ops` where the kernels were built and are not switched off, else `reference`."""
    wanted = os.environ.get(KERNELS_VARIABLE) or "on"
    if wanted not in ("on", "off"):
        raise InputError(f"{KERNELS_VARIABLE} is {wanted!r}; on and off are wanted")
    return ops if ops.native and wanted == "on" else reference


def choose_precision(wanted: str | None, arithmetic: ModuleType, int8: bool = True) -> str:
    """The one of VISION_PRECISIONS to compute in: what is wanted, or else bf16 where the processor multiplies it, f32
    where `int8` is not exact enough or would save next to nothing, and otherwise int8. numpy computes in float32
    whatever is chosen."""
    has_bf16 = arithmetic is not ops or ops.multiplies_bf16()
    usable = [name for name in VISION_PRECISIONS if name != "bf16" or has_bf16]
    if not wanted:
        return "bf16" if has_bf16 else "int8" if int8 and ops.is_quick_in_int8() else "f32"
    if wanted not in usable:
        why = "" if wanted not in VISION_PRECISIONS else ", which this processor does not multiply"
        raise InputError(f"the vision precision is {wanted!r}{why}; {' or '.join(usable)} is wanted")
    return wanted


def describe_arithmetic() -> str:
    """What computes on this machine, for people."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if choose_arithmetic() is ops:
        kernels = ops.description()
    else:
        kernels = f"kernels off ({KERNELS_VARIABLE})" if ops.native else "no kernels (built without a compiler)"
    return f"numpy {np.__version__} with {blas}, float32; {kernels}"


def describe_instruction_sets() -> str:
    """Which kernels this processor can run, for people; empty where none were built."""
    return ops.describe_sets(ops.native.lacking()) if ops.native else ""


def _is_row_independent(llama: Llama) -> bool:
    """Whether no product is left to numpy, whose roundings depend on the number of rows in a call."""
    weights = [weight for layer in llama.layers for module in layer.values() for weight in module] + [llama.output]
    return all(isinstance(weight, ops.PackedWeight) for weight in weights if len(weight.shape) == 2)


def _in_memory(
    part: str,
    tensors: Mapping[str, Tensor],
    arithmetic: ModuleType,
    precision: str | None = None,
    packs: PackStore | None = None,
) -> dict[str, reference.Weight | ops.PackedWeight]:
    """Matrices packed for the kernels, where they run (see `ops.pack` for the precision). Of the rest vectors, and
    everything of a small model, as float32 arrays, and large matrices as they are, mapped from the file."""
    small = sum(4 * int(np.prod(tensor.shape)) for tensor in tensors.values()) <= DENSE_BYTES
    tables = {name for name in TABLES if name != "token_embd.weight" or "output.weight" in tensors}
    placed = {}
    if arithmetic is ops:
        matrices = {name: tensors[name] for name in sorted(tensors.keys() - tables) if len(tensors[name].shape) > 1}
        exact = {name: matrices.pop(name) for name in EXACT if name in matrices} if precision == "int8" else {}
        for what, chosen, how in ((part, matrices, precision), (f"{part}, exact", exact, None)):
            if packs is not None and chosen:
                placed |= packs.pack(what, chosen, how)
            else:
                placed |= {name: ops.pack(tensor, precision=how) for name, tensor in chosen.items()}
    for name in tensors.keys() - placed.keys():
        tensor = tensors[name]
        placed[name] = tensor.dequantize() if small or len(tensor.shape) == 1 else tensor
    return placed
