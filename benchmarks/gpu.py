"""How fast MiniCPM-Llama3-V 2.5 runs on a GPU, beside plain transformers and beside what the machine can do.

    python -m benchmarks.gpu --json results.json

makes a full-size model with random bfloat16 weights on the GPU and prints a Markdown table, each row when it is known.
"Ours" encodes with a compiled vision tower and decodes with `handlens.model.fast`. "Plain" is the same model without
compilation, through transformers' `generate` with its growing cache. "Limit" is what the copy bandwidth and the matrix
product rate that the same run measures would allow: every weight and every key and value read once a token, or every
product at that rate. Each figure is a median after a warm-up. Without a GPU a tiny model runs, which shows that the
script works and nothing else; the bars are for an H200.
"""

import argparse
import gc
import json
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers
from PIL import Image

from handlens.config import FAMILIES, LlamaConfig, ModelConfig, ResamplerConfig, SliceOptions, VisionConfig
from handlens.images import cut
from handlens.model import MiniCPMV, MiniCPMVConfig
from handlens.model.fast import FastDecoder, compile_vision
from handlens.model.processing import collate
from handlens.processor import Processor
from handlens.weights import find_files, open_tokenizer

FAMILY = FAMILIES["minicpm-llama3-v-2.5"]
QUESTION = "What does this picture show, and what is written in it?"


@dataclass(frozen=True)
class Size:
    """What is run: a model, pictures of these sides, and answers of so many tokens about the middle one."""

    config: ModelConfig
    sides: tuple[int, ...]
    tokens: int
    batches: tuple[int, ...]
    product: int  # side of the matrices whose product is timed
    copied: int  # bytes that are copied
    repeats: int


SIZES = {
    "full": Size(
        config=ModelConfig(
            family=FAMILY,
            llm=LlamaConfig(
                hidden_size=4096,
                intermediate_size=14336,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
                vocab_size=128256,
                max_position_embeddings=8192,
            ),
            vision=VisionConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16),
            resampler=ResamplerConfig(query_num=96, embed_dim=4096, kv_dim=1152, num_heads=32),
        ),
        sides=(448, 896, 1344),
        tokens=64,
        batches=(1, 16),
        product=8192,
        copied=4 << 30,
        repeats=5,
    ),
    "tiny": Size(
        config=ModelConfig(
            family=FAMILY,
            llm=LlamaConfig(
                hidden_size=256,
                intermediate_size=512,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=64,
                vocab_size=8210,  # that of the tokenizer that ships
                max_position_embeddings=4096,
            ),
            vision=VisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2),
            resampler=ResamplerConfig(query_num=96, embed_dim=256, kv_dim=64, num_heads=2),
            slices=SliceOptions(scale_resolution=112),
        ),
        sides=(112, 224, 336),
        tokens=8,
        batches=(1, 4),
        product=512,
        copied=16 << 20,
        repeats=3,
    ),
}


@dataclass(frozen=True)
class Row:
    """One line of the table. Of a rate more is better, of anything else less. `bars` are what was promised, and whether
    it was kept."""

    what: str
    unit: str
    ours: float
    plain: float | None = None
    limit: float | None = None
    bars: tuple[tuple[str, bool], ...] = ()

    @property
    def is_rate(self) -> bool:
        return self.unit.endswith("/s")

    @property
    def share(self) -> float | None:
        """How much of the limit is reached."""
        if self.limit is None:
            return None
        return self.ours / self.limit if self.is_rate else self.limit / self.ours

    @property
    def gain(self) -> float | None:
        """How many times as fast as plain transformers."""
        if self.plain is None:
            return None
        return self.ours / self.plain if self.is_rate else self.plain / self.ours

    def markdown(self, apply_bars: bool) -> str:
        cells = [f"{self.what}, {self.unit}", number(self.ours), number(self.plain), number(self.limit)]
        cells.append("" if self.share is None else f"{self.share:.0%}")
        cells.append("" if self.gain is None else f"{self.gain:.2f}x")
        told = [f"{bar}: {('pass' if kept else 'MISS') if apply_bars else 'not applied'}" for bar, kept in self.bars]
        return f"| {' | '.join([*cells, '; '.join(told)])} |"


HEAD = (
    "| | ours | plain | limit | share of the limit | gain on plain | bar |",
    "|---|---:|---:|---:|---:|---:|---|",
)


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


class Clock:
    """Medians of what work takes on one device, in seconds."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, repeats

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, work: Callable[[], object]) -> float:
        """By the device's own events if it is a GPU. Nothing else may be under way."""
        if self.device.type != "cuda":
            return self.once_with_host(work)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def once_with_host(self, work: Callable[[], object]) -> float:
        """From the first instruction on the host to the last result on the device."""
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def median(self, work: Callable[[], object], *, with_host: bool = False, before: Callable = lambda: None) -> float:
        taken = []
        for _ in range(self.repeats + 1):  # the first is the warm-up
            before()
            self.wait()
            taken.append(self.once_with_host(work) if with_host else self.once(work))
        return statistics.median(taken[1:])


class Bench:
    """The model and the machine, and the rows that are measured on them."""

    def __init__(self, size: Size, device: torch.device, backend: str):
        self.size, self.device, self.backend = size, device, backend
        self.clock = Clock(device, size.repeats)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.processor = Processor(size.config, open_tokenizer(find_files().model))
        self.pictures = {side: noise(side) for side in size.sides}

    def sections(self) -> list[tuple[str, Callable[[], Iterator[Row]]]]:
        """What is measured, in order, each part under its name."""
        return [
            ("machine", self.machine),
            ("model", self.build),
            ("image", self.image),
            ("first token", self.first_token),
            *((f"decoding, batch {batch}", lambda batch=batch: self.decoding(batch)) for batch in self.size.batches),
            ("memory", self.memory),
        ]

    def machine(self) -> Iterator[Row]:
        """What the device can do: copies and matrix products."""
        source = torch.ones(self.size.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.bandwidth = 2 * self.size.copied / self.clock.median(lambda: target.copy_(source))
        yield Row("copying, read and written", "GB/s", self.bandwidth / 1e9)
        side = self.size.product
        left, right = (torch.randn(side, side, dtype=self.dtype, device=self.device) for _ in range(2))
        out = torch.empty_like(left)
        seconds = self.clock.median(lambda: [torch.mm(left, right, out=out) for _ in range(5)]) / 5
        self.rate = 2 * side**3 / seconds
        yield Row(f"products of {str(self.dtype).removeprefix('torch.')} matrices", "TFLOP/s", self.rate / 1e12)

    def build(self) -> Iterator[Row]:
        """A model of random weights, made where it runs."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = MiniCPMV._from_config(MiniCPMVConfig.from_model_config(self.size.config), dtype=self.dtype)
        self.model = model.eval().requires_grad_(False)
        compile_vision(self.model, self.backend)
        yield Row("weights", "GiB", sum(tensor.nbytes for tensor in self.model.parameters()) / 2**30)

    def image(self) -> Iterator[Row]:
        """The largest picture: cut on the host, encoded on the device."""
        side = self.size.sides[-1]
        config = self.size.config
        mean, std = config.vision.image_mean, config.vision.image_std
        seconds = self.clock.median(lambda: cut(self.pictures[side], config.slices, mean, std), with_host=True)
        yield Row(f"cutting {side}x{side} on the host", "ms", 1000 * seconds)
        batch = self.batch(side)
        images = [batch[key].to(self.device) for key in ("pixel_values", "tgt_sizes", "slice_request")]
        ours = self.clock.median(lambda: self.model.get_image_features(*images))
        with torch.compiler.set_stance("force_eager"):
            plain = self.clock.median(lambda: self.model.get_image_features(*images))
        limit = vision_flops(config, batch["tgt_sizes"].prod(dim=1).tolist()) / self.rate
        bar = ("at least 50 % of the product rate", limit / ours >= 0.5)
        yield Row(f"encoding {len(images[1])} slices", "ms", 1000 * ours, 1000 * plain, 1000 * limit, (bar,))

    def first_token(self) -> Iterator[Row]:
        """From a picture in memory to the first token, cutting included."""
        longest = self.batch(self.size.sides[-1])["input_ids"].shape[1]
        self.decoder = FastDecoder(self.model, 1, longest + self.size.tokens, backend=self.backend)
        for side in self.size.sides:
            ours = self.clock.median(lambda s=side: self.decoder.prefill(1, **self.on_device(s)), with_host=True)
            with torch.compiler.set_stance("force_eager"):
                plain = self.clock.median(lambda s=side: self.plainly(self.on_device(s), 1), with_host=True)
            batch = self.batch(side)
            flops = vision_flops(self.size.config, batch["tgt_sizes"].prod(dim=1).tolist())
            flops += prefill_flops(self.size.config.llm, batch["input_ids"].shape[1])
            bars = (("at most 120 ms", ours <= 0.12),) if side == 1344 else ()
            yield Row(
                f"first token of {side}x{side}, {batch['input_ids'].shape[1]} tokens",
                "ms",
                1000 * ours,
                1000 * plain,
                1000 * flops / self.rate,
                bars,
            )

    def decoding(self, size: int) -> Iterator[Row]:
        """Tokens of all answers of a batch after a prompt with the middle picture."""
        side, steps = self.size.sides[1], self.size.tokens - 1
        batch = self.on_device(side, size)
        length = batch["input_ids"].shape[1]
        if size > 1:
            self.decoder = None  # its cache and graph make room
            gc.collect()
            self.decoder = FastDecoder(self.model, size, length + self.size.tokens, backend=self.backend)
        ours = self.clock.median(
            lambda: [self.decoder.step() for _ in range(steps)],
            before=lambda: self.decoder.prefill(self.size.tokens, **batch),
        )
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            embeds = {
                "inputs_embeds": self.model.embed(**without_mask(batch)),
                "attention_mask": batch["attention_mask"],
            }
            one, all_ = (self.clock.median(lambda n=n: self.plainly(embeds, n)) for n in (1, self.size.tokens))
        plain = max(all_ - one, 1e-9)
        moved = step_bytes(self.model, self.size.config.llm, size, length + steps / 2)
        row = Row(
            f"decoding, batch {size}",
            "tokens/s",
            size * steps / ours,
            size * steps / plain,
            size * self.bandwidth / moved,
        )
        bars = (("at least 2.5x plain", row.gain >= 2.5),)
        if size == 1:
            bars = (("at least 75 % of the bandwidth", row.share >= 0.75), *bars)
        yield Row(row.what, row.unit, row.ours, row.plain, row.limit, bars)

    def memory(self) -> Iterator[Row]:
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield Row("peak memory of all this", "GiB", peak / 2**30)

    def plainly(self, batch: dict, tokens: int) -> torch.Tensor:
        """transformers' own way."""
        return self.model.generate(
            **batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    def batch(self, side: int, size: int = 1) -> dict[str, torch.Tensor]:
        """The question about a picture so many times, through the processor, cut anew."""
        request = self.processor([{"role": "user", "content": [self.pictures[side], QUESTION]}])
        return dict(collate([request] * size))

    def on_device(self, side: int, size: int = 1) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.device) for name, tensor in self.batch(side, size).items()}


def without_mask(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "attention_mask"}


def noise(side: int) -> Image.Image:
    """A square picture that does not compress, blurred as photographs are."""
    return Image.effect_noise((side // 8, side // 8), 90).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def vision_flops(config: ModelConfig, lengths: Sequence[int]) -> float:
    """Multiplications and additions of matrix products for slices of so many patches."""
    vision, wide, queries = config.vision, config.resampler.embed_dim, config.resampler.query_num
    width, inner, depth = vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers
    a_patch = 3 * vision.patch_size**2 * width + depth * (4 * width**2 + 2 * width * inner)
    a_patch += config.resampler.kv_dim * wide + 2 * wide**2
    a_slice = queries * 3 * wide**2
    return sum(
        2 * (length * a_patch + a_slice) + 4 * length * (depth * length * width + queries * wide) for length in lengths
    )


def prefill_flops(llm: LlamaConfig, tokens: int) -> float:
    """The same for reading a prompt; the head computes one token."""
    attention = 2 * tokens**2 * llm.hidden_size  # causal, so half of it counts
    return (
        llm.num_hidden_layers * (2 * layer_parameters(llm) * tokens + attention) + 2 * llm.vocab_size * llm.hidden_size
    )


def step_bytes(model: MiniCPMV, llm: LlamaConfig, batch: int, context: float) -> float:
    """Bytes that one decoding step has to read: all weights but the table of embeddings, and keys and values."""
    weights = sum(tensor.nbytes for tensor in model.llm.parameters()) - model.get_input_embeddings().weight.nbytes
    kept = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim * model.dtype.itemsize
    return weights + batch * context * kept


def layer_parameters(llm: LlamaConfig) -> int:
    width, kv_width = llm.hidden_size, llm.num_key_value_heads * llm.head_dim
    return 2 * width**2 + 2 * width * kv_width + 3 * width * llm.intermediate_size


def describe(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


def run(size: str, device: torch.device, backend: str, minutes: float, results: Path | None) -> bool:
    """Prints the table row by row, and keeps it in a file if there is to be one. Returns whether nothing failed."""
    deadline = time.monotonic() + 60 * minutes
    about = {"size": size, "device": describe(device), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    print(f"{size} model on {about['device']}, {about['date']}\n", *HEAD, sep="\n", flush=True)
    rows: list[Row] = []
    failed: list[str] = []
    bench = Bench(SIZES[size], device, backend)
    for name, section in bench.sections():
        if time.monotonic() > deadline:
            print(f"| {name} | | | | | | not measured: {minutes:g} minutes are over |", flush=True)
            continue
        try:
            for row in section():
                rows.append(row)
                print(row.markdown(size == "full" and device.type == "cuda"), flush=True)
                if results is not None:
                    told = [asdict(row) | {"share": row.share, "gain": row.gain} for row in rows]
                    results.write_text(json.dumps(about | {"rows": told}, indent=2) + "\n", encoding="utf-8")
        except Exception as error:  # time on a GPU is dear: what else can be measured is
            traceback.print_exc()
            print(f"| {name} | | | | | | failed: {type(error).__name__} |", flush=True)
            failed.append(name)
    return not failed


def main(arguments: Sequence[str] | None = None) -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full" if gpu else "tiny")
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--backend", help="of torch.compile; default: inductor on a GPU, eager on a CPU")
    parser.add_argument("--minutes", type=float, default=9, help="begin no new part after this time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the numbers here as well")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    backend = options.backend or ("inductor" if device.type == "cuda" else "eager")
    with torch.no_grad():
        if not run(options.size, device, backend, options.minutes, options.json):
            sys.exit(1)


if __name__ == "__main__":
    main()
