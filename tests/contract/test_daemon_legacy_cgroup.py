"""The daemon on hosts with cgroup v1, alone or beside a v2 hierarchy without cpusets: all as on v2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import RebalanceSettings, Settings
from incus_numa.simulator.options import Hierarchy, SimulatorOptions
from incus_numa.simulator.personalities import PERSONALITIES
from tests import builders
from tests.builders import GIB
from tests.contract.daemon_rig import BUSY, EVENTS_ONLY, INOTIFY_ONLY, QUICK, Rig, Wish, eventually, rig

HIERARCHIES = (Hierarchy.V1, Hierarchy.HYBRID)


@pytest.fixture(params=HIERARCHIES, ids=lambda one: one.value)
def options(request: pytest.FixtureRequest) -> SimulatorOptions:
    return replace(QUICK, cgroup=request.param)


def _pages(r: Rig, key: InstanceKey) -> NodeSet:
    pages = r.simulator.kernel.groups[key].pages
    return NodeSet(node for node, size in pages.items() if size)


async def test_containers_are_placed_and_their_memory_with_them(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        keys = [await r.present(f"c{number}", 2 + number) for number in range(4)]
        # Each start makes the server rewrite the others.
        await r.placed(*keys)
        assert [len(r.nodes(key)) for key in keys] == [1, 1, 1, 2]
        r.simulator.settle()
        assert all(_pages(r, key) == r.nodes(key) for key in keys[:3])
        assert all(r.path(key, "cpuset.memory_migrate").read_text() == "1\n" for key in keys[:3])


async def test_rewrite_by_the_server_is_undone_without_asking_it(options: SimulatorOptions) -> None:
    async with rig(options, wish=Wish(settings=Settings(daemon=INOTIFY_ONLY))) as r:
        keys = [await r.present(f"c{number}", 3) for number in range(4)]
        await r.placed(*keys)
        before, listings = {key: r.seat(key) for key in keys}, r.calls("GET instances")
        for _ in range(5):
            r.simulator.trigger_balance()
            await r.simulator.balanced()
            await eventually(lambda: {key: r.seat(key) for key in keys} == before)
        assert r.calls("GET instances") == listings


async def test_what_is_right_is_never_written(options: SimulatorOptions) -> None:
    async with rig(options, wish=Wish(settings=Settings(daemon=BUSY))) as r:
        keys = [await r.present(f"c{number}", 1 + number * 3) for number in range(4)]
        plain = r.simulator.create("plain", {"limits.cpu": "2"})
        await r.start(plain)
        await r.simulator.balanced()
        await r.placed(*keys)
        await r.passes(1)
        before = r.touched(*keys, plain)
        await r.passes(4)
        assert r.touched(*keys, plain) == before
        assert r.writes(plain) == []


async def test_placement_outlives_a_restart_of_the_daemon(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        keys = [await r.present(f"c{number}", 3) for number in range(4)]
        await r.placed(*keys)
        before = {key: r.seat(key) for key in keys}
        await r.stop_daemon()
        r.simulator.trigger_balance()
        await r.simulator.balanced()
        r.start_daemon()
        await eventually(lambda: {key: r.seat(key) for key in keys} == before)


async def test_memory_is_unbound_when_an_instance_is_no_longer_ours(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        key = await r.present("c1", 2)
        assert r.seat(key).mems
        r.simulator.set_config(key, {"limits.cpu.nodes": ""})
        await eventually(lambda: r.seat(key).mems == NodeSet())


async def test_memory_is_bound_to_two_nodes_where_asked_for(options: SimulatorOptions) -> None:
    async with rig(options) as r:
        key = r.managed("c1", 6, user_numa_memory="bind")
        await r.start(key)
        await eventually(lambda: r.has_group(key) and len(r.seat(key).mems) == 2)
        await eventually(lambda: r.seat(key).mems == r.nodes(key) == r.seat(key).record)
        r.simulator.settle()
        assert _pages(r, key) <= r.nodes(key)


async def test_cpu_that_left_the_sets_while_it_was_offline_comes_back(options: SimulatorOptions) -> None:
    async with rig(options, wish=Wish(settings=Settings(daemon=BUSY))) as r:
        key = await r.present("c1", 16)
        r.simulator.offline_cpu(5)
        await eventually(lambda: r.seat(key).cpus == r.simulator.kernel.online)
        r.simulator.online_cpu(5)
        await eventually(lambda: r.seat(key).cpus == r.simulator.machine.online)


async def test_load_is_measured_and_memory_follows_one_that_moves(options: SimulatorOptions) -> None:
    swift = RebalanceSettings(
        interval_s=0.15, time_constant_s=0.1, hold_s=0.1, cooldown_s=3600.0, bytes_per_second=64 * GIB
    )
    machine = builders.machine(memory_bytes=16 * GIB)
    async with rig(options, machine, Wish(settings=Settings(daemon=EVENTS_ONLY, rebalance=swift))) as r:
        keys = [
            await r.present(f"c{n}", 4, user_numa_movable=str(n > 3).lower(), limits_memory="1GiB") for n in range(5)
        ]
        mover = keys[4]
        before = r.nodes(mover)
        mate = next(key for key in keys[:4] if r.nodes(key) == before)
        for key in (mover, mate):
            r.simulator.set_work(key, 4.0)
        await eventually(lambda: r.nodes(mover) != before)
        await r.placed(mover, mate)
        await eventually(lambda: _pages(r, mover) == r.nodes(mover))


@pytest.mark.parametrize("name", ["lxd-5.0", "incus-6.0.0", "incus-6.0.4"])
async def test_servers_that_still_run_on_such_hosts(name: str) -> None:
    one = replace(
        PERSONALITIES[name],
        cgroup=Hierarchy.HYBRID,
        lock_release_s=QUICK.lock_release_s,
        balance_delay_s=QUICK.balance_delay_s,
        balance_s=0.0,
    )
    async with rig(one) as r:
        keys = [r.simulator.create(f"c{n}", {"limits.cpu": "2", "user.limits.cpu.nodes": "balanced"}) for n in range(4)]
        await r.start(*keys)
        is_placed: Callable[[InstanceKey], bool] = lambda key: (  # noqa: E731
            len(r.seat(key).cpus) == 2 and len(r.nodes(key)) == 1 and r.seat(key).mems == r.nodes(key)
        )
        await eventually(lambda: all(is_placed(key) for key in keys))
        assert {node for key in keys for node in r.nodes(key)} == set(CpuSet(range(4)))
