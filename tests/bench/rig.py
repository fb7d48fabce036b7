"""A simulator and a daemon, each in a process of its own, and the hands that drive them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from incus_numa.simulator import scenario
from incus_numa.topology import document

TICKS = os.sysconf("SC_CLK_TCK")


class Rig:
    """What a benchmark needs of the two processes."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        daemon: subprocess.Popen[bytes],
        simulator: subprocess.Popen[bytes],
        config: Path,
    ) -> None:
        self._session = session
        self.simulator = simulator
        self.daemon = daemon
        self.config = config

    async def ask(self, what: str) -> Any:
        """`measurements` or `problems` of the simulator."""
        async with self._session.get(f"http://simulator/simulator/{what}") as response:
            return await response.json()

    async def do(self, verb: str, **body: Any) -> None:
        """One of the simulator's driver methods."""
        async with self._session.post(f"http://simulator/simulator/{verb}", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{verb} {body}: {await response.text()}")

    async def forget(self) -> None:
        """Measure from here on."""
        async with self._session.delete("http://simulator/simulator/measurements"):
            return

    async def create(self, names: Sequence[str], sizes: Sequence[int], *, start: bool) -> None:
        """Managed instances whose `limits.cpu` goes through the sizes, running or not."""
        for number, name in enumerate(names):
            limits = {"limits.cpu": str(sizes[number % len(sizes)]), "limits.memory": "128MiB"}
            await self.do("create", name=name, config=limits | {"limits.cpu.nodes": "balanced"})
        if start:
            for chunk in range(0, len(names), 50):
                await asyncio.gather(*(self.do("start", name=name) for name in names[chunk : chunk + 50]))

    async def settled(self, names: Sequence[str], cgroup: Path, timeout_s: float = 120.0) -> None:
        """Wait until every instance has its memory nodes, the last thing the daemon writes."""
        deadline = time.monotonic() + timeout_s
        while any(not (cgroup / f"lxc.payload.{name}" / "cpuset.mems").read_text().strip() for name in names):
            if time.monotonic() > deadline:
                raise RuntimeError("the daemon did not place everything in time")
            await asyncio.sleep(0.2)

    def cpu_s(self, process: subprocess.Popen[bytes] | None = None) -> float:
        """CPU time of the daemon (or of another process) so far."""
        pid = (process or self.daemon).pid
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self) -> float:
        """Resident memory of the daemon."""
        for line in Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0


@asynccontextmanager
async def rig(
    folder: Path, *, options: dict[str, Any], daemon: str = "", listen: str = ""
) -> AsyncIterator[tuple[Rig, dict[str, str]]]:
    """A simulator of the incus#1605 machine and a daemon on it; `daemon` is more TOML for its configuration.

    With `listen` its API is at that address and port, too.
    """
    machine = folder / "machine.json"
    machine.write_text(json.dumps(document.render_machine(scenario.machine())))
    arguments = ["--machine", str(machine), "--dir", str(folder / "host"), "--options", json.dumps(options)]
    simulator = _spawn(["incus_numa.simulator", *arguments], stdout=subprocess.PIPE)
    assert simulator.stdout is not None
    paths: dict[str, str] = json.loads(simulator.stdout.readline())
    config = folder / "config.toml"
    hosts = "\n".join(f'{name} = "{paths[name]}"' for name in ("sysfs", "procfs", "cgroup"))
    daemon += f'\n[daemon]\nrun_dir = "{folder}"\n[rebalance]\njournal = "{folder}/moves.jsonl"\n'
    daemon += f'[api]\nsocket = "{folder}/api.sock"\npolicy_file = "{folder}/policy.json"\nlisten = "{listen}"\n'
    config.write_text(f'[server]\nsocket = "{paths["socket_path"]}"\n[host]\n{hosts}\n{daemon}')
    log = (folder / "daemon.log").open("wb")
    process = _spawn(["incus_numa", "daemon", "--config", str(config), "--log-level", "warning"], stderr=log)
    connector = aiohttp.UnixConnector(path=paths["socket_path"], limit=200)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Rig(session, process, simulator, config), paths
    finally:
        for one in (process, simulator):
            one.send_signal(signal.SIGTERM)
            one.wait(timeout=30)
        log.close()
        text = (folder / "daemon.log").read_text()
        if text:
            print("daemon log:", text[:2000])


def _spawn(module: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", *module], **streams)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")
