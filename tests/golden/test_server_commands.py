"""What the commands print about a server whose instances are in every state."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.cards import Card
from incus_numa.simulator.groups import group_name
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.simulator import Simulator
from tests.commands import Result, run_beside, write_config
from tests.contract import simulated
from tests.golden.conftest import Golden

QUIET = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False, projects={"ci": {}}, watches=True)
BALANCED = {"limits.cpu.nodes": "balanced"}


@pytest.fixture
async def config() -> AsyncIterator[Path]:
    async with simulated.host(QUIET) as host:
        await _populate(host.simulator)
        yield write_config(host.simulator)


async def _populate(simulator: Simulator) -> None:
    """Instances that a pass leaves, binds, moves and refuses; one that would crash the server; others' instances."""
    await _start(simulator, "db", "0-1", "0-3,4-7", {"limits.cpu": "8", "limits.memory": "8GiB", **BALANCED})
    await _start(simulator, "web", "1", "12-13", {"limits.cpu": "2", "limits.memory": "1GiB", **BALANCED})
    await _start(simulator, "typo", "2", "8", {"limits.cpu": "1", "user.numa.policy": "sideways", **BALANCED})
    await _start(simulator, "big", "2", "8-9", {"limits.cpu": "2", "limits.memory": "900GiB", **BALANCED})
    await _start(simulator, "loose", None, "2-3", {"limits.cpu": "2", "limits.memory": "1GiB"})
    simulator.create("huge", {"limits.cpu": "64", **BALANCED})
    simulator.create("idle", {"limits.cpu": "2", **BALANCED})
    job = simulator.create("job", {"limits.cpu": "1", "limits.memory": "1GiB", **BALANCED}, project="ci")
    await simulator.start(job)
    simulator.set_config(job, {"volatile.cpu.nodes": "3"})
    virtual = simulator.create("win", {"limits.cpu": "2", **BALANCED}, kind=InstanceType.VIRTUAL_MACHINE)
    await simulator.start(virtual)
    simulator.set_config(virtual, {"volatile.cpu.nodes": "3"})
    simulator.settle()


async def _start(simulator: Simulator, name: str, nodes: str | None, cpus: str, keys: dict[str, str]) -> None:
    key = simulator.create(name, keys)
    await simulator.start(key)
    if nodes is not None:
        simulator.set_config(key, {"volatile.cpu.nodes": nodes})
    (simulator.cgroup / group_name(InstanceKey("default", name)) / "cpuset.cpus").write_text(cpus + "\n")
    simulator.settle()


def shown(result: Result) -> str:
    """Everything printed and the exit code, without what only root is spared and how long memory took to move."""
    out = re.sub(r"in [0-9.]+ s, longest slice [0-9]+ ms", "in MASKED", result.out)
    lines = [line for line in out.splitlines() if "not root" not in line]
    errors = [f"stderr: {line}" for line in result.err.splitlines()]
    return "\n".join([*lines, *errors, f"exit code: {result.code}"]) + "\n"


@pytest.fixture
async def tied() -> AsyncIterator[Path]:
    async with simulated.host(QUIET) as host:
        await _populate_tied(host.simulator)
        yield write_config(host.simulator)


async def _populate_tied(simulator: Simulator) -> None:
    """A group and one that avoids it; exclusive CPUs on which an unmanaged instance runs; some that do not exist."""
    own = {"limits.cpu": "2", "limits.memory": "1GiB", "user.numa.exclusive": "true", **BALANCED}
    group = {"limits.cpu": "1", "limits.memory": "1GiB", "user.numa.group": "web", **BALANCED}
    await _start(simulator, "own", "1", "4-5", own)
    await _start(simulator, "greedy", "0", "0-3", {**own, "limits.cpu": "16"})
    await _start(simulator, "web1", "2", "8", group)
    await _start(simulator, "web2", "2", "10", group)
    avoids = {"user.numa.avoid": "web,own", "user.numa.cores": "performance"}
    await _start(simulator, "batch", "3", "12", {"limits.cpu": "1", "limits.memory": "1GiB", **avoids, **BALANCED})
    pages = {"limits.cpu": "1", "limits.memory": "1GiB", "limits.hugepages.2MB": "512MiB", **BALANCED}
    await _start(simulator, "paged", "3", "14", pages)
    await _start(simulator, "loose", None, "0-15", {"limits.memory": "1GiB"})


async def test_groups_and_exclusive_cpus(tied: Path, golden: Golden) -> None:
    for name in ("own", "greedy", "web1", "batch", "paged"):
        golden(f"explain-tied-{name}.txt", shown(await run_beside("explain", name, "--config", tied)))
    golden("list-tied.txt", shown(await run_beside("list", "--config", tied)))
    golden("check-tied.txt", shown(await run_beside("check", "--config", tied)))
    golden("rebalance-tied.txt", shown(await run_beside("rebalance", "--config", tied)))
    golden("list-tied-after.txt", shown(await run_beside("list", "--config", tied)))


async def test_list(config: Path, golden: Golden) -> None:
    for name, words in {"list.txt": (), "list.json": ("-f", "json"), "list.csv": ("-f", "csv")}.items():
        golden(name, shown(await run_beside("list", "--config", config, *words)))


async def test_list_of_one_project(config: Path, golden: Golden) -> None:
    golden("list-project.txt", shown(await run_beside("list", "--project", "ci", "--config", config)))


@pytest.mark.parametrize("name", ["db", "web", "typo", "big", "loose", "win", "idle", "job", "nobody"])
async def test_explain(config: Path, name: str, golden: Golden) -> None:
    golden(f"explain-{name}.txt", shown(await run_beside("explain", name, "--config", config)))


async def test_explain_devices(golden: Golden) -> None:
    async with simulated.host(QUIET) as host:
        config = await _populate_devices(host.simulator)
        for name in ("trainer", "deaf"):
            golden(f"explain-devices-{name}.txt", shown(await run_beside("explain", name, "--config", config)))
        data = await run_beside("explain", "trainer", "--config", config, "-f", "json")
        golden("explain-devices.json", shown(data))


async def _populate_devices(simulator: Simulator) -> Path:
    """Devices on a node, on an unknown one, that are not there, that are no hardware, and that are to be ignored."""
    simulator.devices.plug(
        Card(kind="gpu", address="0000:41:00.0", node=2, name="card1"),
        Card(kind="nic", address="0000:01:00.0", node=-1, name="eth0"),
    )
    devices = {
        "accelerator": {"type": "gpu", "vendorid": "10de"},
        "eth0": {"type": "nic", "nictype": "macvlan", "parent": "eth0"},
        "eth1": {"type": "nic", "nictype": "bridged", "parent": "br0"},
        "spool": {"type": "disk", "source": "/dev/disk/by-id/gone", "path": "/spool"},
    }
    for name, keys in {"trainer": {}, "deaf": {"user.numa.devices": "ignore"}}.items():
        key = simulator.create(name, {"limits.cpu": "2", "limits.memory": "1GiB", **BALANCED, **keys})
        for device, values in devices.items():
            simulator.devices.give(key, device, values)
        await simulator.start(key)
    return write_config(simulator)


async def test_explain_as_data(config: Path, golden: Golden) -> None:
    for output_format in ("json", "csv"):
        result = await run_beside("explain", "web", "--config", config, "-f", output_format)
        golden(f"explain.{output_format}", shown(result))


async def test_check(config: Path, golden: Golden) -> None:
    golden("check.txt", shown(await run_beside("check", "--config", config)))
    golden("check.csv", shown(await run_beside("check", "--config", config, "-f", "csv")))


async def test_rebalance(config: Path, golden: Golden) -> None:
    golden("rebalance-dry-run.txt", shown(await run_beside("rebalance", "--dry-run", "--config", config)))
    data = await run_beside("rebalance", "--dry-run", "--config", config, "-f", "json")
    golden("rebalance-dry-run.json", shown(data))
    golden("rebalance.txt", shown(await run_beside("rebalance", "--config", config)))
    golden("rebalance-again.txt", shown(await run_beside("rebalance", "--config", config)))
    golden("list-after.txt", shown(await run_beside("list", "--config", config)))
    golden("check-after.txt", shown(await run_beside("check", "--config", config)))
