"""bise: Mistral 7B, the whole system, on one machine.

import bise
m = bise.load("model.gguf")          # a GGUF file, a safetensors folder, a hub id; bise.load() for the built-in model
print(m.generate("The mistral is", max_tokens=64, temperature=0.7).text)
"""

from .api import Model, load
from .completion import Completion
from .config import Config
from .errors import BiseError, ContextError, FormatError, RequestError, TemplateError, UnsupportedError
from .sampler import Sampling
from .session import Session

__version__ = "0.1.0"
__all__ = [
    "BiseError", "Completion", "Config", "ContextError", "FormatError", "Model", "RequestError", "Sampling",
    "Session", "TemplateError", "UnsupportedError", "load",
]  # fmt: skip
