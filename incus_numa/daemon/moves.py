"""How many placed instances one pass may move. Called by the reconciler wherever it plans.

A plan counts on every move in it, so one move cannot be taken out of it: what is beyond the limit is left out of what
is planned, where it counts as it is, and the others are planned again.
"""

from __future__ import annotations

from incus_numa.cpuset import CpuSet
from incus_numa.daemon.observe import World
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Placement, Plan
from incus_numa.model.snapshot import Decided, Snapshot

_NAMED = 5
"""So many instances are named in a sentence, the others are counted."""


class Moves:
    """The moves of one pass, no more than `most`, and who is left where it is for that. None is no limit."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._before: dict[InstanceKey, Decided | None] = {}
        self._moved: set[InstanceKey] = set()
        self.left: dict[InstanceKey, Placement] = {}
        """What those have that are left where they are."""

    def plan(self, world: World, keys: frozenset[InstanceKey]) -> tuple[Plan, Snapshot]:
        """A plan for these instances but those that would move beyond the limit, and its snapshot.

        An instance that a pass decides about twice moves once, and one that had no place before does not move.
        """
        plan, snapshot = world.plan(keys)
        if self._most is None:
            return plan, snapshot
        while beyond := self._moving(plan, snapshot)[self._most - len(self._moved - keys) :]:
            for key in beyond:
                self.left[key] = _as_is(key, snapshot)
            keys -= frozenset(beyond)
            plan, snapshot = world.plan(keys)
        moving = self._moving(plan, snapshot)
        for key in (one.key for one in plan.placements):
            self.left.pop(key, None)
            self._moved.discard(key)
        self._moved.update(moving)
        return plan, snapshot

    def warnings(self, crowding: frozenset[InstanceKey]) -> tuple[str, ...]:
        """Who is left where it is, and which of them on exclusive CPUs of others: those that are `crowding`."""
        if not self.left:
            return ()
        limit = f"no more than {self._most} move{'' if self._most == 1 else 's'}"
        said = f"left where they are, {limit} being allowed: {_names(self.left)}"
        shared = [key for key in self.left if key in crowding]
        stay = f"still on exclusive CPUs of others, which only a move could change: {_names(shared)}"
        return (said, stay) if shared else (said,)

    def _moving(self, plan: Plan, snapshot: Snapshot) -> list[InstanceKey]:
        """Who is not on the nodes that it had before this pass; those that were moved already come first."""
        found = []
        for one in plan.placements:
            before = self._before.setdefault(one.key, snapshot.observed[one.key].decided)
            if before is not None and before.nodes != one.nodes:
                found.append(one.key)
        return sorted(found, key=lambda key: (key not in self._moved, key))


def _as_is(key: InstanceKey, snapshot: Snapshot) -> Placement:
    observed = snapshot.observed[key]
    cpus = (observed.decided and observed.decided.cpus) or observed.cpus or CpuSet()
    return Placement(key=key, nodes=snapshot.machine.nodes_of(cpus), cpus=cpus)


def _names(keys: list[InstanceKey] | dict[InstanceKey, Placement]) -> str:
    names = [str(key) for key in sorted(keys)]
    more = len(names) - _NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED])} and {more} more"
