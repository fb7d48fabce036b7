"""Which CPUs share a core, an L3 cache and a socket, from `devices/system/cpu/cpuN/{topology,cache}`.

Groups are read once, by their lowest CPU: a machine of 4096 CPUs with 512 caches costs 512 reads for them.
Files: Documentation/admin-guide/cputopology.rst and Documentation/ABI/testing/sysfs-devices-system-cpu.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.cpuset import CpuSet
from incus_numa.topology.files import KernelFiles

CPU_DIR = "devices/system/cpu"
_TOPOLOGY = f"{CPU_DIR}/cpu{{}}/topology"
# Masks come first: where a mask and a list disagree, old kernels and the machines seen were wrong in the list.
_SIBLINGS = ("core_cpus", "thread_siblings", "core_cpus_list", "thread_siblings_list")
_SHARED = ("shared_cpu_map", "shared_cpu_list")


def read_cores(files: KernelFiles, online: CpuSet) -> dict[int, int]:
    """The core of every online CPU: the lowest online CPU that its thread siblings name.

    Core ids are not used: they repeat between the dies of a package and on machines without package ids.
    """
    core_of: dict[int, int] = {}
    for cpu in online:
        if cpu in core_of:
            continue
        siblings = files.cpus(_TOPOLOGY, _SIBLINGS, cpu)
        if siblings is None:
            files.notes.add(
                f"{files.shown}/{_TOPOLOGY}/core_cpus and thread_siblings are missing:"
                " expected a CPU mask, so each of these CPUs is taken as its own core",
                cpu,
            )
        _assign(files, core_of, cpu, _members(cpu, siblings, online), "thread_siblings")
    return core_of


def read_sockets(files: KernelFiles, core_of: Mapping[int, int]) -> dict[int, int | None]:
    """The package id of every core. None where the kernel does not know it: no file, or -1."""
    sockets: dict[int, int | None] = {}
    for core in sorted(set(core_of.values())):
        number = files.number(f"{_TOPOLOGY.format(core)}/physical_package_id")
        sockets[core] = None if number is None or number < 0 else number
        if number is None:
            files.notes.add(
                f"{files.shown}/{_TOPOLOGY}/physical_package_id is missing or malformed:"
                " expected a number, so the socket is unknown",
                core,
            )
    return sockets


def read_caches(files: KernelFiles, online: CpuSet, core_of: Mapping[int, int]) -> dict[int, int | None]:
    """The L3 of every online CPU: the lowest online CPU that shares it, None where there is no L3."""
    cache_of: dict[int, int] = {}
    none: dict[int, int | None] = {}
    for cpu in online:
        if cpu in cache_of or cpu in none:
            continue
        if core_of[cpu] in none:
            none[cpu] = None
            continue
        index = _l3_index(files, cpu)
        if index is None:
            none[cpu] = None
            continue
        shared = files.cpus(f"{CPU_DIR}/cpu{{}}/cache/index{index}", _SHARED, cpu)
        if shared is None:
            files.notes.add(
                f"{files.shown}/{CPU_DIR}/cpu{{}}/cache/index{index}/shared_cpu_map is missing or malformed:"
                " expected a CPU mask, so who shares the L3 is unknown",
                cpu,
            )
            none[cpu] = None
            continue
        _assign(files, cache_of, cpu, _members(cpu, shared, online), "shared_cpu_map")
    return {cpu: cache_of.get(cpu) for cpu in online}


def _l3_index(files: KernelFiles, cpu: int) -> int | None:
    """Which `cache/indexN` of a CPU is its L3; nearly always 3, after L1d, L1i and L2."""
    folder = f"{CPU_DIR}/cpu{cpu}/cache"
    if files.number(f"{folder}/index3/level") == 3:
        return 3
    for index in files.numbered(folder, "index") or ():
        if files.number(f"{folder}/index{index}/level") == 3:
            return index
    return None


def _members(cpu: int, named: CpuSet | None, online: CpuSet) -> CpuSet:
    """The CPU and those it names, online ones only. Kernels of ia64 name none at all for a private cache."""
    own = CpuSet((cpu,))
    return own if named is None else (named & online) | own


def _assign(files: KernelFiles, group_of: dict[int, int], cpu: int, members: CpuSet, what: str) -> None:
    for member in members:
        if member in group_of:
            files.notes.add(f"{what} of CPU {{}} contradicts that of a lower CPU, which is believed", cpu)
        else:
            group_of[member] = cpu
