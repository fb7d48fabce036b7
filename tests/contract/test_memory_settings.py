"""Memory kept for the host: every command and the daemon refuse what the machine cannot keep."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.daemon.observe import World
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.virtual import VirtualMachines
from incus_numa.server.http_server import HttpServer
from incus_numa.settings import (
    HostSettings,
    MemorySettings,
    PlacementSettings,
    Reservation,
    Settings,
    render_settings,
)
from incus_numa.simulator import trees
from incus_numa.topology import document
from tests import builders
from tests.builders import GIB
from tests.commands import config_file, run, run_beside, write_config
from tests.contract import simulated
from tests.contract.daemon_rig import eventually, rig

FITS = MemorySettings(policy="static", reserved_total=3 * GIB, reserved=(Reservation(0, 2 * GIB), Reservation(1, GIB)))
TOO_MUCH = replace(FITS, reserved_total=65 * GIB, reserved=(Reservation(0, 33 * GIB), Reservation(7, 32 * GIB)))
MISFITS = ("memory.reserved.0 = 35433480192 bytes (33 GiB): node 0 has", "this machine has no node 7, only 0-3")


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    trees.write_sysfs(tmp_path / "host/sys", builders.machine())
    return tmp_path / "host/sys"


def written(folder: Path, memory: MemorySettings, sysfs: Path | str = "/nowhere") -> Path:
    return config_file(folder, render_settings(Settings(memory=memory, host=HostSettings(sysfs=str(sysfs)))))


@pytest.mark.parametrize("words", [("config", "check"), ("daemon",), ("rebalance",), ("rebalance", "--dry-run")])
def test_what_this_host_cannot_keep_is_2(tmp_path: Path, sysfs: Path, words: tuple[str, ...]) -> None:
    file = written(tmp_path, TOO_MUCH, sysfs)
    result = run(*words, "--config", file)
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert [part in line for part, line in zip(MISFITS, lines, strict=True)] == [True, True]
    assert all(line.startswith(f"Error: {file}: memory.reserved.") for line in lines)


def test_what_fits_is_0(tmp_path: Path, sysfs: Path) -> None:
    result = run("config", "check", "--config", written(tmp_path, FITS, sysfs))
    assert (result.code, result.err) == (0, f"{tmp_path}/config.toml: no problem found\n")


def test_config_can_be_checked_for_another_machine(tmp_path: Path, sysfs: Path) -> None:
    file = written(tmp_path, FITS)
    assert run("config", "check", "--config", file).code == 2
    assert run("config", "check", "--config", file, "--sysfs", sysfs.parent).code == 0
    missing = run("config", "check", "--config", file, "--sysfs", tmp_path / "none")
    assert (missing.code, "no such directory" in missing.err) == (2, True)


def test_problems_of_the_file_and_of_the_machine_are_told_at_once(tmp_path: Path, sysfs: Path) -> None:
    text = (
        f'[host]\nsysfs = "{sysfs}"\n[placement]\nsmt = 1\n'
        '[memory]\npolicy = "static"\nreserved_total = "1GiB"\nreserved = {0 = "33GiB", 7 = "1GiB"}\n'
    )
    result = run("config", "check", "--config", config_file(tmp_path, text))
    assert result.code == 2
    for part in ("placement.smt", "memory.reserved adds up to", *MISFITS):
        assert result.err.count(part) == 1, part
    assert len(result.err.splitlines()) == 4


def test_reservations_are_shown_as_they_are_written(tmp_path: Path) -> None:
    words = ("config", "show", "--config", written(tmp_path, FITS), "-f")
    assert run(*words, "json").data["memory"] == {
        "policy": "static",
        "reserved_total": "3GiB",
        "reserved": {"0": "2GiB", "1": "1GiB"},
    }
    lines = [line for line in run(*words, "csv").out.splitlines() if line.startswith("memory.reserved.")]
    assert lines == ["memory.reserved.0,2GiB", "memory.reserved.1,1GiB"]


def test_reservations_that_are_ignored_are_said_to_be(tmp_path: Path, sysfs: Path) -> None:
    result = run("config", "check", "--config", written(tmp_path, replace(TOO_MUCH, policy="none"), sysfs))
    assert result.code == 0
    assert "Warning: memory.reserved_total and memory.reserved: ignored" in result.err


@pytest.mark.parametrize("option", ["--settings", "--config"])
def test_plan_refuses_what_its_machine_cannot_keep(tmp_path: Path, option: str) -> None:
    machine, instances = tmp_path / "m.json", tmp_path / "i.json"
    machine.write_text(json.dumps(document.render_machine(builders.machine())))
    instances.write_text('[{"name": "db", "vcpus": 1}]')
    words = ("plan", "--machine", machine, "--instances", instances, option)
    result = run(*words, written(tmp_path, TOO_MUCH))
    assert (result.code, result.out) == (2, "")
    assert [part in line for part, line in zip(MISFITS, result.err.splitlines(), strict=True)] == [True, True]
    assert run(*words, written(tmp_path, FITS)).code == 0
    machine.write_text("{}")
    broken = run(*words, written(tmp_path, TOO_MUCH))
    assert (broken.code, len(broken.err.splitlines())) == (2, 1)


def test_plan_gives_away_only_what_is_not_kept(tmp_path: Path) -> None:
    machine, instances = tmp_path / "m.json", tmp_path / "i.json"
    machine.write_text(json.dumps(document.render_machine(builders.machine(nodes=1))))
    instances.write_text(json.dumps([{"name": "db", "vcpus": 1, "memory_bytes": 31 * GIB}]))
    words = ("plan", "--machine", machine, "--instances", instances)
    one = MemorySettings(policy="static", reserved_total=2 * GIB, reserved=(Reservation(0, 2 * GIB),))
    assert run(*words).code == 0
    assert run(*words, "--settings", written(tmp_path, one)).code == 4


async def test_check_finds_what_the_daemon_would_refuse() -> None:
    async with simulated.host() as host:
        file = write_config(host.simulator)
        text = 'policy = "none"\nreserved_total = "0"\nreserved = {}'
        assert text.splitlines()[2] in file.read_text()
        settings = file.read_text().replace('policy = "none"', 'policy = "static"')
        settings = settings.replace('reserved_total = "0"', 'reserved_total = "33GiB"')
        file.write_text(settings.replace("reserved = {}", 'reserved = {"0" = "33GiB"}'))
        result = await run_beside("check", "--config", file, "-f", "json")
        found = [one for one in result.data if one["about"] == "settings"]
        assert result.code == 4
        assert [one["code"] for one in found] == ["reservation"]
        assert found[0]["finding"].endswith("or less")
        assert "the daemon does not start with that" in found[0]["do"]


async def test_reload_of_what_does_not_fit_keeps_the_old_settings() -> None:
    async with rig() as r:
        r.load_settings = lambda: replace(r.settings, memory=TOO_MUCH)
        r.daemon.service.reload()
        (line,) = r.log.saying("not reloaded")
        assert [part in line for part in MISFITS] == [True, True]
        assert r.log.saying("settings reloaded", level=logging.INFO) == []


async def test_reload_of_what_fits_is_used() -> None:
    async with rig() as r:
        r.load_settings = lambda: replace(r.settings, memory=FITS)
        r.daemon.service.reload()
        await eventually(lambda: r.log.saying("settings reloaded", level=logging.INFO))
        assert r.log.saying("reserved") == []


async def test_reload_says_what_is_ignored() -> None:
    async with rig() as r:
        r.load_settings = lambda: replace(r.settings, memory=replace(FITS, policy="none"))
        r.daemon.service.reload()
        assert len(r.log.saying("memory.reserved", "ignored")) == 1


def world(sysfs: Path, memory: MemorySettings) -> World:
    cgroups = CgroupFiles(sysfs / "none", sysfs / "none")
    vms = VirtualMachines(sysfs / "none", sysfs, sysfs / "none")
    host = HostSettings(sysfs=str(sysfs))
    return World(HttpServer("/nowhere"), cgroups, vms, host=host, placement=PlacementSettings(), memory=memory)


def kept(one: World) -> list[int]:
    return [node.reserved_bytes for node in one.snapshot().machine.nodes]


def test_the_daemon_plans_with_what_is_kept(sysfs: Path) -> None:
    one = world(sysfs, FITS)
    assert kept(one) == [2 * GIB, GIB, 0, 0]
    one.use_memory(MemorySettings())
    assert kept(one) == [0, 0, 0, 0]


def test_a_reservation_that_no_longer_fits_is_cut_and_said_once(sysfs: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = world(sysfs, FITS)
    assert kept(one) == [2 * GIB, GIB, 0, 0]
    pages = sysfs / "devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages"
    pages.parent.mkdir(parents=True)
    pages.write_text("31\n")
    for online in ("0-14", "0-13", "0-12"):
        (sysfs / "devices/system/cpu/online").write_text(f"{online}\n")
        assert one.read_machine()
        assert kept(one) == [GIB, GIB, 0, 0]
    assert [record.getMessage().split(":")[0] for record in caplog.records if record.levelno >= logging.WARNING] == [
        "memory.reserved.0 = 2147483648 bytes (2 GiB)"
    ]
