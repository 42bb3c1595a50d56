"""What a tokenizer's vocabulary is in a GGUF file or a tokenizer.json, and the checks that it has to pass.

Both sources come down to the same fields, the metadata tokenizer.ggml.* without this front; `tokenizer.py` builds the
tokenizer from them.

Facts: the GGUF specification (tokenizer.ggml.*), the tokenizer.json of Llama 3, SmolLM and Llama 2, GPT-2's byte table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from handlens.errors import ModelFileError

MAX_TOKENS = 1 << 20
MAX_TOKEN_BYTES = 4096
MAX_FILE_BYTES = 64 << 20  # a tokenizer.json of 128,256 tokens has 9 MB

#: The bytes that a vocabulary has to have: those in the UTF-8 of assigned characters that are no control characters.
#: SmolLM has no token for the other bytes and some control characters; encoding leaves them out, as the library does.
BYTES_OF_TEXT = frozenset([*b"\t\n\r", *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1), 0xF3])

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # values of tokenizer.ggml.token_type
#: The metadata that is read and written, behind "tokenizer.ggml.", with its GGUF types.
FIELDS = {
    "model": "str",
    "pre": "str",
    "tokens": "arr[str]",
    "token_type": "arr[i32]",
    "merges": "arr[str]",
    "scores": "arr[f32]",
    "add_space_prefix": "bool",
    **{f"{role}_token_id": "u32" for role in ("bos", "eos", "eot", "unknown", "padding")},
}

# Parts of a tokenizer.json, as the library writes them.
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_LLAMA3 = {"type": "Split", "pattern": {"Regex": LLAMA3_WORDS}, "behavior": "Isolated", "invert": False}
SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2_WORDS = BYTES | {"use_regex": True}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREFIX_AND_SPACES = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]}
SENTENCEPIECE_DECODER = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@dataclass(frozen=True)
class PreTokenizer:
    """What happens to a text before the merges, written as in a tokenizer.json."""

    model: str  # tokenizer.ggml.model of the files that have it
    normalizer: dict | None = None
    pre_tokenizer: dict | None = None
    ignore_merges: bool = False  # a word that is a piece as a whole is that piece, whatever the merges say

    def build(self, pieces: dict[str, int], merges: list[tuple[str, str]], space_prefix: bool) -> tokenizers.Tokenizer:
        """The library's tokenizer with these pieces and no added token."""
        normalizer = self.normalizer if space_prefix or self.normalizer is None else SPACES
        model = {"type": "BPE", "vocab": {}, "merges": []}
        frame = {"version": "1.0", "normalizer": normalizer, "pre_tokenizer": self.pre_tokenizer, "model": model}
        inner = tokenizers.Tokenizer.from_str(json.dumps(frame))
        # The library reads a large model from Python twice as fast as from JSON.
        options = {"ignore_merges": self.ignore_merges, "byte_fallback": self.model == "llama"}
        inner.model = tokenizers.models.BPE(pieces, merges, **options)
        return inner


LLAMA3 = PreTokenizer("gpt2", None, {"type": "Sequence", "pretokenizers": [SPLIT_LLAMA3, BYTES]}, ignore_merges=True)
#: By tokenizer.ggml.pre; SentencePiece files are known by tokenizer.ggml.model and have the row "llama".
PRE_TOKENIZERS = {
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "smollm": PreTokenizer("gpt2", None, {"type": "Sequence", "pretokenizers": [SINGLE_DIGITS, GPT2_WORDS]}),
    "llama": PreTokenizer("llama", PREFIX_AND_SPACES),
}


def byte_pieces(model: str) -> dict[str, int]:
    """The 256 pieces that stand for one byte each, with that byte, in a vocabulary of this tokenizer.ggml.model."""
    if model == "llama":
        return {f"<0x{byte:02X}>": byte for byte in range(256)}
    # GPT-2: printable Latin-1 stands for itself; the other bytes are, in order, the characters from U+0100 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def refusal(name: str, reason: str) -> ModelFileError:
    return ModelFileError(f"tokenizer.ggml.{name}: {reason}")


def pre_tokenizer_row(model: Any, pre: Any) -> PreTokenizer:
    """The row for tokenizer.ggml.model and tokenizer.ggml.pre."""
    named = isinstance(model, str)
    name = model if named and model == "llama" else pre
    row = PRE_TOKENIZERS.get(name) if named and isinstance(name, str) else None
    if row is None or row.model != model:
        known = ", ".join(f"{name} (model {row.model})" for name, row in PRE_TOKENIZERS.items())
        key = "pre" if named else "model"
        raise refusal(key, f"{pre!r:.80} with model {model!r:.80} is not known; known are {known}")
    return row


def token_ids(tokens: Any) -> dict[str, int]:
    """Token -> id, after the checks that every vocabulary has to pass."""
    if not isinstance(tokens, list) or not 0 < len(tokens) <= MAX_TOKENS:
        raise refusal("tokens", f"an array of 1 to {MAX_TOKENS} strings is wanted")
    vocab: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        try:
            size = len(token.encode())
        except (AttributeError, UnicodeEncodeError):
            raise refusal("tokens", f"token {token_id}, {token!r:.80}, is not Unicode text") from None
        if not 0 < size <= MAX_TOKEN_BYTES:
            raise refusal("tokens", f"token {token_id} has {size} bytes; 1 to {MAX_TOKEN_BYTES} are wanted")
        if vocab.setdefault(token, token_id) != token_id:
            raise refusal("tokens", f"tokens {vocab[token]} and {token_id} are the same, {token!r:.80}")
    return vocab


def token_numbers(fields: Mapping[str, Any], name: str, dtype: type, count: int) -> np.ndarray:
    """The array of this name [count], of exactly this element type, with finite values."""
    array = fields.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (count,):
        given = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else f"{array!r:.80}"
        raise refusal(name, f"an array of {np.dtype(dtype)} [{count}], one a token, is wanted, not {given}")
    if not np.isfinite(array).all():
        raise refusal(name, "a value is not finite")
    return array


def checked_merges(merges: Any, pieces: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges, written "left right", as pairs; both parts and the result have to be pieces."""
    if not isinstance(merges, list):
        raise refusal("merges", f"an array of strings is wanted, not {merges!r:.80}")
    pairs = []
    for number, merge in enumerate(merges):
        left, _, right = str(merge).partition(" ")
        if not (left in pieces and right in pieces and left + right in pieces):
            raise refusal("merges", f"merge {number}, {merge!r:.80}, does not make one text token of two")
        pairs.append((left, right))
    return pairs


def merges_by_score(tokens: list[str], pieces: Mapping[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """Every split of a piece into two, the piece with the best score first: what SentencePiece merges first.

    Equal scores go by id. So files of MiniCPM are read as well, where all scores are -1000 and the ids are in order.
    """
    merges = []
    for token_id in np.argsort(-scores, kind="stable"):
        if (piece := tokens[token_id]) in pieces:
            splits = ((piece[:k], piece[k:]) for k in range(len(piece) - 1, 0, -1))
            merges += [(left, right) for left, right in splits if left in pieces and right in pieces]
    return merges


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """The metadata that a GGUF file with the tokenizer of this tokenizer.json has."""
    return _fields_of_json(_read_json(path))


def tokenizer_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer.json of the vocabulary of a sound GGUF file holds, for the `tokenizers` library and for
    `read_tokenizer_json`, which reads the same vocabulary from it."""
    row = pre_tokenizer_row(fields["model"], fields.get("pre"))
    if fields.get("add_space_prefix") is False:
        raise refusal("add_space_prefix", "no tokenizer.json is known for a vocabulary without the space in front")
    tokens, bytes_of_text = fields["tokens"], byte_pieces(row.model)
    kinds = dict(zip(tokens, fields["token_type"].tolist(), strict=True))
    pieces = {text: n for n, text in enumerate(tokens) if kinds[text] == NORMAL or text in bytes_of_text}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token_id, "content": text, "special": kinds[text] != USER_DEFINED, **flags}
        for token_id, text in enumerate(tokens)
        if kinds[text] not in (NORMAL, BYTE)
    ]
    merges = fields.get("merges")
    if merges is None:
        merges = [" ".join(pair) for pair in merges_by_score(tokens, pieces, fields["scores"])]
    # The library counts on from the vocabulary for the ids of added tokens that are not in it.
    vocab = {text: token_id for token_id, text in enumerate(tokens[: max(pieces.values()) + 1])}
    sentencepiece = row.model == "llama"
    model = {"type": "BPE", "ignore_merges": row.ignore_merges, "byte_fallback": sentencepiece}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": row.normalizer,
        "pre_tokenizer": row.pre_tokenizer,
        "decoder": SENTENCEPIECE_DECODER if sentencepiece else BYTES,
        "model": model | {"vocab": vocab, "merges": merges},
    }


def _read_json(path: Path) -> dict:
    """The object in a tokenizer.json."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ModelFileError(f"the file has more than {MAX_FILE_BYTES} bytes, which no tokenizer.json needs")
        spec = json.loads(text, object_hook=_with_offsets)
    except OSError as error:
        raise ModelFileError(f"the file cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelFileError(f"this is no JSON: {error}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise ModelFileError("a JSON object with an object `model` is wanted")
    return spec


def _with_offsets(part: dict) -> dict:
    return part | {"trim_offsets": True} if part.get("type") == "ByteLevel" else part  # has no effect on ids


def _rules_of_json(spec: dict, model: dict) -> tuple[str, PreTokenizer]:
    """The row of PRE_TOKENIZERS, and its name, whose rules are all those of this tokenizer.json."""
    affixes = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if model.get("type") == "BPE" and not any(affixes):
        kind = "llama" if model.get("byte_fallback") else "gpt2"
        rules = PreTokenizer(kind, spec.get("normalizer"), spec.get("pre_tokenizer"), bool(model.get("ignore_merges")))
        for name, row in PRE_TOKENIZERS.items():
            if row == rules:
                return name, row
    raise ModelFileError(f"model, normalizer and pre_tokenizer are not those of {', '.join(PRE_TOKENIZERS)}")


def _fields_of_json(spec: dict) -> dict[str, Any]:
    """The metadata that a GGUF file of the same tokenizer has."""
    model, added = spec["model"], spec.get("added_tokens", [])
    name, row = _rules_of_json(spec, model)
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(added, list):
        raise ModelFileError("an object model.vocab and arrays model.merges and added_tokens are wanted")
    sentencepiece = row.model == "llama"
    bytes_of_text = byte_pieces("llama") if sentencepiece else {}
    entries = [(text, token_id, BYTE if text in bytes_of_text else NORMAL) for text, token_id in vocab.items()]
    for token in added:
        if not isinstance(token, dict):
            raise ModelFileError(f"added_tokens: {token!r:.80} is no object")
        entries.append((token.get("content"), token.get("id"), CONTROL if token.get("special") else USER_DEFINED))
    placed: dict[int, tuple[str, int]] = {}
    for text, token_id, token_type in entries:
        if not isinstance(text, str) or type(token_id) is not int or not 0 <= token_id < MAX_TOKENS:
            raise ModelFileError(f"a text with an id below {MAX_TOKENS} is wanted, not {text!r:.80}: {token_id!r:.80}")
        if token_id in placed and placed[token_id][0] != text:
            raise ModelFileError(f"{placed[token_id][0]!r:.80} and {text!r:.80} have the same id, {token_id}")
        placed[token_id] = text, token_type
    # Ids left free get a token that nothing becomes, named as llama.cpp's converter names them.
    rows = [placed.get(token_id, (f"[PAD{token_id}]", UNUSED)) for token_id in range(max(placed, default=-1) + 1)]
    fields = {
        "model": row.model,
        "pre": "default" if sentencepiece else name,
        "tokens": [text for text, _ in rows],
        "token_type": np.array([token_type for _, token_type in rows], np.int32),
        "merges": [" ".join(map(str, merge)) if isinstance(merge, list) else merge for merge in merges],
    }
    if sentencepiece:
        # llama.cpp reads no merges here, it takes the pair with the best score: the earlier the merge, the better.
        rank = {str(merge).replace(" ", ""): number for number, merge in reversed(list(enumerate(fields["merges"])))}
        fields["scores"] = np.array([-rank.get(text, len(rank)) for text in fields["tokens"]], np.float32)
    return fields
