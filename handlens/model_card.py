"""`AutoModel` and `AutoTokenizer` with the calls of the published model card, so that its script runs here:

from handlens import AutoModel, AutoTokenizer      # was: from transformers import ...
"""

import logging
from pathlib import Path
from typing import Any

from handlens.chat import Chat, load
from handlens.tokenizer import Tokenizer
from handlens.weights import find_files, open_tokenizer

log = logging.getLogger("handlens")

#: Options of transformers' loader that have no meaning here: there is one precision (the file's) and no remote code.
_WITHOUT_MEANING = (
    "trust_remote_code",
    "torch_dtype",
    "dtype",
    "device_map",
    "attn_implementation",
    "low_cpu_mem_usage",
)


class AutoModel:
    """Loads a model by the name of its file or folder."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path, *, mmproj: str | Path | None = None, **options: Any) -> Chat:
        """The model, with the published `chat` method. Options that are not known raise TypeError."""
        _check("AutoModel.from_pretrained", options)
        return load(name_or_path, mmproj)


class AutoTokenizer:
    """Loads the tokenizer that belongs to a model."""

    @staticmethod
    def from_pretrained(name_or_path: str | Path, **options: Any) -> Tokenizer:
        """The tokenizer inside the model's GGUF file, or of its folder."""
        _check("AutoTokenizer.from_pretrained", options)
        return open_tokenizer(find_files(name_or_path).model)


def _check(function: str, options: dict[str, Any]) -> None:
    unknown = [name for name in options if name not in _WITHOUT_MEANING]
    if unknown:
        raise TypeError(f"{function}() got unexpected options: {', '.join(unknown)}")
    if options:
        log.info("%s: %s have no effect in handlens", function, ", ".join(options))
