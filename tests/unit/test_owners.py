"""Who has to leave for exclusive CPUs, and who is told to be in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon import owners
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.plan import Placement
from incus_numa.model.snapshot import NOTHING, Observed
from tests import builders


def placed(name: str, cpus: str, *, exclusive: bool = False) -> Placement:
    key = InstanceKey("default", name)
    return Placement(key=key, nodes=NodeSet([0]), cpus=CpuSet.parse(cpus), exclusive=exclusive)


def crowding(*placements: Placement, pinned: dict[str, str] | None = None) -> list[str]:
    instances = [builders.instance(one.key.name) for one in placements]
    instances += [builders.instance(name, pinned=cpus, managed=False) for name, cpus in (pinned or {}).items()]
    return sorted(key.name for key in owners.crowding({one.key: one for one in placements}, instances))


def test_nobody_leaves_where_nothing_is_exclusive() -> None:
    assert crowding(placed("a", "0-1"), placed("b", "0-1")) == []


def test_those_with_an_owners_cpus_leave_and_others_stay() -> None:
    own = placed("own", "0-1", exclusive=True)
    assert crowding(own, placed("a", "1-2"), placed("b", "2-3"), placed("c", "0")) == ["a", "c"]


def test_of_two_owners_the_one_with_the_later_name_leaves() -> None:
    own, other = placed("own1", "0-1", exclusive=True), placed("own2", "1-2", exclusive=True)
    assert crowding(own, other) == crowding(other, own) == ["own2"]


def test_owner_leaves_those_who_pin_its_cpus() -> None:
    own = placed("own", "0-1", exclusive=True)
    assert crowding(own, pinned={"pin": "1"}) == ["own"]
    assert crowding(own, pinned={"pin": "2"}) == []


def stranger(
    name: str, nodes: str | None = None, cpus: str | None = None, pinned: str | None = None
) -> tuple[Instance, Observed]:
    node_set, cpu_set = (
        (None if nodes is None else NodeSet.parse(nodes)),
        (None if cpus is None else CpuSet.parse(cpus)),
    )
    return builders.instance(name, managed=False, pinned=pinned), replace(NOTHING, nodes=node_set, cpus=cpu_set)


OWN = placed("own", "2-3", exclusive=True)


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (stranger("x"), True),
        (stranger("x", nodes="1"), False),
        (stranger("x", nodes="0-1"), True),
        (stranger("x", nodes="1", cpus="3-4"), True),
        (stranger("x", pinned="4-5"), False),
        (stranger("x", pinned="3-4"), True),
    ],
)
def test_strangers_are_those_that_the_server_does_not_keep_elsewhere(
    one: tuple[Instance, Observed], told: bool
) -> None:
    expected = "CPUs 2-3 of own are exclusive, but unmanaged instance x may run on them" if told else None
    assert owners.strangers(OWN, [one], ()) == expected


def test_a_record_that_the_server_does_not_follow_keeps_nobody_elsewhere() -> None:
    instance, observed = stranger("x", nodes="1")
    assert owners.strangers(OWN, [(instance, observed)], ()) is None
    assert owners.strangers(OWN, [(instance, replace(observed, followed=False))], ()) is not None


def test_placed_instances_are_no_strangers_and_refused_ones_are() -> None:
    seen = [(builders.instance(name), NOTHING) for name in ("a", "b", "own")]
    assert owners.strangers(OWN, seen, ()) is None
    assert owners.strangers(OWN, [*seen, stranger("u")], (seen[1][0].key,)) == (
        "CPUs 2-3 of own are exclusive, but unmanaged instance u and refused instance b may run on them"
    )


def test_of_many_strangers_some_are_named() -> None:
    sentence = owners.strangers(OWN, [stranger(f"u{number}") for number in range(9)], ()) or ""
    assert "unmanaged instances u0, u1, u2, u3, u4 and 4 more may" in sentence
