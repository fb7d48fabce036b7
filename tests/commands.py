"""Runs a command as the entry point does, in this process: exit code, standard output and standard error."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from incus_numa.cli.main import main
from incus_numa.settings import (
    DaemonSettings,
    HostSettings,
    RebalanceSettings,
    ServerSettings,
    Settings,
    render_settings,
)
from incus_numa.simulator.simulator import Simulator


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as JSON, which must be there alone."""
        return json.loads(self.out)


def run(*words: str | Path) -> Result:
    """Run `incus-numa WORDS` on a terminal of 80 columns that is none."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    argv = ["incus-numa", *map(str, words)]
    with mock.patch.object(sys, "argv", argv), mock.patch.dict(os.environ, {"COLUMNS": "80"}), _logging_kept():
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as stop:
            code = stop.code
    return Result(code=code, out=out.getvalue(), err=err.getvalue())


async def run_beside(*words: str | Path) -> Result:
    """The same beside a simulator that runs in this event loop."""
    return await asyncio.to_thread(run, *words)


def write_config(simulator: Simulator, rebalance: RebalanceSettings | None = None) -> Path:
    """A configuration file that leads commands to a simulator; nothing is moved by load unless that is asked for."""
    folder = simulator.socket_path.parent
    settings = Settings(
        server=ServerSettings(socket=str(simulator.socket_path)),
        host=HostSettings(sysfs=str(simulator.sysfs), procfs=str(simulator.procfs), cgroup=str(simulator.cgroup)),
        daemon=DaemonSettings(run_dir=str(folder / "run")),
        rebalance=replace(
            rebalance or RebalanceSettings(enabled=False, window_s=0.1), journal=str(folder / "moves.jsonl")
        ),
    )
    path = folder / "config.toml"
    path.write_text(render_settings(settings))
    return path


def config_file(folder: Path, text: str) -> Path:
    """A configuration file with this text."""
    path = folder / "config.toml"
    path.write_text(text)
    return path


def server_config(folder: Path, path: str | Path) -> Path:
    """A configuration that names a socket, on a host with an empty sysfs."""
    (folder / "sys").mkdir(exist_ok=True)
    return config_file(folder, f'[server]\nsocket = "{path}"\ntimeout_s = 2.0\n[host]\nsysfs = "{folder}/sys"\n')


def is_clean(result: Result) -> bool:
    """Nothing that looks like a bug of ours."""
    return "Traceback" not in result.err and "bug" not in result.err


@contextmanager
def _logging_kept() -> Iterator[None]:
    """A command sets up logging for its process; other tests want it as it was."""
    root, ours = logging.getLogger(), logging.getLogger("incus_numa")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
