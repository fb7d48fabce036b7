"""Virtual machines: their threads are where they belong, their record is written once, and `rebalance` moves them.

QEMU's own word on which threads are vCPUs is compared with what the kernel lets each thread run on. Under software
emulation no thread ever runs a guest as the kernel counts it, so names are what tells the daemon.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from tests.lab.conftest import Figures
from tests.lab.lab import Lab
from tests.lab.load import Work
from tests.lab.vm import SeenVm, Vms

pytestmark = [pytest.mark.lab, pytest.mark.on("vm")]

MIB = 48
MOVE_S = 180.0
"""How long a change of a virtual machine may take that the server or the kernel works on."""
STILL: dict[str, dict[str, object]] = {"rebalance": {"enabled": False}}
"""A guest that starts keeps its vCPUs busy for long under emulation, and would be moved for it."""
QUICK: dict[str, dict[str, object]] = STILL | {"daemon": {"resync_s": 1.0}}


@pytest.fixture(scope="module")
def vms(lab: Lab) -> Vms:
    # The server looks for /dev/kvm when it starts, and under emulation the module comes later.
    lab.until(lambda: lab.host.attempt("test -c /dev/kvm")[0] == 0, "there is /dev/kvm")
    lab.systemctl("restart", "incus")
    lab.host.run("incus admin waitready --timeout=120", timeout_s=150)
    return Vms(lab)


@pytest.fixture(scope="module")
def work(lab: Lab) -> Iterator[Work]:
    found = Work(lab)
    yield found
    found.stop()


@pytest.fixture(scope="module", autouse=True)
def settled(lab: Lab, _clean: None, vms: Vms, figures: Figures) -> dict[str, SeenVm]:
    """Every virtual machine as it was when it had settled.

    `pair` has two vCPUs, which the server gives the CPUs of its node; `single` has one, which the server lets float,
    and keeps it busy.
    """
    found = {}
    lab.configure(STILL)
    began = lab.clock()
    vms.launch("pair", mib=MIB, limits_cpu="2", limits_cpu_nodes="balanced")
    found["pair"] = vms.settle("pair", 2)
    figures.say("virtual machine of 2 vCPUs, from its creation until it is placed", lab.clock() - began)
    vms.launch("single", mib=MIB, spins=True, limits_cpu="1", limits_cpu_nodes="balanced")
    found["single"] = vms.settle("single", 1)
    return found


def nodes_of(lab: Lab, seen: SeenVm) -> NodeSet:
    return lab.layout.nodes_of(seen.cpus)


def test_vcpus_are_on_the_cpus_of_one_node_and_the_rest_of_qemu_around_them(
    settled: dict[str, SeenVm], lab: Lab
) -> None:
    for seen in settled.values():
        (node,) = nodes_of(lab, seen)
        assert set(seen.others.values()) == {lab.layout.cpus[node]}


def test_a_single_vcpu_floats_no_more(settled: dict[str, SeenVm]) -> None:
    (cpus,) = settled["single"].vcpus.values()
    assert len(cpus) == 1


def test_virtual_machines_are_on_nodes_of_their_own(settled: dict[str, SeenVm], lab: Lab) -> None:
    assert nodes_of(lab, settled["pair"]) != nodes_of(lab, settled["single"])


def test_memory_is_on_the_nodes_that_the_server_bound_it_to(settled: dict[str, SeenVm]) -> None:
    for seen in settled.values():
        assert {node for node, size in seen.memory.items() if size} == set(seen.bound)
        assert sum(seen.memory.values()) >= MIB * 2**20


def test_the_record_is_written_once_at_most(settled: dict[str, SeenVm], vms: Vms) -> None:
    assert {name: vms.count_updates(name) for name in settled} in (
        {"pair": pair, "single": single} for pair in (0, 1) for single in (0, 1)
    )


def test_idle_passes_and_a_restart_of_the_daemon_change_nothing(lab: Lab, vms: Vms) -> None:
    before = {name: vms.see(name) for name in ("pair", "single")}
    updates = {name: vms.count_updates(name) for name in before}
    lab.configure(QUICK)
    since = lab.clock()
    lab.host.run("sleep 6")
    assert lab.journal(since) == []
    for name, one in before.items():
        seen = vms.see(name)
        assert (seen.vcpus, seen.cpus, seen.around) == (one.vcpus, one.cpus, one.around)
        assert seen.needs_reset == one.needs_reset
    assert {name: vms.count_updates(name) for name in before} == updates


def test_threads_that_somebody_else_moved_are_put_back(lab: Lab, vms: Vms) -> None:
    before = vms.see("single")
    (tid,) = before.vcpus
    lab.host.run(f"taskset -p -c 0-7 {tid}")
    lab.until(lambda: vms.see("single").vcpus == before.vcpus, "the vCPU is where it was")


def test_a_virtual_machine_that_did_not_ask_is_left_alone(lab: Lab, vms: Vms) -> None:
    vms.launch("free", limits_cpu="1")
    lab.host.run("sleep 3")
    seen = vms.see("free")
    every = CpuSet(cpu for own in lab.layout.cpus.values() for cpu in own)
    assert {*seen.vcpus.values(), *seen.others.values()} == {every}
    assert (seen.recorded, vms.count_updates("free")) == (None, 0)
    lab.delete("free")


def test_a_vcpu_that_is_plugged_in_is_followed(lab: Lab, vms: Vms, figures: Figures) -> None:
    before, updates = vms.see("single"), vms.count_updates("single")
    began = lab.clock()
    vms.change("single", limits_cpu="2")
    seen = vms.settle("single", 2, MOVE_S)
    figures.say("virtual machine with one vCPU more, until it is placed", lab.clock() - began)
    assert nodes_of(lab, seen) == nodes_of(lab, before)
    assert vms.count_updates("single") - updates == 1, "ours: its nodes are the same"


def test_rebalance_moves_the_threads_of_a_busy_one_and_says_where_its_memory_is(
    lab: Lab, vms: Vms, work: Work, figures: Figures
) -> None:
    before = vms.see("single")
    (node,) = nodes_of(lab, before)
    lab.launch("mate", limits_cpu=str(lab.layout.cpus[node]))
    work.spin("mate", 2)
    updates = vms.count_updates("single")
    began = lab.clock()
    code, out, err = lab.run_cli("rebalance", "--window", "3")
    figures.say("rebalance by hand of a busy virtual machine", lab.clock() - began)
    work.stop()
    assert code == 0, err
    seen = vms.settle("single", 2)
    assert seen.vcpus.keys() == before.vcpus.keys(), "it runs on"
    assert nodes_of(lab, seen) != nodes_of(lab, before), out + err
    assert (seen.bound, seen.memory) == (before.bound, before.memory), "memory is moved on request only"
    assert vms.count_updates("single") - updates == 1
    code, out, err = lab.run_cli("explain", "single", "--format", "json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["vm"]["memory_bound"] == str(before.bound)
    assert "vm_memory" in facts["vm"]["remote"]
    _, out, err = lab.run_cli("check", "--format", "json")
    assert "single" in [one["about"] for one in json.loads(out) if one["code"] == "vm-memory-elsewhere"]


def test_memory_follows_where_the_settings_say_so(lab: Lab, vms: Vms) -> None:
    lab.configure(STILL | {"placement": {"vm_memory": "migrate"}}, "reload")
    seen = vms.settle("single", 2)
    home = nodes_of(lab, seen)
    lab.until(
        lambda: NodeSet(node for node, size in vms.see("single").memory.items() if size) == home, "it is moved", MOVE_S
    )
    after = vms.see("single")
    assert sum(after.memory.values()) >= MIB * 2**20
    assert after.bound == seen.bound
    lab.configure({})
