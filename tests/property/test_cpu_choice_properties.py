"""What holds for every choice of CPUs, on machines of any shape and whatever others have chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import CoreKind, Cpu, Machine, Node
from incus_numa.policy import cpus
from incus_numa.policy.cores import IdleCores
from incus_numa.policy.cpus import CpuWish
from incus_numa.policy.ledger import Commitment, Ledger, usable_cpus

KINDS = st.sampled_from([None, *CoreKind])


@dataclass(frozen=True)
class Case:
    """A ledger with others in it, nodes to choose in, and a wish that they can hold."""

    ledger: Ledger
    nodes: NodeSet
    wish: CpuWish

    def choose(self, has: CpuSet | None = None) -> CpuSet:
        wish = self.wish
        return cpus.choose(
            self.ledger,
            self.nodes,
            CpuWish(
                count=wish.count,
                weight=wish.weight,
                pack=wish.pack,
                has=wish.has if has is None else has,
                cores=wish.cores,
            ),
        )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Unequal nodes, 1 to 8 threads per core, some offline or isolated, several L3 per node, one or two kinds."""
    threads, per_l3 = draw(st.sampled_from([1, 2, 2, 4, 8])), draw(st.sampled_from([1, 2, 3, 8]))
    hybrid = draw(st.booleans())
    made: list[Cpu] = []
    for node in range(draw(st.integers(1, 3))):
        for place in range(draw(st.integers(1, 6))):
            if place % per_l3 == 0:
                l3 = len(made)
            kind = draw(st.sampled_from(list(CoreKind))) if hybrid else None
            first = len(made)
            size = 1 if kind is CoreKind.EFFICIENCY else threads
            made += [Cpu(id=first + at, node=node, socket=0, core=first, l3=l3, kind=kind) for at in range(size)]
    ids = [cpu.id for cpu in made]
    offline = set(draw(st.lists(st.sampled_from(ids), max_size=3))) if len(ids) > 3 else set()
    online = [cpu for cpu in made if cpu.id not in offline]
    return Machine(
        nodes=tuple(
            Node(id=node, cpus=CpuSet(cpu.id for cpu in online if cpu.node == node))
            for node in sorted({cpu.node or 0 for cpu in made})
        ),
        cpus=tuple(online),
        online=CpuSet(cpu.id for cpu in online),
        isolated=CpuSet(draw(st.lists(st.sampled_from(ids), max_size=2))) if len(ids) > 6 else CpuSet(),
    )


@st.composite
def cases(draw: st.DrawFn, *, pack: bool | None = None, kinds: bool = True, busy: bool = True) -> Case:
    host = draw(machines())
    ledger = Ledger(host, usable_cpus(host, CpuSet()))
    online = list(host.online)
    for index in range(draw(st.integers(0, 5)) if busy else 0):
        own = CpuSet(draw(st.lists(st.sampled_from(online), min_size=1, max_size=6)))
        weight = len(own) * draw(st.sampled_from([1.0, 1.0, 0.1, 0.3, 2.0]))
        ledger.commit(InstanceKey("p", f"i{index}"), Commitment(host.nodes_of(own).mask, own.mask, weight, 0))
    nodes = NodeSet(draw(st.sets(st.sampled_from(list(ledger.nodes)), min_size=1)))
    most = ledger.cpus_of(nodes)
    if not most:
        nodes, most = ledger.cpu_nodes, ledger.total_cpus
    count = draw(st.integers(1, most))
    wish = CpuWish(
        count=count,
        weight=count * draw(st.sampled_from([1.0, 0.5, 0.1, 0.0, 3.0])),
        pack=draw(st.booleans()) if pack is None else pack,
        has=CpuSet(draw(st.lists(st.sampled_from(online), max_size=4))),
        cores=draw(KINDS) if kinds else None,
    )
    return Case(ledger, nodes, wish)


def usable(case: Case) -> CpuSet:
    return CpuSet.from_mask(sum(case.ledger.usable[node].mask for node in case.nodes))


def by_core(case: Case, ids: Iterable[int]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for cpu in ids:
        found.setdefault(case.ledger.machine.cpu_by_id[cpu].core, []).append(cpu)
    return found


def caches(case: Case, chosen: CpuSet) -> set[int | None]:
    return {case.ledger.machine.cpu_by_id[cpu].l3 for cpu in chosen}


def of_kind(case: Case, chosen: Iterable[int], kind: CoreKind) -> CpuSet:
    return CpuSet(cpu for cpu in chosen if case.ledger.machine.cpu_by_id[cpu].kind is kind)


def added(case: Case, chosen: CpuSet) -> int:
    """What the CPUs cost by the rule of spreading: each the load of its core and what is picked there before it."""
    part = max(round(case.wish.weight / case.wish.count * 1e9), 1000)
    total = 0
    for core, own in by_core(case, chosen).items():
        load = sum(case.ledger.cpu_load(cpu.node or 0)[cpu.id] for cpu in case.ledger.machine.cpus if cpu.core == core)
        total += sum(round(load * 1e9) + part * at for at in range(len(own)))
    return total


@given(cases())
def test_as_many_usable_cpus_as_asked_even_over_the_nodes(case: Case) -> None:
    chosen = case.choose()
    assert len(chosen) == case.wish.count
    assert chosen <= usable(case)
    amounts = [(len(case.ledger.usable[node] & chosen), case.ledger.cpu_count[node]) for node in case.nodes]
    for amount, size in amounts:
        assert amount == size or amount + 1 >= max(other for other, _ in amounts)
    assert cpus.legal(case.ledger, case.nodes, chosen, case.wish.count, cores=case.wish.cores)


@given(cases())
def test_choosing_again_with_the_result_gives_the_result(case: Case) -> None:
    chosen = case.choose()
    assert case.choose(chosen) == chosen


@given(cases())
def test_the_same_input_gives_the_same_output_whatever_was_there_before(case: Case) -> None:
    chosen, key, ledger = case.choose(), InstanceKey("p", "gone"), case.ledger
    online = ledger.machine.online
    ledger.commit(key, Commitment(ledger.nodes.mask, online.mask, len(online) / 3, 0))
    ledger.release(key)
    assert case.choose() == chosen
    fresh = Ledger(ledger.machine, ledger.usable)
    for name, entry in sorted(ledger.entries.items(), reverse=True):
        fresh.commit(name, entry)
    assert Case(fresh, case.nodes, case.wish).choose() == chosen


@given(cases(pack=False, kinds=False, busy=False))
def test_spread_shares_no_core_while_another_of_the_node_is_idle(case: Case) -> None:
    chosen = case.choose()
    for node in case.nodes:
        most = max((len(own) for own in by_core(case, chosen & case.ledger.usable[node]).values()), default=0)
        for core, own in by_core(case, case.ledger.usable[node]).items():
            used = len(by_core(case, chosen).get(core, ()))
            assert used == len(own) or used + 1 >= most


@given(cases(pack=False, kinds=False))
def test_no_other_cpus_of_a_node_cost_less_when_spreading(case: Case) -> None:
    """The cheapest CPUs of a node are the cheapest of its cores' first, second, ... threads."""
    chosen = case.choose()
    part = max(round(case.wish.weight / case.wish.count * 1e9), 1000)
    for node in case.nodes:
        own = case.ledger.usable[node]
        costs: list[int] = []
        for threads in by_core(case, own).values():
            costs += [added(case, CpuSet(threads[:1])) + part * at for at in range(len(threads))]
        assert added(case, chosen & own) == sum(sorted(costs)[: len(chosen & own)])


@given(cases(pack=False, kinds=False), st.data())
def test_one_l3_is_used_where_one_is_as_good(case: Case, data: st.DataObject) -> None:
    chosen = case.choose()
    loads = case.ledger.cpu_load
    for node in case.nodes:
        own, mine = case.ledger.usable[node], chosen & case.ledger.usable[node]
        for l3 in caches(case, own) if len(caches(case, mine)) > 1 else ():
            group = [cpu for cpu in own if case.ledger.machine.cpu_by_id[cpu].l3 == l3]
            if len(group) >= len(mine):
                other = CpuSet(data.draw(st.permutations(group))[: len(mine)])
                lighter = added(case, mine) < added(case, other)
                busier = sum(round(loads(node)[cpu] * 1e9) for cpu in other) > sum(
                    round(loads(node)[cpu] * 1e9) for cpu in mine
                )
                assert lighter or busier


@given(cases(pack=True, kinds=False))
def test_pack_takes_the_least_loaded_cpus_and_leaves_few_cores_half_taken(case: Case) -> None:
    chosen = case.choose()
    for node in case.nodes:
        load = {cpu: round(case.ledger.cpu_load(node)[cpu] * 1e9) for cpu in case.ledger.usable[node]}
        mine, others = [cpu for cpu in load if cpu in chosen], [cpu for cpu in load if cpu not in chosen]
        limit = max((load[cpu] for cpu in mine), default=0)
        assert limit <= min((load[cpu] for cpu in others), default=limit)
        halved = [
            core
            for core, own in by_core(case, [cpu for cpu in load if load[cpu] == limit]).items()
            if any(cpu in chosen for cpu in own) and not all(cpu in chosen for cpu in own)
        ]
        assert len(halved) <= 1


@given(cases())
def test_cpus_of_the_kind_asked_for_come_first_inside_the_even_shares(case: Case) -> None:
    chosen = case.choose()
    for node in case.nodes if case.wish.cores is not None else ():
        own = case.ledger.usable[node]
        here = of_kind(case, own, case.wish.cores) if case.wish.cores else CpuSet()
        assert len(here & chosen) == min(len(here), len(own & chosen))
    best = cpus.burden(case.ledger, chosen, case.wish.weight, cores=case.wish.cores)[0]
    assert best <= cpus.burden(case.ledger, case.choose(CpuSet()), case.wish.weight, cores=case.wish.cores)[0]


@given(cases(pack=False))
def test_idle_cores_are_used_without_leaving_the_kind_asked_for(case: Case) -> None:
    ledger, chosen = case.ledger, case.choose()
    new = InstanceKey("p", "new")
    ledger.commit(new, Commitment(case.nodes.mask, chosen.mask, case.wish.weight, 0))
    before = {key: entry.cpus for key, entry in ledger.entries.items()}
    found = IdleCores(ledger).spread_out(case.nodes, chosen, case.wish.cores)
    assert len(found) == len(chosen)
    assert found <= usable(case)
    for node in case.nodes:
        own = ledger.usable[node]
        assert len(found & own) == len(chosen & own)
        if case.wish.cores is not None:
            assert len(of_kind(case, chosen & own, case.wish.cores)) <= len(of_kind(case, found & own, case.wish.cores))
    assert {key: entry.cpus for key, entry in ledger.entries.items()} == before
    ledger.commit(new, Commitment(case.nodes.mask, found.mask, case.wish.weight, 0))
    assert IdleCores(ledger).spread_out(case.nodes, found, case.wish.cores) is found


@given(cases(kinds=False))
def test_exclusive_cpus_are_as_many_as_asked_and_even(case: Case) -> None:
    found = cpus.choose_exclusive(case.ledger, case.nodes, case.wish)
    assert found is not None
    assert cpus.legal(case.ledger, case.nodes, found, case.wish.count)
    again = CpuWish(count=case.wish.count, weight=case.wish.weight, has=found)
    assert cpus.choose_exclusive(case.ledger, case.nodes, again) == found
    more = CpuWish(count=case.ledger.cpus_of(case.nodes) + 1, weight=1.0, has=CpuSet())
    assert cpus.choose_exclusive(case.ledger, case.nodes, more) is None


@given(cases(kinds=False))
def test_exclusive_cpus_leave_as_few_siblings_to_others_as_possible(case: Case) -> None:
    found = cpus.choose_exclusive(case.ledger, case.nodes, case.wish) or CpuSet()
    for node in case.nodes:
        own = case.ledger.usable[node]
        mine = found & own
        cores = by_core(case, own).values()
        sums = {0}
        for core in cores:
            sums |= {one + len(core) for one in sums}
        left = sum(len(core) for core in cores if any(cpu in mine for cpu in core)) - len(mine)
        assert left == min(one for one in sums if one >= len(mine)) - len(mine)


@given(cases(kinds=False))
def test_exclusive_cores_are_those_that_fewest_have_chosen(case: Case) -> None:
    """Judged where all cores of a node are whole and of one size, so that only the others' choice tells them apart."""
    found = cpus.choose_exclusive(case.ledger, case.nodes, case.wish) or CpuSet()
    for node in case.nodes:
        own = case.ledger.usable[node]
        cores = list(by_core(case, own).values())
        size = len(cores[0]) if cores else 1
        if own != case.ledger.machine.node_by_id[node].cpus or any(len(core) != size for core in cores):
            continue
        chosen = [CpuSet.from_mask(one.cpus) & own for one in case.ledger.entries.values()]
        leaving = {core[0]: sum(1 for one in chosen if one and one != own and CpuSet(core) & one) for core in cores}
        used = [leaving[core[0]] for core in cores if any(cpu in found for cpu in core)]
        assert sorted(used) == sorted(leaving.values())[: len(used)]
