"""The load of every node over time, in as many columns as a chart is wide."""

from __future__ import annotations

from collections.abc import Sequence

COLUMNS = 240


class LoadHistory:
    """Time-averaged loads in equal stretches from `begin_s` to `end_s`; one column when that is no time at all."""

    def __init__(self, nodes: int, begin_s: float, end_s: float, columns: int = COLUMNS) -> None:
        self.begin_s, self.end_s = begin_s, end_s
        self._stretch_s = (end_s - begin_s) / columns
        self._columns = [[0.0] * nodes for _ in range(columns if self._stretch_s > 0 else 1)]

    def note(self, start_s: float, stop_s: float, loads: Sequence[float]) -> None:
        """These were the loads of the nodes from one time to another."""
        last = len(self._columns) - 1
        first_s, stretch_s = self.begin_s, self._stretch_s
        for place in range(int((start_s - first_s) / stretch_s), int((stop_s - first_s) / stretch_s) + 1):
            column = self._columns[min(place, last)]
            part = min(stop_s, first_s + (place + 1) * stretch_s) - max(start_s, first_s + place * stretch_s)
            if part > 0:
                for node, load in enumerate(loads):
                    column[node] += load * part / stretch_s

    def end(self, loads: Sequence[float]) -> None:
        """These are the loads at the end, which are all there is when no time passed."""
        if self._stretch_s <= 0:
            self._columns[0] = list(loads)

    def rows(self) -> list[list[float]]:
        """One row per node, one value per column."""
        return [list(row) for row in zip(*self._columns, strict=True)]
