"""Judging a model by a text: how well it predicts it, and how far it strays from the model that it was made of."""

from .full import common_chunks, full_logits
from .kept import Kept
from .run import Loaded, divergence, perplexity

__all__ = ["Kept", "Loaded", "common_chunks", "divergence", "full_logits", "perplexity"]
