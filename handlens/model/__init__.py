"""The PyTorch side: MiniCPM-V as one `PreTrainedModel`. Importing this package registers it with transformers' Auto
classes, so that `AutoModelForImageTextToText.from_pretrained` loads a checkpoint without `trust_remote_code`."""

from transformers import AutoConfig, AutoModelForImageTextToText

from handlens.model.configuration import MiniCPMVConfig
from handlens.model.minicpmv import MiniCPMV

AutoConfig.register(MiniCPMVConfig.model_type, MiniCPMVConfig, exist_ok=True)
AutoModelForImageTextToText.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)

__all__ = ["MiniCPMV", "MiniCPMVConfig"]
