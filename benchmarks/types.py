"""What every block type costs in memory, and how far the kernels are from float32 with it.

    python -m benchmarks.types

prints a Markdown table: bytes of a weight in the file and packed; the error of a linear layer and of the logits of a
tiny model, root mean square as a share of the exact values' and of the logits' deviation; and under teacher forcing how
many of 400 greedy tokens are those of float32. Weights are random blocks. The last row is what the tests hold them to.
"""

import numpy as np

from handlens.cpu import ops, reference
from handlens.gguf.blocks import BLOCKS
from tests.test_kernels import BOUND, LOGITS_BOUND, QUANTIZED, activations, logits_of_both, random_tensor


def main() -> None:
    """Prints the table."""
    print("| type | bytes a weight: file | packed | linear layer | logits | greedy tokens alike |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in QUANTIZED:
        tensor, x = random_tensor(name, 256, 1024), activations(16, 1024)
        weight, wanted = ops.pack(tensor), reference.linear(x, tensor)
        packed = weight.packed.nbytes / (256 * 1024)
        error = np.sqrt(np.mean((ops.linear(x, weight) - wanted) ** 2) / np.mean(wanted**2))
        exact, ours = logits_of_both(name)
        of_logits = np.sqrt(np.mean((ours - exact) ** 2)) / exact.std()
        same = np.mean(exact.argmax(axis=1) == ours.argmax(axis=1))
        sizes = f"{BLOCKS[name].nbytes / BLOCKS[name].weights:.3f} | {packed:.3f}"
        print(f"| {name} | {sizes} | {error:.2%} | {of_logits:.2%} | {same:.1%} |")
    print(f"| bound | | | {BOUND:.2%} | {LOGITS_BOUND:.2%} | 95% |")


if __name__ == "__main__":
    main()
