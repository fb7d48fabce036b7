"""What `explain` says about one instance, held against what a pass then does."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import History, Hold
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy.rebalance import decision, explain, staying
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
    assert [one.hold for one in found.options] == [Hold.NO_GAIN] * 3
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
        r"it would pay to move it to node 1 if it kept ([0-9.]+) CPUs busy instead of 0.005,", found.would or ""
    )
    assert told is not None
    for cpus, moves in ((float(told[1]) - 0.001, False), (float(told[1]) + 0.001, True)):
        load = replace(small.load, cpus_by_instance={key("a"): cpus, key("b"): 6.0})
        assert (key("a") in moved(replace(small, load=load))) is moves


def test_nodes_that_would_carry_it_no_better_are_told_the_least_bad_first() -> None:
    alone = state({"a": "0", "b": "1"}, {"a": 8.0, "b": 0.5})
    found = verdict(alone, "a").options
    assert [(one.nodes, one.hold) for one in found] == [(NodeSet([node]), Hold.NO_GAIN) for node in (2, 3, 1)]
    assert [one.gain for one in found] == [0.0, 0.0, -1.0]
    assert found[2].detail == "load there would rise to 1.06, and node 0 is 1.00 now"


def test_a_node_that_would_be_nearly_as_loaded_is_told_as_such() -> None:
    found = verdict(state({"a": "0", "b": "0"}, {"a": 7.75, "b": 0.2}), "a").options
    assert {one.hold for one in found} == {Hold.NO_GAIN}
    assert found[0].gain > found[0].price
    assert found[0].detail == "load there would rise to 0.97, above 0.95: too near to node 0, which is 0.99 now"


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (0.25, 0.5, ("0.25", "0.50")),
        (0.1312, 0.1309, ("0.1312", "0.1309")),
        (0.121001, 0.121, ("0.121001", "0.121000")),
        (0.5, 0.5, ("0.50", "0.50")),
    ],
)
def test_two_amounts_have_as_many_digits_as_tell_them_apart(one: float, other: float, told: tuple[str, str]) -> None:
    assert staying.apart(one, other) == told


def test_an_idle_instance_gains_nothing_anywhere() -> None:
    found = verdict(state({"a": "0", "b": "0"}, {"a": 0.0, "b": 6.0}), "a").options
    assert [(one.gain, one.detail) for one in found] == [(0.0, "it keeps no CPU busy")] * 3


def test_nodes_of_a_wide_instance_are_no_targets() -> None:
    found = verdict(state({"a": "0-1", "b": "2"}, {"a": 8.0, "b": 1.0}), "a").options
    assert {one.nodes for one in found} == {NodeSet([1, 2]), NodeSet([1, 3])}


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
    assert found.would == "it may move again in 500 s, when its cool-down ends"


def test_a_cool_down_is_what_has_to_end_also_where_nothing_pays() -> None:
    found = verdict(SPREAD, "a", History(moved_at_s={key("a"): 900.0}))
    assert found.would == "it may move again in 500 s, when its cool-down ends"


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
