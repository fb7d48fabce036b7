"""What people change while instances run: keys, profiles, projects. Whoever did not ask is never touched."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.settings import Settings
from tests.contract.daemon_rig import BUSY, QUICK, Rig, Wish, eventually, rig

RESTRICTED = {"closed": {"restricted": "true"}}


async def _plain(r: Rig, name: str, **config: str) -> InstanceKey:
    """A running container that asks for nothing."""
    key = r.simulator.create(name, {key.replace("_", "."): value for key, value in config.items()})
    await r.start(key)
    return key


async def test_balanced_set_on_a_running_container_places_it() -> None:
    async with rig() as r:
        key = await _plain(r, "c1", limits_cpu="2")
        await r.events_taken()
        assert r.writes(key) == []
        r.simulator.set_config(key, {"limits.cpu.nodes": "balanced"})
        await r.placed(key)


async def test_opt_in_key_of_ours_places_a_running_container() -> None:
    async with rig() as r:
        key = await _plain(r, "c1", limits_cpu="2")
        r.simulator.set_config(key, {"user.limits.cpu.nodes": "balanced"})
        await eventually(lambda: r.seat(key).mems == r.seat(key).record == r.nodes(key))


async def test_balanced_unset_on_a_running_container_lets_go_of_it() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        r.simulator.set_config(key, {"limits.cpu.nodes": ""})
        # Memory that stayed bound while the server spreads the CPUs would be far from them.
        await eventually(lambda: r.seat(key).mems == NodeSet())
        await r.events_taken()
        before = r.writes(key)
        r.simulator.kernel.set_cpus(key, CpuSet([0, 15]))
        r.path(key, "cpuset.mems").write_text("3\n")
        await r.present("c2", 2)
        await r.events_taken()
        assert r.writes(key) == [*before, (key, "cpuset.mems", "3")]


async def test_profile_edit_makes_many_managed() -> None:
    async with rig(replace(QUICK, profiles={"numa": {}})) as r:
        keys = [
            r.simulator.create(f"c{number}", {"limits.cpu": "2"}, profiles=("default", "numa")) for number in range(12)
        ]
        await r.start(*keys)
        r.simulator.set_profile("numa", {"limits.cpu.nodes": "balanced"})
        await r.placed(*keys)
        assert sorted(r.nodes(key).lowest() for key in keys) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_profile_edit_of_more_than_one_look_at_everything_is_worth() -> None:
    async with rig(replace(QUICK, profiles={"numa": {}})) as r:
        keys = [
            r.simulator.create(f"c{number}", {"limits.cpu": "1"}, profiles=("default", "numa")) for number in range(80)
        ]
        await r.start(*keys)
        await r.events_taken()
        r.simulator.set_profile("numa", {"limits.cpu.nodes": "balanced"})
        await r.placed(*keys)


@pytest.mark.parametrize(("before", "after", "width"), [(2, 8, 2), (8, 2, 1), (2, 3, 1), (6, 5, 2), (1, 16, 4)])
async def test_limit_changed_live_changes_the_placement(before: int, after: int, width: int) -> None:
    async with rig() as r:
        key = await r.present("c1", before)
        r.simulator.set_config(key, {"limits.cpu": str(after)})
        await r.placed(key)
        assert len(r.nodes(key)) == width


async def test_limit_that_still_fits_keeps_the_nodes() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        nodes = r.nodes(key)
        r.simulator.set_config(key, {"limits.cpu": "4"})
        await r.placed(key)
        assert r.nodes(key) == nodes


async def test_unmanaged_instances_are_never_touched() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        plain = await _plain(r, "plain", limits_cpu="2")
        fixed = await _plain(r, "fixed", limits_cpu="2", limits_cpu_nodes="1")
        before = {key: dict(r.simulator.incus.get(key).config) for key in (plain, fixed)}
        await r.present("c1", 2)
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        await r.passes(3)
        assert r.writes(plain, fixed) == []
        assert {key: dict(r.simulator.incus.get(key).config) for key in (plain, fixed)} == before


async def test_unmanaged_instances_count_as_load() -> None:
    async with rig() as r:
        for node in (0, 1, 3):
            await _plain(r, f"fixed{node}", limits_cpu="4", limits_cpu_nodes=str(node))
        assert r.nodes(await r.present("c1", 2)) == NodeSet([2])


async def test_restricted_project_gets_the_cgroup_and_keeps_its_record() -> None:
    async with rig(replace(QUICK, projects=RESTRICTED)) as r:
        key = r.managed("c1", 2, "closed")
        for node in range(4):
            await _plain(r, f"load{node}", limits_cpu="4", limits_cpu_nodes=str(node))
        await _plain(r, "more", limits_cpu="4", limits_cpu_nodes="0")
        await r.simulator.stop(InstanceKey("default", "load2"))
        await r.start(key)
        # The server counts the stopped one, too, and has no reason to take node 2.
        await eventually(lambda: r.nodes(key) == r.seat(key).mems == NodeSet([2]))
        assert r.calls("PATCH instance", key) <= 1


async def test_restricted_project_is_told_once_over_many_passes() -> None:
    async with rig(replace(QUICK, projects=RESTRICTED), wish=Wish(settings=Settings(daemon=BUSY))) as r:
        keys = [r.managed(f"c{number}", 2, "closed") for number in range(6)]
        await r.start(*keys)
        for key in keys:
            r.simulator.incus.get(key).config["volatile.cpu.nodes"] = "0"
            r.simulator.incus.get(key).changed()
        await eventually(lambda: r.log.saying("forbid"))
        await eventually(lambda: _even(r, keys))
        await r.passes(3)
        said = [str(key) for key in keys for _ in r.log.saying("forbid", f"instance={key} ")]
        assert sorted(said) == sorted(set(said))
        assert max(r.calls("PATCH instance", key) for key in keys) <= 1
        assert {r.simulator.incus.get(key).config["volatile.cpu.nodes"] for key in keys} == {"0"}


def _even(r: Rig, keys: list[InstanceKey]) -> bool:
    """Whether no node has more than two of the instances."""
    lows = [node for key in keys for node in r.nodes(key)]
    return len(lows) == len(keys) and max(lows.count(node) for node in lows) <= 2


async def test_same_name_in_two_projects_is_two_instances() -> None:
    async with rig(replace(QUICK, projects={"web": {}})) as r:
        one, other = r.managed("c1", 4), r.managed("c1", 4, "web")
        await r.start(one, other)
        await r.placed(one, other)
        assert r.nodes(one) != r.nodes(other)


async def test_virtual_machine_is_left_alone() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        vm = r.simulator.create(
            "vm1", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"}, kind=InstanceType.VIRTUAL_MACHINE
        )
        await r.start(vm)
        await r.present("c1", 2)
        await r.passes(2)
        assert r.writes(vm) == []


GARBAGE = {
    "limits.cpu": "3-1",
    "limits.memory": "plenty",
    "limits.cpu.allowance": "half",
    "limits.cpu.nodes": "9-7",
    "user.limits.cpu.nodes": "please",
    "user.numa.policy": "\x00\x01",
    "user.numa.memory": "everywhere",
    "user.numa.group": "a b",
    "user.numa.movable": "perhaps",
    "user.numa.nonsense": "1",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_in_a_key_rejects_that_instance_alone_and_is_told_once(name: str) -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY))) as r:
        bad, good = await r.present("bad", 2), await r.present("good", 2)
        r.simulator.set_config(bad, {name: GARBAGE[name]})
        await eventually(lambda: r.log.saying("instance=bad", "reason=bad-key", name))
        before = r.writes(bad)
        r.simulator.set_config(good, {"limits.cpu": "8"})
        await r.placed(good)
        await r.passes(3)
        assert len(r.log.saying("instance=bad", "reason=bad-key")) == 1
        assert r.writes(bad) == before


async def test_instance_is_placed_when_its_garbage_is_gone() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        r.simulator.set_config(key, {"limits.cpu": "3-1"})
        await eventually(lambda: r.log.saying("reason=bad-key"))
        r.simulator.set_config(key, {"limits.cpu": "3"})
        await r.placed(key)


async def test_refused_instance_is_left_as_it_is() -> None:
    async with rig() as r:
        key = await r.present("c1", 2)
        await r.events_taken()
        before, seat = r.writes(key), r.seat(key)
        r.simulator.set_config(key, {"limits.memory": "4TiB"})
        await eventually(lambda: r.log.saying("instance=c1", "reason=no-memory"))
        await r.events_taken()
        assert (r.writes(key), r.seat(key)) == (before, seat)


async def test_pinned_instance_keeps_its_cpus_and_gets_its_nodes_recorded() -> None:
    async with rig() as r:
        key = r.managed("c1", "4-5")
        await r.start(key)
        await eventually(lambda: r.seat(key).record == r.seat(key).mems == NodeSet([1]))
        assert r.seat(key).cpus == CpuSet([4, 5])
