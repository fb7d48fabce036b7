"""Planning one new instance from sums gives what planning from the whole snapshot gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from incus_numa.model.instance import Demand, Instance, InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.machine import Machine
from incus_numa.model.snapshot import Decided, Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import UNKNOWN, Standing
from incus_numa.settings import PlacementSettings
from tests import strategies
from tests.builders import GIB, machine

SETTINGS = PlacementSettings()
sizes = st.integers(1, 20)
changes = st.lists(st.tuples(st.sampled_from("abcdefgh"), sizes, st.integers(0, 3), st.booleans()), max_size=12)


def _instance(name: str, vcpus: int, gib: int) -> Instance:
    demand = Demand(vcpus=vcpus, weight=float(vcpus), memory_bytes=gib * 8 * GIB or None)
    return Instance(key=InstanceKey("default", name), managed=True, demand=demand)


@given(changes, sizes, st.integers(0, 3))
def test_a_new_instance_is_placed_the_same_from_sums_as_from_the_whole_snapshot(
    events: list[tuple[str, int, int, bool]], vcpus: int, gib: int
) -> None:
    history = [(_instance(name, size, memory), stays) for name, size, memory, stays in events]
    check(machine(nodes=4, cpus_per_node=8), history, _instance("new", vcpus, gib))


@given(strategies.machines(max_nodes=4).flatmap(strategies.equipped), st.data())
def test_ties_huge_pages_policies_and_exclusive_cpus_change_nothing_about_that(
    host: Machine, data: st.DataObject
) -> None:
    ids = list(host.node_by_id)
    history = [
        (data.draw(strategies.instances(name, device_nodes=ids)), data.draw(st.booleans()))
        for name in data.draw(st.lists(st.sampled_from("abcd"), max_size=6))
    ]
    new = replace(data.draw(strategies.instances("new", device_nodes=ids)), managed=True)
    check(host, history, new)


@given(changes, sizes, st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 20)))
def test_measured_load_changes_nothing_about_that(
    events: list[tuple[str, int, int, bool]], vcpus: int, used: dict[str, float]
) -> None:
    history = [(_instance(name, size, memory), stays) for name, size, memory, stays in events]
    load = Load(cpus_by_instance={InstanceKey("default", name): cpus for name, cpus in used.items()})
    check(machine(nodes=4, cpus_per_node=8), history, _instance("new", vcpus, 1), load)


def check(host: Machine, history: Sequence[tuple[Instance, bool]], new: Instance, load: Load = UNKNOWN) -> None:
    """Instances come (or go where the flag is not set) and are placed; then the new one is, in both ways."""
    standing = Standing(host, SETTINGS)
    instances: dict[InstanceKey, Instance] = {}
    observed: dict[InstanceKey, Observed] = {}
    for one, stays in history:
        if not stays:
            instances.pop(one.key, None)
            observed.pop(one.key, None)
            standing.drop(one.key)
            continue
        instances[one.key] = one
        observed.pop(one.key, None)
        there = Snapshot(machine=host, instances=tuple(instances.values()), observed=observed)
        for placed in planner.plan(there, SETTINGS, only=frozenset([one.key])).placements:
            decided = Decided(nodes=placed.nodes, cpus=placed.cpus)
            observed[one.key] = Observed(nodes=placed.nodes, cpus=placed.cpus, decided=decided)
        standing.see(one, observed.get(one.key, Observed()), load)
    whole = Snapshot(machine=host, instances=(*instances.values(), new), observed=observed, load=load)
    alone = Snapshot(machine=host, instances=(new,))
    standing.see(new, Observed())
    expected = planner.plan(whole, SETTINGS, only=frozenset([new.key]))
    assert planner.place_new(standing, alone) == expected
    assert planner.place_new(standing, alone) == expected
