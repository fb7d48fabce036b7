"""The daemon on hosts that are odd, change, or do not let it write."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.settings import PlacementSettings, Settings
from incus_numa.simulator.choices import ServerPanicError
from tests import builders
from tests.contract.daemon_rig import BUSY, EVENTS_ONLY, QUICK, Wish, eventually, rig


@contextmanager
def _sealed(path: Path) -> Iterator[None]:
    """Make a file one that not even root can write, as on a read-only mount."""
    descriptor = os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.write(descriptor, path.read_bytes())
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        path.unlink()
        path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        yield
    finally:
        os.close(descriptor)


async def test_offline_cpu_is_left_by_its_instances() -> None:
    async with rig() as r:
        keys = [await r.present(f"c{number}", 2) for number in range(4)]
        cpu = max(r.seat(keys[0]).cpus)
        r.simulator.offline_cpu(cpu)
        await eventually(lambda: all(cpu not in r.seat(key).cpus and len(r.seat(key).cpus) == 2 for key in keys))
        await r.placed(*keys)


async def test_cpu_that_is_back_is_used_again() -> None:
    async with rig() as r:
        key = await r.present("c1", 16)
        r.simulator.offline_cpu(5)
        await eventually(lambda: r.seat(key).cpus == r.simulator.kernel.online)
        r.simulator.online_cpu(5)
        await eventually(lambda: r.seat(key).cpus == r.simulator.machine.online)


async def test_demand_above_the_machine_gets_the_whole_machine() -> None:
    async with rig(replace(QUICK, panics=False)) as r:
        key = r.managed("c1", 64)
        await r.start(key)
        await eventually(lambda: r.seat(key).cpus == r.simulator.machine.online)
        await eventually(lambda: r.seat(key).record == NodeSet(range(4)))
        assert r.seat(key).mems == NodeSet()


async def test_panic_of_the_server_is_survived() -> None:
    async with rig(replace(QUICK, restart_after_panic_s=0.1)) as r:
        keys = [await r.present(f"c{number}", 2 + number) for number in range(3)]
        huge = r.managed("huge", 64)
        with pytest.raises(ServerPanicError):
            await r.start(huge)
        await eventually(lambda: r.simulator.panicked.is_set())
        await eventually(lambda: r.simulator.incus.hub.listener_count == 1)
        await r.placed(*keys)
        await r.present("next", 3)


async def test_memory_is_never_bound_on_a_host_with_one_node() -> None:
    async with rig(machine=builders.machine(nodes=1, cpus_per_node=8), wish=Wish(settings=Settings(daemon=BUSY))) as r:
        key = r.managed("c1", 2, user_numa_memory="bind")
        await r.start(key)
        await eventually(lambda: len(r.seat(key).cpus) == 2 and r.seat(key).record == NodeSet([0]))
        await r.passes(2)
        assert not [what for _, what, _ in r.writes(key) if what == "cpuset.mems"]


async def test_reserved_cpus_are_never_given() -> None:
    settings = Settings(daemon=EVENTS_ONLY, placement=PlacementSettings(reserved_cpus="0,4,8,12"))
    async with rig(wish=Wish(settings=settings)) as r:
        keys = [r.managed(f"c{number}", 3) for number in range(4)]
        await r.start(*keys)
        await r.placed(*keys)
        assert not CpuSet([0, 4, 8, 12]) & CpuSet(cpu for key in keys for cpu in r.seat(key).cpus)


async def test_cgroup_that_cannot_be_written_is_told_once_and_holds_up_no_other() -> None:
    async with rig(replace(QUICK, balances=False), wish=Wish(settings=Settings(daemon=BUSY)), run=False) as r:
        bad, good = r.managed("bad", 2), r.managed("good", 2)
        await r.start(bad, good)
        with _sealed(r.path(bad, "cpuset.cpus")):
            r.start_daemon()
            await r.placed(good)
            await r.passes(3)
            assert len(r.log.saying("instance=bad", "cpuset.cpus")) == 1
            assert r.log.saying("instance=good") == []
            await r.stop_daemon()
            r.simulator.crash(bad)


async def test_cgroup_without_cpuset_files_is_told_once_and_holds_up_no_other() -> None:
    async with rig(replace(QUICK, balances=False), wish=Wish(settings=Settings(daemon=BUSY)), run=False) as r:
        bad, good = r.managed("bad", 2), r.managed("good", 2)
        await r.start(bad, good)
        for file in ("cpuset.cpus", "cpuset.mems"):
            r.path(bad, file).unlink()
        r.start_daemon()
        await r.placed(good)
        await r.passes(3)
        assert len(r.log.saying("instance=bad")) == 1
        assert r.log.saying("instance=bad", "no cgroup with cpuset files")
        await r.stop_daemon()
        r.simulator.crash(bad)


async def test_cgroup_with_nonsense_in_it_is_told_once_and_holds_up_no_other() -> None:
    async with rig(replace(QUICK, balances=False, watches=False), run=False) as r:
        bad, good = r.managed("bad", 2), r.managed("good", 2)
        await r.start(bad, good)
        r.path(bad, "cpuset.mems").unlink()
        r.path(bad, "cpuset.mems").mkdir()
        r.start_daemon()
        await r.placed(good)
        await eventually(lambda: r.log.saying("instance=bad", "cpuset.mems"))
        await r.stop_daemon()
        r.simulator.crash(bad)


async def test_payload_cgroup_of_another_name_is_found_by_the_pid() -> None:
    async with rig(replace(QUICK, balances=False), run=False) as r:
        key = r.managed("c1", 2)
        await r.start(key)
        moved = r.simulator.cgroup / "system.slice/lxc.payload.c1"
        moved.parent.mkdir()
        r.path(key, "").rename(moved)
        pid = r.simulator.incus.get(key).pid
        (r.simulator.procfs / str(pid) / "cgroup").write_text("0::/system.slice/lxc.payload.c1/init.scope\n")
        r.start_daemon()
        await eventually(lambda: (moved / "cpuset.mems").read_text().strip())
        assert len(CpuSet.parse((moved / "cpuset.cpus").read_text())) == 2
        await r.stop_daemon()
        moved.rename(r.path(key, ""))
        (r.simulator.procfs / str(pid) / "cgroup").write_text("0::/lxc.payload.c1/init.scope\n")
