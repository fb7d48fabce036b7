"""Refuses states that a real host cannot have, so that no test passes on an impossible one.

`read_world` takes a picture of the files and the server's records, `check_world` judges it (pure). Called by the
simulator's `problems`, which tests and the scenario driver ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.simulator import groups, legacy_groups
from incus_numa.simulator.kernel import Kernel
from incus_numa.simulator.options import Hierarchy
from incus_numa.simulator.records import Record
from incus_numa.simulator.trees import USER_HZ
from incus_numa.simulator.virtual import VmThreads


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenInstance:
    """One instance as the server has it. A locked one may be half way between two states."""

    key: InstanceKey
    type: InstanceType = InstanceType.CONTAINER
    running: bool
    locked: bool = False
    pid: int = 0
    nodes: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenGroup:
    """One payload cgroup as its files say, text as read. `waiting_us` is how long some and all tasks waited.

    With cgroup v1, pages need not be where `mems` says: `pages_follow` says whether they move there.
    """

    cpus: str = ""
    mems: str = ""
    effective_cpus: str
    effective_mems: str
    pids: frozenset[int] = frozenset()
    pages: Mapping[int, int] = field(default_factory=dict)
    used_us: int = 0
    waiting_us: tuple[int, int] = (0, 0)
    pages_follow: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Everything that is judged together. `processes` maps the ids in `/proc` to their cgroups.

    `machines` are the threads of virtual machines, `partition` are CPUs that a cpuset partition has for itself.
    `busy_ticks` is what all CPUs were busy since boot, in hundredths of a second.
    """

    machine: Machine
    online: CpuSet
    partition: CpuSet = field(default_factory=CpuSet)
    instances: tuple[SeenInstance, ...]
    groups: Mapping[str, SeenGroup]
    processes: Mapping[int, str]
    machines: Mapping[InstanceKey, VmThreads] = field(default_factory=dict)
    busy_ticks: int = 0


def read_world(kernel: Kernel, records: Iterable[Record]) -> World:
    """The host as its files and the server's records say."""
    folders = sorted(path for path in kernel.payloads.iterdir() if path.name.startswith("lxc.payload."))
    return World(
        machine=kernel.machine,
        online=kernel.online,
        partition=kernel.partition,
        instances=tuple(
            SeenInstance(
                key=record.key,
                type=record.type,
                running=record.running,
                locked=record.lock is not None,
                pid=record.pid,
                nodes=record.config.get("volatile.cpu.nodes", ""),
            )
            for record in records
        ),
        groups={
            folder.name: _read_group(folder)
            if kernel.hierarchy is Hierarchy.V2
            else _read_legacy_group(kernel.cgroup, folder)
            for folder in folders
        },
        processes={
            int(path.name): (path / "cgroup").read_text().strip()
            for path in kernel.procfs.iterdir()
            if path.name.isdecimal()
        },
        machines={key: vm.threads() for key, vm in kernel.machines.items()},
        busy_ticks=_read_busy(kernel.procfs),
    )


def check_world(world: World) -> tuple[str, ...]:
    """What is impossible in it, one sentence each; empty when all is well."""
    return tuple(_check_pids(world)) + tuple(
        problem for instance in world.instances for problem in _check_instance(world, instance)
    ) + tuple(
        f"{name}: {problem}" for name, group in world.groups.items() for problem in _check_group(world, group)
    ) + tuple(_check_owners(world)) + tuple(_check_time(world))  # fmt: skip


def _check_pids(world: World) -> Iterator[str]:
    owners: dict[int, InstanceKey] = {}
    for instance in world.instances:
        if instance.pid and instance.pid in owners:
            yield f"{owners[instance.pid]} and {instance.key} have the same pid {instance.pid}"
        owners[instance.pid] = instance.key


def _check_instance(world: World, instance: SeenInstance) -> Iterator[str]:
    yield from _check_nodes(world, instance)
    name = groups.group_name(instance.key)
    group = world.groups.get(name)
    if instance.locked:
        return
    if not instance.running:
        if group is not None:
            yield f"{instance.key} is stopped and has a cgroup"
        if instance.pid:
            yield f"{instance.key} is stopped and has pid {instance.pid}"
        return
    if not instance.pid:
        yield f"{instance.key} is running without a pid"
    elif instance.pid not in world.processes:
        yield f"{instance.key} is running, but its pid {instance.pid} does not exist"
    if instance.type is InstanceType.VIRTUAL_MACHINE:
        if group is not None:
            yield f"{instance.key} is a virtual machine and has a payload cgroup"
        yield from _check_threads(world, instance)
    elif group is None:
        yield f"{instance.key} is running without a cgroup"
    elif instance.pid not in group.pids:
        yield f"{instance.key}: its pid {instance.pid} is not in its cgroup"
    elif f"/{name}" not in world.processes.get(instance.pid, ""):
        yield f"{instance.key}: the kernel says that pid {instance.pid} is in another cgroup"


def _check_threads(world: World, instance: SeenInstance) -> Iterator[str]:
    threads = world.machines.get(instance.key)
    if threads is None or not threads.vcpus:
        yield f"{instance.key} is running without a vCPU thread"
        return
    possible = CpuSet(cpu.id for cpu in world.machine.cpus)
    for tid, cpus in {**threads.vcpus, **threads.others}.items():
        if not cpus <= possible:
            yield f"{instance.key}: thread {tid} may run on CPU {cpus - possible}, which does not exist"
        if not cpus & world.online:
            yield f"{instance.key}: thread {tid} may run on CPUs {cpus or 'none'}, none of which is online"


def _check_nodes(world: World, instance: SeenInstance) -> Iterator[str]:
    try:
        nodes = NodeSet.parse(instance.nodes)
    except ValueError as exc:
        yield f"{instance.key}: volatile.cpu.nodes: {exc}"
        return
    unknown = nodes - NodeSet(world.machine.node_by_id)
    if unknown:
        yield f"{instance.key}: volatile.cpu.nodes names node {unknown}, which does not exist"


def _check_group(world: World, group: SeenGroup) -> Iterator[str]:
    try:
        cpus, effective = CpuSet.parse(group.cpus), CpuSet.parse(group.effective_cpus)
        mems, effective_mems = NodeSet.parse(group.mems), NodeSet.parse(group.effective_mems)
    except ValueError as exc:
        yield str(exc)
        return
    possible = CpuSet(cpu.id for cpu in world.machine.cpus)
    memory = world.machine.memory_nodes
    if not cpus <= possible:
        yield f"cpuset.cpus names CPU {cpus - possible}, which does not exist"
    if not effective:
        yield "cpuset.cpus.effective is empty"
    if not effective <= world.online:
        yield f"cpuset.cpus.effective names CPU {effective - world.online}, which is offline"
    # A set without any CPU that is online falls back to the parent's.
    free = world.online - world.partition or world.online
    if effective != (cpus & free or free):
        yield f"cpuset.cpus.effective is {effective}, but cpuset.cpus is {str(cpus) or 'empty'}"
    if not mems <= memory:
        yield f"cpuset.mems names node {mems - memory}, which has no memory"
    if effective_mems != (mems or memory):
        yield f"cpuset.mems.effective is {effective_mems}, but cpuset.mems is {str(mems) or 'empty'}"
    stray = NodeSet(node for node, size in group.pages.items() if size) - effective_mems
    if stray and group.pages_follow:
        yield f"memory.numa_stat has pages on node {stray}, which cpuset.mems does not allow"
    if group.waiting_us[1] > group.waiting_us[0]:
        yield f"cpu.pressure: all tasks waited {group.waiting_us[1]} us, and some only {group.waiting_us[0]} us"


def _check_owners(world: World) -> Iterator[str]:
    owned = {groups.group_name(instance.key) for instance in world.instances}
    for name in world.groups.keys() - owned:
        yield f"{name}: a cgroup of no instance"


def _check_time(world: World) -> Iterator[str]:
    used_ticks = sum(group.used_us for group in world.groups.values()) * USER_HZ // 10**6
    # Ticks are rounded down for each CPU.
    if used_ticks > world.busy_ticks + len(world.machine.cpus):
        yield f"instances have used {used_ticks} ticks of CPU time, and all CPUs were busy for {world.busy_ticks} only"


def _read_busy(procfs: Path) -> int:
    user, _, system, *_ = (procfs / "stat").read_text().split("\n", 1)[0].split()[1:]
    return int(user) + int(system)


def _read_legacy_group(mount: Path, folder: Path) -> SeenGroup:
    pages: dict[int, int] = {}
    total = (mount / legacy_groups.MEMORY / folder.name / "memory.numa_stat").read_text().splitlines()[0]
    for word in total.split()[1:]:
        node, _, count = word.partition("=")
        pages[int(node[1:])] = int(count) * groups.PAGE
    used = (mount / legacy_groups.TIME / folder.name / "cpuacct.usage").read_text()
    return SeenGroup(
        cpus=(folder / "cpuset.cpus").read_text(),
        mems=(folder / "cpuset.mems").read_text(),
        effective_cpus=(folder / "cpuset.effective_cpus").read_text(),
        effective_mems=(folder / "cpuset.effective_mems").read_text(),
        pids=frozenset(int(pid) for pid in (folder / "cgroup.procs").read_text().split()),
        pages=pages,
        used_us=int(used) // 1000,
        pages_follow=(folder / "cpuset.memory_migrate").read_text().strip() == "1",
    )


def _read_group(folder: Path) -> SeenGroup:
    pages: dict[int, int] = {}
    for line in (folder / "memory.numa_stat").read_text().splitlines():
        for word in line.split()[1:]:
            node, _, size = word.partition("=")
            pages[int(node[1:])] = pages.get(int(node[1:]), 0) + int(size)
    usage = (folder / "cpu.stat").read_text().splitlines()[0]
    some, full = (folder / "cpu.pressure").read_text().splitlines()
    procs = [folder / "cgroup.procs", *folder.glob("*/cgroup.procs")]
    return SeenGroup(
        cpus=(folder / "cpuset.cpus").read_text(),
        mems=(folder / "cpuset.mems").read_text(),
        effective_cpus=(folder / "cpuset.cpus.effective").read_text(),
        effective_mems=(folder / "cpuset.mems.effective").read_text(),
        pids=frozenset(int(pid) for path in procs for pid in path.read_text().split()),
        pages=pages,
        used_us=int(usage.split()[1]),
        waiting_us=(int(some.rpartition("=")[2]), int(full.rpartition("=")[2])),
    )
