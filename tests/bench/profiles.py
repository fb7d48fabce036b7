"""From the edit of a profile that 200 running instances use to the last of them placed, and what that costs."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from incus_numa.simulator.trees import scratch_root
from tests.bench.rig import Rig, rig

USERS, OTHERS = 200, 300
TIMES = 3
PROFILE = {"limits.cpu": "2", "limits.memory": "128MiB"}
OPTIONS: dict[str, Any] = {"balance_delay_s": [0.05, 0.2], "balance_s": 0.3, "profiles": {"numa": PROFILE}}


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as folder:
        asyncio.run(_measure(Path(folder)))


async def _measure(folder: Path) -> None:
    async with rig(folder, options=OPTIONS) as (host, paths):
        cgroup = Path(paths["cgroup"])
        others = [f"old{n}" for n in range(OTHERS)]
        await host.create(others, (1, 2, 4), start=True)
        users = [f"user{n}" for n in range(USERS)]
        for name in users:
            await host.do("create", name=name, profiles=["default", "numa"])
        for chunk in range(0, USERS, 50):
            await asyncio.gather(*(host.do("start", name=name) for name in users[chunk : chunk + 50]))
        await host.settled(others, cgroup)
        for _ in range(TIMES):
            await asyncio.sleep(11)
            await host.forget()
            await _edit(host, cgroup, users)


async def _edit(host: Rig, cgroup: Path, users: list[str]) -> None:
    """Ask for `balanced` through the profile, print what it cost, and take it back."""
    before, began = host.cpu_s(), time.monotonic()
    await host.do("set_profile", profile="numa", config=PROFILE | {"limits.cpu.nodes": "balanced"})
    edited = time.monotonic()
    await _until(cgroup, users, bound=True)
    await asyncio.sleep(2)
    _report(await host.ask("measurements"), users, edited, (edited - began) * 1000)
    print(f"CPU time of the daemon {host.cpu_s() - before:.2f} s; impossible states: {await host.ask('problems')}")
    await host.do("set_profile", profile="numa", config=PROFILE)
    await _until(cgroup, users, bound=False)


async def _until(cgroup: Path, users: list[str], *, bound: bool, timeout_s: float = 120.0) -> None:
    """Wait until the memory of every instance is bound, or of none any more: the last that is written."""
    everywhere = (cgroup / "cpuset.mems.effective").read_text().strip()
    deadline = time.monotonic() + timeout_s
    while any(
        ((cgroup / f"lxc.payload.{name}" / "cpuset.mems").read_text().strip() not in ("", everywhere)) != bound
        for name in users
    ):
        if time.monotonic() > deadline:
            raise RuntimeError("the daemon did not follow the edit in time")
        await asyncio.sleep(0.2)


def _report(measured: dict[str, Any], users: list[str], edited: float, took_ms: float) -> None:
    marks = {name: measured["marks"].get(f"default/{name}", []) for name in users}
    # Memory is bound last, or the record written; what the server rewrites afterwards is put right again.
    ends = [
        max((at for at, what, _ in own if what in ("patch", "cpuset.mems")), default=edited) for own in marks.values()
    ]
    calls = [Counter(measured["calls_by_instance"].get(f"default/{name}", {})) for name in users]
    patches, gets = ([one[f"{method} instance"] for one in calls] for method in ("PATCH", "GET"))
    print(
        f"{USERS} of {USERS + OTHERS} running instances edited in {took_ms:.0f} ms; all placed after "
        f"{max(ends) - edited:.2f} s; listings {measured['calls'].get('GET instances', 0)}, "
        f"GETs {sum(gets)} (most {max(gets)}), PATCHes {sum(patches)} (most {max(patches)})"
    )
