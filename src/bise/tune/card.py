"""What a run's card says of the world around it: versions, and the machine."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from ..machine import cores, processor, resident


def versions() -> dict[str, str]:
    """Those that decide what comes out: a run goes on only under the same ones."""
    from .. import __version__

    return {"bise": __version__, "torch": str(torch.__version__), "numpy": np.__version__}


def machine(device: str) -> dict[str, Any]:
    facts = {
        "processor": processor(), "cores": cores(), "threads": torch.get_num_threads(), "device": device,
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
    }  # fmt: skip
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return facts


def memory(device: str) -> int:
    """Bytes: the most that the GPU has held; or what this process holds, 0 where the system does not say."""
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(torch.device(device)))
    return resident()
