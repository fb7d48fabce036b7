"""The policy that the API was given outlives the daemon, and what is bad about it does not stop the next one."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cli import daemon_command, fitting
from incus_numa.errors import ConfigError
from incus_numa.settings import PlacementSettings, ServerSettings, Settings, render_settings
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

    @property
    def settings(self) -> Settings:
        """What the daemon is configured to."""
        return replace(
            self.rig.settings,
            daemon=replace(self.rig.settings.daemon, run_dir=str(self.folder)),
            api=replace(self.rig.settings.api, socket=str(self.folder / "api.sock"), policy_file=str(self.policy_file)),
        )

    def write(self, settings: Settings) -> Path:
        """The configuration file."""
        path = self.folder / "config.toml"
        path.write_text(render_settings(settings))
        return path

    @asynccontextmanager
    async def daemon(self, *, server: ServerSettings | None = None) -> AsyncIterator[Client]:
        """One life of `incus-numa daemon`, and a client of its API; it is not waited for another `server`."""
        folder, settings = self.folder, replace(self.settings, server=server or self.settings.server)
        running = asyncio.create_task(daemon_command.serve(settings, self.write(settings)))
        try:
            await eventually(lambda: running.done() or (folder / "api.sock").is_socket())
            async with unix_client(folder / "api.sock") as client:
                connected = server is not None
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


@dataclass(frozen=True, kw_only=True)
class Spoilt:
    """A kept policy that is bad in part: what stays in force of it, what is left out, and words of why."""

    kept: dict[str, Any]
    stays: dict[str, Any]
    left_out: dict[str | None, str]


TOO_MUCH = {"policy": "static", "reserved_total": "1TiB", "reserved": {"0": "1TiB"}}
HALTS = "nothing moves by load"
SPOILT = [
    Spoilt(
        kept={"rebalance": {"enabled": False, "nosuch": 1}, "placement": {"smt": "other", "memory": "none"}},
        stays={"rebalance": {"enabled": False}, "placement": {"memory": "none"}},
        left_out={"rebalance.nosuch": "unknown key", "placement.smt": "expected one of spread, pack"},
    ),
    Spoilt(
        kept={"server": {"socket": "/x"}, "placement": 5, "rebalance": {"journal": "/x", "margin": 1.0}},
        stays={"rebalance": {"margin": 1.0}},
        left_out={"server": "cannot be set here", "placement": "expected a table", "rebalance.journal": "in the file"},
    ),
    Spoilt(
        kept={"memory": TOO_MUCH, "placement": {"reserved_cpus": "0-999", "smt": "pack"}},
        stays=PACK,
        left_out={"memory": "has", "placement.reserved_cpus": "this machine has no CPUs"},
    ),
    Spoilt(
        kept={"rebalance": {"enabled": "perhaps", "margin": 1.0}},
        stays={"rebalance": {"margin": 1.0, "enabled": False}},
        left_out={"rebalance.enabled": HALTS},
    ),
    Spoilt(kept={"rebalance": []}, stays={"rebalance": {"enabled": False}}, left_out={"rebalance": HALTS}),
]


@pytest.mark.parametrize("spoilt", SPOILT, ids=lambda one: ",".join(one.left_out))
async def test_only_what_is_bad_of_a_kept_policy_is_left_out_and_told(spoilt: Spoilt) -> None:
    async with home() as h:
        h.policy_file.write_text(text := json.dumps(spoilt.kept))
        async with h.daemon() as client:
            found, status = await client.get("/v1/policy"), await client.get("/v1/status")
        told = h.rig.log.saying("policy.json", "left out", level=logging.ERROR)
        assert h.policy_file.read_text() == text
    assert (found["source"], found["changes"]) == ("api", spoilt.stays)
    assert {one["key"] for one in found["left_out"]} == spoilt.left_out.keys()
    for one in found["left_out"]:
        assert spoilt.left_out[one["key"]] in one["why"]
    assert [problem for problem in status["problems"] if "left out of the policy" in problem] == told
    assert len(told) == len(spoilt.left_out)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff", None], ids=["cut", "list", "bytes", "folder"])
async def test_while_what_is_kept_cannot_be_read_nobody_is_moved_by_load(text: str | None) -> None:
    async with home() as h:
        if text is None:
            h.policy_file.mkdir()
        else:
            h.policy_file.write_bytes(text.encode("utf-8", "surrogateescape"))
        async with h.daemon() as client:
            found, status = await client.get("/v1/policy"), await client.get("/v1/status")
            if text is None:
                h.policy_file.rmdir()
            taken_back = await client.ask("/v1/policy", "DELETE")
        told = h.rig.log.saying("policy.json", "left out", HALTS, level=logging.ERROR)
    assert (found["source"], found["changes"]) == ("api", {"rebalance": {"enabled": False}})
    assert ([one["key"] for one in found["left_out"]], status["rebalancing"]) == ([None], False)
    assert (told, [one for one in status["problems"] if HALTS in one]) == (told[:1], told[:1])
    assert (taken_back.data["source"], taken_back.data["effective"]["rebalance"]["enabled"]) == ("file", True)


async def test_a_file_that_keeps_back_cpus_that_are_not_there_is_refused() -> None:
    async with home() as h:
        config = h.write(replace(h.settings, placement=PlacementSettings(reserved_cpus="0-999")))
        with pytest.raises(ConfigError) as refused:
            fitting.load_for_host(config)
    assert ["no CPUs" in one or "every CPU" in one for one in refused.value.problems] == [True, True]


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


async def test_the_api_serves_from_the_start_on_and_says_that_there_is_no_server_yet() -> None:
    async with home() as h:
        key, later = h.rig.managed("web", 2), h.folder / "later.socket"
        async with h.daemon(server=ServerSettings(socket=str(later))) as client:
            paths = ("instances", "instances/web", "plan")
            unknown = [await client.ask(f"/v1/{path}") for path in paths]
            refused = await client.ask("/v1/rebalance", "POST", {})
            status, nodes = await client.get("/v1/status"), await client.get("/v1/nodes")
            metrics = (await client.ask("/metrics")).body.decode()
            put = await client.ask("/v1/policy", "PUT", {"placement": {"memory": "none"}})
            later.symlink_to(h.rig.simulator.socket_path)
            connected = False
            while not connected:
                found = await client.get("/v1/status")
                connected = found["server"]["connected"]
            await h.rig.start(key)
            await eventually(lambda: len(h.rig.seat(key).cpus) == 2)
        told = h.rig.log.saying("no server found", str(later))
    assert status["server"] == {"product": None, "version": None, "member": None, "socket": "", "connected": False}
    assert [(one.status, one.data["type"], "Retry-After" in one.headers) for one in (*unknown, refused)] == [
        (503, "urn:incus-numa:server-unreachable", True)
    ] * 4
    assert (len(nodes), put.status, found["server"]["socket"]) == (len(h.rig.simulator.machine.nodes), 200, str(later))
    assert "incus_numa_server_connected 0.0\n" in metrics
    assert len(told) == 1
