"""From the start of an instance to its PATCH and cpuset done: 1000 instances present, 100 starts/s for 10 s."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from incus_numa.simulator.trees import scratch_root
from tests.bench.rig import Rig, percentile, rig

PRESENT, RATE, SECONDS = 1000, 100, 10
SIZES = (1, 2, 4, 8)
OPTIONS: dict[str, Any] = {"lock_release_s": [0.002, 0.02], "balance_delay_s": [0.2, 0.5], "balance_s": 1.0}
"""During the starts the server rewrites all cpusets again and again, at half a millisecond or more for each."""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> None:
    async with rig(folder, options=OPTIONS) as (host, paths):
        cgroup = Path(paths["cgroup"])
        present = [f"old{n}" for n in range(PRESENT)]
        await host.create(present, SIZES, start=True)
        await host.settled(present, cgroup)
        fresh = [f"new{n}" for n in range(RATE * SECONDS)]
        await host.create(fresh, SIZES, start=False)
        await asyncio.sleep(11)
        await host.forget()
        before, simulator = host.cpu_s(), host.cpu_s(host.simulator)
        began = time.monotonic()
        await start_all(host, fresh, RATE)
        took = time.monotonic() - began
        await host.settled(fresh, cgroup)
        await asyncio.sleep(1)
        lasted = time.monotonic() - began
        _report(await host.ask("measurements"), fresh, took)
        daemon, simulator = host.cpu_s() - before, host.cpu_s(host.simulator) - simulator
        print(f"CPU time in {lasted:.1f} s: daemon {daemon:.2f} s, simulator {simulator:.2f} s")
        print("impossible states:", await host.ask("problems"))


async def start_all(host: Rig, names: Sequence[str], per_s: float) -> None:
    """So many starts a second, each by its own request, not waiting for one another."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    tasks = []
    for number, name in enumerate(names):
        await asyncio.sleep(max(0.0, began + number / per_s - loop.time()))
        tasks.append(asyncio.create_task(host.do("start", name=name)))
    await asyncio.gather(*tasks)


def delays_ms(measured: dict[str, Any], names: Sequence[str]) -> dict[str, float | None]:
    """From the release of the server's lock to the last write, by name; None where a start was lost."""
    found: dict[str, float | None] = {}
    for name in names:
        marks = measured["marks"].get(f"default/{name}", [])
        free = next((at for at, what, _ in marks if what == "released"), None)
        # CPUs and record are written only where the server's own choice is worse; memory is always bound.
        bound = next((at for at, what, _ in marks if what == "cpuset.mems"), None)
        others = [next((at for at, what, _ in marks if what == wanted), 0.0) for wanted in ("cpuset.cpus", "patch")]
        found[name] = None if free is None or bound is None else (max(bound, *others) - free) * 1000
    return found


def _report(measured: dict[str, Any], names: list[str], took: float) -> None:
    calls, kinds = Counter[int](), Counter[str]()
    for name in names:
        used = measured["calls_by_instance"].get(f"default/{name}", {})
        calls[sum(used.values())] += 1
        kinds.update(used)
    by_name = delays_ms(measured, names)
    delays = [one for one in by_name.values() if one is not None]
    lost = [name for name, one in by_name.items() if one is None]
    listings = {call: count for call, count in measured["calls"].items() if "instances" in call}
    print(f"{len(names)} starts in {took:.1f} s, {PRESENT} instances present; lost: {len(lost)} {lost[:3]}")
    print(
        f"lock free to PATCH and cpusets done: p50 {percentile(delays, 0.5):.1f} ms, "
        f"p90 {percentile(delays, 0.9):.1f} ms, p99 {percentile(delays, 0.99):.1f} ms, most {max(delays):.1f} ms"
    )
    print(f"REST calls per start: {dict(sorted(calls.items()))}; kinds {dict(kinds)}; listings {listings}")
