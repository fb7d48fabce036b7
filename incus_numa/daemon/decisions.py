"""Who was decided to be where. Used by the reconciler, which carries it out (see `settling`).

Deciding and noting the decision happen in one go, without waiting in between, so that everything planned later counts
it. When an instance gets exclusive CPUs, those that have some of them are planned again in the same decision.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from incus_numa.cpuset import CpuSet
from incus_numa.daemon import owners
from incus_numa.daemon.moves import Moves
from incus_numa.daemon.observe import World
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Placement, Plan
from incus_numa.model.snapshot import Decided, Snapshot
from incus_numa.policy import check

log = logging.getLogger(__name__)

MOST_ROUNDS = 4
"""How often those in the way of exclusive CPUs are planned again in one decision; the next pass goes on."""


class Decisions:
    """Placements of the instances that have one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._placements: dict[InstanceKey, Placement] = {}
        self._freed = False
        self._claimed = False

    @property
    def placements(self) -> Mapping[InstanceKey, Placement]:
        """All placements that are in force."""
        return self._placements

    def get(self, key: InstanceKey) -> Placement | None:
        """Where an instance was decided to be, None without a decision."""
        return self._placements.get(key)

    def decide(self, keys: frozenset[InstanceKey], moves: Moves) -> Plan:
        """Plan for the keys, and for those in the way of exclusive CPUs; nothing of a plan that breaks a promise."""
        return self.make_room(self._decide_once(keys, moves), moves)

    def make_room(self, plan: Plan, moves: Moves) -> Plan:
        """The plan, and in it new decisions about those that have exclusive CPUs of others."""
        for _ in range(MOST_ROUNDS):
            crowding = self._crowding(moves)
            if not crowding:
                break
            plan = owners.joined(plan, self._decide_once(crowding, moves))
        return replace(plan, warnings=(*plan.warnings, *moves.warnings(self._crowding(moves)))) if moves.left else plan

    def note(self, plan: Plan, snapshot: Snapshot) -> Plan:
        """Take a plan as decided; what was made of it is returned: nothing if it breaks a promise."""
        problems = check.check_plan(plan, snapshot, self._world.placement)
        if problems:
            # A plan that breaks a promise is a bug of ours; nothing of it is applied.
            log.error("plan not applied: %s", "; ".join(problems))
            return Plan(warnings=problems)
        for placement in plan.placements:
            before = self._placements.get(placement.key)
            owned = before.cpus if before is not None and before.exclusive else CpuSet()
            taken = placement.cpus if placement.exclusive else CpuSet()
            self._freed |= not owned <= taken
            self._claimed |= not taken <= owned
            self._placements[placement.key] = placement
            self._world.share(placement.key, shared=False)
            self._world.decide(placement.key, decided_of(placement))
        for rejection in plan.rejections:
            self.drop(rejection.key)
            self._world.share(rejection.key, shared=True)
        return plan

    def drop(self, key: InstanceKey) -> None:
        """Forget a decision; nothing happens if there is none."""
        before = self._placements.pop(key, None)
        self._freed |= before is not None and before.exclusive

    def take_freed(self) -> bool:
        """Whether exclusive CPUs became usable since this was asked: those that have too few may get them now."""
        freed, self._freed = self._freed, False
        return freed

    def take_claimed(self) -> bool:
        """Whether CPUs became exclusive since this was asked: other threads of virtual machines have to leave them."""
        claimed, self._claimed = self._claimed, False
        return claimed

    def _crowding(self, moves: Moves) -> frozenset[InstanceKey]:
        return owners.crowding(self._placements | moves.left, (seen.instance for seen in self._world.all_seen()))

    def _decide_once(self, keys: frozenset[InstanceKey], moves: Moves) -> Plan:
        return self.note(*moves.plan(self._world, keys))


def decided_of(placement: Placement) -> Decided:
    """What of a placement is kept for as long as the instance runs; memory follows from it."""
    return Decided(nodes=placement.nodes, cpus=placement.cpus)
