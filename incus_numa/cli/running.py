"""Whether a daemon runs on this host: it holds a lock while it does. Used by `daemon`, `demo` and `release`."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from incus_numa.errors import ReportError
from incus_numa.settings import DaemonSettings

log = logging.getLogger(__name__)

TRIES, PAUSE_S = 5, 0.05
"""Someone who only asks whether a daemon runs holds the lock, too, for a moment."""


@contextmanager
def locked(settings: DaemonSettings) -> Iterator[None]:
    """Be the one daemon of this host. Raises ReportError if another one is; goes on without where no lock can be."""
    path = _lock_file(settings)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        log.debug("no lock, so that a second daemon would not be noticed: %s: %s", path, error.strerror)
        yield
        return
    try:
        if not _take(descriptor, TRIES):
            pid = _read_pid(descriptor)
            told = f" with pid {pid}" if pid else ""
            raise ReportError(f"a daemon runs{told} already: {path} is locked; stop that one or set daemon.run_dir")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: if it were removed, two could hold locks on two files of this name.
        os.close(descriptor)


def find_daemon(settings: DaemonSettings) -> str | None:
    """A word for the daemon that runs on this host, such as `pid 17`; None if none does or that cannot be told."""
    path = _lock_file(settings)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        log.debug("no daemon is known to run: %s: %s", path, error.strerror)
        return None
    try:
        return None if _take(descriptor, 1, fcntl.LOCK_SH) else f"pid {_read_pid(descriptor) or 'unknown'}"
    finally:
        os.close(descriptor)


def _lock_file(settings: DaemonSettings) -> Path:
    return Path(settings.run_dir) / "daemon.lock"


def _take(descriptor: int, tries: int, how: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock was free within so many tries."""
    for left in reversed(range(tries)):
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(PAUSE_S)
            continue
        return True
    return False


def _read_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() else None
