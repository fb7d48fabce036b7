"""`list` and `explain` ask the daemon that runs, show what a look of their own would, and look where it cannot tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web

from incus_numa.settings import DaemonSettings, RebalanceSettings, Settings, render_settings
from incus_numa.simulator import trees
from tests import builders
from tests.builders import GIB
from tests.commands import Result, run_beside
from tests.contract import simulated
from tests.contract.api_rig import Api, api
from tests.contract.asking_rig import answering, config_beside, saying, settings_beside
from tests.contract.daemon_rig import QUICK, Rig, Wish, rig

MEASURED = Settings(
    daemon=DaemonSettings(resync_s=0.1, verify_s=(0.1,)),
    rebalance=RebalanceSettings(interval_s=0.15, time_constant_s=0.1, hold_s=3600.0, cooldown_s=3600.0),
)
UNMEASURED = replace(MEASURED, rebalance=RebalanceSettings(enabled=False, window_s=0.1))
ASKED, LOOKED = "asking the daemon", "looking here"


@dataclass(frozen=True, kw_only=True)
class Home:
    """A host with a daemon, and a configuration that leads commands to both."""

    rig: Rig
    api: Api
    config: Path

    async def run(self, *words: str) -> Result:
        return await run_beside(*words, "--config", self.config)

    async def ways(self, *words: str) -> str:
        """What a command says of whether it asked or looked."""
        err = (await self.run(*words, "--log-level", "debug")).err
        assert ASKED in err or LOOKED in err, err
        return LOOKED if LOOKED in err else ASKED


@asynccontextmanager
async def home(settings: Settings = MEASURED) -> AsyncIterator[Home]:
    """Four nodes with instances of every state, whose load and memory the daemon knows."""
    machine = builders.machine(nodes=4, cpus_per_node=4, memory_bytes=16 * GIB)
    options = replace(QUICK, projects={"other": {}, "empty": {}})
    async with rig(options, machine, Wish(settings=settings)) as r, api(r) as served:
        await r.present("web", 2)
        await r.present("db", 6, limits_memory="4GiB", user_numa_group="g")
        await r.start(r.managed("odd", 2, user_numa_policy="nonsense"))
        await r.start(r.simulator.create("free", {"limits.cpu": "1"}))
        await r.start(r.managed("there", 1, "other"))
        for _ in range(400):
            rows = await served.unix.get("/v1/instances")
            is_known = all(one["locality"] is not None for one in rows if one["name"] != "odd")
            is_measured = not settings.rebalance.enabled or all(one["load_cpus"] is not None for one in rows)
            if len(rows) == 5 and is_known and is_measured:
                break
            await asyncio.sleep(0.05)
        yield Home(rig=r, api=served, config=config_beside(r, served))


async def test_list_shows_the_same_whether_it_asks_or_looks() -> None:
    async with home() as h:
        assert await h.ways("list") == ASKED
        for words in ((), ("-f", "json"), ("-f", "csv"), ("--project", "other")):
            asked = await h.run("list", *words)
            assert asked == await h.run("list", *words, "--window", "0.1"), words
            assert asked.code == 0


@pytest.mark.parametrize("name", ["web", "db", "odd", "free"])
async def test_explain_shows_the_same_whether_it_asks_or_looks(name: str) -> None:
    async with home() as h:
        assert await h.ways("explain", name) == ASKED
        for words in ((), ("-f", "json")):
            asked = await h.run("explain", name, *words)
            assert asked == await h.run("explain", name, *words, "--window", "0.1"), words
        assert (asked.code, asked.err) == (4 if name == "odd" else 0, "")


async def test_a_daemon_that_does_not_know_the_load_yet_is_not_asked() -> None:
    async with home() as h:
        paths = ("/v1/status", "/v1/nodes", "/v1/instances", "/v1/topology", "/v1/instances/web")
        told = {path: await h.api.unix.get(path) for path in paths}
        socket = h.config.parent / "early.sock"
        settings = settings_beside(h.rig, h.api)
        h.config.write_text(render_settings(replace(settings, api=replace(settings.api, socket=str(socket)))))
        async with answering(socket, lambda request: web.json_response(told[request.path])):
            known = [await h.ways("list"), await h.ways("explain", "web")]
            for one in told["/v1/instances"]:
                one["load_cpus"] = None
            told["/v1/instances/web"]["load"]["used_cpus"] = None
            early = [await h.ways("list"), await h.ways("explain", "web")]
            told["/v1/instances"] = []
            nobody = await h.ways("list")
            for one in told["/v1/nodes"]:
                one["measured_load"] = None
            at_first = await h.ways("list")
    assert (known, early, nobody, at_first) == ([ASKED] * 2, [LOOKED] * 2, ASKED, LOOKED)


async def test_nothing_is_said_of_it_unless_that_is_asked_for() -> None:
    async with home() as h:
        for words in (("list",), ("explain", "web"), ("list", "--window", "0"), ("list", "--project", "empty")):
            err = (await h.run(*words, "--log-level", "info")).err
            assert ASKED not in err
            assert LOOKED not in err


async def test_what_only_the_server_knows_is_asked_of_it() -> None:
    async with home() as h:
        empty = await h.run("list", "--project", "empty")
        nosuch = await h.run("list", "--project", "nosuch")
        stopped = h.rig.managed("stopped", 1)
        told = await h.run("explain", stopped.name)
        elsewhere = await h.run("explain", "there")
    assert (empty.code, empty.err.strip()) == (0, "no instance runs in project empty, but in default, other")
    assert (nosuch.code, nosuch.err) == (1, "Error: there is no project 'nosuch', but default, empty, other\n")
    assert (told.code, told.err) == (1, "Error: stopped does not run: it is placed when it starts\n")
    assert elsewhere.err == "Error: no instance there in project default, but in other: say --project\n"


async def test_a_daemon_that_measures_no_load_is_not_asked() -> None:
    async with home(UNMEASURED) as h:
        ways = [await h.ways("list"), await h.ways("explain", "web")]
        rows = (await h.run("list", "-f", "json")).data["instances"]
    assert ways == [LOOKED, LOOKED]
    assert all(row["load_cpus"] is not None for row in rows)


async def test_a_daemon_of_another_server_is_not_asked(tmp_path: Path) -> None:
    async with home() as h:
        link = tmp_path / "same.socket"
        link.symlink_to(h.rig.simulator.socket_path)
        settings = settings_beside(h.rig, h.api)
        h.config.write_text(render_settings(replace(settings, server=replace(settings.server, socket=str(link)))))
        same = await h.ways("list")
        async with simulated.host() as another:
            there = replace(settings.server, socket=str(another.simulator.socket_path))
            h.config.write_text(render_settings(replace(settings, server=there)))
            elsewhere = await h.run("list", "-f", "json", "--log-level", "debug")
        h.config.write_text(render_settings(replace(settings, server=replace(settings.server, product="lxd"))))
        other = await h.run("list", "--log-level", "debug")
        gone = replace(settings.server, socket=str(tmp_path / "none.socket"))
        h.config.write_text(render_settings(replace(settings, server=gone)))
        nobody = await h.run("list")
    assert same == ASKED
    assert LOOKED in elsewhere.err
    assert elsewhere.data["instances"] == []
    assert LOOKED in other.err
    assert (other.code, nobody.code, nobody.out) == (3, 3, "")


async def test_where_the_api_does_not_answer_well_the_command_looks() -> None:
    async with home() as h:
        settings = settings_beside(h.rig, h.api)
        expected = await h.run("list", "-f", "json", "--window", "0.1")
        socket = h.config.parent / "odd.sock"
        api_settings = replace(settings.api, socket=str(socket))
        h.config.write_text(render_settings(replace(settings, api=api_settings)))
        assert await h.run("list", "-f", "json", "--window", "0.1") == expected
        for text in ("<html>", "{}", '{"server": null}', "[]"):
            async with answering(socket, saying(text)):
                assert await h.ways("list") == LOOKED
                assert await h.ways("explain", "web") == LOOKED
        assert (await h.run("list")).err == ""


async def test_the_picture_has_the_instances_of_the_daemon_of_this_machine() -> None:
    async with home() as h:
        beside = await h.run("topology", "-f", "svg")
        snapshot = await h.run("topology", "-f", "svg", "--sysfs", str(h.rig.simulator.sysfs.parent))
        trees.write_sysfs(h.config.parent / "other" / "sys", builders.machine(nodes=2))
        settings = settings_beside(h.rig, h.api)
        other = replace(settings.host, sysfs=str(h.config.parent / "other" / "sys"))
        h.config.write_text(render_settings(replace(settings, host=other)))
        elsewhere = await h.run("topology", "-f", "svg")
    assert [(one.code, one.err) for one in (beside, snapshot)] == [(0, "")] * 2
    for name in ("web", "db on ", "other/there"):
        assert f">{name}" in beside.out
        assert f">{name}" not in snapshot.out + elsewhere.out
    assert "5 instances" in beside.out
    assert elsewhere.code == 0
