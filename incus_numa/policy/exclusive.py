"""Exclusive CPUs (`user.numa.exclusive=true`): an instance has its CPUs for itself.

CPUs are given away only as far as those that we placed do not need them: one that asks for a number of CPUs keeps as
many on each of its nodes as it has, any other at least one on each of its nodes, and one that has the whole machine at
least one of that. Which ones they are may change, the nodes do not. Pinned CPUs are never given away. Unmanaged
instances go where the server lets them, which nobody can keep off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.plan import Reason, Rejection
from incus_numa.policy import cpus
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.keeping import Keepers
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.policies import RULES


def stay(desk: Desk, owners: Sequence[Instance], keepers: Keepers) -> set[InstanceKey]:
    """Those that may keep the exclusive CPUs they have; the others are no longer counted."""
    # What one that does not stay has may be what another one was given, so none is counted before it is judged.
    entries = {owner.key: desk.ledger.release(owner.key) for owner in owners}
    staying = set()
    for owner in owners:
        entry, decided = entries[owner.key], desk.observed(owner).decided
        if entry is None or decided is None or not decided.cpus or len(decided.cpus) != owner.demand.vcpus:
            continue
        if (
            decided.nodes <= desk.ledger.nodes
            and _may_have(desk.ledger, decided.nodes, decided.cpus)
            and RULES[owner.policy].forbids(desk, owner, decided.nodes) is None
            and keepers.take(owner, decided.nodes)
        ):
            desk.ledger.commit(owner.key, entry)
            staying.add(owner.key)
    return staying


def _may_have(ledger: Ledger, nodes: NodeSet, cpus: CpuSet) -> bool:
    """Whether nobody else needs any of the CPUs, which are usable ones of the nodes."""
    room, mask = _spare(ledger), cpus.mask & ~_pinned(ledger)
    here = {node: ledger.usable[node].mask & mask for node in nodes}
    return (
        sum(here.values()) == cpus.mask
        and all(own.bit_count() <= room[node] for node, own in here.items())
        and (len(cpus) < ledger.total_cpus or not _anybody_everywhere(ledger))
    )


def find(desk: Desk, owner: Instance) -> tuple[Candidate, CpuSet] | Rejection:
    """Nodes and CPUs for an instance that is not counted, or its refusal."""
    asked = owner.demand.vcpus or 1
    free, room = _without_pinned(desk.ledger), _spare(desk.ledger)
    usable = {node: CpuSet.from_mask(_lowest(own.mask, room[node])) for node, own in free.usable.items()}
    reduced = replace(desk, ledger=free.with_cpus(usable))
    if reduced.ledger.total_cpus < asked or (asked == desk.ledger.total_cpus and _anybody_everywhere(desk.ledger)):
        return _refusal(owner, room, desk.empty.total_cpus)
    rule = RULES[owner.policy]
    found = rule.find(reduced, owner, reduced.need(owner))
    if isinstance(found, Rejection) and owner.demand.memory_is_usage:
        found = rule.find(reduced, owner, reduced.firm_need(owner))
    if isinstance(found, Rejection):
        return found
    shares = cpus.even_shares(reduced.ledger, found.nodes, asked)
    chosen = cpus.choose_exclusive(free, found.nodes, desk.wish(owner, found.nodes, desk.observed(owner).cpus), shares)
    return _refusal(owner, room, desk.empty.total_cpus) if chosen is None else (found, chosen)


def _spare(ledger: Ledger) -> dict[int, int]:
    """How many CPUs of each node no other instance needs. Others than their owners may share pinned CPUs, too."""
    needed, pinned = dict.fromkeys(ledger.usable, 0), _pinned(ledger)
    of_node = {node.id: node.cpus.mask for node in ledger.machine.nodes}
    for entry in ledger.entries.values():
        if entry.exclusive or entry.pinned or entry.anywhere or not entry.chosen:
            continue
        for node in needed:
            if entry.nodes >> node & 1:
                own = (entry.cpus & of_node[node]).bit_count()
                needed[node] = max(needed[node], own if entry.firm else min(own, 1))
    return {
        node: max(0, min((usable.mask & ~pinned).bit_count(), len(usable) - needed[node]))
        for node, usable in ledger.usable.items()
    }


def _anybody_everywhere(ledger: Ledger) -> bool:
    """Whether an instance has all CPUs of the machine, of which one at least has to be left."""
    return any(entry.anywhere and entry.cpus for entry in ledger.entries.values())


def _without_pinned(ledger: Ledger) -> Ledger:
    pinned = _pinned(ledger)
    if not pinned:
        return ledger
    return ledger.with_cpus({node: CpuSet.from_mask(own.mask & ~pinned) for node, own in ledger.usable.items()})


def _pinned(ledger: Ledger) -> int:
    found = 0
    for entry in ledger.entries.values():
        if entry.pinned:
            found |= entry.cpus
    return found


def _lowest(mask: int, count: int) -> int:
    """So many of the lowest bits that are set."""
    kept = 0
    for _ in range(count):
        low = mask & -mask
        kept |= low
        mask ^= low
    return kept


def _refusal(owner: Instance, room: dict[int, int], total: int) -> Rejection:
    most = max(room, key=lambda node: (room[node], -node))
    detail = (
        f"needs {owner.demand.vcpus} exclusive CPUs; of {total} usable CPUs {sum(room.values())} are needed by "
        f"nobody else (most on node {most}: {room[most]})"
    )
    return Rejection(key=owner.key, reason=Reason.NO_EXCLUSIVE_CPUS, detail=detail)
