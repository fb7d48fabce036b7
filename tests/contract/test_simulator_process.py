"""The simulator in a process of its own says where it is, serves, and ends when told to."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import aiohttp

from incus_numa.topology import document
from tests import builders


async def test_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    machine = tmp_path.joinpath("machine.json")
    machine.write_text(json.dumps(document.render_machine(builders.machine())))
    arguments = ("--machine", str(machine), "--dir", str(tmp_path / "host"), "--options", '{"version": "7.0.2"}')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "incus_numa.simulator", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        paths = json.loads(await process.stdout.readline())
        connector = aiohttp.UnixConnector(path=paths["socket_path"])
        async with aiohttp.ClientSession(connector=connector) as session, session.get("http://incus/1.0") as response:
            answer = await response.json()
    finally:
        process.terminate()
        status = await process.wait()
    assert answer["metadata"]["environment"]["server_version"] == "7.0.2"
    assert status == 0
    assert set(paths) == {"socket_path", "sysfs", "procfs", "cgroup"}
