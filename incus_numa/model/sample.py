"""What was read of the kernel's counters, and the rates that follow from it. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceSample:
    """Counters of one instance at `at_s` of the monotonic clock; they only ever grow while the instance runs.

    Seconds of CPU used (`cpu_s`), of time in which some task waited for a CPU (`waiting_s`) or for memory
    (`stalled_s`), and of throttling by `limits.cpu.allowance` (`throttled_s`). `memory_by_node` is anonymous memory in
    bytes.
    """

    at_s: float
    cpu_s: float | None = None
    waiting_s: float | None = None
    stalled_s: float | None = None
    throttled_s: float | None = None
    memory_by_node: Mapping[int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSample:
    """Counters of one node: seconds of its CPUs busy, pages allocated where they were wanted and elsewhere.

    `free_bytes` is its free memory.
    """

    busy_s: float | None = None
    free_bytes: int | None = None
    hits: int | None = None
    misses: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One reading of everything. `at_s` is when the nodes were read."""

    at_s: float
    instances: Mapping[InstanceKey, InstanceSample] = field(default_factory=dict)
    nodes: Mapping[int, NodeSample] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceRates:
    """Smoothed rates of one instance.

    `used_cpus` are the CPUs it keeps busy, `wanted_cpus` those and what its tasks waited for, no more than it may use.
    `waiting`, `stalled` and `throttled` are parts of the time (0 to 1). `memory_by_node` is as last read.
    """

    used_cpus: float | None = None
    wanted_cpus: float | None = None
    waiting: float | None = None
    stalled: float | None = None
    throttled: float | None = None
    memory_by_node: Mapping[int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRates:
    """Smoothed rates of one node: CPUs busy, those of them that no instance keeps busy, pages per second.

    `free_bytes` is as last read.
    """

    busy_cpus: float | None = None
    other_cpus: float | None = None
    free_bytes: int | None = None
    hits_per_s: float | None = None
    misses_per_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rates as of `sample`, the last one that went into them.

    `cpus_by_instance` are the CPUs that each instance ran on, and `cpus_by_node` those of each node, when it was taken.
    """

    sample: Sample
    instances: Mapping[InstanceKey, InstanceRates] = field(default_factory=dict)
    nodes: Mapping[int, NodeRates] = field(default_factory=dict)
    cpus_by_instance: Mapping[InstanceKey, CpuSet] = field(default_factory=dict)
    cpus_by_node: Mapping[int, CpuSet] = field(default_factory=dict)
