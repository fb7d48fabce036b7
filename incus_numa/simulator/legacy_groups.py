"""Payload cgroups of hosts with cgroup v1: one folder in each of three hierarchies. Called by `kernel`.

Kernel documents: cpusets.rst, memory.rst and cpuacct.rst below Documentation/admin-guide/cgroup-v1. LXC makes a group
with `cgroup.clone_children`, so that it begins with all that its parent has. Kinder than a kernel in one point: a group
all of whose CPUs went offline gets all others, where the kernel would move its processes to the group around it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.simulator import groups
from incus_numa.simulator.groups import PAGE, Group, rewrite, show
from incus_numa.simulator.options import Hierarchy
from incus_numa.simulator.trees import put

CPUSETS, MEMORY, TIME = "cpuset", "memory", "cpu,cpuacct"


def write_roots(mount: Path, hierarchy: Hierarchy, cpus: CpuSet, mems: NodeSet) -> None:
    """The folder of the hierarchies. In a hybrid one there is a v2 hierarchy that has none of these controllers."""
    for name in (CPUSETS, MEMORY, TIME):
        put(mount / name / "cgroup.procs", "1\n")
    for name in TIME.split(","):
        if not (mount / name).is_symlink():
            (mount / name).symlink_to(TIME)
    if hierarchy is Hierarchy.HYBRID:
        put(mount / "unified/cgroup.controllers", "\n")
        put(mount / "unified/cgroup.procs", "1\n")
    for name in ("cpuset.cpus", "cpuset.effective_cpus"):
        rewrite(mount / CPUSETS / name, str(cpus))
    for name in ("cpuset.mems", "cpuset.effective_mems"):
        rewrite(mount / CPUSETS / name, str(mems))


@dataclass(kw_only=True, slots=True)
class LegacyGroup(Group):
    """A payload cgroup below `mount`; its `path` is the one in the hierarchy of cpusets."""

    mount: Path
    hierarchy: Hierarchy

    @property
    def moves_memory(self) -> bool:
        """Whether a write of `cpuset.mems` moves pages."""
        return (self.path / "cpuset.memory_migrate").read_text().strip() == "1"

    @property
    def membership(self) -> str:
        """`/proc/PID/cgroup` of its init."""
        lines = [f"12:cpuset:/{self.name}", f"9:memory:/{self.name}", f"4:{TIME}:/{self.name}"]
        lines += [f"1:name=systemd:/{self.name}/init.scope"]
        if self.hierarchy is Hierarchy.HYBRID:
            lines += [f"0::/{self.name}/init.scope"]
        return "".join(f"{line}\n" for line in lines)

    def create(self, pid: int, cpus: CpuSet, mems: NodeSet) -> None:
        """Its files, with all CPUs and nodes."""
        self.cpus, self.mems = cpus, mems
        files = {
            f"{CPUSETS}/{self.name}/cgroup.procs": f"{pid}\n",
            f"{CPUSETS}/{self.name}/cgroup.clone_children": "1\n",
            f"{CPUSETS}/{self.name}/cpuset.cpus": f"{cpus}\n",
            f"{CPUSETS}/{self.name}/cpuset.mems": f"{mems}\n",
            f"{CPUSETS}/{self.name}/cpuset.effective_cpus": f"{cpus}\n",
            f"{CPUSETS}/{self.name}/cpuset.effective_mems": f"{mems}\n",
            f"{CPUSETS}/{self.name}/cpuset.memory_migrate": "0\n",
            f"{MEMORY}/{self.name}/cgroup.procs": f"{pid}\n",
            f"{MEMORY}/{self.name}/memory.usage_in_bytes": f"{sum(self.pages.values())}\n",
            f"{MEMORY}/{self.name}/memory.numa_stat": self._render_pages(),
            f"{TIME}/{self.name}/cgroup.procs": f"{pid}\n",
            f"{TIME}/{self.name}/cpuacct.usage": "0\n",
            f"{TIME}/{self.name}/cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n",
        }
        for name, text in files.items():
            put(self.mount / name, text)

    def accepts(self, cpus: CpuSet, free: CpuSet) -> bool:
        """A CPU that is offline cannot be had."""
        return bool(cpus) and cpus <= free

    def follow_cpus(self, free: CpuSet) -> None:
        """What goes offline leaves the set, and does not come back by itself."""
        if not self.cpus <= free:
            self.cpus = self.cpus & free or free
            rewrite(self.path / "cpuset.cpus", str(self.cpus))
        show(self.path / "cpuset.effective_cpus", str(self.cpus))

    def follow_mems(self, effective: NodeSet) -> None:
        """As accepted; nodes that are gone leave the set."""
        if self.mems != effective:
            self.mems = effective
            rewrite(self.path / "cpuset.mems", str(effective))
        show(self.path / "cpuset.effective_mems", str(effective))

    def write_pages(self) -> None:
        """Where its memory is."""
        show(self.mount / MEMORY / self.name / "memory.numa_stat", self._render_pages().rstrip("\n"))

    def write_counters(self, used_s: float, waited: tuple[float, float] | None) -> None:
        """CPU time in nanoseconds; v1 does not count who waits."""
        groups.overwrite(f"{self.mount}/{TIME}/{self.name}/cpuacct.usage", f"{int(used_s * 1e9)}\n")

    def remove(self, trash: Path) -> None:
        """It disappears at once, the part with the cpusets first."""
        trash.mkdir(exist_ok=True)
        for name in (CPUSETS, MEMORY, TIME):
            moved = trash / f"{name}-{self.name}"
            os.rename(self.mount / name / self.name, moved)
            shutil.rmtree(moved)

    def _render_pages(self) -> str:
        files = {node: size // 10 // PAGE for node, size in self.pages.items()}
        rows = {
            "total": {node: size // PAGE for node, size in self.pages.items()},
            "file": files,
            "anon": {node: size // PAGE - files[node] for node, size in self.pages.items()},
        }
        text = ""
        for prefix in ("", "hierarchical_"):
            for name, counts in rows.items():
                nodes = " ".join(f"N{node}={count}" for node, count in sorted(counts.items()))
                text += f"{prefix}{name}={sum(counts.values())} {nodes}\n"
        return text
