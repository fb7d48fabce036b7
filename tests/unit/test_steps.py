"""From placements to steps: order, and silence where there is nothing to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import MovePages, PatchNodes, PinThreads, Placement, WriteCpus, WriteMems
from incus_numa.model.snapshot import Observed
from incus_numa.policy import steps
from tests import builders
from tests.builders import GIB

KEY = InstanceKey("default", "x")
MEMORY_NODES = NodeSet(range(4))


def placed(nodes: str, cpus: str, mems: str | None = None) -> Placement:
    return Placement(
        key=KEY,
        nodes=NodeSet.parse(nodes),
        cpus=CpuSet.parse(cpus),
        mems=None if mems is None else NodeSet.parse(mems),
    )


def seen(nodes: str, cpus: str, mems: str = "") -> Observed:
    return Observed(nodes=NodeSet.parse(nodes), cpus=CpuSet.parse(cpus), mems=NodeSet.parse(mems))


def told(placement: Placement, observed: Observed) -> list[str]:
    found = []
    for step in steps.diff_one(placement, observed, MEMORY_NODES):
        match step:
            case PatchNodes():
                found.append(f"nodes {step.before}>{step.nodes}")
            case WriteCpus():
                found.append(f"cpus {step.before}>{step.cpus}")
            case WriteMems():
                found.append(f"mems {step.before}>{step.mems}")
    return found


@pytest.mark.parametrize(
    ("placement", "observed", "expected"),
    [
        (placed("0", "0-1", "0"), seen("0", "0-1", "0"), []),
        (placed("0", "0-1"), seen("0", "0-1"), []),
        (placed("0", "0-1"), seen("1", "0-1"), ["nodes 1>0"]),
        (placed("0", "0-1"), seen("0", "2-3"), ["cpus 2-3>0-1"]),
        (placed("0", "0-1", "0"), seen("0", "0-1"), ["mems >0"]),
        (placed("1", "4-5", "1"), seen("0", "0-1", "0"), ["nodes 0>1", "mems 0>0-1", "cpus 0-1>4-5", "mems 0-1>1"]),
        (placed("1", "4-5", "1"), seen("0", "0-1", "0-1"), ["nodes 0>1", "cpus 0-1>4-5", "mems 0-1>1"]),
        (placed("0-1", "0,4", "0-1"), seen("0", "0-1", "0"), ["nodes 0>0-1", "mems 0>0-1", "cpus 0-1>0,4"]),
        (placed("0-1", "0,4"), seen("0", "0-1", "0"), ["nodes 0>0-1", "mems 0>0-3", "cpus 0-1>0,4"]),
        (placed("1", "4", "1"), seen("0", "0"), ["nodes 0>1", "cpus 0>4", "mems >1"]),
        (placed("0-3", "0,4"), seen("0-3", "0,4", "0-3"), []),
        (placed("0-3", "0,4", "0-3"), seen("0-3", "0,4"), []),
        (placed("1", "4", "1"), seen("1", "4", "0-3"), ["mems 0-3>1"]),
    ],
)
def test_what_is_wrong_is_put_right_widening_first(
    placement: Placement, observed: Observed, expected: list[str]
) -> None:
    assert told(placement, observed) == expected


def test_without_a_cgroup_only_the_record_is_written() -> None:
    assert told(placed("0", "0-1", "0"), Observed()) == ["nodes None>0"]


MACHINE = builders.machine(nodes=4, cpus_per_node=4, isolated="7")


def running(nodes: str, cpus: str | None, around: str | None, memory: dict[int, int] | None = None) -> Observed:
    return Observed(
        nodes=NodeSet.parse(nodes),
        cpus=None if cpus is None else CpuSet.parse(cpus),
        around=None if around is None else CpuSet.parse(around),
        memory=memory,
    )


def told_of_vm(placement: Placement, observed: Observed, *, migrates: bool = False) -> list[str]:
    found = []
    usable = MACHINE.online - MACHINE.isolated
    for step in steps.diff_vm(placement, observed, MACHINE, usable=usable, migrates=migrates):
        match step:
            case PatchNodes():
                found.append(f"nodes {step.before}>{step.nodes}")
            case PinThreads():
                found.append(f"vcpus {step.before}>{step.cpus} around {step.around}")
            case MovePages():
                found.append(f"memory {step.sources}>{step.targets} {step.size_bytes // GIB}")
            case _:
                found.append(f"nothing that a virtual machine has: {step}")
    return found


@pytest.mark.parametrize(
    ("placement", "observed", "expected"),
    [
        (placed("1", "4-5", "1"), running("1", "4-5", "4-6"), []),
        (placed("1", "4-5", "1"), running("1", "4-5", "0-15"), ["vcpus 4-5>4-5 around 4-6"]),
        (placed("1", "4-5", "1"), running("1", "0-15", "0-15"), ["vcpus 0-15>4-5 around 4-6"]),
        (placed("1", "4-5", "1"), running("0", "0-1", "0-3"), ["nodes 0>1", "vcpus 0-1>4-5 around 4-6"]),
        (placed("0,2", "0,8"), running("0,2", "0,8", "0-3,8-11"), []),
        # Those whose vCPUs were not told from other threads have all of them on the nodes.
        (placed("1", "4-5", "1"), running("1", None, "0-15"), ["vcpus None>4-5 around 4-6"]),
        (placed("1", "4-5", "1"), running("1", None, "4-6"), []),
        # Without a process only the record is written.
        (placed("1", "4-5", "1"), running("0", None, None), ["nodes 0>1"]),
    ],
)
def test_threads_of_a_virtual_machine_are_put_where_they_belong(
    placement: Placement, observed: Observed, expected: list[str]
) -> None:
    assert told_of_vm(placement, observed) == expected


def test_vcpus_that_differ_are_put_together_where_one_of_them_belongs() -> None:
    mixed = replace(running("1", "4-5", "4-6"), even=False)
    assert told_of_vm(placed("1", "4-5", "1"), mixed) == ["vcpus 4-5>4-5 around 4-6"]


def test_memory_of_a_virtual_machine_stays_unless_it_is_to_migrate() -> None:
    seen_now = running("1", "4-5", "4-6", {0: 2 * GIB, 1: GIB, 2: 0})
    assert told_of_vm(placed("1", "4-5", "1"), seen_now) == []
    assert told_of_vm(placed("1", "4-5", "1"), seen_now, migrates=True) == ["memory 0>1 2"]
    assert told_of_vm(placed("0-1", "0,4"), seen_now, migrates=True)[-1:] != ["memory 2>0-1 0"]
    assert told_of_vm(placed("1", "4-5", "1"), running("1", "4-5", "4-6", {0: 4096, 1: GIB}), migrates=True) == []


@pytest.mark.parametrize(
    ("nodes", "cpus", "usable", "around"),
    [
        ("1", "4-5", "0-15", "4-7"),
        ("1", "4-5", "0-4,7-15", "4,7"),
        ("1", "4-5", "6-15", "6-7"),
        ("0-1", "4-5", "2,6", "2,6"),
        ("1", "4-5", "0-3", "4-5"),
    ],
)
def test_other_threads_are_on_usable_cpus_of_its_nodes_and_beside_the_vcpus_where_there_are_none(
    nodes: str, cpus: str, usable: str, around: str
) -> None:
    machine = builders.machine(nodes=4, cpus_per_node=4)
    assert steps.cpus_around(placed(nodes, cpus), machine, CpuSet.parse(usable)) == CpuSet.parse(around)
