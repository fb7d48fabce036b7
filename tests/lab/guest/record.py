"""Runs inside the virtual host: appends a line to FILE whenever a container's cpuset files change.

A line is: seconds of the monotonic clock, container, cpuset.cpus, cpuset.mems ("-" when empty). A container that is
gone has "gone" for both. Files are read every 50 ms, so shorter states are not seen.
"""

import os
import sys
import time

ROOT = "/sys/fs/cgroup"
PREFIX = "lxc.payload."


def read(container: str, name: str) -> str:
    """The content of a cpuset file; "gone" when the container is."""
    try:
        with open(f"{ROOT}/{PREFIX}{container}/{name}") as file:
            return file.read().strip() or "-"
    except OSError:
        return "gone"


def main() -> None:
    """Record until killed."""
    last: dict[str, tuple[str, str]] = {}
    with open(sys.argv[1], "a", buffering=1) as out:
        while True:
            now = {entry[len(PREFIX) :] for entry in os.listdir(ROOT) if entry.startswith(PREFIX)}
            for container in now | set(last):
                state = (read(container, "cpuset.cpus"), read(container, "cpuset.mems"))
                if last.get(container) != state:
                    last[container] = state
                    out.write(f"{time.monotonic():.3f} {container} {state[0]} {state[1]}\n")
                if container not in now:
                    del last[container]
            time.sleep(0.05)


main()
