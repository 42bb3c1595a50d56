"""Whether the vision side in bf16 or int8 sees what it sees in float32: a trained model on real-looking images.

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
from handlens.cpu import ops
from handlens.cpu.backend import VISION_PRECISIONS, choose_precision
from handlens.data.make import rows
from handlens.engine.sampling import SamplingParams

BOUND = 0.999


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder that `handlens data make` has written")
    parser.add_argument("--model", type=Path, help="language file (default: the shipped model)")
    parser.add_argument("--mmproj", type=Path, help="projector (default: that beside the model)")
    usual = choose_precision(None, ops)
    parser.add_argument("--precision", choices=VISION_PRECISIONS, default=usual, help="beside float32")
    parser.add_argument("--tokens", type=int, default=64, help="the most tokens of an answer (default 64)")
    args = parser.parse_args()
    chats = [load(args.model, args.mmproj, vision_precision=precision) for precision in (args.precision, "f32")]
    greedy = SamplingParams.greedy(max_new_tokens=args.tokens)
    tasks, least, same = [], [], []
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
            answers.append(chat.reply(msgs, greedy, by_lines=False))
        tasks.append(row["task"])
        least.append(cosines(*vectors).min())
        same.append(answers[0] == answers[1])
    tasks, least, same = map(np.array, (tasks, least, same))
    print(f"{chats[0].generator.backend.vision_precision} beside f32\n")
    print("| task | pictures | least cosine of all | median of the pictures' least | all above 0.999 | same answer |")
    print("|---|---:|---:|---:|---:|---:|")
    for task in ["all", *dict.fromkeys(tasks)]:
        of = np.full(len(tasks), True) if task == "all" else tasks == task
        print(
            f"| {task} | {of.sum()} | {least[of].min():.5f} | {np.median(least[of]):.5f} "
            f"| {(least[of] >= BOUND).mean():.1%} | {same[of].mean():.1%} |"
        )


if __name__ == "__main__":
    main()
