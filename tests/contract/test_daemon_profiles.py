"""Edits of a profile that many instances use: one pass for all of them, and no more writes than are needed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.triggers import FEW
from incus_numa.model.instance import InstanceKey
from tests import builders
from tests.contract.daemon_rig import QUICK, Rig, eventually, rig

MANY = 200
SOME = 80
"""Still more than are looked at one by one."""
WIDE = builders.machine(nodes=8, cpus_per_node=16)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Requests of a daemon: listings, those about single instances, and PATCHes of the one that got most."""

    listings: int
    gets: int
    patches: int
    most_patches: int


def cost(r: Rig, keys: list[InstanceKey]) -> Cost:
    nothing: Counter[str] = Counter()
    counts = [r.simulator.measurements.calls_by_instance.get(key, nothing) for key in keys]
    return Cost(
        listings=r.calls("GET instances"),
        gets=sum(one["GET instance"] for one in counts),
        patches=sum(one["PATCH instance"] for one in counts),
        most_patches=max(one["PATCH instance"] for one in counts),
    )


def is_one_pass(spent: Cost, *, patches: int) -> bool:
    """Whether nearly all were looked at in one go: on a busy host the first few may have been looked at before that.

    A PATCH is preceded by one look at the instance, whose ETag it needs. One listing more may be of the beginning.
    """
    once = spent.listings in (1, 2) and spent.patches == patches
    return once and patches <= spent.gets <= patches + SOME // 2


@asynccontextmanager
async def users(profile: Mapping[str, str], count: int = SOME) -> AsyncIterator[tuple[Rig, list[InstanceKey]]]:
    """Running instances that use the profile `numa`, with a daemon that has nothing to do about them any more."""
    async with rig(replace(QUICK, profiles={"numa": profile}), machine=WIDE) as r:
        keys = [r.simulator.create(f"c{number}", profiles=("default", "numa")) for number in range(count)]
        await r.start(*keys)
        if profile.get("limits.cpu.nodes") == "balanced":
            await r.placed(*keys)
        await r.events_taken()
        r.simulator.measurements.clear()
        yield r, keys


def spread(r: Rig, keys: list[InstanceKey]) -> list[int]:
    """How many instances have each of the nodes."""
    lows = [r.nodes(key).lowest() for key in keys]
    return sorted(lows.count(node) for node in set(lows))


async def test_profile_that_asks_for_balanced_is_one_pass() -> None:
    async with users({"limits.cpu": "2"}, MANY) as (r, keys):
        r.simulator.set_profile("numa", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"})
        await r.placed(*keys)
        assert is_one_pass(cost(r, keys), patches=MANY)
        assert cost(r, keys).most_patches == 1
        assert spread(r, keys) == [25] * 8


async def test_profile_that_raises_the_limit_is_one_pass_and_writes_no_record_that_is_right() -> None:
    async with users({"limits.cpu": "2", "limits.cpu.nodes": "balanced"}) as (r, keys):
        r.simulator.set_profile("numa", {"limits.cpu": "4", "limits.cpu.nodes": "balanced"})
        # The server gives them four CPUs by itself, before the daemon has heard of it.
        await eventually(lambda: cost(r, keys).listings > 0)
        await eventually(lambda: all(len(r.seat(key).cpus) == 4 for key in keys))
        await r.placed(*keys)
        assert is_one_pass(cost(r, keys), patches=0)


async def test_profile_that_makes_them_wide_is_one_pass() -> None:
    async with users({"limits.cpu": "2", "limits.cpu.nodes": "balanced"}) as (r, keys):
        r.simulator.set_profile("numa", {"limits.cpu": "20", "limits.cpu.nodes": "balanced"})
        await eventually(lambda: all(len(r.seat(key).cpus) == 20 for key in keys))
        await r.placed(*keys)
        assert is_one_pass(cost(r, keys), patches=SOME)
        assert cost(r, keys).most_patches == 1


async def test_profile_that_lets_go_is_one_pass() -> None:
    async with users({"limits.cpu": "2", "limits.cpu.nodes": "balanced"}) as (r, keys):
        r.simulator.set_profile("numa", {"limits.cpu": "2"})
        await eventually(lambda: all(r.seat(key).mems == NodeSet() for key in keys))
        assert is_one_pass(cost(r, keys), patches=0)


async def test_profile_that_changes_nothing_for_us_is_one_look() -> None:
    async with users({"limits.cpu": "2", "limits.cpu.nodes": "balanced"}) as (r, keys):
        before = r.touched(*keys)
        r.simulator.set_profile("numa", {"limits.cpu": "2", "limits.cpu.nodes": "balanced", "user.note": "1"})
        await eventually(lambda: r.calls("GET instances") == 1)
        await r.events_taken()
        assert {key: found[:2] for key, found in r.touched(*keys).items()} == {
            key: found[:2] for key, found in before.items()
        }
        assert is_one_pass(cost(r, keys), patches=0)


async def test_edit_taken_back_before_it_was_carried_out_leaves_no_memory_bound() -> None:
    async with users({"limits.cpu": "2"}) as (r, keys):
        gate = asyncio.Event()

        async def hold(key: InstanceKey) -> None:
            await gate.wait()

        r.daemon.server.before_patch = hold
        r.simulator.set_profile("numa", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"})
        await eventually(lambda: any(r.seat(key).mems for key in keys))
        # Longer than it takes until all cpusets are compared.
        await asyncio.sleep(1.0)
        r.simulator.set_profile("numa", {"limits.cpu": "2"})
        gate.set()
        await eventually(lambda: r.calls("GET instances") >= 2)
        await eventually(lambda: all(r.seat(key).mems == NodeSet() for key in keys))


async def test_start_during_a_profile_edit_does_not_wait_for_it() -> None:
    async with users({"limits.cpu": "2"}) as (r, keys):
        late = r.simulator.create("late", {"limits.cpu.nodes": "balanced"}, profiles=("default", "numa"))
        r.simulator.set_profile("numa", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"})
        await r.start(late)
        await eventually(lambda: r.calls("GET instance", late) > 0)
        await r.placed(late, *keys)
        assert max(r.calls("PATCH instance", key) for key in (late, *keys)) == 1


async def test_second_edit_during_the_first_pass_is_one_more_pass() -> None:
    async with users({"limits.cpu": "2"}) as (r, keys):
        r.simulator.set_profile("numa", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"})
        await eventually(lambda: r.calls("GET instances") == 1)
        r.simulator.set_profile("numa", {"limits.cpu": "3", "limits.cpu.nodes": "balanced"})
        await eventually(lambda: all(r.has_group(key) and len(r.seat(key).cpus) == 3 for key in keys))
        await r.placed(*keys)
        assert cost(r, keys).listings <= 3
        assert cost(r, keys).most_patches <= 2


@pytest.mark.parametrize("count", [1, FEW, 30])
async def test_edit_that_concerns_a_few_asks_about_each_of_them_once(count: int) -> None:
    async with users({"limits.cpu": "2"}, count) as (r, keys):
        r.simulator.set_profile("numa", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"})
        await r.placed(*keys)
        assert cost(r, keys) == Cost(listings=0, gets=count, patches=count, most_patches=1)
