"""How soon a cpuset that the server rewrote is right again: 200 instances, 20 rewrites of all of them."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from incus_numa.simulator.trees import scratch_root
from tests.bench.rig import percentile, rig

INSTANCES, ROUNDS = 200, 20


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> None:
    async with rig(folder, options={}) as (host, paths):
        names = [f"i{n}" for n in range(INSTANCES)]
        await host.create(names, (1, 2, 4, 8), start=True)
        await host.settled(names, Path(paths["cgroup"]))
        await asyncio.sleep(11)
        await host.forget()
        for _ in range(ROUNDS):
            await host.do("trigger_balance")
            await asyncio.sleep(0.7)
        _report(await host.ask("measurements"), names)


def _report(measured: dict[str, Any], names: list[str]) -> None:
    delays: list[float] = []
    open_rewrites = rewrites = 0
    for name in names:
        marks = measured["marks"].get(f"default/{name}", [])
        right = {value for _, what, value in marks if what == "cpuset.cpus"}
        broken: float | None = None
        for at, what, value in marks:
            if what == "balance" and value not in right:
                rewrites += 1
                broken = at if broken is None else broken
            elif what == "cpuset.cpus" and broken is not None:
                delays.append((at - broken) * 1000)
                broken = None
        open_rewrites += broken is not None
    print(f"{rewrites} rewrites of {len(names)} cpusets that changed them; not corrected: {open_rewrites}")
    print(
        f"rewrite to correction: p50 {percentile(delays, 0.5):.1f} ms, p99 {percentile(delays, 0.99):.1f} ms, "
        f"most {max(delays, default=float('nan')):.1f} ms"
    )
