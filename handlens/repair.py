"""Rewrites GGUF files that have known faults. What is wrong is only in the keys, so no weight is touched.

The faults: deployment notes of llama.cpp's converters for MiniCPM-V, and of early files of Llama 3.
"""

from pathlib import Path
from typing import Any

from handlens.atomic import replacing
from handlens.config import FAMILIES
from handlens.conversion import check_targets
from handlens.errors import ModelFileError
from handlens.gguf.convert import LLAMA3_TEMPLATE
from handlens.gguf.keys import DEFAULT_VERSION, is_projector, vision_blocks
from handlens.gguf.reader import GGUFFile
from handlens.gguf.writer import write_into
from handlens.proof.seal import unsealed_metadata

#: key -> ((type, value), reason).
Changes = dict[str, tuple[tuple[str, Any], str]]


def repair(source: Path, out: Path, *, overwrite: bool = False) -> list[str]:
    """Writes the file without its known faults and says what was changed; nothing is written if nothing was wrong."""
    check_targets([out], overwrite)
    file = GGUFFile(source)
    changes = _projector_changes(file) if is_projector(file) else _language_changes(file)
    if changes:
        metadata = unsealed_metadata(file) | {key: value for key, (value, _) in changes.items()}
        with replacing(out, ModelFileError) as target:
            write_into(target, metadata, file.tensors, file.alignment)
    return [reason for _, reason in changes.values()]


def _projector_changes(file: GGUFFile) -> Changes:
    """What a projector needs."""
    changes: Changes = {}
    held, said = vision_blocks(file), file.require("clip.vision.block_count", int)
    if held == said + 1:
        changes["clip.vision.block_count"] = (
            ("u32", held),
            f"clip.vision.block_count said {said} layers, but the file holds {held}: other programs left the last out",
        )
    if "clip.minicpmv_version" not in file.metadata:
        changes["clip.minicpmv_version"] = ("i32", DEFAULT_VERSION), "clip.minicpmv_version was missing"
    if "clip.minicpmv_query_num" not in file.metadata and "resampler.query" in file.tensors:
        queries = file.tensors["resampler.query"].shape[0]
        changes["clip.minicpmv_query_num"] = ("u32", queries), "clip.minicpmv_query_num was missing"
    if "clip.projector_type" not in file.metadata:
        changes["clip.projector_type"] = ("str", "resampler"), "clip.projector_type was missing"
    return changes


def _language_changes(file: GGUFFile) -> Changes:
    """What a language file with the tokens of Llama 3 needs."""
    changes: Changes = {}
    tokens = file.require("tokenizer.ggml.tokens", "arr[str]")
    end_of_turn = FAMILIES["minicpm-llama3-v-2.5"].tokens.stop[-1]
    if end_of_turn not in tokens:
        return changes
    template = file.metadata.get("tokenizer.chat_template")
    if template is None or (end_of_turn not in template and "eos_token" not in template):
        reason = "was missing" if template is None else "ended no turn, so other programs never stopped"
        changes["tokenizer.chat_template"] = ("str", LLAMA3_TEMPLATE), f"tokenizer.chat_template {reason}"
    eos = file.metadata.get("tokenizer.ggml.eos_token_id")
    if eos != tokens.index(end_of_turn):
        changes["tokenizer.ggml.eos_token_id"] = (
            ("u32", tokens.index(end_of_turn)),
            f"tokenizer.ggml.eos_token_id was {eos}, which ends no turn: other programs never stopped",
        )
    if "tokenizer.ggml.pre" not in file.metadata:
        changes["tokenizer.ggml.pre"] = ("str", "llama-bpe"), "tokenizer.ggml.pre was missing: numbers were cut wrongly"
    return changes
