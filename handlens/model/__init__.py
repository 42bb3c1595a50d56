"""The PyTorch side: MiniCPM-V as one `PreTrainedModel`. Importing this package registers it with transformers' Auto
classes, so that `AutoModelForImageTextToText`, `AutoProcessor` and the others load a checkpoint without
`trust_remote_code`."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from handlens.model.configuration import MiniCPMVConfig
from handlens.model.minicpmv import MiniCPMV
from handlens.model.processing import MiniCPMVImageProcessor, MiniCPMVProcessor

AutoConfig.register(MiniCPMVConfig.model_type, MiniCPMVConfig, exist_ok=True)
AutoModelForImageTextToText.register(MiniCPMVConfig, MiniCPMV, exist_ok=True)
AutoImageProcessor.register(MiniCPMVConfig, slow_image_processor_class=MiniCPMVImageProcessor, exist_ok=True)
AutoProcessor.register(MiniCPMVConfig, MiniCPMVProcessor, exist_ok=True)
AutoTokenizer.register(MiniCPMVConfig, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)

__all__ = ["MiniCPMV", "MiniCPMVConfig", "MiniCPMVImageProcessor", "MiniCPMVProcessor"]
