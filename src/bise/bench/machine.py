"""What everything is measured on: the processor by name, its cores, and who else is using them."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from ..machine import cores, now, processor

BUSY = 0.5  # cores that others may use before figures become theirs too


def machine() -> dict[str, Any]:
    """This machine and these versions, to stand beside every figure."""
    import importlib.util

    from .. import __version__

    isa = None
    if importlib.util.find_spec("bise._kernels"):
        from .. import _kernels

        isa = _kernels.isa()
    return {
        "cpu": processor(),
        "isa": isa,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bise": __version__,
        "date": now(),
    }


def others() -> float:
    """Cores that other processes were using in the last minute; 0.0 where the system does not say."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0
