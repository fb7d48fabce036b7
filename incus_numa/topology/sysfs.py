"""The machine as the kernel describes it below a sysfs directory: the one door to the host's topology.

Called by the daemon at start and at every resync, by `topology` and by `check`. The directory is a parameter, so that
a snapshot of another machine reads like the host itself.
"""

from __future__ import annotations

from pathlib import Path

from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import Cpu, Machine, Node
from incus_numa.topology.cores import CPU_DIR, read_caches, read_cores, read_sockets
from incus_numa.topology.files import KernelFiles
from incus_numa.topology.kinds import read_kinds
from incus_numa.topology.meminfo import parse_meminfo
from incus_numa.topology.nodes import read_nodes

PRESENT = f"{CPU_DIR}/present"
ISOLATED = f"{CPU_DIR}/isolated"
PARTITIONS = "fs/cgroup/cpuset.cpus.isolated"
"""CPUs of all isolated cpuset partitions: Documentation/admin-guide/cgroup-v2.rst, "Cpuset"."""
OPEN = "fs/cgroup/cpuset.cpus.effective"
"""Online CPUs that no cpuset partition took from the root of the hierarchy."""


def read_machine(sysfs: Path, procfs: Path | None = None, *, name: str = "") -> Machine:
    """The machine below `sysfs` (the host's is /sys), with `procfs` for the memory of a machine without nodes.

    Never raises for what is there: a missing or wrong file is a sentence in `warnings` and an unknown value.
    """
    files = KernelFiles(sysfs, "/sys")
    online = _read_online(files)
    nodes = read_nodes(files, online)
    if not nodes and online:
        nodes = (_read_only_node(files, online, procfs),)
    return Machine(
        name=name,
        nodes=nodes,
        cpus=_read_cpus(files, online, nodes),
        online=online,
        isolated=_read_isolated(files, online),
        # The kernel's own list of offline CPUs has those as well that might be plugged in one day.
        offline=(files.cpu_list(PRESENT) or online) - online,
        warnings=files.notes.sentences(),
    )


def read_present(sysfs: Path) -> CpuSet | None:
    """All CPUs that are plugged in, online or not; None where the kernel does not list them."""
    return KernelFiles(sysfs, "/sys").cpu_list(PRESENT) or None


def _read_online(files: KernelFiles) -> CpuSet:
    """Online CPUs: the kernel's list, or where it is missing every CPU that has no `online` file saying 0."""
    listed = files.cpu_list(f"{CPU_DIR}/online")
    if listed:
        return listed
    present = files.numbered(CPU_DIR, "cpu") or ()
    found = CpuSet(cpu for cpu in present if files.text(f"{CPU_DIR}/cpu{cpu}/online") != "0")
    if found:
        files.notes.add(
            f"{files.shown}/{CPU_DIR}/online gives no CPU list such as 0-3,8: the CPUs' directories are believed"
        )
    else:
        files.notes.add(f"{files.shown}/{CPU_DIR} has no CPUs: expected a sysfs directory, so nothing is known")
    return found


def _read_isolated(files: KernelFiles, online: CpuSet) -> CpuSet:
    """CPUs that the kernel keeps for others: by isolcpus=, or as some cgroup has them in a cpuset partition.

    The list in sysfs has those of isolcpus= only. A partition that is not isolated takes its CPUs from the root as
    well, so that no payload cgroup can run there.
    """
    isolated = files.cpu_list(ISOLATED)
    if isolated is None:
        files.notes.add(f"{files.shown}/{ISOLATED} is not readable: no CPU is taken as isolated")
    in_partitions = files.cpu_list(PARTITIONS) or CpuSet()
    free = files.cpu_list(OPEN)
    taken = online - free if free else CpuSet()
    return (isolated or CpuSet()) | in_partitions | taken


def _read_only_node(files: KernelFiles, online: CpuSet, procfs: Path | None) -> Node:
    """Node 0 of a machine whose kernel has no NUMA support."""
    files.notes.add("no NUMA information: /sys/devices/system/node has no nodes, so all CPUs are taken as node 0")
    text = KernelFiles(procfs, "/proc").text("meminfo") if procfs is not None else None
    info = parse_meminfo(text or "")
    if info.total_bytes is None:
        files.notes.add("/proc/meminfo is missing or has no MemTotal line: the memory is unknown")
    return Node(id=0, cpus=online, memory_bytes=info.total_bytes, free_bytes=info.free_bytes)


def _read_cpus(files: KernelFiles, online: CpuSet, nodes: tuple[Node, ...]) -> tuple[Cpu, ...]:
    home: dict[int, int] = {}
    for node in nodes:
        for cpu in node.cpus:
            if home.setdefault(cpu, node.id) != node.id:
                files.notes.add("CPU {} belongs to several nodes: it is counted in the lowest", cpu)
    for cpu in online:
        if cpu not in home:
            files.notes.add("CPU {} belongs to no node", cpu)
    core_of = read_cores(files, online)
    sockets = read_sockets(files, core_of)
    caches = read_caches(files, online, core_of)
    kinds = read_kinds(files, online)
    return tuple(
        Cpu(
            id=cpu,
            node=home.get(cpu),
            socket=sockets[core_of[cpu]],
            core=core_of[cpu],
            l3=caches[cpu],
            kind=kinds.get(cpu),
        )
        for cpu in online
    )
