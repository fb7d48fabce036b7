"""Tables fit 80 columns where instances have names of usual length."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from incus_numa.model.instance import InstanceType
from incus_numa.simulator import trees
from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.commands import run, run_beside, write_config
from tests.contract import simulated
from tests.contract.terminal import PATIENCE_S, terminal

WIDEST = 80
OPTIONS = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False, projects={"staging": {}})
MACHINE = builders.machine(nodes=24, cpus_per_node=16, nodes_per_socket=12, memory_bytes=64 * builders.GIB)
NAMES = {"web-01": 4, "postgres-main": 16, "ci-runner-03": 24, "mail": 2}


@pytest.fixture
async def config() -> AsyncIterator[Path]:
    """A host of 24 nodes with instances that were placed, one of which is a virtual machine."""
    async with simulated.host(OPTIONS, MACHINE) as host:
        for name, vcpus in NAMES.items():
            kind = InstanceType.VIRTUAL_MACHINE if name == "mail" else InstanceType.CONTAINER
            wants = {"limits.cpu": str(vcpus), "limits.memory": "8GiB", "limits.cpu.nodes": "balanced"}
            await host.simulator.start(host.simulator.create(name, wants, kind=kind))
        found = write_config(host.simulator)
        assert (await run_beside("rebalance", "--window", "0", "--config", found)).code == 0
        yield found


async def on_terminal(*words: str | Path) -> list[str]:
    """The lines of a command on a terminal of 80 columns, as they are read there."""
    with terminal(*words) as shown:
        code = await asyncio.to_thread(shown.process.wait, PATIENCE_S)
        await shown.wait_for("\n")
    assert code == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.text).replace("\r", "\n").replace("\n\n", "\n").split("\n")


def check_table(lines: list[str], headers: str) -> None:
    """Whether no column is so narrow that a word in it is broken, or so wide that a line is."""
    (start,) = [place for place, line in enumerate(lines) if line.split() == headers.split()]
    (end,) = [place for place, line in enumerate(lines) if line.startswith("NODE ")]
    table = lines[start:end]
    assert [line for line in table if len(line) > WIDEST] == []
    assert {line.split()[0] for line in table if line[:1].strip()} == {headers.split()[0], *NAMES}


async def test_the_table_of_list_fits_with_virtual_machines(config: Path) -> None:
    lines = await on_terminal("list", "--config", config)
    check_table(lines, "NAME VM VCPUS MEMORY NODES CPUS MEMS STATE BUSY LOCAL")
    assert sum(" placed " in line for line in lines) == len(NAMES)


@pytest.mark.parametrize("words", [("top", "--once"), ("topology",)], ids=" ".join)
async def test_tables_of_a_host_fit_also_where_nothing_folds_them(config: Path, words: tuple[str, ...]) -> None:
    result = await run_beside(*words, "--config", config)
    assert (result.code, [line for line in result.out.splitlines() if len(line) > WIDEST]) == (0, [])
    assert "64 GiB" in result.out


async def test_tables_of_a_plan_fit_and_its_moves_too(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    trees.write_sysfs(tmp_path / "sys", MACHINE)
    trees.write_procfs(tmp_path / "proc", MACHINE)
    (tmp_path / "m.json").write_text(run("topology", "--sysfs", tmp_path, "-f", "json").out)
    instances = [{"name": name, "vcpus": vcpus, "load_cpus": 2.0, "nodes": "0"} for name, vcpus in NAMES.items()]
    (tmp_path / "i.json").write_text(json.dumps(instances))
    words = ("--machine", tmp_path / "m.json", "--instances", tmp_path / "i.json", "--config", tmp_path / "config.toml")
    lines = await on_terminal("plan", "--rebalance", *words)
    check_table(lines, "INSTANCE NODES CPUS MEMS MOVED REASON")
    (moves,) = [line for line in lines if line.startswith("MOVE ")]
    assert moves.split() == ["MOVE", "FROM", "TO", "WITH", "BUSY", "CPUS", "MEMORY", "GAIN", "PRICE"]


async def test_the_table_of_a_demo_fits_also_where_nothing_folds_it() -> None:
    assert [line for line in (await run_beside("demo")).out.splitlines() if len(line) > WIDEST] == []
