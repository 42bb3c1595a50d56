"""Rules of the published designs that a file can contradict and still load: such faults are found without a seal."""

from collections.abc import Iterator
from dataclasses import dataclass

from handlens.config import ModelConfig, VisionConfig

#: What all families do with pixels.
MEAN = STD = VisionConfig.image_mean


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the checkpoint of a family says that everyone means by its name."""

    layers: int
    vision_layers: int
    rope_theta: float


#: (family, width of the language model) -> that checkpoint.
PUBLISHED = {
    ("minicpm-llama3-v-2.5", 4096): Published(layers=32, vision_layers=27, rope_theta=500000.0),
    ("minicpm-v-2.0", 2304): Published(layers=40, vision_layers=26, rope_theta=10000.0),
}


def broken_rules(config: ModelConfig) -> Iterator[str]:
    """A sentence for each rule of its design that a model contradicts."""
    family, llm, vision = config.family, config.llm, config.vision
    published = PUBLISHED.get((family.name, llm.hidden_size))
    if published and llm.num_hidden_layers != published.layers:
        yield f"{family.title} has {published.layers} language layers, the file {llm.num_hidden_layers}"
    if published and llm.rope_theta != published.rope_theta:
        yield f"the RoPE base of {family.title} is {published.rope_theta:g}, the file says {llm.rope_theta:g}"
    if vision is None:
        return
    if published and vision.num_hidden_layers != published.vision_layers:
        yield f"{family.title} has {published.vision_layers} vision layers, the file {vision.num_hidden_layers}"
    if vision.position_mode != family.position_mode:
        yield f"the position mode of {family.title} is {family.position_mode!r}, the file says {vision.position_mode!r}"
    for what, found, wanted in (("mean", vision.image_mean, MEAN), ("deviation", vision.image_std, STD)):
        if found != wanted:
            yield f"the {what} of pixels is {_three(wanted)} for {family.title}, the file says {_three(found)}"


def _three(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
