"""What the instances of a trace do with their CPUs, and when they restart: ours, as traces tell neither. Pure.

Each instance is by turns idle, using 2 to 5 % of its vCPUs, and busy, using 50 to 100 %: every change is tenfold or
more. A time of either kind has its own level, the same over all its vCPUs. Lengths are exponential: 4 hours on average
for idle times, 2 hours for busy ones, so a third of all is busy at any time, from the first moment on, and the lengths
remember nothing: it does not matter that an instance was there before its trace begins. Restarts are exponential, too,
one a day on average.

Nothing is drawn: every number is a hash of the instance's name and a count. So each policy meets the same use, and
machine and order do not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from incus_numa.replay.stays import Stay

HOUR = 3600.0
IDLE_MEAN_S, BUSY_MEAN_S, RESTART_MEAN_S = 4 * HOUR, 2 * HOUR, 24 * HOUR
IDLE_LEVELS = (0.02, 0.05)
BUSY_LEVELS = (0.5, 1.0)
"""The least and the highest part of its vCPUs that an instance keeps busy."""

BUSY_PART = BUSY_MEAN_S / (BUSY_MEAN_S + IDLE_MEAN_S)


class Phase(NamedTuple):
    """From `at_s` until the next phase the instance uses so many CPUs."""

    at_s: float
    cpus: float


def list_phases(stay: Stay, end_s: float) -> Iterator[Phase]:
    """The phases from the arrival on that begin before the departure and before `end_s`; the first one always."""
    last_s = end_s if stay.departure_s is None else min(end_s, stay.departure_s)
    busy = _part(stay.name, "begins", 0) < BUSY_PART
    at_s = stay.arrival_s
    for number in count():
        least, most = BUSY_LEVELS if busy else IDLE_LEVELS
        level = least + (most - least) * _part(stay.name, "level", number)
        yield Phase(at_s, stay.vcpus * level)
        at_s += _length(stay.name, "phase", number, BUSY_MEAN_S if busy else IDLE_MEAN_S)
        busy = not busy
        if at_s >= last_s:
            return


def list_restarts(stay: Stay, end_s: float) -> Iterator[float]:
    """The times at which the instance restarts, before its departure and before `end_s`."""
    last_s = end_s if stay.departure_s is None else min(end_s, stay.departure_s)
    at_s = stay.arrival_s
    for number in count():
        at_s += _length(stay.name, "restart", number, RESTART_MEAN_S)
        if at_s >= last_s:
            return
        yield at_s


def _length(name: str, what: str, number: int, mean_s: float) -> float:
    """Exponential: at least a second, so that there are never endlessly many."""
    return max(1.0, -mean_s * math.log(1.0 - _part(name, what, number)))


def _part(name: str, what: str, number: int) -> float:
    """From 0 to just below 1, even, and the same for ever."""
    digest = hashlib.blake2b(f"{what} {number} {name}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / (1 << 53)
