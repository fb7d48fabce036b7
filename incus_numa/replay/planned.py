"""Our own policies: each arrival is planned as the daemon plans a start, with everybody else counted where they are."""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.model.instance import Demand, Instance, InstanceKey, MemoryMode, Policy
from incus_numa.model.load import Load
from incus_numa.model.plan import Placement, Plan
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import Standing
from incus_numa.replay.ground import Ground, Seat
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings

PROJECT = "trace"


class Planned:
    """The planner with one policy for all instances."""

    def __init__(self, ground: Ground, settings: PlacementSettings, policy: Policy, *, movable: bool = False) -> None:
        self._ground = ground
        self._policy = policy
        self._movable = movable
        self._memory = MemoryMode(settings.memory)
        self._standing = Standing(ground.machine, settings)
        self._instances: dict[InstanceKey, Instance] = {}
        self._observed: dict[InstanceKey, Observed] = {}
        self._seats: dict[str, Seat] = {}

    def arrive(self, stay: Stay) -> Mapping[str, Seat]:
        """Plan the newcomer. Whatever else the plan places elsewhere than it was is part of the answer."""
        new = instance_of(stay, self._policy, self._memory, movable=self._movable)
        plan = planner.place_new(self._standing, Snapshot(machine=self._ground.machine, instances=(new,), observed={}))
        if any(one.key == new.key for one in plan.placements):
            self._instances[new.key] = new
        return self.settle(plan)

    def depart(self, name: str) -> None:
        """Count the instance no longer."""
        key = InstanceKey(PROJECT, name)
        self._standing.drop(key)
        del self._seats[name], self._instances[key], self._observed[key]

    def snapshot(self, use: Mapping[str, float]) -> Snapshot:
        """Everybody as they are now; `use` has the CPUs that they keep busy, by name."""
        return Snapshot(
            machine=self._ground.machine,
            instances=tuple(self._instances.values()),
            observed=dict(self._observed),
            load=Load(cpus_by_instance={InstanceKey(PROJECT, name): cpus for name, cpus in use.items()}),
        )

    def settle(self, plan: Plan) -> Mapping[str, Seat]:
        """Count everybody whom the plan places there. The answer is who is on other nodes than before."""
        changed = {}
        for placement in plan.placements:
            name, instance = placement.key.name, self._instances[placement.key]
            seat = self._ground.spread(placement.nodes, min(instance.demand.weight, self._ground.total_cpus))
            observed = _settled(placement, seat, instance.demand.memory_bytes)
            self._standing.see(instance, observed)
            self._observed[placement.key] = observed
            if name not in self._seats or self._seats[name].nodes != seat.nodes:
                changed[name] = seat
        self._seats |= changed
        return changed


def _settled(placement: Placement, seat: Seat, memory_bytes: int | None) -> Observed:
    """What is observed once a placement has been applied, and all its memory is where its vCPUs are."""
    return Observed(
        nodes=placement.nodes,
        cpus=placement.cpus,
        mems=placement.mems,
        decided=Decided(nodes=placement.nodes, cpus=placement.cpus),
        memory={node: round((memory_bytes or 0) * part) for node, part in seat.parts.items()},
    )


def instance_of(stay: Stay, policy: Policy, memory: MemoryMode, *, movable: bool = False) -> Instance:
    """A managed container that needs what the trace says."""
    demand = Demand(vcpus=stay.vcpus, weight=float(stay.vcpus), memory_bytes=stay.memory_bytes)
    return Instance(
        key=InstanceKey(PROJECT, stay.name), managed=True, demand=demand, policy=policy, memory=memory, movable=movable
    )
