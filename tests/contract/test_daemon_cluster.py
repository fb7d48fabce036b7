"""One member of a cluster: what is elsewhere is others' business; what comes to here is placed, announced or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import Settings
from incus_numa.simulator.members import OTHER
from tests.contract.daemon_rig import BUSY, QUICK, Rig, Wish, eventually, rig

HERE = "here"
MEMBER = replace(QUICK, member=HERE)
FULL = {"limits.cpu": "4", "limits.cpu.nodes": "balanced"}


@asynccontextmanager
async def member(wish: Wish | None = None) -> AsyncIterator[Rig]:
    """A member with a daemon that hears events, and no resync unless wished for."""
    async with rig(MEMBER, wish=wish) as r:
        yield r


async def elsewhere(r: Rig, name: str, **config: str) -> InstanceKey:
    """An instance that runs on another member."""
    keys = {key.replace("_", "."): value for key, value in config.items()}
    key = r.simulator.members.create(name, FULL | keys)
    await r.simulator.start(key)
    return key


async def fill(r: Rig, count: int = 4) -> list[InstanceKey]:
    """Instances of four vCPUs, each as big as a node."""
    return [await r.present(f"fill{number}", 4) for number in range(count)]


def lows(r: Rig, keys: list[InstanceKey]) -> list[int]:
    return sorted(r.nodes(key).lowest() for key in keys)


async def test_member_places_its_own_instances() -> None:
    async with member() as r:
        assert lows(r, await fill(r)) == [0, 1, 2, 3]


async def test_instances_of_other_members_are_neither_touched_nor_counted() -> None:
    async with member(Wish(settings=Settings(daemon=BUSY))) as r:
        others = [await elsewhere(r, f"other{number}", volatile_cpu_nodes="0") for number in range(4)]
        assert lows(r, await fill(r)) == [0, 1, 2, 3]
        await r.passes(3)
        assert [r.calls("PATCH instance", key) for key in others] == [0] * 4


async def test_events_of_other_members_are_ignored() -> None:
    async with member() as r:
        key = await elsewhere(r, "other")
        await r.simulator.restart(key)
        r.simulator.set_config(key, {"limits.cpu": "2"})
        await r.simulator.stop(key)
        r.simulator.delete(key)
        await r.events_taken()
        assert r.simulator.measurements.calls_by_instance.get(key, {}) == {}


async def test_same_name_on_two_members_in_two_projects_is_two_instances() -> None:
    async with rig(replace(MEMBER, projects={"web": {}})) as r:
        there = r.simulator.members.create("c1", FULL, project="web")
        await r.simulator.start(there)
        here = await r.present("c1", 4)
        await r.simulator.stop(there)
        await r.events_taken()
        await r.placed(here)
        assert r.simulator.measurements.calls_by_instance.get(there, {}) == {}


@pytest.mark.parametrize("relocation_s", [0.0, 0.05, 0.5, 2.0])
async def test_live_migrated_in_is_placed_although_no_start_is_heard(relocation_s: float) -> None:
    async with member() as r:
        r.simulator.members.relocation_s = (relocation_s, relocation_s)
        others = await fill(r, 3)
        key = await elsewhere(r, "guest")
        sent = len(r.simulator.incus.hub.sent)
        await r.simulator.members.migrate(key, HERE, live=True)
        assert ("instance-started", key) not in r.simulator.incus.hub.sent[sent:]
        await r.placed(key)
        assert lows(r, [key, *others]) == [0, 1, 2, 3]


async def test_live_migration_whose_event_was_lost_is_found_by_the_resync() -> None:
    async with member(Wish(settings=Settings(daemon=BUSY))) as r:
        key = await elsewhere(r, "guest")
        r.simulator.mute_listeners()
        await r.simulator.members.migrate(key, HERE, live=True)
        await r.placed(key)


async def test_stopped_instance_that_was_moved_to_here_is_placed_when_it_starts() -> None:
    async with member() as r:
        key = await elsewhere(r, "guest")
        await r.simulator.stop(key)
        await r.simulator.members.migrate(key, HERE)
        await r.start(key)
        await r.placed(key)


@pytest.mark.parametrize("relocation_s", [0.0, 0.5])
async def test_nothing_is_left_of_one_that_was_live_migrated_away(relocation_s: float) -> None:
    async with member() as r:
        r.simulator.members.relocation_s = (relocation_s, relocation_s)
        key = await r.present("guest", 4)
        await r.simulator.members.migrate(key, OTHER, live=True)
        patches = r.calls("PATCH instance", key)
        assert lows(r, await fill(r)) == [0, 1, 2, 3]
        await r.events_taken()
        assert r.calls("PATCH instance", key) == patches


async def test_there_and_back_again_is_placed_anew() -> None:
    async with member() as r:
        key = await r.present("guest", 4)
        for _ in range(3):
            await r.simulator.members.migrate(key, OTHER, live=True)
            await r.simulator.members.migrate(key, HERE, live=True)
            await r.placed(key)


@pytest.mark.parametrize(
    ("live", "moves"), [(False, False), (False, True), (True, True)], ids=["stopped", "moved", "moved live"]
)
async def test_evacuated_and_restored_member_has_its_instances_placed(live: bool, moves: bool) -> None:
    async with member() as r:
        keys = await fill(r)
        plain = r.simulator.create("plain", {"limits.cpu": "2"})
        await r.start(plain)
        await r.simulator.members.evacuate(live=live, moves=moves)
        await r.events_taken()
        assert not any(r.has_group(key) for key in keys)
        before = r.writes(plain)
        await r.simulator.members.restore(live=live)
        await r.placed(*keys)
        assert lows(r, keys) == [0, 1, 2, 3]
        assert r.writes(plain) == before


async def test_evacuated_member_counts_nobody_who_left() -> None:
    async with member() as r:
        keys = await fill(r)
        await r.simulator.members.evacuate(live=True)
        await r.events_taken()
        fresh = [await r.present(f"fresh{number}", 4) for number in range(4)]
        assert lows(r, fresh) == [0, 1, 2, 3]
        assert not any(r.has_group(key) for key in keys)


async def test_server_that_becomes_a_member_leaves_others_alone_from_then_on() -> None:
    async with rig(QUICK) as r:
        mine = await r.present("mine", 4)
        r.simulator.members.enable(HERE)
        await eventually(lambda: r.calls("GET server") == 2)
        other = await elsewhere(r, "other")
        await r.simulator.restart(other)
        r.daemon.service.reload()
        await r.events_taken()
        guest = await elsewhere(r, "guest")
        await r.simulator.members.migrate(guest, HERE, live=True)
        await r.placed(mine, guest)
        assert r.simulator.measurements.calls_by_instance.get(other, {}) == {}
        assert r.seat(mine).record == NodeSet.parse(r.simulator.incus.get(mine).config["volatile.cpu.nodes"])
