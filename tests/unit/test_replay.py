"""What is measured when a trace is replayed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.errors import ConfigError
from incus_numa.replay import ground, policies, replay
from incus_numa.replay.ground import Ground, Seat
from incus_numa.replay.history import LoadHistory
from incus_numa.replay.replay import Outcome
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings
from tests import builders
from tests.builders import GIB

SETTINGS = PlacementSettings()
HERE = ground.survey(builders.machine(nodes=4, cpus_per_node=4), SETTINGS)


def stay(name: str, arrival_s: float, departure_s: float | None, vcpus: int = 4) -> Stay:
    return Stay(name=name, arrival_s=arrival_s, departure_s=departure_s, vcpus=vcpus, memory_bytes=GIB)


def outcome(policy: str, *stays: Stay, here: Ground = HERE) -> Outcome:
    return replay.replay(here, replay.list_events(stays), policies.placer(policy, here, SETTINGS))


class Scripted:
    """Answers the seats that it was given for each name."""

    def __init__(self, **answers: Mapping[str, str]) -> None:
        self.answers = answers
        self.left: list[str] = []

    def arrive(self, stay: Stay) -> Mapping[str, Seat]:
        nodes = self.answers.get(stay.name, {})
        return {name: HERE.spread(map(int, text.split("+")), 4) for name, text in nodes.items()}

    def depart(self, name: str) -> None:
        self.left.append(name)


def scripted(placer: Scripted, *stays: Stay) -> Outcome:
    return replay.replay(HERE, replay.list_events(stays), placer)


def test_everything_is_averaged_over_the_time_in_which_anything_runs() -> None:
    # Alone for 1 s (load 1 on one of four nodes: 4 times the mean), nothing for 10 s, then two nodes for 3 s.
    placer = Scripted(a={"a": "0"}, b={"b": "0"}, c={"c": "2+3"})
    found = scripted(placer, stay("a", 0, 1), stay("b", 11, 14), stay("c", 11, 14))
    assert found == Outcome(
        mean_imbalance=(4 * 1 + 2 * 3) / 4,
        worst_imbalance=4.0,
        mean_load=(0.25 * 1 + 0.5 * 3) / 4,
        highest_load=1.0,
        mean_distance=(10 + 10 + 12) / 3,
        multi_node_distance=12.0,
        nodes_per_instance=4 / 3,
        placed=3,
        rejected=(),
        moves=0,
    )
    assert placer.left == ["a", "b", "c"]


def test_a_moved_instance_counts_as_a_move_and_as_load_where_it_is_now() -> None:
    placer = Scripted(a={"a": "0"}, b={"a": "1", "b": "0"}, c={"c": "2", "b": "0"})
    found = scripted(placer, stay("a", 0, None), stay("b", 1, None), stay("c", 2, None))
    assert (found.moves, found.highest_load, found.placed) == (1, 1.0, 3)


def test_one_who_was_refused_neither_loads_nor_departs() -> None:
    placer = Scripted(a={"a": "0"})
    found = scripted(placer, stay("a", 0, 8), stay("b", 1, 2))
    assert (found.rejected, found.placed, found.mean_load) == (("b",), 1, 0.25)
    assert placer.left == ["a"]


def test_departures_of_a_time_come_before_its_arrivals() -> None:
    found = outcome("kubelet", stay("old", 0, 5, 16), stay("new", 5, 6, 16))
    assert (found.placed, found.rejected) == (2, ())


def test_a_stay_without_duration_arrives_before_it_departs() -> None:
    found = outcome("kubelet", stay("short", 5, 5, 16), stay("other", 9, 10, 16))
    assert (found.placed, found.rejected, found.highest_load) == (2, (), 1.0)


def test_a_trace_without_duration_is_its_last_moment() -> None:
    found = outcome("balanced", stay("a", 3, None), stay("b", 3, None))
    assert (found.mean_imbalance, found.mean_load) == (2.0, 0.5)


def test_nothing_placed_has_nothing_to_measure() -> None:
    assert outcome("kubelet", stay("a", 0, 9, 17)) == Outcome(
        mean_imbalance=None,
        worst_imbalance=None,
        mean_load=None,
        highest_load=0.0,
        mean_distance=None,
        multi_node_distance=None,
        nodes_per_instance=None,
        placed=0,
        rejected=("a",),
        moves=0,
    )


def test_an_unknown_distance_is_left_out() -> None:
    here = ground.survey(builders.load_machine("epyc-no-distances"), SETTINGS)
    found = outcome("incus", stay("wide", 0, 1, here.total_cpus), stay("slim", 0, 1, 1), here=here)
    assert (found.mean_distance, found.multi_node_distance) == (10.0, None)


@pytest.mark.parametrize("name", policies.NAMES)
def test_an_instance_larger_than_the_machine_is_the_whole_machine_or_refused(name: str) -> None:
    found = outcome(name, stay("a", 0, 9, 1000))
    refuses = name in {"kubelet", "kubelet-restricted", "single-numa-node"}
    assert (found.placed, found.rejected) == ((0, ("a",)) if refuses else (1, ()))
    assert found.highest_load == (0.0 if refuses else 1.0)


def test_a_machine_without_usable_cpus_is_told() -> None:
    with pytest.raises(ConfigError, match="no usable CPU"):
        ground.survey(builders.machine(nodes=1, cpus_per_node=2), PlacementSettings(reserved_cpus="0-1"))


def test_history_is_the_average_of_each_stretch() -> None:
    history = LoadHistory(4, 0.0, 8.0, columns=4)
    stays = [stay("a", 0, 3), stay("b", 7, 8)]
    replay.replay(HERE, replay.list_events(stays), Scripted(a={"a": "0"}, b={"b": "1"}), history=history)
    assert history.rows() == [[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5], [0.0] * 4, [0.0] * 4]


def test_history_without_duration_is_one_column() -> None:
    history = LoadHistory(4, 3.0, 3.0)
    replay.replay(HERE, replay.list_events([stay("a", 3, None)]), Scripted(a={"a": "0"}), history=history)
    assert history.rows() == [[1.0], [0.0], [0.0], [0.0]]


STAYS = st.lists(
    st.tuples(st.integers(0, 20), st.none() | st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=25
).map(
    lambda rows: [
        stay(f"i{n}", at, None if length is None else at + length, vcpus) for n, (at, length, vcpus) in enumerate(rows)
    ]
)


@given(STAYS, st.sampled_from(policies.NAMES))
def test_any_trace_can_be_replayed_with_any_policy(stays: list[Stay], name: str) -> None:
    found = outcome(name, *stays)
    assert found.placed + len(found.rejected) == len(stays)
    assert found.moves == 0
    if found.highest_load:
        assert found.mean_imbalance is not None
        assert found.worst_imbalance is not None
        assert 1.0 - 1e-9 <= found.mean_imbalance <= found.worst_imbalance + 1e-9 <= 4.0 + 2e-9
    assert outcome(name, *stays) == found
