"""How busy each CPU is, from one look to the next: for those who watch.

Plans count what `daemon.measuring` measures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from incus_numa.host.counters import parse_busy_ticks

LEAST_S = 0.5
"""In less time the ticks of the kernel say little; what was found before is shown again."""

MOST_S = 60.0
"""What was busy over a longer time says little of the present, so after a pause one begins anew."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class CpuBusy:
    """The busy part of each CPU since it was asked for before, a minute ago at most.

    Not thread-safe. `clock` never goes back.
    """

    def __init__(self, procfs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._path = procfs / "stat"
        self._before: tuple[float, Mapping[int, int]] | None = None
        self._shown: Mapping[int, float] = {}

    def read(self) -> Mapping[int, float]:
        """Parts from 0 to 1 by CPU; empty at first, and where the kernel does not tell."""
        now = self._clock()
        if self._before is not None and now - self._before[0] < LEAST_S:
            return self._shown
        try:
            ticks = parse_busy_ticks(self._path.read_bytes())
        except OSError:
            ticks = {}
        before, self._before = self._before, (now, ticks)
        if before is not None and now - before[0] > MOST_S:
            before = None
        self._shown = {} if before is None else busy_parts(before[1], ticks, now - before[0])
        return self._shown


def busy_parts(before: Mapping[int, int], after: Mapping[int, int], took_s: float) -> Mapping[int, float]:
    """Ticks of two looks as parts of the time between them; CPUs that were not in both are left out."""
    whole = took_s * _TICKS_PER_S
    grown = {cpu: ticks - before[cpu] for cpu, ticks in after.items() if cpu in before}
    return {cpu: min(1.0, max(0.0, ticks / whole)) for cpu, ticks in grown.items()} if whole > 0 else {}
