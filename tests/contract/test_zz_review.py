from __future__ import annotations
import asyncio, logging
from dataclasses import replace
from incus_numa.cpuset import NodeSet
from incus_numa.errors import UnreachableError
from tests.contract.test_daemon_load import *
from tests.contract.daemon_rig import EVENTS_ONLY
for _n in [n for n in dir() if n.startswith("test_")]: del globals()[_n]

SLOW = replace(SWIFT, bytes_per_second=256 << 20)

async def moving(r):
    mover, mate, others = await sharing(r, limits_memory="4GiB")
    before = r.nodes(mover)
    r.simulator.set_work(mover, 4.0); r.simulator.set_work(mate, 4.0)
    await eventually(lambda: r.nodes(mover) != before)
    group = r.simulator.kernel.groups[mover]
    total = sum(group.pages.values())
    await eventually(lambda: total - group.pages[before.lowest()] >= 0.2 * total)
    return mover, mate, others, before, group, total

async def test_stop_while_following():
    async with host(SLOW) as r:
        mover, *_ = await moving(r)
        await r.simulator.stop(mover)
        await asyncio.sleep(1.0)
        print("STOP", [(l["result"], l["moved_bytes"]) for l in journal(r)], r.log.lines(logging.WARNING))

async def test_restart_while_following():
    async with host(SLOW) as r:
        mover, mate, others, before, *_ = await moving(r)
        await r.simulator.stop(mover)
        await r.simulator.start(mover)
        await asyncio.sleep(1.0)
        await r.placed(mover)
        print("RESTART", [(l["result"], l["moved_bytes"]) for l in journal(r)], r.log.lines(logging.WARNING))

async def test_unmanage_while_following():
    async with host(SLOW) as r:
        mover, *_ = await moving(r)
        r.simulator.set_config(mover, {"limits.cpu.nodes": ""})
        await eventually(lambda: r.seat(mover).mems == NodeSet())
        await asyncio.sleep(1.0)
        print("UNMANAGE", [(l["result"], l["moved_bytes"]) for l in journal(r)], r.log.lines(logging.WARNING), r.seat(mover))

async def test_policy_changes_while_following():
    async with host(SLOW) as r:
        mover, mate, others, before, group, total = await moving(r)
        r.simulator.set_config(mover, {"user.numa.policy": "none"})
        await asyncio.sleep(3.0)
        print("POLICY", [(l["result"], l["moved_bytes"]) for l in journal(r)], r.log.lines(logging.WARNING), r.seat(mover), dict(group.pages))

async def test_server_away_while_settling():
    async with host() as r:
        mover, mate, _ = await sharing(r, limits_memory="4GiB")
        before = r.nodes(mover)
        async def away(key):
            r.daemon.server.before_patch = ok
            raise UnreachableError("away")
        async def ok(key): pass
        r.daemon.server.before_patch = away
        r.simulator.set_work(mover, 4.0); r.simulator.set_work(mate, 4.0)
        await eventually(lambda: r.nodes(mover) != before)
        await asyncio.sleep(1.0)
        print("AWAY", [(l["result"], l["moved_bytes"]) for l in journal(r)], r.log.lines(logging.WARNING), r.seat(mover))

async def test_resync_storm_while_following():
    async with host(SLOW, DaemonSettings(resync_s=0.1, verify_s=(0.1,))) as r:
        mover, mate, others, before, group, total = await moving(r)
        for _ in range(20):
            r.simulator.trigger_balance()
            await asyncio.sleep(0.1)
        await eventually(lambda: len(journal(r)) == 1)
        await r.placed(mover)
        print("STORM", [(l["result"], l["moved_bytes"]) for l in journal(r)], r.log.lines(logging.WARNING), r.seat(mover))
        n=len(r.log.lines(logging.INFO)); await asyncio.sleep(1); print(r.log.lines(logging.INFO)[n:])

async def test_disabled_forgets_load():
    async with host() as r:
        mover, mate, _ = await sharing(r, user_numa_movable="false") if False else await sharing(r)
        r.simulator.set_work(mate, 4.0)
        await asyncio.sleep(1.0)
        print("LOAD", r.daemon.service._world._load)
        r.load_settings = lambda: replace(r.settings, rebalance=replace(SWIFT, enabled=False))
        r.daemon.service.reload()
        r.simulator.set_work(mate, 0.0)
        await asyncio.sleep(1.0)
        print("LOAD after disabling", r.daemon.service._world._load)
