"""How much of each CPU instances claim: the rule behind the colours of CPUs in pictures of the machine.

An instance's vCPUs count evenly on the CPUs that it has, or where it has no list of its own on those of its nodes.
Without `limits.cpu` it claims none: on CPUs of its own it is told, and where it may run everywhere it is left out.
The dashboard's script draws by the same rule. Called by `picture`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Machine

FULL, OVER = 0.6, 1.001
"""A CPU of which so much is claimed counts as full, and one of which more is as overcommitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuUse:
    """One CPU: vCPUs that are claimed of it, by how many instances, and how many without limits.cpu may run on it."""

    vcpus: float = 0.0
    limited: int = 0
    unlimited: int = 0

    @property
    def level(self) -> int:
        """0 no instance, 1 in use, 2 full, 3 more vCPUs than CPUs."""
        if self.vcpus > OVER:
            return 3
        if self.vcpus >= FULL:
            return 2
        return int(self.limited + self.unlimited > 0)


def spread(machine: Machine, instances: Iterable[Mapping[str, Any]]) -> Mapping[int, CpuUse]:
    """The use of the CPUs that instances have, by CPU; `instances` are rows as the API has them."""
    found: dict[int, CpuUse] = {}
    everywhere = machine.online - machine.isolated
    for row in instances:
        own, vcpus = _cpus_of(machine, row), row["vcpus"]
        if vcpus is None and everywhere <= own:
            continue
        for cpu in own:
            had = found.get(cpu, CpuUse())
            found[cpu] = CpuUse(
                vcpus=had.vcpus + (0.0 if vcpus is None else min(1.0, vcpus / len(own))),
                limited=had.limited + (vcpus is not None),
                unlimited=had.unlimited + (vcpus is None),
            )
    return found


def _cpus_of(machine: Machine, row: Mapping[str, Any]) -> CpuSet:
    if row["cpus"]:
        return CpuSet.parse(row["cpus"])
    nodes = NodeSet.parse(row["nodes"] or "") & NodeSet(machine.node_by_id)
    return machine.cpus_of(nodes) - machine.isolated
