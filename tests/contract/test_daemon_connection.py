"""The daemon and its connections: what is missed while one is lost is found when it is back."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import Settings
from tests.contract.daemon_rig import EVENTS_ONLY, QUICK, Rig, Seat, Wish, eventually, rig

QUICK_HEARTBEAT = Wish(settings=Settings(daemon=EVENTS_ONLY), heartbeat_s=0.4)


async def _some(r: Rig) -> list[InstanceKey]:
    keys = [r.managed(f"c{number}", 1 + 3 * number) for number in range(4)]
    await r.start(*keys)
    await r.placed(*keys)
    return keys


def _seats(r: Rig, keys: list[InstanceKey]) -> dict[InstanceKey, Seat]:
    return {key: r.seat(key) for key in keys}


async def _rested(r: Rig, keys: list[InstanceKey]) -> dict[InstanceKey, Seat]:
    """Where the instances are when neither the server nor the daemon has anything left to do."""
    await r.placed(*keys)
    await r.events_taken()
    await r.placed(*keys)
    return _seats(r, keys)


async def test_starts_while_the_event_stream_is_cut_are_placed_after_it_is_back() -> None:
    async with rig() as r:
        for number in range(3):
            key = r.managed(f"c{number}", 1 + 3 * number)
            r.simulator.drop_listeners()
            await r.start(key)
            await r.placed(key)


async def test_starts_while_the_event_stream_is_mute_are_placed_after_it_is_back() -> None:
    async with rig(wish=QUICK_HEARTBEAT) as r:
        r.simulator.mute_listeners()
        keys = [r.managed(f"c{number}", 2 + number) for number in range(3)]
        await r.start(*keys)
        await r.placed(*keys)


async def test_events_after_a_cut_are_taken_again() -> None:
    async with rig() as r:
        r.simulator.drop_listeners()
        await eventually(lambda: r.calls("GET instances") == 2)
        await r.present("c1", 2)
        assert r.calls("GET instances") == 2


async def test_restart_of_the_server_keeps_every_placement() -> None:
    async with rig() as r:
        keys = await _some(r)
        before = await _rested(r, keys)
        await r.simulator.restart_server()
        await eventually(lambda: r.simulator.incus.hub.listener_count == 1)
        await r.simulator.balanced()
        await eventually(lambda: _seats(r, keys) == before)


async def test_rewrite_at_the_start_of_the_server_is_undone_while_it_cannot_be_asked() -> None:
    async with rig() as r:
        keys = await _some(r)
        before = await _rested(r, keys)
        await r.simulator.stop_server()
        for key in keys[:3]:
            r.simulator.kernel.set_cpus(key, CpuSet(r.simulator.machine.online - before[key].cpus))
        await eventually(lambda: _seats(r, keys) == before)


async def test_instances_started_through_a_restart_of_the_server_are_placed() -> None:
    async with rig(replace(QUICK, lock_release_s=(0.02, 0.05))) as r:
        keys = [r.managed(f"c{number}", 1 + number) for number in range(8)]
        starts = asyncio.gather(*(r.simulator.start(key) for key in keys), return_exceptions=True)
        await eventually(lambda: any(r.has_group(key) for key in keys))
        await r.simulator.restart_server()
        await starts
        await r.placed(*(key for key in keys if r.has_group(key)))


async def test_server_that_comes_after_the_daemon_is_found() -> None:
    async with rig(run=False) as r:
        key = r.managed("c1", 3)
        await r.start(key)
        await r.simulator.stop_server()
        r.start_daemon()
        await eventually(lambda: r.log.saying("event stream is lost"))
        await r.simulator.start_server()
        await r.placed(key)
        assert len(r.log.saying("event stream is lost")) == 1


async def test_instances_that_run_before_the_daemon_are_placed() -> None:
    async with rig(run=False) as r:
        keys = [r.managed(f"c{number}", 1 + number) for number in range(6)]
        await r.start(*keys)
        r.start_daemon()
        await r.placed(*keys)


async def test_events_that_overtake_each_other_lose_nothing() -> None:
    async with rig(replace(QUICK, event_jitter_s=0.2)) as r:
        keys = [r.managed(f"c{number}", 1 + number % 5) for number in range(10)]
        await r.start(*keys)
        for key in keys[::2]:
            await r.simulator.stop(key)
            await r.simulator.start(key)
        for key in keys[1::4]:
            r.simulator.set_config(key, {"limits.cpu": "8"})
        await r.placed(*keys)


async def test_second_daemon_rewrites_nothing_that_is_right() -> None:
    async with rig() as r:
        keys = await _some(r)
        before = await _rested(r, keys)
        writes = r.writes(*keys)
        await r.stop_daemon()
        listed = r.calls("GET instances")
        r.start_daemon()
        await eventually(lambda: r.calls("GET instances") > listed)
        await r.events_taken()
        await r.present("new", 2)
        assert _seats(r, keys[1:3]) == {key: before[key] for key in keys[1:3]}
        kept = [write for write in r.writes(*keys)[len(writes) :] if write[1] != "cpuset.cpus"]
        assert kept == []


async def test_second_daemon_keeps_what_was_decided_where_the_server_rewrote_meanwhile() -> None:
    async with rig() as r:
        keys = await _some(r)
        before = await _rested(r, keys)
        await r.stop_daemon()
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        r.start_daemon()
        await eventually(lambda: _seats(r, keys) == before)


async def test_second_daemon_judges_what_was_started_meanwhile() -> None:
    async with rig() as r:
        keys = await _some(r)
        await r.stop_daemon()
        fresh = [r.managed(f"new{number}", 2 + 6 * number) for number in range(2)]
        await r.start(*fresh)
        r.start_daemon()
        await r.placed(*keys, *fresh)


async def test_daemon_that_died_without_a_word_is_replaced_by_another() -> None:
    async with rig() as r:
        key = r.managed("c1", 3)
        await r.start(key)
        r.daemon.running.cancel()
        await asyncio.wait((r.daemon.running,))
        r.start_daemon()
        await r.placed(key)


async def test_service_knows_whether_the_server_is_heard_now() -> None:
    async with rig() as r:
        assert r.daemon.service.connected
        r.simulator.incus.hub.drop_all()
        await eventually(lambda: not r.daemon.service.connected)
        await eventually(lambda: r.daemon.service.connected)
