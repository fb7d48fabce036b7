"""Which CPUs inside the chosen nodes: even over the nodes, least loaded core first, whole cores before siblings
(`smt = "spread"`) or filled cores (`smt = "pack"`), one L3 before two, and what it has where that is not worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Cpu
from incus_numa.policy.ledger import Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuWish:
    """How many CPUs, the weight they commit, the SMT rule, and the CPUs it has (kept where they are as good)."""

    count: int
    weight: float
    pack: bool = False
    has: CpuSet


def even_shares(ledger: Ledger, nodes: NodeSet, count: int) -> dict[int, int]:
    """CPUs per node: as equal as the nodes' sizes allow; what does not divide goes to the least loaded nodes."""
    order = sorted(
        (node for node in nodes if ledger.cpu_count.get(node)),
        key=lambda node: (round(ledger.node_load[node], 9), node),
    )
    shares = dict.fromkeys(order, 0)
    left = min(count, sum(ledger.cpu_count[node] for node in order))
    while left:
        open_nodes = [node for node in order if shares[node] < ledger.cpu_count[node]]
        lowest = min(shares[node] for node in open_nodes)
        for node in [node for node in open_nodes if shares[node] == lowest][:left]:
            shares[node] += 1
            left -= 1
    return shares


def is_even(ledger: Ledger, nodes: NodeSet, cpus: CpuSet) -> bool:
    """Whether no usable CPU of another node of the set could take over from a node that has more."""
    used = {node: len(ledger.usable[node] & cpus) for node in nodes if ledger.cpu_count.get(node)}
    roomy = [amount for node, amount in used.items() if amount < ledger.cpu_count[node]]
    return not roomy or max(used.values()) - min(roomy) <= 1


def legal(ledger: Ledger, nodes: NodeSet, cpus: CpuSet, count: int) -> bool:
    """Whether the CPUs are as many as asked, usable, inside the nodes, and even over them."""
    allowed = CpuSet.from_mask(sum(ledger.usable[node].mask for node in nodes if node in ledger.usable))
    return len(cpus) == count and cpus <= allowed and is_even(ledger, nodes, cpus)


def choose(ledger: Ledger, nodes: NodeSet, wish: CpuWish) -> CpuSet:
    """The best CPUs of the nodes for the wish. Fewer than asked only where the nodes have fewer."""
    chosen = 0
    for node, share in even_shares(ledger, nodes, wish.count).items():
        usable = ledger.usable[node]
        if share == len(usable):
            chosen |= usable.mask
        elif share:
            chosen |= _choose_in_node(ledger, usable, share, wish).mask
    return CpuSet.from_mask(chosen)


def burden(ledger: Ledger, cpus: CpuSet, weight: float) -> tuple[float, int]:
    """How bad a choice is: squared load of the cores it would use, then the number of L3 caches. Lower is better."""
    cores: dict[int, list[Cpu]] = {}
    for cpu in cpus:
        one = ledger.machine.cpu_by_id[cpu]
        cores.setdefault(one.core, []).append(one)
    wide = CpuSet(cpu.id for cpu in ledger.machine.cpus if cpu.core in cores)
    loads = ledger.cpu_loads(wide)
    core_load = dict.fromkeys(cores, 0.0)
    for cpu in wide:
        core_load[ledger.machine.cpu_by_id[cpu].core] += loads[cpu]
    own = weight / max(1, len(cpus))
    squares = sum((core_load[core] + own * len(threads)) ** 2 for core, threads in cores.items())
    caches = {ledger.machine.cpu_by_id[cpu].l3 for cpu in cpus}
    return round(squares, 9), len(caches)


def _choose_in_node(ledger: Ledger, usable: CpuSet, share: int, wish: CpuWish) -> CpuSet:
    """One L3 if one is as good as any CPUs of the node, else the best CPUs."""
    machine = ledger.machine
    siblings = CpuSet(cpu.id for cpu in machine.cpus if cpu.core in {machine.cpu_by_id[one].core for one in usable})
    loads = ledger.cpu_loads(siblings)
    groups: dict[int, list[Cpu]] = {}
    for cpu in usable:
        one = machine.cpu_by_id[cpu]
        groups.setdefault(-1 if one.l3 is None else one.l3, []).append(one)
    everywhere = [cpu for group in groups.values() for cpu in group]
    core_load: dict[int, float] = {}
    for cpu in siblings:
        core = machine.cpu_by_id[cpu].core
        core_load[core] = core_load.get(core, 0.0) + loads[cpu]
    part = wish.weight / max(1, wish.count)
    options = [_pick(everywhere, share, wish, part, loads, core_load)]
    if len(groups) > 1:
        options += [
            _pick(group, share, wish, part, loads, core_load) for group in groups.values() if len(group) >= share
        ]

    def quality(option: Sequence[Cpu]) -> tuple[float, float, int, int, tuple[int, ...]]:
        ids = tuple(sorted(cpu.id for cpu in option))
        return (
            round(_squares(option, part, core_load), 9) if not wish.pack else 0.0,
            round(sum(loads[cpu] for cpu in ids), 9),
            len({cpu.l3 for cpu in option}),
            -sum(cpu in wish.has for cpu in ids),
            ids,
        )

    return CpuSet(cpu.id for cpu in min(options, key=quality))


def _squares(option: Sequence[Cpu], part: float, core_load: Mapping[int, float]) -> float:
    own: dict[int, float] = {}
    for cpu in option:
        own[cpu.core] = own.get(cpu.core, 0.0) + part
    return sum((core_load[core] + mine) ** 2 for core, mine in own.items())


def _pick(
    cpus: Sequence[Cpu],
    share: int,
    wish: CpuWish,
    part: float,
    loads: Mapping[int, float],
    core_load: Mapping[int, float],
) -> list[Cpu]:
    """The share's CPUs, one after the other; each choice sees what the earlier ones added."""
    left = list(cpus)
    own_threads: dict[int, int] = {}
    own_l3: dict[int | None, int] = {}
    picked: list[Cpu] = []
    room = {l3: sum(cpu.l3 == l3 for cpu in cpus) for l3 in {cpu.l3 for cpu in cpus}}

    def spread(cpu: Cpu) -> tuple[float | int, ...]:
        mine = own_threads.get(cpu.core, 0)
        return (
            round(core_load[cpu.core] + max(part, 1e-6) * mine, 9),
            mine,
            -own_l3.get(cpu.l3, 0),
            round(loads[cpu.id], 9),
            cpu.id not in wish.has,
            -room[cpu.l3],
            cpu.id,
        )

    def pack(cpu: Cpu) -> tuple[float | int, ...]:
        return (
            round(loads[cpu.id], 9),
            -own_threads.get(cpu.core, 0),
            -own_l3.get(cpu.l3, 0),
            -round(core_load[cpu.core], 9),
            cpu.id not in wish.has,
            -room[cpu.l3],
            cpu.id,
        )

    for _ in range(share):
        one = min(left, key=pack if wish.pack else spread)
        left.remove(one)
        picked.append(one)
        own_threads[one.core] = own_threads.get(one.core, 0) + 1
        own_l3[one.l3] = own_l3.get(one.l3, 0) + 1
    return picked
