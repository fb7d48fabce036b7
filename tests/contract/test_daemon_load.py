"""The daemon moves running containers by measured load, their memory follows, and a quiet host is left alone."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.errors import UnreachableError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import MovePages
from incus_numa.settings import DaemonSettings, RebalanceSettings, Settings
from incus_numa.simulator.pages import SimulatedPages
from incus_numa.simulator.trees import scratch_root
from tests import builders
from tests.builders import GIB
from tests.commands import run_beside, write_config
from tests.contract.daemon_rig import Rig, Wish, eventually, keeps_attributes, rig

SWIFT = RebalanceSettings(
    interval_s=0.15, time_constant_s=0.1, hold_s=0.1, cooldown_s=3600.0, bytes_per_second=64 * GIB
)
RARELY = DaemonSettings(resync_s=3600.0, verify_s=(0.2,))


@asynccontextmanager
async def host(limits: RebalanceSettings = SWIFT, daemon: DaemonSettings = RARELY) -> AsyncIterator[Rig]:
    """Four nodes with four CPUs and 16 GiB each."""
    machine = builders.machine(nodes=4, cpus_per_node=4, memory_bytes=16 * GIB)
    async with rig(machine=machine, wish=Wish(settings=Settings(daemon=daemon, rebalance=limits))) as r:
        yield r


async def sharing(r: Rig, **config: str) -> tuple[InstanceKey, InstanceKey, list[InstanceKey]]:
    """Two containers of four vCPUs on one node, and the three others on the other nodes, which may not move."""
    keys = [await r.present(f"c{n}", 4, user_numa_movable=str(n > 3).lower(), **config) for n in range(5)]
    mover = keys[4]
    mate = next(key for key in keys[:4] if r.nodes(key) == r.nodes(mover))
    return mover, mate, [key for key in keys[:4] if key != mate]


def journal(r: Rig) -> list[dict[str, object]]:
    path = r.journal
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def most_loaded(r: Rig) -> tuple[int, float]:
    """The busiest node and its load, as the balancer saw it last."""
    told = r.log.saying("is the most loaded with", level=logging.DEBUG)
    found = re.match(r"node (\d+) is the most loaded with ([0-9.]+),", told[-1]) if told else None
    return (int(found[1]), float(found[2])) if found else (-1, 0.0)


async def test_two_busy_containers_of_one_node_are_spread() -> None:
    async with host() as r:
        mover, mate, _ = await sharing(r)
        before = r.nodes(mover)
        r.simulator.set_work(mover, 4.0)
        r.simulator.set_work(mate, 4.0)
        await eventually(lambda: r.nodes(mover) != before)
        await r.placed(mover, mate)
        assert r.nodes(mate) == before
        await eventually(lambda: len(journal(r)) == 1)
        (line,) = journal(r)
        assert (line["name"], line["from"], line["to"], line["result"]) == (
            mover.name,
            str(before),
            str(r.nodes(mover)),
            "moved",
        )
        assert len(r.log.saying("moved", f"instance={mover}", level=logging.INFO)) == 1


async def test_even_load_moves_nobody_and_nothing_is_written_or_said() -> None:
    async with host() as r:
        mover, mate, others = await sharing(r)
        keys = (mover, mate, *others)
        for key in others:
            r.simulator.set_work(key, 2.0)
        for key in (mover, mate):
            r.simulator.set_work(key, 1.0)
        await r.simulator.balanced()
        await asyncio.sleep(0.5)
        before, said = r.touched(*keys), len(r.log.lines(logging.INFO))
        await asyncio.sleep(1.5)
        assert r.touched(*keys) == before
        assert r.log.lines(logging.INFO)[said:] == []
        assert journal(r) == []


async def test_nobody_moves_where_the_settings_say_so() -> None:
    async with host(replace(SWIFT, enabled=False)) as r:
        mover, mate, _ = await sharing(r)
        before = r.touched(mover, mate)
        r.simulator.set_work(mover, 4.0)
        r.simulator.set_work(mate, 4.0)
        await asyncio.sleep(1.0)
        assert r.touched(mover, mate) == before


async def test_load_that_is_no_longer_measured_does_not_count_where_others_start() -> None:
    async with host() as r:
        busy = await r.present("busy", user_numa_movable="false")
        others = [await r.present(f"c{n}", 3, user_numa_movable="false") for n in range(3)]
        home = r.nodes(busy)
        assert home not in [r.nodes(key) for key in others]
        r.simulator.set_work(busy, 4.0)
        # Busier than any of the others asks to be.
        await eventually(lambda: most_loaded(r)[0] == home.lowest() and most_loaded(r)[1] > 0.8)
        assert r.nodes(await r.present("beside", 1)) != home
        r.load_settings = lambda: replace(r.settings, rebalance=replace(SWIFT, enabled=False))
        r.daemon.service.reload()
        await eventually(lambda: r.log.saying("load is measured no more", level=logging.DEBUG))
        assert r.nodes(await r.present("later", 1)) == home


async def test_a_move_during_which_the_server_went_away_is_noted_and_finished() -> None:
    async with host() as r:
        mover, mate, _ = await sharing(r, limits_memory="4GiB")
        before = r.nodes(mover)

        async def away(key: InstanceKey) -> None:
            if not r.log.saying("does not answer"):
                raise UnreachableError("gone for a moment")

        r.daemon.server.before_patch = away
        r.simulator.set_work(mover, 4.0)
        r.simulator.set_work(mate, 4.0)
        await eventually(lambda: len(journal(r)) == 1)
        assert (journal(r)[0]["name"], journal(r)[0]["result"]) == (mover.name, "cancelled")
        r.daemon.service.reload()
        await eventually(lambda: r.nodes(mover) != before)
        await r.placed(mover)


@pytest.mark.parametrize(("ends", "result"), [(True, "gone"), (False, "cancelled")])
async def test_a_move_whose_instance_left_before_its_memory_followed_is_not_noted_as_made(
    ends: bool, result: str
) -> None:
    async with host(replace(SWIFT, bytes_per_second=256 << 20)) as r:
        fixed = [await r.present(f"a{n}", 4, user_numa_movable="false", limits_memory="3GiB") for n in range(4)]
        movers = [await r.present(f"b{n}", 4, limits_memory="3GiB") for n in range(4)]
        before = {key: r.nodes(key) for key in movers}
        loaded = before[movers[0]] | before[movers[1]]
        for key in (*fixed, *movers):
            r.simulator.set_work(key, 4.0 if r.nodes(key) <= loaded else 0.0)

        def is_still_there(key: InstanceKey) -> bool:
            pages = r.simulator.kernel.groups[key].pages
            return pages[before[key].lowest()] == sum(pages.values())

        await eventually(lambda: not all(is_still_there(key) for key in movers))
        (last,) = [key for key in movers if r.nodes(key) != before[key] and is_still_there(key)]
        if ends:
            await r.simulator.stop(last)
        else:
            r.simulator.set_config(last, {"limits.cpu.nodes": ""})
        await eventually(lambda: len(journal(r)) == 2)
        (line,) = [one for one in journal(r) if one["name"] == last.name]
        assert (line["result"], line["moved_bytes"]) == (result, 0)


async def test_memory_follows_in_slices_again_to_a_place_where_it_was_before() -> None:
    async with host() as r:
        mover, mate, _ = await sharing(r, limits_memory="4GiB")
        before = r.nodes(mover)
        for key in (mover, mate):
            r.simulator.set_work(key, 4.0)
        await eventually(lambda: r.nodes(mover) != before)
        await r.placed(mover)
        there, group = r.nodes(mover), r.simulator.kernel.groups[mover]
        r.simulator.set_config(mover, {"limits.cpu.nodes": ""})
        await eventually(lambda: r.seat(mover).mems == NodeSet())
        # The fake kernel lets memory go elsewhere when it has taken over what was written.
        r.simulator.settle()
        back = MovePages(key=mover, sources=there, targets=before, size_bytes=sum(group.pages.values()))
        assert sum(SimulatedPages(r.simulator.kernel).move(group.path, back)) == back.size_bytes
        r.simulator.set_config(mover, {"limits.cpu.nodes": "balanced"})
        await r.placed(mover)
        assert r.nodes(mover) == there
        told = r.log.saying("memory=", f"instance={mover}", f"to={there} done", level=logging.INFO)
        assert len(told) == 2


async def test_memory_follows_in_slices_and_is_bound_when_it_is_there() -> None:
    async with host() as r:
        mover, mate, _ = await sharing(r, limits_memory="4GiB")
        before = r.nodes(mover)
        r.simulator.set_work(mover, 4.0)
        r.simulator.set_work(mate, 4.0)
        await eventually(lambda: r.nodes(mover) != before)
        await r.placed(mover)
        group = r.simulator.kernel.groups[mover]
        assert {node for node, size in group.pages.items() if size} == set(r.nodes(mover))
        await eventually(lambda: len(journal(r)) == 1)
        assert journal(r)[0]["moved_bytes"] == sum(group.pages.values())
        sets = [value for key, what, value in r.writes(mover) if what == "cpuset.mems"]
        union = before | r.nodes(mover)
        assert sets[-2:] == [str(union), str(r.nodes(mover))]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
async def test_a_daemon_that_ends_while_memory_follows_is_healed_by_the_next(part: float) -> None:
    slow = replace(SWIFT, bytes_per_second=256 << 20)
    async with host(slow) as r:
        mover, mate, _ = await sharing(r, limits_memory="4GiB")
        before = r.nodes(mover)
        r.simulator.set_work(mover, 4.0)
        r.simulator.set_work(mate, 4.0)
        await eventually(lambda: r.nodes(mover) != before)
        group = r.simulator.kernel.groups[mover]
        total = sum(group.pages.values())
        await eventually(lambda: total - group.pages[before.lowest()] >= part * total)
        await r.stop_daemon()
        assert r.seat(mover).mems == before | r.nodes(mover)
        assert sum(group.pages.values()) == total
        r.settings = replace(r.settings, rebalance=SWIFT)
        r.start_daemon()
        await r.placed(mover)
        assert {node for node, size in group.pages.items() if size} == set(r.nodes(mover))
        assert sum(group.pages.values()) == total


async def test_one_that_was_moved_stays_for_its_cool_down_across_a_restart() -> None:
    async with host() as r:
        mover, mate, _ = await sharing(r)
        before = r.nodes(mover)
        for key in (mover, mate):
            r.simulator.set_work(key, 4.0)
        await eventually(lambda: len(journal(r)) == 1)
        await r.placed(mover)
        there = r.nodes(mover)
        await r.stop_daemon()
        # Now its new node is too loaded, and the old one would be better.
        r.simulator.set_work(mate, 0.0)
        neighbour = next(key for key in r.simulator.kernel.groups if key != mover and r.nodes(key) == there)
        r.simulator.set_work(neighbour, 4.0)
        r.start_daemon()
        await asyncio.sleep(1.5)
        assert r.nodes(mover) == there != before
        r.load_settings = lambda: replace(r.settings, rebalance=replace(SWIFT, cooldown_s=0.1))
        r.daemon.service.reload()
        await eventually(lambda: r.nodes(mover) != there)


async def test_an_instance_that_is_managed_no_more_has_its_memory_unbound() -> None:
    async with host() as r:
        key = await r.present("c", 2)
        assert r.seat(key).mems == r.nodes(key)
        r.simulator.set_config(key, {"limits.cpu.nodes": ""})
        await eventually(lambda: r.seat(key).mems == NodeSet())
        await r.simulator.balanced()
        assert len(r.seat(key).cpus) == 2


async def test_what_a_command_has_moved_stays_there_while_the_daemon_runs() -> None:
    if not keeps_attributes(scratch_root() or Path("/tmp")):
        pytest.skip("what is decided cannot be kept on a cgroup here: needs root")
    async with host(replace(SWIFT, enabled=False)) as r:
        mover, mate, others = await sharing(r)
        before = {key: r.nodes(key) for key in (mover, mate, *others)}
        for key in (mover, mate):
            r.simulator.set_work(key, 4.0)
        config = write_config(r.simulator, replace(SWIFT, window_s=0.5))
        result = await run_beside("rebalance", "--config", config)
        assert (result.code, r.nodes(mover) != before[mover]) == (0, True)
        there = r.nodes(mover)
        await r.placed(mover, mate, *others)
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        await r.placed(mover, mate, *others)
        assert {key: r.nodes(key) for key in before} == before | {mover: there}
