"""The C++ extension (csrc/bind.cpp). Arrays are NumPy's, C-contiguous, float32 unless it says otherwise.

TypeError for a wrong kind of argument, ValueError for wrong sizes or numbers, one line each.
"""

from typing import Any

import numpy as np

class Matrix:
    """A weight in panels of 16 rows, ready for `linear`. memoryview(matrix) is its panels, read-only bytes."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class Verbs:
    """The verbs of one instruction set over one pool of threads."""

    def __init__(self, threads: int, isa: str = "") -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def pack(self, type: str, data: np.ndarray, rows: int, cols: int) -> Matrix: ...
    def adopt(self, type: str, panels: np.ndarray, rows: int, cols: int) -> Matrix: ...
    def keep(self, type: str, data: np.ndarray, rows: int, cols: int) -> Matrix:
        """A quantised weight as the file has it, for training: `linear` packs it as it goes."""

    def checksum(self, data: np.ndarray) -> int: ...
    def quantise(self, type: str, values: np.ndarray, importance: np.ndarray | None, out: np.ndarray) -> int:
        """out (uint8): the blocks. -> the first row that holds a NaN, or a value beyond float16; or -1."""

    def in_turn(
        self,
        type: str,
        feedback: np.ndarray,
        at: int,
        n: int,
        w: np.ndarray,
        zero: np.ndarray,
        step: np.ndarray,
        pull: np.ndarray,
        error: np.ndarray,
        levels: np.ndarray,
    ) -> None:
        """Columns [at, at + n) of w (rows, cols), one after the other; csrc/in_turn.h."""

    def sweep(
        self,
        type: str,
        feedback: np.ndarray,
        w: np.ndarray,
        zero: np.ndarray,
        step: np.ndarray,
        pull: np.ndarray,
        error: np.ndarray,
        levels: np.ndarray,
    ) -> None:
        """All columns, and pull follows what moves."""

    def embed(
        self, type: str, table: np.ndarray, rows: int, cols: int, tokens: np.ndarray, out: np.ndarray
    ) -> None: ...
    def dequantise(self, type: str, data: np.ndarray, out: np.ndarray) -> None: ...
    def look_up(self, levels: np.ndarray, codes: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None: ...
    def linear(self, x: np.ndarray, ws: tuple[Any, ...], outs: tuple[np.ndarray, ...]) -> None: ...
    def adapt(
        self,
        x: np.ndarray,
        ys: tuple[np.ndarray, ...],
        rows: np.ndarray,
        pairs: tuple[tuple[tuple[Matrix, Matrix, np.ndarray | None] | None, ...], ...],
    ) -> None:
        """rows (groups, 2) int32: [first, end) of each group, ascending. pairs: (A, B, factor) for each group and y."""

    def linear_back(self, dys: tuple[np.ndarray, ...], ws: tuple[Any, ...], dx: np.ndarray) -> None:
        """dx = the sum of all dy @ w, of weights that `keep` made."""

    def rms_norm(self, x: np.ndarray, w: np.ndarray, eps: float, out: np.ndarray) -> None: ...
    def rope(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None: ...
    def swiglu(self, gate: np.ndarray, up: np.ndarray, out: np.ndarray) -> None: ...
    def rms_norm_back(self, x: np.ndarray, w: np.ndarray, eps: float, dy: np.ndarray, dx: np.ndarray) -> None: ...
    def swiglu_back(
        self, gate: np.ndarray, up: np.ndarray, dy: np.ndarray, dgate: np.ndarray, dup: np.ndarray
    ) -> None: ...
    def store(
        self,
        k: np.ndarray,
        v: np.ndarray,
        k_scale: np.ndarray | None,
        v_scale: np.ndarray | None,
        spans: np.ndarray,
        new_k: np.ndarray,
        new_v: np.ndarray,
    ) -> None: ...
    def attend(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        k_scale: np.ndarray | None,
        v_scale: np.ndarray | None,
        spans: np.ndarray,
        window: int | None,
        out: np.ndarray,
    ) -> None: ...

def isas() -> tuple[str, ...]:
    """The instruction sets that run here, best first."""

def isa() -> str:
    """The one that is chosen."""
