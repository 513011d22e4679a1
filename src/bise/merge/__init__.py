"""Merging: an adapter fused into its base, written tensor by tensor, and the export proven to be what was trained.

W' = W + scale * B A, and for DoRA each row at its trained length. Weights that the adapter leaves alone keep their
bytes where their type stays.
"""

from __future__ import annotations

from .fuse import Plan, plan, write
from .verify import Card, Limits, Seen, limits, observe, verify

__all__ = ["Card", "Limits", "Plan", "Seen", "limits", "observe", "plan", "verify", "write"]
