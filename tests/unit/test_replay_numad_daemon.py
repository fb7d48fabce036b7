"""numad's rule for what runs, as it is documented, on four nodes of 4 CPUs and 32 GiB."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from incus_numa.replay import ground
from incus_numa.replay.ground import Look
from incus_numa.replay.peer_numad_daemon import NumadDaemon
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings
from tests import builders
from tests.builders import GIB

HERE = ground.survey(builders.machine(nodes=4, cpus_per_node=4), PlacementSettings())
MIB = 1 << 20


class Host:
    """A daemon, and where everybody is and what they use."""

    def __init__(self, *, binds: bool = True) -> None:
        self.daemon = NumadDaemon(HERE, binds_arrivals=binds)
        self.at: dict[str, str] = {}
        self.is_bound = binds
        self.use: dict[str, float] = {}

    def put(self, name: str, vcpus: int = 4, cpus: float = 0.02, memory_bytes: int | None = GIB) -> str:
        """The nodes of an arrival in list format."""
        self.use[name] = cpus
        new = Stay(name=name, arrival_s=0, departure_s=None, vcpus=vcpus, memory_bytes=memory_bytes)
        (seat,) = self.daemon.arrive(new, self.use).values()
        self.is_bound = seat.bound
        self.at[name] = str(seat.nodes)
        return self.at[name]

    def look(self, now_s: float, **use: float) -> Mapping[str, str]:
        """Who is moved, and where to."""
        moved = {name: str(seat.nodes) for name, seat in self.round(now_s, **use).seats.items()}
        self.at |= moved
        return moved

    def round(self, now_s: float, **use: float) -> Look:
        self.use |= use
        return self.daemon.look(now_s, self.use)


@pytest.fixture
def host() -> Host:
    """a, b, c, d are alone on nodes 0 to 3, and e is beside a."""
    host = Host()
    assert [host.put(name) for name in "abcde"] == ["0", "1", "2", "3", "0"]
    return host


class TestArrivals:
    def test_free_cpus_are_what_nobody_uses(self) -> None:
        host = Host()
        assert [host.put("a", 4, 3.0, 4 * GIB), host.put("b", 4, 0.1, 4 * GIB)] == ["0", "1"]
        assert [host.put(name, memory_bytes=4 * GIB) for name in "cd"] == ["2", "3"]
        # By commitments all nodes are alike, and node 0 would be the lowest.
        assert host.put("e", memory_bytes=4 * GIB) == "2"

    def test_who_is_not_bound_runs_everywhere_until_it_uses_more_than_half_a_cpu(self) -> None:
        host = Host(binds=False)
        assert (host.put("idle", cpus=0.5), host.is_bound) == ("0-3", False)
        assert (host.put("busy", cpus=0.6), host.is_bound) == ("0", True)
        assert host.look(300) == {}
        assert host.look(600, idle=0.51) == {"idle": "1"}

    def test_who_is_not_bound_and_needs_all_nodes_stays_everywhere(self) -> None:
        host = Host(binds=False)
        assert host.put("wide", vcpus=16, cpus=16) == "0-3"
        assert host.look(300) == {}

    def test_300_mb_are_too_little_to_be_looked_at(self) -> None:
        host = Host(binds=False)
        assert host.put("small", cpus=2, memory_bytes=300 * MIB) == "0-3"
        assert host.put("large", cpus=2, memory_bytes=301 * MIB) != "0-3"
        assert host.look(600) == {}


class TestRounds:
    def test_one_of_two_busy_ones_goes_to_the_node_with_the_most_free(self, host: Host) -> None:
        assert host.look(300, a=2.6, e=2, b=1) == {"a": "2"}
        assert host.look(305) == {}

    def test_a_round_moves_one_and_the_next_follows_after_5_seconds(self, host: Host) -> None:
        host.put("f")
        host.put("g")
        assert [host.at[name] for name in "fg"] == ["1", "2"]
        first = host.round(300, a=2, e=2, b=2, f=2)
        assert (set(first.seats), first.again_s) == ({"f"}, 305)
        assert set(host.round(305).seats) == {"e"}

    def test_the_largest_product_of_cpus_and_memory_comes_first(self, host: Host) -> None:
        assert set(host.look(300, a=2, e=3)) == {"e"}

    def test_who_is_not_bound_comes_before_all_others(self) -> None:
        host = Host(binds=False)
        cpus = {"u": 0.3, "v": 0.6, "x": 3.9, "y": 3.9, "z": 3.9, "w": 0.6}
        assert [host.put(name, cpus=one) for name, one in cpus.items()] == ["0-3", "0", "1", "2", "3", "0"]
        quiet = dict.fromkeys("xyz", 0.02)
        assert set(host.look(600, u=0.6, v=2, w=2, **quiet)) == {"u"}
        assert set(host.look(605)) == {"w"}

    def test_of_equals_who_was_evaluated_longest_ago_comes_first(self, host: Host) -> None:
        assert host.look(300, a=1) == {}
        assert host.look(600, a=1.1, e=1) == {"e": "1"}

    def test_half_a_cpu_is_too_little_to_be_looked_at(self, host: Host) -> None:
        assert host.round(300, a=0.5, e=0.5) == Look()

    def test_who_was_evaluated_within_5_minutes_is_passed_over(self, host: Host) -> None:
        early = host.round(299, a=2, e=2)
        assert (early.seats, early.again_s) == ({}, 314)
        assert set(host.look(300)) == {"e"}

    def test_a_quiet_daemon_looks_when_5_minutes_end_for_somebody(self, host: Host) -> None:
        assert host.round(290, a=2).again_s == 305
        assert host.round(300, a=2).again_s == 600

    def test_who_would_even_out_cpus_and_memory_does_not_wait(self) -> None:
        host = Host()
        assert [host.put(name, memory_bytes=2 * GIB if name == "e" else GIB) for name in "abcd"] == ["0", "1", "2", "3"]
        assert host.put("e", memory_bytes=2 * GIB) == "0"
        assert host.look(200, a=2, e=2) == {"a": "1"}

    @pytest.mark.parametrize(
        ("a", "e", "b"),
        [
            pytest.param(0.6, 0.02, 0.02, id="it uses too little to make a difference"),
            pytest.param(1.5, 1.5, 3.9, id="it is not on the node with the least free"),
        ],
    )
    def test_others_wait_even_if_memory_would_be_more_even(self, a: float, e: float, b: float) -> None:
        host = Host()
        sizes = {"a": GIB, "b": 2 * GIB, "c": GIB, "d": GIB, "e": 2 * GIB, "f": 3 * GIB}
        assert [host.put(name, memory_bytes=size) for name, size in sizes.items()] == ["0", "1", "2", "3", "0", "2"]
        assert host.look(200, a=a, e=e, b=b) == {}

    def test_a_fourth_more_than_its_memory_holds_one_where_it_is(self) -> None:
        host = Host()
        assert host.put("a", memory_bytes=8 * GIB) == "0"
        assert [host.put(name, cpus=3, memory_bytes=7 * GIB) for name in "bcd"] == ["1", "2", "3"]
        assert host.put("e", memory_bytes=8 * GIB) == "0"
        # Without its memory node 0 has 22 GiB free, the others have 23.
        assert host.look(300, b=0.02, c=0.02, d=0.02, e=2) == {}

    def test_memory_goes_along(self, host: Host) -> None:
        assert host.look(300, a=2, e=2) == {"e": "1"}
        host.use |= {"a": 0.02, "e": 0.02}
        # All nodes but node 1 hold a GiB now, and nobody is busy.
        assert [host.put(name) for name in ("f", "g", "h")] == ["0", "2", "3"]

    def test_who_is_alone_does_not_wander(self) -> None:
        host = Host()
        assert [host.put(name) for name in "abcd"] == ["0", "1", "2", "3"]
        for name in "abc":
            host.daemon.depart(name)
            del host.use[name]
        assert host.look(300, d=2) == {}

    def test_the_same_nodes_are_no_move(self, host: Host) -> None:
        assert host.look(300, a=2) == {}


class TestWidth:
    def test_nodes_are_as_many_as_are_used_with_the_margin_on_top(self) -> None:
        host = Host()
        assert host.put("wide", vcpus=8, cpus=8) == "0-1"
        # 8 CPUs are all that it has threads for; 3.6 and the margin are what a node and the flexible part have.
        assert host.look(300, wide=7.0) == {}
        assert host.look(600, wide=3.6) == {"wide": "0"}
        assert host.look(900, wide=3.7) == {"wide": "0-1"}

    def test_nobody_gets_more_cpus_than_it_has_threads(self) -> None:
        host = Host()
        assert host.put("full", vcpus=4, cpus=4) == "0"
        assert host.look(300) == {}

    def test_cpus_are_taken_for_granted_unless_more_are_used_than_there_are(self) -> None:
        found = []
        for cpus in (6, 9):
            host = Host()
            for name, vcpus in (("big", 16), ("q", 4), ("r", 4), ("s", 4), ("t", 4), ("u", 4)):
                host.put(name, vcpus=vcpus)
            use = {"big": float(cpus), "q": 3.0, "r": 1.5, "s": 1.5, "t": 1.5, "u": 1.5}
            found.append([host.look(300 + 5 * number, **use).get("q") for number in range(6)])
        assert found[0] != found[1]


def test_departures_leave_an_empty_machine(host: Host) -> None:
    host.look(300, a=2, e=2)
    for name in "abcde":
        host.daemon.depart(name)
        del host.use[name]
    assert [host.put(name) for name in "vwxyz"] == ["0", "1", "2", "3", "0"]


def test_cpus_alone_decide_where_memory_is_not_known() -> None:
    machine = builders.machine(nodes=2, cpus_per_node=4, memory_bytes=None)
    daemon = NumadDaemon(ground.survey(machine, PlacementSettings()), binds_arrivals=True)
    use = {"a": 2.0, "b": 2.0}
    for name in use:
        daemon.arrive(Stay(name=name, arrival_s=0, departure_s=None, vcpus=2, memory_bytes=None), {"a": 0.1, name: 0.1})
    assert {name: str(seat.nodes) for name, seat in daemon.look(300, use).seats.items()} == {}
