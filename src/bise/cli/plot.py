"""Curves in characters: a braille cell is two dots wide and four high."""

from __future__ import annotations

from collections.abc import Sequence

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # [column][row, from the top] of a cell (Unicode 2800)
Points = Sequence[tuple[float, float]]


class Plot:
    """A grid of cells over the ranges x and y; curves are drawn one after the other, each with a style of its own.

    cells  rows from the top: (bits of the dots, style), the style of the last curve that went through
    """

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        """width, height: in characters."""
        self.width, self.height, self.x, self.y = width, height, x, y
        self.cells = [[(0, "") for _ in range(width)] for _ in range(height)]

    def curve(self, points: Points, style: str) -> None:
        """Points from left to right, joined."""
        placed = [self._place(*point) for point in points]
        for (x, y), (to_x, to_y) in zip(placed, placed[1:] or placed, strict=False):
            count = max(abs(to_x - x), abs(to_y - y), 1)
            for i in range(count + 1):
                self._dot(x + (to_x - x) * i // count, y + (to_y - y) * i // count, style)

    def lines(self) -> list[list[tuple[str, str]]]:
        """Rows from the top, each in pieces (text, style)."""
        return [[(chr(0x2800 + bits) if bits else " ", style) for bits, style in row] for row in self.cells]

    def _place(self, x: float, y: float) -> tuple[int, int]:
        """Which dot, from the top left."""
        (x0, x1), (y0, y1) = self.x, self.y
        column = round((x - x0) / max(x1 - x0, 1e-12) * (2 * self.width - 1))
        row = round((y1 - y) / max(y1 - y0, 1e-12) * (4 * self.height - 1))
        return min(max(column, 0), 2 * self.width - 1), min(max(row, 0), 4 * self.height - 1)

    def _dot(self, x: int, y: int, style: str) -> None:
        bits, _ = self.cells[y // 4][x // 2]
        self.cells[y // 4][x // 2] = bits | DOTS[x % 2][y % 4], style
