"""One thing that `check` found, as a value, and the order in which findings are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad it is: the server or an instance is in danger; something will not work; good to know."""

    DANGER = "danger"
    WARNING = "warning"
    NOTE = "note"


class Kind(Enum):
    """What was found, as a word that scripts may rely on."""

    CGROUPS = "cgroups"
    PERMISSION = "permission"
    NO_NUMA = "no-numa"
    HARDWARE = "hardware"
    PAGE_MOVES = "page-moves"
    PRESSURE = "pressure"
    DECISIONS_NOT_KEPT = "decisions-not-kept"
    NUMA_BALANCING = "numa-balancing"
    RESERVATION = "reservation"
    BAD_SETTING = "bad-setting"
    UNUSED_SETTING = "unused-setting"
    NO_USABLE_CPU = "no-usable-cpu"
    FEW_CPUS = "few-usable-cpus"
    NOBODY_PLACED = "nobody-placed"
    NO_DAEMON = "no-daemon"
    TWO_SERVERS = "two-servers"
    NO_BALANCED = "no-balanced"
    UNREADABLE_INSTANCE = "unreadable-instance"
    RESTRICTED_PROJECT = "restricted-project"
    WOULD_CRASH = "would-crash"
    LIMIT_UNREADABLE = "limit-unreadable"
    BAD_KEY = "bad-key"
    UNUSED_KEY = "unused-key"
    PIN_MISSING = "pin-missing"
    PIN_ISOLATED = "pin-isolated"
    CPU_LIMIT = "cpu-limit-too-large"
    MEMORY_LIMIT = "memory-limit-too-large"
    NODES_MISSING = "nodes-missing"
    NO_CGROUP = "no-cgroup"
    RECORD_UNTRUE = "record-untrue"
    VM_THREADS_UNKNOWN = "vm-threads-unknown"
    VM_FLOATING = "vm-floating"
    VM_MEMORY = "vm-memory-elsewhere"
    REFUSED = "refused"
    NOT_EXCLUSIVE = "not-exclusive"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing found: what it is about, what is wrong and what that means, and what to `do` (empty: nothing)."""

    severity: Severity
    kind: Kind
    about: str
    text: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.do}" if self.do else self.text


def danger(kind: Kind, about: str, text: str, do: str) -> Finding:
    """The server or an instance is in danger."""
    return Finding(severity=Severity.DANGER, kind=kind, about=about, text=text, do=do)


def warning(kind: Kind, about: str, text: str, do: str) -> Finding:
    """Something will not work."""
    return Finding(severity=Severity.WARNING, kind=kind, about=about, text=text, do=do)


def note(kind: Kind, about: str, text: str, do: str = "") -> Finding:
    """Good to know."""
    return Finding(severity=Severity.NOTE, kind=kind, about=about, text=text, do=do)


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first, then by what they are about; each once."""
    severities = list(Severity)
    once = dict.fromkeys(found)
    return tuple(sorted(once, key=lambda one: (severities.index(one.severity), one.about, one.kind.value, one.text)))
