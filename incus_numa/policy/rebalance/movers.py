"""Instances that may be moved by measured load, and why others may not, whatever would be gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, InstanceKey, Policy
from incus_numa.model.rebalance import Held, History, Hold
from incus_numa.policy.desk import Desk
from incus_numa.policy.rebalance.price import Price, memory_of
from incus_numa.settings import RebalanceSettings


@dataclass(kw_only=True, slots=True, eq=False)
class Mover:
    """An instance that may be moved: its measured load, the mask of its nodes, and its memory by node.

    `prices` are those that were asked for, by the mask of the nodes to go to.
    """

    instance: Instance
    load_cpus: float
    nodes: int
    memory: Mapping[int, int]
    prices: dict[int, Price] = field(default_factory=dict)

    @property
    def key(self) -> InstanceKey:
        """The instance's key."""
        return self.instance.key

    @property
    def is_wide(self) -> bool:
        """Whether it is on more than one node."""
        return bool(self.nodes & (self.nodes - 1))

    @property
    def size_bytes(self) -> int:
        """Memory that nodes must have room for: its limit, else its use."""
        return self.instance.demand.memory_bytes or 0


def mover_of(desk: Desk, instance: Instance) -> Mover:
    """The mover that a placed instance is."""
    nodes = desk.ledger.entries[instance.key].nodes
    return Mover(
        instance=instance,
        load_cpus=max(0.0, desk.snapshot.load.cpus_by_instance.get(instance.key, 0.0)),
        nodes=nodes,
        memory=memory_of(instance, desk.observed(instance), NodeSet.from_mask(nodes)),
    )


def bound_to_stay(desk: Desk, instance: Instance) -> Held | None:
    """Why a managed instance is never moved, None if it may be."""
    found: tuple[Hold, str] | None = None
    decided = desk.observed(instance).decided
    if not instance.movable:
        found = Hold.NOT_MOVABLE, "user.numa.movable=false keeps it where it is"
    elif instance.demand.pinned_cpus is not None:
        found = Hold.PINNED, f"limits.cpu lists CPUs {instance.demand.pinned_cpus}"
    elif instance.demand.exclusive:
        found = Hold.EXCLUSIVE, "its CPUs are its own"
    elif instance.policy is Policy.NONE:
        found = Hold.POLICY, "policy none: it has the whole machine"
    elif instance.problem is not None:
        found = Hold.NOT_PLACED, instance.problem
    elif decided is None:
        found = Hold.NOT_PLACED, "no nodes were decided for it yet"
    elif not decided.nodes or not decided.nodes <= desk.ledger.nodes or not desk.ledger.cpus_of(decided.nodes):
        found = Hold.NOT_PLACED, f"nodes {decided.nodes} have no usable CPUs now; the next plan places it"
    return None if found is None else Held(key=instance.key, hold=found[0], detail=found[1])


def bound_for_now(
    desk: Desk, instance: Instance, history: History, now_s: float, limits: RebalanceSettings
) -> Held | None:
    """Why an instance that may be moved is not moved now, None if it may be."""
    key = instance.key
    if key not in desk.snapshot.load.cpus_by_instance:
        return Held(key=key, hold=Hold.UNKNOWN_LOAD, detail="its load is not known")
    since = now_s - history.moved_at_s.get(key, -float("inf"))
    if since < limits.cooldown_s:
        detail = f"moved {since:.0f} s ago: it stays for {limits.cooldown_s:.0f} s"
        return Held(key=key, hold=Hold.COOL_DOWN, detail=detail)
    return None


def sort_out(
    desk: Desk, instances: list[Instance], history: History, now_s: float, limits: RebalanceSettings
) -> tuple[list[Mover], list[Held]]:
    """Of managed instances those that may be moved now, and why the others may not."""
    movers: list[Mover] = []
    held: list[Held] = []
    for instance in instances:
        hold = bound_to_stay(desk, instance) or bound_for_now(desk, instance, history, now_s, limits)
        if hold is None:
            movers.append(mover_of(desk, instance))
        else:
            held.append(hold)
    return movers, held
