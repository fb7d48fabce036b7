"""First paint and weight of the dashboard on a machine of 64 nodes with 500 instances, in Chromium.

The API is the real one; what it tells is made up. `SCREENSHOTS=DIR` also writes what it looks like.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from random import Random
from typing import Any

from incus_numa.cpuset import NodeSet
from incus_numa.facts.history import KEPT_S, STEP_S, RecentLoads
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Notice
from incus_numa.settings import ApiSettings
from incus_numa.topology import document
from incus_numa.web import pages
from incus_numa.web.metrics import Metrics
from incus_numa.web.protocol import Document, Gauges, Written, write
from incus_numa.web.serving import Stage, serving
from tests import builders

TIMES = 5
SHAPES = ((24, 16, 120), (64, 8, 500))
"""Nodes, CPUs per node, instances."""


class Painted:
    """A host that only exists on paper."""

    def __init__(self, nodes: int, cpus: int, instances: int) -> None:
        self._machine = builders.machine(nodes=nodes, cpus_per_node=cpus)
        random = Random(1)
        self._rows = [self._row(number, random) for number in range(instances)]

    def _row(self, number: int, random: Random) -> Document:
        width = random.choices((1, 2, 3, 6), (80, 12, 5, 3))[0]
        first = random.randrange(len(self._machine.nodes) - width + 1)
        nodes = NodeSet(range(first, first + width))
        cpus = [cpu for node in nodes for cpu in self._machine.node_by_id[node].cpus]
        vcpus = random.choice((1, 2, 4)) if width == 1 else len(cpus) - random.randrange(4)
        own = ",".join(map(str, sorted(random.sample(cpus, min(vcpus, len(cpus))))))
        state = random.choices(("placed", "differs", "refused: no-memory", "unmanaged"), (90, 3, 2, 5))[0]
        return {
            "project": "default", "name": f"web{number}", "type": "container", "vcpus": vcpus,
            "memory_bytes": vcpus << 30, "nodes": str(nodes), "cpus": own, "mems": str(nodes), "state": state,
            "group": None, "exclusive": False,
            "load_cpus": round(random.random() * vcpus, 3), "locality": round(random.random(), 2),
        }  # fmt: skip

    async def status(self) -> Document:
        """Made up."""
        return {
            "version": "0", "started_at": "2026-01-01T00:00:00Z", "nodes": len(self._machine.nodes),
            "server": {"product": "incus", "version": "6.0.4", "member": None, "socket": "/", "connected": True},
            "cpus": len(self._machine.online), "imbalance": 1.21, "rebalancing": True, "moving": False,
            "instances": {"running": len(self._rows), "managed": len(self._rows), "differ": 0, "refused": 1},
            "policy_source": "file", "problems": [], "warnings": [],
        }  # fmt: skip

    async def topology(self) -> Document:
        """The machine."""
        return document.render_machine(self._machine)

    async def nodes(self) -> Written:
        """Made up."""
        nodes = [
            {
                "node": node.id, "cpus": str(node.cpus), "load": 0.4 + 0.5 * math.sin(node.id) ** 2,
                "memory_bytes": 64 << 30, "free_bytes": round((64 << 30) * math.cos(node.id) ** 2),
                "measured_load": math.sin(node.id) ** 2, "instances": [],
                "cpu_busy": {str(cpu): abs(math.sin(cpu)) for cpu in node.cpus},
            }
            for node in self._machine.nodes
        ]  # fmt: skip
        return write(nodes)

    async def instances(self, project: str | None = None) -> Written:
        """Made up."""
        return write(self._rows)

    async def instance(self, key: InstanceKey) -> Written | None:
        """Nobody is explained."""
        return None

    async def plan(self) -> Written:
        """Nothing would change."""
        return write(
            {"placements": [], "rejections": [], "node_load": {}, "elapsed_ms": 0.0, "warnings": [], "steps": {}}
        )

    async def moves(self, limit: int) -> list[Document]:
        """None."""
        return []

    async def history(self) -> Document:
        """An hour of waves, until now."""
        kept, now = RecentLoads(), time.time()
        for at in range(int(KEPT_S / STEP_S)):
            loads = {node.id: abs(math.sin(node.id + at / 20)) for node in self._machine.nodes}
            kept.note(now - KEPT_S + (at + 1) * STEP_S, loads)
        return kept.show(now)

    async def policy(self) -> Document:
        """None."""
        return {"source": "file", "file": "", "changes": {}, "effective": {}, "meanings": {}, "fixed": []}

    async def set_policy(self, tables: Mapping[str, Any], only_if: Set[str] | None = None) -> Document:
        """Nothing."""
        return await self.policy()

    async def reset_policy(self, only_if: Set[str] | None = None) -> Document:
        """Nothing."""
        return await self.policy()

    async def rebalance(self, *, dry_run: bool, max_moves: int | None = None, project: str | None = None) -> Document:
        """Nothing."""
        return {}

    def gauges(self) -> Gauges:
        """None."""
        return Gauges()

    def watch(self, watcher: Callable[[Notice], None]) -> Callable[[], None]:
        """Nothing happens."""
        return lambda: None


def main() -> None:
    """Measure and print."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("not measured: needs Chromium (apt install chromium)")
        return
    weight = sum(len(page.body) for path, page in pages.read_pages().items() if path != "/")
    print(f"the page and all it loads: {weight / 1000:.0f} kB")
    for shape in SHAPES:
        asyncio.run(_measure(chromium, shape))


async def _measure(chromium: str, shape: tuple[int, int, int]) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        settings = ApiSettings(socket=f"{folder}/api.sock", listen=address)
        stage = Stage(host=Painted(*shape), exposition=Metrics(), settings=settings, max_instances=lambda: 0)
        async with serving(stage):
            await _browse(chromium, f"http://{address}/", shape)


async def _browse(chromium: str, url: str, shape: tuple[int, int, int]) -> None:
    from playwright.async_api import async_playwright

    painted, drawn = [], []
    async with async_playwright() as tool:
        browser = await tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(TIMES):
            page = await browser.new_page(viewport={"width": 1500, "height": 1100})
            began = time.monotonic()
            await page.goto(url)
            await page.wait_for_selector("#instances tbody tr")
            drawn.append(time.monotonic() - began)
            first = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
            painted.append(first)
            await page.close()
        if folder := os.environ.get("SCREENSHOTS"):
            for scheme in ("light", "dark"):
                page = await browser.new_page(viewport={"width": 1500, "height": 1100}, color_scheme=scheme)
                await page.goto(url)
                await page.wait_for_selector("#instances tbody tr")
                await page.screenshot(path=Path(folder) / f"dashboard-{shape[0]}-{scheme}.png")
        await browser.close()
    first, last = sorted(painted)[TIMES // 2], sorted(drawn)[TIMES // 2] * 1000
    print(
        f"{shape[0]} nodes of {shape[1]} CPUs, {shape[2]} instances: first paint after {first:.0f} ms (most"
        f" {max(painted):.0f}), everything drawn after {last:.0f} ms"
    )
