"""What each steward does while instances run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from incus_numa.replay import ground, stewards
from incus_numa.replay.ground import Look, Steward
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings, RebalanceSettings
from tests import builders
from tests.builders import GIB

HERE = ground.survey(builders.machine(nodes=4, cpus_per_node=4), PlacementSettings())
LIMITS = RebalanceSettings(hold_s=60.0, cooldown_s=600.0, interval_s=10.0)


def steward(name: str, limits: RebalanceSettings = LIMITS) -> Steward:
    return stewards.steward(name, HERE, PlacementSettings(), limits)


def stay(name: str, vcpus: int = 1) -> Stay:
    return Stay(name=name, arrival_s=0, departure_s=None, vcpus=vcpus, memory_bytes=GIB)


def put(where: Steward, *names: str, vcpus: int = 1, cpus: float = 0.02) -> dict[str, str]:
    """The nodes in list format of instances that arrive one after the other, each using so many CPUs."""
    found: dict[str, str] = {}
    for name in names:
        answer = where.arrive(stay(name, vcpus), dict.fromkeys((*found, name), cpus))
        assert set(answer) == {name}
        found[name] = str(answer[name].nodes)
    return found


def nodes(look: Look) -> Mapping[str, str]:
    return {name: str(seat.nodes) for name, seat in look.seats.items()}


EIGHT = tuple("abcdefgh")


def uneven(at: Mapping[str, str]) -> dict[str, float]:
    """All on node 0 are busy, and nobody else."""
    return {name: 0.9 if node == "0" else 0.02 for name, node in at.items()}


@pytest.mark.parametrize("name", stewards.NAMES)
def test_arrivals_are_spread_by_every_rule(name: str) -> None:
    if name != "numad-unbound":
        found = put(steward(name), *EIGHT)
        assert sorted(found.values()) == ["0", "0", "1", "1", "2", "2", "3", "3"]


@pytest.mark.parametrize("name", ["never", "incus", "incus-restarts"])
def test_measured_load_moves_nobody(name: str) -> None:
    where = steward(name)
    assert where.look(300, uneven(put(where, *EIGHT))) == Look()


@pytest.mark.parametrize("name", [name for name in stewards.NAMES if name != "incus-restarts"])
def test_a_restart_moves_nobody(name: str) -> None:
    where = steward(name)
    put(where, *EIGHT)
    assert where.restart(stay("a")) == {}


def test_incus_counts_anew_at_a_restart_without_the_instance_itself() -> None:
    where = steward("incus-restarts")
    assert put(where, "a", "b", "c", "d", "e") == {"a": "0", "b": "1", "c": "2", "d": "3", "e": "0"}
    where.depart("d")
    (seat,) = where.restart(stay("a")).values()
    assert str(seat.nodes) == "3"
    (seat,) = where.restart(stay("a")).values()
    assert str(seat.nodes) == "3"


class TestRebalanced:
    def test_one_of_two_busy_ones_moves_when_the_hold_time_is_over(self) -> None:
        where = steward("rebalanced")
        use = uneven(put(where, *EIGHT))
        assert where.look(300, use) == Look(again_s=360.0)
        moved = nodes(where.look(360, use))
        assert [name for name in moved if use[name] == 0.9] == list(moved)
        assert len(moved) == 1

    def test_an_arrival_finds_moved_ones_where_they_are_now(self) -> None:
        where = steward("rebalanced")
        use = uneven(put(where, *EIGHT))
        where.look(300, use)
        (node,) = nodes(where.look(360, use)).values()
        # One left node 0 for a node that now has one more than all others.
        assert sorted({"0", "1", "2", "3"} - {node}) == sorted(set(put(where, "w", "x", "y", "z").values()))

    def test_nobody_comes_back_while_the_load_stays_the_same(self) -> None:
        where = steward("rebalanced")
        use = uneven(put(where, *EIGHT))
        where.look(300, use)
        assert nodes(where.look(360, use)) != {}
        assert [nodes(where.look(360 + 60 * number, use)) for number in range(1, 30)] == [{}] * 29

    def test_while_the_load_is_uneven_the_end_of_a_cool_down_is_a_time_to_look(self) -> None:
        where = steward("rebalanced")
        use = uneven(put(where, *EIGHT))
        where.look(300, use)
        assert [where.look(at_s, use).again_s for at_s in (360, 420, 960)] == [420, 960, None]

    def test_even_load_moves_nobody_and_needs_no_further_look(self) -> None:
        where = steward("rebalanced")
        put(where, *EIGHT)
        assert where.look(300, dict.fromkeys(EIGHT, 0.5)) == Look()

    def test_settings_decide(self) -> None:
        where = steward("rebalanced", RebalanceSettings(hold_s=0.1, move_price=1000.0))
        use = uneven(put(where, *EIGHT))
        where.look(300, use)
        assert nodes(where.look(400, use)) == {}

    def test_one_who_left_is_counted_no_longer(self) -> None:
        where = steward("rebalanced")
        use = uneven(put(where, *EIGHT))
        left = next(name for name in EIGHT if use[name] == 0.9)
        where.depart(left)
        del use[left]
        where.look(300, use)
        assert nodes(where.look(360, use)) == {}
        assert put(where, "new") == {"new": "0"}
