"""What the daemon does when instances start: each gets its nodes, in whatever order and company."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.settings import Settings
from tests import builders
from tests.contract.daemon_rig import BUSY, QUICK, Wish, eventually, rig


@pytest.mark.parametrize(("vcpus", "width"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (16, 4)])
async def test_started_instance_gets_the_fewest_nodes_that_hold_it(vcpus: int, width: int) -> None:
    async with rig() as r:
        key = r.managed("c1", vcpus)
        await r.start(key)
        await r.placed(key)
        assert len(r.nodes(key)) == width


async def test_instance_without_a_limit_gets_all_cpus_of_one_node() -> None:
    async with rig() as r:
        key = await r.present("c1")
        (node,) = r.nodes(key)
        assert r.seat(key).cpus == r.simulator.machine.node_by_id[node].cpus


async def test_memory_is_bound_to_a_single_node() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        assert r.seat(key).mems == r.nodes(key)


async def test_memory_is_not_bound_to_several_nodes() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        key = await r.present("c1", 8)
        await r.passes(2)
        assert r.seat(key).mems == NodeSet()
        assert [what for _, what, _ in r.writes(key) if what == "cpuset.mems"] == []


async def test_memory_is_bound_to_several_nodes_when_the_instance_asks() -> None:
    async with rig() as r:
        key = r.managed("c1", 8, user_numa_memory="bind")
        await r.start(key)
        await eventually(lambda: r.seat(key).mems == r.seat(key).record == r.nodes(key))


async def test_cpus_of_a_wide_instance_are_spread_evenly_over_its_nodes() -> None:
    async with rig() as r:
        key = await r.present("c1", 6)
        machine = r.simulator.machine
        assert [len(r.seat(key).cpus & machine.node_by_id[node].cpus) for node in r.nodes(key)] == [3, 3]


@pytest.mark.parametrize("seed", range(4))
async def test_near_nodes_are_taken_on_an_idle_machine(seed: int) -> None:
    async with rig(replace(QUICK, seed=seed)) as r:
        key = r.managed("c1", 8)
        await r.start(key)
        await eventually(lambda: r.is_placed(key) and r.nodes(key) in (NodeSet([0, 1]), NodeSet([2, 3])))


async def test_instances_started_at_once_are_all_placed_and_spread() -> None:
    async with rig() as r:
        keys = [r.managed(f"c{number}", 2) for number in range(8)]
        await r.start(*keys)
        await r.placed(*keys)
        assert sorted(r.nodes(key).lowest() for key in keys) == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_many_starts_at_once_lose_none() -> None:
    async with rig(replace(QUICK, balance_delay_s=(0.0, 0.1), lock_release_s=(0.0, 0.05))) as r:
        keys = [r.managed(f"c{number}", 1 + number % 8) for number in range(40)]
        await r.start(*keys)
        await r.placed(*keys)


async def test_start_seen_while_the_lock_is_held_is_placed_when_it_is_released() -> None:
    async with rig(replace(QUICK, lock_release_s=(0.3, 0.4))) as r:
        key = r.managed("c1", 8)
        starting = asyncio.create_task(r.simulator.start(key))
        await eventually(lambda: r.calls("GET instance", key) > 1)
        assert r.simulator.incus.get(key).lock == "start"
        await starting
        await r.placed(key)


async def test_busy_patch_is_tried_again() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)

        async def hold(_: object) -> None:
            r.simulator.incus.get(key).lock = "update"
            asyncio.get_running_loop().call_later(0.05, release)

        def release() -> None:
            r.simulator.incus.get(key).lock = None

        r.daemon.server.before_patch = hold
        r.simulator.set_config(key, {"limits.cpu": "8"})
        await eventually(lambda: r.simulator.incus.get(key).lock is not None)
        r.daemon.server.before_patch = r.daemon.server.after_patch
        await r.placed(key)
        assert r.calls("PATCH instance", key) >= 2


async def test_stale_etag_is_read_again() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        before = r.calls("PATCH instance", key)

        async def write_first(_: object) -> None:
            r.daemon.server.before_patch = r.daemon.server.after_patch
            r.simulator.set_config(key, {"user.note": "changed between GET and PATCH"})

        r.daemon.server.before_patch = write_first
        r.simulator.set_config(key, {"limits.cpu": "8"})
        await r.placed(key)
        assert r.calls("PATCH instance", key) == before + 2
        assert r.simulator.incus.get(key).config["user.note"] == "changed between GET and PATCH"


async def test_stale_etag_is_read_again_within_a_look_at_everything() -> None:
    async with rig(run=False) as r:
        key = r.managed("c1", 2)
        await r.start(key)
        r.simulator.set_config(key, {"volatile.cpu.nodes": "0-3"})
        server = r.start_daemon().server

        async def write_first(_: object) -> None:
            server.before_patch = server.after_patch
            r.simulator.set_config(key, {"user.note": "changed between GET and PATCH"})

        server.before_patch = write_first
        await r.placed(key)
        assert r.calls("PATCH instance", key) == 2


async def test_late_write_of_the_server_does_not_keep_an_instance_from_its_nodes() -> None:
    async with rig(replace(QUICK, late_volatile_s=(0.0, 0.05), per_request_delay_s=0.01)) as r:
        keys = [r.managed(f"c{number}", 1 + number % 8) for number in range(8)]
        await r.start(*keys)
        await r.placed(*keys)


async def test_restarted_instance_is_placed_anew() -> None:
    async with rig() as r:
        key = await r.present("c1", 3)
        before = len(r.writes(key))
        await r.simulator.restart(key)
        await r.placed(key)
        assert ("cpuset.mems", str(r.nodes(key))) in [(what, value) for _, what, value in r.writes(key)[before:]]


async def test_start_moves_no_other_instance() -> None:
    async with rig() as r:
        first = [await r.present(f"old{number}", 1 + number) for number in range(4)]
        seats = [r.seat(key) for key in first]
        await r.present("new", 4)
        await r.placed(*first)
        assert [r.seat(key).record for key in first] == [seat.record for seat in seats]


@pytest.mark.parametrize("name", ["incus1605", "knl-snc4-cpuless", "opteron-sparse-ids", "snc2-isolated-interleaved"])
async def test_start_on_an_odd_machine_is_placed_and_bound(name: str) -> None:
    async with rig(machine=builders.load_machine(name)) as r:
        key = r.managed("c1", 2)
        await r.start(key)
        await eventually(lambda: r.seat(key).mems and r.seat(key).mems == r.seat(key).record == r.nodes(key))
