"""What happened when, and how often the API was asked: for benchmarks and for tests of thrift."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from incus_numa.model.instance import InstanceKey

KEPT_MARKS = 256


class Mark(NamedTuple):
    """Something that happened to an instance. `at_s` is CLOCK_MONOTONIC, so it compares between processes.

    `what` is `locked`, `released`, `patch`, `late-volatile`, `balance` (the server wrote the cpuset), `cpuset.cpus` or
    `cpuset.mems` (somebody else did), or the action of a lifecycle event when it was sent.
    """

    at_s: float
    what: str
    value: str


@dataclass(kw_only=True, slots=True)
class Measurements:
    """Calls by method and kind (`GET instance`), the same by instance, and the last marks of each instance."""

    calls: Counter[str] = field(default_factory=Counter)
    calls_by_instance: dict[InstanceKey, Counter[str]] = field(default_factory=dict)
    marks: dict[InstanceKey, deque[Mark]] = field(default_factory=dict)

    def mark(self, key: InstanceKey, what: str, value: str = "") -> None:
        """Note that something happened now."""
        marks = self.marks.get(key)
        if marks is None:
            marks = self.marks[key] = deque(maxlen=KEPT_MARKS)
        marks.append(Mark(time.monotonic(), what, value))

    def count(self, call: str, key: InstanceKey | None) -> None:
        """Note one request."""
        self.calls[call] += 1
        if key is not None:
            self.calls_by_instance.setdefault(key, Counter())[call] += 1

    def clear(self) -> None:
        """Forget everything, before a measurement starts."""
        self.calls.clear()
        self.calls_by_instance.clear()
        self.marks.clear()
