"""The daemon's life: killed, stopped, started, reloaded. Containers never notice.

All containers have two vCPUs: their memory is bound when the daemon has placed them, which the server never does.
"""

from __future__ import annotations

import pytest

from tests.lab.conftest import Figures
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module", autouse=True)
def _first(lab: Lab, _clean: None) -> None:
    lab.launch_balanced("first", 2)
    lab.settle("first", 2)


def test_containers_started_while_it_was_killed_are_placed_by_its_successor(lab: Lab, figures: Figures) -> None:
    pid = lab.main_pid()
    lab.create("orphan", limits_cpu="2", limits_cpu_nodes="balanced")
    lab.host.run(f"kill -9 {pid}; incus start orphan </dev/null")
    since = lab.clock()
    lab.until(lambda: lab.main_pid() not in (0, pid), "systemd has started it again")
    lab.settle("orphan", 2)
    figures.say("daemon killed, container started: placed after its start by", lab.clock() - since)
    assert lab.main_pid() != pid


def test_stopping_it_leaves_everything_as_it_is(lab: Lab) -> None:
    lab.wait_quiet()
    before = {name: (lab.see(name), lab.get_pid(name)) for name in ("first", "orphan")}
    lab.systemctl("stop", "incus-numa")
    lab.host.run("sleep 5")
    assert {name: (lab.see(name), lab.get_pid(name)) for name in ("first", "orphan")} == before


def test_a_dry_run_says_what_it_would_do_and_does_nothing(lab: Lab) -> None:
    lab.launch_balanced("unseen", 2)
    before = lab.see("unseen")
    code, out, err = lab.run_cli("rebalance", "--dry-run", "--format", "json")
    assert code == 0, err
    assert "unseen" in out
    assert lab.see("unseen") == before


def test_one_pass_by_hand_places_what_was_started_without_it(lab: Lab) -> None:
    code, _, err = lab.run_cli("rebalance")
    assert code == 0, err
    lab.settle("unseen", 2, within_s=1)


def test_containers_started_while_it_was_stopped_are_placed_when_it_starts(lab: Lab) -> None:
    lab.launch_balanced("meanwhile", 2)
    lab.systemctl("start", "incus-numa")
    for name in ("first", "orphan", "unseen", "meanwhile"):
        lab.settle(name, 2)


def test_a_bad_configuration_is_refused_on_reload_and_the_old_one_stays(lab: Lab) -> None:
    pid, since = lab.main_pid(), lab.clock()
    path = "/etc/incus-numa/config.toml"
    lab.host.run(f"cp {path} {path}.good; printf '[placement]\\nmemory = \"somewhere\"\\n' >{path}")
    lab.systemctl("reload", "incus-numa")
    lab.host.run(f"mv {path}.good {path}")
    lab.until(lambda: any("somewhere" in line for line in lab.journal(since)), "the journal names the bad value")
    assert (lab.main_pid(), lab.is_active()) == (pid, True)


def test_it_uses_little_and_says_nothing_while_nothing_happens(lab: Lab) -> None:
    lab.wait_quiet()
    since = lab.clock()
    lab.host.run("sleep 8")
    assert lab.journal(since) == []
