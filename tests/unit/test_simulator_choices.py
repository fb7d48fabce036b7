"""The server's own rules, as the simulator and the demo show them."""

from __future__ import annotations

from random import Random

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.simulator import choices
from incus_numa.simulator.choices import CpuClaim, ServerPanicError
from incus_numa.simulator.options import SimulatorOptions
from tests import builders

KEY = InstanceKey("default", "c1")
MACHINE = builders.machine()


def test_least_named_node_is_chosen() -> None:
    chosen = choices.choose_nodes(MACHINE, "2", {0: 1, 1: 1, 3: 2}, options=SimulatorOptions(), random=Random(0))
    assert chosen == NodeSet([2])


@pytest.mark.parametrize(("limit", "count"), [("", 1), ("4", 1), ("5", 2), ("16", 4), ("0-7", 2)])
def test_node_count_follows_the_limit(limit: str, count: int) -> None:
    assert len(choices.choose_nodes(MACHINE, limit, {}, options=SimulatorOptions(), random=Random(0))) == count


def test_limit_above_the_machine_panics_or_is_capped() -> None:
    with pytest.raises(ServerPanicError, match=r"slice bounds out of range \[:16\] with capacity 4"):
        choices.choose_nodes(MACHINE, "64", {}, options=SimulatorOptions(), random=Random(0))
    assert len(choices.choose_nodes(MACHINE, "64", {}, options=SimulatorOptions(panics=False), random=Random(0))) == 4


def test_memory_only_nodes_are_not_counted() -> None:
    machine = builders.machine(nodes=3)
    ids = {
        choices.choose_nodes(machine, "1", {}, options=SimulatorOptions(), random=Random(seed)).lowest()
        for seed in range(40)
    }
    assert ids == {0, 1, 2}


@pytest.mark.parametrize(
    ("config", "claim"),
    [
        ({"limits.cpu": "2"}, CpuClaim(key=KEY, pool=CpuSet(), count=2)),
        ({"limits.cpu": "99"}, CpuClaim(key=KEY, pool=CpuSet(), count=16)),
        ({"limits.cpu": "0-2"}, CpuClaim(key=KEY, pool=CpuSet(), pinned=CpuSet(range(3)))),
        ({}, CpuClaim(key=KEY, pool=CpuSet(), pinned=CpuSet(range(16)))),
        ({"limits.cpu.nodes": "1"}, CpuClaim(key=KEY, pool=CpuSet(range(4, 8)), pinned=CpuSet(range(4, 8)))),
        (
            {"limits.cpu": "2", "limits.cpu.nodes": "balanced", "volatile.cpu.nodes": "1"},
            CpuClaim(key=KEY, pool=CpuSet(range(4, 8)), count=2),
        ),
        ({"limits.cpu": "2", "limits.cpu.nodes": "balanced"}, None),
        ({"limits.cpu": "2", "limits.cpu.nodes": "nonsense"}, None),
    ],
)
def test_claim_follows_the_config(config: dict[str, str], claim: CpuClaim | None) -> None:
    assert choices.claim_cpus(KEY, config, MACHINE, MACHINE.online) == claim


def test_claim_that_does_not_parse_is_an_error() -> None:
    with pytest.raises(ValueError, match="bad cpuset range"):
        choices.claim_cpus(KEY, {"limits.cpu": "3-1"}, MACHINE, MACHINE.online)


def test_cpus_are_taken_by_container_count_inside_the_pool() -> None:
    claims = [CpuClaim(key=InstanceKey("default", f"c{n}"), pool=CpuSet(range(4)), count=2) for n in range(2)]
    shared = dict(choices.share_cpus(claims, MACHINE.online, Random(0)))
    assert {len(cpus) for cpus in shared.values()} == {2}
    assert CpuSet(cpu for cpus in shared.values() for cpu in cpus) == CpuSet(range(4))


def test_order_is_random() -> None:
    claims = [CpuClaim(key=InstanceKey("default", f"c{n}"), pool=CpuSet(range(8)), count=3) for n in range(3)]
    outcomes = {tuple(choices.share_cpus(claims, MACHINE.online, Random(seed))) for seed in range(10)}
    assert len(outcomes) > 1


def test_spread_is_not_even_over_nodes() -> None:
    claim = CpuClaim(key=KEY, pool=CpuSet(range(8)), count=2)
    outcomes = {next(choices.share_cpus([claim], MACHINE.online, Random(seed)))[1] for seed in range(40)}
    assert any(len(MACHINE.nodes_of(cpus)) == 1 for cpus in outcomes)
    assert any(len(MACHINE.nodes_of(cpus)) == 2 for cpus in outcomes)
