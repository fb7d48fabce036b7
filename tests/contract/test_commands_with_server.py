"""The same against servers, good and bad, and as a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.commands import config_file, is_clean, run, run_beside, server_config, write_config
from tests.contract import simulated
from tests.contract.simulated import Host
from tests.contract.small_server import INFO, INSTANCE, SmallServer, html, refused, sync

BALANCED = {"limits.cpu.nodes": "balanced"}
SERVER_COMMANDS = (("list",), ("explain", "db"), ("check",), ("rebalance",), ("rebalance", "--dry-run"))


@pytest.mark.parametrize("words", SERVER_COMMANDS)
def test_no_server_is_3_and_says_what_was_tried(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run(*words, "--config", server_config(tmp_path, tmp_path / "none.socket"))
    assert result.code == 3
    assert f"{tmp_path}/none.socket (does not exist)" in result.err
    assert is_clean(result)


def test_something_that_is_no_socket_is_3(tmp_path: Path) -> None:
    result = run("list", "--config", server_config(tmp_path, config_file(tmp_path, "")))
    assert (result.code, result.out) == (3, "")
    assert "is not a socket" in result.err


def test_a_socket_that_nobody_listens_on_is_3(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
        result = run("list", "--config", server_config(tmp_path, tmp_path / "s"))
    assert (result.code, result.out) == (3, "")
    assert "nothing listens there" in result.err


def test_check_tells_about_the_host_even_without_a_server(tmp_path: Path) -> None:
    result = run("check", "-f", "json", "--config", server_config(tmp_path, tmp_path / "none.socket"))
    assert result.code == 3
    assert {one["about"] for one in result.data} == {"host"}


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[SmallServer]:
    server = SmallServer(tmp_path)
    await server.start()
    yield server
    await server.runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (lambda: refused(403, "not authorized"), 3, "incus-admin"),
        (html, 1, "expected"),
        (lambda: sync({"environment": {}}), 1, "server"),
        (lambda: sync({**INFO, "environment": {"server": "podman", "server_version": "1"}}), 1, "podman"),
        (lambda: refused(500, "database is broken"), 1, "database is broken"),
    ],
    ids=["forbidden", "html", "fields", "stranger", "error"],
)
async def test_a_server_that_answers_badly(
    small: SmallServer, tmp_path: Path, answer: Any, code: int, says: str
) -> None:
    small.answers["GET /1.0"] = answer
    result = await run_beside("list", "-f", "json", "--config", server_config(tmp_path, small.path))
    assert (result.code, result.out) == (code, "")
    assert says in result.err
    assert is_clean(result)


async def test_a_server_that_cuts_the_connection_is_3(small: SmallServer, tmp_path: Path) -> None:
    small.cut.add("GET /1.0/instances")
    result = await run_beside("list", "--config", server_config(tmp_path, small.path))
    assert result.code == 3
    assert is_clean(result)


async def test_one_broken_instance_hides_no_other(small: SmallServer, tmp_path: Path) -> None:
    result = await run_beside("list", "-f", "json", "--config", server_config(tmp_path, small.path))
    assert [row["name"] for row in result.data["instances"]] == ["c1"]
    assert "broken" in result.err
    assert is_clean(result)


async def test_check_leaves_out_what_is_on_other_cluster_members(small: SmallServer, tmp_path: Path) -> None:
    names = {"server": "incus", "server_version": "6.0.4"}
    environment = {**names, "server_clustered": True, "server_name": "one"}
    small.answers["GET /1.0"] = lambda: sync({**INFO, "environment": environment})
    both = [
        {**INSTANCE, "name": name, "location": member, "expanded_config": {"limits.cpu": "a lot"}}
        for name, member in (("here", "one"), ("there", "two"))
    ]
    small.answers["GET /1.0/instances"] = lambda: sync(both)
    result = await run_beside("check", "-f", "json", "--config", server_config(tmp_path, small.path))
    assert {one["about"] for one in result.data} - {"host", "server", "daemon"} == {"web/here"}


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with simulated.host(SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)) as running:
        yield running


async def test_a_pass_that_places_is_0_and_a_second_has_nothing_to_do(host: Host) -> None:
    key = host.simulator.create("db", {"limits.cpu": "6", "limits.memory": "1GiB", **BALANCED})
    await host.simulator.start(key)
    file = write_config(host.simulator)
    planned = await run_beside("rebalance", "--dry-run", "-f", "json", "--config", file)
    assert planned.code == 0
    assert {step["result"] for step in planned.data} == {"would do"}
    assert host.cpus(key) == CpuSet()
    done = await run_beside("rebalance", "-f", "json", "--config", file)
    assert (done.code, {step["result"] for step in done.data}) == (0, {"done"})
    assert len(host.cpus(key)) == 6
    again = await run_beside("rebalance", "-f", "json", "--config", file)
    assert (again.code, again.data) == (0, [])


async def test_a_refused_instance_is_4_and_is_left_alone(host: Host) -> None:
    key = host.simulator.create("db", {"limits.cpu": "2", "user.numa.memory": "glued", **BALANCED})
    await host.simulator.start(key)
    result = await run_beside("rebalance", "-f", "json", "--config", write_config(host.simulator))
    assert result.code == 4
    assert [(one["instance"], one["result"], one["reason"]) for one in result.data] == [("db", "refused", "bad-key")]
    assert host.cpus(key) == CpuSet()


async def test_a_container_whose_cgroup_cannot_be_read_is_1(host: Host) -> None:
    key = host.simulator.create("db", {"limits.cpu": "2", "limits.memory": "1GiB", **BALANCED})
    await host.simulator.start(key)
    config = write_config(host.simulator)
    file = host.path(key, "cpuset.cpus")
    away = file.rename(file.with_name("away"))
    result = await run_beside("rebalance", "-f", "json", "--config", config)
    check = await run_beside("check", "-f", "json", "--config", config)
    away.rename(file)
    assert result.code == 1
    assert result.err.startswith("Error: db: its cgroup was not found")
    assert (check.code, [one["about"] for one in check.data]) == (4, ["daemon", "db"])


async def test_where_cgroups_cannot_be_set_nothing_is_changed_and_it_is_1(host: Host) -> None:
    key = host.simulator.create("db", {"limits.cpu": "2", "limits.memory": "1GiB", **BALANCED})
    await host.simulator.start(key)
    config = write_config(host.simulator)
    before = dict(host.simulator.incus.get(key).config)
    file = host.simulator.cgroup / "cgroup.controllers"
    had = file.read_text()
    file.write_text("cpu memory\n")
    result = await run_beside("rebalance", "--config", config)
    dry = await run_beside("rebalance", "--dry-run", "--config", config)
    file.write_text(had)
    assert (result.code, result.out) == (1, "")
    assert (host.simulator.incus.get(key).config, host.cpus(key)) == (before, CpuSet())
    assert result.err.startswith("Error: the kernel offers no cpuset controller")
    assert dry.code == 0


async def test_what_a_project_forbids_is_4_and_the_cgroup_is_set_all_the_same(host: Host) -> None:
    host.simulator.set_project("locked", {})
    config = {"limits.cpu": "2", "limits.memory": "1GiB", "user.limits.cpu.nodes": "balanced"}
    key = host.simulator.create("db", config, project="locked")
    await host.simulator.start(key)
    host.simulator.set_project("locked", {"restricted": "true"})
    result = await run_beside("rebalance", "-f", "json", "--config", write_config(host.simulator))
    assert result.code == 4
    assert {one["result"] for one in result.data} == {"forbidden", "done"}
    assert len(host.cpus(key)) == 2


async def test_only_the_named_project_is_touched(host: Host) -> None:
    host.simulator.set_project("ci", {})
    for project in ("default", "ci"):
        config = {"limits.cpu": "2", "limits.memory": "1GiB", **BALANCED}
        await host.simulator.start(host.simulator.create("job", config, project=project))
    result = await run_beside("rebalance", "--project", "ci", "--config", write_config(host.simulator))
    assert result.code == 0
    assert host.cpus(InstanceKey("ci", "job"))
    assert not host.cpus(InstanceKey("default", "job"))


@pytest.mark.parametrize("output_format", ["table", "json"])
async def test_a_project_in_which_nothing_runs_is_told_with_those_in_which_something_does(
    host: Host, output_format: str
) -> None:
    host.simulator.set_project("ci", {})
    await host.simulator.start(host.simulator.create("db", {"limits.cpu": "1"}))
    words = ("list", "--window", "0", "-f", output_format, "--config", write_config(host.simulator))
    result = await run_beside(*words, "--project", "ci")
    assert (result.code, result.err) == (0, "no instance runs in project ci, but in default\n")
    assert (await run_beside(*words)).err == ""


@pytest.mark.parametrize(
    "words", [("list", "--window", "0"), ("explain", "db"), ("rebalance",), ("release",), ("release", "db")]
)
async def test_a_project_that_there_is_not_is_1_and_those_that_there_are_are_named(
    host: Host, words: tuple[str, ...]
) -> None:
    host.simulator.set_project("ci", {})
    result = await run_beside(*words, "--project", "nosuch", "--config", write_config(host.simulator))
    assert (result.code, result.out) == (1, "")
    assert result.err == "Error: there is no project 'nosuch', but ci, default\n"


async def test_where_projects_cannot_be_listed_any_may_be_there(small: SmallServer, tmp_path: Path) -> None:
    small.answers["GET /1.0/projects"] = lambda: refused(500, "no")
    config = server_config(tmp_path, small.path)
    result = await run_beside("list", "--window", "0", "--project", "nosuch", "-f", "json", "--config", config)
    assert (result.code, result.data["instances"]) == (0, [])


async def test_without_the_servers_list_of_cpus_the_kernels_is_counted(host: Host, tmp_path: Path) -> None:
    """Offline CPUs count for the server: 12 of 16 online, 4 nodes, 16 vCPUs fit."""
    host.simulator.create("wide", {"limits.cpu": "16", **BALANCED})
    for cpu in (3, 7, 11, 15):
        host.simulator.offline_cpu(cpu)
    result = await run_beside("check", "-f", "json", "--config", write_config(host.simulator))
    assert [one for one in result.data if one["severity"] == "danger"] == []
    host.simulator.create("wider", {"limits.cpu": "17", **BALANCED, "user.numa.policy": "typing error"})
    result = await run_beside("check", "-f", "json", "--config", write_config(host.simulator))
    assert [one["about"] for one in result.data if one["severity"] == "danger"] == ["wider"]
    assert result.code == 4


async def test_a_newer_server_does_not_crash() -> None:
    options = SimulatorOptions(version="7.0.2", panics=False, balances=False)
    async with simulated.host(options, builders.machine()) as host:
        host.simulator.create("wide", {"limits.cpu": "64", **BALANCED})
        result = await run_beside("check", "-f", "json", "--config", write_config(host.simulator))
        assert [one for one in result.data if one["severity"] == "danger"] == []


# The process


def process(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    return subprocess.run(
        [sys.executable, "-m", "incus_numa", *map(str, words)],
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more),
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )


def test_the_version_needs_no_libraries_but_click() -> None:
    """Start-up time is measured by `make bench`; this is what it depends on."""
    code = (
        "import sys; sys.argv = ['incus-numa', '--version']\n"
        "from incus_numa.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'aiohttp', 'pylxd', 'rich', 'yaml', 'msgspec', 'asyncio', 'toml'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[0].startswith("incus-numa, version ")
    assert shown.splitlines()[1] == "[]"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = process("topology", stdout=writing)
    os.close(writing)
    assert result.stderr == ""


def test_a_full_disk_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        result = process("topology", stdout=full)
    assert (result.returncode, result.stderr) == (
        1,
        "Error: cannot write to standard output: No space left on device\n",
    )


@pytest.mark.parametrize("mode", ["w", "a"])
def test_settings_are_not_shown_in_the_file_that_they_are_read_from(tmp_path: Path, mode: str) -> None:
    file = config_file(tmp_path, '[placement]\nsmt = "pack"\n')
    with file.open(mode) as itself:
        result = process("config", "show", "--config", file, stdout=itself)
    assert (result.returncode, file.read_text()) == (2, "" if mode == "w" else '[placement]\nsmt = "pack"\n')
    assert result.stderr.startswith(f"Error: {file}: standard output is this very file")
    with (tmp_path / "new.toml").open("w") as other:
        assert process("config", "show", "--config", file, stdout=other).returncode == 0


def test_the_demo_ends_by_itself_and_prints_data_alone() -> None:
    result = process("demo", "-f", "json")
    assert result.returncode == 0
    summary = json.loads(result.stdout)["summary"]
    assert summary["incus_numa"]["busiest_node"] <= summary["server"]["busiest_node"]
    assert "Traceback" not in result.stderr
