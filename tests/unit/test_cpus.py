"""Which CPUs inside chosen nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import CoreKind, Machine
from incus_numa.policy import cpus, planner
from incus_numa.policy.cores import IdleCores
from incus_numa.policy.cpus import CpuWish
from incus_numa.policy.ledger import Commitment, Ledger, usable_cpus
from incus_numa.settings import PlacementSettings
from tests.builders import decided, instance, machine, snapshot


def ledger_of(host: Machine, *there: str, reserved: str = "") -> Ledger:
    """A ledger with instances of weight 1 per CPU on the CPUs of each list."""
    ledger = Ledger(host, usable_cpus(host, CpuSet.parse(reserved)))
    for index, text in enumerate(there):
        own = CpuSet.parse(text)
        entry = Commitment(host.nodes_of(own).mask, own.mask, float(len(own)), 0)
        ledger.commit(InstanceKey("default", str(index)), entry)
    return ledger


def choose(
    ledger: Ledger,
    nodes: str,
    count: int,
    *,
    pack: bool = False,
    has: str = "",
    weight: float = 1.0,
    cores: CoreKind | None = None,
) -> str:
    wish = CpuWish(count=count, weight=weight * count, pack=pack, has=CpuSet.parse(has), cores=cores)
    return str(cpus.choose(ledger, NodeSet.parse(nodes), wish))


def exclusive(ledger: Ledger, nodes: str, count: int, *, has: str = "", cores: CoreKind | None = None) -> str | None:
    wish = CpuWish(count=count, weight=float(count), has=CpuSet.parse(has), cores=cores)
    found = cpus.choose_exclusive(ledger, NodeSet.parse(nodes), wish)
    return None if found is None else str(found)


ONE = machine(nodes=1, cpus_per_node=8)
"""Four cores 0,1 2,3 4,5 6,7."""


def with_l3(host: Machine, size: int) -> Machine:
    return replace(host, cpus=tuple(replace(cpu, l3=cpu.id - cpu.id % size) for cpu in host.cpus))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "0"), (2, "0,2"), (4, "0,2,4,6"), (5, "0-2,4,6"), (7, "0-6"), (8, "0-7")]
)
def test_spread_takes_whole_cores_before_siblings(count: int, expected: str) -> None:
    assert choose(ledger_of(ONE), "0", count) == expected


@pytest.mark.parametrize(("count", "expected"), [(1, "0"), (2, "0-1"), (3, "0-2"), (4, "0-3"), (7, "0-6")])
def test_pack_fills_cores(count: int, expected: str) -> None:
    assert choose(ledger_of(ONE), "0", count, pack=True) == expected


def test_the_least_loaded_cores_come_first() -> None:
    assert choose(ledger_of(ONE, "0", "2", "2"), "0", 3) == "1,4,6"


def test_a_shared_core_is_taken_by_its_idle_sibling() -> None:
    assert choose(ledger_of(ONE, "0", "2", "4", "6"), "0", 2) == "1,3"


def test_pack_prefers_the_sibling_of_a_busy_cpu() -> None:
    assert choose(ledger_of(ONE, "2"), "0", 1, pack=True) == "3"


def test_an_instance_without_weight_is_spread_too() -> None:
    assert choose(ledger_of(ONE), "0", 3, weight=0.0) == "0,2,4"


def test_cpus_it_has_are_kept_among_equals() -> None:
    assert choose(ledger_of(ONE), "0", 2, has="3,7") == "3,7"


def test_cpus_it_has_are_left_when_their_cores_are_busier() -> None:
    assert choose(ledger_of(ONE, "2", "6"), "0", 2, has="3,7") == "0,4"


def test_one_l3_is_preferred_to_two() -> None:
    host = with_l3(machine(nodes=1, cpus_per_node=8), 4)
    assert choose(ledger_of(host), "0", 2, has="0,6") == "0,2"
    assert choose(ledger_of(host, "0"), "0", 2) == "4,6"


def test_two_l3_are_used_rather_than_a_shared_core() -> None:
    host = with_l3(machine(nodes=1, cpus_per_node=8), 4)
    assert choose(ledger_of(host), "0", 3) in {"0,2,4", "0,2,6"}


@pytest.mark.parametrize(("count", "expected"), [(2, [1, 1]), (3, [2, 1]), (4, [2, 2]), (7, [4, 3]), (8, [4, 4])])
def test_cpus_are_even_over_the_nodes(count: int, expected: list[int]) -> None:
    assert list(cpus.even_shares(ledger_of(machine(nodes=2)), NodeSet([0, 1]), count).values()) == expected


def test_what_does_not_divide_goes_to_the_least_loaded_node() -> None:
    assert cpus.even_shares(ledger_of(machine(nodes=2), "0"), NodeSet([0, 1]), 3) == {1: 2, 0: 1}


def test_a_small_node_gives_all_it_has_and_the_others_the_rest_evenly() -> None:
    ledger = ledger_of(machine(nodes=3), reserved="1-3")
    assert cpus.even_shares(ledger, NodeSet([0, 1, 2]), 7) == {0: 1, 1: 3, 2: 3}
    assert cpus.is_even(ledger, NodeSet([0, 1, 2]), CpuSet.parse("0,4-6,8-10"))
    assert not cpus.is_even(ledger, NodeSet([0, 1, 2]), CpuSet.parse("0,4-7,8-9"))


def test_reserved_and_isolated_cpus_are_not_chosen_but_their_cores_count() -> None:
    host = machine(nodes=1, cpus_per_node=8, isolated="0")
    assert choose(ledger_of(host, "0", reserved="2"), "0", 6) == "1,3-7"
    assert choose(ledger_of(host, "0"), "0", 1) == "2"


@pytest.mark.parametrize(
    ("own", "legal"), [("0,4", True), ("0,2", False), ("0,4,8", False), ("0,9", False), ("1,5", True)]
)
def test_legal_cpus_are_as_many_as_asked_inside_the_nodes_and_even(own: str, legal: bool) -> None:
    assert cpus.legal(ledger_of(machine()), NodeSet([0, 1]), CpuSet.parse(own), 2) is legal


def test_a_choice_is_lighter_on_idle_cores_and_in_one_l3() -> None:
    ledger = ledger_of(with_l3(ONE, 4), "0")

    def burden(text: str) -> tuple[int, int, int]:
        return cpus.burden(ledger, CpuSet.parse(text), 2.0)

    assert burden("4,6") < burden("2,4") < burden("1,2")
    assert burden("4,6") < burden("4,5")


def test_an_idle_core_is_used_once_others_have_left() -> None:
    idle = IdleCores(ledger_of(ONE, "0", "1", "4-5"))
    assert str(idle.spread_out(NodeSet([0]), CpuSet([1]))) == "2"
    assert str(idle.spread_out(NodeSet([0]), CpuSet([4, 5]))) == "4,6"
    assert str(idle.spread_out(NodeSet([0]), CpuSet([0]))) == "0"


def test_cpus_change_only_with_spread() -> None:
    x = instance("x", vcpus=2)
    state = snapshot(ONE, x, observed={x.key: decided("0", "4-5")})
    spread, packed = (
        planner.plan(state, replace(PlacementSettings(), smt=smt)).placements[0].cpus for smt in ("spread", "pack")
    )
    assert (str(spread), str(packed)) == ("0,4", "4-5") or (str(spread), str(packed)) == ("0,5", "4-5")


def test_4096_cpus_are_chosen_from_quickly_enough_to_be_tested() -> None:
    host = with_l3(machine(nodes=8, cpus_per_node=512), 16)
    assert len(CpuSet.parse(choose(ledger_of(host, "0-99"), "0-7", 2047))) == 2047


PERFORMANCE, EFFICIENCY = CoreKind.PERFORMANCE, CoreKind.EFFICIENCY


def hybrid() -> Machine:
    """Per node two performance cores of two threads and four efficiency cores: 0-1,2-3 and 4 to 7, 8-9,10-11 and 12 to
    15.
    """
    host = machine(nodes=2, cpus_per_node=8)
    return replace(
        host,
        cpus=tuple(
            replace(cpu, kind=EFFICIENCY, core=cpu.id) if cpu.id % 8 > 3 else replace(cpu, kind=PERFORMANCE)
            for cpu in host.cpus
        ),
    )


@pytest.mark.parametrize(
    ("cores", "count", "expected"),
    [
        (PERFORMANCE, 2, "0,2"),
        (PERFORMANCE, 3, "0-2"),
        (PERFORMANCE, 6, "0-5"),
        (EFFICIENCY, 2, "4-5"),
        (EFFICIENCY, 5, "0,4-7"),
        (None, 3, "0,2,4"),
    ],
)
def test_cores_of_the_kind_asked_for_come_before_idle_ones_of_the_other(
    cores: CoreKind | None, count: int, expected: str
) -> None:
    assert choose(ledger_of(hybrid()), "0", count, cores=cores) == expected


def test_the_kind_asked_for_does_not_change_how_many_cpus_each_node_gives() -> None:
    ledger = ledger_of(hybrid(), reserved="0-3")
    assert choose(ledger, "0-1", 4, cores=PERFORMANCE) == "4-5,8,10"
    assert choose(ledger, "0-1", 4, cores=PERFORMANCE, pack=True) == "4-5,8-9"


def test_busy_cores_of_the_kind_asked_for_come_before_idle_ones_of_the_other() -> None:
    assert choose(ledger_of(hybrid(), "0-3", "0-3"), "0", 1, cores=PERFORMANCE) == "0"
    assert choose(ledger_of(hybrid(), "0-3", "0-3"), "0", 1) == "4"


def test_a_kind_that_the_machine_does_not_have_is_no_wish() -> None:
    assert choose(ledger_of(ONE), "0", 3, cores=PERFORMANCE) == choose(ledger_of(ONE), "0", 3)


@pytest.mark.parametrize(
    ("own", "legal"), [("0,2", True), ("0-1", True), ("0,4", False), ("4-5", False), ("0-4", True), ("0-2,4-5", False)]
)
def test_legal_cpus_are_of_the_kind_asked_for_as_far_as_there_are_some(own: str, legal: bool) -> None:
    found = CpuSet.parse(own)
    assert cpus.legal(ledger_of(hybrid()), NodeSet([0]), found, len(found), cores=PERFORMANCE) is legal


def test_a_choice_of_another_kind_of_cores_is_heavier_than_a_shared_core() -> None:
    ledger = ledger_of(hybrid(), "0-3")
    shared, other = CpuSet.parse("0-1"), CpuSet.parse("4-5")
    assert cpus.burden(ledger, shared, 2.0, cores=PERFORMANCE) < cpus.burden(ledger, other, 2.0, cores=PERFORMANCE)
    assert cpus.burden(ledger, other, 2.0) < cpus.burden(ledger, shared, 2.0)


def test_idle_cores_of_the_other_kind_are_not_used_for_an_instance_with_a_wish() -> None:
    ledger = ledger_of(hybrid(), "0-1", "2")
    nodes, own = NodeSet([0]), CpuSet.parse("0-1")
    assert str(IdleCores(ledger).spread_out(nodes, own, PERFORMANCE)) == "0-1"
    assert str(IdleCores(ledger).spread_out(nodes, own, EFFICIENCY)) == "0,4"
    assert str(IdleCores(ledger).spread_out(nodes, own)) == "0,4"


def test_an_idle_core_of_the_kind_asked_for_is_used_once_others_have_left() -> None:
    ledger = ledger_of(hybrid(), "0-1")
    assert str(IdleCores(ledger).spread_out(NodeSet([0]), CpuSet.parse("0-1"), PERFORMANCE)) == "0,2"


@pytest.mark.parametrize(("count", "expected"), [(1, "0"), (2, "0-1"), (3, "0-2"), (4, "0-3"), (8, "0-7"), (9, None)])
def test_exclusive_cpus_are_whole_cores(count: int, expected: str | None) -> None:
    assert exclusive(ledger_of(ONE), "0", count) == expected


def test_exclusive_cpus_are_cores_that_fewest_have_chosen() -> None:
    ledger = ledger_of(ONE, "0", "1", "2", "0-7")
    assert exclusive(ledger, "0", 2) == "4-5"
    assert exclusive(ledger, "0", 6) == "2-7"


def test_an_odd_count_takes_a_core_whose_sibling_is_nobodys() -> None:
    assert exclusive(ledger_of(ONE, reserved="5"), "0", 3) == "0-1,4"
    assert exclusive(ledger_of(hybrid()), "0", 3) == "0-1,4"


def test_exclusive_cpus_are_in_one_l3_and_those_it_has_where_as_good() -> None:
    host = with_l3(machine(nodes=1, cpus_per_node=8), 4)
    assert exclusive(ledger_of(host, "0"), "0", 4) == "4-7"
    assert exclusive(ledger_of(host), "0", 4, has="6-7") == "4-7"
    assert exclusive(ledger_of(ONE), "0", 3, has="2-3,7") == "2-3,7"


def test_exclusive_cpus_are_even_over_the_nodes_and_of_the_kind_asked_for() -> None:
    assert exclusive(ledger_of(machine(nodes=2)), "0-1", 4) == "0-1,4-5"
    assert exclusive(ledger_of(hybrid()), "0-1", 4, cores=EFFICIENCY) == "4-5,12-13"
    assert exclusive(ledger_of(hybrid()), "0-1", 12, cores=PERFORMANCE) == "0-5,8-13"


def test_exclusive_cpus_follow_given_shares() -> None:
    ledger, wish = ledger_of(machine(nodes=2)), CpuWish(count=3, weight=3.0, has=CpuSet())
    assert str(cpus.choose_exclusive(ledger, NodeSet([0, 1]), wish, {0: 1, 1: 2})) == "0,4-5"
    assert cpus.choose_exclusive(ledger, NodeSet([0, 1]), wish, {0: 0, 1: 5}) is None
    assert cpus.choose_exclusive(ledger, NodeSet([0, 1]), wish, {0: 1, 1: 1}) is None


def test_pack_takes_cores_that_need_not_be_split() -> None:
    host = replace(ONE, cpus=tuple(replace(cpu, core=max(cpu.id, 1)) for cpu in ONE.cpus[:2]) + ONE.cpus[2:])
    host = replace(host, cpus=tuple(replace(cpu, core=0) if cpu.id < 1 else cpu for cpu in host.cpus))
    assert choose(ledger_of(host), "0", 4, pack=True) == "0-3"
    assert choose(ledger_of(host), "0", 3, pack=True) == "0,2-3"


def test_pack_keeps_what_it_has_among_equals() -> None:
    assert choose(ledger_of(ONE), "0", 3, pack=True, has="2,6-7") == "2,6-7"


def test_cpus_it_has_are_kept_where_no_others_use_fewer_l3() -> None:
    host = machine(nodes=1, cpus_per_node=8, threads=1)
    sizes = [0, 0, 2, 2, 2, 5, 5, 5]
    host = replace(host, cpus=tuple(replace(cpu, l3=l3) for cpu, l3 in zip(host.cpus, sizes, strict=True)))
    assert choose(ledger_of(host), "0", 4, has="0-3") == "0-3"
    assert choose(ledger_of(host), "0", 4, has="0,2,5-6") == "2,5-7"
