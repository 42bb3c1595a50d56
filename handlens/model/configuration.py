"""The config of MiniCPM-V as transformers wants it: the official config.json, read and written back.

The rules of the families stay in `handlens.config`; this class carries the values. Facts: config.json and
configuration_minicpm.py of the MiniCPM-Llama3-V 2.5 model repository.
"""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import Idefics2VisionConfig, LlamaConfig, PreTrainedConfig

from handlens.config import ModelConfig, official_config, official_values

log = logging.getLogger("handlens")

#: Keys that name code to run. They are reported and dropped, so no loader is ever led to a file that is not there.
CODE_KEYS = ("auto_map", "custom_pipelines")


class MiniCPMVConfig(LlamaConfig):
    """The sizes of the language model, flat as in the official file, and those of the vision side beside them.

    Keys that are not known are kept. `vit_position_mode` and `handlens_family` are ours: the first replaces the
    position mode of the family (see `handlens.config.POSITION_MODES`), the second names the family of our own models.
    """

    model_type = "minicpmv"
    sub_configs: ClassVar = {"vision_config": Idefics2VisionConfig}
    # The parallel plans of LlamaConfig name the modules of a bare LlamaModel; `llm` brings its own.
    base_model_tp_plan = None
    base_model_pp_plan = None
    base_model_fsdp_plan = None

    version: str | None = None
    vision_config: dict | PreTrainedConfig | None = None
    slice_config: dict | None = None
    query_num: int = 96
    drop_vision_last_layer: bool = False
    batch_vision_input: bool = True
    slice_mode: bool = True
    vit_position_mode: str | None = None
    handlens_family: str | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.vision_config, dict):
            self.vision_config = Idefics2VisionConfig(**self.vision_config)
        super().__post_init__(**kwargs)
        # The official file says false, and the original overrides it: without a cache no answer would come in time.
        self.use_cache = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """The config that a config.json holds; ModelFileError if it lacks or contradicts what the model needs."""
        for notice in official_config(config_dict).notices:
            log.warning(notice)
        values = {key: value for key, value in config_dict.items() if key not in CODE_KEYS}
        return super().from_dict(values, **kwargs)

    @classmethod
    def from_model_config(cls, config: ModelConfig) -> "MiniCPMVConfig":
        """The same config as the one that the device side reads, from a GGUF pair for instance."""
        return cls(**official_values(config))

    def model_config(self, preprocessor: Mapping[str, Any] | None = None) -> ModelConfig:
        """The same config as the device side has it; ModelFileError if it does not describe a model."""
        return official_config(self.to_dict(), preprocessor)

    def to_dict(self) -> dict[str, Any]:
        """The values under the official keys."""
        values = super().to_dict()
        rope = values.pop("rope_parameters", None) or {}
        values["rope_theta"] = rope.pop("rope_theta", None)
        values["rope_scaling"] = None if rope.get("rope_type") in (None, "default") else rope
        if isinstance(values.get("vision_config"), dict) and isinstance(self.vision_config, Idefics2VisionConfig):
            values["vision_config"]["model_type"] = "idefics2"
        for key in ("vit_position_mode", "handlens_family", "version"):
            if values.get(key) is None:  # an absent key means the family's, null is not a value
                values.pop(key, None)
        return values

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to config.json: readable by transformers 4 and by those who know the official file only."""
        values = super().to_diff_dict()
        if "dtype" in values:
            values["torch_dtype"] = values.pop("dtype")
        return values
