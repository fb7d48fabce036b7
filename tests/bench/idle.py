"""What the daemon costs while nothing happens: 500 instances, 120 s."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from incus_numa.simulator.trees import scratch_root
from tests.bench.rig import rig

INSTANCES, SECONDS = 500, 120


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> None:
    async with rig(folder, options={}) as (host, paths):
        names = [f"i{n}" for n in range(INSTANCES)]
        await host.create(names, (1, 2, 4, 8), start=True)
        await host.settled(names, Path(paths["cgroup"]))
        await asyncio.sleep(15)
        before = host.cpu_s()
        await asyncio.sleep(SECONDS)
        used = host.cpu_s() - before
        print(
            f"{INSTANCES} instances, {SECONDS} s: {used / SECONDS * 100:.2f} % of a core, RSS {host.rss_mib():.1f} MiB"
        )
