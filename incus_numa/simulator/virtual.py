"""QEMU processes of the fake kernel: their threads, where these may run, and the guest's memory, as files in `/proc`.

What a server chooses for a virtual machine at start is here, too. Called by `kernel`, `incus` and `work`.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Machine
from incus_numa.simulator import choices, groups, trees
from incus_numa.simulator.groups import PAGE
from incus_numa.simulator.options import VmEvidence
from incus_numa.simulator.refusals import ApiError
from incus_numa.simulator.trees import USER_HZ, put

COMM = "qemu-system-x86"
"""What the kernel calls QEMU and, before QEMU 11, each of its threads: names are cut off there."""

BOOT_TICKS = 2
"""Guest time of a vCPU right after the start: too little to count for the process."""

NO_SETAFFINITY = 0x04000000
"""Flag of threads whose CPUs nobody may set (PF_NO_SETAFFINITY)."""

CGROUP = "/system.slice/incus.service"
MEMORY = "/memfd:memory-backend-memfd\\040(deleted)"

_BEFORE, _AFTER = (COMM, COMM), ("vhost-{pid}", "SPICE Worker")
"""Names of threads that are no vCPUs: those made between the main thread and the first vCPU, and those made after."""

_TOPOLOGY = re.compile(r"(?:sockets|cores|threads)=[0-9]+(?:,(?:sockets|cores|threads)=[0-9]+)*")
_starts = itertools.count(1000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the server starts QEMU with: how many vCPUs, the CPUs of each or nothing, and the nodes of its memory.

    Where `is_plugged`, all vCPUs but the first are plugged in when QEMU runs, from the last slot down.
    """

    vcpus: int
    masks: tuple[CpuSet, ...] = ()
    bound: NodeSet = field(default_factory=NodeSet)
    is_plugged: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class VmThreads:
    """The truth about a virtual machine: thread ids with the CPUs that each may run on."""

    vcpus: Mapping[int, CpuSet]
    others: Mapping[int, CpuSet]


def count_vcpus(limit: str) -> int:
    """How many vCPUs a virtual machine gets by `limits.cpu`. Raises ValueError."""
    if _TOPOLOGY.fullmatch(limit):
        return math.prod(int(part.partition("=")[2]) for part in limit.split(","))
    wanted = choices.parse_limit(limit)
    return 1 if wanted is None else wanted if isinstance(wanted, int) else len(wanted)


def choose_shape(config: Mapping[str, str], machine: Machine) -> Shape:
    """What the server makes of an expanded configuration. Raises ValueError.

    Its rule: vCPUs of a plain count above one have the CPUs of the nodes, those of a list one CPU each, all from the
    start. A single vCPU and an explicit topology float. Memory is bound wherever nodes were chosen.
    """
    limit = config.get("limits.cpu", "")
    count = count_vcpus(limit)
    named = config.get("limits.cpu.nodes", "")
    nodes = NodeSet.parse(config.get("volatile.cpu.nodes", "") if named == "balanced" else named)
    cpus = CpuSet(cpu.id for cpu in machine.cpus if cpu.node in nodes)
    if limit and not limit.isdecimal() and not _TOPOLOGY.fullmatch(limit):
        pinned = CpuSet.parse(limit)
        home = NodeSet(cpu.node for cpu in machine.cpus if cpu.id in pinned and cpu.node is not None)
        return Shape(vcpus=count, masks=tuple(CpuSet([cpu]) for cpu in pinned), bound=home, is_plugged=False)
    is_masked = limit.isdecimal() and count > 1 and bool(cpus)
    return Shape(vcpus=count, masks=(cpus,) * count if is_masked else (), bound=nodes & machine.memory_nodes)


def check_live(before: Mapping[str, str], after: Mapping[str, str], machine: Machine) -> None:
    """Raises ApiError for limits that a running virtual machine cannot get."""
    if before.get("limits.cpu.nodes", "") != after.get("limits.cpu.nodes", ""):
        raise ApiError(500, 'Key "limits.cpu.nodes" cannot be updated when VM is running')
    old, new = (config.get("limits.cpu", "") or "1" for config in (before, after))
    if old == new:
        return
    if not (old.isdecimal() and new.isdecimal()):
        raise ApiError(500, "Cannot change CPU pinning when VM is running")
    if int(new) > len(machine.cpus):
        raise ApiError(500, "Failed updating cpu limit: Cannot allocate more CPUs than available")


class VirtualMachine:
    """One running QEMU. Its threads' CPUs are what their `status` says, which others write."""

    def __init__(
        self, procfs: Path, pid: int, shape: Shape, *, machine: Machine, pages: dict[int, int], evidence: VmEvidence
    ) -> None:
        self.pid = pid
        self.folder = procfs / str(pid)
        self.bound = shape.bound
        self.pages = pages
        self.last_id = pid
        self._possible = CpuSet(cpu.id for cpu in machine.cpus)
        self._evidence = evidence
        self._started = next(_starts)
        self._guest_s: dict[int, float] = {}
        self._fixed: set[int] = set()
        self._used_s = 0.0
        put(self.folder / "cgroup", f"0::{CGROUP}\n")
        put(self.folder / "stat", groups.render_stat(pid, COMM, started=self._started))
        self._add(COMM, pid)
        for name in _BEFORE:
            self._add(name)
        at_first = 1 if shape.is_plugged else shape.vcpus
        self._slots = (*range(at_first), *range(max(len(machine.cpus), shape.vcpus) - 1, at_first - 1, -1))
        masks = shape.masks or (self._possible,) * shape.vcpus
        for cpus in masks[:at_first]:
            self._add_vcpu(cpus)
        for name in _AFTER:
            self._add(name.format(pid=pid))
        for cpus in masks[at_first:]:
            self._add_vcpu(cpus)
        self.set_pages(pages)

    @property
    def vcpus(self) -> int:
        """How many vCPUs it has."""
        return len(self._guest_s)

    def set_vcpus(self, count: int, first_id: int, cpus: CpuSet | None = None) -> None:
        """CPU hotplug: new threads, with ids from `first_id` on, run where the main thread does, which made them.

        Then the server lets all vCPUs run on `cpus`, unless it is None.
        """
        self.last_id = max(self.last_id, first_id - 1)
        for tid in tuple(self._guest_s)[count:]:
            del self._guest_s[tid]
            groups.discard(self.folder / "task" / str(tid))
        while self.vcpus < count:
            self._add_vcpu(self._read(self.pid))
        for tid in self._guest_s if cpus is not None else ():
            self._write_status(tid, self._name(tid), cpus or self._possible)

    def add_worker(self, first_id: int, name: str = "worker", *, is_fixed: bool = False) -> int:
        """A vCPU makes a thread for reading and writing, which runs where it does: its id.

        One that `is_fixed` is a worker of the kernel that runs anywhere, and whose CPUs nobody may set.
        """
        self.last_id = max(self.last_id, first_id - 1)
        if not is_fixed:
            return self._add(name, cpus=self._read(min(self._guest_s)))
        self._fixed.add(self.last_id + 1)
        return self._add(name)

    def threads(self) -> VmThreads:
        """All threads as their files say."""
        masks = {tid: self._read(tid) for tid in sorted(self._ids())}
        return VmThreads(
            vcpus={tid: cpus for tid, cpus in masks.items() if tid in self._guest_s},
            others={tid: cpus for tid, cpus in masks.items() if tid not in self._guest_s},
        )

    def read_cpus(self) -> CpuSet:
        """All CPUs that some vCPU may run on."""
        found = CpuSet()
        for tid in self._guest_s:
            found |= self._read(tid)
        return found

    def follow_online(self, online: CpuSet) -> None:
        """CPU hotplug of the host: a thread with no CPU left may run anywhere from then on."""
        for tid in self._ids():
            if not self._read(tid) & online:
                self._write_status(tid, self._name(tid), self._possible)

    def follow_possible(self, possible: CpuSet) -> None:
        """CPUs were plugged in or taken out of the host."""
        self._possible = possible
        for tid in self._ids():
            cpus = self._read(tid)
            if not cpus <= possible:
                self._write_status(tid, self._name(tid), cpus & possible or possible)

    def write_used(self, used_s: float) -> None:
        """CPU time of all threads together, most of it spent in the guest, by each vCPU as much."""
        ticks = int(used_s * USER_HZ)
        user_ticks = ticks * 9 // 10
        is_seen = self._evidence is VmEvidence.GUEST_TIME
        text = groups.render_stat(
            self.pid,
            COMM,
            started=self._started,
            user_ticks=user_ticks,
            system_ticks=ticks - user_ticks,
            guest_ticks=user_ticks if is_seen else 0,
        )
        groups.overwrite(f"{self.folder}/stat", text)
        more_s, self._used_s = (used_s - self._used_s) / self.vcpus, used_s
        for tid in self._guest_s:
            self._guest_s[tid] += more_s
            groups.overwrite(f"{self.folder}/task/{tid}/stat", self._render_stat(tid, self._name(tid)))

    def set_pages(self, pages: dict[int, int]) -> None:
        """The guest's memory has moved: bytes by node."""
        self.pages = pages
        policy = f"bind:{self.bound}" if self.bound else "default"
        counts = " ".join(f"N{node}={size // PAGE}" for node, size in sorted(pages.items()) if size)
        total = sum(pages.values()) // PAGE
        maps = (
            "55d0c0000000 default file=/usr/bin/qemu-system-x86_64 mapped=900 N0=900 kernelpagesize_kB=4\n"
            "55d0c2000000 default heap\n"
            f"7f0000000000 {policy} file={MEMORY}"
            + (f" dirty={total} active=0 {counts} kernelpagesize_kB=4\n" if total else "\n")
        )
        fresh = self.folder / "numa_maps.new"
        put(fresh, maps)
        os.replace(fresh, self.folder / "numa_maps")

    def _add(self, name: str, tid: int | None = None, cpus: CpuSet | None = None) -> int:
        """A new thread with the next id."""
        if tid is None:
            tid = self.last_id = self.last_id + 1
        folder = self.folder / "task" / str(tid)
        # A kernel shows a thread with all of its files at once.
        hidden = self.folder / "task" / f".{tid}"
        put(hidden / "comm", f"{name}\n")
        put(hidden / "stat", self._render_stat(tid, name))
        put(hidden / "status", self._render_status(tid, name, cpus or self._possible))
        os.rename(hidden, folder)
        return tid

    def _add_vcpu(self, cpus: CpuSet) -> None:
        number, tid = self._slots[self.vcpus], self.last_id + 1
        self._guest_s[tid] = BOOT_TICKS / USER_HZ
        self._add(f"CPU {number}/KVM" if self._evidence is VmEvidence.NAMES else COMM, cpus=cpus)

    def _ids(self) -> Iterator[int]:
        return (int(name) for name in os.listdir(self.folder / "task") if name.isdecimal())

    def _name(self, tid: int) -> str:
        return (self.folder / "task" / str(tid) / "comm").read_text().strip()

    def _read(self, tid: int) -> CpuSet:
        text = (self.folder / "task" / str(tid) / "status").read_text()
        return CpuSet.parse(text.partition("\nCpus_allowed_list:")[2].partition("\n")[0])

    def _render_stat(self, tid: int, name: str) -> str:
        guest_s = self._guest_s.get(tid, 0.0) if self._evidence is VmEvidence.GUEST_TIME else 0.0
        ticks = round(guest_s * USER_HZ)
        flags = NO_SETAFFINITY if tid in self._fixed else 0
        return groups.render_stat(tid, name, started=self._started, user_ticks=ticks, guest_ticks=ticks, flags=flags)

    def _render_status(self, tid: int, name: str, cpus: CpuSet) -> str:
        mask = trees.render_mask(cpus, max(self._possible, default=0) + 1)
        return (
            f"Name:\t{name}\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t{self.pid}\nNgid:\t0\nPid:\t{tid}\nPPid:\t1\n"
            f"Cpus_allowed:\t{mask}\nCpus_allowed_list:\t{cpus}\nvoluntary_ctxt_switches:\t1\n"
        )

    def _write_status(self, tid: int, name: str, cpus: CpuSet) -> None:
        fresh = self.folder / "task" / str(tid) / "status.fresh"
        put(fresh, self._render_status(tid, name, cpus))
        os.replace(fresh, fresh.with_name("status"))
