"""The fake kernel: effective CPUs and memory follow what is written to a payload cgroup's cpuset files.

A plain folder cannot do that, so inotify tells when someone closed `cpuset.cpus` or `cpuset.mems` after writing (two
watches per group). What a kernel would refuse is put back. Started by the simulator; `incus` makes and removes groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from asyncinotify import Inotify, Mask

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.simulator import groups, legacy_groups, trees
from incus_numa.simulator.groups import PAGE, Group
from incus_numa.simulator.legacy_groups import LegacyGroup
from incus_numa.simulator.options import Hierarchy
from incus_numa.simulator.virtual import VirtualMachine
from incus_numa.simulator.work import Work, Worker

CPUS, MEMS = "cpuset.cpus", "cpuset.mems"

ForeignWrite = Callable[[InstanceKey, str, str], None]
"""Called with the instance, the file's name and its new value when somebody else wrote it."""


class Kernel:
    """Owner of the trees below `directory`: `sys`, `proc` and `sys/fs/cgroup`."""

    def __init__(
        self,
        machine: Machine,
        directory: Path,
        *,
        watches: bool,
        tick_s: float | None,
        on_write: ForeignWrite,
        hierarchy: Hierarchy = Hierarchy.V2,
        born_inside: bool = False,
    ) -> None:
        self.machine = machine
        self.sysfs = directory / "sys"
        self.procfs = directory / "proc"
        self.cgroup = self.sysfs / "fs/cgroup"
        self.hierarchy = hierarchy
        self.online = CpuSet(cpu.id for cpu in machine.cpus)
        self.partition = CpuSet()
        self.groups: dict[InstanceKey, Group] = {}
        self.machines: dict[InstanceKey, VirtualMachine] = {}
        self.work = Work(machine, self.procfs, tick_s=tick_s)
        # Slices of memory are moved in threads, beside the event loop that takes over what was written.
        self.memory = threading.Lock()
        self.refused: list[tuple[InstanceKey, str, str]] = []
        self._trash = directory / "trash"
        self._on_write = on_write
        self._watches = watches
        self._born_inside = born_inside
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inotify: Inotify | None = None
        self._watched: dict[Path, InstanceKey] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def payloads(self) -> Path:
        """The folder with the payload cgroups, as far as they are about CPUs and memory nodes."""
        return self.cgroup if self.hierarchy is Hierarchy.V2 else self.cgroup / legacy_groups.CPUSETS

    @property
    def open_cpus(self) -> CpuSet:
        """Online CPUs that no cpuset partition has for itself: all that a payload cgroup can have."""
        return self.online - self.partition or self.online

    def boot(self) -> None:
        """Write all trees and start to watch."""
        trees.write_sysfs(self.sysfs, self.machine)
        trees.write_procfs(self.procfs, self.machine)
        self._write_root(self.online)
        if self._watches:
            self._loop = asyncio.get_running_loop()
            self._inotify = Inotify()
            self._task = asyncio.create_task(self._watch(self._inotify), name="fake kernel")

    async def halt(self) -> None:
        """Stop watching and counting time. The trees stay."""
        await self.work.halt()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._inotify is not None:
            self._inotify.close()

    def create(self, key: InstanceKey, pid: int, pages: dict[int, int]) -> None:
        """A new payload cgroup with its memory, and its init process."""
        name = groups.group_name(key)
        group = self._new_group(name, pages)
        group.create(pid, self.open_cpus, self.machine.memory_nodes)
        group.given = NodeSet() if self._born_inside else self.machine.memory_nodes
        groups.write_process(self.procfs, pid, group.membership, "systemd")
        self.groups[key] = group
        self.work.start(key, Worker(group=group))
        if self._inotify is not None:
            for file in (CPUS, MEMS):
                self._inotify.add_watch(group.path / file, Mask.CLOSE_WRITE)
                self._watched[group.path / file] = key

    def create_vm(self, key: InstanceKey, machine: VirtualMachine) -> None:
        """A QEMU process; a VM has no cgroup of its own."""
        self.machines[key] = machine
        self.work.start(key, Worker(machine=machine))

    def remove(self, key: InstanceKey, pid: int) -> None:
        """The instance's processes ended, so its cgroup goes away."""
        self.work.end(key)
        groups.remove_process(self.procfs, pid)
        self.machines.pop(key, None)
        group = self.groups.pop(key, None)
        if group is not None:
            for file in (CPUS, MEMS):
                self._watched.pop(group.path / file, None)
            group.remove(self._trash)

    def set_cpus(self, key: InstanceKey, cpus: CpuSet) -> None:
        """The server writes `cpuset.cpus`; nothing happens when the group is gone."""
        group = self.groups.get(key)
        if group is None:
            return
        group.cpus = cpus
        groups.rewrite(group.path / CPUS, str(cpus))
        self._follow_cpus(group)

    def set_online(self, online: CpuSet) -> None:
        """CPU hotplug: `/sys` and all effective sets follow, configured sets stay."""
        self.online = online
        trees.write_online(self.sysfs, self.machine, online)
        self._follow_all()

    def set_partition(self, cpus: CpuSet) -> None:
        """Somebody made a cgroup with these CPUs an isolated cpuset partition; an empty set ends it."""
        self.partition = cpus
        self._follow_all()

    def set_machine(self, machine: Machine) -> None:
        """Nodes, CPUs or memory were plugged in or taken out. Pages of a node that is gone move to the others."""
        online = self.online | CpuSet(cpu.id for cpu in machine.cpus) - CpuSet(cpu.id for cpu in self.machine.cpus)
        trees.remove_gone(self.sysfs, self.machine, machine)
        self.machine, self.online = machine, online & CpuSet(cpu.id for cpu in machine.cpus)
        trees.write_online(self.sysfs, machine, self.online)
        trees.write_meminfo(self.procfs, machine)
        self.work.set_machine(machine)
        self._follow_all()
        for group in self.groups.values():
            self._follow_mems(group)
        for vm in self.machines.values():
            vm.follow_possible(CpuSet(cpu.id for cpu in machine.cpus))
            if not NodeSet(vm.pages) <= machine.memory_nodes:
                with self.memory:
                    vm.set_pages(move_pages(vm.pages, NodeSet(vm.pages), machine.memory_nodes))

    def _follow_all(self) -> None:
        """The root's sets and all effective CPUs follow what is online and free."""
        self._write_root(self.open_cpus)
        self.work.set_online(self.online, self.open_cpus)
        for group in self.groups.values():
            self._follow_cpus(group)
        for vm in self.machines.values():
            vm.follow_online(self.open_cpus)

    def settle(self) -> None:
        """Take over everything that was written, without waiting for inotify."""
        for key, group in tuple(self.groups.items()):
            self._take(key, group, CPUS)
            self._take(key, group, MEMS)

    def write(self, path: Path, lines: Sequence[str]) -> None:
        """Write lines into a file one after the other; each is taken over at once. Not in the event loop's thread."""
        for line in lines:
            path.write_text(f"{line}\n")
            if self._loop is None:
                self.settle()
            else:
                asyncio.run_coroutine_threadsafe(self._settle_soon(), self._loop).result()

    async def _settle_soon(self) -> None:
        self.settle()

    async def _watch(self, inotify: Inotify) -> None:
        async for event in inotify:
            key = self._watched.get(event.path) if event.path is not None else None
            group = self.groups.get(key) if key is not None else None
            if key is not None and group is not None and event.path is not None:
                self._take(key, group, event.path.name)

    def _take(self, key: InstanceKey, group: Group, file: str) -> None:
        path = group.path / file
        try:
            text = path.read_text()
        except FileNotFoundError:
            return
        # A writer that truncates first leaves an empty file for a moment; a kernel file always ends with a line end.
        if not text or text.strip() == str(group.cpus if file == CPUS else group.mems):
            return
        try:
            self._accept(group, file, text)
        except ValueError:
            self.refused.append((key, file, text.strip()))
            groups.rewrite(path, str(group.cpus if file == CPUS else group.mems))
        else:
            self._on_write(key, file, text.strip())

    def _accept(self, group: Group, file: str, text: str) -> None:
        """Apply what was written. Raises ValueError for what the kernel answers with EINVAL or ENOSPC."""
        if not text.strip() and (group.cpus if file == CPUS else group.mems):
            raise ValueError("a group with processes cannot go back to an empty set")
        if file == CPUS:
            cpus = CpuSet.parse(text)
            if not cpus <= CpuSet(cpu.id for cpu in self.machine.cpus):
                raise ValueError(f"{cpus} has CPUs that are not possible")
            if not group.accepts(cpus, self.open_cpus):
                raise ValueError(f"{cpus} has CPUs that are offline")
            group.cpus = cpus
            self._follow_cpus(group)
            return
        mems = NodeSet.parse(text)
        if not mems <= self.machine.memory_nodes:
            raise ValueError(f"{mems} has nodes without memory")
        group.mems = mems
        self._follow_mems(group)

    def _follow_mems(self, group: Group) -> None:
        effective = group.mems & self.machine.memory_nodes or self.machine.memory_nodes
        group.follow_mems(effective)
        gone = NodeSet(group.pages) - self.machine.memory_nodes
        left = gone | group.given if group.moves_memory else gone
        if left:
            with self.memory:
                group.pages = move_pages(group.pages, left, effective)
                group.write_pages()
        # A set that changes nothing is not told to the processes.
        if effective != self.machine.memory_nodes or group.given:
            group.given = effective

    def _follow_cpus(self, group: Group) -> None:
        group.follow_cpus(self.open_cpus)

    def _write_root(self, cpus: CpuSet) -> None:
        if self.hierarchy is not Hierarchy.V2:
            legacy_groups.write_roots(self.cgroup, self.hierarchy, cpus, self.machine.memory_nodes)
            return
        groups.write_root(self.cgroup, cpus, self.machine.memory_nodes)
        groups.show(self.cgroup / "cpuset.cpus.isolated", str(self.partition & self.online))

    def _new_group(self, name: str, pages: dict[int, int]) -> Group:
        path = self.payloads / name
        if self.hierarchy is Hierarchy.V2:
            return Group(name=name, path=path, pages=pages)
        return LegacyGroup(name=name, path=path, pages=pages, mount=self.cgroup, hierarchy=self.hierarchy)


def move_pages(pages: dict[int, int], sources: NodeSet, mems: NodeSet) -> dict[int, int]:
    """Bytes per node after `cpuset.mems` was written: what is on other sources is spread evenly over these nodes."""
    moved = {node: 0 if node in sources - mems else size for node, size in pages.items()}
    stray = sum(pages.values()) - sum(moved.values())
    share = stray // len(mems) // PAGE * PAGE
    for node in mems:
        moved[node] = moved.get(node, 0) + share
    moved[mems.lowest()] += stray - share * len(mems)
    return moved
