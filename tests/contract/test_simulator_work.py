"""Instances that work are seen in the simulated kernel's counters, in the formats of the real ones."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.refusals import ApiError
from tests import builders
from tests.contract.simulated import QUICK, Host, host, until

STILL = replace(QUICK, balances=False, tick_s=None)
"""Time passes only when the test says so."""

TICKING = replace(QUICK, balances=False, tick_s=0.001)


async def started(h: Host, name: str, cpus: str | None = None) -> InstanceKey:
    key = h.simulator.create(name)
    await h.simulator.start(key)
    if cpus is not None:
        h.path(key, "cpuset.cpus").write_text(f"{cpus}\n")
        h.simulator.settle()
    return key


async def started_vm(h: Host, name: str, vcpus: int) -> InstanceKey:
    key = h.simulator.create(name, {"limits.cpu": str(vcpus)}, kind=InstanceType.VIRTUAL_MACHINE)
    await h.simulator.start(key)
    return key


def used_us(h: Host, key: InstanceKey) -> dict[str, int]:
    rows = (line.split() for line in h.path(key, "cpu.stat").read_text().splitlines())
    return {name: int(value) for name, value in rows if value != "0"}


def busy_ticks(h: Host) -> dict[str, int]:
    """Ticks that are neither idle nor waiting, by the lines' names."""
    rows = (line.split() for line in (h.simulator.procfs / "stat").read_text().splitlines())
    return {
        name: sum(map(int, fields)) - int(fields[3]) - int(fields[4])
        for name, *fields in rows
        if name.startswith("cpu")
    }


def qemu_ticks(h: Host, key: InstanceKey) -> int:
    text = (h.simulator.procfs / str(h.simulator.incus.get(key).pid) / "stat").read_text()
    fields = text.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_all_files_are_there_before_anybody_works() -> None:
    async with host(STILL) as h:
        key = await started(h, "c1")
        nothing = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        assert h.path(key, "cpu.stat").read_text() == (
            "usage_usec 0\nuser_usec 0\nsystem_usec 0\n"
            "nr_periods 0\nnr_throttled 0\nthrottled_usec 0\nnr_bursts 0\nburst_usec 0\n"
        )
        assert h.path(key, "cpu.pressure").read_text() == nothing
        assert h.path(key, "memory.pressure").read_text() == nothing
        assert busy_ticks(h) == dict.fromkeys(["cpu", *(f"cpu{cpu}" for cpu in range(16))], 0)
        assert (h.simulator.sysfs / "devices/system/node/node3/numastat").read_text() == (
            "numa_hit 0\nnuma_miss 0\nnuma_foreign 0\ninterleave_hit 0\nlocal_node 0\nother_node 0\n"
        )


async def test_every_line_of_a_cpu_has_ten_fields_that_add_up_to_the_time() -> None:
    async with host(STILL) as h:
        h.simulator.set_work(await started(h, "c1", "0-1"), 1.0)
        h.simulator.advance(8.0)
        lines = (h.simulator.procfs / "stat").read_text().splitlines()
        assert lines[:4] == [
            "cpu  720 0 80 12000 0 0 0 0 0 0",
            "cpu0 360 0 40 400 0 0 0 0 0 0",
            "cpu1 360 0 40 400 0 0 0 0 0 0",
            "cpu2 0 0 0 800 0 0 0 0 0 0",
        ]


async def test_usage_grows_with_time_while_an_instance_works() -> None:
    async with host(STILL) as h:
        key = await started(h, "c1", "4-7")
        h.simulator.set_work(key, 1.5)
        h.simulator.advance(2.0)
        h.simulator.advance(2.0)
        assert used_us(h, key) == {"usage_usec": 6_000_000, "user_usec": 5_400_000, "system_usec": 600_000}
        h.simulator.set_work(key, 0)
        h.simulator.advance(2.0)
        assert used_us(h, key)["usage_usec"] == 6_000_000


async def test_two_on_one_cpu_share_it_and_wait_for_each_other() -> None:
    async with host(STILL) as h:
        keys = [await started(h, name, "2") for name in ("c1", "c2")]
        for key in keys:
            h.simulator.set_work(key, 1.0)
        h.simulator.advance(4.0)
        assert [used_us(h, key)["usage_usec"] for key in keys] == [2_000_000, 2_000_000]
        assert h.path(keys[0], "cpu.pressure").read_text().splitlines() == [
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=2000000",
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=2000000",
        ]
        assert {name: ticks for name, ticks in busy_ticks(h).items() if ticks} == {"cpu": 400, "cpu2": 400}


async def test_pressure_ends_when_cpus_are_moved_apart() -> None:
    async with host(STILL) as h:
        keys = [await started(h, name, "2") for name in ("c1", "c2")]
        for key in keys:
            h.simulator.set_work(key, 1.0)
        h.simulator.advance(1.0)
        h.path(keys[1], "cpuset.cpus").write_text("3\n")
        h.simulator.settle()
        h.simulator.advance(1.0)
        assert [used_us(h, key)["usage_usec"] for key in keys] == [1_500_000, 1_500_000]
        assert "total=500000\n" in h.path(keys[0], "cpu.pressure").read_text()


async def test_unbound_instance_keeps_off_isolated_cpus() -> None:
    async with host(STILL, builders.machine(isolated="0-7")) as h:
        key = await started(h, "c1")
        h.simulator.set_work(key, 16.0)
        h.simulator.advance(1.0)
        busy = {name for name, ticks in busy_ticks(h).items() if ticks}
        assert busy == {"cpu", *(f"cpu{cpu}" for cpu in range(8, 16))}


async def test_offline_cpu_gives_no_time_and_has_no_line() -> None:
    async with host(STILL) as h:
        key = await started(h, "c1", "0-1")
        h.simulator.set_work(key, 2.0)
        h.simulator.advance(1.0)
        h.simulator.offline_cpu(1)
        assert "cpu1" not in busy_ticks(h)
        h.simulator.advance(1.0)
        assert used_us(h, key)["usage_usec"] == 3_000_000
        assert busy_ticks(h)["cpu"] == 300
        h.simulator.online_cpu(1)
        assert "\ncpu1 90 0 10 0 0 0 0 0 0 0\n" in (h.simulator.procfs / "stat").read_text()


async def test_virtual_machine_works_in_its_process_and_no_more_than_its_vcpus() -> None:
    async with host(STILL) as h:
        key = await started_vm(h, "vm1", 2)
        h.simulator.set_work(key, 5.0)
        h.simulator.advance(3.0)
        assert qemu_ticks(h, key) == 600
        assert busy_ticks(h)["cpu"] == pytest.approx(600, abs=16)


async def test_restarted_instance_goes_on_with_new_counters() -> None:
    async with host(STILL) as h:
        key = await started(h, "c1")
        h.simulator.set_work(key, 1.0)
        h.simulator.advance(4.0)
        await h.simulator.stop(key)
        h.simulator.advance(4.0)
        await h.simulator.start(key)
        h.simulator.advance(1.0)
        assert used_us(h, key)["usage_usec"] == 1_000_000
        assert busy_ticks(h)["cpu"] == pytest.approx(500, abs=16)


async def test_name_that_is_used_again_does_not_inherit_work() -> None:
    async with host(STILL) as h:
        key = await started(h, "c1")
        h.simulator.set_work(key, 1.0)
        await h.simulator.stop(key)
        h.simulator.delete(key)
        await started(h, "c1")
        h.simulator.advance(1.0)
        assert used_us(h, key) == {}


async def test_counters_grow_by_themselves_until_nobody_works() -> None:
    async with host(TICKING) as h:
        key = await started(h, "c1")
        h.simulator.set_work(key, 1.0)
        await until(lambda: used_us(h, key))
        h.simulator.set_work(key, 0)
        await until(lambda: h.simulator.kernel.work.idle)
        h.simulator.set_work(key, 1.0)
        before = used_us(h, key)
        await until(lambda: used_us(h, key) != before)


async def test_counters_do_not_run_faster_than_the_clock() -> None:
    async with host(TICKING) as h:
        key = await started(h, "c1")
        began_s = time.monotonic()
        h.simulator.set_work(key, 1.0)
        for _ in range(8):
            before = used_us(h, key)
            await until(lambda before=before: used_us(h, key) != before)  # type: ignore[misc]
        assert used_us(h, key)["usage_usec"] <= (time.monotonic() - began_s) * 1e6


async def test_clock_stops_with_the_host() -> None:
    async with host(TICKING) as h:
        work = h.simulator.kernel.work
        h.simulator.set_work(await started(h, "c1"), 1.0)
        seen = [work.idle]
    seen.append(work.idle)
    assert seen == [False, True]


async def test_time_in_which_all_were_idle_counts_for_nobody() -> None:
    async with host(replace(TICKING, tick_s=3600.0)) as h:
        running, stopped = await started(h, "c1"), h.simulator.create("c2")
        h.simulator.set_work(stopped, 1.0)
        seen = [h.simulator.kernel.work.idle]
        h.simulator.set_work(running, 1.0)
        await h.simulator.start(stopped)
        assert [*seen, h.simulator.kernel.work.idle] == [True, False]
        assert (used_us(h, running), used_us(h, stopped)) == ({}, {})


def content(root: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of the last change of every file."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


async def test_idle_host_writes_nothing() -> None:
    async with host(TICKING) as h:
        await started(h, "c1")
        before = content(h.simulator.cgroup), content(h.simulator.procfs)
        assert h.simulator.kernel.work.idle
        h.simulator.set_work(await started(h, "c2"), 0)
        assert h.simulator.kernel.work.idle
        after = content(h.simulator.cgroup), content(h.simulator.procfs)
        assert all(after[tree][path] == seen for tree in (0, 1) for path, seen in before[tree].items())


async def test_work_is_set_and_time_passes_over_the_socket() -> None:
    async with host(replace(STILL, projects={"web": {}})) as h:
        key = h.simulator.create("c1", project="web")
        await h.simulator.start(key)
        body = {"name": "c1", "project": "web", "cpus": 0.5}
        assert (await h.call("POST", "/simulator/set_work", json=body)).status == 200
        await h.call("POST", "/simulator/advance", json={"seconds": 2})
        assert used_us(h, key)["usage_usec"] == 1_000_000


@pytest.mark.parametrize("cpus", [-1.0, float("nan"), float("inf")])
async def test_impossible_wants_are_refused(cpus: float) -> None:
    async with host(STILL) as h:
        key = await started(h, "c1")
        with pytest.raises(ApiError, match="cannot want"):
            h.simulator.set_work(key, cpus)
        with pytest.raises(ApiError, match="not found"):
            h.simulator.set_work(InstanceKey("default", "nobody"), 1.0)


async def test_checker_refuses_time_that_no_cpu_gave() -> None:
    async with host(STILL) as h:
        key = await started(h, "c1", "0")
        h.simulator.set_work(key, 1.0)
        h.simulator.advance(10.0)
        truth = h.path(key, "cpu.stat").read_text()
        h.path(key, "cpu.stat").write_text("usage_usec 99000000\nuser_usec 99000000\nsystem_usec 0\n")
        assert h.simulator.problems() == (
            "instances have used 9900 ticks of CPU time, and all CPUs were busy for 1000 only",
        )
        h.path(key, "cpu.stat").write_text(truth)


async def test_checker_refuses_that_all_waited_longer_than_some() -> None:
    async with host(STILL) as h:
        path = h.path(await started(h, "c1"), "cpu.pressure")
        truth = path.read_text()
        path.write_text(
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=2\n"
        )
        assert h.simulator.problems() == ("lxc.payload.c1: cpu.pressure: all tasks waited 2 us, and some only 1 us",)
        path.write_text(truth)


async def test_instance_whose_only_cpu_went_offline_works_on_the_others() -> None:
    async with host(STILL) as h:
        key = await started(h, "c1", "3")
        h.simulator.set_work(key, 1.0)
        h.simulator.offline_cpu(3)
        h.simulator.advance(1.0)
        assert used_us(h, key)["usage_usec"] == 1_000_000
        assert h.cpus(key, "cpuset.cpus.effective") == CpuSet(range(16)) - CpuSet([3])
