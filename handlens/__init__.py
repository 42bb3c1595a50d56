"""handlens: ask questions about images, on your own device.

    import handlens

    model = handlens.load()
    for text in model.stream([{"role": "user", "content": [image, "What is the total?"]}]):
        print(text, end="")

Names are imported on first use, so that `import handlens` costs next to nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "load": "handlens.chat",
    "Chat": "handlens.chat",
    "SamplingParams": "handlens.engine.sampling",
    "AutoModel": "handlens.model_card",
    "AutoTokenizer": "handlens.model_card",
    "HandlensError": "handlens.errors",
    "InputError": "handlens.errors",
    "ImageError": "handlens.errors",
    "ContextError": "handlens.errors",
    "ModelFileError": "handlens.errors",
    "open_image": "handlens.decode",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'handlens' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return sorted(__all__)
