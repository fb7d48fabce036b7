"""The daemon on hosts that are odd, change, or do not let it write."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import MemorySettings, PlacementSettings, Reservation, Settings
from incus_numa.simulator.choices import ServerPanicError
from incus_numa.simulator.simulator import Simulator
from tests import builders
from tests.builders import GIB
from tests.contract.daemon_rig import BUSY, EVENTS_ONLY, INOTIFY_ONLY, QUICK, Rig, Wish, eventually, rig

LOOKING = Wish(settings=Settings(daemon=BUSY))
"""A daemon that looks again and again, so that what the server does not notice is seen without waiting."""


def _is_right(r: Rig, key: InstanceKey) -> bool:
    """Whether an instance is on CPUs that it can have, as many as it asks for, and its record tells the truth."""
    simulator, seat = r.simulator, r.seat(key)
    free = simulator.kernel.open_cpus
    wanted = int(simulator.incus.get(key).expanded["limits.cpu"])
    nodes = simulator.machine.nodes_of(seat.cpus)
    return (
        seat.cpus <= free
        and len(seat.cpus) == min(wanted, len(free))
        and seat.record == nodes
        and seat.mems in (NodeSet(), nodes)
    )


async def _right(r: Rig, *keys: InstanceKey) -> None:
    """Return when the server is at rest and every instance is right."""
    await eventually(lambda: all(_is_right(r, key) for key in keys))
    await r.simulator.balanced()
    await eventually(lambda: all(_is_right(r, key) for key in keys))


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


async def test_nobody_stays_on_a_node_whose_cpus_all_went_offline() -> None:
    """The kernel lets those run anywhere that have no CPU left, so their own set says nothing any more."""
    async with rig() as r:
        keys = [await r.present(f"c{number}", 2) for number in range(6)]
        (node,) = r.nodes(keys[0])
        left = r.simulator.machine.node_by_id[node].cpus
        for cpu in left:
            r.simulator.offline_cpu(cpu)
        await _right(r, *keys)
        assert all(node not in r.nodes(key) for key in keys)


async def test_smt_that_is_switched_off_leaves_everybody_on_first_threads() -> None:
    async with rig() as r:
        keys = [await r.present(f"c{number}", 1 + number) for number in range(5)]
        r.simulator.smt_off()
        await _right(r, *keys)
        assert all(cpu % 2 == 0 for key in keys for cpu in r.seat(key).cpus)


async def test_isolated_partition_is_left_by_its_instances_and_used_again_when_it_ends() -> None:
    """Nobody tells of it: no event is sent, the server does nothing, and the list of isolated CPUs in sysfs stays."""
    async with rig() as r:
        keys = [await r.present(f"c{number}", 3) for number in range(4)]
        taken = CpuSet([r.seat(key).cpus.lowest() for key in keys])
        r.simulator.set_isolated(taken)
        await _right(r, *keys)
        assert not any(taken & r.seat(key).cpus for key in keys)
        wide = await r.present("wide", 12)
        assert r.seat(wide).cpus == r.simulator.machine.online - taken
        r.simulator.set_isolated(CpuSet())
        r.simulator.set_config(wide, {"limits.cpu": "16"})
        await eventually(lambda: r.seat(wide).cpus == r.simulator.machine.online)


async def test_memory_that_is_plugged_in_lets_a_refused_instance_in() -> None:
    async with rig(wish=LOOKING) as r:
        key = r.managed("big", 2, limits_memory="150GiB")
        await r.start(key)
        await eventually(lambda: r.log.saying("instance=big", "no-memory"))
        for node in range(4):
            r.simulator.resize_node(node, 64 * GIB)
        # The server has one node for two vCPUs, and its memory needs three.
        await eventually(lambda: len(r.seat(key).record) == 3)


async def test_memory_node_that_appears_is_counted_and_gets_no_vcpus() -> None:
    async with rig(wish=LOOKING) as r:
        keys = [await r.present(f"c{number}", 4) for number in range(4)]
        before = r.touched(*keys)
        r.simulator.add_memory_node(256 * GIB)
        await r.passes(2)
        assert r.touched(*keys) == before
        new = await r.present("new", 2)
        assert 4 not in r.nodes(new)


async def test_node_that_is_taken_away_is_left_with_cpus_memory_and_record() -> None:
    async with rig(wish=LOOKING) as r:
        keys = [await r.present(f"c{number}", 4) for number in range(4)]
        (gone,) = r.nodes(keys[3])
        r.simulator.remove_node(gone)
        await _right(r, *keys)
        assert all(gone not in r.seat(key).record | r.seat(key).mems for key in keys)


async def test_record_that_names_a_node_that_is_not_there_is_written_anew() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        right = r.seat(key)
        r.simulator.set_config(key, {"volatile.cpu.nodes": "9"})
        await eventually(lambda: r.seat(key) == right)


async def test_reservation_that_no_longer_fits_is_cut_and_told_once() -> None:
    memory = MemorySettings(policy="static", reserved_total=6 * GIB, reserved=(Reservation(3, 6 * GIB),))
    async with rig(wish=Wish(settings=Settings(daemon=BUSY, memory=memory))) as r:
        keys = [await r.present(f"c{number}", 4, limits_memory="1GiB") for number in range(4)]
        r.simulator.resize_node(3, 4 * GIB)
        await eventually(lambda: r.log.saying("memory.reserved.3", "as much as there is is kept"))
        await r.passes(3)
        assert len(r.log.saying("memory.reserved.3")) == 1
        await _right(r, *keys)


def _change(simulator: Simulator, random: Random) -> None:
    """Something happens to the host that leaves at least four CPUs."""
    kernel = simulator.kernel
    every = CpuSet(cpu.id for cpu in simulator.machine.cpus)
    what = random.choice(("off", "off", "on", "on", "smt", "isolate", "free", "grow", "shrink"))
    if what == "off" and len(kernel.open_cpus) > 6:
        simulator.offline_cpu(random.choice(tuple(kernel.online)))
    elif what == "on" and every - kernel.online:
        simulator.online_cpu(random.choice(tuple(every - kernel.online)))
    elif what == "smt" and len(kernel.open_cpus) > 12:
        simulator.smt_off()
    elif what == "isolate" and len(kernel.open_cpus) > 8:
        simulator.set_isolated(CpuSet(random.sample(tuple(kernel.online), 3)))
    elif what == "free":
        simulator.set_isolated(CpuSet())
    elif what in ("grow", "shrink"):
        simulator.resize_node(random.randrange(4), (48 if what == "grow" else 16) * GIB)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_to_the_host_everybody_ends_on_cpus_that_are_there(seed: int) -> None:
    random = Random(seed)
    async with rig(wish=LOOKING) as r:
        keys = [await r.present(f"c{number}", random.randint(1, 5), limits_memory="1GiB") for number in range(6)]
        for _ in range(8):
            for _ in range(random.randint(1, 4)):
                _change(r.simulator, random)
            await _right(r, *keys)


async def test_change_that_nobody_tells_of_is_noticed_by_the_daemon_itself() -> None:
    """Without resync, verification, event and rewrite: the daemon compares a few small files now and then."""
    async with rig(replace(QUICK, balances=False), wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        key = await r.present("c1", 2)
        r.simulator.set_isolated(r.seat(key).cpus)
        await _right(r, key)


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
