"""`rebalance --max-moves`: what may not move counts where it is, so nobody is put beside it as if it had left."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.builders import GIB
from tests.commands import Result, run_beside, write_config
from tests.contract import simulated
from tests.contract.simulated import Host

OPTIONS = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """Two nodes with four CPUs and 8 GiB each."""
    async with simulated.host(OPTIONS, builders.machine(nodes=2, memory_bytes=8 * GIB)) as running:
        yield running


async def start(host: Host, name: str, cpus: int, memory: str, **more: str) -> InstanceKey:
    keys = {key.replace("_", "."): value for key, value in more.items()}
    config = {"limits.cpu": str(cpus), "limits.memory": memory, "limits.cpu.nodes": "balanced", **keys}
    key = host.simulator.create(name, config)
    await host.simulator.start(key)
    return key


async def rebalance(host: Host, *words: str) -> Result:
    return await run_beside("rebalance", "-f", "json", "--config", write_config(host.simulator), *words)


async def crowded(host: Host, *sizes: str, last_cpus: int = 1) -> list[InstanceKey]:
    """Instances that were placed together, and asked for so much memory only then."""
    counts = [1] * (len(sizes) - 1) + [last_cpus]
    keys = [await start(host, f"c{n}", cpus, "1GiB", user_numa_group="g") for n, cpus in enumerate(counts)]
    assert (await rebalance(host)).code == 0
    assert len({str(host.nodes(key)) for key in keys}) == 1
    for key, size in zip(keys, sizes, strict=True):
        host.simulator.set_config(key, {"limits.memory": size})
    return keys


@pytest.mark.parametrize(("most", "moved"), [(None, 1), ("1", 1), ("0", 0)])
async def test_nobody_gets_memory_of_one_that_may_not_leave(host: Host, most: str | None, moved: int) -> None:
    # The last one is the larger load, so a new one would rather be where that has left.
    keys = await crowded(host, "6GiB", "5GiB", last_cpus=3)
    home = host.nodes(keys[0])
    new = await start(host, "new", 1, "2GiB")
    result = await rebalance(host, *(("--max-moves", most) if most else ()))
    assert (result.code, sum(host.nodes(key) != home for key in keys)) == (0, moved)
    beside = [size for key, size in zip(keys, (6, 5), strict=True) if host.nodes(key) == host.nodes(new)]
    assert sum(beside) + 2 <= 8
    assert ("no more than 0 moves being allowed" in result.err) == (most == "0")


async def test_no_more_move_than_is_allowed_and_the_next_pass_goes_on(host: Host) -> None:
    keys = await crowded(host, "4GiB", "4GiB", "4GiB", "4GiB")
    moved = []
    for most in ("0", "1", "1", "1"):
        before = [host.nodes(key) for key in keys]
        result = await rebalance(host, "--max-moves", most)
        moved.append((sum(a != host.nodes(key) for a, key in zip(before, keys, strict=True)), bool(result.err)))
    assert moved == [(0, True), (1, True), (1, False), (0, False)]


async def test_one_that_may_not_move_off_exclusive_cpus_is_told(host: Host) -> None:
    keys = await crowded(host, "6GiB", "5GiB")
    own = await start(host, "own", 5, "1GiB", user_numa_exclusive="true")
    shares = []
    for words in (("--max-moves", "0"), ()):
        result = await rebalance(host, *words)
        shared = [key.name for key in keys if host.cpus(key) & host.cpus(own)]
        shares.append((len(host.cpus(own)), shared, result.err.splitlines()[1:]))
    told = "Warning: still on exclusive CPUs of others, which only a move could change: c0"
    assert shares == [(5, ["c0"], [told]), (5, [], [])]
