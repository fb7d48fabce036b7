"""A plan that breaks a promise is told so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.plan import Placement, Plan
from incus_numa.policy.check import check_plan
from incus_numa.settings import PlacementSettings
from tests.builders import instance, machine, snapshot

X = instance("x", vcpus=2)
GOOD = Placement(key=X.key, nodes=NodeSet([0]), cpus=CpuSet([0, 2]), mems=NodeSet([0]))
SETTINGS = PlacementSettings(reserved_cpus="1")


def problems(placement: Placement) -> tuple[str, ...]:
    pinned = instance("pin", pinned="3")
    state = snapshot(machine(isolated="3"), X, pinned, instance("other", managed=False))
    return check_plan(Plan(placements=(placement,)), state, SETTINGS)


def test_a_sound_plan_has_no_problems() -> None:
    assert problems(GOOD) == ()


def test_a_pin_may_use_what_others_may_not() -> None:
    pin = instance("pin").key
    assert problems(Placement(key=pin, nodes=NodeSet([0]), cpus=CpuSet([3]))) == ()
    assert problems(Placement(key=pin, nodes=NodeSet([0]), cpus=CpuSet([2]))) != ()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (True, False, ("a: exclusive CPUs 1-2 are b's, too",)),
        (False, True, ("b: exclusive CPUs 1-2 are a's, too",)),
        (True, True, ("a: exclusive CPUs 1-2 are b's, too", "b: exclusive CPUs 1-2 are a's, too")),
        (False, False, ()),
    ],
)
def test_exclusive_cpus_are_in_no_other_placement(first: bool, second: bool, said: tuple[str, ...]) -> None:
    a, b, c = (instance(name, vcpus=3) for name in "abc")
    places = (
        Placement(key=a.key, nodes=NodeSet([0]), cpus=CpuSet([0, 1, 2]), exclusive=first),
        Placement(key=b.key, nodes=NodeSet([0]), cpus=CpuSet([1, 2, 3]), exclusive=second),
        Placement(key=c.key, nodes=NodeSet([1]), cpus=CpuSet([4]), exclusive=True),
    )
    assert check_plan(Plan(placements=places), snapshot(machine(), a, b, c), PlacementSettings()) == said


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        (replace(GOOD, cpus=CpuSet()), "has no CPUs"),
        (replace(GOOD, nodes=NodeSet(), mems=None), "has no nodes"),
        (replace(GOOD, nodes=NodeSet([0, 9])), "nodes 0,9 are not all nodes of the machine"),
        (replace(GOOD, cpus=CpuSet([0, 99])), "CPUs 0,99 are not all online"),
        (replace(GOOD, cpus=CpuSet([0, 4])), "CPUs 0,4 are not all allowed"),
        (replace(GOOD, cpus=CpuSet([0, 1])), "CPUs 0-1 are not all allowed"),
        (replace(GOOD, cpus=CpuSet([0, 3])), "CPUs 0,3 are not all allowed"),
        (replace(GOOD, mems=NodeSet()), "mems  are not all nodes with memory"),
        (replace(GOOD, mems=NodeSet([1])), "mems 1 are not all in nodes 0"),
        (replace(GOOD, key=instance("other").key), "not a managed instance"),
        (replace(GOOD, key=instance("gone").key), "not a managed instance"),
    ],
)
def test_a_broken_promise_is_named(placement: Placement, said: str) -> None:
    assert any(said in one for one in problems(placement))
