"""The stewards that can be replayed, by name. Called by the benchmark and by tests.

never            our planner at arrivals, and nothing after them.
rebalanced       our planner at arrivals, then moves by measured load.
incus            Incus' rule at arrivals, and nothing after them.
incus-restarts   the same, and nodes are chosen anew at every restart.
numad            numad's daemon, with arrivals bound by their vCPUs, then evaluated again and again by what they use.
numad-unbound    numad's daemon, with arrivals left unbound until they use enough to be looked at, as it does itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from incus_numa.model.instance import Policy
from incus_numa.replay.ground import Ground, Look, Placer, Seat, Steward
from incus_numa.replay.peer_incus import IncusCount
from incus_numa.replay.peer_numad_daemon import NumadDaemon
from incus_numa.replay.planned import Planned
from incus_numa.replay.rebalanced import Rebalanced
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings, RebalanceSettings

REBALANCED = "rebalanced"
"""Ours."""

STILL = ("never", "incus")
"""Those that move nobody by nature."""


class Still:
    """A placer that leaves everybody where they are."""

    def __init__(self, placer: Placer) -> None:
        self._placer = placer

    def arrive(self, stay: Stay, use: Mapping[str, float]) -> Mapping[str, Seat]:
        """As the placer does, whatever the load."""
        return self._placer.arrive(stay)

    def depart(self, name: str) -> None:
        """As the placer does."""
        self._placer.depart(name)

    def look(self, now_s: float, use: Mapping[str, float]) -> Look:
        """Nothing follows from any load."""
        return Look()

    def restart(self, stay: Stay) -> Mapping[str, Seat]:
        """Nothing follows from a restart."""
        return {}


class Restarted(Still):
    """A placer that has to choose anew at every restart, with the instance itself not counted."""

    def restart(self, stay: Stay) -> Mapping[str, Seat]:
        """As if it departed and arrived."""
        self._placer.depart(stay.name)
        return self._placer.arrive(stay)


_MAKE: Mapping[str, Callable[[Ground, PlacementSettings, RebalanceSettings], Steward]] = {
    "never": lambda ground, placement, _: Still(Planned(ground, placement, Policy.BALANCED)),
    REBALANCED: Rebalanced,
    "incus": lambda ground, _placement, _limits: Still(IncusCount(ground)),
    "incus-restarts": lambda ground, _placement, _limits: Restarted(IncusCount(ground)),
    "numad": lambda ground, _placement, _limits: NumadDaemon(ground, binds_arrivals=True),
    "numad-unbound": lambda ground, _placement, _limits: NumadDaemon(ground, binds_arrivals=False),
}

NAMES = tuple(_MAKE)
"""Every name, our own stewards first."""


def steward(name: str, ground: Ground, placement: PlacementSettings, limits: RebalanceSettings) -> Steward:
    """A new steward, which is one of NAMES, on an empty machine."""
    return _MAKE[name](ground, placement, limits)
