"""Runs inside the virtual host: correct.py FILE VALUE ROUNDS. Measures how fast a foreign value is put right.

Writes VALUE to a cpuset file, waits until the file reads again as before, prints the seconds, ROUNDS times; "never"
after 20 s.
"""

import sys
import time


def read(path: str) -> str:
    """The content of a cpuset file."""
    with open(path) as file:
        return file.read().strip()


def main() -> None:
    """Write, wait, print."""
    path, value, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    before = read(path)
    for _ in range(rounds):
        with open(path, "w") as file:
            file.write(value)
        began = time.monotonic()
        while read(path) != before and time.monotonic() - began < 20:
            time.sleep(0.002)
        print(f"{time.monotonic() - began:.3f}" if read(path) == before else "never", flush=True)
        time.sleep(0.7)


main()
