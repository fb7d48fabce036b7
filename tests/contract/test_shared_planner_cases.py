"""The kubelet's cases of taking CPUs, judged by what both rules promise: size, subset, few nodes, few broken cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import Cpu, Machine, Node
from incus_numa.policy import planner
from incus_numa.settings import PlacementSettings
from tests.builders import instance, snapshot

FILE = Path(__file__).parents[3] / "shared" / "data" / "peer_cases" / "cpu_take_by_topology.json"
PEER: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"cases": {}, "topologies": {}}
CASES = [
    pytest.param(kind, case, id=f"{kind}-{index}")
    for kind in ("packed", "distributed")
    for index, case in enumerate(PEER["cases"].get(kind, ()))
    # Taking nothing has no counterpart: every instance has a vCPU.
    if case["take"]
]
HALF_CORE_FIRST = "take one cpu from single socket with HT, some cpus are taken"
"""The kubelet gives the one CPU whose sibling is taken; here such a CPU is a core like any other, by its id."""

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not CASES, reason="../shared/data/peer_cases is not there"),
]


def machine_of(topology: dict[str, Any]) -> Machine:
    threads: dict[tuple[int, int], list[int]] = {}
    for cpu, place in topology["cpus"].items():
        threads.setdefault((place["socket"], place["core"]), []).append(int(cpu))
    cpus = tuple(
        Cpu(
            id=int(cpu),
            node=place["node"],
            socket=place["socket"],
            core=min(threads[place["socket"], place["core"]]),
            l3=None,
        )
        for cpu, place in sorted(topology["cpus"].items(), key=lambda one: int(one[0]))
    )
    nodes = sorted((int(node), CpuSet.parse(text)) for node, text in topology["nodes"].items())
    return Machine(
        nodes=tuple(Node(id=node, cpus=own) for node, own in nodes), cpus=cpus, online=CpuSet(cpu.id for cpu in cpus)
    )


def broken_cores(machine: Machine, available: CpuSet, cpus: CpuSet) -> int:
    """Cores that could have been taken whole and were taken in part."""
    members: dict[int, CpuSet] = {}
    for cpu in machine.cpus:
        members[cpu.core] = members.get(cpu.core, CpuSet()) | CpuSet([cpu.id])
    return sum(1 for core in members.values() if core <= available and core & cpus and not core <= cpus)


@pytest.mark.parametrize("smt", ["spread", "pack"])
@pytest.mark.parametrize(("kind", "case"), CASES)
def test_cpus_are_taken_no_worse_than_by_the_kubelet(
    kind: str, case: dict[str, Any], smt: Literal["spread", "pack"]
) -> None:
    machine, available = machine_of(PEER["topologies"][case["topology"]]), CpuSet.parse(case["available"])
    settings = PlacementSettings(smt=smt, reserved_cpus=str(machine.online - available))
    plan = planner.plan(snapshot(machine, instance("x", vcpus=case["take"])), settings)
    (placement,) = plan.placements
    assert placement.cpus <= available
    if case["expected"] is None:
        # Where the kubelet fails, more is asked for than there is: here that is the whole machine and a warning.
        assert placement.cpus == available
        assert len(plan.warnings) == 1
        return
    expected = CpuSet.parse(case["expected"])
    assert len(placement.cpus) == len(expected)
    assert len(machine.nodes_of(placement.cpus)) <= len(machine.nodes_of(expected))
    in_groups = case.get("group_size", 1) > 1
    if smt == "pack" and not in_groups and case["name"] != HALF_CORE_FIRST:
        assert broken_cores(machine, available, placement.cpus) <= broken_cores(machine, available, expected)
