"""Our own policies: each arrival is planned as the daemon plans a start, with everybody else counted where they are."""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.model.instance import Demand, Instance, InstanceKey, MemoryMode, Policy
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import Standing
from incus_numa.replay.ground import Ground, Seat
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings

PROJECT = "trace"


class Planned:
    """The planner with one policy for all instances."""

    def __init__(self, ground: Ground, settings: PlacementSettings, policy: Policy) -> None:
        self._ground = ground
        self._policy = policy
        self._memory = MemoryMode(settings.memory)
        self._standing = Standing(ground.machine, settings)
        self._seats: dict[str, Seat] = {}

    def arrive(self, stay: Stay) -> Mapping[str, Seat]:
        """Plan the newcomer. Whatever else the plan places elsewhere than it was is part of the answer."""
        new = instance_of(stay, self._policy, self._memory)
        snapshot = Snapshot(machine=self._ground.machine, instances=(new,), observed={})
        plan = planner.place_new(self._standing, snapshot)
        changed = {}
        for placement in plan.placements:
            nodes, cpus = placement.nodes, placement.cpus
            if placement.key == new.key:
                decided = Decided(nodes=nodes, cpus=cpus)
                self._standing.see(new, Observed(nodes=nodes, cpus=cpus, mems=placement.mems, decided=decided))
            seat = self._ground.spread(nodes, self._ground.weight(stay))
            if placement.key == new.key or seat.nodes != self._seats[placement.key.name].nodes:
                changed[placement.key.name] = seat
        self._seats |= changed
        return changed

    def depart(self, name: str) -> None:
        """Count the instance no longer."""
        self._standing.drop(InstanceKey(PROJECT, name))
        del self._seats[name]


def instance_of(stay: Stay, policy: Policy, memory: MemoryMode) -> Instance:
    """A managed container that needs what the trace says."""
    demand = Demand(vcpus=stay.vcpus, weight=float(stay.vcpus), memory_bytes=stay.memory_bytes)
    return Instance(
        key=InstanceKey(PROJECT, stay.name), managed=True, demand=demand, policy=policy, memory=memory, movable=False
    )
