"""Which threads of a QEMU process run the guest: decided from what the kernel shows. Called by `virtual`.

Only what has run a guest is certain. Before that, and under software emulation, it takes as many threads with the right
names, or with other CPUs than the main thread, as the virtual machine is known to have vCPUs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

from incus_numa.host.threads import Thread

GUEST_TIME, DEBUGFS, NAMES, AFFINITY = "guest time", "KVM debugfs", "thread names", "affinity"
"""What tells vCPU threads, in words for people."""

_NAME = re.compile(r"CPU ([0-9]{1,6})/(?:KVM|TCG)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """vCPU threads by id, and what told them; nothing when none were found."""

    tids: frozenset[int] = frozenset()
    evidence: str = ""


def identify(threads: Mapping[int, Thread], main: int, expected: int | None, *, told: Set[int], known: Found) -> Found:
    """The vCPU threads among a QEMU's threads.

    `main` is the id of its first thread, `expected` how many vCPUs it should have, `told` are ids that KVM names,
    `known` is what was found before. When more have run a guest or are named than expected, the guest keeps vCPUs that
    were unplugged; when fewer have run, and nothing else tells as many as expected, those that are certain are all.
    """
    ran = frozenset(tid for tid, thread in threads.items() if thread.guest_ticks)
    certain = ran | (told & threads.keys())
    evidence = GUEST_TIME if ran else DEBUGFS
    if certain and (expected is None or len(certain) >= expected):
        return Found(tids=certain, evidence=evidence)
    named = _by_name(threads)
    if named.tids and named.tids >= certain and (expected is None or len(named.tids) >= expected):
        return named
    masked = _by_affinity(threads, main, expected)
    if masked.tids and masked.tids >= certain:
        return masked
    rest = certain | (known.tids & threads.keys())
    if not rest:
        return Found()
    return Found(tids=rest, evidence=evidence if certain else known.evidence)


def _by_name(threads: Mapping[int, Thread]) -> Found:
    """Threads that are named as vCPUs are; nothing if a number is there twice.

    Numbers have gaps: Incus starts QEMU with one vCPU and plugs in the others from the last slot down.
    """
    numbers = {tid: int(match[1]) for tid, one in threads.items() if (match := _NAME.fullmatch(one.name))}
    if len(set(numbers.values())) != len(numbers):
        return Found()
    return Found(tids=frozenset(numbers), evidence=NAMES)


def _by_affinity(threads: Mapping[int, Thread], main: int, expected: int | None) -> Found:
    """Threads that somebody gave other CPUs than the main thread has, if there are as many as there should be.

    While a vCPU has threads of its own for reading and writing, which have its CPUs, there are too many.
    """
    if main not in threads:
        return Found()
    usual = threads[main].cpus
    found = frozenset(tid for tid, one in threads.items() if one.cpus != usual)
    return Found(tids=found, evidence=AFFINITY) if len(found) == expected else Found()
