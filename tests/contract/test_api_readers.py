"""Those who read the API: what they are told is of this moment, and placing goes on as if nobody asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from incus_numa.errors import RetryError
from incus_numa.facts.gauges import take_gauges
from incus_numa.facts.looks import Look, Looks
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Refused
from incus_numa.model.plan import Reason, Rejection
from incus_numa.settings import DaemonSettings, RebalanceSettings, Settings
from incus_numa.web.limits import Limits
from tests.contract.api_rig import Api, api
from tests.contract.daemon_rig import QUICK, Rig, Wish, eventually, rig

RARELY = DaemonSettings(resync_s=3600.0, verify_s=(0.2,))
UNMEASURED = Settings(daemon=RARELY, rebalance=RebalanceSettings(enabled=False))
MEASURED = replace(UNMEASURED, rebalance=RebalanceSettings(interval_s=0.1, time_constant_s=0.1, hold_s=3600.0))
FREE = 12345 << 10


@asynccontextmanager
async def serve(settings: Settings = UNMEASURED) -> AsyncIterator[tuple[Rig, Api]]:
    async with rig(QUICK, wish=Wish(settings=settings)) as r, api(r) as served:
        yield r, served


async def until(served: Api, path: str, condition: Callable[[Any], bool]) -> None:
    """Wait until what is told at a path is so."""
    for _ in range(400):
        if condition(await served.unix.get(path)):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{path} never told what was waited for")


def set_free(r: Rig, node: int) -> None:
    """Have the kernel say that so much memory of a node is free, after the daemon has read the machine."""
    path = Path(r.simulator.sysfs) / f"devices/system/node/node{node}/meminfo"
    lines = path.read_text().splitlines()
    changed = [f"Node {node} MemFree: {FREE >> 10} kB" if "MemFree:" in line else line for line in lines]
    path.write_text("".join(f"{line}\n" for line in changed))


async def test_free_memory_is_what_is_free_now() -> None:
    async with serve() as (r, served):
        set_free(r, 1)
        nodes = await served.unix.get("/v1/nodes")
        machine = await served.unix.get("/v1/topology")
        shown = take_gauges(r.daemon.service).nodes[1].free_bytes
    found = [one["free_bytes"] for one in nodes if one["node"] == 1]
    found += [one["free_bytes"] for one in machine["nodes"] if one["id"] == 1]
    assert [*found, shown] == [FREE] * 3


async def test_the_imbalance_is_unknown_once_nothing_is_measured_any_more() -> None:
    async with serve(MEASURED) as (r, served):
        key = await r.present("busy", 2)
        r.simulator.set_work(key, 2.0)
        await until(served, "/v1/status", lambda status: status["imbalance"] is not None)
        await served.unix.ask("/v1/policy", "PUT", {"rebalance": {"enabled": False}})
        await until(served, "/v1/status", lambda status: status["imbalance"] is None)


async def test_a_burst_of_events_reaches_one_who_reads_at_once() -> None:
    async with serve() as (r, served):
        reader, writer = await asyncio.open_unix_connection(served.settings.socket, limit=1 << 22)
        writer.write(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"retry: 2000\n\n")
        for number in range(1000):
            refused = Rejection(key=InstanceKey("default", f"c{number}"), reason=Reason.NO_CPUS, detail="no CPU")
            r.daemon.service.reconciler.notices.tell(Refused(rejection=refused))
        text = await asyncio.wait_for(reader.readuntil(b'"c999"'), 10)
        writer.close()
    assert (text.count(b"event: refused"), text.count(b"event: overflow")) == (1000, 0)


async def test_what_many_ask_for_is_made_once() -> None:
    made: list[Look] = []

    async with serve() as (r, _):
        looks = Looks(r.daemon.service)
        found = await asyncio.gather(*(looks.ask("rows", made.append) for _ in range(20)))
        looks.forget()
        await looks.ask("rows", made.append)
    assert (len(found), len(made)) == (20, 2)
    assert made[0] is not made[1]


async def test_what_readers_ask_for_is_made_one_after_the_other() -> None:
    together, alone = threading.Barrier(2), list[int]()

    def make(number: int, _: Look) -> None:
        try:
            together.wait(0.05)
        except threading.BrokenBarrierError:
            together.reset()
            alone.append(number)

    async with serve() as (r, _):
        looks = Looks(r.daemon.service)
        await asyncio.gather(*(looks.ask(number, partial(make, number)) for number in range(4)))
    assert sorted(alone) == [0, 1, 2, 3]


async def test_every_page_tells_of_the_same_look() -> None:
    async with serve() as (r, served):
        await r.present("web", 2)
        await until(served, "/v1/instances", bool)
        status, nodes, plan = [await served.unix.get(f"/v1/{path}") for path in ("status", "nodes", "plan")]
    assert status["instances"]["running"] == 1
    assert [one["name"] for node in nodes for one in node["instances"]] == ["web"]
    assert [one["name"] for one in plan["placements"]] == ["web"]


async def test_no_moves_are_begun_by_a_daemon_that_ends() -> None:
    async with rig(QUICK, wish=Wish(settings=MEASURED)) as r:
        await r.present("web", 2)
        service = r.daemon.service
        await eventually(lambda: service.balancing.rates is not None)
    with pytest.raises(RetryError):
        service.balancing.make(frozenset(), None)


async def test_one_who_does_not_take_an_answer_is_cut_off() -> None:
    async with rig(QUICK) as r, api(r, limits=Limits(answer_s=0.2)) as served:
        size = len((await served.unix.ask("/v1/openapi.json")).body)
        reader, writer = await asyncio.open_unix_connection(served.settings.socket)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        # The answers that fit the kernel's buffers are taken; the next one is not.
        await asyncio.sleep(1.0)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        found = b""
        with suppress(ConnectionError):
            while chunk := await asyncio.wait_for(reader.read(1 << 20), 10):
                found += chunk
        writer.close()
    assert len(found) < 50 * size
