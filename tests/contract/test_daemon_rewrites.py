"""The daemon and those who write cpusets besides it: what is foreign is undone, what is right is never written."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import DaemonSettings, Settings
from tests.contract.daemon_rig import BUSY, INOTIFY_ONLY, QUICK, Rig, Wish, eventually, rig

BY_TIMER_ONLY = DaemonSettings(resync_s=0.1, verify_s=(3600.0,))


def _foreign(r: Rig, key: InstanceKey) -> CpuSet:
    """As many CPUs as the instance has, all of them others."""
    return CpuSet(list(r.simulator.machine.online - r.seat(key).cpus)[: len(r.seat(key).cpus)])


async def test_rewrite_by_the_server_is_undone() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        keys = [await r.present(f"c{number}", 3) for number in range(4)]
        before = {key: r.seat(key) for key in keys}
        for _ in range(5):
            r.simulator.trigger_balance()
            await r.simulator.balanced()
            await eventually(lambda: {key: r.seat(key) for key in keys} == before)


async def test_rewrite_is_undone_without_asking_the_server() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        key = await r.present("c1", 3)
        await r.events_taken()
        before, right = r.calls("GET instance", key), r.seat(key)
        r.simulator.kernel.set_cpus(key, _foreign(r, key))
        await eventually(lambda: r.seat(key) == right)
        assert (r.calls("GET instance", key), r.calls("GET instances")) == (before, 1)


async def test_hand_written_cpus_are_undone() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        key = await r.present("c1", 2)
        right = r.seat(key)
        r.path(key, "cpuset.cpus").write_text(f"{_foreign(r, key)}\n")
        await eventually(lambda: r.seat(key) == right)


async def test_hand_written_memory_nodes_are_undone_at_the_next_resync() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BY_TIMER_ONLY))) as r:
        key = await r.present("c1", 2)
        right = r.seat(key)
        r.path(key, "cpuset.mems").write_text(f"{NodeSet([(right.mems.lowest() + 1) % 4])}\n")
        await eventually(lambda: r.seat(key) == right)


async def test_record_written_by_hand_is_put_right() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        right = r.seat(key)
        r.simulator.set_config(key, {"volatile.cpu.nodes": str((right.record.lowest() + 1) % 4)})
        await eventually(lambda: r.seat(key) == right)


async def test_rewrite_after_a_restart_of_the_instance_is_seen_by_inotify() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        key = await r.present("c1", 2)
        for _ in range(3):
            await r.simulator.restart(key)
            await r.placed(key)
            right = r.seat(key)
            r.simulator.kernel.set_cpus(key, _foreign(r, key))
            await eventually(lambda right=right: r.seat(key) == right)  # type: ignore[misc]


async def test_equal_values_are_never_written_by_resyncs() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        keys = [await r.present(f"c{number}", 1 + number * 3) for number in range(4)]
        await r.passes(1)
        before = r.touched(*keys)
        await r.passes(5)
        assert r.touched(*keys) == before


async def test_equal_values_are_never_written_by_repeated_events() -> None:
    async with rig() as r:
        keys = [await r.present(f"c{number}", 1 + number * 3) for number in range(4)]
        await r.events_taken()
        await r.placed(*keys)
        before = r.touched(*keys)
        for key in keys:
            for action in ("instance-started", "instance-updated", "instance-resumed", "instance-updated"):
                r.simulator.incus.hub.send(action, key)
        await eventually(lambda: all(r.calls("GET instance", key) > 1 for key in keys))
        await r.events_taken()
        assert r.touched(*keys) == before


async def test_only_what_the_server_changed_is_written_back() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        key = await r.present("c1", 3)
        before, right = r.writes(key), r.seat(key)
        r.simulator.kernel.set_cpus(key, _foreign(r, key))
        await eventually(lambda: r.seat(key) == right)
        assert r.writes(key)[len(before) :] == [(key, "cpuset.cpus", str(right.cpus))]


async def test_own_patch_is_not_looked_at_again() -> None:
    async with rig(replace(QUICK, lock_release_s=(0.0, 0.0))) as r:
        key = await r.present("c1", 2)
        before = r.calls("GET instance", key)
        r.simulator.set_config(key, {"limits.cpu": "8"})
        await r.placed(key)
        await r.events_taken()
        assert r.calls("PATCH instance", key) >= 1
        # One look for the user's change, none for the echo of our own PATCH.
        assert r.calls("GET instance", key) == before + 1


async def test_start_takes_at_most_three_calls() -> None:
    async with rig(replace(QUICK, lock_release_s=(0.0, 0.0))) as r:
        keys = [r.managed(f"c{number}", 1 + number % 8) for number in range(12)]
        for key in keys:
            await r.start(key)
            await r.placed(key)
        await r.events_taken()
        listings = r.calls("GET instances")
        assert listings == 1
        assert max(sum(r.simulator.measurements.calls_by_instance[key].values()) for key in keys) <= 3


async def test_change_right_after_our_own_patch_is_not_taken_for_its_echo() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)

        async def change_too(_: object) -> None:
            r.daemon.server.after_patch = r.daemon.server.before_patch
            r.simulator.set_config(key, {"limits.cpu": "3"})

        r.daemon.server.after_patch = change_too
        r.simulator.set_config(key, {"limits.cpu": "8"})
        await eventually(lambda: r.simulator.incus.get(key).config["limits.cpu"] == "3")
        await r.placed(key)


async def test_change_is_seen_although_the_echo_of_our_patch_was_lost() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        listed = r.calls("GET instances")

        async def cut(_: object) -> None:
            r.daemon.server.before_patch = r.daemon.server.after_patch
            r.simulator.drop_listeners()
            await eventually(lambda: r.simulator.incus.hub.listener_count == 0)

        r.daemon.server.before_patch = cut
        r.simulator.set_config(key, {"limits.cpu": "8"})
        await r.placed(key)
        await eventually(lambda: r.simulator.incus.hub.listener_count == 1 and r.calls("GET instances") > listed)
        r.simulator.set_config(key, {"limits.cpu": "3"})
        await r.placed(key)


async def test_two_writers_do_not_fight_for_ever_over_an_instance_at_rest() -> None:
    async with rig() as r:
        key = await r.present("c1", 3)
        await r.events_taken()
        passes, writes = r.simulator.incus.balancer.passes, len(r.writes(key))
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        await r.placed(key)
        await asyncio.gather(*(r.events_taken() for _ in range(3)))
        assert r.simulator.incus.balancer.passes == passes + 1
        assert len(r.writes(key)) <= writes + 2


async def test_rewrite_while_a_pass_over_everything_is_at_work_on_the_instance_is_undone() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        key = await r.present("c1", 3)
        await r.events_taken()
        right, written = r.seat(key), asyncio.Event()

        async def meddle(which: InstanceKey) -> None:
            if which == key and not written.is_set():
                written.set()
                r.simulator.kernel.set_cpus(key, _foreign(r, key))
                # Long enough for the change to be seen while the pass still holds the instance.
                await asyncio.sleep(0.2)

        r.daemon.server.before_patch = meddle
        # Only the record is wrong, so the pass itself has no reason to write CPUs.
        record = r.simulator.incus.get(key)
        record.config["volatile.cpu.nodes"] = "3" if right.record != NodeSet([3]) else "0"
        record.changed()
        r.daemon.service.reload()
        await asyncio.wait_for(written.wait(), 10)
        await eventually(lambda: r.seat(key) == right)
