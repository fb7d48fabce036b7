"""pylxd against aiohttp: the same GET and PATCH, one after the other and 16 at a time."""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from pathlib import Path

from incus_numa.model.instance import InstanceKey
from incus_numa.server.http_server import HttpServer
from incus_numa.server.protocol import Server
from incus_numa.server.pylxd_server import PylxdServer
from incus_numa.simulator.trees import scratch_root
from tests.bench.rig import percentile, rig

PAIRS = 400


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> None:
    async with rig(folder, options={"balances": False}) as (host, paths):
        names = [f"i{n}" for n in range(16)]
        for name in names:
            # Not managed, so that the daemon stays out of it.
            await host.do("create", name=name, config={"limits.cpu": "4"})
            await host.do("start", name=name)
        for label, server in (
            ("pylxd in threads", PylxdServer(paths["socket_path"])),
            ("aiohttp", HttpServer(paths["socket_path"])),
        ):
            await _pairs(server, [InstanceKey("default", names[0])], 20)
            for width in (1, 16):
                before, began = _cpu_s(), time.perf_counter()
                delays = await _pairs(server, [InstanceKey("default", name) for name in names[:width]], PAIRS)
                took = time.perf_counter() - began
                print(
                    f"{label}, {width} at a time: {PAIRS / took:.0f} pairs/s, {(_cpu_s() - before) / PAIRS * 1000:.2f} "
                    f"ms CPU a pair, p50 {percentile(delays, 0.5):.1f} ms, p99 {percentile(delays, 0.99):.1f} ms"
                )
            await server.close()


async def _pairs(server: Server, keys: list[InstanceKey], pairs: int) -> list[float]:
    """GET and PATCH with the ETag, `pairs` in all, one instance each at a time."""
    delays: list[float] = []

    async def work(key: InstanceKey) -> None:
        for number in range(pairs // len(keys)):
            began = time.perf_counter()
            seen = await server.get_instance(key)
            await server.patch_config(key, {"volatile.cpu.nodes": str(number % 2)}, seen.etag)
            delays.append((time.perf_counter() - began) * 1000)

    await asyncio.gather(*(work(key) for key in keys))
    return delays


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
