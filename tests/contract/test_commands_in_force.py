"""Commands decide by what is in force: the usual file with what `policy set` keeps over it, or a file that is named.

The usual file is one of the host: commands run as processes of their own, for which another folder is mounted at /etc.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from incus_numa.settings import parse_settings, render_settings
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.topology import document
from tests import builders
from tests.commands import Result, write_config
from tests.contract import simulated

USUAL = "/etc/incus-numa/config.toml"
NOTE = f"Note: set by `policy set`, over {USUAL}: placement.smt"
OPTIONS = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)


def _has_namespaces() -> bool:
    """Whether a process may have mounts of its own."""
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode
    )


pytestmark = pytest.mark.skipif(not _has_namespaces(), reason="needs to be allowed mounts of its own (unshare -m)")


@dataclass(frozen=True, kw_only=True)
class Home:
    """A host without a daemon: its configuration is the usual one for the commands that run here."""

    folder: Path

    @property
    def policy_file(self) -> Path:
        return self.folder / "policy.json"

    @property
    def config(self) -> Path:
        return self.folder / "etc" / "incus-numa" / "config.toml"

    def keep(self, **tables: Any) -> None:
        """What `policy set` has left behind."""
        self.policy_file.write_text(json.dumps(tables))

    async def state(self, *words: str | Path) -> str:
        """The state of the only instance, as a command has it that lists instances."""
        state: str = (await self.run(*words, "-f", "json")).data["instances"][0]["state"]
        return state

    async def run(self, *words: str | Path) -> Result:
        """A command that finds the configuration where it usually is."""
        program = [sys.executable, "-m", "incus_numa", *map(str, words)]
        etc = str(self.folder / "etc")
        command = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc && exec "$@"', etc, *program]
        environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False, timeout=60, env=environment
        )
        return Result(code=done.returncode, out=done.stdout, err=done.stderr)


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    async with _home() as found:
        yield found


@asynccontextmanager
async def _home() -> AsyncIterator[Home]:
    """A machine of two threads a core with one instance of two vCPUs, which `smt` spreads over cores or packs."""
    async with simulated.host(OPTIONS, builders.machine()) as running:
        wants = {"limits.cpu": "2", "limits.memory": "1GiB", "limits.cpu.nodes": "balanced"}
        await running.simulator.start(running.simulator.create("web", wants))
        folder = running.simulator.socket_path.parent
        found, path = Home(folder=folder), write_config(running.simulator)
        settings = parse_settings(path.read_text())
        found.config.parent.mkdir(parents=True)
        api = replace(settings.api, socket=str(folder / "none.sock"), policy_file=str(found.policy_file))
        found.config.write_text(render_settings(replace(settings, api=api)))
        yield found


def offline(folder: Path) -> tuple[str | Path, ...]:
    (folder / "m.json").write_text(json.dumps(document.render_machine(builders.machine())))
    (folder / "i.json").write_text('[{"name": "web", "vcpus": 2}]')
    return ("--machine", folder / "m.json", "--instances", folder / "i.json", "-f", "json")


async def test_rebalance_and_explain_decide_by_the_policy_that_was_set(home: Home) -> None:
    spread = (await home.run("explain", "web", "-f", "json")).data["decision"]["cpus"]
    home.keep(placement={"smt": "pack"})
    packed = await home.run("explain", "web", "-f", "json")
    by_file = await home.run("explain", "web", "-f", "json", "--config", home.config)
    done = await home.run("rebalance", "--dry-run", "-f", "json")
    named = await home.run("rebalance", "--dry-run", "-f", "json", "--config", home.config)
    assert packed.data["decision"]["cpus"] != spread == by_file.data["decision"]["cpus"]
    assert (packed.err, by_file.err, named.err) == ("", "", "")
    assert packed.data["decision"]["cpus"] in json.dumps(done.data)
    assert spread in json.dumps(named.data)
    assert done.err == f"{NOTE}\n"


async def test_plan_and_list_and_check_and_top_go_by_it(home: Home) -> None:
    words = offline(home.folder)
    spread = (await home.run("plan", *words)).data["placements"][0]["cpus"]
    assert (await home.run("rebalance", "--window", "0")).code == 0
    before = [await home.state("list"), await home.state("top")]
    home.keep(placement={"smt": "pack", "memory": "none"})
    after = [await home.state("list"), await home.state("top")]
    by_name = [await home.state(one, "--config", home.config) for one in ("list", "top")]
    planned = await home.run("plan", *words)
    by_file = await home.run("plan", *words, "--settings", home.config)
    checked = await home.run("check", "-f", "json")
    assert planned.data["placements"][0]["cpus"] != spread == by_file.data["placements"][0]["cpus"]
    assert (planned.err, by_file.err) == (f"{NOTE}, placement.memory\n", "")
    assert NOTE in checked.err
    assert (before, after, by_name) == (["placed"] * 2, ["differs"] * 2, ["placed"] * 2)


@pytest.mark.parametrize("kept", ["{", "[]", '{"placement": {"smt": "other"}}', '{"server": {"socket": "/x"}}'])
async def test_a_bad_policy_is_told_and_left_out_as_the_daemon_does(home: Home, kept: str) -> None:
    spread = (await home.run("plan", *offline(home.folder))).data
    home.policy_file.write_text(kept)
    result = await home.run("plan", *offline(home.folder))
    checked = await home.run("config", "check")
    by_file = await home.run("config", "check", "--config", home.config)
    assert result.data["placements"] == spread["placements"]
    assert result.err.startswith("Warning: left out of the policy that was set: ")
    assert str(home.policy_file) in result.err
    assert (checked.code, by_file.code) == (2, 0)
    assert checked.err.startswith(f"Error: {home.policy_file}: ")


async def test_reservations_that_do_not_fit_are_left_out_and_the_rest_of_the_policy_holds(home: Home) -> None:
    memory = {"policy": "static", "reserved_total": "1TiB", "reserved": {"0": "1TiB"}}
    home.keep(memory=memory, placement={"smt": "pack"})
    result = await home.run("rebalance", "--dry-run")
    checked = await home.run("config", "check")
    assert result.code == 0
    assert "Warning: left out of the policy that was set: " in result.err
    assert NOTE in result.err
    assert (checked.code, str(home.policy_file) in checked.err) == (2, True)


async def test_config_show_is_the_file_and_says_what_is_over_it(home: Home) -> None:
    alone = await home.run("config", "show")
    home.keep(placement={"smt": "pack"})
    shown = await home.run("config", "show")
    fine = await home.run("config", "check")
    assert (shown.out, shown.err, alone.err) == (alone.out, f"{NOTE}\n", "")
    assert (fine.code, fine.err) == (0, f"{USUAL}: no problem found\n")


async def test_check_finds_what_is_left_out_of_the_policy(home: Home) -> None:
    home.keep(placement={"smt": "other", "memory": "none"})
    result = await home.run("check", "-f", "json")
    by_file = await home.run("check", "-f", "json", "--config", home.config)
    found = [one["finding"] for one in result.data if one["code"] == "bad-setting"]
    why = "placement.smt = 'other': expected one of spread, pack"
    assert (result.code, found) == (4, [f"left out of the policy that was set: {home.policy_file}: {why}"])
    assert [one for one in by_file.data if one["code"] == "bad-setting"] == []
