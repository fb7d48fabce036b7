"""The host on which the commands of the documents are run, and the shell that runs them."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from incus_numa.settings import (
    ApiSettings,
    DaemonSettings,
    HostSettings,
    RebalanceSettings,
    ServerSettings,
    Settings,
    render_settings,
)
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.simulator import Simulator
from tests import builders
from tests.contract import simulated
from tests.contract.api_rig import unix_client
from tests.documents import ROOT, Command, Document

PATIENCE_S, LOOK_S = 60.0, 0.02
SERVER = SimulatorOptions(lock_release_s=(0.0, 0.0), balance_delay_s=(0.0, 0.0), balance_s=0.0)
MACHINE = builders.machine(cpus_per_node=16, memory_bytes=64 * builders.GIB)
BALANCED = {"limits.cpu.nodes": "balanced"}
MARK = "\x1e"
"""What the shell prints before the exit code of each command."""
ALONE = ("--version", "--help", "demo")
"""Words with which a command takes no configuration, or not that of the host."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a command printed, errors included, and its exit code."""

    command: Command
    lines: tuple[str, ...]
    code: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where commands run: a folder, the configuration they are given, and what paths of a host stand for."""

    folder: Path
    config: Path
    paths: Mapping[str, str] = field(default_factory=dict)


Populate = Callable[[Simulator, "Settled"], Awaitable[None]]
Settled = Callable[[], Awaitable[None]]


@asynccontextmanager
async def offline(folder: Path) -> AsyncIterator[Place]:
    """A folder, and no server."""
    config = folder / "config.toml"
    config.write_text(render_settings(Settings(api=ApiSettings(socket=str(folder / "none.sock")))))
    yield Place(folder=folder, config=config)


@asynccontextmanager
async def host(folder: Path, populate: Populate) -> AsyncIterator[Place]:
    """A simulated host on which the daemon runs as a process of its own."""
    async with simulated.host(SERVER, MACHINE) as running:
        simulator = running.simulator
        there = simulator.socket_path.parent
        settings = _settings(simulator, there)
        config = there / "config.toml"
        config.write_text(render_settings(settings))
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "incus_numa", "daemon", "--log-level", "error", "--config", str(config)
        )
        try:
            await populate(simulator, lambda: _settled(simulator, settings.api.socket))
            paths = _paths(settings)
            yield Place(folder=folder, config=config, paths=paths)
        finally:
            with suppress(ProcessLookupError):
                daemon.terminate()
            await daemon.wait()


def _settings(simulator: Simulator, there: Path) -> Settings:
    return Settings(
        server=ServerSettings(socket=str(simulator.socket_path)),
        host=HostSettings(sysfs=str(simulator.sysfs), procfs=str(simulator.procfs), cgroup=str(simulator.cgroup)),
        daemon=DaemonSettings(run_dir=str(there / "run")),
        rebalance=RebalanceSettings(journal=str(there / "moves.jsonl")),
        api=ApiSettings(socket=str(there / "api.sock"), policy_file=str(there / "policy.json")),
    )


def _paths(settings: Settings) -> dict[str, str]:
    """Paths of a real host, and where they are here."""
    return {ApiSettings().socket: settings.api.socket, HostSettings().cgroup: settings.host.cgroup}


async def _settled(simulator: Simulator, socket: str) -> None:
    """Return when the server's scheduler is at rest and everything that runs is where the daemon wants it."""
    await simulator.balanced()
    async with asyncio.timeout(PATIENCE_S), unix_client(socket) as client:
        while True:
            with suppress(aiohttp.ClientError, AssertionError):
                rows = await client.get("/v1/instances")
                count = len(simulator.kernel.groups)
                states = {row["state"] for row in rows}
                if len(rows) == count and "differs" not in states:
                    return
            await asyncio.sleep(LOOK_S)


async def start(simulator: Simulator, name: str, cpu: str, memory: str, **more: str) -> None:
    """Start a managed container; keys have `_` for `.` in `more`."""
    keys = {key.replace("_", "."): value for key, value in more.items()}
    key = simulator.create(name, {"limits.cpu": cpu, "limits.memory": memory, **BALANCED, **keys})
    await simulator.start(key)


async def run_commands(document: Document, commands: Sequence[Command], place: Place) -> list[Ran]:
    """Run commands of a document in one shell, one after the other, in a folder that has its files."""
    for block in document.blocks:
        if block.file is not None:
            (place.folder / block.file).write_text(block.text)
    environ = {**os.environ, "PATH": f"{_bin(place)}:{os.environ['PATH']}", "COLUMNS": "80", "NO_COLOR": "1"}
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", _script(commands, place),
        cwd=place.folder, env=environ, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await shell.communicate()
    return _split(commands, out.decode())


def _script(commands: Sequence[Command], place: Place) -> str:
    """The commands, each with a mark and its exit code printed after it; `$?` is kept for the next one."""
    lines = []
    for command in commands:
        line = command.line
        for path, here in place.paths.items():
            line = line.replace(path, here)
        lines += [line, f"__code=$?; printf '{MARK}%d{MARK}' $__code; (exit $__code)"]
    return "\n".join(lines)


def _as_root(one: Ran) -> Ran:
    """What it would be for root, who alone can set CPUs: others are told so by `check`, besides all else."""
    lines = tuple(line for line in one.lines if "[permission]" not in line)
    if lines or not one.lines:
        return replace(one, lines=lines)
    return replace(one, lines=("no problem found",), code=0)


def _split(commands: Sequence[Command], text: str) -> list[Ran]:
    parts = text.split(MARK)
    return [
        _as_root(Ran(command=command, lines=tuple(out.splitlines()), code=int(code)))
        for command, out, code in zip(commands, parts[::2], parts[1::2], strict=False)
    ]


def _bin(place: Place) -> Path:
    """A folder with an `incus-numa` that is this one and uses the configuration of the place unless told otherwise."""
    folder = place.folder / "bin"
    folder.mkdir()
    file = folder / "incus-numa"
    ours = f"exec {shlex.quote(sys.executable)} -m incus_numa"
    alone = "|".join(f'*" {word} "*' for word in ("--config", *ALONE))
    file.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(ROOT))}\n"
        f'case " $* " in {alone}) {ours} "$@";; esac\n{ours} "$@" --config {shlex.quote(str(place.config))}\n'
    )
    file.chmod(0o755)
    return folder
