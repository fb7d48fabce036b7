"""The server's life and the host's: incusd restarted, CPUs taken away, keys that would crash it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from incus_numa.cpuset import CpuSet
from tests.lab.conftest import Figures
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.on("incus", "incus7")]

SIZES = {"pair": 2, "wide": 4}


@pytest.fixture(scope="module", autouse=True)
def _containers(lab: Lab, _clean: None) -> Iterator[None]:
    for name, vcpus in SIZES.items():
        lab.launch_balanced(name, vcpus)
        lab.settle(name, vcpus)
    yield
    lab.host.run("for c in /sys/devices/system/cpu/cpu[1-9]*; do [ $(cat $c/online) = 1 ] || echo 1 >$c/online; done")


def test_placements_are_the_same_after_a_restart_of_the_server(lab: Lab) -> None:
    before = {name: lab.see(name).nodes for name in SIZES}
    pid = lab.main_pid()
    lab.systemctl("restart", "incus")
    lab.wait_quiet()
    assert {name: lab.settle(name, vcpus).nodes for name, vcpus in SIZES.items()} == before
    assert lab.main_pid() == pid, "the daemon itself was restarted"


def test_a_container_started_after_the_restart_is_placed(lab: Lab, figures: Figures) -> None:
    lab.launch_balanced("fresh", 2)
    since = lab.clock()
    lab.settle("fresh", 2)
    figures.say("placed after a restart of the server, from the end of `incus start`", lab.clock() - since)


def test_no_container_is_left_without_cpus_when_one_goes_offline(lab: Lab) -> None:
    gone = max(lab.see("pair").cpus)
    lab.host.run(f"echo 0 >/sys/devices/system/cpu/cpu{gone}/online")
    lab.until(lambda: all(gone not in lab.see(name).cpus for name in SIZES), "nobody has the offline CPU")
    lab.wait_quiet()
    layout = lab.read_layout()
    online = CpuSet(cpu for own in layout.cpus.values() for cpu in own)
    assert gone not in online
    for name, vcpus in SIZES.items():
        seen = lab.see(name)
        assert seen.cpus <= online
        assert len(seen.cpus) == vcpus, f"{name} has {seen.cpus}"
        assert seen.recorded == layout.nodes_of(seen.cpus)


def test_placements_are_right_again_when_it_is_back(lab: Lab) -> None:
    for cpu in range(1, 8):
        lab.host.run(f"f=/sys/devices/system/cpu/cpu{cpu}/online; [ $(cat $f) = 1 ] || echo 1 >$f")
    lab.wait_quiet()
    for name, vcpus in SIZES.items():
        lab.settle(name, vcpus)


@pytest.mark.on("incus")
def test_check_names_the_container_that_would_crash_the_server(lab: Lab) -> None:
    lab.create("crash", limits_cpu="64", limits_cpu_nodes="balanced")
    code, out, err = lab.run_cli("check", "--format", "json")
    about = [row for row in json.loads(out) if row["about"] == "crash"]
    assert (code, [row["severity"] for row in about]) == (4, ["danger"]), out + err
    assert "64" in about[0]["finding"]
