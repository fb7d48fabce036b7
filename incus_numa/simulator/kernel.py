"""The fake kernel: effective CPUs and memory follow what is written to a payload cgroup's cpuset files.

A plain folder cannot do that, so inotify tells when someone closed `cpuset.cpus` or `cpuset.mems` after writing (two
watches per group). What a kernel would refuse is put back. Started by the simulator; `incus` makes and removes groups.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from asyncinotify import Inotify, Mask

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.simulator import groups, trees
from incus_numa.simulator.groups import PAGE, Group, Process
from incus_numa.simulator.work import Work, Worker

CPUS, MEMS = "cpuset.cpus", "cpuset.mems"

ForeignWrite = Callable[[InstanceKey, str, str], None]
"""Called with the instance, the file's name and its new value when somebody else wrote it."""


class Kernel:
    """Owner of the trees below `directory`: `sys`, `proc` and `sys/fs/cgroup`."""

    def __init__(
        self, machine: Machine, directory: Path, *, watches: bool, tick_s: float | None, on_write: ForeignWrite
    ) -> None:
        self.machine = machine
        self.sysfs = directory / "sys"
        self.procfs = directory / "proc"
        self.cgroup = self.sysfs / "fs/cgroup"
        self.online = CpuSet(cpu.id for cpu in machine.cpus)
        self.groups: dict[InstanceKey, Group] = {}
        self.work = Work(machine, self.procfs, tick_s=tick_s)
        self.refused: list[tuple[InstanceKey, str, str]] = []
        self._trash = directory / "trash"
        self._on_write = on_write
        self._watches = watches
        self._inotify: Inotify | None = None
        self._watched: dict[Path, InstanceKey] = {}
        self._task: asyncio.Task[None] | None = None

    def boot(self) -> None:
        """Write all trees and start to watch."""
        trees.write_sysfs(self.sysfs, self.machine)
        trees.write_procfs(self.procfs, self.machine)
        groups.write_root(self.cgroup, self.online, self.machine.memory_nodes)
        if self._watches:
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
        group = Group(name=name, path=self.cgroup / name, pages=pages)
        groups.create_group(group, pid, self.online, self.machine.memory_nodes)
        groups.write_process(self.procfs, pid, f"/{name}/init.scope", "systemd")
        self.groups[key] = group
        self.work.start(key, Worker(group=group))
        if self._inotify is not None:
            for file in (CPUS, MEMS):
                self._inotify.add_watch(group.path / file, Mask.CLOSE_WRITE)
                self._watched[group.path / file] = key

    def create_vm(self, key: InstanceKey, pid: int, vcpus: int) -> None:
        """A QEMU process with its vCPU threads; a VM has no cgroup of its own."""
        process = Process(pid=pid, comm="qemu-system-x86", vcpus=vcpus)
        names = (process.comm,) * vcpus
        groups.write_process(self.procfs, pid, "/system.slice/incus.service", process.comm, names)
        self.work.start(key, Worker(process=process))

    def remove(self, key: InstanceKey, pid: int) -> None:
        """The instance's processes ended, so its cgroup goes away."""
        self.work.end(key)
        groups.remove_process(self.procfs, pid)
        group = self.groups.pop(key, None)
        if group is not None:
            for file in (CPUS, MEMS):
                self._watched.pop(group.path / file, None)
            groups.remove_group(group, self._trash)

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
        groups.write_root(self.cgroup, online, self.machine.memory_nodes)
        self.work.set_online(online)
        for group in self.groups.values():
            self._follow_cpus(group)

    def settle(self) -> None:
        """Take over everything that was written, without waiting for inotify."""
        for key, group in tuple(self.groups.items()):
            self._take(key, group, CPUS)
            self._take(key, group, MEMS)

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
            group.cpus = cpus
            self._follow_cpus(group)
            return
        mems = NodeSet.parse(text)
        if not mems <= self.machine.memory_nodes:
            raise ValueError(f"{mems} has nodes without memory")
        group.mems = mems
        groups.rewrite(group.path / "cpuset.mems.effective", str(mems or self.machine.memory_nodes))
        if mems:
            group.pages = move_pages(group.pages, mems)
            groups.rewrite(group.path / "memory.numa_stat", groups.render_numa_stat(group.pages).rstrip("\n"))

    def _follow_cpus(self, group: Group) -> None:
        effective = group.cpus & self.online or self.online
        groups.rewrite(group.path / "cpuset.cpus.effective", str(effective))


def move_pages(pages: dict[int, int], mems: NodeSet) -> dict[int, int]:
    """Bytes per node after `cpuset.mems` was written: what is elsewhere is spread evenly over the allowed nodes."""
    moved = {node: size if node in mems else 0 for node, size in pages.items()}
    stray = sum(pages.values()) - sum(moved.values())
    share = stray // len(mems) // PAGE * PAGE
    for node in mems:
        moved[node] = moved.get(node, 0) + share
    moved[mems.lowest()] += stray - share * len(mems)
    return moved
