"""The policy that the API was given outlives the daemon, and what is bad about it does not stop the next one."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from incus_numa.cli import daemon_command
from incus_numa.settings import render_settings
from tests.contract.api_rig import Client, unix_client
from tests.contract.daemon_rig import Rig, eventually, rig

PACK = {"placement": {"smt": "pack"}}


@dataclass(frozen=True, kw_only=True)
class Home:
    """A simulated host with a configuration file, on which no daemon runs yet."""

    rig: Rig
    folder: Path

    @property
    def policy_file(self) -> Path:
        return self.folder / "policy.json"

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Client]:
        """One life of `incus-numa daemon`, and a client of its API."""
        folder = self.folder
        settings = replace(
            self.rig.settings,
            daemon=replace(self.rig.settings.daemon, run_dir=str(folder)),
            api=replace(self.rig.settings.api, socket=str(folder / "api.sock"), policy_file=str(self.policy_file)),
        )
        config = folder / "config.toml"
        config.write_text(render_settings(settings))
        running = asyncio.create_task(daemon_command.serve(settings, config))
        try:
            await eventually(lambda: running.done() or (folder / "api.sock").is_socket())
            async with unix_client(folder / "api.sock") as client:
                connected = False
                while not connected:
                    connected = (await client.get("/v1/status"))["server"]["connected"]
                yield client
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


@asynccontextmanager
async def home() -> AsyncIterator[Home]:
    async with rig(run=False) as r:
        yield Home(rig=r, folder=r.simulator.sysfs.parent)


async def test_a_policy_is_kept_across_a_restart_until_it_is_taken_back() -> None:
    async with home() as h:
        async with h.daemon() as client:
            put = await client.ask("/v1/policy", "PUT", PACK)
        async with h.daemon() as client:
            second = await client.get("/v1/policy")
            taken_back = await client.ask("/v1/policy", "DELETE")
        async with h.daemon() as client:
            third = await client.get("/v1/policy")
        told = h.rig.log.saying("as the API was told", "placement.smt", level=logging.INFO)
    assert second == put.data
    assert (second["source"], second["changes"], second["effective"]["placement"]["smt"]) == ("api", PACK, "pack")
    assert third == taken_back.data
    assert (third["source"], third["effective"]["placement"]["smt"]) == ("file", "spread")
    assert len(told) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps({"placement": {"smt": "other"}}),
        json.dumps({"server": {"socket": "/x"}}),
        json.dumps({"memory": {"policy": "static", "reserved_total": "1TiB", "reserved": {"0": "1TiB"}}}),
    ],
)
async def test_a_bad_policy_file_is_told_and_left_out(text: str) -> None:
    async with home() as h:
        h.policy_file.write_text(text)
        async with h.daemon() as client:
            found = await client.get("/v1/policy")
        told = h.rig.log.saying("policy.json", "left out", level=logging.ERROR)
        assert h.policy_file.read_text() == text
    assert (found["source"], found["changes"], len(told)) == ("file", {}, 1)


async def test_a_policy_that_was_set_decides_at_the_next_start() -> None:
    async with home() as h:
        async with h.daemon() as client:
            await client.ask("/v1/policy", "PUT", {"placement": {"memory": "none"}})
        key = h.rig.managed("web", 2)
        async with h.daemon() as client:
            await h.rig.start(key)
            await eventually(lambda: len(h.rig.seat(key).cpus) == 2)
            await h.rig.simulator.balanced()
            state = ""
            while state != "placed":
                rows = await client.get("/v1/instances")
                state = rows[0]["state"] if rows else ""
        assert not h.rig.seat(key).mems


async def test_metrics_count_what_the_daemon_does() -> None:
    async with home() as h, h.daemon() as client:
        await h.rig.start(h.rig.managed("web", 2))
        for _ in range(200):
            text = (await client.ask("/metrics")).body.decode()
            if "incus_numa_start_placed_seconds_count 1.0" in text:
                break
            await asyncio.sleep(0.05)
    assert "incus_numa_start_placed_seconds_count 1.0" in text
    assert "incus_numa_server_connected 1.0" in text
