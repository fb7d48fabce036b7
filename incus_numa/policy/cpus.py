"""Which CPUs inside the chosen nodes: even over the nodes, of the kind of cores asked for, least loaded core first,
whole cores before siblings (`smt = "spread"`) or filled cores (`smt = "pack"`), one L3 before two, and what it has
where that is not worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import CoreKind
from incus_numa.policy import whole_cores
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.picking import LEAST_PART, UNIT, Picker, units

Pick = Callable[[int, int], int]
"""Picks so many CPUs of a mask, which has no fewer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuWish:
    """How many CPUs, the weight they commit, the SMT rule, the CPUs it has (kept where they are as good), and the kind
    of cores to use first on a machine that has two kinds; None: either.
    """

    count: int
    weight: float
    pack: bool = False
    has: CpuSet
    cores: CoreKind | None = None


def even_shares(ledger: Ledger, nodes: NodeSet, count: int) -> dict[int, int]:
    """CPUs per node: as equal as the nodes' sizes allow; what does not divide goes to the least loaded nodes."""
    size, load = ledger.cpu_count, ledger.node_load
    order = [node for node in nodes if size.get(node)]
    if len(order) == 1:
        return {order[0]: min(count, size[order[0]])}
    order.sort(key=lambda node: (units(load[node]), node))
    shares = dict.fromkeys(order, 0)
    left, rising = count, sorted(order, key=size.__getitem__)
    for place, node in enumerate(rising):
        fair, more = divmod(left, len(rising) - place)
        if size[node] > fair:
            larger = set(rising[place:])
            for one in order:
                if one in larger:
                    shares[one] = fair + (more > 0)
                    more -= 1
            break
        shares[node] = size[node]
        left -= size[node]
    return shares


def is_even(ledger: Ledger, nodes: NodeSet, cpus: CpuSet) -> bool:
    """Whether no usable CPU of another node of the set could take over from a node that has more."""
    used = {node: (ledger.usable[node].mask & cpus.mask).bit_count() for node in nodes if ledger.cpu_count.get(node)}
    roomy = [amount for node, amount in used.items() if amount < ledger.cpu_count[node]]
    return not roomy or max(used.values()) - min(roomy) <= 1


def legal(ledger: Ledger, nodes: NodeSet, cpus: CpuSet, count: int, *, cores: CoreKind | None = None) -> bool:
    """Whether the CPUs are as many as asked, usable, inside the nodes, even over them, and of the kind asked for as far
    as there are some.
    """
    allowed = 0
    for node in nodes:
        if node in ledger.usable:
            allowed |= ledger.usable[node].mask
    if len(cpus) != count or cpus.mask & ~allowed or not is_even(ledger, nodes, cpus):
        return False
    kind = _of_kind(ledger, cores)
    if not kind or not cpus.mask & ~kind:
        return True
    free = kind & ~cpus.mask
    here = [ledger.usable[node].mask for node in nodes if node in ledger.usable]
    return not any(own & cpus.mask & ~kind and own & free for own in here)


def choose(ledger: Ledger, nodes: NodeSet, wish: CpuWish) -> CpuSet:
    """The best CPUs of the nodes for the wish. Fewer than asked only where the nodes have fewer."""
    chosen, part, machine = 0, wish.weight / max(1, wish.count), ledger.machine
    kind = _of_kind(ledger, wish.cores)
    for node, share in even_shares(ledger, nodes, wish.count).items():
        usable = ledger.usable[node].mask
        if share == usable.bit_count():
            chosen |= usable
        elif share:
            picker = Picker(
                machine.cores_by_node[node],
                ledger.cpu_load(node),
                caches=machine.caches_by_node[node],
                part=part,
                has=wish.has.mask,
            )
            chosen |= _in_order(picker.pack if wish.pack else picker.spread, usable, kind, share)
    return CpuSet.from_mask(chosen)


def choose_exclusive(
    ledger: Ledger, nodes: NodeSet, wish: CpuWish, shares: Mapping[int, int] | None = None
) -> CpuSet | None:
    """CPUs that the instance would have for itself, None where the nodes have fewer usable ones than it asks for.

    Even over the nodes unless `shares` says how many of each. Whole cores as far as the counts allow, those that
    fewest other instances have chosen. Nothing changes in the ledger: others may still be counted on them.
    """
    wanted = even_shares(ledger, nodes, wish.count) if shares is None else shares
    if sum(wanted.values()) < wish.count:
        return None
    chosen, kind = 0, _of_kind(ledger, wish.cores)
    for node, share in wanted.items():
        usable = ledger.usable[node].mask
        if share > usable.bit_count():
            return None

        def pick(allowed: int, count: int, node: int = node) -> int:
            return whole_cores.pick(ledger, node, allowed, count, wish.has.mask)

        chosen |= _in_order(pick, usable, kind, share)
    return CpuSet.from_mask(chosen)


def burden(ledger: Ledger, cpus: CpuSet, weight: float, *, cores: CoreKind | None = None) -> tuple[int, int, int]:
    """How bad a choice is, lower is better: CPUs of another kind than asked for; what is added to the squared loads of
    the cores that it uses, in billionths of a CPU's; L3 caches.
    """
    machine, mask = ledger.machine, cpus.mask
    part = max(units(weight / max(1, len(cpus))), LEAST_PART)
    added, caches = 0, set[int | None]()
    for node in machine.nodes_of(cpus):
        loads = ledger.cpu_load(node)
        for core in machine.cores_by_node[node]:
            mine = (core.mask & mask).bit_count()
            if mine:
                caches.add(core.l3)
                added += part * mine * (2 * units(sum(loads[cpu] for cpu in core.threads)) + part * mine)
    kind = _of_kind(ledger, cores)
    return (mask & ~kind).bit_count() if kind else 0, added // UNIT, len(caches)


def _of_kind(ledger: Ledger, cores: CoreKind | None) -> int:
    """CPUs of the kind as a mask, 0 where there is no kind to prefer."""
    own = None if cores is None else ledger.machine.cpus_by_kind.get(cores)
    return 0 if own is None else own.mask


def _in_order(pick: Pick, usable: int, kind: int, share: int) -> int:
    """So many of the usable CPUs: those of the kind, and only what these lack of others."""
    first = usable & kind
    count = first.bit_count()
    if not count:
        return pick(usable, share)
    if count >= share:
        return first if count == share else pick(first, share)
    return first | pick(usable & ~first, share - count)
