"""What others change is put right: the server's reshuffles, a foreign value, and the keys an administrator sets."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import CpuSet
from tests.lab.conftest import Figures
from tests.lab.lab import Lab, median

pytestmark = [pytest.mark.lab, pytest.mark.on("incus", "incus7")]

BOUND_S = 2.0
"""Within this a rewritten cpuset is right again."""

SIZES = {"pair": 2, "wide": 3, "single": 1}


@pytest.fixture(scope="module", autouse=True)
def _containers(lab: Lab, _clean: None) -> None:
    for name, vcpus in SIZES.items():
        lab.launch_balanced(name, vcpus)
    for name, vcpus in SIZES.items():
        lab.settle(name, vcpus)
    lab.wait_quiet()


@pytest.mark.parametrize("name", ["pair", "wide"])
def test_a_foreign_cpuset_is_corrected_within_two_seconds(name: str, lab: Lab, figures: Figures) -> None:
    foreign = next(cpu for own in lab.layout.cpus.values() for cpu in own if cpu not in lab.see(name).cpus)
    took = lab.measure_corrections(name, str(foreign), rounds=5)
    figures.say(f"correction of a foreign cpuset ({name}), median of 5", median(took))
    figures.say(f"correction of a foreign cpuset ({name}), worst of 5", max(took))
    assert max(took) < BOUND_S


def test_a_foreign_memory_binding_is_corrected(lab: Lab) -> None:
    mems = lab.see("pair").mems
    (other, *_) = [node for node in lab.layout.cpus if node not in mems]
    lab.host.run(f"echo {other} >{lab.cgroup('pair')}/cpuset.mems")
    lab.until(lambda: lab.see("pair").mems == mems, f"cpuset.mems is {mems} again")


def test_the_server_reshuffles_when_a_container_starts_and_it_is_undone(lab: Lab, figures: Figures) -> None:
    before = {name: lab.see(name) for name in SIZES}
    since = lab.clock()
    lab.launch("neighbour", limits_cpu="2")
    lab.wait_quiet()
    after = {name: lab.see(name) for name in SIZES}
    assert {name: seen.nodes for name, seen in after.items()} == {name: seen.nodes for name, seen in before.items()}
    wrong = lab.measure_drifts(list(SIZES), since)
    for name, seconds in wrong:
        figures.say(f"correction after the server rewrote {name}", seconds)
    assert [drift for drift in wrong if drift[1] >= BOUND_S] == []


def test_a_live_change_of_the_cpu_limit_is_placed(lab: Lab) -> None:
    lab.incus("config", "set", "single", "limits.cpu=4")
    lab.settle("single", 4)


def test_a_live_change_back_is_placed_and_binds_its_memory_again(lab: Lab) -> None:
    lab.incus("config", "set", "single", "limits.cpu=1")
    lab.settle("single", 1)


def test_balanced_set_on_a_running_container_places_it(lab: Lab) -> None:
    lab.launch("late", limits_cpu="2")
    assert lab.see("late").recorded is None
    lab.incus("config", "set", "late", "limits.cpu.nodes=balanced")
    seen = lab.settle("late", 2)
    assert seen.recorded == seen.mems == seen.nodes


def test_balanced_taken_away_leaves_the_container_to_the_server(lab: Lab) -> None:
    lab.incus("config", "unset", "late", "limits.cpu.nodes")
    pid = lab.get_pid("late")
    lab.wait_quiet()
    foreign = CpuSet([7])
    lab.host.run(f"echo {foreign} >{lab.cgroup('late')}/cpuset.cpus; sleep 4")
    assert (lab.see("late").cpus, lab.get_pid("late")) == (foreign, pid)


def test_a_restart_through_the_api_is_placed_again(lab: Lab) -> None:
    pid = lab.get_pid("pair")
    lab.incus("restart", "--force", "pair")
    seen = lab.settle("pair", 2)
    assert lab.get_pid("pair") != pid
    assert seen.recorded == seen.mems == seen.nodes


def test_a_reboot_from_inside_is_placed_again(lab: Lab) -> None:
    pid = lab.get_pid("pair")
    lab.host.attempt("incus exec pair -- kill -TERM 1 </dev/null")
    lab.until(lambda: lab.get_pid("pair") not in (0, pid), "the container has rebooted")
    seen = lab.settle("pair", 2)
    assert seen.recorded == seen.mems == seen.nodes
