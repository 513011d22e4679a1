"""What everything is measured on: the processor by name, its cores, and who else is using them."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import numpy as np

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
        "cpu": _cpu(),
        "isa": isa,
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "bise": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others() -> float:
    """Cores that other processes were using in the last minute; 0.0 where the system does not say."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def peak_bytes() -> int:
    """The most memory that this process had at a time. Linux gives a process its parent's ru_maxrss to begin with, so
    there its own high-water mark is read."""
    import resource

    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def _cpu() -> str:
    """The processor's name, as the system knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
