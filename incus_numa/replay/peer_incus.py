"""Incus' rule for `limits.cpu.nodes=balanced`, as of 6.10 and 6.0.4: it counts instances.

`ceil(limits.cpu / (CPUs / nodes))` nodes with the fewest instances, all nodes when that is more than there are (as
7.0.2 does; 6.0.4 crashes there). `CPUs` counts isolated ones, too. It knows nothing of vCPUs, memory, distance and
load, and moves nobody. Read in the source of Incus (`balanceNUMANodes`).

Ours, where it leaves something open: ties, which Go's random map order decides, go to the lowest id; only nodes with
usable CPUs are chosen from; its CPUs inside the nodes, picked by counting, too, count as even over the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.replay.ground import Ground, Seat
from incus_numa.replay.stays import Stay


class IncusCount:
    """The fewest instances first."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._instances = dict.fromkeys(ground.cpus, 0)
        self._per_node = max(1, len(ground.machine.cpus) // len(ground.cpus))
        self._seats: dict[str, Seat] = {}

    def arrive(self, stay: Stay) -> Mapping[str, Seat]:
        """Never refuses and never moves."""
        wanted = -(-stay.vcpus // self._per_node)
        ordered = sorted(self._instances, key=lambda node: (self._instances[node], node))
        seat = self._ground.spread(ordered[:wanted], self._ground.weight(stay))
        for node in seat.nodes:
            self._instances[node] += 1
        self._seats[stay.name] = seat
        return {stay.name: seat}

    def depart(self, name: str) -> None:
        """Count the instance no longer."""
        for node in self._seats.pop(name).nodes:
            self._instances[node] -= 1
