"""`release`: nothing of ours is left on an instance, and a daemon that would place it again at once is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from incus_numa.cli import running
from incus_numa.cpuset import CpuSet
from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import DaemonSettings
from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.commands import config_file, is_clean, run, run_beside, write_config
from tests.contract import simulated
from tests.contract.simulated import Host

ALL_CPUS = CpuSet(range(16))


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    options = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)
    async with simulated.host(options, builders.machine()) as running_host:
        yield running_host


async def placed(host: Host, *names: str, project: str = "default") -> tuple[Path, list[InstanceKey]]:
    """Instances that a pass has placed, and the configuration that leads to them."""
    keys = []
    for name in names:
        wants = {"limits.cpu": "2", "limits.memory": "1GiB", "limits.cpu.nodes": "balanced"}
        keys.append(host.simulator.create(name, wants, project=project))
        await host.simulator.start(keys[-1])
    config = write_config(host.simulator)
    assert (await run_beside("rebalance", "--config", config)).code == 0
    return config, keys


def has(host: Host, key: InstanceKey) -> tuple[CpuSet, str]:
    return host.cpus(key), host.path(key, "cpuset.mems").read_text().strip()


def is_marked(host: Host, key: InstanceKey) -> bool:
    return "trusted.incus_numa" in os.listxattr(host.path(key, "."))


async def test_one_instance_is_handed_back_and_others_stay(host: Host) -> None:
    config, (web, db) = await placed(host, "web", "db")
    before = has(host, db)
    result = await run_beside("release", "web", "--config", config, "-f", "json")
    assert (result.code, {row["result"] for row in result.data}) == (0, {"done"})
    assert {row["instance"] for row in result.data} == {"web"}
    assert (has(host, web), is_marked(host, web)) == ((ALL_CPUS, "0-3"), False)
    assert (has(host, db), is_marked(host, db)) == (before, True)
    assert result.err.startswith("Note: web may be placed again by the next pass")


async def test_what_was_written_is_told_and_memory_that_may_be_anywhere_is_listed_as_not_bound(host: Host) -> None:
    config, (web,) = await placed(host, "web")
    cpus, mems = has(host, web)
    result = await run_beside("release", "--config", config, "-f", "json")
    assert [row["step"] for row in result.data] == [
        f"cpuset.cpus={ALL_CPUS} was={cpus}",
        f"cpuset.mems=0-3 was={mems}",
    ]
    (row,) = (await run_beside("list", "--window", "0", "--config", config, "-f", "json")).data["instances"]
    assert (row["mems"], row["state"]) == (None, "differs")


async def test_all_are_handed_back_and_a_second_time_there_is_nothing(host: Host) -> None:
    config, keys = await placed(host, "web", "db")
    result = await run_beside("release", "--config", config)
    assert result.code == 0
    assert [line for line in result.out.splitlines() if not line.startswith(" ")] == [
        "db: handed back",
        "web: handed back",
    ]
    assert [(has(host, key), is_marked(host, key)) for key in keys] == [((ALL_CPUS, "0-3"), False)] * 2
    again = await run_beside("release", "--config", config, "-f", "json")
    assert (again.code, again.data, again.err) == (0, [], "")


async def test_a_project_limits_it(host: Host) -> None:
    host.simulator.set_project("ci", {})
    _, (other,) = await placed(host, "web")
    config, (job,) = await placed(host, "job", project="ci")
    assert (await run_beside("release", "--project", "ci", "--config", config)).code == 0
    assert [is_marked(host, key) for key in (other, job)] == [True, False]


async def test_a_dry_run_changes_nothing(host: Host) -> None:
    config, (web,) = await placed(host, "web")
    before = has(host, web)
    result = await run_beside("release", "--dry-run", "--config", config, "-f", "json")
    assert (result.code, {row["result"] for row in result.data}) == (0, {"would do"})
    assert (has(host, web), is_marked(host, web)) == (before, True)


async def test_a_dry_run_is_allowed_while_the_daemon_runs_and_says_what_would_be_refused(host: Host) -> None:
    config, (web,) = await placed(host, "web")
    before = has(host, web)
    with running.locked(DaemonSettings(run_dir=str(config.parent / "run"))):
        result = await run_beside("release", "--dry-run", "--config", config, "-f", "json")
    assert (result.code, {row["result"] for row in result.data}) == (0, {"would do"})
    assert result.err.startswith(f"Note: this would be refused now: the daemon runs (pid {os.getpid()})")
    assert (has(host, web), is_marked(host, web)) == (before, True)


async def test_what_was_widened_by_others_is_forgotten_all_the_same(host: Host) -> None:
    config, (web,) = await placed(host, "web")
    host.path(web, "cpuset.cpus").write_text("0-15\n")
    host.path(web, "cpuset.mems").write_text("0-3\n")
    host.simulator.settle()
    result = await run_beside("release", "--config", config, "-f", "json")
    assert [(row["instance"], row["step"], row["result"]) for row in result.data] == [("web", None, "done")]
    assert not is_marked(host, web)


async def test_what_is_not_ours_is_left_alone(host: Host) -> None:
    config, _ = await placed(host)
    key = host.simulator.create("own", {"limits.cpu": "2-3"})
    await host.simulator.start(key)
    before = has(host, key)
    result = await run_beside("release", "own", "--config", config, "-f", "json")
    assert (result.code, result.data, has(host, key)) == (0, [], before)


async def test_an_instance_that_does_not_run_is_1_and_says_so(host: Host) -> None:
    config, _ = await placed(host)
    host.simulator.create("idle", {})
    idle = await run_beside("release", "idle", "--config", config)
    nobody = await run_beside("release", "nobody", "--config", config)
    assert [(one.code, one.out) for one in (idle, nobody)] == [(1, ""), (1, "")]
    assert "idle does not run" in idle.err
    assert "no instance nobody in project default" in nobody.err


async def test_managed_instances_are_not_released_while_the_daemon_runs(host: Host) -> None:
    config, (web,) = await placed(host, "web")
    before = has(host, web)
    with running.locked(DaemonSettings(run_dir=str(config.parent / "run"))):
        refused = await run_beside("release", "--config", config)
        # One that is no longer managed is the daemon's to release, but doing it twice does no harm.
        host.simulator.set_config(web, {"limits.cpu.nodes": ""})
        done = await run_beside("release", "--config", config)
    assert (refused.code, refused.out) == (1, "")
    assert f"the daemon runs (pid {os.getpid()}) and would place web again at once" in refused.err
    assert before != has(host, web)
    assert (done.code, done.err) == (0, "")
    assert is_clean(refused)


# The lock


def test_a_second_daemon_is_1_and_names_the_first(tmp_path: Path) -> None:
    config = config_file(tmp_path, f'[daemon]\nrun_dir = "{tmp_path}/run"\n')
    with running.locked(DaemonSettings(run_dir=f"{tmp_path}/run")):
        result = run("daemon", "--config", config)
    assert (result.code, result.out) == (1, "")
    assert f"a daemon runs with pid {os.getpid()} already" in result.err
    assert is_clean(result)


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    settings = DaemonSettings(run_dir=str(tmp_path))
    code = (
        "import sys\nfrom incus_numa.cli import running\nfrom incus_numa.settings import DaemonSettings\n"
        "with running.locked(DaemonSettings(run_dir=sys.argv[1])):\n print('locked', flush=True)\n sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert running.find_daemon(settings) == f"pid {other.pid}"
        with pytest.raises(ReportError, match=f"pid {other.pid}"), running.locked(settings):
            pass
        other.kill()
    assert running.find_daemon(settings) is None
    with running.locked(settings):
        assert running.find_daemon(settings) == f"pid {os.getpid()}"


def test_without_a_place_for_the_lock_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = DaemonSettings(run_dir=str(tmp_path / "file" / "run"))
    with running.locked(settings), running.locked(settings):
        assert running.find_daemon(settings) is None
