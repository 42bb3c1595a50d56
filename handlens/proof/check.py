"""Checks a model on the user's machine: its files, its weights, the arithmetic of each stage, and its seal."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from handlens.config import ModelConfig
from handlens.cpu.backend import DENSE_BYTES, CpuBackend, check_shapes
from handlens.errors import HandlensError, ModelFileError
from handlens.gguf.blocks import BLOCKS, PLAIN, Tensor
from handlens.gguf.keys import read_config
from handlens.gguf.reader import GGUFFile
from handlens.processor import Processor
from handlens.proof import bounds
from handlens.proof.probe import probe_ids
from handlens.proof.rules import broken_rules
from handlens.proof.seal import Seal, digest, digest_of_keys, make_seal, read_seal, sample, unsealed_metadata
from handlens.proof.stages import Parts, Stage, chain, distance, errors, language_stages, truth, vision_stages
from handlens.tokenizer import Tokenizer
from handlens.weights import ModelFiles, check_vocabulary, read_tensors

GOOD, NOTICE, BAD = "good", "notice", "bad"
#: Told what is being done, for people who wait.
Tell = Callable[[str], None]

#: Blocks of a tensor that are looked at together, and its numbers that tell how large they are on the whole.
PIECE = 1 << 20
#: Blocks of each piece whose numbers are looked at.
OUTSTANDING = 64


@dataclass(frozen=True)
class Finding:
    """One thing that was checked. `number` is what was measured, `bound` the most that it may be."""

    what: str
    verdict: str
    detail: str = ""
    number: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Opened:
    """A pair of files, read and found whole."""

    language: GGUFFile
    projector: GGUFFile | None
    config: ModelConfig
    tensors: tuple[dict[str, Tensor], dict[str, Tensor] | None]
    tokenizer: Tokenizer

    @property
    def files(self) -> list[GGUFFile]:
        return [file for file in (self.language, self.projector) if file is not None]

    @property
    def is_large(self) -> bool:
        """Whether numpy would take minutes for the whole language model."""
        return sum(4 * prod(tensor.shape) for tensor in self.tensors[0].values()) > DENSE_BYTES

    def stages(self, file: GGUFFile) -> list[Stage]:
        """The stages whose weights lie in a file."""
        found = []
        if file is self.language:
            found += language_stages(self.config, probe_ids(self.tokenizer))
        if self.config.vision is not None and (file is self.projector or self.projector is None):
            found += vision_stages(self.config)
        return found


def open_files(files: ModelFiles) -> Opened:
    """The files of a model, checked as they are when it is loaded."""
    if files.model.is_dir():
        raise ModelFileError(f"{files.model} is a checkpoint; convert it to GGUF files, which can be checked")
    language = GGUFFile(files.model)
    projector = GGUFFile(files.mmproj) if files.mmproj else None
    config = read_config(language, projector)
    tensors = read_tensors(config, language, projector)
    check_shapes(config, *tensors)
    tokenizer = Tokenizer.from_gguf(language.metadata)
    check_vocabulary(files.model, tokenizer, config)
    Processor(config, tokenizer)
    return Opened(language, projector, config, tensors, tokenizer)


def check(files: ModelFiles, tell: Tell = lambda what: None) -> Iterator[Finding]:
    """What was found, one after the other. A file that cannot be used ends it."""
    tell("reading the files")
    try:
        opened = open_files(files)
    except HandlensError as error:
        yield Finding("files", BAD, str(error))
        return
    names = ", ".join(file.path.name for file in opened.files)
    yield Finding("files", GOOD, f"{names}: every tensor is there, with the right shape")
    yield from _known_faults(opened)
    yield from _weights(opened, tell)
    slow, fast = truth(opened.config, *opened.tensors), _fast(opened)
    for file in opened.files:
        outputs: dict[str, np.ndarray] = {}
        yield from _arithmetic(opened, file, slow, fast, tell, outputs)
        stages = opened.stages(file)
        if len(outputs) == len(stages):
            yield from _against_seal(opened, file, outputs.items(), bounds.CHAIN, tell)
        else:
            made = ((name, sample(output)) for name, output in _told(chain(fast, stages), tell))
            yield from _against_seal(opened, file, made, bounds.FAST_CHAIN, tell)


def seal_of(opened: Opened, file: GGUFFile, tell: Tell = lambda what: None) -> Seal:
    """The seal that one of the files should have, computed in numpy."""
    slow = truth(opened.config, *opened.tensors)
    return make_seal(unsealed_metadata(file), file.tensors, _told(chain(slow, opened.stages(file)), tell))


def _fast(opened: Opened) -> Parts:
    backend = CpuBackend(opened.config, *opened.tensors)
    sees = opened.config.vision is not None
    return Parts(backend.llama, backend.tower if sees else None, backend.resampler if sees else None)


def _known_faults(opened: Opened) -> Iterator[Finding]:
    """Faults that published files have; those that are corrected when a file is read are notices."""
    for notice in opened.config.notices:
        yield Finding("known faults", NOTICE, f"{notice}; handlens convert --repair writes a file without the fault")
    broken = list(broken_rules(opened.config))
    for sentence in broken:
        yield Finding("rules of the design", BAD, sentence)
    if not broken:
        yield Finding("rules of the design", GOOD, f"those of {opened.config.family.title}")
    template = opened.language.metadata.get("tokenizer.chat_template")
    stops = [name for name in opened.config.family.tokens.stop if name in opened.tokenizer.special]
    if template is None:
        detail = f"{opened.language.path.name} has no chat template: other programs have to guess the format"
        yield Finding("chat template", NOTICE, detail)
    elif not any(stop in template for stop in stops) and "eos_token" not in template:
        detail = (
            f"the template ends no turn ({' or '.join(stops)} is missing): other programs never stop with this file"
        )
        yield Finding("chat template", BAD, detail)
    else:
        yield Finding("chat template", GOOD, "ends every turn")


def _weights(opened: Opened, tell: Tell) -> Iterator[Finding]:
    """Whether all weights are numbers of a size that weights have."""
    worst, strange = 0.0, []
    for file in opened.files:
        for index, (name, tensor) in enumerate(file.tensors.items()):
            tell(f"looking at the weights of {file.path.name}: {index + 1} of {len(file.tensors)}")
            most = largest(tensor)
            if len(tensor.shape) > 1:
                worst = max(worst, most)
            if not np.isfinite(most):
                strange.append(f"{name} ({tensor.type}) holds numbers that are not finite")
            elif len(tensor.shape) > 1 and most > bounds.OUTLIER:
                strange.append(f"{name} ({tensor.type}) holds a number {most:.0f} times the size of the others")
    verdict = BAD if strange else GOOD
    yield Finding("weights", verdict, "; ".join(strange[:5]) or "all are finite and of one size", worst, bounds.OUTLIER)


def largest(tensor: Tensor) -> float:
    """The largest number of a tensor as a multiple of their root mean square, which some rows tell; not finite where a
    number, or the scale of a block, is not."""
    rows, columns = tensor.data.shape[0], tensor.shape[-1]
    step = max(1, rows * columns // PIECE)
    with np.errstate(invalid="ignore", over="ignore"):
        some = np.concatenate([tensor.dequantize(row, row + 1) for row in range(0, rows, step)])
        most = max(float(np.abs(block).max()) for block in _outstanding(tensor))
    norm = float(np.sqrt(np.square(some, dtype=np.float64).mean()))
    return float("inf") if not (np.isfinite(most) and np.isfinite(norm)) else most / norm if norm else 0.0


def _outstanding(tensor: Tensor) -> Iterator[np.ndarray]:
    """The numbers of the blocks with the largest scales, which hold what could be out of all proportion.

    Bits of floats without their sign are in the order of the numbers, infinity and what is no number above them all, so
    nothing has to be computed of the other blocks.
    """
    block = BLOCKS[tensor.type]
    records = np.ascontiguousarray(tensor.data).reshape(-1).view(block.layout)
    scales = [name for name in block.layout.names or () if block.layout[name] == np.float16]
    for start in range(0, len(records), PIECE):
        piece = records[start : start + PIECE]
        if tensor.type in PLAIN:
            ranked = [piece.view(f"u{block.layout.itemsize}")]
        else:
            ranked = [piece[name].view(np.uint16) for name in scales]
        chosen = [_highest(bits & (np.iinfo(bits.dtype).max >> 1)) for bits in ranked]
        # Where the scale lies among the codes all blocks are looked at.
        picked = piece[np.unique(np.concatenate(chosen))] if chosen else piece
        yield block.dequantize(picked.view(np.uint8).reshape(len(picked), -1))


def _highest(numbers: np.ndarray) -> np.ndarray:
    """The places of the OUTSTANDING highest numbers."""
    count = min(OUTSTANDING, len(numbers))
    return np.argpartition(numbers, len(numbers) - count)[-count:]


def stage_errors(opened: Opened, tell: Tell = lambda what: None) -> dict[str, float]:
    """Name and error of the stages of the fast arithmetic that `check` judges."""
    slow, fast = truth(opened.config, *opened.tensors), _fast(opened)
    return {
        finding.what: finding.number
        for file in opened.files
        for finding in _arithmetic(opened, file, slow, fast, tell, {})
    }


def _arithmetic(
    opened: Opened, file: GGUFFile, slow: Parts, fast: Parts, tell: Tell, outputs: dict[str, np.ndarray]
) -> Iterator[Finding]:
    """The fast arithmetic of each stage of a file beside numpy, of whose outputs samples are put into `outputs`. Of a
    large language model the ends are judged."""
    stages = opened.stages(file)
    names = [stage.name for stage in stages]
    if opened.is_large:
        blocks = [name for name in names if name.startswith("language block")]
        names = [name for name in names if name not in blocks[1:-1]]
    for name, (error, wanted) in _told(errors(slow, fast, stages, names), tell):
        outputs[name] = sample(wanted)
        verdict = GOOD if error <= bounds.ARITHMETIC else BAD
        yield Finding(name, verdict, "fast arithmetic beside numpy", error, bounds.ARITHMETIC)


def _against_seal(
    opened: Opened, file: GGUFFile, made: Iterable[tuple[str, np.ndarray]], bound: float, tell: Tell
) -> Iterator[Finding]:
    """A file beside what it was when it was sealed; `made` are samples of what its stages make now."""
    where = f"seal of {file.path.name}"
    try:
        seal = read_seal(file)
    except ModelFileError as error:
        yield Finding(where, BAD, str(error))
        return
    if seal is None:
        detail = "it has none: a rule or weight that was changed since it was made would not be seen (handlens seal)"
        yield Finding(where, NOTICE, detail)
        return
    tell(f"comparing {file.path.name} with its seal")
    changed = [name for name, tensor in file.tensors.items() if digest(tensor) != seal.tensors[name]]
    if changed:
        yield Finding(where, BAD, f"changed since it was sealed: {', '.join(changed[:8])}")
    if digest_of_keys(unsealed_metadata(file)) != seal.keys:
        yield Finding(where, BAD, "keys were changed since it was sealed")
    stages = opened.stages(file)
    if [stage.name for stage in stages] != list(seal.stages):
        yield Finding(where, BAD, f"it was sealed with {len(seal.stages)} stages, now it has {len(stages)}")
        return
    for name, samples in made:
        error = distance(samples, seal.stages[name], seal.stages[name])
        verdict = GOOD if error <= bound else BAD
        yield Finding(f"{name}, as sealed", verdict, "on the built-in picture and text", error, bound)


def _told(results: Iterator[tuple[str, Any]], tell: Tell) -> Iterator[tuple[str, Any]]:
    """The results (name, value) as they come, each name told."""
    for name, value in results:
        tell(f"computed: {name}")
        yield name, value
