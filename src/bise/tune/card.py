"""What a run's card says of the world around it: versions, and the machine."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import numpy as np
import torch


def versions() -> dict[str, str]:
    """Those that decide what comes out: a run goes on only under the same ones."""
    from .. import __version__

    return {"bise": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


def machine(device: str) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts = {
        "processor": _processor(), "cores": cores, "threads": torch.get_num_threads(), "device": device,
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
    }  # fmt: skip
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return facts


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def memory(device: str) -> int:
    """Bytes: the most that the GPU has held; or what this process holds, 0 where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(torch.device(device)))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
