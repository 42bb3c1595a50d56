"""GGUF files: read without trusting them, written whole or not at all, and the block types inside."""

from handlens.gguf.blocks import Tensor
from handlens.gguf.reader import GGUFFile
from handlens.gguf.writer import write_gguf

__all__ = ["GGUFFile", "Tensor", "write_gguf"]
