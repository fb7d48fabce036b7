"""What every policy is given, and what it answers: the ground, the seat, and the placer between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import ConfigError
from incus_numa.model.machine import Machine
from incus_numa.policy.ledger import usable_cpus
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """Where an instance is: its nodes, and how many vCPUs of its weight each node with CPUs carries."""

    nodes: NodeSet
    vcpus: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A machine, and how many usable CPUs its nodes have: those that have any, by ascending id."""

    machine: Machine
    cpus: Mapping[int, int]

    @cached_property
    def total_cpus(self) -> int:
        """Usable CPUs of the machine."""
        return sum(self.cpus.values())

    @cached_property
    def most_cpus(self) -> int:
        """Usable CPUs of the largest node."""
        return max(self.cpus.values())

    def weight(self, stay: Stay) -> int:
        """The vCPUs that an instance commits: no more than the whole machine."""
        return min(stay.vcpus, self.total_cpus)

    def spread(self, nodes: Iterable[int], vcpus: float) -> Seat:
        """A seat whose vCPUs are spread over the nodes by their usable CPUs."""
        chosen = NodeSet(nodes)
        here = {node: self.cpus[node] for node in chosen if node in self.cpus}
        total = sum(here.values())
        return Seat(nodes=chosen, vcpus={node: vcpus * count / total for node, count in here.items()})


class Placer(Protocol):
    """A policy at work: it remembers who is where."""

    def arrive(self, stay: Stay) -> Mapping[str, Seat]:
        """Seats that this arrival decided, by name: that of the newcomer, unless it is refused, and of others moved."""

    def depart(self, name: str) -> None:
        """The instance, which was seated, leaves."""


def survey(machine: Machine, settings: PlacementSettings) -> Ground:
    """The ground of a machine. Raises ConfigError when it has no usable CPU."""
    usable = usable_cpus(machine, CpuSet.parse(settings.reserved_cpus))
    cpus = {node: len(usable[node]) for node in sorted(usable) if usable[node]}
    if not cpus:
        raise ConfigError(("the machine has no usable CPU: all are offline, isolated or reserved",))
    return Ground(machine=machine, cpus=cpus)
