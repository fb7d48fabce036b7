"""Whether asking for metrics 100 times a second disturbs starts: the same starts with and without, in turns.

Simulator, daemon, scraper and driver are a process each, and the daemon answers over TCP as it does to Prometheus.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from incus_numa.simulator.trees import scratch_root
from tests.bench.rig import Rig, percentile, rig
from tests.bench.starts import OPTIONS, SIZES, delays_ms, start_all

PRESENT = (200, 1000)
"""Instances that have metrics of their own."""

STARTS, STARTS_PER_S, SCRAPES_PER_S = 300, 50.0, 100.0
TURNS = (False, True, True, False, False, True, True, False)
"""Whether metrics are asked for: neither comes first more often than the other."""

REST_S = 4.0
"""What a round leaves behind is done by then."""

Scraped = dict[str, Any]
Delays = dict[bool, list[list[float]]]
"""In ms, by whether metrics were asked for, of each round."""


def main() -> None:
    """Measure and print."""
    for present in PRESENT:
        with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
            asyncio.run(_measure(Path(folder), present))


async def _measure(folder: Path, present: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with rig(folder, options=OPTIONS, listen=f"127.0.0.1:{port}") as (host, paths):
        cgroup = Path(paths["cgroup"])
        names = [f"old{number}" for number in range(present)]
        await host.create(names, SIZES, start=True)
        await host.settled(names, cgroup)
        await asyncio.sleep(11)
        delays: Delays = {True: [], False: []}
        cpu_s: dict[bool, float] = {True: 0.0, False: 0.0}
        told: list[Scraped] = []
        for turn, scraped in enumerate(TURNS):
            fresh = [f"new{turn}x{number}" for number in range(STARTS)]
            await host.create(fresh, SIZES, start=False)
            await asyncio.sleep(REST_S)
            await host.forget()
            before = host.cpu_s()
            async with _scraping(port, told, wanted=scraped):
                await start_all(host, fresh, STARTS_PER_S)
                await host.settled(fresh, cgroup)
            cpu_s[scraped] += host.cpu_s() - before
            found = delays_ms(await host.ask("measurements"), fresh)
            delays[scraped].append([one for one in found.values() if one is not None])
            await _clear(host, fresh)
        _report(present, delays, cpu_s, told)


@asynccontextmanager
async def _scraping(port: int, told: list[Scraped], *, wanted: bool) -> AsyncIterator[None]:
    """Metrics are asked for until the block ends, if that is wanted; what came of it is added to `told`."""
    if not wanted:
        yield
        return
    command = [sys.executable, "-m", "tests.bench.scraper", str(port), str(SCRAPES_PER_S)]
    asking = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert asking.stdout is not None
    try:
        await asking.stdout.readline()
        yield
    finally:
        asking.terminate()
        last = await asking.stdout.read()
        await asking.wait()
    told.append(json.loads(last))


async def _clear(host: Rig, names: list[str]) -> None:
    await asyncio.gather(*(host.do("stop", name=name) for name in names))
    for name in names:
        await host.do("delete", name=name)


def _report(present: int, delays: Delays, cpu_s: dict[bool, float], told: list[Scraped]) -> None:
    print(f"{present} instances present, {STARTS_PER_S:g} starts/s, {os.cpu_count()} CPUs; lock free to done:")
    for scraped, label in ((False, "no scrapes"), (True, f"{SCRAPES_PER_S:g} scrapes/s")):
        rounds = TURNS.count(scraped)
        one = [delay for found in delays[scraped] for delay in found]
        worst = ", ".join(f"{percentile(found, 0.99):.0f}" for found in delays[scraped])
        print(
            f"  {label}: {len(one)} of {rounds * STARTS} starts, p50 {percentile(one, 0.5):.1f} ms, p90 "
            f"{percentile(one, 0.9):.1f} ms, p99 {percentile(one, 0.99):.1f} ms (of each round {worst}), most "
            f"{max(one):.1f} ms; CPU time of the daemon {cpu_s[scraped] / rounds:.2f} s a round"
        )
    for each in told:
        print(
            f"  scraper: {each['asked']} asked, answered {each['statuses']}, {each['kb']:.0f} kB, "
            f"p50 {each['p50_ms']:.1f} ms, p99 {each['p99_ms']:.1f} ms"
        )
