"""Reads the kernel's counters of instances and nodes. Called by `daemon.measuring` for everything that runs.

One read per file and sample: on a host with 1000 instances these are 4000 files every few seconds. Opening such a file
costs twice as much as reading it, so the files of containers stay open, as many as the limit of descriptors has room
for. A file that is missing or odd makes its value unknown, never 0, and never an exception.
"""

from __future__ import annotations

import os
import resource
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

from incus_numa.cpuset import CpuSet
from incus_numa.host import counters
from incus_numa.host.group_counters import File, GroupCounters, UnifiedCounters
from incus_numa.host.guest_memory import GuestMemory
from incus_numa.model.sample import InstanceSample, NodeSample

SPARE_DESCRIPTORS = 512
"""So many descriptors are left to everything else in this process."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CHUNK = 1 << 16


class Sampler:
    """Reads containers' cgroups, virtual machines' processes below `procfs`, and nodes below `sysfs`.

    One sample is a call for each instance, and then one for the nodes. Not thread-safe, but that processes may be
    sampled in threads, each in one: where a guest's memory is due to be read that takes long (see `guest_memory`).
    """

    def __init__(
        self, procfs: Path, sysfs: Path, groups: GroupCounters | None = None, guests: GuestMemory | None = None
    ) -> None:
        """`groups` says which files payload cgroups have, those of cgroup v2 by default; `guests` reads the memory of
        virtual machines, for others as well where it is given.
        """
        self._groups = groups or UnifiedCounters()
        self._procfs = str(procfs)
        self._nodes = f"{sysfs}/devices/system/node/node"
        self._guests = guests or GuestMemory(self._procfs)
        self._started: dict[int, int] = {}
        self._open: dict[str, Sequence[int | None]] = {}
        self._asked: set[str | int] = set()
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_open = max(0, limit - SPARE_DESCRIPTORS) // len(self._groups.list_files(""))
        weakref.finalize(self, _close_all, self._open)

    def sample_instance(self, group: Path | None, pid: int | None = None) -> InstanceSample:
        """Counters of a container by its payload cgroup, else of a virtual machine by the pid of its QEMU.

        A virtual machine has no pressure and no throttling of its own; its memory by node is up to a minute old.
        When a pid has become another process, all is unknown once.
        """
        if group is not None:
            return self._sample_group(str(group))
        return InstanceSample(at_s=time.monotonic()) if pid is None else self._sample_process(pid)

    def sample_nodes(self, cpus_by_node: Mapping[int, CpuSet]) -> Mapping[int, NodeSample]:
        """Counters of the nodes with those online CPUs. Busy time is unknown where a CPU has gone offline since.

        This ends a sample: files of groups that were not in it are closed, and processes that were not are forgotten.
        """
        for group in self._open.keys() - self._asked:
            _close(self._open.pop(group))
        self._started = {pid: started for pid, started in self._started.items() if pid in self._asked}
        self._asked.clear()
        ticks = counters.parse_busy_ticks(_read_all(f"{self._procfs}/stat"))
        return {node: self._sample_node(node, cpus, ticks) for node, cpus in cpus_by_node.items()}

    def _sample_node(self, node: int, cpus: CpuSet, ticks: Mapping[int, int]) -> NodeSample:
        allocations = _read(f"{self._nodes}{node}/numastat")
        busy = [ticks[cpu] for cpu in cpus if cpu in ticks]
        return NodeSample(
            busy_s=sum(busy) / _TICKS_PER_S if ticks and len(busy) == len(cpus) else None,
            free_bytes=counters.parse_free(_read(f"{self._nodes}{node}/meminfo")),
            hits=counters.parse_flat(allocations, b"numa_hit"),
            misses=counters.parse_flat(allocations, b"numa_miss"),
        )

    def _sample_group(self, group: str) -> InstanceSample:
        at_s = time.monotonic()
        return self._groups.parse(at_s, self._read_group(group))

    def _read_group(self, group: str) -> Sequence[bytes]:
        self._asked.add(group)
        descriptors = self._open.get(group)
        if descriptors is not None:
            try:
                return _read_open(self._groups.list_files(group), descriptors)
            except OSError:
                # The container was stopped, and perhaps started again with new files of the same names.
                _close(self._open.pop(group))
        files = self._groups.list_files(group)
        if len(self._open) >= self._most_open:
            return [_read(path, size) for path, size in files]
        descriptors = [_open(path) for path, _ in files]
        try:
            texts = _read_open(files, descriptors)
        except OSError:
            _close(descriptors)
            return [_read(path, size) for path, size in files]
        self._open[group] = descriptors
        return texts

    def _sample_process(self, pid: int) -> InstanceSample:
        now = time.monotonic()
        self._asked.add(pid)
        times = counters.parse_process(_read(f"{self._procfs}/{pid}/stat"))
        before = self._started.pop(pid, None)
        if times is None or before not in (None, times.started):
            return InstanceSample(at_s=now)
        self._started[pid] = times.started
        memory = self._guests.read(pid, times.started).by_node
        return InstanceSample(at_s=now, cpu_s=times.used / _TICKS_PER_S, memory_by_node=memory)


def _read_open(files: Sequence[File], descriptors: Sequence[int | None]) -> Sequence[bytes]:
    """The texts of a group's files; those that could not be opened are tried again. Raises OSError."""
    first = descriptors[0]
    # The kernel refuses to read what it has removed; files of other file systems live on without a name.
    if first is None or not os.fstat(first).st_nlink:
        raise FileNotFoundError(files[0][0])
    return [
        _read(path, size) if descriptor is None else os.pread(descriptor, size, 0)
        for (path, size), descriptor in zip(files, descriptors, strict=True)
    ]


def _read(path: str, size: int = 4096) -> bytes:
    """The first so many bytes of a file, empty if it cannot be read."""
    descriptor = _open(path)
    if descriptor is None:
        return b""
    try:
        return os.read(descriptor, size)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _read_all(path: str) -> bytes:
    """The whole content of a file of any size, empty if it cannot be read to its end."""
    descriptor = _open(path)
    if descriptor is None:
        return b""
    chunks = []
    try:
        while chunk := os.read(descriptor, _CHUNK):
            chunks.append(chunk)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
    return b"".join(chunks)


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _close(descriptors: Sequence[int | None]) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


def _close_all(opened: Mapping[str, Sequence[int | None]]) -> None:
    for descriptors in opened.values():
        _close(descriptors)
