"""Which files of a payload cgroup count what, and what they say: of cgroup v2, and of the hierarchies of v1.

Called by `host.sampler`, thousands of times per sample. Formats: Documentation/admin-guide/cgroup-v2.rst, and of v1
cpuacct.rst and memory.rst below Documentation/admin-guide/cgroup-v1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from incus_numa.host import counters
from incus_numa.model.sample import InstanceSample

PAGE_BYTES = os.sysconf("SC_PAGESIZE")

File = tuple[str, int]
"""A path, and how much is read of it at most."""


class GroupCounters(Protocol):
    """The counters of one kind of hierarchy."""

    def list_files(self, group: str) -> Sequence[File]:
        """Always as many, in the same order; the first one exists wherever the group does."""

    def parse(self, at_s: float, texts: Sequence[bytes]) -> InstanceSample:
        """What the files say, in their order; an empty text is one that could not be read."""


class UnifiedCounters:
    """Those of cgroup v2."""

    def list_files(self, group: str) -> Sequence[File]:
        """All are in the group's own folder."""
        return (
            (f"{group}/cpu.stat", 4096),
            (f"{group}/cpu.pressure", 4096),
            (f"{group}/memory.pressure", 4096),
            (f"{group}/memory.numa_stat", 1 << 16),
        )

    def parse(self, at_s: float, texts: Sequence[bytes]) -> InstanceSample:
        """Times are in microseconds, memory is in bytes."""
        use, waiting, stalled, memory = texts
        return InstanceSample(
            at_s=at_s,
            cpu_s=_seconds(counters.parse_flat(use, b"usage_usec"), 10**6),
            waiting_s=_seconds(counters.parse_pressure(waiting), 10**6),
            stalled_s=_seconds(counters.parse_pressure(stalled), 10**6),
            throttled_s=_seconds(counters.parse_flat(use, b"throttled_usec"), 10**6),
            memory_by_node=counters.parse_anonymous(memory),
        )


class LegacyCounters:
    """Those of cgroup v1, whose hierarchies are folders below `mount`. It has no pressure."""

    def __init__(self, mount: Path) -> None:
        self._cpusets = f"{mount}/cpuset/"
        self._mount = str(mount)

    def list_files(self, group: str) -> Sequence[File]:
        """A group has the same path in every hierarchy."""
        path = group.removeprefix(self._cpusets)
        return (
            (f"{self._mount}/cpuacct/{path}/cpuacct.usage", 4096),
            (f"{self._mount}/cpu/{path}/cpu.stat", 4096),
            (f"{self._mount}/memory/{path}/memory.numa_stat", 1 << 16),
        )

    def parse(self, at_s: float, texts: Sequence[bytes]) -> InstanceSample:
        """Times are in nanoseconds, memory is in pages."""
        used, throttling, memory = texts
        return InstanceSample(
            at_s=at_s,
            cpu_s=_seconds(counters.parse_number(used), 10**9),
            throttled_s=_seconds(counters.parse_flat(throttling, b"throttled_time"), 10**9),
            memory_by_node=counters.parse_anonymous_pages(memory, PAGE_BYTES),
        )


def _seconds(count: int | None, per_second: int) -> float | None:
    return None if count is None else count / per_second
