"""Commands see virtual machines as they see containers: they show their threads and memory, place and release them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.builders import GIB
from tests.commands import run_beside, write_config
from tests.contract import simulated
from tests.contract.simulated import Host

MACHINE = builders.machine(nodes=4, cpus_per_node=4, memory_bytes=16 * GIB)
EVERY_CPU = CpuSet(range(16))


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    options = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)
    async with simulated.host(options, MACHINE) as running_host:
        yield running_host


async def started(host: Host, name: str = "v", **config: str) -> InstanceKey:
    keys = {name.replace("_", "."): value for name, value in config.items()}
    wants = {"limits.cpu": "1", "limits.memory": "2GiB", "limits.cpu.nodes": "balanced", **keys}
    key = host.simulator.create(name, wants, kind=InstanceType.VIRTUAL_MACHINE)
    await host.simulator.start(key)
    return key


def masks(host: Host, key: InstanceKey) -> tuple[set[CpuSet], set[CpuSet]]:
    threads = host.simulator.vm_threads(key)
    return set(threads.vcpus.values()), set(threads.others.values())


async def placed(host: Host) -> tuple[Path, InstanceKey]:
    key, config = await started(host), write_config(host.simulator)
    assert (await run_beside("rebalance", "--config", config)).code == 0
    return config, key


async def test_a_pass_by_hand_places_one_that_floats_and_a_second_pass_has_nothing_to_do(host: Host) -> None:
    key, config = await started(host), write_config(host.simulator)
    assert masks(host, key) == ({EVERY_CPU}, {EVERY_CPU})
    result = await run_beside("rebalance", "--config", config, "-f", "json")
    assert result.code == 0
    ((cpus,), (around,)) = masks(host, key)
    assert len(cpus) == 1
    assert around == MACHINE.node_by_id[MACHINE.nodes_of(cpus).lowest()].cpus
    before = host.simulator.incus.get(key).config
    again = await run_beside("rebalance", "--config", config, "-f", "json")
    assert again.code == 0
    assert [row for row in again.data if row["step"]] == []
    assert host.simulator.incus.get(key).config == before


async def test_a_dry_run_says_what_it_would_do_and_does_nothing(host: Host) -> None:
    key, config = await started(host), write_config(host.simulator)
    result = await run_beside("rebalance", "--dry-run", "--config", config)
    assert result.code == 0
    assert "vcpus=" in result.out
    assert masks(host, key) == ({EVERY_CPU}, {EVERY_CPU})


async def test_threads_and_memory_are_explained(host: Host) -> None:
    config, key = await placed(host)
    result = await run_beside("explain", "v", "--config", config, "-f", "json")
    assert result.code == 0
    ((cpus,), (around,)) = masks(host, key)
    bound = host.simulator.kernel.machines[key].bound
    assert (result.data["type"], result.data["has_cpus"]) == ("virtual-machine", str(cpus))
    assert result.data["vm"] == {
        "pid": host.simulator.incus.get(key).pid,
        "vcpus_found": True,
        "others_cpus": str(around),
        "memory_bound": str(bound),
        "remote": None,
    }
    text = (await run_beside("explain", "v", "--config", config)).out
    assert f"vCPUs on CPUs {cpus}, all others on CPUs {around}" in text
    assert f"bound to node {bound} by the server at start" in text


async def test_memory_that_the_server_bound_elsewhere_is_told_with_what_can_be_done(host: Host) -> None:
    config, key = await placed(host)
    machine = host.simulator.kernel.machines[key]
    elsewhere = next(iter(NodeSet(range(4)) - machine.bound))
    machine.bound = NodeSet([elsewhere])
    machine.set_pages({elsewhere: GIB})
    result = await run_beside("explain", "v", "--config", config)
    assert f"what the guest touches from now on is on node {elsewhere}" in result.out
    assert "future faults keep the old policy" in result.out
    found = (await run_beside("check", "--config", config, "-f", "json")).data
    (memory,) = [one for one in found if one["about"] == "v"]
    assert f"node {elsewhere}" in memory["finding"]


async def test_check_tells_one_that_floats(host: Host) -> None:
    await started(host)
    found = (await run_beside("check", "--config", write_config(host.simulator), "-f", "json")).data
    assert [one["finding"] for one in found if "float" in one["finding"]]


async def test_a_released_one_floats_again(host: Host) -> None:
    config, key = await placed(host)
    result = await run_beside("release", "v", "--config", config, "-f", "json")
    assert result.code == 0
    assert masks(host, key) == ({EVERY_CPU}, {EVERY_CPU})
    assert (await run_beside("release", "--config", config)).err.startswith("nothing to release")
