"""Runs inside the virtual host, in a container's cgroup: holds MIB MiB of memory and keeps touching it, until SIGTERM.

Every second it writes to FILE: the longest time in seconds between two touches since the last SIGUSR1, how many bytes
had lost what was written to them, and how often all memory was touched. A page that is being moved cannot be touched,
so the longest time is the longest stall. It rests now and then, for a CPU that is busy here keeps a real core busy.
"""

import os
import signal
import sys
import time

PAGE = 4096
CHUNK = 1024 * PAGE
group, mib, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with open(f"{group}/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
memory = bytearray(mib << 20)
for at in range(0, len(memory), PAGE):
    memory[at] = at >> 12 & 0xFF
longest = 0.0


def forget(*_: object) -> None:
    """Measure from here on."""
    global longest
    longest = 0.0


signal.signal(signal.SIGUSR1, forget)
rounds = lost = 0
told = last = time.monotonic()
while True:
    for at in range(0, len(memory), PAGE):
        if memory[at] != at >> 12 & 0xFF:
            lost += 1
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if now - told >= 1:
            with open(f"{path}.new", "w") as out:
                out.write(f"{longest:.4f} {lost} {rounds}\n")
            os.rename(f"{path}.new", path)
            told = last = time.monotonic()
        if at % CHUNK == 0:
            time.sleep(0.02)
            last = time.monotonic()
    rounds += 1
