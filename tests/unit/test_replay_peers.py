"""The peers' rules, case by case as they are documented."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.machine import Cpu, Machine, Node
from incus_numa.replay import ground, policies
from incus_numa.replay.ground import Placer
from incus_numa.replay.peer_kubelet import merged_mask
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings
from tests import builders
from tests.builders import GIB

SETTINGS = PlacementSettings()
FOUR = builders.machine(nodes=4, cpus_per_node=4)


def placer(name: str, machine: Machine = FOUR) -> Placer:
    return policies.placer(name, ground.survey(machine, SETTINGS), SETTINGS)


def put(where: Placer, name: str, vcpus: int, memory_bytes: int | None = GIB) -> str | None:
    """The nodes in list format, None when refused."""
    answer = where.arrive(Stay(name=name, arrival_s=0, departure_s=None, vcpus=vcpus, memory_bytes=memory_bytes))
    assert set(answer) <= {name}
    return str(answer[name].nodes) if answer else None


class TestIncus:
    def test_instances_are_counted_not_their_vcpus(self) -> None:
        incus = placer("incus")
        assert [put(incus, f"i{n}", vcpus) for n, vcpus in enumerate((4, 1, 1, 1, 4))] == ["0", "1", "2", "3", "0"]

    def test_nodes_are_as_many_as_vcpus_ask_for_and_at_most_all(self) -> None:
        incus = placer("incus")
        assert put(incus, "a", 5) == "0-1"
        assert put(incus, "b", 9) == "0,2-3"
        assert put(incus, "c", 1) == "1"
        assert put(incus, "d", 64) == "0-3"

    def test_isolated_cpus_count_for_the_number_of_nodes(self) -> None:
        machine = builders.machine(nodes=4, cpus_per_node=4, isolated="0-2")
        assert put(placer("incus", machine), "a", 4) == "0"

    def test_a_departure_is_counted(self) -> None:
        incus = placer("incus")
        for name in "abcd":
            put(incus, name, 1)
        incus.depart("c")
        assert put(incus, "e", 1) == "2"


class TestKubelet:
    def test_the_lowest_nodes_are_packed_first(self) -> None:
        kubelet = placer("kubelet")
        assert [put(kubelet, f"i{n}", 2) for n in range(4)] == ["0", "0", "1", "1"]

    def test_the_narrowest_set_comes_before_the_lowest(self) -> None:
        kubelet = placer("kubelet")
        put(kubelet, "a", 1)
        put(kubelet, "b", 4)
        assert put(kubelet, "c", 4) == "2"

    def test_of_equally_wide_masks_the_smaller_number_wins(self) -> None:
        # {1, 2} is 0b0110 and {0, 3} is 0b1001.
        assert merged_mask({0: 3, 1: 2, 2: 2, 3: 1}, 4) == [0, 1]
        assert merged_mask({0: 1, 1: 2, 2: 2, 3: 3}, 4) == [1, 2]

    def test_cpus_are_exclusive_and_free_again_after_a_departure(self) -> None:
        kubelet = placer("kubelet")
        assert put(kubelet, "a", 16) == "0-3"
        assert put(kubelet, "b", 1) is None
        kubelet.depart("a")
        assert put(kubelet, "c", 1) == "0"

    def test_whole_free_nodes_are_taken_first_then_the_fewest_free(self) -> None:
        kubelet = placer("kubelet")
        put(kubelet, "a", 2)
        put(kubelet, "b", 3)
        answer = kubelet.arrive(Stay(name="c", arrival_s=0, departure_s=None, vcpus=11, memory_bytes=None))
        assert answer["c"].vcpus == {2: 4, 3: 4, 1: 1, 0: 2}

    def test_of_nodes_in_use_the_one_with_the_fewest_free_cpus_is_used_up(self) -> None:
        kubelet = placer("kubelet")
        for name, vcpus in (("a", 4), ("b", 2), ("c", 4), ("d", 4)):
            put(kubelet, name, vcpus)
        kubelet.depart("a")
        put(kubelet, "e", 1)
        answer = kubelet.arrive(Stay(name="f", arrival_s=0, departure_s=None, vcpus=4, memory_bytes=None))
        assert answer["f"].vcpus == {1: 2, 0: 2}

    def test_restricted_refuses_what_is_wider_than_an_empty_machine_allows(self) -> None:
        for name, nodes in (("kubelet", "0-1"), ("kubelet-restricted", None)):
            kubelet = placer(name)
            for node in range(4):
                put(kubelet, f"x{node}", 3)
            assert put(kubelet, "wide", 2) == nodes

    @given(st.lists(st.integers(0, 6), min_size=1, max_size=7), st.integers(1, 30))
    def test_the_merged_mask_is_that_of_enumerating_every_mask(self, free: list[int], vcpus: int) -> None:
        nodes = range(len(free))
        masks = [
            set_of
            for width in range(1, len(free) + 1)
            for set_of in combinations(nodes, width)
            if sum(free[node] for node in set_of) >= vcpus
        ]
        best = min(masks, key=lambda set_of: (len(set_of), NodeSet(set_of).mask), default=None)
        found = merged_mask(dict(enumerate(free)), vcpus)
        assert (None if found is None else tuple(found)) == best


class TestNumad:
    def test_the_node_with_most_free_cpus_and_memory_is_taken(self) -> None:
        numad = placer("numad")
        assert [put(numad, f"i{n}", 2) for n in range(5)] == ["0", "1", "2", "3", "0"]

    def test_memory_decides_between_nodes_with_equal_cpus(self) -> None:
        numad = placer("numad")
        put(numad, "a", 1, 20 * GIB)
        put(numad, "b", 1, 2 * GIB)
        put(numad, "c", 1, 10 * GIB)
        put(numad, "d", 1, 5 * GIB)
        assert put(numad, "e", 1) == "1"

    def test_wide_requests_stay_near_the_seed(self) -> None:
        assert put(placer("numad"), "a", 8) == "0-1"

    def test_distance_from_the_seed_counts_before_load(self) -> None:
        numad = placer("numad")
        put(numad, "a", 2)
        # Node 1 is 12 from node 0 and 32 from the idle nodes 2 and 3, which are near each other.
        assert put(numad, "b", 8) == "2-3"
        assert put(numad, "c", 3) == "1"

    def test_advice_takes_more_nodes_until_enough_is_free_and_the_daemon_does_not(self) -> None:
        for name, nodes in (("numad", "0"), ("numad-advice", "0-1")):
            numad = placer(name)
            for one in "abcd":
                put(numad, one, 3)
            assert put(numad, "e", 2) == nodes

    def test_advice_about_a_full_machine_is_all_of_it(self) -> None:
        # What is there took its memory from node 0, so the daemon finds more of it on node 1.
        for name, nodes in (("numad", "1"), ("numad-advice", "0-3")):
            numad = placer(name)
            put(numad, "a", 16)
            assert put(numad, "b", 1) == nodes

    def test_the_daemon_does_without_half_of_its_margin(self) -> None:
        machine = builders.machine(nodes=2, cpus_per_node=20)
        assert put(placer("numad", machine), "a", 21) == "0"
        assert put(placer("numad", machine), "a", 22) == "0-1"
        assert put(placer("numad-advice", machine), "a", 21) == "0-1"

    def test_the_daemon_asks_for_memory_with_a_margin(self) -> None:
        assert put(placer("numad"), "a", 1, 30 * GIB) == "0-1"
        assert put(placer("numad-advice"), "a", 1, 30 * GIB) == "0"

    def test_far_nodes_count_less_for_the_seed(self) -> None:
        numad = placer("numad", builders.machine(nodes=3, cpus_per_node=4, nodes_per_socket=2))
        assert put(numad, "a", 1) == "0"
        # Nodes 1 and 2 are idle but 32 apart; node 0 is 12 from node 1.
        assert put(numad, "b", 8) == "0-1"

    def test_memory_that_is_needed_counts_more_than_what_is_left_over(self) -> None:
        numad = placer("numad-advice", builders.machine(nodes=2, cpus_per_node=4))
        assert put(numad, "a", 1, 21 * GIB) == "0"
        assert put(numad, "b", 3, GIB) == "1"
        assert put(numad, "c", 3, 10 * GIB) == "0"

    def test_memory_beyond_a_node_takes_a_second_one(self) -> None:
        assert put(placer("numad"), "a", 1, 40 * GIB) == "0-1"

    def test_unknown_memory_leaves_the_choice_to_cpus(self) -> None:
        numad = placer("numad", builders.machine(nodes=4, cpus_per_node=4, memory_bytes=None))
        assert [put(numad, f"i{n}", 2, 500 * GIB) for n in range(3)] == ["0", "1", "2"]

    def test_a_departure_gives_cpus_and_memory_back(self) -> None:
        numad = placer("numad-advice")
        put(numad, "a", 4, 30 * GIB)
        numad.depart("a")
        assert put(numad, "b", 4, 30 * GIB) == "0"


class TestOurs:
    def test_the_least_loaded_node_is_taken_and_departures_are_counted(self) -> None:
        ours = placer("balanced")
        assert [put(ours, name, vcpus) for name, vcpus in (("a", 4), ("b", 3), ("c", 2), ("d", 1))] == list("0123")
        ours.depart("a")
        assert put(ours, "e", 1) == "0"

    def test_what_does_not_fit_one_node_is_refused_by_single_numa_node(self) -> None:
        assert put(placer("single-numa-node"), "a", 5) is None
        assert put(placer("best-effort"), "a", 5) == "0-1"
        assert put(placer("none"), "a", 1) == "0-3"

    def test_memory_that_fits_nowhere_is_refused(self) -> None:
        assert put(placer("balanced"), "a", 1, 500 * GIB) is None


@pytest.mark.parametrize("name", policies.NAMES)
@pytest.mark.parametrize("machine", sorted(path.stem for path in builders.MACHINES.glob("*.json")))
def test_every_policy_works_on_every_machine(name: str, machine: str) -> None:
    if machine == "overlapping-nodes":
        pytest.skip("a document with a CPU in two nodes is refused")
    here = ground.survey(builders.load_machine(machine), SETTINGS)
    where = policies.placer(name, here, SETTINGS)
    for place in range(20):
        new = Stay(name=f"i{place}", arrival_s=0, departure_s=None, vcpus=1 + place % 5, memory_bytes=GIB // 4)
        for seat in where.arrive(new).values():
            assert set(seat.vcpus) <= set(seat.nodes)
            assert set(seat.vcpus) <= set(here.cpus)
            assert sum(seat.vcpus.values()) == pytest.approx(here.weight(new))


def test_a_node_without_cpus_is_never_chosen_by_a_peer() -> None:
    cpus = tuple(Cpu(id=cpu, node=cpu // 2, socket=0, core=cpu, l3=None) for cpu in range(4))
    machine = Machine(
        nodes=(
            *(Node(id=node, cpus=CpuSet((2 * node, 2 * node + 1)), memory_bytes=GIB) for node in range(2)),
            Node(id=2, cpus=CpuSet(), memory_bytes=64 * GIB),
        ),
        cpus=cpus,
        online=CpuSet(range(4)),
    )
    for name in policies.PEERS:
        where = placer(name, machine)
        nodes = [put(where, f"i{n}", 1, GIB // 8) for n in range(3)]
        assert set(nodes) <= {"0", "1", "0-1"}, name
