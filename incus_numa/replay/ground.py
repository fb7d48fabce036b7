"""What every policy is given, and what it answers: ground, seat, look, and the placer or steward between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
    """Where an instance is: its nodes, and how many vCPUs of its weight each node with CPUs carries.

    One that is not `bound` is there only because nobody has chosen nodes for it yet.
    """

    nodes: NodeSet
    vcpus: Mapping[int, float]
    bound: bool = True

    @property
    def parts(self) -> Mapping[int, float]:
        """Which part of the instance each node with CPUs carries; they add up to 1."""
        total = sum(self.vcpus.values())
        return {node: vcpus / total for node, vcpus in self.vcpus.items()}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What came of looking at the measured load: new seats by name, and when to look again.

    `again_s` is later than the look; None leaves it to the next regular one.
    """

    seats: Mapping[str, Seat] = field(default_factory=dict)
    again_s: float | None = None


class Steward(Protocol):
    """A policy that may seat instances elsewhere while they run. It remembers who is where.

    `use` has the CPUs that everybody who is seated keeps busy, by name.
    """

    def arrive(self, stay: Stay, use: Mapping[str, float]) -> Mapping[str, Seat]:
        """As a placer does; `use` has the newcomer's, too."""

    def depart(self, name: str) -> None:
        """The instance, which was seated, leaves."""

    def look(self, now_s: float, use: Mapping[str, float]) -> Look:
        """Decide by measured load."""

    def restart(self, stay: Stay) -> Mapping[str, Seat]:
        """Seats that the restart of an instance decided, by name; it was seated until now."""


def survey(machine: Machine, settings: PlacementSettings) -> Ground:
    """The ground of a machine. Raises ConfigError when it has no usable CPU."""
    usable = usable_cpus(machine, CpuSet.parse(settings.reserved_cpus))
    cpus = {node: len(usable[node]) for node in sorted(usable) if usable[node]}
    if not cpus:
        raise ConfigError(("the machine has no usable CPU: all are offline, isolated or reserved",))
    return Ground(machine=machine, cpus=cpus)
