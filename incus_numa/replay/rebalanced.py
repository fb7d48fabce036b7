"""Our steward: the planner at arrivals, then moves by measured load as the daemon decides them."""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.model.instance import Policy
from incus_numa.model.rebalance import History
from incus_numa.policy.rebalance import decision
from incus_numa.replay.ground import Ground, Look, Seat
from incus_numa.replay.planned import Planned
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings, RebalanceSettings


class Rebalanced:
    """All instances are movable. Hold time and cool-down are of simulated time.

    The use at a look is what the daemon's smoothed rates would have come to. It looks again when the hold time ends, or
    a cool-down while the load is uneven, else at the regular looks: nothing else could change its mind.
    """

    def __init__(self, ground: Ground, placement: PlacementSettings, limits: RebalanceSettings) -> None:
        self._planned = Planned(ground, placement, Policy.BALANCED, movable=True)
        self._placement, self._limits = placement, limits
        self._history = History()

    def arrive(self, stay: Stay, use: Mapping[str, float]) -> Mapping[str, Seat]:
        """As the planner places it, moving nobody. Nobody uses more than is committed, so use changes nothing."""
        return self._planned.arrive(stay)

    def depart(self, name: str) -> None:
        """Count the instance no longer."""
        self._planned.depart(name)

    def look(self, now_s: float, use: Mapping[str, float]) -> Look:
        """A pass by load."""
        found = decision.decide(self._planned.snapshot(use), self._history, now_s, self._placement, self._limits)
        self._history = found.history
        return Look(seats=self._planned.settle(found.plan), again_s=self._again(now_s))

    def restart(self, stay: Stay) -> Mapping[str, Seat]:
        """What was decided is decided again: nobody moves."""
        return {}

    def _again(self, now_s: float) -> float | None:
        """When the hold time ends, or else the cool-down of somebody while the load is uneven."""
        hot_since_s = self._history.hot_since_s.values()
        if not hot_since_s:
            return None
        ends = [at_s + self._limits.hold_s for at_s in hot_since_s]
        ends += [at_s + self._limits.cooldown_s for at_s in self._history.moved_at_s.values()]
        return min((end_s for end_s in ends if end_s > now_s), default=None)
