"""Text to token ids and back, from the metadata of a GGUF file or from a tokenizer.json.

The `tokenizers` library does the byte pair encoding. What it is given here holds no special token, so what a user
types, or what a page in an image says, is encoded as plain text: `<image>` becomes `<`, `image`, `>`. Who builds a
prompt puts special tokens in by id and finds the ids by name in `Tokenizer.special`.

There are two kinds of vocabulary. Byte-level ("gpt2" in GGUF): the characters of a piece stand for bytes, so every text
comes back as it was. SentencePiece ("llama" in GGUF): a piece is text with `▁` for a space, and what has no piece
becomes byte tokens such as `<0xE2>`; a `▁` that was typed comes back as a space.
"""

import codecs
import json
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from handlens.errors import InputError, ModelFileError
from handlens.vocabulary import (
    BYTE,
    BYTES_OF_TEXT,
    FIELDS,
    NORMAL,
    byte_pieces,
    checked_merges,
    merges_by_score,
    pre_tokenizer_row,
    read_tokenizer_json,
    refusal,
    token_ids,
    token_numbers,
    tokenizer_json,
)


class Tokenizer:
    """Encodes and decodes with one vocabulary. `fields` is the metadata tokenizer.ggml.* without this front."""

    def __init__(self, fields: Mapping[str, Any]):
        self._fields = {name: fields[name] for name in FIELDS if name in fields}
        row = pre_tokenizer_row(fields.get("model"), fields.get("pre"))
        self._sentencepiece = row.model == "llama"
        self._tokens = fields.get("tokens")
        vocab = token_ids(self._tokens)
        types = token_numbers(fields, "token_type", np.int32, len(vocab)).tolist()
        self._bytes = byte_pieces(row.model)
        for token, token_id in vocab.items():
            if not NORMAL <= types[token_id] <= BYTE or (types[token_id] == BYTE and token not in self._bytes):
                raise refusal("token_type", f"{token!r:.80} (id {token_id}) cannot be of type {types[token_id]}")
        if lacking := [byte for piece, byte in self._bytes.items() if byte in BYTES_OF_TEXT and piece not in vocab]:
            raise refusal("tokens", f"no token stands for the byte 0x{lacking[0]:02X}, so text would get lost")
        for name in FIELDS.keys() & fields.keys():
            if name.endswith("_token_id") and (type(fields[name]) is not int or not 0 <= fields[name] < len(vocab)):
                raise refusal(name, f"{fields[name]!r:.80} is not an id from 0 to {len(vocab) - 1}")
        # A byte is text whatever its type says: files of 2.5 mark "!", which they pad with, as control.
        pieces = {text: number for text, number in vocab.items() if types[number] == NORMAL or text in self._bytes}
        self.vocab_size = len(vocab)
        #: The tokens that text never becomes (control, user-defined, unknown, unused), with their ids.
        self.special = {text: number for text, number in vocab.items() if text not in pieces}
        self._special_ids = frozenset(self.special.values())

        if self._sentencepiece and "merges" not in fields:
            merges = merges_by_score(self._tokens, pieces, token_numbers(fields, "scores", np.float32, len(vocab)))
        else:
            merges = checked_merges(fields.get("merges"), pieces)
        #: Whether encoding puts a space in front of a text and decoding takes one away.
        self.space_prefix = self._sentencepiece and fields.get("add_space_prefix") is not False
        self._inner = row.build(pieces, merges, self.space_prefix)
        # At a "!" marked as control the original tokenizer cuts the text, so that "!!" is two tokens in 2.5.
        cuts = [
            text for text, number in pieces.items() if len(text) == 1 and text.isascii() and types[number] != NORMAL
        ]
        self._inner.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in cuts])

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer that the keys tokenizer.ggml.* describe, with values as `GGUFFile.metadata` holds them."""
        keys = {name: f"tokenizer.ggml.{name}" for name in FIELDS}
        return cls({name: metadata[key] for name, key in keys.items() if key in metadata})

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a tokenizer.json. Its added tokens are `special`; its post-processor is left out."""
        try:
            return cls(read_tokenizer_json(Path(path)))
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from None
        except RecursionError:
            raise ModelFileError(f"{path}: this is no tokenizer.json: it is nested too deeply") from None

    def to_gguf(self, bos: str | None = None, eos: str | None = None) -> dict[str, tuple[str, Any]]:
        """The metadata tokenizer.ggml.* with its GGUF types. `bos` and `eos` are texts: no tokenizer.json has them."""
        named = {f"{role}_token_id": self.id(text) for role, text in (("bos", bos), ("eos", eos)) if text is not None}
        return {f"tokenizer.ggml.{name}": (FIELDS[name], value) for name, value in (self._fields | named).items()}

    def to_json(self) -> str:
        """The text of a tokenizer.json with this vocabulary."""
        return json.dumps(tokenizer_json(self._fields), ensure_ascii=False)

    def encode(self, text: str) -> list[int]:
        """The ids of a text that is only text: none of them is special, none is put in front or at the end."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            place, code = error.start, ord(text[error.start])
            raise InputError(f"U+{code:04X} at {place} is half of a surrogate pair; valid Unicode is wanted") from None
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], shown: AbstractSet[int] = frozenset()) -> str:
        """The text of the ids, without special tokens except those in `shown`; broken UTF-8 becomes U+FFFD."""
        stream = StreamDecoder(self, shown)
        return "".join([*map(stream.push, ids), stream.flush()])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; those of its name if it is special."""
        if not 0 <= token_id < self.vocab_size:
            raise InputError(f"there is no token {token_id}: the vocabulary has {self.vocab_size} tokens")
        token = self._tokens[token_id]
        if token in self._bytes:
            return bytes([self._bytes[token]])
        if token_id in self._special_ids:
            return token.encode()
        if self._sentencepiece:
            return token.replace("▁", " ").encode()
        if not self._bytes.keys() >= set(token):
            return token.encode()  # no merge leads to such a token; the library, too, takes it by its letters
        return bytes(self._bytes[character] for character in token)

    def id(self, name: str) -> int:
        """The id of a special token; ModelFileError if there is none of this name."""
        try:
            return self.special[name]
        except KeyError:
            raise ModelFileError(f"the tokenizer has no special token {name!r}: it belongs to another model") from None

    def is_special(self, token_id: int) -> bool:
        """Whether text never becomes this token."""
        return token_id in self._special_ids


class StreamDecoder:
    """Decodes ids as they come. What the pushes and the flush return, joined, is what `Tokenizer.decode` returns."""

    def __init__(self, tokenizer: Tokenizer, shown: AbstractSet[int] = frozenset()):
        self._tokenizer, self._shown = tokenizer, shown
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.space_prefix

    def push(self, token_id: int) -> str:
        """The characters that this token completes: often a word, sometimes none."""
        if self._tokenizer.is_special(token_id) and token_id not in self._shown:
            return ""
        return self._without_prefix(self._utf8.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was not completed, or nothing."""
        return self._without_prefix(self._utf8.decode(b"", final=True))

    def _without_prefix(self, text: str) -> str:
        if not text or not self._drop_space:
            return text
        self._drop_space = False
        return text.removeprefix(" ")
