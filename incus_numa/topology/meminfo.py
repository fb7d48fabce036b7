"""Amounts in `/proc/meminfo` and in a node's `meminfo`, which differ in a `Node N` prefix only."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?:Node +[0-9]+ +)?(MemTotal|MemFree): +([0-9]{1,15}) kB\s*\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryInfo:
    """Total and free memory in bytes, None where the text does not say."""

    total_bytes: int | None
    free_bytes: int | None


def parse_meminfo(text: str) -> MemoryInfo:
    """The `MemTotal` and `MemFree` lines of a meminfo file (kB there are KiB)."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            found.setdefault(match[1], int(match[2]) * 1024)
    return MemoryInfo(total_bytes=found.get("MemTotal"), free_bytes=found.get("MemFree"))
