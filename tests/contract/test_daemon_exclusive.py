"""Exclusive CPUs: their owner has them for itself as soon as it is placed, and for as long as it asks for that."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import PlacementSettings, Settings
from incus_numa.simulator.groups import group_name
from tests import builders
from tests.contract.daemon_rig import BUSY, EVENTS_ONLY, INOTIFY_ONLY, QUICK, Rig, Wish, eventually, rig

EXCLUSIVE = {"user_numa_exclusive": "true"}
TWO = builders.machine(nodes=2)
ONE_NODE = Wish(settings=Settings(daemon=EVENTS_ONLY, placement=PlacementSettings(reserved_cpus="4-7")))
"""Of two nodes with four CPUs each only the first is used."""
NO_LOOKS = replace(ONE_NODE.settings, daemon=INOTIFY_ONLY)
CALM_SERVER = replace(QUICK, balances=False)
SLOW_SERVER = replace(QUICK, balance_delay_s=(0.05, 0.2))


def others_on(r: Rig, owner: InstanceKey) -> CpuSet:
    """Those of the owner's CPUs that any other container may run on."""
    own, taken = r.seat(owner).cpus, CpuSet()
    for key, record in r.simulator.incus.records.items():
        if key != owner and record.running and r.has_group(key):
            taken |= r.seat(key).cpus & own
    return taken


async def alone(r: Rig, owner: InstanceKey, vcpus: int) -> None:
    """Return when the owner is placed, has so many CPUs and nobody else has them, also after the server's next rewrite.

    Before it is placed, CPUs that the server chose may happen to be nobody else's.
    """
    for _ in range(2):
        await r.simulator.balanced()
        await eventually(lambda: r.is_placed(owner) and len(r.seat(owner).cpus) == vcpus and not others_on(r, owner))


async def test_others_leave_the_cpus_of_a_start() -> None:
    async with rig(SLOW_SERVER, TWO) as r:
        shared = [await r.present(f"c{n}", 2) for n in range(6)]
        nodes = [r.nodes(key) for key in shared]
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await alone(r, owner, 2)
        await r.placed(owner, *shared)
        assert [r.nodes(key) for key in shared] == nodes


async def test_starts_beside_and_after_it_stay_off_its_cpus() -> None:
    async with rig(SLOW_SERVER, TWO) as r:
        owner = r.managed("own", 3, **EXCLUSIVE)
        shared = [r.managed(f"c{n}", 1 + n % 2) for n in range(8)]
        await r.start(owner, *shared)
        await alone(r, owner, 3)
        late = await r.present("late", 2)
        await alone(r, owner, 3)
        await r.placed(owner, *shared, late)


async def test_many_exclusive_starts_at_once_have_disjoint_cpus() -> None:
    async with rig(SLOW_SERVER) as r:
        shared = [await r.present(f"c{n}", 2) for n in range(8)]
        owners = [r.managed(f"own{n}", 2, **EXCLUSIVE) for n in range(4)]
        await r.start(*owners)
        for owner in owners:
            await alone(r, owner, 2)
        await r.placed(*owners, *shared)


async def test_one_that_another_pass_works_on_leaves_when_that_is_done() -> None:
    async with rig(CALM_SERVER, TWO, wish=replace(ONE_NODE, settings=NO_LOOKS)) as r:
        shared = [await r.present(f"c{n}", 2) for n in range(2)]
        owner, held = r.managed("own", 2, **EXCLUSIVE), asyncio.Event()

        async def hold(key: InstanceKey) -> None:
            if key in shared:
                await held.wait()

        r.daemon.server.before_patch = hold
        before = r.calls("GET instance", shared[0]), r.calls("GET instance", shared[1])
        for key in shared:
            r.simulator.set_config(key, {"volatile.cpu.nodes": "1"})
        await eventually(lambda: all(r.calls("GET instance", key) > n for key, n in zip(shared, before, strict=True)))
        await r.start(owner)
        await eventually(lambda: len(r.seat(owner).cpus) == 2)
        held.set()
        await alone(r, owner, 2)


async def test_decision_that_was_overtaken_while_the_server_was_asked_is_not_applied() -> None:
    async with rig(CALM_SERVER, TWO, wish=replace(ONE_NODE, settings=NO_LOOKS), run=False) as r:
        key, owner, held = r.managed("c1", 2), r.managed("own", 2, **EXCLUSIVE), asyncio.Event()
        await r.start(key)
        r.simulator.set_config(key, {"volatile.cpu.nodes": "1"})
        r.path(key, "cpuset.cpus").write_text("0,2\n")
        r.simulator.settle()

        async def hold(asked: InstanceKey) -> None:
            if asked == key:
                await held.wait()

        r.start_daemon().server.after_get = hold
        await r.listening()
        await eventually(lambda: r.calls("GET instance", key) > 0)
        await r.start(owner)
        await eventually(lambda: len(r.seat(owner).cpus) == 2)
        r.path(key, "cpuset.cpus").write_text("1,3\n")
        before = r.writes(key)
        held.set()
        await r.placed(key)
        await alone(r, owner, 2)
        written = {value for _, what, value in r.writes(key)[len(before) :] if what == "cpuset.cpus"}
        assert written == {str(r.seat(key).cpus)}


async def test_cpus_that_do_not_exist_are_refused_once_and_nobody_moves() -> None:
    async with rig(machine=TWO, wish=Wish(settings=Settings(daemon=BUSY))) as r:
        shared = [await r.present(f"c{n}", 3) for n in range(2)]
        before = [r.seat(key) for key in shared]
        owner = r.managed("own", 7, **EXCLUSIVE)
        await r.start(owner)
        await eventually(lambda: r.log.saying("instance=own", "reason=no-exclusive-cpus"))
        await r.placed(*shared)
        await r.passes(3)
        assert len(r.log.saying("instance=own")) == 1
        assert [r.seat(key) for key in shared] == before


async def test_refusal_on_a_running_instance_leaves_it_and_its_cpus_to_all() -> None:
    async with rig(machine=TWO, wish=ONE_NODE) as r:
        key, other = await r.present("c1", 3), await r.present("c2", 2)
        before = r.writes(key, other)
        r.simulator.set_config(key, {"user.numa.exclusive": "true"})
        await eventually(lambda: r.log.saying("instance=c1", "reason=no-exclusive-cpus"))
        await r.events_taken()
        assert r.writes(key, other) == before
        late = await r.present("late", 4)
        assert len(r.seat(late).cpus) == 4


async def test_set_and_unset_on_a_running_instance() -> None:
    async with rig(machine=TWO, wish=ONE_NODE) as r:
        keys = [await r.present(f"c{n}", 2) for n in range(3)]
        seat = r.seat(keys[0])
        r.simulator.set_config(keys[0], {"user.numa.exclusive": "true"})
        await alone(r, keys[0], 2)
        await eventually(lambda: r.seat(keys[0]) == seat)
        r.simulator.set_config(keys[0], {"user.numa.exclusive": ""})
        await r.events_taken()
        wide = await r.present("wide", 4)
        await eventually(lambda: r.seat(wide).cpus == CpuSet(range(4)) and r.seat(keys[0]) == seat)


async def test_instance_without_a_limit_gets_the_rest_of_its_node_and_all_of_it_when_the_owner_stops() -> None:
    async with rig(CALM_SERVER, TWO, wish=ONE_NODE) as r:
        loose = await r.present("loose")
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await alone(r, owner, 2)
        assert r.seat(loose).cpus == CpuSet(range(4)) - r.seat(owner).cpus
        await r.simulator.stop(owner)
        await eventually(lambda: r.seat(loose).cpus == CpuSet(range(4)))


async def test_refused_owner_is_placed_when_another_stops() -> None:
    async with rig(machine=TWO, wish=ONE_NODE) as r:
        first, second = r.managed("own1", 3, **EXCLUSIVE), r.managed("own2", 2, **EXCLUSIVE)
        await r.start(first)
        await alone(r, first, 3)
        await r.start(second)
        await eventually(lambda: r.log.saying("instance=own2", "reason=no-exclusive-cpus"))
        await r.simulator.stop(first)
        # Memory is bound to the node of an instance that was placed, and only of that.
        await r.placed(second)
        late = r.managed("late")
        await r.start(late)
        await eventually(lambda: r.seat(late).cpus == CpuSet(range(4)) - r.seat(second).cpus)
        await r.placed(second)


async def test_its_limit_changed_live_makes_more_room() -> None:
    async with rig(machine=TWO) as r:
        shared = [await r.present(f"c{n}", 1) for n in range(6)]
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await alone(r, owner, 2)
        r.simulator.set_config(owner, {"limits.cpu": "3"})
        await alone(r, owner, 3)
        await r.placed(owner, *shared)


async def test_owner_leaves_those_who_pin_its_cpus() -> None:
    async with rig(machine=TWO) as r:
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await alone(r, owner, 2)
        taken = r.seat(owner).cpus
        pinned = r.simulator.create("pinned", {"limits.cpu": ",".join(f"{cpu}-{cpu}" for cpu in taken)})
        await r.start(pinned)
        await alone(r, owner, 2)
        assert not r.seat(owner).cpus & taken


@pytest.mark.parametrize("name", ["own", "c0"])
async def test_a_foreign_rewrite_is_undone_to_the_same_cpus(name: str) -> None:
    async with rig(machine=TWO, wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        keys = {f"c{n}": await r.present(f"c{n}", 2) for n in range(4)}
        keys["own"] = owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await alone(r, owner, 2)
        await r.placed(*keys.values())
        await r.at_rest(*keys.values())
        seats = {key: r.seat(key) for key in keys.values()}
        r.simulator.kernel.set_cpus(keys[name], CpuSet(range(8)))
        await eventually(lambda: {key: r.seat(key) for key in keys.values()} == seats)


async def test_the_servers_rewrites_are_undone_to_the_same_cpus() -> None:
    async with rig(SLOW_SERVER, TWO) as r:
        keys = [await r.present(f"c{n}", 2) for n in range(4)]
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await alone(r, owner, 2)
        await r.placed(owner, *keys)
        await r.at_rest(owner, *keys)
        seats = [r.seat(key) for key in (owner, *keys)]
        for _ in range(3):
            r.simulator.trigger_balance()
            await r.simulator.balanced()
            await eventually(lambda: [r.seat(key) for key in (owner, *keys)] == seats)


async def test_successor_of_the_daemon_keeps_it() -> None:
    async with rig(machine=TWO) as r:
        keys = [await r.present(f"c{n}", 2) for n in range(4)]
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await alone(r, owner, 2)
        await r.placed(owner, *keys)
        await r.at_rest(owner, *keys)
        seats = {key: r.seat(key) for key in (owner, *keys)}
        await r.stop_daemon()
        writes = r.writes(owner, *keys)
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        r.start_daemon()
        await r.listening()
        await eventually(lambda: {key: r.seat(key) for key in seats} == seats)
        late = await r.present("late", 2)
        await alone(r, owner, 2)
        assert r.writes(late)
        assert [one for one in r.writes(owner, *keys) if one[1] == "cpuset.mems"] == [
            one for one in writes if one[1] == "cpuset.mems"
        ]


async def test_profile_edit_makes_several_exclusive() -> None:
    async with rig(replace(QUICK, profiles={"own": {}}), TWO) as r:
        config = {"limits.cpu": "2", "limits.cpu.nodes": "balanced"}
        owners = [r.simulator.create(f"own{n}", config, profiles=("default", "own")) for n in range(2)]
        shared = [r.managed(f"c{n}", 2) for n in range(4)]
        await r.start(*owners, *shared)
        await r.placed(*owners, *shared)
        r.simulator.set_profile("own", {"user.numa.exclusive": "true"})
        for owner in owners:
            await alone(r, owner, 2)
        await r.placed(*owners, *shared)


async def test_unmanaged_instances_that_may_run_on_its_cpus_are_told_once() -> None:
    async with rig(machine=TWO, wish=Wish(settings=Settings(daemon=BUSY))) as r:
        for name, more in {"y": {}, "z": {}, "far": {"limits.cpu": "7"}, "pin": {"limits.cpu": "7-7"}}.items():
            await r.start(r.simulator.create(name, {"limits.cpu": "1", **more}))
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await eventually(lambda: r.log.saying("instance=own", "exclusive"))
        await r.passes(3)
        assert r.log.saying("instance=own") == [
            f"instance=own CPUs {r.seat(owner).cpus} of own are exclusive, but unmanaged instances far, y, z may run "
            "on them"
        ]


async def test_memory_and_record_of_the_owner_follow_the_rules() -> None:
    async with rig() as r:
        owner = r.managed("own", 2, **EXCLUSIVE)
        await r.start(owner)
        await r.placed(owner)
        assert r.seat(owner).mems == r.seat(owner).record == r.nodes(owner)
        assert (r.simulator.cgroup / group_name(owner)).exists()
        assert r.nodes(owner) != NodeSet()
