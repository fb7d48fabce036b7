"""Servers that refuse or fail for one instance: the others are placed, and that one as far as it can be."""

from __future__ import annotations

import itertools
from dataclasses import replace

from incus_numa.cpuset import NodeSet
from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import Settings
from tests.contract.daemon_rig import BUSY, QUICK, Rig, Wish, eventually, rig


async def test_node_zero_is_recorded_on_a_server_that_takes_only_ranges() -> None:
    async with rig(replace(QUICK, refuses_node_zero=True, seed=1)) as r:
        # All other nodes are taken by a CPU list, which the server's own choice does not count.
        taken = r.simulator.create("taken", {"limits.cpu": "4-15"})
        await r.simulator.start(taken)
        key = await r.present("c1", 2)
        assert r.seat(key).record == NodeSet([0])
        assert r.calls("PATCH instance") >= 2


async def test_an_instance_that_the_server_cannot_tell_about_holds_up_no_other_in_a_full_pass() -> None:
    async with rig(run=False) as r:
        taken = r.simulator.create("taken", {"limits.cpu": "4-15"})
        await r.simulator.start(taken)
        keys = [r.managed(f"c{n}", 6) for n in range(4)]
        for key in keys:
            await r.simulator.start(key)
        daemon = r.start_daemon()

        async def fail(key: InstanceKey) -> None:
            if key == keys[0]:
                raise ReportError("GET instance: the server answered 500: no such luck")

        daemon.server.after_get = fail
        await r.listening()
        await r.placed(*keys[1:])


async def _misplaced(r: Rig) -> InstanceKey:
    """An instance on another node than the server recorded, as all nodes but that one are taken by a CPU list."""
    taken = r.simulator.create("taken", {"limits.cpu": "4-15"})
    await r.simulator.start(taken)
    keys = [r.managed(f"c{n}", 2) for n in range(2)]
    await r.start(*keys)
    await eventually(lambda: all(r.has_group(key) and r.nodes(key) == NodeSet([0]) for key in keys))
    return next(key for key in keys if r.seat(key).record != NodeSet([0]))


class Failing:
    """A server that takes no write, each time for the next of several reasons, while it is `broken`."""

    def __init__(self, *reasons: str) -> None:
        self.broken = True
        self._reasons = itertools.cycle(reasons)

    async def __call__(self, key: InstanceKey) -> None:
        if self.broken:
            raise ReportError(f"PATCH instance: the server answered 500: {next(self._reasons)}")


async def test_problems_that_take_turns_are_said_once_each_until_all_is_right() -> None:
    async with rig(wish=Wish(settings=Settings(daemon=BUSY)), run=False) as r:
        failing = r.start_daemon().server.before_patch = Failing("disk full", "database is locked", "no quorum")
        await r.listening()
        key = await _misplaced(r)
        await eventually(lambda: len(r.log.saying(f"instance={key}")) == 3)
        await r.passes(6)
        told = r.log.saying(f"instance={key}")
        assert len(told) == 3
        failing.broken = False
        await r.placed(key)
        await r.passes(2)
        assert r.log.saying(f"instance={key}") == told
        failing.broken = True
        r.simulator.set_config(key, {"volatile.cpu.nodes": "3"})
        await eventually(lambda: len(r.log.saying(f"instance={key}")) == 6)
        await r.passes(6)
        assert sorted(r.log.saying(f"instance={key}")[3:]) == sorted(told)
