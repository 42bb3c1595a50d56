"""How long `handlens check` takes, part by part, and for a model with more layers.

    python -m benchmarks.check MODEL [--layers 32]

prints seconds of processor time and of the clock for each kind of finding. Blocks of the language model are all alike,
so the time for a model with more of them, but the same widths and vision side, follows from those that are there: what
grows is the chain of blocks, and digests and looking at weights by the bytes of the file. The first and the last block
are judged beside numpy however many there are. The files should be sealed (`handlens seal`).
"""

import argparse
import re
import time
from collections import defaultdict
from pathlib import Path

from handlens.gguf import GGUFFile
from handlens.proof.check import check
from handlens.weights import find_files


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=int, help="of the language model whose time is estimated")
    args = parser.parse_args()
    files = find_files(args.model)
    spent, wall, counts = defaultdict(float), defaultdict(float), defaultdict(int)
    before = time.process_time(), time.perf_counter()
    for finding in check(files):
        now = time.process_time(), time.perf_counter()
        kind = re.sub(r"(vision|language) block \d+", r"\1 blocks", finding.what)
        kind = re.sub(r"seal of .*", "seal", kind)
        spent[kind] += now[0] - before[0]
        wall[kind] += now[1] - before[1]
        counts[kind] += 1
        before = now
    print("| checked | findings | processor, s | clock, s |\n|---|---:|---:|---:|")
    for kind in spent:
        print(f"| {kind} | {counts[kind]} | {spent[kind]:.1f} | {wall[kind]:.1f} |")
    total = sum(spent.values())
    print(f"| all | {sum(counts.values())} | {total:.1f} | {sum(wall.values()):.1f} |")
    if args.layers is None:
        return
    with GGUFFile(files.model) as file:
        layers = file.metadata["llama.block_count"]
        size = sum(tensor.nbytes for tensor in file.tensors.values())
        of_layers = sum(tensor.nbytes for name, tensor in file.tensors.items() if name.startswith("blk."))
    more = args.layers / layers - 1
    by_bytes = spent["weights"] + spent["token embedding, as sealed"]  # the latter holds the digests
    chain = spent["language blocks, as sealed"]  # computed twice, once on the way to the last block that is judged
    print(
        f"with {args.layers} layers instead of {layers}: "
        f"{total + more * (by_bytes * of_layers / size + 2 * chain):.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
