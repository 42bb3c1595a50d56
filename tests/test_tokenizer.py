"""The tokenizer against the `tokenizers` library, against rules written out by hand, and against hostile files."""

import functools
import itertools
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from handlens.errors import InputError, ModelFileError
from handlens.tokenizer import StreamDecoder, Tokenizer
from handlens.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from tests.multilingual import lines

SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<unk>", "<|eot_id|>", "<image>", "</image>", "<slice>", "</slice>"]
USER = "<point>"  # an added token that its file does not call special
TEXTS = lines() + lines(300, seed=1)
KINDS = ("llama-bpe", "smollm", "llama")
BYTE_LEVEL = KINDS[:2]

# The rule of Llama 3 as its tokenizer.json has it.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@functools.cache
def trained(kind: str) -> str:
    """A tokenizer.json of 2,000 tokens, trained by the library, laid out as the models of this kind are.

    llama-bpe: special tokens behind the vocabulary, and not in it. smollm: at its front. llama: as SentencePiece has.
    """
    front = {
        "llama-bpe": [],
        "smollm": SPECIAL,
        "llama": ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))],
    }
    library = Library(models.BPE(ignore_merges=kind == "llama-bpe", byte_fallback=kind == "llama", fuse_unk=True))
    if kind == "llama":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    elif kind == "llama-bpe":
        split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    alphabet = [] if kind == "llama" else pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": front[kind], "show_progress": False}
    library.train_from_iterator(lines(seed=2), trainers.BpeTrainer(vocab_size=2000, limit_alphabet=700, **options))
    if kind == "llama":
        library.pre_tokenizer = None  # it only kept the pieces short
        spec = json.loads(library.to_str())
        spec["added_tokens"] = spec["added_tokens"][:3]  # byte tokens are ordinary ones
        library = Library.from_str(json.dumps(spec))
    else:
        library.decoder = decoders.ByteLevel()
        library.add_special_tokens(SPECIAL)
    library.add_tokens([AddedToken(USER, normalized=False)])
    return library.to_str()


@functools.cache
def library_of(kind: str) -> Library:
    return Library.from_str(trained(kind))


def ids_of_library(kind: str, text: str) -> list[int]:
    return library_of(kind).encode(text, add_special_tokens=False).ids


def metadata_of(tokenizer: Tokenizer) -> dict:
    """The metadata as a reader of the written file holds it."""
    return {key: value for key, (_, value) in tokenizer.to_gguf().items()}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@functools.cache
def _ours(kind: str, folder) -> Tokenizer:
    path = folder / f"{kind}.json"
    path.write_text(trained(kind), encoding="utf-8")
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def ours(kind, folder) -> Tokenizer:
    return _ours(kind, folder)


@pytest.fixture(scope="module")
def llama3(folder) -> Tokenizer:
    return _ours("llama-bpe", folder)


@pytest.fixture(scope="module")
def sentencepiece(folder) -> Tokenizer:
    return _ours("llama", folder)


def load(tmp_path, spec) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    return Tokenizer.from_file(path)


def test_sample_is_large_and_deterministic():
    assert lines() == lines() and len(lines()) == 1200 and len(set(lines())) > 1150
    assert lines(seed=1) != lines()


# Equality with the library


def test_ids_equal_the_library(kind, ours):
    again = Tokenizer.from_gguf(metadata_of(ours))
    for text in TEXTS:
        wanted = ids_of_library(kind, text)
        assert ours.encode(text) == wanted
        assert again.encode(text) == wanted


def test_special_tokens_are_those_of_the_library(kind, ours):
    again = Tokenizer.from_gguf(metadata_of(ours))
    wanted = {token.content: token_id for token_id, token in library_of(kind).get_added_tokens_decoder().items()}
    assert ours.special == again.special == wanted
    assert ours.vocab_size == again.vocab_size == library_of(kind).get_vocab_size() == max(wanted.values()) + 1


def test_decoding_gives_the_text_back(kind, ours):
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == (text.replace("▁", " ") if kind == "llama" else text)


def test_written_metadata_is_read_as_the_same_tokenizer(ours):
    again = Tokenizer.from_gguf(metadata_of(ours)).to_gguf()
    assert again.keys() == ours.to_gguf().keys()
    for key, (type_name, value) in ours.to_gguf().items():
        assert again[key][0] == type_name and np.array_equal(again[key][1], value)


@pytest.mark.parametrize("name", ["llama3", "llama-v3"])
def test_other_names_of_the_rule_of_llama3_mean_the_same(llama3, name):
    other = Tokenizer.from_gguf(metadata_of(llama3) | {"tokenizer.ggml.pre": name})
    assert all(other.encode(text) == llama3.encode(text) for text in TEXTS[::10])


# Rules written out by hand


def llama3_words(text: str) -> list[str]:
    """The words of Llama 3's rule, by walking over the text instead of by a regular expression."""
    letter = [unicodedata.category(c)[0] == "L" for c in text]
    number = [unicodedata.category(c)[0] == "N" for c in text]
    space = [c.isspace() and not "\x1c" <= c <= "\x1f" for c in text]  # Python also counts four separators
    other = [not (x or y or z) for x, y, z in zip(letter, number, space, strict=True)]
    line_end = [c in "\r\n" for c in text]

    def run(start: int, kind: list[bool], longest: int = len(text)) -> int:
        end = start
        while end < min(len(text), start + longest) and kind[end]:
            end += 1
        return end

    def word_end(start: int) -> int:
        if text[start] == "'":
            for tail in ("s", "t", "re", "ve", "m", "ll", "d"):
                if text[start + 1 :].lower().startswith(tail):
                    return start + 1 + len(tail)
        first = start + (not (letter[start] or number[start] or line_end[start]))
        if (end := run(first, letter)) > first:
            return end
        if (end := run(start, number, 3)) > start:
            return end
        first = start + (text[start] == " ")
        if (end := run(first, other)) > first:
            return run(end, line_end)
        end = run(start, space)
        if any(line_end[start:end]):
            return end - line_end[start:end][::-1].index(True)
        return end if end in (len(text), start + 1) else end - 1

    words, start = [], 0
    while start < len(text):
        words.append(text[start : (end := word_end(start))])
        start = end
    return words


def test_rule_of_llama3_equals_the_one_walked_by_hand(llama3):
    # Characters that Unicode 3.2 has: later ones are letters for some versions of Python and not for others.
    known = [text for text in TEXTS if all(unicodedata.ucd_3_2_0.category(c) != "Cn" and c != "ſ" for c in text)]
    assert len(known) > 1000
    for text in known:
        # Words are encoded one by one, so the ids of the words in a row are those of the text.
        assert [i for word in llama3_words(text) for i in llama3.encode(word)] == llama3.encode(text)
        pieces = library_of("llama-bpe").pre_tokenizer.pre_tokenize_str(text)
        assert [text[start:end] for _, (start, end) in pieces] == llama3_words(text)


def sentencepiece_pieces(text: str, scores: dict[str, float]) -> list[str]:
    """The pieces that SentencePiece finds: again and again the neighbours whose joined piece has the best score."""
    pieces = list(("▁" + text).replace(" ", "▁"))
    while True:
        pairs = [(scores.get(a + b, -np.inf), -n) for n, (a, b) in enumerate(itertools.pairwise(pieces))]
        best, place = max(pairs, default=(-np.inf, 0))
        if best == -np.inf:
            return pieces
        pieces[-place : 2 - place] = [pieces[-place] + pieces[1 - place]]


@pytest.mark.parametrize("same_scores", [False, True])
def test_scores_alone_give_the_pieces_of_sentencepiece(sentencepiece, same_scores):
    metadata = metadata_of(sentencepiece)
    del metadata["tokenizer.ggml.merges"]
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    # Some converters write -1000 for every token: the order of the ids has to do.
    ranks = -np.arange(len(tokens), dtype=np.float32)
    metadata["tokenizer.ggml.scores"] = np.full_like(ranks, -1000) if same_scores else ranks
    tokenizer = Tokenizer.from_gguf(metadata)
    scores = {t: s for t, k, s in zip(tokens, types.tolist(), ranks.tolist(), strict=True) if k == NORMAL}
    for text in [text for text in TEXTS if 0 < len(text) <= 60][::3]:
        wanted = []
        for piece in sentencepiece_pieces(text, scores):
            wanted += [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
        assert [tokens[token_id] for token_id in tokenizer.encode(text)] == wanted


def test_no_space_is_put_in_front_when_the_file_says_so(sentencepiece):
    metadata = metadata_of(sentencepiece) | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.token_bytes(tokenizer.encode("train")[0]).startswith(b"t")
    assert sentencepiece.token_bytes(sentencepiece.encode("train")[0]).startswith(b" ")
    for text in (" a  b", "a", " ", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == sentencepiece.decode(sentencepiece.encode(text)) == text


# What text must never become


def test_a07_special_tokens_that_are_typed_stay_text(kind, ours):
    for name in [
        *ours.special,
        " ".join(ours.special),
        "".join(ours.special),
        *(f"a{name}b\n" for name in ours.special),
    ]:
        ids = ours.encode(name)
        assert not any(map(ours.is_special, ids))
        assert ours.decode(ids) == name


@given(
    st.lists(st.sampled_from([*SPECIAL, USER, "<", "|", ">", "image", "<s>", "<0x41>", " ", "é", "\0"])).map("".join)
)
@settings(max_examples=200, deadline=None)
def test_a07_mixtures_of_special_tokens_stay_text(kind, ours, text):
    ids = ours.encode(text)
    assert not any(map(ours.is_special, ids)) and ours.decode(ids) == text


@pytest.mark.parametrize("special", [True, False])
def test_a07_a_special_token_in_the_vocabulary_is_no_word(tmp_path, special):
    # With ignore_merges a word that is in the vocabulary as a whole becomes that token.
    spec = json.loads(trained("llama-bpe"))
    spec["model"]["vocab"]["Ġmarker"] = 2100
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 2100, "content": "Ġmarker", "special": special})
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 2101, "content": "marker", "special": special})
    tokenizer = load(tmp_path, spec)
    assert {tokenizer.id("Ġmarker"), tokenizer.id("marker")} == {2100, 2101}
    for text in ("a marker", "marker", "Ġmarker"):
        assert not {2100, 2101} & set(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_byte_that_is_marked_as_control_stays_text(tmp_path):
    # The files of 2.5 pad with "!", id 0, and so mark it. The library then cuts texts at it, in training as well.
    spec = json.loads(trained("llama-bpe"))
    mark = spec["model"]["vocab"]["!"]
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": mark, "content": "!"})
    tokenizer, library = load(tmp_path, spec), Library.from_str(json.dumps(spec))
    again = Tokenizer.from_gguf(metadata_of(tokenizer))
    assert again.to_gguf()["tokenizer.ggml.token_type"][1][mark] == CONTROL
    assert not tokenizer.is_special(mark) and "!" not in tokenizer.special
    for text in ["a!", "!!", "no!\n\nyes !", *TEXTS]:
        wanted = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text) == again.encode(text) == wanted
        assert tokenizer.decode(wanted) == text
    assert tokenizer.encode("!!") == [mark, mark]


# Decoding


def test_special_tokens_are_left_out_unless_they_are_shown(ours):
    user, stop = ours.id(USER), next(iter(ours.special.values()))
    *front, last = ours.encode("ten5")
    ids = [stop, *front, user, last, stop]
    assert ours.decode(ids) == "ten5"
    assert ours.decode(ids, shown={user}) == f"ten{USER}5"
    assert ours.token_bytes(user) == USER.encode()


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_stream_joined_equals_decode(kind, ours, data):
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=40))
    shown = data.draw(st.frozensets(st.sampled_from(sorted(ours.special.values()))))
    stream = StreamDecoder(ours, shown)
    parts = [*map(stream.push, ids), stream.flush()]
    assert "".join(parts) == ours.decode(ids, shown)
    whole = b"".join(ours.token_bytes(i) for i in ids if i in shown or not ours.is_special(i))
    text = whole.decode("utf-8", "replace")
    assert "".join(parts) == (text.removeprefix(" ") if kind == "llama" else text)


def test_stream_gives_whole_characters_only(ours):
    text = "".join(t for t in TEXTS[::25])
    stream = StreamDecoder(ours)
    parts = [stream.push(token_id) for token_id in ours.encode(text)]
    assert "\ufffd" not in "".join(parts) and "".join(parts) == text and stream.flush() == ""
    assert "" in parts  # a character of several tokens waits for its last one


def test_a_broken_character_becomes_one_replacement(llama3):
    first = llama3.encode("\U0010fffd")[:2]
    assert llama3.decode(first) == "\ufffd"
    assert llama3.decode([*first, *llama3.encode("a")]) == "\ufffda"


def test_texts_at_the_edge(kind, ours):
    assert ours.encode("") == [] and ours.decode([]) == ""
    for text in ("\0", "a\0b", "\ufeff", "\U0010ffff", " ", "\r\n", "\x7f\x80", "a" * 20000, " " * 5000 + "x"):
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff", "\udc80\ud83d"])
def test_half_a_surrogate_pair_is_refused(ours, text):
    with pytest.raises(InputError, match="U\\+D"):
        ours.encode(text)


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(ours, token_id):
    with pytest.raises(InputError, match="there is no token"):
        ours.token_bytes(token_id)


# Metadata


def test_free_ids_are_filled_with_tokens_that_nothing_becomes(tmp_path):
    spec = json.loads(trained("llama-bpe"))
    size = library_of("llama-bpe").get_vocab_size()
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": size + 3, "content": "<slot>"})
    tokenizer = load(tmp_path, spec)
    assert tokenizer.vocab_size == size + 4 and tokenizer.id("<slot>") == size + 3
    filled = [f"[PAD{size + n}]" for n in range(3)]
    assert tokenizer.to_gguf()["tokenizer.ggml.tokens"][1][size:] == [*filled, "<slot>"]
    assert all(tokenizer.is_special(size + n) for n in range(3))
    assert not any(map(tokenizer.is_special, tokenizer.encode(" ".join(filled))))


def test_names_of_begin_and_end_are_written(llama3):
    written = llama3.to_gguf(bos=SPECIAL[0], eos=SPECIAL[1])
    assert written["tokenizer.ggml.bos_token_id"] == ("u32", llama3.id(SPECIAL[0]))
    assert written["tokenizer.ggml.eos_token_id"] == ("u32", llama3.id(SPECIAL[1]))
    again = Tokenizer.from_gguf({key: value for key, (_, value) in written.items()})
    assert again.to_gguf()["tokenizer.ggml.bos_token_id"] == written["tokenizer.ggml.bos_token_id"]
    with pytest.raises(ModelFileError, match="'<audio>'"):
        llama3.to_gguf(bos="<audio>")


def test_m19_a_chat_template_in_the_metadata_is_not_looked_at(llama3):
    metadata = metadata_of(llama3) | {
        "tokenizer.chat_template": "{% for _ in range(10**9) %}{{ ''.__class__ }}{% endfor %}"
    }
    assert Tokenizer.from_gguf(metadata).encode("train 7") == llama3.encode("train 7")


def refused(tokenizer: Tokenizer, match: str, **changes):
    """Loading with these keys changed (None: left out) is refused, and the message says `match`."""
    metadata = metadata_of(tokenizer) | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(ModelFileError, match=match):
        Tokenizer.from_gguf({key: value for key, value in metadata.items() if value is not None})


def field(tokenizer: Tokenizer, name: str):
    return tokenizer.to_gguf()[f"tokenizer.ggml.{name}"][1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.float32, np.bool_])
def test_m07_token_types_of_another_element_type_are_refused(ours, dtype):
    refused(ours, "tokenizer.ggml.token_type.*int32", token_type=field(ours, "token_type").astype(dtype))


@pytest.mark.parametrize(
    "change", [lambda a: a[:-1], lambda a: a[:0], lambda a: np.append(a, a[:1]), lambda a: a[None], list]
)
def test_m07_token_types_of_another_length_are_refused(ours, change):
    refused(ours, "tokenizer.ggml.token_type", token_type=change(field(ours, "token_type")))


@pytest.mark.parametrize("value", [0, 7, -1])
def test_m07_unknown_token_types_are_refused(llama3, value):
    types = field(llama3, "token_type").copy()
    types[5] = value
    refused(llama3, f"id 5.* type {value}", token_type=types)


@pytest.mark.parametrize(
    "change",
    [lambda a: a.astype(np.float16), lambda a: a.astype(np.int32), lambda a: a[1:], lambda a: a * np.nan, list],
)
def test_m07_scores_of_another_shape_are_refused(sentencepiece, change):
    refused(sentencepiece, "tokenizer.ggml.scores", merges=None, scores=change(field(sentencepiece, "scores")))


@pytest.mark.parametrize("text", ["<0x-1>", "<0xGG>", "<0x100>", "<0x4>", "<0x 4>", "<0x4a>", "0x41", "A"])
def test_m08_byte_tokens_that_name_no_byte_are_refused(sentencepiece, text):
    tokens, types = list(field(sentencepiece, "tokens")), field(sentencepiece, "token_type").copy()
    place = sentencepiece.id("</s>")
    tokens = [token if token != text else "other" for token in tokens]
    tokens[place], types[place] = text, BYTE
    refused(sentencepiece, "cannot be of type 6", tokens=tokens, token_type=types)


def test_m08_a_byte_level_vocabulary_has_no_byte_tokens(llama3):
    types = field(llama3, "token_type").copy()
    types[llama3.id("<image>")] = BYTE
    refused(llama3, "'<image>'.*cannot be of type 6", token_type=types)


@pytest.mark.parametrize(
    ("text", "match"),
    [("x" * 4097, "4097 bytes"), ("é" * 2049, "4098 bytes"), ("", "0 bytes"), ("\ud800", "Unicode"), (7, "")],
)
def test_m09_tokens_that_are_too_long_or_no_text_are_refused(llama3, text, match):
    refused(llama3, f"token 2.*{match}", tokens=[*field(llama3, "tokens")[:2], text, *field(llama3, "tokens")[3:]])


@pytest.mark.parametrize("tokens", [[], ["a"] * ((1 << 20) + 1), "abc", None, np.arange(5, dtype=np.int32)])
def test_m09_a_vocabulary_of_no_or_of_too_many_tokens_is_refused(llama3, tokens):
    refused(llama3, "tokenizer.ggml.tokens: an array of 1 to 1048576 strings", tokens=tokens)


def test_the_same_token_twice_is_refused(llama3):
    tokens = field(llama3, "tokens")
    refused(llama3, "tokens 7 and 1500 are the same", tokens=[*tokens[:1500], tokens[7], *tokens[1501:]])


def test_a_vocabulary_that_would_lose_text_is_refused(ours):
    tokens = [f"no {token}" if token in ("A", "<0x41>") else token for token in field(ours, "tokens")]
    types = np.where(field(ours, "token_type") == BYTE, NORMAL, field(ours, "token_type")).astype(np.int32)
    refused(ours, "no token stands for the byte 0x41", tokens=tokens, token_type=types)


def test_bytes_that_no_text_needs_may_be_missing(llama3):
    # As in SmolLM's vocabulary: the character is left out, as the library leaves it out.
    tokens = [f"no {token}" if token in ("ÿ", "þ", "Ą") else token for token in field(llama3, "tokens")]
    tokenizer = Tokenizer.from_gguf(metadata_of(llama3) | {"tokenizer.ggml.tokens": tokens})
    assert tokenizer.decode(tokenizer.encode("a\x04b")) == "ab"


@pytest.mark.parametrize(
    "merge", ["zq zq", "a", "a  b", "", " a", "a b c", "<image> a", "< image>", 5, ["a", "b"], None]
)
def test_merges_that_name_no_pieces_are_refused(llama3, merge):
    refused(llama3, "tokenizer.ggml.merges: merge 3", merges=[*field(llama3, "merges")[:3], merge])


@pytest.mark.parametrize("merges", [None, "a b", np.zeros(4, np.int32)])
def test_merges_of_another_type_are_refused(llama3, merges):
    refused(llama3, "tokenizer.ggml.merges: an array of strings", merges=merges)


@pytest.mark.parametrize("value", [-1, 10**7, 1.0, "1", True])
@pytest.mark.parametrize("role", ["bos", "eos", "eot", "unknown", "padding"])
def test_ids_of_roles_outside_the_vocabulary_are_refused(llama3, role, value):
    refused(llama3, f"tokenizer.ggml.{role}_token_id", **{f"{role}_token_id": value})


@pytest.mark.parametrize(
    "names",
    [{"pre": "qwen2"}, {"pre": None}, {"pre": "llama"}, {"pre": 3}, {"model": "bert"}, {"model": None}, {"model": []}],
)
def test_unknown_names_are_refused_with_the_known_ones(llama3, names):
    refused(llama3, "known are llama-bpe.*llama3.*llama-v3.*smollm.*llama", **names)


# tokenizer.json


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"model": ', "no JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"9" * 5000, "no JSON"),
        (b"[]", "an object `model`"),
        (b'{"model": []}', "an object `model`"),
        (b'{"model": {"type": "WordPiece"}}', "are not those of llama-bpe, .*smollm"),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(tmp_path, content, match):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=match) as error:
        Tokenizer.from_file(path)
    assert str(path) in str(error.value)


def test_files_that_are_not_there_or_too_large_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    for place in (path, tmp_path):
        with pytest.raises(ModelFileError, match="cannot be read"):
            Tokenizer.from_file(place)
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ModelFileError, match="more than 67108864 bytes"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("normalizer",), {"type": "NFC"}),
        (("pre_tokenizer",), None),
        (("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"), r"\s+"),
        (("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"), True),
        (("model", "type"), "Unigram"),
        (("model", "ignore_merges"), False),
        (("model", "byte_fallback"), True),
        (("model", "end_of_word_suffix"), "</w>"),
    ],
)
def test_rules_that_are_not_known_are_refused(tmp_path, place, value):
    spec = json.loads(trained("llama-bpe"))
    part = functools.reduce(lambda part, key: part[key], place[:-1], spec)
    part[place[-1]] = value
    with pytest.raises(ModelFileError, match="are not those of llama-bpe"):
        load(tmp_path, spec)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"vocab": []}, "an object model.vocab"),
        ({"merges": None}, "arrays model.merges"),
        ({"merges": ["zq zq"]}, "merge 0"),
        ({"merges": [["a", "zq"]]}, "merge 0"),
        ({"merges": [[1, []]]}, "merge 0"),
        ({"merges": [{"a": "b"}]}, "merge 0"),
        ({"merges": [7]}, "merge 0"),
        ({"vocab": {"a": -1}}, "'a': -1"),
        ({"vocab": {"a": 1 << 20}}, "'a': 1048576"),
        ({"vocab": {"a": True}}, "'a': True"),
        ({"vocab": {"a": 1.5}}, "'a': 1.5"),
        ({"vocab": {"a": 1, "b": 1}}, "'a' and 'b' have the same id, 1"),
        ({"vocab": {}}, "no token stands for the byte"),
        ({"vocab": {"\ud800": 0}}, "not Unicode text"),
    ],
)
def test_models_that_do_not_hold_together_are_refused(tmp_path, changes, match):
    spec = json.loads(trained("llama-bpe"))
    spec["model"] |= changes
    with pytest.raises(ModelFileError, match=match):
        load(tmp_path, spec)


@pytest.mark.parametrize(
    ("added", "match"),
    [
        ({}, "None: None"),
        (7, "7 is no object"),
        ({"content": ["<image>"], "id": 5}, "'<image>'"),
        ({"content": "<image>", "id": 5}, "have the same id, 5"),
        ({"content": "a", "id": 2200}, "the same, 'a'"),
    ],
)
def test_added_tokens_that_do_not_fit_are_refused(tmp_path, added, match):
    spec = json.loads(trained("llama-bpe"))
    spec["added_tokens"].append(added)
    with pytest.raises(ModelFileError, match=match):
        load(tmp_path, spec)


def test_kinds_of_added_tokens_are_kept(ours):
    types = field(ours, "token_type")
    assert types[ours.id(USER)] == USER_DEFINED
    assert all(types[token_id] in (CONTROL, UNKNOWN) for text, token_id in ours.special.items() if text != USER)
