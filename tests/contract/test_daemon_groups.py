"""What ties instances to nodes, end to end: groups, those they avoid, huge pages, memory that is kept for the host."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import CoreKind, Machine
from incus_numa.settings import MemorySettings, Reservation, Settings
from tests import builders
from tests.builders import GIB
from tests.contract.daemon_rig import BUSY, EVENTS_ONLY, QUICK, Rig, Wish, eventually, rig

MIB = 1 << 20


def reserved(*amounts: int) -> Wish:
    """Memory that is kept of each node, in GiB."""
    kept = tuple(Reservation(node, amount * GIB) for node, amount in enumerate(amounts))
    memory = MemorySettings(policy="static", reserved_total=sum(amounts) * GIB, reserved=kept)
    return Wish(settings=Settings(daemon=EVENTS_ONLY, memory=memory))


def with_pages(machine: Machine, *amounts: int) -> Machine:
    """So many MiB of each node in huge pages of 2 MiB."""
    nodes = [
        replace(node, hugepages={2 * MIB: amount * MIB} if amount else {})
        for node, amount in zip(machine.nodes, amounts, strict=True)
    ]
    return replace(machine, nodes=tuple(nodes))


async def node_of(r: Rig, key: InstanceKey) -> int:
    """The only node of an instance that was placed."""
    await r.placed(key)
    (node,) = r.nodes(key)
    return node


@pytest.mark.parametrize("seed", range(3))
async def test_members_of_a_group_started_at_once_are_on_one_node(seed: int) -> None:
    async with rig(replace(QUICK, seed=seed)) as r:
        keys = [r.managed(f"c{n}", 1, user_numa_group="web") for n in range(3)]
        await r.start(*keys)
        await r.placed(*keys)
        assert len({r.nodes(key) for key in keys}) == 1


@pytest.mark.parametrize("full", range(4))
async def test_members_that_find_their_node_full_go_to_the_nearest(full: int) -> None:
    async with rig() as r:
        for node in range(4):
            if node != full:
                await r.start(r.simulator.create(f"load{node}", {"limits.cpu": "1", "limits.cpu.nodes": str(node)}))
        memory = {"user_numa_group": "db", "limits_memory": "20GiB"}
        first, second = await r.present("c1", 2, **memory), await r.present("c2", 2, **memory)
        assert (await node_of(r, first), await node_of(r, second)) == (full, full ^ 1)


async def test_group_set_on_running_instances_moves_none_of_them() -> None:
    async with rig() as r:
        keys = [await r.present(f"c{n}", 2) for n in range(2)]
        seats = [r.seat(key) for key in keys]
        for key in keys:
            r.simulator.set_config(key, {"user.numa.group": "late"})
        await r.events_taken()
        await eventually(lambda: [r.seat(key) for key in keys] == seats)


async def test_group_set_on_a_running_instance_draws_those_that_start_later() -> None:
    async with rig() as r:
        first = await r.present("c1", 2)
        await r.present("c2", 4)
        r.simulator.set_config(first, {"user.numa.group": "late"})
        await r.events_taken()
        assert r.nodes(await r.present("c3", 2, user_numa_group="late")) == r.nodes(first)


@pytest.mark.parametrize("both", [True, False])
async def test_those_who_avoid_each_other_are_apart(both: bool) -> None:
    async with rig(machine=builders.machine(nodes=2)) as r:
        first = await r.present("c1", 1, user_numa_group="a", **({"user_numa_avoid": "b"} if both else {}))
        free = await r.present("load", 4)
        assert r.nodes(first) != r.nodes(free)
        # Its own node is crowded, which is better than to be with the one that it avoids.
        await r.present("more", 2, user_numa_group="load2")
        second = await r.present("c2", 1, user_numa_group="b", user_numa_avoid="a")
        assert r.nodes(second) != r.nodes(first)


async def test_huge_pages_are_found_on_the_node_that_has_them_free() -> None:
    machine = with_pages(builders.machine(), 0, 1024, 0, 1024)
    async with rig(machine=machine) as r:
        keys = [await r.present(f"c{n}", 1, limits_hugepages_2MB="768MiB") for n in range(2)]
        assert sorted([await node_of(r, key) for key in keys]) == [1, 3]
        third = r.managed("c2", 1, limits_hugepages_2MB="4GiB")
        await r.start(third)
        await eventually(lambda: r.log.saying("instance=c2", "reason=no-hugepages"))
        small = await r.present("c3", 1, limits_hugepages_2MB="256MiB")
        assert await node_of(r, small) in (1, 3)


async def test_memory_kept_for_the_host_is_not_given_away() -> None:
    async with rig(wish=reserved(20, 20, 0, 20)) as r:
        keys = [await r.present(f"c{n}", 1, limits_memory="13GiB") for n in range(2)]
        assert [await node_of(r, key) for key in keys] == [2, 2]
        wide = r.managed("c2", 1, limits_memory="42GiB", user_numa_policy="single-numa-node")
        await r.start(wide)
        await eventually(lambda: r.log.saying("instance=c2", "refused"))


async def test_reload_with_reservations_that_are_wrong_keeps_the_old_ones_in_force() -> None:
    async with rig(wish=reserved(20, 20, 0, 20)) as r:
        bad = (Reservation(0, 64 * GIB),)
        wrong = replace(r.settings.memory, reserved_total=64 * GIB, reserved=bad)
        r.load_settings = lambda: replace(r.settings, memory=wrong)
        r.daemon.service.reload()
        assert r.log.saying("not reloaded", "memory.reserved.0")
        assert await node_of(r, await r.present("c1", 1, limits_memory="13GiB")) == 2


async def test_reload_with_other_reservations_uses_them_for_what_starts_next() -> None:
    async with rig(wish=reserved(20, 20, 0, 20)) as r:
        r.load_settings = lambda: replace(r.settings, memory=reserved(20, 0, 20, 20).settings.memory)
        r.daemon.service.reload()
        await eventually(lambda: r.log.saying("settings reloaded", level=logging.INFO))
        assert await node_of(r, await r.present("c1", 1, limits_memory="13GiB")) == 1


async def test_kind_of_cores_is_chosen_and_followed_live() -> None:
    machine = builders.machine(nodes=2)
    kinds = {True: CoreKind.PERFORMANCE, False: CoreKind.EFFICIENCY}
    hybrid = replace(machine, cpus=tuple(replace(cpu, kind=kinds[cpu.id % 4 < 2]) for cpu in machine.cpus))
    async with rig(machine=hybrid, wish=Wish(settings=Settings(daemon=BUSY))) as r:
        key = await r.present("c1", 2, user_numa_cores="efficiency")
        first = 4 * await node_of(r, key)
        await eventually(lambda: r.seat(key).cpus == CpuSet([first + 2, first + 3]))
        r.simulator.set_config(key, {"user.numa.cores": "performance"})
        await eventually(lambda: r.seat(key).cpus == CpuSet([first, first + 1]))
        assert r.nodes(key) == NodeSet([first // 4])
