"""LXD: containers are placed as on Incus, with no setting that says which server it is.

They ask with `user.limits.cpu.nodes`, and the decision is in `limits.cpu.nodes`, which LXD applies and keeps.
"""

from __future__ import annotations

import pytest

from incus_numa.cpuset import NodeSet
from tests.lab.conftest import Figures
from tests.lab.lab import Lab, Seen

pytestmark = [pytest.mark.lab, pytest.mark.on("lxd")]

SIZES = {"pair": 2, "wide": 3, "single": 1}
BOUND_S = 2.0
"""Within this a rewritten cpuset is right again."""
MIB = 48


@pytest.fixture(scope="module", autouse=True)
def settled(lab: Lab, _clean: None) -> dict[str, Seen]:
    """Every container as it was when it had settled, before the next one started."""
    found = {}
    for name, vcpus in SIZES.items():
        lab.launch_balanced(name, vcpus)
        found[name] = lab.settle(name, vcpus)
    lab.wait_quiet()
    return found


def test_each_is_on_free_nodes_that_are_near_each_other(settled: dict[str, Seen], lab: Lab) -> None:
    assert settled["pair"].nodes & settled["wide"].nodes == NodeSet()
    (first, second) = settled["wide"].nodes
    assert {first, second} in ({0, 1}, {2, 3})


def test_the_decision_is_where_lxd_reads_it(settled: dict[str, Seen], lab: Lab) -> None:
    configs = {name: lab.get(name)["config"] for name in SIZES}
    assert {name: config["limits.cpu.nodes"] for name, config in configs.items()} == {
        name: str(lab.see(name).nodes) for name in SIZES
    }
    assert {config["user.limits.cpu.nodes"] for config in configs.values()} == {"balanced"}


def test_a_process_inside_is_allowed_the_same(settled: dict[str, Seen], lab: Lab) -> None:
    seen = lab.see("pair")
    assert lab.see_inside("pair") == (seen.cpus, seen.mems)


def test_pages_of_a_one_node_container_are_on_its_node(lab: Lab) -> None:
    nodes = lab.see("pair").nodes
    lab.touch_memory("pair", MIB)
    assert {node for node, size in lab.read_anon_bytes("pair").items() if size > 2**20} == set(nodes)


def test_a_foreign_cpuset_is_corrected_within_two_seconds(lab: Lab, figures: Figures) -> None:
    foreign = next(cpu for own in lab.layout.cpus.values() for cpu in own if cpu not in lab.see("pair").cpus)
    took = lab.measure_corrections("pair", str(foreign), rounds=3)
    figures.say("LXD: correction of a foreign cpuset, worst of 3", max(took))
    assert max(took) < BOUND_S


def test_the_server_reshuffles_when_a_container_starts_and_it_is_undone(lab: Lab, figures: Figures) -> None:
    before = {name: lab.see(name) for name in SIZES}
    since = lab.clock()
    lab.launch("neighbour", limits_cpu="2")
    lab.wait_quiet()
    assert {name: lab.see(name) for name in SIZES} == before
    wrong = lab.measure_drifts(list(SIZES), since)
    for name, seconds in wrong:
        figures.say(f"LXD: correction after the server rewrote {name}", seconds)
    assert [drift for drift in wrong if drift[1] >= BOUND_S] == []


def test_a_container_that_did_not_ask_is_left_alone(lab: Lab) -> None:
    config = lab.get("neighbour")["config"]
    assert "limits.cpu.nodes" not in config
    assert lab.see("neighbour").mems == NodeSet()


def test_a_restart_of_the_container_is_placed_again(lab: Lab) -> None:
    pid = lab.get_pid("pair")
    lab.incus("restart", "--force", "pair")
    seen = lab.settle("pair", 2)
    assert lab.get_pid("pair") != pid
    assert seen.recorded == seen.mems == seen.nodes


def test_placements_are_the_same_after_a_restart_of_the_server(lab: Lab) -> None:
    before = {name: lab.see(name).nodes for name in SIZES}
    pid = lab.main_pid()
    lab.systemctl("restart", "lxd")
    lab.wait_quiet()
    assert {name: lab.settle(name, vcpus).nodes for name, vcpus in SIZES.items()} == before
    assert lab.main_pid() == pid, "the daemon itself was restarted"


def test_one_started_while_the_daemon_was_away_is_placed_by_its_successor(lab: Lab) -> None:
    lab.systemctl("stop", "incus-numa")
    lab.launch_balanced("orphan", 1)
    lab.systemctl("start", "incus-numa")
    for name, vcpus in (SIZES | {"orphan": 1}).items():
        lab.settle(name, vcpus)
