"""Threads of virtual machines that run no guest: they stay off CPUs that are others', and let the daemon rest."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.daemon import listening
from incus_numa.model.instance import InstanceKey, InstanceType
from tests import builders
from tests.builders import GIB
from tests.contract.daemon_rig import INOTIFY_ONLY, Rig, eventually
from tests.contract.test_daemon_vms import OFTEN, host, settled, vcpus, vm

TWO = builders.machine(nodes=2, cpus_per_node=8, memory_bytes=32 * GIB)
SECOND = "8-15"
"""Of two nodes only the first is used where the second is reserved."""
EXCLUSIVE = {"user_numa_exclusive": "true"}


def around(r: Rig, key: InstanceKey) -> CpuSet | None:
    """CPUs that its threads other than vCPUs may run on; None while they differ."""
    masks = set(r.simulator.vm_threads(key).others.values())
    return masks.pop() if len(masks) == 1 else None


async def test_they_leave_cpus_that_become_exclusive_and_come_back_when_the_owner_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nothing is looked at again by itself: they follow whoever owns the CPUs.
    monkeypatch.setattr(listening, "STARTING_S", 3600.0)
    async with host(machine=TWO, reserved_cpus=SECOND, daemon=INOTIFY_ONLY) as r:
        key = await vm(r, "v")
        assert around(r, key) == CpuSet(range(8))
        own = await r.present("own", 2, **EXCLUSIVE)
        await eventually(lambda: around(r, key) == CpuSet(range(8)) - r.seat(own).cpus)
        assert not vcpus(r, key) & r.seat(own).cpus
        await r.simulator.stop(own)
        await eventually(lambda: around(r, key) == CpuSet(range(8)))


async def test_they_stay_off_exclusive_cpus_from_the_start() -> None:
    async with host(machine=TWO, reserved_cpus=SECOND, daemon=INOTIFY_ONLY) as r:
        own = await r.present("own", 3, **EXCLUSIVE)
        key = r.simulator.create(
            "v", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"}, kind=InstanceType.VIRTUAL_MACHINE
        )
        await r.simulator.start(key)
        await eventually(lambda: around(r, key) == CpuSet(range(8)) - r.seat(own).cpus)


async def test_owner_has_its_own_threads_beside_its_vcpus() -> None:
    async with host(machine=TWO, reserved_cpus=SECOND, daemon=INOTIFY_ONLY) as r:
        key = await vm(r, "v", "3", **EXCLUSIVE)
        assert around(r, key) == CpuSet(range(8))


async def test_refused_owner_keeps_them_off_nothing() -> None:
    async with host(machine=TWO, reserved_cpus=SECOND, daemon=OFTEN) as r:
        key = await vm(r, "v", "2")
        await r.present("c", 4)
        own = await r.present("own", 5)
        r.simulator.set_config(own, {"user.numa.exclusive": "true"})
        await eventually(lambda: r.log.saying("instance=own", "reason=no-exclusive-cpus"))
        await r.passes(3)
        assert around(r, key) == CpuSet(range(8))


async def test_they_stay_off_reserved_cpus() -> None:
    async with host(machine=TWO, reserved_cpus=f"0-1,{SECOND}") as r:
        key = r.simulator.create(
            "v", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"}, kind=InstanceType.VIRTUAL_MACHINE
        )
        await r.simulator.start(key)
        await eventually(lambda: around(r, key) == CpuSet.parse("2-7"))


async def test_they_are_beside_the_vcpus_where_all_else_is_others() -> None:
    async with host(machine=TWO, reserved_cpus=f"0-3,{SECOND}", daemon=INOTIFY_ONLY) as r:
        key = await vm_on(r, "4-7")
        own = await r.present("own", 2, **EXCLUSIVE)
        await eventually(lambda: around(r, key) == CpuSet.parse("4-7") - r.seat(own).cpus == settled(r, key))


async def vm_on(r: Rig, cpus: str) -> InstanceKey:
    """A virtual machine with two vCPUs whose other threads are on these CPUs."""
    key = r.simulator.create(
        "v", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"}, kind=InstanceType.VIRTUAL_MACHINE
    )
    await r.simulator.start(key)
    await eventually(lambda: around(r, key) == CpuSet.parse(cpus))
    return key


@pytest.mark.parametrize("part", ["around", "vcpus"])
async def test_cpu_that_goes_offline_leaves_it_at_rest(part: str) -> None:
    async with host(machine=TWO, reserved_cpus=SECOND, daemon=OFTEN) as r:
        key = await vm(r, "v", "2")
        victim = max(vcpus(r, key) if part == "vcpus" else CpuSet(range(8)) - vcpus(r, key))
        r.simulator.offline_cpu(victim)
        await eventually(lambda: len((settled(r, key) or CpuSet()) - CpuSet([victim])) == 2)
        await r.passes(3)
        tasks = sorted((r.simulator.procfs / str(r.simulator.incus.get(key).pid) / "task").glob("*/status"))
        before, said = [one.stat().st_mtime_ns for one in tasks], len(r.log.saying("others=", level=20))
        await r.passes(4)
        assert [one.stat().st_mtime_ns for one in tasks] == before
        assert len(r.log.saying("others=", level=20)) == said


async def test_worker_that_nobody_may_set_is_left_alone_and_not_told() -> None:
    async with host(daemon=OFTEN) as r:
        key = await vm(r, "v", "2")
        machine = r.simulator.kernel.machines[key]
        worker = machine.add_worker(machine.last_id + 1, name=f"iou-wrk-{machine.pid}", is_fixed=True)
        home, threads = vcpus(r, key), r.simulator.vm_threads(key)
        for tid in threads.vcpus:
            status = machine.folder / "task" / str(tid) / "status"
            status.write_text(status.read_text().replace(f"_list:\t{home}", "_list:\t0-15"))
        await eventually(lambda: r.simulator.vm_threads(key) == threads)
        await r.passes(3)
        assert (r.simulator.vm_threads(key).others[worker], r.log.lines()) == (CpuSet(range(16)), [])
