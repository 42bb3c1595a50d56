"""A byte-level vocabulary from the training texts: `python -m recipes.default.tokenizer --sources DIR --out FILE`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from handlens.atomic import replacing
from handlens.config import FAMILIES
from handlens.data.questions import LANGUAGES, kinds, templates
from handlens.data.sample import TRAIN
from handlens.data.sources import Sources
from handlens.errors import ModelFileError
from handlens.vocabulary import PRE_TOKENIZERS
from recipes.default.presets import PRESETS

#: The pre-tokenizer by its name in GGUF files: digits one by one, words as in GPT-2, known to stock llama.cpp.
PRE = "smollm"
#: Longer pieces would be whole phrases, which are guessed and not read.
LONGEST_TOKEN = 12
#: Characters of running text of each language that the vocabulary is made of, so that none outweighs the others.
TEXT_A_LANGUAGE = 600_000
WORDS_A_LANGUAGE = 20_000
#: Roles stand in every prompt.
ROLES = ("system", "user", "assistant")

_NAMES = FAMILIES["handlens-mini"].tokens
SPECIAL = (
    _NAMES.bos,
    *_NAMES.stop,
    _NAMES.filler,
    "<|start_header_id|>",
    "<|end_header_id|>",
    _NAMES.image_open,
    _NAMES.image_close,
    _NAMES.slice_open,
    _NAMES.slice_close,
    *_NAMES.shown,
)


def train(texts: Iterator[str], vocabulary: int) -> str:
    """The text of a tokenizer.json with `vocabulary` tokens made of texts, and the special ones behind them."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    row = PRE_TOKENIZERS[PRE]
    frame = json.loads(tokenizer.to_str()) | {"pre_tokenizer": row.pre_tokenizer, "normalizer": row.normalizer}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(frame))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer.to_str()


def texts(sources: Sources) -> Iterator[str]:
    """Training texts of all languages, and what is asked in them."""
    for language in sources.languages:
        size = 0
        for line in sources.lines(language, TRAIN):
            yield line
            size += len(line)
            if size > TEXT_A_LANGUAGE:
                break
        yield from (f" {word}" for word in sources.words(language, TRAIN)[:WORDS_A_LANGUAGE])
        if language in LANGUAGES:
            yield from (template for kind in kinds() for template in templates(kind, language) for _ in range(5))
    for role in ROLES:
        yield from [role] * 1000
    # Tables are written with these.
    yield from ["| --- | --- | --- |\n| ", " |\n| ", "# ", "- ", " | "] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True, help="the folder that `handlens data prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="the tokenizer.json to write")
    parser.add_argument("--vocabulary", type=int, default=PRESETS["cpu"].vocabulary)
    options = parser.parse_args()
    text = train(texts(Sources.open(options.sources)), options.vocabulary)
    with replacing(options.out, ModelFileError, encoding="utf-8") as file:
        file.write(text)
    print(f"{options.out}: {len(text) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
