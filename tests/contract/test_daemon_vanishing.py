"""Instances that vanish at any point of a pass: nothing is lost, nothing else is held up, nobody is blamed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from incus_numa.model.instance import InstanceKey
from tests.contract.daemon_rig import QUICK, MeddledServer, Meddling, Rig, eventually, rig

Ending = Callable[[Rig, InstanceKey], None]


def _crash(r: Rig, key: InstanceKey) -> None:
    r.simulator.crash(key)


def _delete(r: Rig, key: InstanceKey) -> None:
    r.simulator.crash(key)
    r.simulator.delete(key)


def _start_again(r: Rig, key: InstanceKey) -> None:
    r.simulator.crash(key)
    _started.add(asyncio.create_task(r.simulator.start(key)))


_started: set[asyncio.Task[None]] = set()


def _after_get(server: MeddledServer, meddling: Meddling) -> None:
    server.after_get = meddling


def _before_patch(server: MeddledServer, meddling: Meddling) -> None:
    server.before_patch = meddling


def _after_patch(server: MeddledServer, meddling: Meddling) -> None:
    server.after_patch = meddling


AT = pytest.mark.parametrize("hook", [_after_get, _before_patch, _after_patch])


def _once(r: Rig, key: InstanceKey, ending: Ending, happened: asyncio.Event) -> Meddling:
    async def meddle(which: InstanceKey) -> None:
        if which == key and not happened.is_set() and r.has_group(key):
            happened.set()
            ending(r, key)

    return meddle


def _looked(r: Rig, key: InstanceKey, times: int) -> bool:
    return r.calls("GET instance", key) >= times


@AT
@pytest.mark.parametrize("ending", [_crash, _delete])
async def test_instance_that_ends_within_a_pass_holds_up_no_other(
    hook: Callable[[MeddledServer, Meddling], None], ending: Ending
) -> None:
    async with rig() as r:
        key, other = await r.present("c1", 2), await r.present("c2", 2)
        happened = asyncio.Event()
        hook(r.daemon.server, _once(r, key, ending, happened))
        r.simulator.set_config(key, {"limits.cpu": "8"})
        await asyncio.wait_for(happened.wait(), 10)
        r.simulator.set_config(other, {"limits.cpu": "8"})
        await r.placed(other)
        await r.present("c3", 3)
        assert not r.has_group(key)
        assert r.log.lines() == []


@AT
async def test_instance_that_crashes_and_starts_within_a_pass_is_placed(
    hook: Callable[[MeddledServer, Meddling], None],
) -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        happened = asyncio.Event()
        hook(r.daemon.server, _once(r, key, _start_again, happened))
        r.simulator.set_config(key, {"limits.cpu": "8"})
        await asyncio.wait_for(happened.wait(), 10)
        await r.placed(key)


async def test_instance_that_ends_while_its_start_is_looked_at_is_forgotten() -> None:
    async with rig(replace(QUICK, per_request_delay_s=0.02)) as r:
        key = r.managed("c1", 2)
        await r.start(key)
        await eventually(lambda: r.calls("GET instance", key) > 0)
        r.simulator.crash(key)
        r.simulator.delete(key)
        await r.present("c2", 2)
        assert r.log.lines() == []


async def test_deleted_instance_leaves_room_for_others() -> None:
    async with rig() as r:
        old = [await r.present(f"old{number}", 4) for number in range(4)]
        place = r.nodes(old[2])
        await r.simulator.stop(old[2])
        r.simulator.delete(old[2])
        new = await r.present("new", 4)
        assert r.nodes(new) == place


async def test_crashed_instance_leaves_room_for_others() -> None:
    async with rig() as r:
        old = [await r.present(f"old{number}", 4) for number in range(4)]
        place = r.nodes(old[1])
        r.simulator.crash(old[1])
        new = await r.present("new", 4)
        assert r.nodes(new) == place


async def test_name_is_used_again_by_another_instance() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        await r.simulator.stop(key)
        r.simulator.delete(key)
        key = await r.present("c1", 8)
        assert len(r.nodes(key)) == 2


async def test_many_that_start_and_stop_at_random_leave_the_rest_placed() -> None:
    async with rig(replace(QUICK, seed=3)) as r:
        keys = [r.managed(f"c{number}", 1 + number % 6) for number in range(16)]
        await r.start(*keys)
        for round_ in range(3):
            await asyncio.gather(*(r.simulator.stop(key) for key in keys[round_::4]))
            await asyncio.gather(*(r.simulator.restart(key) for key in keys[3::4]))
            await r.start(*keys[round_::4])
        for key in keys[::2]:
            r.simulator.crash(key)
        await r.placed(*keys[1::2])
        assert r.log.lines() == []


async def test_cgroup_that_is_removed_before_the_write_is_no_failure() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        # A foreign write is noticed, and by the time it is undone the instance is gone.
        r.simulator.kernel.set_cpus(key, r.simulator.machine.online - r.seat(key).cpus)
        r.simulator.crash(key)
        await r.present("c2", 2)
        assert r.log.lines() == []


async def test_record_of_a_container_without_cgroup_that_the_server_calls_running_is_left_alone() -> None:
    async with rig() as r:
        key = await r.present("c1", 1)
        (home,) = r.nodes(key)
        crowd = r.simulator.create("crowd", {"limits.cpu": str(r.simulator.machine.node_by_id[home].cpus)})
        await r.start(crowd)
        # Were it placed anew, it would go where the crowd is not.
        shutil.rmtree(r.path(key, "cpuset.cpus").parent)
        before = r.calls("PATCH instance", key)
        looks = r.calls("GET instance", key)
        for turn in (1, 2):
            r.simulator.set_config(key, {"user.turn": str(turn)})
            await eventually(partial(_looked, r, key, looks + turn))
        await r.events_taken()
        assert r.calls("PATCH instance", key) == before
        r.simulator.crash(key)
