"""Whether the vision side in int8 sees what it sees in float32: a trained model on real-looking images.

    handlens data make --sources sources --task line,paragraph,table,receipt,chart,count --lang all --split held-out \\
        --n 210 --out images
    python -m benchmarks.vision_agreement images
    python -m benchmarks.vision_agreement images --model mini.gguf --mmproj mini-f16.mmproj.gguf

encodes each picture of a set in both precisions and answers its question greedily from both. Of each picture the query
vector counts that is furthest from its twin.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks.vision_precision import cosines
from handlens import load
from handlens.data.make import rows
from handlens.engine.sampling import SamplingParams

BOUND = 0.999


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder that `handlens data make` has written")
    parser.add_argument("--model", type=Path, help="language file (default: the shipped model)")
    parser.add_argument("--mmproj", type=Path, help="projector (default: that beside the model)")
    parser.add_argument("--tokens", type=int, default=64, help="the most tokens of an answer (default 64)")
    args = parser.parse_args()
    chats = [load(args.model, args.mmproj, vision_precision=precision) for precision in ("int8", "f32")]
    greedy = SamplingParams.greedy(max_new_tokens=args.tokens)
    least, same = [], 0
    for path, row in track(list(rows(args.images)), "asking"):
        with Image.open(path) as image:
            msgs = [{"role": "user", "content": [image.convert("RGB"), row["question"]]}]
        vectors, answers = [], []
        for chat in chats:
            inputs = chat.prepare(msgs, greedy)
            seen = np.zeros(len(inputs.input_ids), bool)
            for first, last in inputs.image_bound:
                seen[first:last] = True
            vectors.append(chat.generator.embeddings(inputs)[seen].astype(np.float64))
            answers.append(chat.reply(msgs, greedy))
        least.append(cosines(*vectors).min())
        same += answers[0] == answers[1]
    least = np.array(least)
    print("| pictures | least cosine of all | median of the pictures' least | pictures all above 0.999 | same answer |")
    print("|---:|---:|---:|---:|---:|")
    print(
        f"| {len(least)} | {least.min():.5f} | {np.median(least):.5f} | {(least >= BOUND).mean():.1%} "
        f"| {same / len(least):.1%} |"
    )


if __name__ == "__main__":
    main()
