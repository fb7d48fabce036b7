"""Where the nodes of instances are recorded in projects that forbid it: once refused, tried again after a while."""

from __future__ import annotations

from pathlib import Path

from incus_numa.daemon.observe import World
from incus_numa.daemon.recording import AGAIN_S, Recording
from incus_numa.daemon.seen import Seen
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.virtual import VirtualMachines
from incus_numa.model.instance import Instance, InstanceKey, InstanceType
from incus_numa.model.snapshot import Observed
from incus_numa.server.demand import LIMIT_NODES, VOLATILE_NODES
from incus_numa.server.http_server import HttpServer
from incus_numa.settings import HostSettings, PlacementSettings


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def recording(clock: Clock, restricted_record: str = "none") -> Recording:
    nowhere = Path("/nonexistent")
    world = World(
        HttpServer(str(nowhere)),
        CgroupFiles(nowhere, nowhere),
        VirtualMachines(nowhere, nowhere, nowhere),
        host=HostSettings(),
        placement=PlacementSettings(restricted_record=restricted_record),  # type: ignore[arg-type]
    )
    return Recording(world, clock)


def seen(
    name: str, project: str = "web", kind: InstanceType = InstanceType.CONTAINER, *, opted_in: bool = False
) -> Seen:
    instance = Instance(key=InstanceKey(project, name), type=kind, managed=True)
    return Seen(instance=instance, observed=Observed(), group=None, marked=None, etag=None, turn=1, opted_in=opted_in)


def test_what_was_refused_is_tried_again_after_a_while() -> None:
    clock = Clock()
    records, one = recording(clock), seen("c1")
    records.refuse(one, "no")
    clock.now_s += AGAIN_S - 1
    assert records.key_of(one) is None
    clock.now_s += 1
    assert records.key_of(one) == VOLATILE_NODES


def test_a_project_that_still_refuses_is_asked_by_one_and_not_by_all() -> None:
    clock = Clock()
    records, first, others = recording(clock), seen("c0"), [seen(f"c{n}") for n in range(1, 4)]
    for one in (first, *others):
        records.refuse(one, "no")
    clock.now_s += AGAIN_S
    assert records.key_of(first) == VOLATILE_NODES
    records.refuse(first, "no")
    assert [records.key_of(one) for one in others] == [None, None, None]


def test_virtual_machines_that_are_refused_keep_no_container_from_trying_again() -> None:
    clock = Clock()
    records, container, vm = recording(clock), seen("c1"), seen("v1", kind=InstanceType.VIRTUAL_MACHINE)
    records.refuse(container, "no")
    clock.now_s += AGAIN_S
    records.refuse(vm, "no")
    assert (records.key_of(container), records.key_of(vm)) == (VOLATILE_NODES, None)


def test_refusals_of_one_project_are_forgotten_by_themselves() -> None:
    records, one, other = recording(Clock()), seen("c1"), seen("c1", "lab")
    for refused in (one, other):
        records.refuse(refused, "no")
    records.forget("web")
    assert (records.key_of(one), records.key_of(other)) == (VOLATILE_NODES, None)
    records.forget()
    assert records.key_of(other) == VOLATILE_NODES


def test_those_that_try_again_at_once_do_not_lose_the_other_key_by_it() -> None:
    clock = Clock()
    records = recording(clock, "limits")
    pair = [seen("c1", opted_in=True), seen("c2", opted_in=True)]
    for one in pair:
        records.refuse(one, "no")
    clock.now_s += AGAIN_S
    assert [records.key_of(one) for one in pair] == [VOLATILE_NODES, VOLATILE_NODES]
    for one in pair:
        records.refuse(one, "no")
    assert [records.key_of(one) for one in pair] == [LIMIT_NODES, LIMIT_NODES]
