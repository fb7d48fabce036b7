"""What `explain` says about one instance, held against what a pass then does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import History, Hold
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy.rebalance import decision, explain
from incus_numa.policy.rebalance.explain import Verdict
from incus_numa.settings import PlacementSettings, RebalanceSettings
from tests.builders import GIB, instance
from tests.unit.test_rebalance import key, state

PLACEMENT, LIMITS = PlacementSettings(), RebalanceSettings()


def verdict(snapshot: Snapshot, name: str, history: History | None = None) -> Verdict:
    return explain.explain(snapshot, history or History(), 1000.0, PLACEMENT, LIMITS, key(name))


def moved(snapshot: Snapshot) -> set[InstanceKey]:
    found = decision.decide(snapshot, History(), 1000.0, PLACEMENT, LIMITS, forced=True)
    return {move.key for move in found.moves}


SPREAD = state({"a": "0", "b": "1", "c": "2", "d": "3"}, {"a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0})
CROWDED = state({"a": "0", "b": "0", "c": "1"}, {"a": 3.0, "b": 2.0, "c": 1.0}, memory=GIB)


def test_a_move_that_pays_now_needs_no_change() -> None:
    found = verdict(CROWDED, "a")
    assert found.would is None
    assert found.held is None
    assert (found.load_cpus, found.node_load, found.is_even) == (3.0, {0: 0.625}, False)
    assert [(one.nodes, one.hold) for one in found.options] == [
        (NodeSet([2]), None),
        (NodeSet([3]), None),
        (NodeSet([1]), None),
    ]


def test_the_least_other_load_of_the_node_that_makes_it_move_is_told() -> None:
    found = verdict(SPREAD, "a")
    assert found.options == ()
    told = re.fullmatch(
        r"it would pay to move it to node (\d) if node 0 were loaded ([0-9.]+), not 0.25", found.would or ""
    )
    assert told is not None
    cpus = {"a": 2.0, "b": 2.0, "c": 2.0, "d": 2.0}
    below, above = (
        replace(
            SPREAD,
            load=replace(SPREAD.load, cpus_by_instance={key(one): cpus[one] for one in cpus}, other_by_node={0: more}),
        )
        for more in ((float(told[2]) - 0.25 - 0.01) * 8, (float(told[2]) - 0.25 + 0.01) * 8)
    )
    assert moved(below) == set()
    assert key("a") in moved(above)


def test_the_load_of_its_own_that_makes_it_move_is_told() -> None:
    small = state({"a": "0", "b": "0"}, {"a": 0.005, "b": 6.0}, instance("b", vcpus=2, movable=False))
    found = verdict(small, "a")
    assert [one.hold for one in found.options] == [Hold.PRICE] * 3
    told = re.match(
        r"it would pay to move it to node 1 if it kept ([0-9.]+) CPUs busy instead of 0.01", found.would or ""
    )
    assert told is not None
    for cpus, moves in ((float(told[1]) - 0.01, False), (float(told[1]) + 0.01, True)):
        load = replace(small.load, cpus_by_instance={key("a"): cpus, key("b"): 6.0})
        assert (key("a") in moved(replace(small, load=load))) is moves


def test_one_that_no_other_node_would_carry_better_has_no_options() -> None:
    alone = state({"a": "0", "b": "1"}, {"a": 8.0, "b": 0.5})
    assert verdict(alone, "a").options == ()


@pytest.mark.parametrize("changed", [{"movable": False}, {"pinned": "0"}])
def test_what_never_moves_is_held_and_nothing_would_change_that(changed: dict[str, object]) -> None:
    found = verdict(state({"a": "0", "b": "0"}, {"a": 3.0, "b": 3.0}, instance("a", **changed)), "a")  # type: ignore[arg-type]
    assert found.held is not None
    assert found.held.hold in (Hold.NOT_MOVABLE, Hold.PINNED)
    assert (found.options, found.would) == ((), None)


def test_one_that_cools_down_is_told_until_when_and_what_it_would_gain() -> None:
    found = verdict(CROWDED, "a", History(moved_at_s={key("a"): 900.0}))
    assert found.held is not None
    assert (found.held.hold, found.held.detail) == (Hold.COOL_DOWN, "moved 100 s ago: it stays for 600 s")
    assert len(found.options) == 3


def test_options_that_do_not_fit_say_what_is_missing() -> None:
    full = [instance(name, vcpus=2, memory_bytes=31 * GIB) for name in ("x1", "x2", "x3")]
    wants = instance("a", vcpus=2, memory_bytes=2 * GIB)
    where = {"a": "0", "b": "0", "x1": "1", "x2": "2", "x3": "3"}
    load = {"a": 3.0, "b": 3.0, "x1": 0.0, "x2": 0.0, "x3": 0.0}
    found = verdict(state(where, load, wants, *full), "a")
    assert [one.hold for one in found.options] == [Hold.DOES_NOT_FIT] * 3
    assert "node 1 cannot take its 2 vCPUs and 2 GiB beside the others" in found.options[0].detail
    assert found.would is None


def test_unknown_load_says_nothing_about_targets() -> None:
    found = verdict(state({"a": "0", "b": "0"}, {"b": 3.0}), "a")
    assert found.load_cpus is None
    assert found.held is not None
    assert (found.held.hold, found.options, found.would) == (Hold.UNKNOWN_LOAD, (), None)


def test_an_unmanaged_instance_has_load_and_no_verdict() -> None:
    found = verdict(state({"a": "0"}, {"a": 3.0}, instance("a", vcpus=2, managed=False)), "a")
    assert (found.load_cpus, found.held, found.options, found.would) == (3.0, None, (), None)


def test_an_instance_that_does_not_run_is_an_error() -> None:
    with pytest.raises(KeyError):
        verdict(CROWDED, "nobody")


def test_what_would_pay_waits_until_the_load_is_uneven() -> None:
    where = {"a": "0", "e": "0", "f": "0", "b": "1", "c": "2", "d": "3"}
    found = verdict(state(where, {"a": 8.0, "e": 0.35, "f": 0.5, "b": 8.0, "c": 8.0, "d": 8.0}), "e")
    assert (found.is_even, found.options[0].hold) == (True, None)
    assert found.would is not None
