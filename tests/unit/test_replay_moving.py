"""What is measured when a trace is replayed with use that changes and with stewards that move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from incus_numa.cpuset import NodeSet
from incus_numa.replay import ground, loads, moving, stewards
from incus_numa.replay.ground import Look, Seat
from incus_numa.replay.loads import HOUR
from incus_numa.replay.moving import Happening, Kind, MoveOutcome
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings, RebalanceSettings
from tests import builders
from tests.builders import GIB

SETTINGS = PlacementSettings()
HERE = ground.survey(builders.machine(nodes=4, cpus_per_node=4), SETTINGS)


def stay(name: str, *, vcpus: int = 4, memory_bytes: int | None = 8 * GIB) -> Stay:
    return Stay(name=name, arrival_s=0, departure_s=None, vcpus=vcpus, memory_bytes=memory_bytes)


def arrives(at_s: float, name: str, cpus: float) -> Happening:
    return Happening(at_s, 1, Kind.ARRIVES, stay(name), cpus)


def departs(at_s: float, name: str) -> Happening:
    return Happening(at_s, 0, Kind.DEPARTS, stay(name))


def uses(at_s: float, name: str, cpus: float) -> Happening:
    return Happening(at_s, Kind.USES, Kind.USES, stay(name), cpus)


def restarts(at_s: float, name: str) -> Happening:
    return Happening(at_s, Kind.RESTARTS, Kind.RESTARTS, stay(name))


def seat(nodes: str) -> Seat:
    return HERE.spread(NodeSet.parse(nodes), 4)


class Scripted:
    """Seats everybody where it is told to, and answers looks and restarts as it is told to."""

    def __init__(
        self,
        arrivals: Mapping[str, str],
        looks: Mapping[float, Look] | None = None,
        restarted: Mapping[str, str] | None = None,
    ) -> None:
        self.arrivals, self.looks, self.restarted = arrivals, looks or {}, restarted or {}
        self.looked: list[tuple[float, dict[str, float]]] = []
        self.arrived: list[dict[str, float]] = []
        self.left: list[str] = []

    def arrive(self, stay: Stay, use: Mapping[str, float]) -> Mapping[str, Seat]:
        self.arrived.append(dict(use))
        return {stay.name: seat(self.arrivals[stay.name])} if stay.name in self.arrivals else {}

    def depart(self, name: str) -> None:
        self.left.append(name)

    def look(self, now_s: float, use: Mapping[str, float]) -> Look:
        self.looked.append((now_s, dict(use)))
        return self.looks.get(now_s, Look())

    def restart(self, stay: Stay) -> Mapping[str, Seat]:
        return {stay.name: seat(self.restarted[stay.name])} if stay.name in self.restarted else {}


def replayed(steward: Scripted, *happenings: Happening, every_s: float = 1000) -> MoveOutcome:
    return moving.replay_moves(HERE, happenings, steward, every_s=every_s)


NOTHING = MoveOutcome(
    mean_imbalance=None,
    weighted_imbalance=None,
    worst_imbalance=None,
    mean_load=None,
    nodes_per_instance=None,
    moves=0,
    moved_bytes=0,
    placed=0,
    rejected=0,
)


class TestAverages:
    def test_imbalance_is_averaged_over_time_and_over_what_is_done(self) -> None:
        # Alone on a node for 10 s with 4 CPUs (load 0.25, 4 times the mean on one of four nodes), then for 30 s with
        # 1 CPU beside 1 CPU on two nodes (0.25 + 0 and 0.125 + 0.125 over a mean of 0.125).
        found = replayed(
            Scripted({"a": "0", "b": "1-2"}),
            arrives(0, "a", 4),
            uses(10, "a", 1),
            arrives(10, "b", 1),
            departs(40, "b"),
        )
        assert found == MoveOutcome(
            mean_imbalance=(4 * 10 + 2 * 30) / 40,
            weighted_imbalance=(1.0 * 10 + 0.25 * 30) / (0.25 * 10 + 0.125 * 30),
            worst_imbalance=4.0,
            mean_load=(0.25 * 10 + 0.125 * 30) / 40,
            nodes_per_instance=(1 * 10 + 3 * 30) / (10 + 2 * 30),
            moves=0,
            moved_bytes=0,
            placed=2,
            rejected=0,
        )

    def test_time_in_which_nothing_runs_does_not_count(self) -> None:
        found = replayed(
            Scripted({"a": "0", "b": "0-3"}),
            arrives(0, "a", 1),
            departs(10, "a"),
            arrives(90, "b", 1),
            departs(100, "b"),
        )
        assert (found.mean_imbalance, found.weighted_imbalance, found.mean_load) == (2.5, 2.5, 0.0625)

    def test_more_is_used_than_there_is(self) -> None:
        found = replayed(Scripted({"a": "0", "b": "0"}), arrives(0, "a", 4), arrives(0, "b", 4), departs(9, "b"))
        assert (found.mean_imbalance, found.mean_load) == (4.0, 0.5)

    def test_a_trace_without_duration_is_its_last_moment(self) -> None:
        found = replayed(Scripted({"a": "0", "b": "1"}), arrives(3, "a", 1), arrives(3, "b", 3))
        assert (found.mean_imbalance, found.weighted_imbalance, found.mean_load) == (3.0, 3.0, 0.25)

    def test_nothing_happens(self) -> None:
        assert replayed(Scripted({})) == NOTHING

    def test_one_who_is_refused_does_nothing(self) -> None:
        steward = Scripted({})
        found = replayed(steward, arrives(0, "a", 4), uses(5, "a", 1), restarts(6, "a"), departs(9, "a"))
        assert (found, steward.left) == (replace(NOTHING, rejected=1), [])


class TestMoves:
    def test_a_move_takes_load_and_the_memory_of_the_nodes_that_are_left(self) -> None:
        looks = {100.0: Look(seats={"a": seat("1-2")})}
        found = replayed(Scripted({"a": "0-1"}, looks), arrives(0, "a", 4), departs(400, "a"), every_s=100)
        assert (found.moves, found.moved_bytes, found.mean_imbalance) == (1, 4 * GIB, 2.0)

    def test_load_counts_where_it_is_from_the_move_on(self) -> None:
        looks = {100.0: Look(seats={"a": seat("0-3")})}
        found = replayed(Scripted({"a": "0"}, looks), arrives(0, "a", 4), departs(400, "a"), every_s=100)
        assert (found.moves, found.moved_bytes, found.mean_imbalance) == (1, 0, (4 * 100 + 1 * 300) / 400)

    def test_the_same_nodes_are_no_move(self) -> None:
        looks = {100.0: Look(seats={"a": seat("0")})}
        found = replayed(Scripted({"a": "0"}, looks), arrives(0, "a", 4), departs(400, "a"), every_s=100)
        assert (found.moves, found.moved_bytes) == (0, 0)

    def test_memory_follows_one_who_was_not_bound_but_that_is_no_move(self) -> None:
        class Unbound(Scripted):
            def arrive(self, stay: Stay, use: Mapping[str, float]) -> Mapping[str, Seat]:
                return {stay.name: replace(seat("0-3"), bound=False)}

        looks = {100.0: Look(seats={"a": seat("2")})}
        found = replayed(Unbound({}, looks), arrives(0, "a", 4), departs(400, "a"), every_s=100)
        assert (found.moves, found.moved_bytes) == (0, 6 * GIB)

    def test_a_restart_on_other_nodes_is_a_move_that_no_memory_follows(self) -> None:
        steward = Scripted({"a": "0"}, restarted={"a": "3"})
        found = replayed(steward, arrives(0, "a", 4), restarts(50, "a"), departs(100, "a"))
        assert (found.moves, found.moved_bytes) == (1, 0)

    def test_memory_that_is_unknown_is_none(self) -> None:
        new = Happening(0, 1, Kind.ARRIVES, stay("a", memory_bytes=None), 1)
        steward = Scripted({"a": "0"}, {100.0: Look(seats={"a": seat("1")})})
        found = replayed(steward, new, departs(400, "a"), every_s=100)
        assert (found.moves, found.moved_bytes) == (1, 0)


class TestLooks:
    def test_stewards_look_once_after_anything_happened(self) -> None:
        steward = Scripted({"a": "0"})
        replayed(steward, arrives(7, "a", 4), uses(307, "a", 1), uses(330, "a", 2), departs(1000, "a"), every_s=100)
        assert steward.looked == [(107, {"a": 4}), (407, {"a": 2})]

    def test_stewards_look_when_they_asked_for_it(self) -> None:
        steward = Scripted({"a": "0"}, {100.0: Look(again_s=105.0), 105.0: Look(again_s=110.0)})
        replayed(steward, arrives(0, "a", 4), departs(1000, "a"), every_s=100)
        assert [at_s for at_s, _ in steward.looked] == [100, 105, 110]

    def test_a_look_that_was_asked_for_shows_what_happened_before_it(self) -> None:
        steward = Scripted({"a": "0"}, {100.0: Look(again_s=150.0)})
        replayed(steward, arrives(0, "a", 4), uses(120, "a", 1), departs(1000, "a"), every_s=100)
        assert steward.looked == [(100, {"a": 4}), (150, {"a": 1})]

    def test_a_look_comes_after_what_happens_at_the_same_time(self) -> None:
        steward = Scripted({"a": "0"})
        replayed(steward, arrives(0, "a", 4), uses(100, "a", 1), departs(1000, "a"), every_s=100)
        assert steward.looked == [(100, {"a": 1})]

    def test_an_arrival_is_told_what_everybody_uses(self) -> None:
        steward = Scripted({"a": "0", "b": "1"})
        replayed(steward, arrives(0, "a", 4), arrives(5, "b", 2))
        assert steward.arrived == [{"a": 4}, {"a": 4, "b": 2}]

    def test_nobody_uses_more_than_the_machine_has(self) -> None:
        steward = Scripted({"a": "0-3"})
        found = replayed(steward, arrives(0, "a", 99), departs(10, "a"))
        assert (steward.arrived, found.mean_load) == ([{"a": 16}], 1.0)


class TestHappenings:
    def test_a_trace_becomes_arrivals_use_restarts_and_departures_in_order(self) -> None:
        long = Stay(name="long", arrival_s=10, departure_s=None, vcpus=2, memory_bytes=None)
        short = Stay(name="short", arrival_s=5, departure_s=100 * HOUR, vcpus=1, memory_bytes=None)
        found = moving.list_happenings([short, long])
        expected = [
            *[(one.at_s, "uses", name.name) for name in (long, short) for one in loads.list_phases(name, 100 * HOUR)],
            *[
                (at_s, "restarts", name.name)
                for name in (long, short)
                for at_s in loads.list_restarts(name, 100 * HOUR)
            ],
            (100 * HOUR, "departs", "short"),
        ]
        kinds = {Kind.ARRIVES: "uses", Kind.USES: "uses", Kind.RESTARTS: "restarts", Kind.DEPARTS: "departs"}
        assert [(one.at_s, kinds[one.kind], one.stay.name) for one in found] == sorted(expected)

    def test_departures_of_a_time_come_first_but_for_those_who_arrived_then(self) -> None:
        stays = [
            Stay(name=name, arrival_s=begin, departure_s=end, vcpus=1, memory_bytes=None)
            for name, begin, end in (("zero", 5, 5), ("old", 0, 5), ("new", 5, 6))
        ]
        found = [(one.kind, one.stay.name) for one in moving.list_happenings(stays) if one.at_s == 5]
        assert found == [
            (Kind.DEPARTS, "old"),
            (Kind.ARRIVES, "zero"),
            (Kind.ARRIVES, "new"),
            (Kind.DEPARTS, "zero"),
        ]


STAYS = st.lists(
    st.tuples(st.integers(0, 20), st.none() | st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=8
).map(
    lambda rows: [
        Stay(
            name=f"i{place}",
            arrival_s=HOUR * at,
            departure_s=None if length is None else HOUR * (at + length),
            vcpus=vcpus,
            memory_bytes=GIB,
        )
        for place, (at, length, vcpus) in enumerate(rows)
    ]
)


@pytest.mark.parametrize("name", stewards.NAMES)
@settings(max_examples=15)
@given(stays=STAYS)
def test_any_trace_can_be_replayed_with_any_steward(name: str, stays: list[Stay]) -> None:
    def make() -> MoveOutcome:
        steward = stewards.steward(name, HERE, SETTINGS, RebalanceSettings())
        return moving.replay_moves(HERE, moving.list_happenings(stays), steward)

    found = make()
    assert (found.placed, found.rejected) == (len(stays), 0)
    assert found.mean_imbalance is not None
    assert found.worst_imbalance is not None
    assert 1.0 - 1e-6 <= found.mean_imbalance <= found.worst_imbalance + 1e-6 <= 4.0 + 2e-6
    assert name not in stewards.STILL or (found.moves, found.moved_bytes) == (0, 0)
    assert make() == found
