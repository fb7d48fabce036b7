"""The cpuset files of running containers on hosts with cgroup v1, alone or beside a v2 hierarchy without cpusets.

Called as `host.cgroup`. Kernel document: Documentation/admin-guide/cgroup-v1/cpusets.rst. What v1 does otherwise: each
controller has a hierarchy of its own, a set must hold those of all groups inside and be held by the one around, nothing
follows by itself, memory moves only where `cpuset.memory_migrate` says so, and a CPU that goes offline leaves the set.
Names of payload cgroups are those of LXC 4 and later, as both servers have had for years.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import GoneError
from incus_numa.host import counters
from incus_numa.host.cgroup import CgroupFiles, Write, write_lines
from incus_numa.host.group_counters import PAGE_BYTES, LegacyCounters

T = TypeVar("T", CpuSet, NodeSet)

_MIGRATE = "cpuset.memory_migrate"


def cgroup_files(root: Path, procfs: Path, write: Write = write_lines) -> CgroupFiles:
    """The files of this host's hierarchy below `root`: v2 where that has cpusets, else v1 where that is mounted."""
    try:
        controllers = (root / "cgroup.controllers").read_text().split()
    except OSError:
        controllers = []
    legacy = "cpuset" not in controllers and (root / "cpuset/cpuset.cpus").exists()
    return (LegacyCgroupFiles if legacy else CgroupFiles)(root, procfs, write)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change(Generic[T]):
    """What one group is to have: `now`, meanwhile, and in the end."""

    group: Path
    now: T
    wide: T
    wanted: T


class LegacyCgroupFiles(CgroupFiles):
    """Reads and writes cpuset files of v1 hierarchies that are mounted below one folder."""

    effective_files = ("cpuset.effective_cpus", "cpuset.effective_mems")

    def __init__(self, mount: Path, procfs: Path, write: Write = write_lines) -> None:
        super().__init__(mount / "cpuset", procfs, write)
        self._memory = mount / "memory"
        self.counters = LegacyCounters(mount)

    def check(self) -> tuple[str, ...]:
        """What this host lacks, one sentence each; empty when containers can be placed."""
        found = []
        if not os.access(self._root, os.W_OK):
            found.append(f"{self._root} is not writable: run as root, and not with a read-only cgroup mount")
        if not self._memory.is_dir():
            found.append(f"{self._memory} is no cgroup v1 hierarchy: where containers have their memory is not known")
        return tuple(found)

    def is_live(self, group: Path) -> bool:
        """Whether a payload cgroup has processes, itself or inside: one that an earlier run left behind has none."""
        if not (group / "cpuset.cpus").exists():
            return False
        return any(_has_processes(folder) for folder, _, _ in os.walk(group))

    def memory_by_node(self, group: Path) -> dict[int, int] | None:
        """Anonymous memory per node in bytes, None when the kernel does not tell."""
        try:
            text = (self._memory_of(group) / "memory.numa_stat").read_bytes()
        except OSError:
            return None
        found = counters.parse_anonymous_pages(text, PAGE_BYTES)
        return None if found is None else dict(found)

    def memory_usage(self, group: Path) -> int | None:
        """Memory in use in bytes, None when the kernel does not tell."""
        try:
            return int((self._memory_of(group) / "memory.usage_in_bytes").read_text())
        except (OSError, ValueError):
            return None

    def write_cpus(self, group: Path, cpus: CpuSet) -> None:
        """Set `cpuset.cpus` of a group and of all inside, and verify. Raises as for v2."""
        self._set(CpuSet, group, "cpuset.cpus", cpus)

    def write_mems(self, group: Path, mems: NodeSet) -> None:
        """Set `cpuset.mems` of a group and of all inside, which moves pages and can take long. Raises as for v2."""
        self._set(NodeSet, group, "cpuset.mems", mems or self._parse(NodeSet, self._root, self.effective_files[1]))

    def _is_own(self, number: str, controllers: Sequence[str]) -> bool:
        return "cpuset" in controllers

    def _memory_of(self, group: Path) -> Path:
        """The group in the memory hierarchy, where it has the same path."""
        return self._memory / group.relative_to(self._root)

    def _set(self, kind: type[T], group: Path, name: str, wanted: T) -> None:
        """Widen what is around, from the outside in; then narrow what is inside, from the inside out."""
        for around in reversed(group.relative_to(self._root).parents[:-1]):
            has = self._parse(kind, self._root / around, name)
            if not wanted <= has:
                self._write(self._root / around / name, str(has | wanted))
        changes = self._changes(kind, group, name, wanted)
        for change in changes:
            if change.wide != change.now:
                self._put(change.group, name, change.wide)
        for change in reversed(changes):
            if change.wanted != change.wide:
                self._put(change.group, name, change.wanted)
        self._verify(kind, group, name, wanted)

    def _changes(self, kind: type[T], group: Path, name: str, wanted: T) -> list[_Change[T]]:
        """The group and all inside it, the outer ones first. Those that have their own part of a set keep of it what
        is left; where nothing is, and where they had all of it, they get all.
        """
        found = [_Change(group=group, now=self._parse(kind, group, name), wide=wanted, wanted=wanted)]
        for place, change in enumerate(found):
            inside = len(found)
            for inner in _list_inside(change.group, name):
                try:
                    has = self._parse(kind, inner, name)
                except GoneError:
                    continue
                part = change.wanted if has == change.now else has & change.wanted or change.wanted
                if has:
                    found.append(_Change(group=inner, now=has, wide=part, wanted=part))
            if len(found) > inside:
                # Those inside still have what they had when this one is written first.
                found[place] = replace(change, wide=change.now | change.wanted)
        return found

    def _put(self, group: Path, name: str, value: T) -> None:
        if isinstance(value, NodeSet):
            self._write(group / _MIGRATE, "1")
        self._write(group / name, str(value))


def _has_processes(folder: str) -> bool:
    try:
        with open(f"{folder}/cgroup.procs", "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def _list_inside(group: Path, name: str) -> list[Path]:
    """Groups right inside, by name."""
    try:
        return sorted(one for one in group.iterdir() if (one / name).exists())
    except OSError:
        return []
