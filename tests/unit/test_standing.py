"""Which CPUs are left to threads that nobody plans: none that are isolated, reserved, or others' own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.snapshot import Decided, Observed
from incus_numa.policy.desk import Standing
from incus_numa.settings import PlacementSettings
from tests import builders

OWN = builders.instance("own", vcpus=2)
OWNER = replace(OWN, demand=replace(OWN.demand, exclusive=True))
HAS = Observed(decided=Decided(nodes=NodeSet([1]), cpus=CpuSet.parse("4-5")))
STRANGER = InstanceKey("default", "v")


def standing() -> Standing:
    one = Standing(builders.machine(nodes=2, cpus_per_node=4, isolated="7"), PlacementSettings(reserved_cpus="0"))
    one.see(OWNER, HAS)
    return one


@pytest.mark.parametrize(
    ("key", "refused", "usable"),
    [
        (STRANGER, (), "1-3,6"),
        (OWNER.key, (), "1-6"),
        (STRANGER, (OWNER.key,), "1-6"),
        (STRANGER, (STRANGER,), "1-3,6"),
    ],
)
def test_cpus_are_usable_by_whom_nobody_keeps_off(
    key: InstanceKey, refused: tuple[InstanceKey, ...], usable: str
) -> None:
    assert standing().usable_by(key, refused) == CpuSet.parse(usable)


def test_cpus_of_an_owner_that_ended_are_everybodys() -> None:
    one = standing()
    one.drop(OWNER.key)
    assert one.usable_by(STRANGER) == CpuSet.parse("1-6")
