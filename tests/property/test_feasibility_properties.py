"""One more instance beside others: it is refused exactly where no set of nodes could hold it, tried one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from incus_numa.model.instance import Instance, Policy
from incus_numa.model.plan import Reason
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests import strategies
from tests.property.test_planner_properties import apply, flows, pages_of, sizes_of, usable

SETTINGS = PlacementSettings()


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Others as they were placed, and one more; `free` is how many CPUs of each node it could have."""

    state: Snapshot
    new: Instance
    free: dict[int, int]

    def fits(self, nodes: frozenset[int], *, alone: bool = False) -> bool:
        """Whether CPUs, memory and each size of huge pages of the nodes are enough, on an empty machine if `alone`."""
        host, want = self.state.machine, self.new.demand
        own = usable(host)
        free = {node: len(own[node]) for node in nodes} if alone else {node: self.free[node] for node in nodes}
        total = sum(map(len, own.values())) if alone else sum(self.free.values())
        asked = want.vcpus or 1
        if sum(free.values()) < (asked if want.exclusive else min(asked, total)):
            return False
        there = [] if alone else self.there()
        size = 0 if want.memory_is_usage else want.memory_bytes or 0
        return (not size or flows(sizes_of(host), [*((at, one) for at, one, _ in there), (nodes, size)])) and all(
            flows(pages_of(host, page), [*((at, huge.get(page, 0)) for at, _, huge in there), (nodes, amount)])
            for page, amount in want.hugepages.items()
        )

    def there(self) -> list[tuple[frozenset[int], int, dict[int, int]]]:
        """Nodes, memory and huge pages of the others."""
        return [
            (frozenset(seen.nodes), one.demand.memory_bytes or 0, dict(one.demand.hugepages))
            for one in self.state.instances
            if (seen := self.state.observed.get(one.key)) is not None and seen.nodes
        ]

    def narrowest(self, *, devices: bool, alone: bool = False) -> list[frozenset[int]]:
        """All sets of the least width that fit, with the nodes of all devices if `devices`."""
        must = set(self.new.device_nodes) if devices else set[int]()
        for width in range(1, len(self.state.machine.nodes) + 1):
            sets = self._of_width(width)
            found = [nodes for nodes in sets if must <= nodes and self.fits(nodes, alone=alone)]
            if found:
                return found
        return []

    def _of_width(self, width: int) -> Iterator[frozenset[int]]:
        return (frozenset(chosen) for chosen in combinations(self.state.machine.node_by_id, width))

    def allowed(self) -> list[frozenset[int]]:
        """The sets that the policy allows, in the kubelet's meaning."""
        match self.new.policy:
            case Policy.BALANCED:
                return self.narrowest(devices=False)
            case Policy.BEST_EFFORT:
                sets = self.narrowest(devices=False)
                return [nodes for nodes in sets if set(self.new.device_nodes) <= nodes] or sets
            case Policy.RESTRICTED:
                now, empty = self.narrowest(devices=True), self.narrowest(devices=True, alone=True)
                return now if now and len(now[0]) <= len(empty[0]) else []
            case Policy.SINGLE_NUMA_NODE:
                return [nodes for nodes in self.narrowest(devices=True) if len(nodes) == 1]
            case Policy.NONE:
                return [frozenset(node for node, own in usable(self.state.machine).items() if own)]


def placed(state: Snapshot, new: Instance) -> Snapshot:
    """What is there once the others are placed and the new one has come."""
    return replace(apply(state, planner.plan(state, SETTINGS)), instances=(*state.instances, new))


def firm(one: Instance, *, exclusive: bool) -> Instance:
    """The instance so that what it takes is certain to fit: pins and policy none ask nobody, and use is no limit."""
    demand = replace(one.demand, memory_is_usage=False, exclusive=one.demand.exclusive and exclusive)
    if demand.pinned_cpus is not None or one.policy is Policy.NONE:
        demand = replace(demand, memory_bytes=None, hugepages={})
    return replace(one, demand=demand)


@st.composite
def newcomers(draw: st.DrawFn, *, exclusive: bool) -> Beside:
    state = draw(strategies.snapshots(max_nodes=4, max_instances=5))
    state = replace(state, instances=tuple(firm(one, exclusive=exclusive) for one in state.instances))
    new = draw(strategies.instances("new", device_nodes=list(state.machine.node_by_id)))
    demand = replace(new.demand, pinned_cpus=None, exclusive=exclusive, memory_is_usage=False)
    if exclusive:
        demand = replace(demand, vcpus=draw(st.integers(1, 6)))
        new = replace(new, policy=Policy.BALANCED if new.policy is Policy.NONE else new.policy)
    state = placed(state, replace(new, managed=True, demand=demand))
    free = {node: len(own) for node, own in usable(state.machine).items()}
    return Beside(state=state, new=state.instances[-1], free=spare(state) if exclusive else free)


def spare(state: Snapshot) -> dict[int, int]:
    """CPUs of each node that are not pinned, not somebody's own, and not needed so that all others keep as many."""
    own, pinned, taken = usable(state.machine), set[int](), set[int]()
    needed = dict.fromkeys(own, 0)
    for one in state.instances:
        seen, demand = state.observed.get(one.key), one.demand
        if demand.pinned_cpus is not None:
            pinned |= set(demand.pinned_cpus)
        elif seen is not None and seen.nodes and seen.cpus:
            if demand.exclusive:
                taken |= set(seen.cpus)
            elif one.policy is not Policy.NONE:
                for node in seen.nodes:
                    used = 1 if demand.vcpus is None else len(set(seen.cpus) & own[node])
                    needed[node] = max(needed[node], used)
    left = {node: cpus - taken for node, cpus in own.items()}
    return {node: min(len(cpus - pinned), max(0, len(cpus) - needed[node])) for node, cpus in left.items()}


@given(newcomers(exclusive=False))
def test_it_is_refused_only_where_no_set_that_its_policy_allows_holds_it(case: Beside) -> None:
    plan, sets = planner.plan(case.state, SETTINGS, only=frozenset([case.new.key])), case.allowed()
    assert [frozenset(one.nodes) in sets for one in plan.placements] == [True] * bool(sets)
    assert len(plan.rejections) == (not sets)


@given(newcomers(exclusive=True))
def test_exclusive_cpus_are_refused_only_where_others_need_them(case: Beside) -> None:
    plan, sets = planner.plan(case.state, SETTINGS, only=frozenset([case.new.key])), case.allowed()
    # One CPU at least is left to those that may be anywhere.
    left = sum(map(len, usable(case.state.machine).values())) - (case.new.demand.vcpus or 0)
    owned = sum(
        len(seen.cpus or ())
        for one in case.state.instances
        if one.demand.exclusive and (seen := case.state.observed.get(one.key)) is not None
    )
    everywhere = any(one.policy is Policy.NONE and one.key in case.state.observed for one in case.state.instances)
    if everywhere and left - owned < 1:
        assert [one.reason for one in plan.rejections] == [Reason.NO_EXCLUSIVE_CPUS]
        return
    assert [frozenset(one.nodes) in sets for one in plan.placements] == [True] * bool(sets)
    assert len(plan.rejections) == (not sets)


@given(newcomers(exclusive=False))
def test_every_refusal_has_numbers(case: Beside) -> None:
    plan = planner.plan(case.state, SETTINGS)
    assert all(any(letter.isdigit() for letter in one.detail) for one in plan.rejections if one.reason in NUMBERED)


NUMBERED = frozenset(
    [
        Reason.NO_MEMORY,
        Reason.NO_HUGEPAGES,
        Reason.NOT_ONE_NODE,
        Reason.NOT_NARROWEST,
        Reason.NOT_ALIGNED,
        Reason.NO_EXCLUSIVE_CPUS,
    ]
)
