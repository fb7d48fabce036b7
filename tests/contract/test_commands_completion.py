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


def completed(*words: str | Path) -> list[str]:
    result = ask_shell(*words)
    assert (result.returncode, result.stderr) == (0, "")
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


def test_bash_completes_by_the_script(tmp_path: Path) -> None:
    program = tmp_path / "incus-numa"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m incus_numa "$@"\n')
    program.chmod(0o755)
    text = (
        'eval "$(incus-numa completion bash)"\nCOMP_WORDS=(incus-numa top) COMP_CWORD=1\n'
        '_incus_numa_completion incus-numa\necho "${COMPREPLY[@]}"\n'
    )
    environment = dict(os.environ) | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "--norc"], input=text, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.stdout, result.stderr) == ("top topology\n", "")


def test_commands_and_options_are_completed() -> None:
    assert completed("po") == ["policy"]
    assert completed("policy", "") == ["get", "set"]
    assert completed("list", "--win") == ["--window"]
    assert completed("topology", "-f", "t") == ["table", "tree"]


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
    assert (explain, release, other) == (["web", "worker"], ["db", "web", "worker"], ["wall"])


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
