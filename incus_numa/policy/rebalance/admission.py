"""Whether nodes may take what would go there: CPUs, memory and huge pages together, policies, and ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.rebalance import Hold
from incus_numa.policy import candidates
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need
from incus_numa.policy.ledger import Commitment
from incus_numa.policy.policies import RULES
from incus_numa.policy.rebalance.measured import EQUAL
from incus_numa.policy.rebalance.movers import Mover
from incus_numa.policy.rooms import bits
from incus_numa.quantities import render_bytes

Goes = Sequence[tuple[Mover, int]]
"""Movers and the masks of the nodes that each goes to, all at once."""

Refusal = tuple[Hold, str]


class Admission:
    """Asks the ledger of a desk, and puts everything back as it was."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._needs: dict[InstanceKey, Need] = {}

    def may_fit(self, goes: Goes) -> bool:
        """False if these certainly cannot go to one node each. Much less work than to ask for a refusal."""
        ledger = self._desk.ledger
        for mover, mask in goes:
            size, node = mover.size_bytes, mask.bit_length() - 1
            if mask & (mask - 1):
                continue
            if size:
                freed = sum([other.size_bytes for other, _ in goes if other.nodes == mask])
                if ledger.rooms.open(node) + freed < size:
                    return False
            if ledger.cpu_count[node] < min(mover.instance.demand.vcpus or 1, ledger.total_cpus):
                return False
        return True

    def refuse(self, goes: Goes) -> Refusal | None:
        """What keeps these from going there together, None when nothing does.

        Memory that is only used needs room, too. What ties one of them to nodes must not pull it back, compared with
        where it is now.
        """
        ledger = self._desk.ledger
        pulled = [self._pull(mover, mover.nodes) for mover, _ in goes]
        entries = {mover.key: ledger.entries[mover.key] for mover, _ in goes}
        for key in entries:
            ledger.release(key)
        refusal = self._seat(goes, entries)
        if refusal is None:
            after = [self._pull(mover, nodes) for mover, nodes in goes]
            for (mover, nodes), here, there in zip(goes, pulled, after, strict=True):
                if there > here + EQUAL:
                    refusal = Hold.TIES, _tied(mover, nodes, here, there)
                    break
        for key in entries:
            ledger.release(key)
        for key, entry in entries.items():
            ledger.commit(key, entry)
        return refusal

    def admit(self, goes: Goes) -> None:
        """Count them where they go."""
        ledger = self._desk.ledger
        for mover, nodes in goes:
            ledger.commit(mover.key, ledger.entries[mover.key]._replace(nodes=nodes, cpus=0))

    def _seat(self, goes: Goes, entries: Mapping[InstanceKey, Commitment]) -> Refusal | None:
        """Count movers, who are not counted, where they go; stops at the first that may not."""
        desk = self._desk
        for mover, mask in goes:
            nodes, need = NodeSet.from_mask(mask), self._need(mover.instance)
            if not candidates.fits(desk.ledger, need, nodes) or self._lacks_kind(mover, mask):
                return Hold.DOES_NOT_FIT, _unfit(nodes, need)
            forbidden = RULES[mover.instance.policy].forbids(desk, mover.instance, nodes)
            if forbidden is not None:
                return Hold.POLICY, forbidden.detail
            desk.ledger.commit(mover.key, entries[mover.key]._replace(nodes=mask, cpus=0))
        return None

    def _need(self, instance: Instance) -> Need:
        need = self._needs.get(instance.key)
        if need is None:
            need = replace(self._desk.firm_need(instance), memory_bytes=instance.demand.memory_bytes or 0)
            self._needs[instance.key] = need
        return need

    def _pull(self, mover: Mover, mask: int) -> float:
        """T of scoring, for a mover on a set of nodes, the others being where they are counted."""
        desk = self._desk
        if not desk.ties.is_tied(mover.instance):
            return 0.0
        pull = desk.ties.pull(mover.instance, desk.ledger, desk.settings)
        return sum(pull.get(node, 0.0) for node in bits(mask)) / mask.bit_count()

    def _lacks_kind(self, mover: Mover, mask: int) -> bool:
        """Whether it would have fewer cores of the kind that it prefers than it could have where it is."""
        cores, desk = mover.instance.demand.cores, self._desk
        own = None if cores is None else desk.machine.cpus_by_kind.get(cores)
        if own is None:
            return False
        here, there = (
            sum((desk.ledger.usable[node] & own).mask.bit_count() for node in bits(nodes))
            for nodes in (mover.nodes, mask)
        )
        return there < min(here, self._need(mover.instance).cpus)


def _unfit(nodes: NodeSet, need: Need) -> str:
    what = f"{need.cpus} vCPU{'s' if need.cpus != 1 else ''}"
    if need.memory_bytes:
        what += f" and {render_bytes(need.memory_bytes)}"
    return f"node{'s' if len(nodes) > 1 else ''} {nodes} cannot take its {what} beside the others"


def _tied(mover: Mover, mask: int, here: float, there: float) -> str:
    instance, nodes = mover.instance, NodeSet.from_mask(mask)
    names = ["its devices"] if instance.device_nodes else []
    names += [f"group {instance.group}"] if instance.group is not None else []
    names += [f"avoiding {', '.join(instance.avoid)}"] if instance.avoid else []
    return (
        f"{' and '.join(names)} would cost {there:.2f} on node{'s' if len(nodes) > 1 else ''} {nodes}, {here:.2f} now"
    )
