"""Which CPUs are of performance and which of efficiency cores, from `devices/cpu_core`, `devices/cpu_atom` and
`cpuN/cpu_capacity`.

Files: Documentation/ABI/testing/sysfs-devices-system-cpu, and the `cpus` file of each kind's performance counters on
Intel's hybrid machines. Frequencies are not used: base frequencies differ between equal cores where firmware favours
some, and highest frequencies where some reach a higher turbo.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import CoreKind
from incus_numa.topology.cores import CPU_DIR
from incus_numa.topology.files import KernelFiles

_PERFORMANCE = "devices/cpu_core/cpus"
_EFFICIENCY = ("devices/cpu_atom/cpus", "devices/cpu_lowpower/cpus")
_CLEARLY_LESS = (4, 5)
"""Capacities of which the smaller is above this part of the larger are taken for one design at two frequencies."""


def read_kinds(files: KernelFiles, online: CpuSet) -> Mapping[int, CoreKind]:
    """The kind of every online CPU that has one; empty where all cores are of one kind or nothing tells."""
    found = _by_counters(files, online)
    return _by_capacity(files, online) if found is None else found


def _by_counters(files: KernelFiles, online: CpuSet) -> dict[int, CoreKind] | None:
    """Kinds by the two kinds of performance counters, None where the kernel does not list both."""
    performance = files.cpu_list(_PERFORMANCE)
    lists = [listed for name in _EFFICIENCY if (listed := files.cpu_list(name)) is not None]
    if performance is None or not lists:
        return None
    efficiency = CpuSet()
    for listed in lists:
        efficiency |= listed
    performance, efficiency = performance & online, efficiency & online
    both = performance & efficiency
    if both:
        files.notes.add(f"{files.shown}/devices/cpu_core and cpu_atom both list CPUs {both}: no CPU's kind is known")
        return {}
    if not performance or not efficiency:
        return {}
    for cpu in online - performance - efficiency:
        files.notes.add(f"{files.shown}/devices/cpu_core and cpu_atom do not list CPU {{}}: its kind is unknown", cpu)
    kinds = dict.fromkeys(performance, CoreKind.PERFORMANCE) | dict.fromkeys(efficiency, CoreKind.EFFICIENCY)
    return {cpu: kinds[cpu] for cpu in online if cpu in kinds}


def _by_capacity(files: KernelFiles, online: CpuSet) -> dict[int, CoreKind]:
    """Kinds by what the kernel's scheduler takes each CPU for: those above the widest gap are performance cores.

    So of three tiers the middle one belongs to the tier that it is nearer to by ratio, and to the lower one of equals.
    """
    if files.text(f"{CPU_DIR}/cpu{online.lowest()}/cpu_capacity" if online else "") is None:
        return {}
    capacities: dict[int, int] = {}
    for cpu in online:
        capacity = files.number(f"{CPU_DIR}/cpu{cpu}/cpu_capacity")
        if capacity is None or capacity <= 0:
            files.notes.add(
                f"{files.shown}/{CPU_DIR}/cpu{{}}/cpu_capacity is missing or malformed:"
                " expected a positive number, so no CPU's kind is known",
                cpu,
            )
            continue
        capacities[cpu] = capacity
    tiers = sorted(set(capacities.values()))
    if len(capacities) < len(online) or len(tiers) < 2:
        return {}
    low, high = max(pairwise(tiers), key=lambda gap: (gap[1] / gap[0], gap[1]))
    part, whole = _CLEARLY_LESS
    if low * whole > high * part:
        return {}
    return {
        cpu: CoreKind.PERFORMANCE if capacity >= high else CoreKind.EFFICIENCY for cpu, capacity in capacities.items()
    }
