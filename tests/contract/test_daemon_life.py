"""What becomes of an instance between its starts: other names, projects, copies, snapshots, pauses, pins. One by one.

Each is a sequence of events as the server sends them; no resync helps.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import Settings
from incus_numa.simulator.options import SimulatorOptions
from tests.contract.daemon_rig import BUSY, EVENTS_ONLY, QUICK, Rig, Wish, eventually, rig

PROJECTS = replace(QUICK, projects={"web": {}, "closed": {"restricted": "true"}})
DISORDERLY = replace(PROJECTS, event_jitter_s=0.05)
LATE = Wish(settings=Settings(daemon=replace(EVENTS_ONLY, verify_s=(0.1, 0.4, 1.0))))

in_any_order = pytest.mark.parametrize("options", [PROJECTS, DISORDERLY], ids=["in order", "disorderly"])


async def fill(r: Rig) -> list[InstanceKey]:
    """One instance of four vCPUs for each node: they find a node each only if nothing is left of anybody else."""
    keys = [r.managed(f"fill{number}", 4) for number in range(4)]
    for key in keys:
        await r.start(key)
        await r.placed(key)
    return keys


def lows(r: Rig, keys: list[InstanceKey]) -> list[int]:
    """The nodes of instances that have one each."""
    return sorted(r.nodes(key).lowest() for key in keys)


@in_any_order
async def test_renamed_instance_is_placed_under_its_new_name(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        key = await r.present("c1", 3)
        await r.simulator.stop(key)
        renamed = r.simulator.lifecycle.rename(key, "c2")
        await r.start(renamed)
        await r.placed(renamed)
        assert not r.has_group(key)


@in_any_order
async def test_nothing_is_left_of_the_name_before(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        key = await r.present("c1", 4)
        await r.simulator.stop(key)
        r.simulator.lifecycle.rename(key, "c2")
        await r.events_taken()
        assert lows(r, await fill(r)) == [0, 1, 2, 3]


@in_any_order
async def test_old_name_given_to_one_that_asks_for_nothing_is_not_touched(options: SimulatorOptions) -> None:
    async with rig(options, wish=LATE) as r:
        key = await r.present("c1", 3)
        await r.simulator.stop(key)
        renamed = r.simulator.lifecycle.rename(key, "c2")
        stranger = r.simulator.create("c1", {"limits.cpu": "3"})
        before = r.writes(stranger)
        await r.start(stranger, renamed)
        await r.placed(renamed)
        await r.events_taken()
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        await r.placed(renamed)
        assert r.writes(stranger) == before
        assert r.simulator.incus.get(stranger).config.get("volatile.cpu.nodes") is None


async def test_cgroup_of_another_that_has_the_name_now_is_not_put_right() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=replace(EVENTS_ONLY, verify_s=(0.5,))))) as r:
        key = await r.present("c1", 3)
        # Nothing is heard of what follows, and the cpusets are compared all the same.
        r.simulator.mute_listeners()
        await r.simulator.stop(key)
        r.simulator.delete(key)
        r.simulator.create("c1", {"limits.cpu": "3"})
        await r.start(key)
        asked, before = r.calls("GET instance", key), r.writes(key)
        await eventually(lambda: r.calls("GET instance", key) > asked)
        await asyncio.sleep(0.1)
        assert r.writes(key) == before


async def test_start_that_was_told_before_the_connection_and_shown_after_the_listing_is_found() -> None:
    async with rig(replace(QUICK, lock_release_s=(1.5, 1.5)), run=False) as r:
        key = r.managed("c1", 3)
        starting = asyncio.create_task(r.simulator.start(key))
        await eventually(lambda: ("instance-started", key) in r.simulator.incus.hub.sent)
        r.start_daemon()
        await r.listening()
        assert not starting.done()
        await starting
        await r.placed(key)


@in_any_order
async def test_instance_moved_to_another_project_is_placed_there(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        key = await r.present("c1", 4)
        await r.simulator.stop(key)
        moved = r.simulator.lifecycle.move(key, "web")
        same = r.managed("c1", 4)
        await r.start(moved, same)
        await r.placed(moved, same)
        assert r.nodes(moved) != r.nodes(same)


async def test_instance_moved_to_a_restricted_project_gets_the_cgroup_alone() -> None:
    async with rig(PROJECTS) as r:
        key = await r.present("c1", 3)
        await r.simulator.stop(key)
        moved = r.simulator.lifecycle.move(key, "closed")
        await r.start(moved)
        await eventually(lambda: r.has_group(moved) and r.seat(moved).mems == r.nodes(moved))
        await r.simulator.balanced()
        await eventually(lambda: len(r.seat(moved).cpus) == 3 and len(r.nodes(moved)) == 1)
        assert r.calls("PATCH instance", moved) <= 1


async def test_copy_is_an_instance_of_its_own_and_the_original_stays() -> None:
    async with rig(PROJECTS) as r:
        key = await r.present("c1", 4)
        before, patches = r.seat(key), r.calls("PATCH instance", key)
        copied = r.simulator.lifecycle.copy(key, "c2", "web")
        assert "volatile.cpu.nodes" not in r.simulator.incus.get(copied).config
        await r.start(copied)
        await r.placed(copied, key)
        assert (r.seat(key), r.calls("PATCH instance", key)) == (before, patches)
        assert r.nodes(copied) != r.nodes(key)


@in_any_order
async def test_restored_instance_is_what_its_snapshot_says(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        key = await r.present("c1", 2)
        r.simulator.lifecycle.snapshot(key, "small")
        r.simulator.set_config(key, {"limits.cpu": "6"})
        await r.placed(key)
        await r.simulator.lifecycle.restore(key, "small")
        await r.placed(key)
        assert len(r.seat(key).cpus) == 2


async def test_restored_to_a_time_when_it_was_not_managed_is_not_touched() -> None:
    async with rig() as r:
        key = r.simulator.create("c1", {"limits.cpu": "2"})
        await r.start(key)
        r.simulator.lifecycle.snapshot(key, "free")
        r.simulator.set_config(key, {"limits.cpu.nodes": "balanced"})
        await r.placed(key)
        await r.simulator.lifecycle.restore(key, "free")
        await r.events_taken()
        before = r.touched(key)
        await r.present("c2", 2)
        await r.events_taken()
        assert (r.touched(key)[key][1:], r.seat(key).mems) == (before[key][1:], NodeSet())


async def test_instance_restored_while_stopped_is_placed_when_it_starts() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        r.simulator.lifecycle.snapshot(key, "small")
        await r.simulator.stop(key)
        r.simulator.set_config(key, {"limits.cpu": "6"})
        await r.simulator.lifecycle.restore(key, "small")
        assert not r.has_group(key)
        await r.start(key)
        await r.placed(key)


async def test_stateful_stop_and_start_is_a_stop_and_a_start() -> None:
    async with rig() as r:
        key = await r.present("c1", 4, migration_stateful="true")
        await r.simulator.lifecycle.stop_stateful(key)
        others = await fill(r)
        assert lows(r, others) == [0, 1, 2, 3]
        await r.simulator.stop(others[2])
        await r.simulator.lifecycle.start_stateful(key)
        await r.placed(key)
        assert lows(r, [key, *others[:2], others[3]]) == [0, 1, 2, 3]


async def test_paused_instance_keeps_its_place_and_is_not_written_to_again_and_again() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        key = await r.present("c1", 3)
        seat = r.seat(key)
        r.simulator.lifecycle.pause(key)
        await r.events_taken()
        before = r.touched(key)
        await r.passes(4)
        assert (r.seat(key), r.touched(key)) == (seat, before)
        r.simulator.lifecycle.resume(key)
        await r.events_taken()
        await r.passes(2)
        assert (r.seat(key), r.touched(key)) == (seat, before)


async def test_paused_instance_counts_as_load() -> None:
    async with rig() as r:
        key = await r.present("c1", 4)
        r.simulator.lifecycle.pause(key)
        others = [await r.present(f"c{number}", 4) for number in range(2, 5)]
        assert lows(r, [key, *others]) == [0, 1, 2, 3]


async def test_rewrite_of_a_paused_instance_is_undone() -> None:
    async with rig() as r:
        key = await r.present("c1", 6)
        seat = r.seat(key)
        r.simulator.lifecycle.pause(key)
        for _ in range(3):
            r.simulator.trigger_balance()
            await r.simulator.balanced()
            await eventually(lambda: r.seat(key) == seat)


async def test_daemon_that_finds_an_instance_paused_places_it() -> None:
    async with rig(run=False) as r:
        key = r.managed("c1", 3)
        await r.start(key)
        r.simulator.lifecycle.pause(key)
        r.start_daemon()
        await r.placed(key)


async def test_paused_instance_that_is_stopped_and_started_is_placed() -> None:
    async with rig() as r:
        key = await r.present("c1", 3)
        r.simulator.lifecycle.pause(key)
        await r.simulator.stop(key)
        await r.start(key)
        await r.placed(key)


@pytest.mark.parametrize(("pin", "record", "bound"), [("9-11", "2", "2"), ("3-4", "0-1", ""), ("15-15", "3", "3")])
async def test_explicit_pin_set_later_is_respected_and_its_memory_follows_the_policy(
    pin: str, record: str, bound: str
) -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        r.simulator.set_config(key, {"limits.cpu": pin})
        wanted = NodeSet.parse(record), NodeSet.parse(bound), CpuSet.parse(pin)
        await eventually(lambda: (r.seat(key).record, r.seat(key).mems, r.seat(key).cpus) == wanted)
        await r.simulator.balanced()
        await eventually(lambda: (r.seat(key).record, r.seat(key).mems, r.seat(key).cpus) == wanted)


async def test_instance_whose_pin_is_taken_away_is_placed_again() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        r.simulator.set_config(key, {"limits.cpu": "3-4"})
        await eventually(lambda: r.seat(key).cpus == CpuSet([3, 4]))
        r.simulator.set_config(key, {"limits.cpu": "2"})
        await eventually(lambda: len(r.nodes(key)) == 1)
        await r.placed(key)


async def test_balanced_set_unset_and_set_again_ends_placed() -> None:
    async with rig() as r:
        key = r.simulator.create("c1", {"limits.cpu": "3"})
        await r.start(key)
        for _ in range(3):
            r.simulator.set_config(key, {"limits.cpu.nodes": "balanced"})
            await r.placed(key)
            r.simulator.set_config(key, {"limits.cpu.nodes": ""})
            await eventually(lambda: r.seat(key).mems == NodeSet())
        r.simulator.set_config(key, {"limits.cpu.nodes": "balanced"})
        r.simulator.set_config(key, {"limits.cpu.nodes": ""})
        r.simulator.set_config(key, {"limits.cpu.nodes": "balanced"})
        await r.placed(key)


async def test_limits_changed_many_times_end_at_the_last() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        for count in (1, 16, 3, 7, 2, 5):
            r.simulator.set_config(key, {"limits.cpu": str(count)})
        await r.placed(key)
        assert len(r.seat(key).cpus) == 5
