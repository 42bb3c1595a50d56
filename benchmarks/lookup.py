"""What guessing tokens from the prompt gains (`handlens/engine/lookup.py`), on answers that copy and on others.

    python -m benchmarks.lookup --model model.gguf

prints Markdown tables: what further rows cost in a decode step, and for each answer the steps it takes with guesses and
how much faster its tokens come than without. The answers are dictated, whatever the model (one with random weights
will do, see benchmarks/make_model.py): each step computes its logits, and the token of the script is chosen. So the
time is that of a model that would say this. Both ways take turns step by step, so that what else the machine does slows
both alike, and gains are medians of the rounds' ratios. Reading the prompt is left out.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from handlens.chat import Chat, load
from handlens.engine.engine import STEP_ROWS, Engine
from handlens.engine.sampling import Sampling, SamplingParams

LETTER = """Dear Mrs Aldous,

thank you for you order of 14 March. We are sory to tell you that the oak shelf (item 4471-B) is out of stock untill the
end of April. The brass lamp (item 2093-A) has left our warehouse today and should arive within three working days. You
can keep the order as it is, change the shelf for the one in ash (item 4472-B, same price), or cancel the shelf and get
129.00 back. Please let us now by the end of the week.

Yours sincerly,
P. Okafor, Harbour Street Furniture"""

LIST = """Stock on 3 May: 12 crates of apples at 18.40 in hall A; 7 crates of pears at 21.15 in hall A; 30 sacks of
potatoes at 9.80 in hall C; 4 sacks of chestnuts at 44.00 in hall C; 16 trays of eggs at 11.25 in the cold room; 9 boxes
of butter at 63.70 in the cold room."""

CODE = """def mean_speed(track):
    distance = 0.0
    for first, second in zip(track, track[1:]):
        distance += haversine(first.position, second.position)
    duration = track[-1].time - track[0].time
    if duration <= 0:
        raise ValueError("the track has no duration")
    return distance / duration"""

#: name: (prompt, answer, whether it copies)
SCRIPTS = {
    "letter, spelling corrected": (
        f"Correct the spelling and repeat the whole letter.\n\n{LETTER}",
        LETTER.replace("for you order", "for your order")
        .replace("sory", "sorry")
        .replace("untill", "until")
        .replace("arive", "arrive")
        .replace("let us now", "let us know")
        .replace("sincerly", "sincerely"),
        True,
    ),
    "code, one name changed": (
        f"Rename `track` to `points`. Print all of the function.\n\n{CODE}",
        CODE.replace("track", "points"),
        True,
    ),
    "text quoted in an answer": (
        f"What does the letter say about the shelf? Quote it.\n\n{LETTER}",
        'It says: "We are sory to tell you that the oak shelf (item 4471-B) is out of stock untill the end of April." '
        'It goes on: "You can keep the order as it is, change the shelf for the one in ash (item 4472-B, same price), '
        'or cancel the shelf and get 129.00 back."',
        True,
    ),
    "list as a table": (
        f"Make this a Markdown table.\n\n{LIST}",
        """| quantity | goods | price | place |
|---|---|---|---|
| 12 crates | apples | 18.40 | hall A |
| 7 crates | pears | 21.15 | hall A |
| 30 sacks | potatoes | 9.80 | hall C |
| 4 sacks | chestnuts | 44.00 | hall C |
| 16 trays | eggs | 11.25 | cold room |
| 9 boxes | butter | 63.70 | cold room |""",
        True,
    ),
    "explanation": (
        "Why is the sky blue?",
        "Sunlight holds all colours. On its way through the air it meets molecules far smaller than its wavelength, "
        "and these scatter short waves much more than long ones, with the fourth power of the frequency. So violet "
        "and blue leave the straight path many times and reach our eyes from every direction, while red comes through. "
        "That we see blue rather than violet has two reasons: the sun sends less violet, and our eyes hardly see it.",
        False,
    ),
    "story": (
        "Tell me a very short story about a lighthouse.",
        "Nobody had lit the lamp since Ida's grandfather died. One November evening fog swallowed the harbour, and she "
        "heard a horn where no ship should be. She climbed ninety steps with a bucket of paraffin, cursed every one of "
        "them, and struck a match. At dawn a trawler lay safe behind the mole. Its skipper brought herring, and asked "
        "who kept watch up there these days. Ida wiped soot off her nose and said that she supposed it was her.",
        False,
    ),
    "runs that always go on differently": (
        "Print some numbers.",
        " ".join(f"the item {number}" for number in np.random.default_rng(0).permutation(900)[:60].tolist()),
        False,
    ),
}


class Dictated(Sampling):
    """Chooses the tokens of a script."""

    def __init__(self, script: list[int]):
        super().__init__(SamplingParams.greedy(max_new_tokens=len(script)), ())
        self.script = script

    def choose(self, logits: np.ndarray) -> int:
        super().choose(logits)  # its time counts
        return self.script[len(self.ids)]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; without one the model that ships")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    chat = load(args.model)
    print(f"{chat.model.files.model.name}, medians of {args.rounds} rounds\n")
    show_row_costs(chat, args.rounds)
    print("\n| answer | copies | tokens | steps with guesses | faster by |\n|---|---|---:|---:|---:|")
    gains = {True: [], False: []}
    for name, (question, answer, copies) in SCRIPTS.items():
        ran = [decode_both(chat, question, answer) for _ in range(args.rounds)]
        ratios, steps = [plain / guessed for plain, guessed, _ in ran], ran[0][2]
        gains[copies].append(float(np.median(ratios)))
        tokens = len(chat.tokenizer.encode(answer))
        print(f"| {name} | {'yes' if copies else 'no'} | {tokens} | {steps} | x {gains[copies][-1]:.2f} |", flush=True)
    print(f"\nAnswers that copy: x {np.exp(np.mean(np.log(gains[True]))):.2f} (geometric mean).", end=" ")
    print(f"The slowest of all: x {min(gains[True] + gains[False]):.3f}.")


def decode_both(chat: Chat, question: str, answer: str) -> tuple[float, float, int]:
    """The seconds from the first token of a dictated answer to its last, without and with guesses; the steps with."""
    engines = [Engine(chat.generator.backend, prefix_cache_bytes=0, lookup=lookup) for lookup in (False, True)]
    requests = []
    for engine in engines:
        strategy = Dictated(chat.tokenizer.encode(answer))
        inputs = chat.prepare([{"role": "user", "content": question}], strategy.params)
        request = engine.admit(inputs, strategy.params, ())
        request.strategy = strategy
        while not strategy.ids:
            engine.step()
        requests.append(request)
    seconds, steps = [0.0, 0.0], [0, 0]
    while not all(request.done for request in requests):
        for index, (engine, request) in enumerate(zip(engines, requests, strict=True)):
            if not request.done:
                start = time.perf_counter()
                engine.step()
                seconds[index] += time.perf_counter() - start
                steps[index] += 1
    return *seconds, steps[1]


def show_row_costs(chat: Chat, rounds: int) -> None:
    """Prints how long a step with several rows takes, in steps with one."""
    backend = chat.generator.backend
    cache = backend.new_cache()
    backend.forward([backend.embed(np.arange(300))], [cache], prompt=True)

    def seconds(rows: int) -> float:
        inputs = [backend.embed(np.arange(rows))]
        start = time.perf_counter()
        backend.forward(inputs, [cache], [rows])
        taken = time.perf_counter() - start
        cache.truncate(300)
        return taken

    taken = np.array([[seconds(rows) for rows in range(1, STEP_ROWS + 1)] for _ in range(rounds + 1)][1:])
    costs = np.median(taken / taken[:, :1], axis=0)
    print("| rows in a step | " + " | ".join(map(str, range(1, STEP_ROWS + 1))) + " |")
    print("|---|" + "---:|" * STEP_ROWS)
    print("| time, in steps with one | " + " | ".join(f"{cost:.2f}" for cost in costs) + " |")


if __name__ == "__main__":
    main()
