"""A simulator in a process of its own: `python -m incus_numa.simulator --machine FILE --dir DIR`.

Benchmarks start it, so that the program under test has a core to itself. Prints one JSON line with its paths when it is
ready, serves until SIGTERM or SIGINT, and is driven through `control`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from incus_numa.model.machine import Machine
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.simulator import Simulator
from incus_numa.topology import document


async def serve(machine: Machine, directory: Path, options: SimulatorOptions) -> None:
    """Run a simulator until the process is told to stop."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with Simulator(machine, directory, options) as simulator:
        paths = {name: str(getattr(simulator, name)) for name in ("socket_path", "sysfs", "procfs", "cgroup")}
        sys.stdout.write(msgspec.json.encode(paths).decode() + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m incus_numa.simulator")
    parser.add_argument("--machine", type=Path, required=True, help="machine file, as of `topology --format json`")
    parser.add_argument("--dir", type=Path, required=True, help="folder for the trees and the socket")
    parser.add_argument("--options", default="{}", help="JSON with fields of SimulatorOptions")
    arguments = parser.parse_args()
    machine = document.parse_machine(arguments.machine.read_bytes())
    given: dict[str, Any] = msgspec.json.decode(arguments.options)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    asyncio.run(serve(machine, arguments.dir, msgspec.convert(given, SimulatorOptions)))


if __name__ == "__main__":
    main()
