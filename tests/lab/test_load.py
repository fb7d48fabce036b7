"""Running containers are moved by their measured load, their memory follows, and nothing is lost on the way.

Four containers of two vCPUs, which may not be moved, are on the four nodes of two CPUs; a fifth one, which may, shares
a node with one of them. Loops in the one and the other make it move; it holds 300 MiB, and less where a daemon that is
killed on the way is what counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from tests.lab.conftest import Figures
from tests.lab.lab import Lab
from tests.lab.load import Work

pytestmark = pytest.mark.lab

INTERVAL_S = 6.0
MIB, LESS_MIB = 300, 96
"""Less than 64 MiB would not be moved in slices."""
SETTINGS: dict[str, object] = {
    "interval_s": INTERVAL_S,
    "time_constant_s": 2.0,
    "hold_s": 1.0,
    "cooldown_s": 1.0,
    "bytes_per_second": "32MiB",
    "window_s": 3.0,
}
SLOW = SETTINGS | {"bytes_per_second": "6MiB"}
"""So that memory is on its way for some seconds, though it is little."""
FIXED = ("still0", "still1", "still2", "still3")
MOVES_S = 240.0
"""How long a move is waited for: several intervals, and memory at the pace that the settings allow."""


@pytest.fixture(scope="module")
def work(lab: Lab) -> Iterator[Work]:
    found = Work(lab)
    yield found
    found.stop()


@pytest.fixture(scope="module", autouse=True)
def _containers(lab: Lab, _clean: None, work: Work) -> Iterator[None]:
    lab.configure({"rebalance": SETTINGS})
    for name in FIXED:
        lab.launch_balanced(name, 2, user_numa_movable="false")
    lab.launch_balanced("mover", 2)
    for name in (*FIXED, "mover"):
        lab.settle(name, 2)
    work.hold("mover", MIB)
    lab.wait_quiet()
    yield
    work.stop()
    lab.configure({})


def neighbour(lab: Lab) -> str:
    """Who shares the mover's node."""
    nodes = lab.see("mover").nodes
    return next(name for name in FIXED if lab.see(name).nodes == nodes)


def crowd(lab: Lab, work: Work, loops: int = 2) -> NodeSet:
    """Make the mover's node too loaded, and that one alone; says which it is.

    Each loop keeps a real core busy, so there are fewer where the work that is done does not count.
    """
    work.rest()
    nodes, partner = lab.see("mover").nodes, neighbour(lab)
    work.spin("mover", loops)
    work.spin(partner, loops)
    return nodes


def is_whole(lab: Lab) -> bool:
    """Whether the mover is bound to its nodes, with nearly all of its memory there."""
    seen, memory = lab.see("mover"), lab.read_anon_bytes("mover")
    there = sum(size for node, size in memory.items() if node in seen.nodes)
    return seen.mems == seen.nodes and there >= 0.95 * sum(memory.values())


def has_arrived(lab: Lab, before: NodeSet) -> bool:
    """Whether the mover is elsewhere, and whole there."""
    return lab.see("mover").nodes != before and is_whole(lab)


def test_a_quiet_host_is_left_alone(lab: Lab) -> None:
    since = lab.clock()
    before = {name: lab.see(name) for name in (*FIXED, "mover")}
    lab.host.run(f"sleep {3 * INTERVAL_S:g}")
    assert lab.journal(since) == []
    assert {name: lab.see(name) for name in before} == before
    assert [change for name in before for change in lab.read_changes(name, since)] == []


def test_two_busy_containers_of_one_node_are_spread(lab: Lab, work: Work, figures: Figures) -> None:
    # A daemon that moves nobody, while the work of the crowded node is measured.
    lab.configure({"rebalance": SETTINGS | {"enabled": False}}, "reload")
    partner = neighbour(lab)
    crowd(lab, work)
    used = work.measure_cpus(["mover", partner], 3.0)
    work.rest()
    lab.configure({"rebalance": SETTINGS}, "reload")
    work.forget("mover")
    before, began = crowd(lab, work), lab.clock()
    lab.until(lambda: lab.see("mover").nodes != before, "the mover is elsewhere", within_s=MOVES_S)
    took = lab.clock() - began
    figures.say("busy containers spread after", took)
    figures.say("... in intervals of 6 s", took / INTERVAL_S, unit="")
    lab.until(lambda: has_arrived(lab, before), "its memory has followed", within_s=MOVES_S)
    figures.say(f"... and {MIB} MiB of memory with it after", lab.clock() - began)
    now = work.measure_cpus(["mover", partner], 3.0)
    figures.say("work done before, in CPU seconds per second", sum(used.values()), unit="")
    figures.say("work done after", sum(now.values()), unit="")
    assert sum(now.values()) > 1.4 * sum(used.values())
    assert took <= 3 * INTERVAL_S


def test_nearly_all_memory_followed_and_none_was_damaged(lab: Lab, work: Work, figures: Figures) -> None:
    nodes, memory = lab.see("mover").nodes, lab.read_anon_bytes("mover")
    part = sum(size for node, size in memory.items() if node in nodes) / sum(memory.values())
    touched = work.touched("mover")
    figures.say("anonymous memory on the new node, in percent", 100 * part, unit="")
    figures.say(f"longest stall of a process while {MIB} MiB moved", touched.longest_s)
    assert part >= 0.95
    assert touched.lost == 0
    assert lab.get("mover")["config"]["volatile.cpu.nodes"] == str(nodes)


def test_the_move_is_in_the_journal_and_explained(lab: Lab) -> None:
    code, out, err = lab.run_cli("explain", "mover", "--format", "json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["last_moves"][-1]["result"] == "moved"
    assert facts["locality"] >= 0.95


def test_a_balanced_host_is_left_alone_although_it_is_busy(lab: Lab) -> None:
    before, since = lab.see("mover"), lab.clock()
    lab.host.run(f"sleep {3 * INTERVAL_S:g}")
    assert lab.see("mover") == before
    assert not [line for line in lab.journal(since) if " moved " in line]


def stage_widened(lab: Lab, before: NodeSet) -> bool:
    return len(lab.see("mover").mems) == 2


def stage_on_new_cpus(lab: Lab, before: NodeSet) -> bool:
    return lab.see("mover").nodes != before


def stage_memory_on_its_way(lab: Lab, before: NodeSet) -> bool:
    memory, nodes = lab.read_anon_bytes("mover"), lab.see("mover").nodes
    there = sum(size for node, size in memory.items() if node in nodes)
    return nodes != before and there >= 0.2 * sum(memory.values())


def stage_narrowed(lab: Lab, before: NodeSet) -> bool:
    seen = lab.see("mover")
    return seen.nodes != before and seen.mems == seen.nodes


@pytest.fixture(scope="module")
def slow(lab: Lab, work: Work) -> None:
    """The mover has less memory, which follows more slowly."""
    work.rest()
    work.hold("mover", LESS_MIB)
    lab.configure({"rebalance": SLOW})
    lab.settle("mover", 2)


@pytest.mark.parametrize("stage", [stage_widened, stage_on_new_cpus, stage_memory_on_its_way, stage_narrowed])
def test_a_daemon_that_is_killed_while_it_moves_leaves_nothing_behind(
    stage: Callable[[Lab, NodeSet], bool], slow: None, lab: Lab, work: Work
) -> None:
    since = lab.clock()
    before = crowd(lab, work, loops=1)
    lab.until(lambda: stage(lab, before), f"the move is at {stage.__name__}", within_s=MOVES_S)
    pid = lab.main_pid()
    lab.host.run(f"kill -9 {pid}")
    # What was decided is done to the end though nothing asks for it any more.
    work.rest()
    lab.until(lambda: lab.main_pid() not in (0, pid), "systemd has started it again")
    lab.until(lambda: is_whole(lab), "the mover is in a legal, placed state", within_s=MOVES_S)
    assert stage is stage_widened or lab.see("mover").nodes != before
    assert work.is_holding("mover")
    assert work.touched("mover").lost == 0
    for change in lab.read_changes("mover", since):
        assert change.cpus is not None
        assert CpuSet.parse(change.cpus) & CpuSet(range(8)), change


def test_one_pass_by_hand_moves_what_pays(lab: Lab, work: Work) -> None:
    lab.systemctl("stop", "incus-numa")
    before = crowd(lab, work)
    code, out, err = lab.run_cli("rebalance", "--dry-run", "--window", "3")
    assert code == 0, err
    assert "mover" in out
    assert lab.see("mover").nodes == before
    code, _, err = lab.run_cli("rebalance", "--window", "3")
    assert code == 0, err
    assert has_arrived(lab, before)


def test_released_containers_have_all_cpus_and_memory_anywhere(lab: Lab, work: Work) -> None:
    work.rest()
    code, _, err = lab.run_cli("release", "mover")
    assert code == 0, err
    seen = lab.see("mover")
    assert (seen.written, seen.mems) == (CpuSet(cpu for own in lab.layout.cpus.values() for cpu in own), NodeSet())


def test_a_container_that_is_managed_no_more_is_handed_back(lab: Lab) -> None:
    lab.systemctl("start", "incus-numa")
    lab.settle("mover", 2)
    assert lab.see("mover").mems
    lab.incus("config", "unset", "mover", "limits.cpu.nodes")
    lab.until(lambda: not lab.see("mover").mems, "its memory is not bound")
