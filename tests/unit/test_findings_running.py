"""What `check` finds wrong with instances that run, from values alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cli.findings import placed
from incus_numa.cli.findings.finding import Finding, Kind
from incus_numa.cli.findings.placed import Running
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey, InstanceType, MemoryMode
from incus_numa.model.plan import Placement, Plan, Reason, Rejection
from incus_numa.model.snapshot import Decided, Observed
from incus_numa.settings import PlacementSettings
from tests import builders
from tests.builders import GIB

MACHINE = builders.machine(nodes=4, cpus_per_node=2)
VM = builders.instance("vm", vcpus=2, type=InstanceType.VIRTUAL_MACHINE)


def container(nodes: str, cpus: str | None, actual: str | None = None, *, managed: bool = True) -> list[Kind]:
    """Findings about a record of nodes, `cpuset.cpus`, and the CPUs that are left of them."""
    observed = Observed(nodes=NodeSet.parse(nodes) or None, cpus=None if cpus is None else CpuSet.parse(cpus))
    left = observed.cpus if actual is None else CpuSet.parse(actual)
    one = Running(instance=builders.instance("c1", managed=managed), observed=observed, actual=left)
    return [found.kind for found in placed.check_container(one, MACHINE)]


@pytest.mark.parametrize(("nodes", "cpus"), [("0", "0-1"), ("0-1", "1-2"), ("", "0-7")])
def test_a_true_record(nodes: str, cpus: str) -> None:
    assert container(nodes, cpus) == []


@pytest.mark.parametrize(("nodes", "cpus"), [("0", "2-3"), ("0", "1-2"), ("0-1", "2-3"), ("0-3", "0")])
def test_an_untrue_record(nodes: str, cpus: str) -> None:
    assert container(nodes, cpus) == [Kind.RECORD_UNTRUE]


def test_a_record_is_true_or_not_by_the_cpus_that_are_left() -> None:
    """`cpuset.cpus` names two nodes, but the CPUs of one are offline."""
    assert container("0-1", "0-3", "0-1") == [Kind.RECORD_UNTRUE]


WIDE = Observed(nodes=NodeSet([0, 2, 3]), cpus=CpuSet([0, 4]))
"""Wide for its memory: two CPUs on nodes 0 and 2 of three."""


def record(observed: Observed, answer: Placement | Rejection | None = None) -> list[Finding]:
    one = Running(instance=builders.instance("c1"), observed=observed, actual=observed.cpus, answer=answer)
    return placed.check_container(one, MACHINE)


def test_a_record_of_more_nodes_than_cpus_is_true_where_that_was_decided() -> None:
    nodes, cpus = NodeSet([0, 2, 3]), CpuSet([0, 4])
    place = Placement(key=InstanceKey("default", "c1"), nodes=nodes, cpus=cpus)
    assert record(replace(WIDE, decided=Decided(nodes=nodes, cpus=cpus))) == []
    assert record(WIDE, place) == []
    # The server chooses others of the same nodes when it rewrites.
    assert record(replace(WIDE, cpus=CpuSet([5, 6])), place) == []
    assert [one.kind for one in record(WIDE)] == [Kind.RECORD_UNTRUE]
    assert [one.kind for one in record(WIDE, replace(place, nodes=NodeSet([1])))] == [Kind.RECORD_UNTRUE]
    assert [one.kind for one in record(replace(WIDE, cpus=CpuSet([0, 2])), place)] == [Kind.RECORD_UNTRUE]


@pytest.mark.parametrize(
    ("reason", "do"),
    [
        (Reason.BAD_KEY, "correct its keys first, then `incus-numa rebalance` makes both agree"),
        (
            Reason.NO_MEMORY,
            "a pass leaves it, as it is refused (no-memory): when it can be placed, `incus-numa rebalance` makes both "
            "agree",
        ),
    ],
)
def test_what_to_do_about_an_instance_that_a_pass_leaves(reason: Reason, do: str) -> None:
    refused = Rejection(key=InstanceKey("default", "c1"), reason=reason, detail="why")
    (one,) = record(Observed(nodes=NodeSet([0]), cpus=CpuSet([2])), refused)
    assert one.do == do
    floating = Running(instance=VM, observed=Observed(nodes=NodeSet([1]), cpus=CpuSet.parse("0-7")), answer=refused)
    (one,) = placed.check_vm(floating, MACHINE, PlacementSettings())
    assert one.do == do.replace("makes both agree", "places them")


def test_the_server_moves_nothing_to_a_record_that_it_does_not_follow() -> None:
    (followed,) = record(Observed(nodes=NodeSet([0]), cpus=CpuSet([2])))
    (left,) = record(Observed(nodes=NodeSet([0]), cpus=CpuSet([2]), followed=False))
    assert ["the server moves it" in one.text for one in (followed, left)] == [True, False]


def test_a_record_that_nobody_may_write_is_told_of_the_project_and_not_of_the_instance() -> None:
    observed = Observed(nodes=NodeSet([0]), cpus=CpuSet([2, 3]))
    one = Running(instance=builders.instance("c1"), observed=observed, actual=observed.cpus)
    assert [found.kind for found in placed.check_container(one, MACHINE)] == [Kind.RECORD_UNTRUE]
    assert placed.check_container(replace(one, is_forbidden=True), MACHINE) == []


def test_a_record_of_nodes_that_are_not_there_is_told_with_its_keys() -> None:
    assert container("9", "0-1") == []


def test_a_container_without_its_cgroup() -> None:
    assert container("0", None) == [Kind.NO_CGROUP]


def test_unmanaged_instances_are_nobodys_business() -> None:
    assert container("0", "2-3", managed=False) == []
    assert vm(replace(VM, managed=False), Observed(nodes=NodeSet([0]))) == []


def vm(instance: Instance, observed: Observed, settings: PlacementSettings | None = None) -> list[Finding]:
    one = Running(instance=instance, observed=observed)
    return placed.check_vm(one, MACHINE, settings or PlacementSettings())


def vm_kinds(nodes: str, cpus: str | None, instance: Instance = VM, **more: object) -> list[Kind]:
    observed = Observed(nodes=NodeSet.parse(nodes) or None, cpus=None if cpus is None else CpuSet.parse(cpus))
    return [one.kind for one in vm(instance, replace(observed, **more))]  # type: ignore[arg-type]


def test_a_virtual_machine_where_it_belongs() -> None:
    home = {0: 0, 1: 4 * GIB}
    assert vm_kinds("1", "2-3", memory=home, bound=NodeSet([1])) == []
    assert vm_kinds("1", "2", memory=home, bound=NodeSet()) == []


@pytest.mark.parametrize(("nodes", "cpus"), [("1", "0-7"), ("1", "0-3"), ("", "0-7")])
def test_vcpus_that_may_run_beyond_their_nodes_float(nodes: str, cpus: str) -> None:
    assert vm_kinds(nodes, cpus) == [Kind.VM_FLOATING]


def test_vcpus_that_are_all_elsewhere_make_the_record_untrue() -> None:
    assert vm_kinds("1", "4-5") == [Kind.RECORD_UNTRUE]
    assert vm(VM, Observed(nodes=NodeSet([1]), cpus=CpuSet([4, 5])), PlacementSettings(vm_record="never")) == []


def test_what_was_decided_counts_more_than_the_record() -> None:
    decided = Decided(nodes=NodeSet([2]), cpus=CpuSet([4, 5]))
    assert vm_kinds("1", "4-5", decided=decided) == [Kind.RECORD_UNTRUE]
    assert vm_kinds("2", "4-7", decided=decided) == [Kind.VM_FLOATING]


def test_pinned_vcpus_belong_on_their_pins() -> None:
    pinned = builders.instance("vm", pinned="2-3", type=InstanceType.VIRTUAL_MACHINE)
    assert vm_kinds("1", "2-3", pinned) == []
    assert vm_kinds("", "0-7", pinned) == [Kind.VM_FLOATING]


def test_vcpu_threads_that_were_not_identified() -> None:
    assert vm_kinds("1", None) == [Kind.VM_THREADS_UNKNOWN]


@pytest.mark.parametrize(
    ("memory", "bound", "expected"),
    [
        ({1: 3 * GIB, 2: GIB}, "", [Kind.VM_MEMORY]),
        ({1: 3 * GIB, 2: GIB // 32}, "", []),
        ({1: 30 * GIB, 2: GIB}, "", []),
        ({1: GIB}, "2", [Kind.VM_MEMORY]),
        (None, "1-2", [Kind.VM_MEMORY]),
        (None, "", []),
    ],
)
def test_guest_memory_that_is_or_will_be_elsewhere(
    memory: dict[int, int] | None, bound: str, expected: list[Kind]
) -> None:
    assert vm_kinds("1", "2-3", memory=memory, bound=NodeSet.parse(bound)) == expected


def test_guest_memory_that_nobody_wants_bound_may_be_anywhere() -> None:
    free = replace(VM, memory=MemoryMode.NONE)
    assert vm_kinds("1", "2-3", free, memory={2: GIB}, bound=NodeSet([2])) == []


def test_moving_memory_is_advised_only_where_it_is_not_done_already() -> None:
    observed = Observed(nodes=NodeSet([1]), cpus=CpuSet([2, 3]), memory={2: GIB}, bound=NodeSet([2]))
    (keeps,) = vm(VM, observed)
    (moves,) = vm(VM, observed, PlacementSettings(vm_memory="migrate"))
    assert ("vm_memory" in keeps.do, "vm_memory" in moves.do) == (True, False)


def test_refused_instances_are_told_once() -> None:
    keys = [InstanceKey("default", name) for name in ("bad", "big", "pin", "wide")]
    reasons = (Reason.BAD_KEY, Reason.NO_MEMORY, Reason.BAD_PIN, Reason.NO_MEMORY)
    plan = Plan(
        rejections=tuple(Rejection(key=key, reason=why, detail="x") for key, why in zip(keys, reasons, strict=True))
    )
    told = {"bad": {Kind.BAD_KEY}, "big": {Kind.MEMORY_LIMIT}, "pin": {Kind.PIN_MISSING}, "wide": {Kind.CPU_LIMIT}}
    assert [(one.about, one.kind) for one in placed.check_plan(plan, told)] == [("wide", Kind.REFUSED)]
    assert [one.about for one in placed.check_plan(plan, {})] == ["bad", "big", "pin", "wide"]
