"""One more instance beside others that are anywhere: it gets the best of all sets of nodes, tried one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan, Reason
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import candidates, planner
from incus_numa.policy.desk import open_desk
from incus_numa.settings import PlacementSettings
from tests import strategies

SETTINGS = PlacementSettings()
PLENTY = 1 << 90

Nodes = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A machine where others are on sets of nodes that hold them, and one more instance."""

    state: Snapshot
    new: Instance
    taken: tuple[tuple[Nodes, int], ...]

    @property
    def host(self) -> Machine:
        return self.state.machine

    def plan(self) -> Plan:
        return planner.plan(self.state, SETTINGS, only=frozenset([self.new.key]))

    def cpus(self, nodes: Nodes) -> int:
        return sum(len(self.host.node_by_id[node].cpus - self.host.isolated) for node in nodes)

    @property
    def asked(self) -> int:
        return min(self.new.demand.vcpus or 1, self.cpus(tuple(self.host.node_by_id)))

    def fits(self, nodes: Nodes) -> bool:
        size = self.new.demand.memory_bytes or 0
        return self.cpus(nodes) >= self.asked and (not size or laid_out(self.host, [*self.taken, (nodes, size)]))

    def fitting(self, width: int) -> Iterator[Nodes]:
        return (nodes for nodes in combinations(self.host.node_by_id, width) if self.fits(nodes))

    def narrowest(self) -> list[Nodes]:
        """All sets of the least width that fit; none where none does."""
        return next((found for width in range(1, len(self.host.nodes) + 1) if (found := list(self.fitting(width)))), [])

    def loads(self) -> Mapping[int, float]:
        """Load of each node without the new one."""
        found = dict.fromkeys(self.host.node_by_id, 0.0)
        for one in self.state.instances:
            seen = self.state.observed.get(one.key)
            if seen is not None and seen.nodes:
                total = self.cpus(tuple(self.host.node_by_id))
                asked = one.demand.vcpus or 1
                part = one.demand.weight * min(asked, total) / asked / self.cpus(tuple(seen.nodes))
                for node in seen.nodes:
                    found[node] += part if self.cpus((node,)) else 0.0
        return found

    def highest(self, nodes: Nodes) -> float:
        """The highest load of a set's nodes with the new one on it."""
        loads = self.loads()
        weight = self.new.demand.weight * self.asked / (self.new.demand.vcpus or 1)
        return max(loads[node] for node in nodes if self.cpus((node,))) + weight / self.cpus(nodes)

    def distance(self, nodes: Nodes) -> float:
        """Mean distance over ordered pairs; an unknown one is as far as the farthest known."""
        given = [value for node in self.host.nodes for other, value in node.distances.items() if other != node.id]
        far = max(given, default=10)
        pairs = [self.host.node_by_id[a].distances.get(b, far) for a in nodes for b in nodes if a != b]
        return sum(pairs) / len(pairs) if pairs else 10.0


def laid_out(host: Machine, taken: list[tuple[Nodes, int]]) -> bool:
    """Whether all memory can be on its nodes: no group of nodes is the only place for more than it has."""
    for count in range(1, len(host.nodes) + 1):
        for group in combinations(host.nodes, count):
            ids = {node.id for node in group}
            room = sum(PLENTY if node.memory_bytes is None else node.memory_bytes for node in group)
            if sum(size for nodes, size in taken if ids.issuperset(nodes)) > room:
                return False
    return True


@st.composite
def besides(draw: st.DrawFn) -> Beside:
    """Others on any sets that hold them, narrow or not, and a plain instance that is new."""
    state = draw(strategies.snapshots(plain=True))
    host = state.machine
    ids = list(host.node_by_id)
    taken: list[tuple[Nodes, int]] = []
    there, observed = [], {}
    for one in state.instances:
        nodes = tuple(sorted(draw(st.sets(st.sampled_from(ids), min_size=1))))
        size = one.demand.memory_bytes or 0
        cpus = CpuSet(cpu for node in nodes for cpu in host.node_by_id[node].cpus - host.isolated)
        if cpus and laid_out(host, [*taken, (nodes, size)]):
            node_set = NodeSet(nodes)
            observed[one.key] = Observed(nodes=node_set, cpus=cpus, decided=Decided(nodes=node_set, cpus=cpus))
            taken.append((nodes, size))
            there.append(one)
    new = draw(strategies.instances("new", plain=True))
    return Beside(state=replace(state, instances=(*there, new), observed=observed), new=new, taken=tuple(taken))


@given(besides())
def test_it_gets_as_few_nodes_as_any_set_allows_and_is_refused_only_if_none_does(case: Beside) -> None:
    plan, possible = case.plan(), case.narrowest()
    assert [one.reason for one in plan.rejections] == ([] if possible else [Reason.NO_MEMORY])
    assert [tuple(one.nodes) in possible for one in plan.placements] == [True] * bool(possible)


@given(besides())
def test_no_other_set_as_narrow_costs_less(case: Beside) -> None:
    desk = open_desk(case.state, SETTINGS, sorted(case.state.instances, key=lambda one: one.key))
    desk.ledger.release(case.new.key)
    need = desk.need(case.new)
    for placement in case.plan().placements:
        costs = [candidates.cost(desk.ledger, need, NodeSet(nodes), SETTINGS) for nodes in case.narrowest()]
        found = candidates.cost(desk.ledger, need, placement.nodes, SETTINGS)
        assert abs(found - min(costs)) < 1e-6


@given(besides())
def test_no_other_set_as_narrow_is_nearer_at_no_higher_load(case: Beside) -> None:
    for placement in case.plan().placements:
        found = tuple(placement.nodes)
        nearest = min(
            case.distance(nodes) for nodes in case.narrowest() if case.highest(nodes) <= case.highest(found) + 1e-9
        )
        assert case.distance(found) <= nearest + 1e-6


@given(besides(), st.sampled_from([(0.0, 1.0), (1.0, 0.0), (0.1, 5.0)]))
def test_whatever_the_weights_it_is_as_narrow(case: Beside, weights: tuple[float, float]) -> None:
    own = replace(SETTINGS, load_weight=weights[0], distance_weight=weights[1])
    plan = planner.plan(case.state, own, only=frozenset([case.new.key]))
    assert [len(one.nodes) for one in plan.placements] == [len(nodes) for nodes in case.narrowest()[:1]]
