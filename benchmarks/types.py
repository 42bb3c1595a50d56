"""What every block type costs in memory, and how far the kernels are from float32 with it.

    python -m benchmarks.types

prints a Markdown table: bytes of a weight in the file and packed; the error of a linear layer and of the logits of a
tiny model, root mean square as a share of the exact values' and of the logits' deviation; and under teacher forcing how
many of 400 greedy tokens are those of float32. Where the processor multiplies bfloat16, what a prompt's numbers cost
stands behind what an answer's do. Weights are random blocks. The last row is what the tests hold them to.
"""

import numpy as np

from handlens.cpu import ops, reference
from handlens.gguf.blocks import BLOCKS
from tests.test_kernels import BF16_BOUND, BOUND, LOGITS_BOUND, QUANTIZED, activations, logits_of_both, random_tensor


def main() -> None:
    """Prints the table."""
    prompts = [False, True] if ops.multiplies_bf16() else [False]
    print("| type | bytes a weight: file | packed | linear layer | logits | greedy tokens alike |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in QUANTIZED:
        tensor, x = random_tensor(name, 256, 1024), activations(16, 1024)
        weight, wanted = ops.pack(tensor), reference.linear(x, tensor)
        errors, of_logits, same = [], [], []
        for prompt in prompts:
            error = ops.linear(x, weight, bf16=prompt) - wanted
            errors.append(f"{np.sqrt(np.mean(error**2) / np.mean(wanted**2)):.2%}")
            exact, ours = logits_of_both(name, prompt)
            of_logits.append(f"{np.sqrt(np.mean((ours - exact) ** 2)) / exact.std():.2%}")
            same.append(f"{np.mean(exact.argmax(axis=1) == ours.argmax(axis=1)):.1%}")
        sizes = f"{BLOCKS[name].nbytes / BLOCKS[name].weights:.3f} | {weight.packed.nbytes / (256 * 1024):.3f}"
        print(f"| {name} | {sizes} | {' / '.join(errors)} | {' / '.join(of_logits)} | {' / '.join(same)} |")
    bounds = [BOUND, BF16_BOUND][: len(prompts)]
    print(f"| bound | | | {' / '.join(f'{bound:.2%}' for bound in bounds)} | {LOGITS_BOUND:.2%} | 95% |")


if __name__ == "__main__":
    main()
