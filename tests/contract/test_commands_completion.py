"""Shells complete commands, options and names of instances: quickly, and without a word where nothing is known."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from incus_numa.model.instance import InstanceKey
from tests.commands import config_file, run
from tests.contract.api_rig import api
from tests.contract.asking_rig import answering, api_config, config_beside, saying
from tests.contract.daemon_rig import QUICK, rig

WITH_PROJECT = (("list",), ("explain",), ("rebalance",), ("release",))
SHELLS = ("bash", "zsh", "fish")


def ask_shell(*words: str | Path, shell: str = "bash") -> subprocess.CompletedProcess[str]:
    """What click answers to a shell that completes the last of the words."""
    line = " ".join(("incus-numa", *map(str, words)))
    asked = {"_INCUS_NUMA_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    return subprocess.run(
        [sys.executable, "-m", "incus_numa"],
        env=dict(os.environ) | asked,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def completed(*words: str | Path, shell: str = "bash") -> list[str]:
    result = ask_shell(*words, shell=shell)
    assert (result.returncode, result.stderr) == (0, "")
    if shell == "zsh":
        # A kind, a text and a description on a line each.
        return result.stdout.splitlines()[1::3]
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


async def completed_beside(*words: str | Path) -> list[str]:
    """The same beside a daemon in this event loop, which may be too slow for it once on a busy host."""
    for _ in range(20):
        if found := await asyncio.to_thread(completed, *words):
            return found
    return []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_asks_for_what_click_answers(shell: str) -> None:
    result = run("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"_INCUS_NUMA_COMPLETE={shell}_complete" in result.out
    assert "%(" not in result.out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_the_script(shell: str) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"needs {shell}")
    assert subprocess.run([path, "-n"], input=run("completion", shell).out, text=True, check=False).returncode == 0


def test_commands_and_options_are_completed() -> None:
    assert completed("po") == ["policy"]
    assert completed("policy", "") == ["get", "set", "unset"]
    assert completed("list", "--win") == ["--window"]
    assert completed("topology", "-f", "t") == ["table", "tree"]


def test_keys_of_the_policy_and_what_they_may_be_are_completed() -> None:
    assert completed("policy", "get", "placement.m") == ["placement.memory"]
    assert completed("policy", "set", "placement.sm") == ["placement.smt=spread", "placement.smt=pack"]
    assert completed("policy", "set", "rebalance.mar", shell="zsh") == ["rebalance.margin="]
    assert completed("policy", "set", "rebalance.j") == []
    assert completed("policy", "set", "rebalance.margin=1", "rebalance.enabled=f") == ["rebalance.enabled=false"]


def test_bash_which_cuts_words_at_the_equals_sign_is_given_what_comes_after_it() -> None:
    assert completed("policy", "set", "rebalance.margin", "=", "1", "placement.smt", "=") == ["spread", "pack"]
    assert completed("policy", "set", "placement.smt", "=", "p") == ["pack"]
    assert completed("policy", "set", "placement.smt", "=", "pack", "placement.s") == [
        "placement.smt=spread",
        "placement.smt=pack",
    ]


async def test_keys_that_were_set_are_completed_where_they_can_be_unset() -> None:
    async with rig() as r, api(r) as served:
        tables = {"placement": {"smt": "pack"}, "rebalance": {"margin": 1.0}}
        await served.unix.ask("/v1/policy", "PUT", tables)
        config = config_beside(r, served)
        found = await completed_beside("policy", "unset", "--config", config, "")
        begun = await completed_beside("policy", "unset", "--config", config, "p")
    assert (found, begun) == (["placement.smt", "rebalance.margin"], ["placement.smt"])
    assert completed("policy", "unset", "") == []


async def test_names_of_running_instances_are_completed() -> None:
    options = type(QUICK)(lock_release_s=(0.0, 0.0), projects={"ci": {}})
    async with rig(options) as r, api(r) as served:
        await r.present("web", 1)
        await r.present("worker", 1)
        await r.present("db", 1)
        await r.start(r.managed("wall", 1, "ci"))
        await r.placed(InstanceKey("ci", "wall"))
        config = config_beside(r, served)
        explain = await completed_beside("explain", "--config", config, "w")
        release = await completed_beside("release", "--config", config, "")
        other = await completed_beside("explain", "--config", config, "--project", "ci", "")
        projects = {one: await completed_beside(*one, "--config", config, "--project", "") for one in WITH_PROJECT}
    assert (explain, release, other) == (["web", "worker"], ["db", "web", "worker"], ["wall"])
    assert projects == {one: ["ci", "default"] for one in WITH_PROJECT}


def test_without_a_daemon_nothing_is_completed_and_nothing_said(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for config in (api_config(tmp_path, tmp_path / "none"), config_file(bad, "[[["), tmp_path / "missing.toml"):
        assert completed("explain", "--config", config, "") == []


async def test_what_is_no_daemon_completes_nothing(tmp_path: Path) -> None:
    for text in ("<html>", "{}", "[1]", '[{"name": 1, "project": "default"}]', '[{"project": "default"}]'):
        async with answering(tmp_path / "s", saying(text)):
            config = api_config(tmp_path, tmp_path / "s")
            assert await asyncio.to_thread(completed, "explain", "--config", config, "") == []


async def test_a_slow_daemon_is_not_waited_for(tmp_path: Path) -> None:
    rows = '[{"name": "web", "project": "default"}]'
    config = api_config(tmp_path, tmp_path / "s")
    async with answering(tmp_path / "s", saying(rows)):
        assert await completed_beside("explain", "--config", config, "") == ["web"]
    async with answering(tmp_path / "s", saying(rows), after_s=1.0):
        assert await asyncio.to_thread(completed, "explain", "--config", config, "") == []


def test_an_unknown_shell_is_2() -> None:
    result = run("completion", "tcsh")
    assert (result.code, result.out) == (2, "")
    assert "'bash', 'zsh', 'fish'" in result.err
