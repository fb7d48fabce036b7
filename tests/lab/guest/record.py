"""Runs inside the virtual host: appends a line to FILE whenever a container's cpuset files change.

A line is: seconds of the monotonic clock, container, cpuset.cpus, cpuset.mems ("-" when empty). A container that is
gone has "gone" for both. Files are read every 0.1 s, so shorter states are not seen; new containers are looked for
every 0.5 s. Opened files are read again and again, because finding them anew is what costs.
"""

import os
import sys
import time

ROOT = "/sys/fs/cgroup"
PREFIX = "lxc.payload."
NAMES = ("cpuset.cpus", "cpuset.mems")


def open_all(container: str) -> list[int]:
    """The container's files, opened; none if it has gone meanwhile."""
    try:
        return [os.open(f"{ROOT}/{PREFIX}{container}/{name}", os.O_RDONLY) for name in NAMES]
    except OSError:
        return []


def read_all(files: list[int]) -> tuple[str, ...]:
    """The contents; "gone" when the container is."""
    try:
        return tuple(os.pread(file, 4096, 0).decode().strip() or "-" for file in files)
    except OSError:
        return ("gone", "gone")


def main() -> None:
    """Record until killed."""
    opened: dict[str, list[int]] = {}
    last: dict[str, tuple[str, ...]] = {}
    turn = 0
    with open(sys.argv[1], "a", buffering=1) as out:
        while True:
            if turn % 5 == 0:
                for entry in os.listdir(ROOT):
                    container = entry.removeprefix(PREFIX)
                    if container != entry and container not in opened and (files := open_all(container)):
                        opened[container] = files
            for container, files in list(opened.items()):
                state = read_all(files)
                if last.get(container) != state:
                    last[container] = state
                    out.write(f"{time.monotonic():.3f} {container} {state[0]} {state[1]}\n")
                if state[0] == "gone":
                    for file in opened.pop(container):
                        os.close(file)
            turn += 1
            time.sleep(0.1)


main()
