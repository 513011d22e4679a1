"""Adapters (LoRA, Hu et al. 2021): what they are, their files, and what they do beside a base in the engine."""

from __future__ import annotations

from .adapter import Adapter, Delta, check_base, named
from .files import read
from .llama import write_gguf
from .peft import write_peft
from .placed import Adapters, Placed

__all__ = [
    "Adapter", "Adapters", "Delta", "Placed", "check_base", "named", "read", "write_gguf", "write_peft",
]  # fmt: skip
