"""The systemd units: what a host needs of them, and that the commands they start exist."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click
import pytest

from incus_numa.cli.main import group
from incus_numa.settings import DaemonSettings, RebalanceSettings

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = ("incus-numa.service", "incus-numa-rebalance.service", "incus-numa-rebalance.timer")
SERVERS = {"incus.service", "lxd.service", "snap.lxd.daemon.service"}

Unit = dict[str, dict[str, list[str]]]


def parse_unit(text: str) -> Unit:
    """Sections, keys and all values given to each; raises ValueError for a line that systemd would not accept."""
    unit: Unit = {}
    section: dict[str, list[str]] | None = None
    for line in text.splitlines():
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if line.startswith("[") and line.endswith("]"):
            section = unit.setdefault(line[1:-1], {})
            continue
        name, equals, value = line.partition("=")
        if section is None or not equals or not name.isalnum():
            raise ValueError(f"bad line {line!r}")
        section.setdefault(name, []).append(value)
    return unit


def read_unit(name: str) -> Unit:
    return parse_unit((SYSTEMD / name).read_text())


def words(unit: Unit, section: str, key: str) -> list[str]:
    return " ".join(unit[section].get(key, [])).split()


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_parses_and_describes_itself(name: str) -> None:
    assert words(read_unit(name), "Unit", "Description")


def test_there_is_no_other_unit() -> None:
    assert {path.name for path in SYSTEMD.iterdir()} == set(UNITS)


def test_the_service_is_supervised() -> None:
    service = read_unit("incus-numa.service")["Service"]
    assert service["Type"] == ["notify"]
    assert service["Restart"] == ["on-failure"]
    assert int(service["WatchdogSec"][0]) >= 10
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


@pytest.mark.parametrize("name", ["incus-numa.service", "incus-numa-rebalance.service"])
def test_a_service_comes_after_every_server_there_may_be(name: str) -> None:
    unit = read_unit(name)
    assert set(words(unit, "Unit", "After")) >= SERVERS
    # A unit that is not installed must not keep ours from starting.
    assert not words(unit, "Unit", "Requires")


@pytest.mark.parametrize("name", ["incus-numa.service", "incus-numa-rebalance.service"])
def test_a_service_starts_a_command_that_exists(name: str) -> None:
    _, program, command, *options = words(read_unit(name), "Service", "ExecStart")
    assert program == "incus-numa"
    parent = click.Context(group, **group.context_settings)
    found = group.get_command(parent, command)
    assert found is not None
    found.make_context(command, list(options), parent=parent)


@pytest.mark.parametrize("name", ["incus-numa.service", "incus-numa-rebalance.service"])
def test_the_journal_of_moves_has_a_folder(name: str) -> None:
    folder = Path("/var/lib") / words(read_unit(name), "Service", "StateDirectory")[0]
    assert Path(RebalanceSettings().journal).parent == folder


def test_only_the_daemon_has_the_folder_of_its_lock() -> None:
    """systemd removes it when the unit ends, which would take the lock from under a daemon that runs."""
    folder = Path("/run") / words(read_unit("incus-numa.service"), "Service", "RuntimeDirectory")[0]
    assert Path(DaemonSettings().run_dir) == folder
    assert "RuntimeDirectory" not in read_unit("incus-numa-rebalance.service")["Service"]


def test_a_refused_instance_does_not_fail_the_one_shot_service() -> None:
    unit = read_unit("incus-numa-rebalance.service")
    assert unit["Service"]["Type"] == ["oneshot"]
    assert words(unit, "Service", "SuccessExitStatus") == ["4"]


def test_the_service_is_started_at_boot_and_the_timer_with_timers() -> None:
    assert words(read_unit("incus-numa.service"), "Install", "WantedBy") == ["multi-user.target"]
    assert words(read_unit("incus-numa-rebalance.timer"), "Install", "WantedBy") == ["timers.target"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_unit(name: str) -> None:
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(SYSTEMD / name)], capture_output=True, text=True, check=False
    )
    ours = [line for line in verified.stderr.splitlines() if "incus-numa" in line]
    assert ours == []
