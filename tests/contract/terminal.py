"""A command on a terminal: what it writes there, and how it ends when it is interrupted."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7])(?:;\d+)*m")
PATIENCE_S = 20.0


@dataclass(kw_only=True)
class Terminal:
    """A command on a terminal of 80 columns and 24 lines, and everything it has written there."""

    process: subprocess.Popen[bytes]
    master: int
    text: str = field(default="")

    async def wait_for(self, *words: str) -> None:
        """Read until all words were written. Raises AssertionError if that does not come to pass."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(word in self.text for word in words):
            assert time.monotonic() < deadline, self.text
            await self._read()

    async def interrupted(self) -> int:
        """Its exit code after Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            await self._read()
        await self._read()
        return self.process.returncode

    async def _read(self) -> None:
        try:
            self.text += os.read(self.master, 65536).decode("utf-8", "replace")
        except BlockingIOError:
            await asyncio.sleep(0.02)
        except OSError:
            # The other side is closed.
            await asyncio.sleep(0.02)


@contextmanager
def terminal(*words: str | Path, **environment: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.set_blocking(master, False)
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "incus_numa", *map(str, words)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=known | {"TERM": "xterm-256color"} | environment,
    )
    os.close(slave)
    try:
        yield Terminal(process=process, master=master)
    finally:
        process.kill()
        process.wait()
        os.close(master)
