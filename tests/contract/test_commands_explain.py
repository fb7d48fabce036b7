"""What `explain` says to people: lines that fit, where an instance would be if it were new, and how it came here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.journal import Journal
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import Move, MoveRecord
from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.commands import run_beside, write_config
from tests.contract import simulated
from tests.contract.terminal import PATIENCE_S, terminal

OPTIONS = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)
CACHE = InstanceKey("default", "cache")
LONG = (
    "placement     a pass changes nothing, as what runs is moved by load alone; a restart places it anew, and so does "
)


@pytest.fixture
async def config() -> AsyncIterator[Path]:
    """Two nodes; `cache` was placed beside `web` while `db`, which has ended since, was on the other one."""
    machine = builders.machine(nodes=2, cpus_per_node=4, memory_bytes=16 * builders.GIB)
    async with simulated.host(OPTIONS, machine) as host:
        found = write_config(host.simulator)
        for name, vcpus in (("db", 4), ("web", 2), ("cache", 1)):
            wants = {"limits.cpu": str(vcpus), "limits.memory": "1GiB", "limits.cpu.nodes": "balanced"}
            await host.simulator.start(host.simulator.create(name, wants))
            assert (await run_beside("rebalance", "--window", "0", "--config", found)).code == 0
        await host.simulator.stop(InstanceKey("default", "db"))
        yield found


async def lines(config: Path) -> dict[str, str]:
    out = (await run_beside("explain", "cache", "--window", "0", "--config", config)).out
    return {line[:13].strip(): line[14:] for line in out.splitlines() if line[:13].strip()}


async def test_it_says_what_places_an_instance_anew_that_a_pass_leaves(config: Path) -> None:
    before = await lines(config)
    (home,) = re.findall(r"^node (\d)", before["has"])
    other = 1 - int(home)
    assert before["placed anew"].startswith(f"it would go to node {other}: ")
    assert before["placement"].endswith("a restart places it anew, and so does taking away the key that opts it in "
                                        "(limits.cpu.nodes) and giving it back")  # fmt: skip


@pytest.mark.parametrize(
    ("result", "is_here", "tells"), [("moved", False, True), ("moved", True, False), ("failed", False, False)]
)
async def test_it_says_that_an_instance_came_elsewhere_since_its_last_move(
    config: Path, *, result: str, is_here: bool, tells: bool
) -> None:
    (home,) = re.findall(r"^node (\d)", (await lines(config))["has"])
    here, away = NodeSet((int(home),)), NodeSet((1 - int(home),))
    move = Move(
        key=CACHE,
        before=away if is_here else here,
        after=here if is_here else away,
        gain=1.0,
        price=0.1,
        load_cpus=1.0,
        size_bytes=0,
        reason="so",
    )
    Journal(config.parent / "moves.jsonl").append(MoveRecord(at_s=1.0, move=move, result=result))
    found = await lines(config)
    assert ("since then" in found) is tells
    if tells:
        assert found["since then"].startswith(f"it came to node {home} otherwise than by load: ")


async def test_lines_fold_between_words_on_a_terminal_and_stay_whole_elsewhere(config: Path) -> None:
    with terminal("explain", "cache", "--window", "0", "--config", config) as shown:
        assert await asyncio.to_thread(shown.process.wait, PATIENCE_S) == 0
        await shown.wait_for("\n")
    folded = shown.text.replace("\r", "").splitlines()
    plain = (await run_beside("explain", "cache", "--window", "0", "--config", config)).out
    assert LONG in plain
    assert max(map(len, folded)) <= 80
    # Every word is there as it was, and what goes on is below the values.
    kept = [line for line in plain.splitlines() if line.startswith(("why", "placed anew", "placement"))]
    whole = re.sub(r"\n {14}", " ", "\n".join(folded))
    assert all(line in whole for line in kept)
