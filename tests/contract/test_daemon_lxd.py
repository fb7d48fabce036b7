"""The daemon with LXD: opt-in by a key of ours, the decision in `limits.cpu.nodes`, which makes LXD rebalance."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server.protocol import Product
from incus_numa.settings import Settings
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.personalities import PERSONALITIES
from tests.contract.daemon_rig import BUSY, QUICK, Rig, Wish, eventually, rig

LXD = replace(QUICK, product=Product.LXD, version="5.0.2")
VERSIONS = ("lxd-5.0", "lxd-5.21", "lxd-6")


def _opted_in(r: Rig, name: str, cpu: int) -> InstanceKey:
    return r.simulator.create(name, {"limits.cpu": str(cpu), "user.limits.cpu.nodes": "balanced"})


def _is_placed(r: Rig, key: InstanceKey, cpus: int) -> bool:
    """Whether CPUs, memory and what LXD was told agree."""
    told = NodeSet.parse(r.simulator.incus.get(key).config.get("limits.cpu.nodes", ""))
    seat, nodes = r.seat(key), r.nodes(key)
    return len(seat.cpus) == cpus and nodes == told and seat.mems == (nodes if len(nodes) == 1 else NodeSet())


def _quick(name: str) -> SimulatorOptions:
    """A version that takes no time, and whose events overtake each other if it is an old one."""
    one = PERSONALITIES[name]
    return replace(one, lock_release_s=QUICK.lock_release_s, balance_delay_s=QUICK.balance_delay_s, balance_s=0.0)


@pytest.mark.parametrize("version", VERSIONS)
async def test_decision_is_written_to_the_key_that_lxd_follows(version: str) -> None:
    async with rig(_quick(version)) as r:
        keys = [_opted_in(r, f"c{number}", 2) for number in range(4)]
        await r.start(*keys)
        await eventually(lambda: all(_is_placed(r, key, 2) for key in keys))
        assert sorted(r.nodes(key).lowest() for key in keys) == [0, 1, 2, 3]
        assert all("volatile.cpu.nodes" not in r.simulator.incus.get(key).config for key in keys)


async def test_rebalance_that_our_own_write_triggers_makes_no_loop() -> None:
    async with rig(LXD, wish=Wish(settings=Settings(daemon=BUSY))) as r:
        keys = [_opted_in(r, f"c{number}", 1 + 3 * number) for number in range(4)]
        await r.start(*keys)
        await eventually(lambda: all(_is_placed(r, key, 1 + 3 * number) for number, key in enumerate(keys)))
        await r.simulator.balanced()
        await r.passes(2)
        before = r.simulator.incus.balancer.passes, r.calls("PATCH instance"), len(r.writes(*keys))
        await r.passes(4)
        assert (r.simulator.incus.balancer.passes, r.calls("PATCH instance"), len(r.writes(*keys))) == before
        assert max(r.calls("PATCH instance", key) for key in keys) <= 2


@pytest.mark.parametrize("version", VERSIONS)
async def test_rewrite_by_lxd_is_undone(version: str) -> None:
    async with rig(_quick(version)) as r:
        key = _opted_in(r, "c1", 6)
        await r.start(key)
        await eventually(lambda: _is_placed(r, key, 6))
        await r.events_taken()
        await r.simulator.balanced()
        await eventually(lambda: _is_placed(r, key, 6))
        right = r.seat(key)
        for _ in range(4):
            r.simulator.trigger_balance()
            await r.simulator.balanced()
            await eventually(lambda: r.seat(key) == right)


async def test_decision_outlives_a_restart_of_the_instance() -> None:
    async with rig(LXD) as r:
        key = _opted_in(r, "c1", 3)
        await r.start(key)
        await eventually(lambda: _is_placed(r, key, 3))
        await r.simulator.stop(key)
        before = r.calls("PATCH instance", key)
        await r.start(key)
        await eventually(lambda: _is_placed(r, key, 3))
        assert r.calls("PATCH instance", key) == before


async def test_nodes_that_somebody_set_by_hand_are_not_ours() -> None:
    async with rig(LXD) as r:
        plain = r.simulator.create("plain", {"limits.cpu": "2", "limits.cpu.nodes": "1"})
        await r.start(plain)
        key = _opted_in(r, "c1", 2)
        await r.start(key)
        await eventually(lambda: _is_placed(r, key, 2))
        await r.events_taken()
        assert r.calls("PATCH instance", plain) == 0
        assert r.writes(plain) == []
        assert r.seat(plain).cpus <= CpuSet(range(4, 8))


async def test_one_that_opts_out_is_no_longer_kept_on_our_nodes() -> None:
    async with rig(LXD) as r:
        key = _opted_in(r, "c1", 2)
        await r.start(key)
        await eventually(lambda: _is_placed(r, key, 2))
        r.simulator.set_config(key, {"user.limits.cpu.nodes": ""})
        await eventually(lambda: not r.simulator.incus.get(key).config.get("limits.cpu.nodes"))
        await eventually(lambda: r.seat(key).mems in (NodeSet(), r.simulator.machine.memory_nodes))
        await r.simulator.balanced()
        assert len(r.seat(key).cpus) == 2


async def test_key_is_not_written_for_a_virtual_machine() -> None:
    """LXD would read it at the next start only, and then keep the machine there for ever."""
    async with rig(LXD, wish=Wish(settings=Settings(daemon=BUSY))) as r:
        config = {"limits.cpu": "2", "user.limits.cpu.nodes": "balanced"}
        key = r.simulator.create("v1", config, kind=InstanceType.VIRTUAL_MACHINE)
        await r.start(key)
        await eventually(lambda: len(r.simulator.kernel.machines[key].read_cpus()) == 2)
        await r.passes(3)
        assert r.calls("PATCH instance", key) == 0
        assert "limits.cpu.nodes" not in r.simulator.incus.get(key).config
