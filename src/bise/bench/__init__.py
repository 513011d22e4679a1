"""How fast: one model at several depths (`measure`), or bise and llama.cpp on the same files in turns (`compare`)."""

from ..machine import cores
from .against import Comparison, Line, Plan, compare
from .depths import Row, as_json, measure
from .machine import BUSY, machine, others
from .memory import bandwidth, bytes_per_token, share
from .python import python_seconds
from .rounds import ENGINES, alternate, in_process, play
from .spread import Spread
from .turn import Run, Turn

__all__ = [
    "BUSY",
    "ENGINES",
    "Comparison",
    "Line",
    "Plan",
    "Row",
    "Run",
    "Spread",
    "Turn",
    "alternate",
    "as_json",
    "bandwidth",
    "bytes_per_token",
    "compare",
    "cores",
    "in_process",
    "machine",
    "measure",
    "others",
    "play",
    "python_seconds",
    "share",
]
