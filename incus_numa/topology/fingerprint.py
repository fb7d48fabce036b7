"""Whether the machine may have changed, for the price of three small files. Called by the daemon."""

from __future__ import annotations

from pathlib import Path

_FILES = ("devices/system/cpu/online", "devices/system/cpu/isolated", "devices/system/node/online")


def read_fingerprint(sysfs: Path) -> tuple[str, ...]:
    """Online CPUs, isolated CPUs and online nodes as the kernel writes them; empty text for a file that is missing."""
    return tuple(_read(sysfs / name) for name in _FILES)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
