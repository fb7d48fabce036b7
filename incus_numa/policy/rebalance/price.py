"""What a move costs: a constant, and the memory that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.model.machine import LOCAL_DISTANCE, Machine
from incus_numa.model.snapshot import Observed
from incus_numa.policy import memory
from incus_numa.settings import RebalanceSettings

_GIB = 1 << 30


class Price(NamedTuple):
    """What a move costs in the potential's unit: `size_bytes` follow over a mean `distance` (None: unknown)."""

    value: float
    size_bytes: int
    distance: float | None


def memory_of(instance: Instance, observed: Observed, nodes: NodeSet) -> Mapping[int, int]:
    """Bytes by node: what was read, else the demand spread over its nodes, and nothing where that is unknown."""
    if observed.memory is not None:
        return observed.memory
    size = instance.demand.memory_bytes or 0
    return {node: size // len(nodes) for node in nodes} if size else {}


def price_of(
    machine: Machine,
    instance: Instance,
    has: Mapping[int, int],
    before: NodeSet,
    after: NodeSet,
    limits: RebalanceSettings,
) -> Price:
    """The price of a move. Memory follows as it does when applied (see steps): from everywhere to where it is bound,
    else from the nodes that are left to those that are not. A distance that is unknown counts as Machine.remoteness
    has it.
    """
    mems = memory.mems_for(machine, after, instance.memory)
    targets = list(mems or (after & machine.memory_nodes))
    staying = mems if mems is not None else machine.memory_nodes - (before - after)
    sources = [
        (node, size) for node, size in has.items() if size and node not in staying and node in machine.remoteness
    ]
    if not targets or not sources:
        return Price(limits.move_price, 0, None)
    far, total = machine.remoteness, sum(size for _, size in sources)
    ways = sum(size * (1 + far[node][target] / 2) for node, size in sources for target in targets) / len(targets)
    known = all(machine.distance(node, target) is not None for node, _ in sources for target in targets)
    value = limits.move_price + limits.gib_price * ways / _GIB
    # Memory that stays behind costs as much: it is used over that distance from then on.
    follows = 0 if instance.memory_stays else total
    return Price(value, follows, round(LOCAL_DISTANCE * ways / total, 3) if known else None)
