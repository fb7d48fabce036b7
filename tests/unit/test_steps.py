"""From placements to steps: order, and silence where there is nothing to do."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import PatchNodes, Placement, WriteCpus, WriteMems
from incus_numa.model.snapshot import Observed
from incus_numa.policy import steps

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
        (placed("0-1", "0,4"), seen("0", "0-1", "0"), ["nodes 0>0-1", "mems 0>", "cpus 0-1>0,4"]),
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
