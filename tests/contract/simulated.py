"""A simulator and a client on its socket, for the tests of what the simulated server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.simulator import trees
from incus_numa.simulator.groups import group_name
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.simulator import Simulator
from tests import builders

QUICK = SimulatorOptions(lock_release_s=(0.0, 0.0), balance_delay_s=(0.0, 0.0), balance_s=0.0)
LOCKED = SimulatorOptions(lock_release_s=(60.0, 60.0), balance_delay_s=(0.0, 0.0), balance_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response: HTTP status, ETag as sent, decoded body."""

    status: int
    etag: str | None
    body: dict[str, Any]

    @property
    def metadata(self) -> Any:
        return self.body["metadata"]


@dataclass(frozen=True, kw_only=True)
class Host:
    """A running simulator and a session that talks to it."""

    simulator: Simulator
    session: aiohttp.ClientSession

    async def call(
        self, method: str, path: str, *, json: object = None, etag: str | None = None, **query: str
    ) -> Answer:
        headers = {} if etag is None else {"If-Match": etag}
        query = {name.replace("_", "-"): value for name, value in query.items()}
        async with self.session.request(
            method, f"http://incus{path}", params=query, json=json, headers=headers
        ) as response:
            return Answer(status=response.status, etag=response.headers.get("ETag"), body=await response.json())

    @asynccontextmanager
    async def events(self, **query: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        query = {name.replace("_", "-"): value for name, value in query.items()}
        before = self.simulator.incus.hub.listener_count
        # A connection that was muted does not answer the client's good-bye.
        patience = aiohttp.ClientWSTimeout(ws_close=0.1)
        async with self.session.ws_connect("http://incus/1.0/events", params=query, timeout=patience) as websocket:
            await until(lambda: self.simulator.incus.hub.listener_count > before)
            yield websocket

    def cpus(self, key: InstanceKey, file: str = "cpuset.cpus") -> CpuSet:
        return CpuSet.parse(self.path(key, file).read_text())

    def nodes(self, key: InstanceKey) -> NodeSet:
        return NodeSet.parse(self.simulator.incus.get(key).config["volatile.cpu.nodes"])

    def path(self, key: InstanceKey, file: str) -> Path:
        return self.simulator.payloads / group_name(key) / file


@asynccontextmanager
async def host(options: SimulatorOptions = QUICK, machine: Machine | None = None) -> AsyncIterator[Host]:
    """A simulated host, checked for impossible states when the test is done with it."""
    with TemporaryDirectory(dir=trees.scratch_root()) as folder:
        async with _host(Simulator(machine or builders.machine(), Path(folder), options)) as running:
            yield running


@asynccontextmanager
async def _host(simulator: Simulator) -> AsyncIterator[Host]:
    async with simulator:
        connector = aiohttp.UnixConnector(path=str(simulator.socket_path))
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Host(simulator=simulator, session=session)
        assert simulator.problems() == ()


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until the condition holds; gives up after a few seconds."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")
