"""The measured load of the nodes over the last hour, kept in memory: for the dashboard."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

STEP_S = 30.0
"""Loads are kept this often."""

KEPT_S = 3600.0


class RecentLoads:
    """Loads by node, the oldest first. Times are those of the wall clock."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Mapping[int, float]]] = deque(maxlen=int(KEPT_S / STEP_S))

    def is_due(self, at_s: float) -> bool:
        """Whether loads are to be kept now: none were a moment ago, or the clock went back."""
        return not self._kept or not 0 <= at_s - self._kept[-1][0] < STEP_S

    def note(self, at_s: float, load: Mapping[int, float]) -> None:
        """Keep these loads, if there are any and it is time; with a clock that went back it begins anew."""
        if not load or not self.is_due(at_s):
            return
        if self._kept and at_s < self._kept[-1][0]:
            self._kept.clear()
        self._kept.append((at_s, dict(load)))

    def show(self, now_s: float) -> dict[str, Any]:
        """`step_s`, `at` (seconds since 1970) and `load` (node to a load for each time, None where unknown)."""
        kept = [(at_s, load) for at_s, load in self._kept if now_s - KEPT_S <= at_s]
        nodes = sorted({node for _, load in kept for node in load})
        return {
            "step_s": STEP_S,
            "at": [round(at_s) for at_s, _ in kept],
            "load": {
                str(node): [None if (one := load.get(node)) is None else round(one, 4) for _, load in kept]
                for node in nodes
            },
        }
