"""How Incus chooses by itself: nodes at start, CPUs at every rewrite. Pure but for the generator that is passed in.

The rules are those of incusd's `balanceNUMANodes` and `deviceTaskBalance`; Go's random map order is a shuffle here.
Called by `incus`, and by whoever wants to show what the server's own rule does to a machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.simulator.options import SimulatorOptions


class ServerPanicError(Exception):
    """The server's process dies at this point, as Go programs do on an index out of range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuClaim:
    """What the CPU scheduler knows of one running container.

    `pool` is the CPUs of its nodes, empty when it has none; `count` a number of CPUs to take from the pool (or from
    all); `pinned` an explicit list, used when `count` is None.
    """

    key: InstanceKey
    pool: CpuSet
    count: int | None = None
    pinned: CpuSet | None = None


def parse_limit(text: str) -> int | CpuSet | None:
    """`limits.cpu`: a count, a list of CPUs, or None when unset. Raises ValueError when it is neither."""
    if not text:
        return None
    return int(text) if text.isdecimal() else CpuSet.parse(text)


def choose_nodes(
    machine: Machine, limit: str, used: Mapping[int, int], *, options: SimulatorOptions, random: Random
) -> NodeSet:
    """The nodes the server picks at start: those named by the fewest instances, one per `total CPUs / nodes` vCPUs.

    Before Incus 6.0.4 it is one in any case. `used` counts the other instances that name a node. Raises
    ServerPanicError when it would need more nodes than there are and the options say that it does not check.
    """
    nodes = [node.id for node in machine.nodes if node.cpus]
    wanted = parse_limit(limit)
    vcpus = 1 if wanted is None else wanted if isinstance(wanted, int) else len(wanted)
    cpus_per_node = max(1, len(machine.cpus) // len(nodes))
    count = 1 if options.picks_one_node else max(1, math.ceil(vcpus / cpus_per_node))
    if count > len(nodes) and options.panics:
        raise ServerPanicError(f"slice bounds out of range [:{count}] with capacity {len(nodes)}")
    random.shuffle(nodes)
    nodes.sort(key=lambda node: used.get(node, 0))
    return NodeSet(nodes[:count])


def claim_cpus(key: InstanceKey, config: Mapping[str, str], machine: Machine, usable: CpuSet) -> CpuClaim | None:
    """What a running container's expanded config asks of the CPU scheduler. None: the scheduler skips it.

    Raises ValueError for a `limits.cpu` that does not parse, which silently ends the server's whole pass.
    """
    wanted = config.get("limits.cpu.nodes", "")
    if wanted == "balanced":
        wanted = config.get("volatile.cpu.nodes", "")
        if not wanted:
            return None
    pool = CpuSet()
    if wanted:
        try:
            nodes = NodeSet.parse(wanted)
        except ValueError:
            return None
        for node in nodes:
            if node in machine.node_by_id:
                pool |= machine.node_by_id[node].cpus & usable
    limit = parse_limit(config.get("limits.cpu", ""))
    if limit is None:
        return CpuClaim(key=key, pool=pool, pinned=pool or usable)
    if isinstance(limit, int):
        return CpuClaim(key=key, pool=pool, count=min(limit, len(usable)))
    return CpuClaim(key=key, pool=pool, pinned=limit & usable)


def share_cpus(claims: Iterable[CpuClaim], usable: CpuSet, random: Random) -> Iterator[tuple[InstanceKey, CpuSet]]:
    """One pass of the CPU scheduler: the CPUs of every container, in random order.

    It counts containers per CPU, knows nothing of cores, caches or how even the nodes are used, and serves containers
    with nodes or lists before all others. A container that would get nothing is left as it is.
    """
    used = dict.fromkeys(usable, 0)
    ordered = list(claims)
    random.shuffle(ordered)
    ordered.sort(key=lambda claim: claim.count is not None and not claim.pool)
    for claim in ordered:
        if claim.count is None:
            chosen = list(claim.pinned or ())
        else:
            chosen = list(claim.pool or usable)
            random.shuffle(chosen)
            chosen.sort(key=used.__getitem__)
            chosen = chosen[: claim.count]
        for cpu in chosen:
            used[cpu] += 1
        if chosen:
            yield claim.key, CpuSet(chosen)
