"""Start-up time of commands, as a user feels it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 15


def main() -> None:
    """Measure and print."""
    command = str(Path(sys.executable).with_name("incus-numa"))
    for arguments in (["--version"], ["--help"], ["config", "show"], ["topology"]):
        times = []
        for _ in range(RUNS):
            began = time.perf_counter()
            subprocess.run([command, *arguments], check=False, capture_output=True)
            times.append((time.perf_counter() - began) * 1000)
        words = " ".join(arguments)
        print(f"incus-numa {words:14} median {statistics.median(times):.0f} ms, most {max(times):.0f} ms of {RUNS}")
