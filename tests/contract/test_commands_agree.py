"""Commands that look themselves beside a daemon go by its policy: what they say is what that daemon would do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cli import running
from incus_numa.settings import DaemonSettings, RebalanceSettings, Settings, render_settings
from tests import builders
from tests.builders import GIB
from tests.commands import Result, run_beside
from tests.contract.api_rig import Api, api
from tests.contract.asking_rig import config_beside, settings_beside
from tests.contract.daemon_rig import QUICK, Rig, Wish, rig

UNMEASURED = Settings(
    daemon=DaemonSettings(resync_s=0.1, verify_s=(0.1,)),
    rebalance=RebalanceSettings(interval_s=3600.0, time_constant_s=3600.0),
)
"""A daemon that will not have measured any load while a test lasts."""

NO_MEMORY = {"memory": {"policy": "static", "reserved_total": "30GiB", "reserved": {"0": "15GiB", "1": "15GiB"}}}


class Home:
    """A host whose daemon has measured no load yet, with two instances that it has placed."""

    def __init__(self, r: Rig, served: Api) -> None:
        self.rig, self.api = r, served
        # The file that the daemon says it was started with.
        self.config = config_beside(r, served).rename(served.policy_file.with_name("config.toml"))

    async def steer(self, tables: Any) -> None:
        found = await self.api.unix.ask("/v1/policy", "PUT", tables)
        assert found.status == 200, found

    async def run(self, *words: str | Path) -> Result:
        return await run_beside(*words, "-f", "json", "--config", self.config)

    async def states(self, *words: str) -> dict[str, str]:
        return {one["name"]: one["state"] for one in (await self.run("list", *words)).data["instances"]}

    async def told(self) -> dict[str, str]:
        return {one["name"]: one["state"] for one in await self.api.unix.get("/v1/instances")}

    async def checked(self) -> tuple[set[tuple[str, str]], str]:
        """Severities and codes of what is found about settings, and what is said besides."""
        with running.locked(settings_beside(self.rig, self.api).daemon):
            found = await self.run("check")
        # The daemon of the rig logs in this process, too.
        said = "".join(line for line in found.err.splitlines(keepends=True) if not line.startswith("WARNING "))
        return {(one["severity"], one["code"]) for one in found.data if one["about"] == "settings"}, said


@asynccontextmanager
async def _home() -> AsyncIterator[Home]:
    machine = builders.machine(nodes=2, cpus_per_node=8, memory_bytes=16 * GIB)
    async with rig(QUICK, machine, Wish(settings=UNMEASURED)) as r, api(r) as served:
        for name in ("web", "db"):
            await r.present(name, 2, limits_memory="4GiB")
        yield Home(r, served)


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    async with _home() as found:
        yield found


@pytest.mark.parametrize("words", [(), ("--window", "0"), ("--window", "0.1")])
async def test_list_and_explain_refuse_what_the_daemon_refuses(home: Home, words: tuple[str, ...]) -> None:
    before = await home.states(*words)
    await home.steer(NO_MEMORY)
    states, told = await home.states(*words), await home.told()
    explained = await home.run("explain", "web", *words)
    assert before == {"web": "placed", "db": "placed"}
    assert states == told == {"web": "refused: no-memory", "db": "refused: no-memory"}
    assert (explained.code, explained.data["state"]) == (4, "refused: no-memory")


async def test_check_goes_by_the_policy_that_was_set_and_says_so(home: Home) -> None:
    before = await home.checked()
    await home.steer(NO_MEMORY)
    found, said = await home.checked()
    assert before == (set(), "no problem found\n")
    assert ("warning", "nobody-placed") in found
    assert said.startswith("Note: set by `policy set`, over ")
    assert said.endswith(": memory.policy, memory.reserved_total, memory.reserved\n")


async def test_check_tells_that_what_was_set_leaves_too_few_cpus(home: Home) -> None:
    await home.steer({"placement": {"reserved_cpus": "0-14"}})
    found, said = await home.checked()
    assert found == {("warning", "few-usable-cpus")}
    assert said.endswith(": placement.reserved_cpus\n")
    await home.steer({"placement": {"reserved_cpus": "0-13"}})
    assert (await home.checked())[0] == set()


async def test_check_of_another_file_goes_by_that_file_alone(home: Home, tmp_path: Path) -> None:
    await home.steer(NO_MEMORY)
    other = tmp_path / "new.toml"
    other.write_text(home.config.read_text())
    home.config = other
    assert await home.checked() == (set(), "no problem found\n")


async def test_a_daemon_of_another_server_steers_nobody(home: Home) -> None:
    await home.steer(NO_MEMORY)
    settings = settings_beside(home.rig, home.api)
    home.config.write_text(render_settings(replace(settings, server=replace(settings.server, product="incus"))))
    same = await home.states("--window", "0")
    home.config.write_text(render_settings(replace(settings, api=replace(settings.api, enabled=False))))
    alone = await home.states("--window", "0")
    assert same == {"web": "refused: no-memory", "db": "refused: no-memory"}
    assert alone == {"web": "placed", "db": "placed"}
