"""Servers that refuse or fail for one instance: the others are placed, and that one as far as it can be."""

from __future__ import annotations

from dataclasses import replace

from incus_numa.cpuset import NodeSet
from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey
from tests.contract.daemon_rig import QUICK, rig


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
