"""Which threads are taken for vCPUs, from the values that the kernel shows."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.host.threads import Thread
from incus_numa.host.vcpus import AFFINITY, DEBUGFS, GUEST_TIME, NAMES, Found, identify

MAIN = 10
NOTHING = Found()


def qemu(**more: tuple[str, int, str]) -> dict[int, Thread]:
    """A main thread and further ones as `t11=(name, guest ticks, CPUs)`."""
    given = {"t10": ("qemu-system-x86", 0, "0-7"), **more}
    return {
        int(key[1:]): Thread(name=name, guest_ticks=ticks, cpus=CpuSet.parse(cpus), folder="")
        for key, (name, ticks, cpus) in given.items()
    }


RAN = qemu(t11=("x", 5, "0-7"), t12=("x", 5, "0-7"), t13=("x", 0, "0-7"))
NAMED = qemu(t11=("CPU 0/KVM", 0, "0-7"), t12=("CPU 7/TCG", 0, "0-7"), t13=("worker", 0, "0-7"))
MASKED = qemu(t11=("x", 0, "2-3"), t12=("x", 0, "2-3"), t13=("x", 0, "0-7"))
BOTH = frozenset({11, 12})


@pytest.mark.parametrize(
    ("threads", "expected", "told", "known", "found"),
    [
        (RAN, 2, set(), NOTHING, Found(tids=BOTH, evidence=GUEST_TIME)),
        (RAN, 1, set(), NOTHING, Found(tids=BOTH, evidence=GUEST_TIME)),
        (RAN, None, set(), NOTHING, Found(tids=BOTH, evidence=GUEST_TIME)),
        (RAN, 3, set(), NOTHING, Found(tids=BOTH, evidence=GUEST_TIME)),
        (RAN, 3, {13}, NOTHING, Found(tids=BOTH | {13}, evidence=GUEST_TIME)),
        (MASKED, 2, {11, 12}, NOTHING, Found(tids=BOTH, evidence=DEBUGFS)),
        (MASKED, 3, {11, 12, 99}, NOTHING, Found(tids=BOTH, evidence=DEBUGFS)),
        (NAMED, 2, set(), NOTHING, Found(tids=BOTH, evidence=NAMES)),
        (NAMED, None, set(), NOTHING, Found(tids=BOTH, evidence=NAMES)),
        (NAMED, 1, set(), NOTHING, Found(tids=BOTH, evidence=NAMES)),
        (NAMED, 3, set(), NOTHING, NOTHING),
        (NAMED, 2, {13}, NOTHING, Found(tids=frozenset({13}), evidence=DEBUGFS)),
        (MASKED, 2, set(), NOTHING, Found(tids=BOTH, evidence=AFFINITY)),
        (MASKED, 1, set(), NOTHING, NOTHING),
        (MASKED, 3, set(), NOTHING, NOTHING),
        (MASKED, None, set(), NOTHING, NOTHING),
        (MASKED, 2, {11}, NOTHING, Found(tids=BOTH, evidence=AFFINITY)),
        (MASKED, 2, {13}, NOTHING, Found(tids=frozenset({13}), evidence=DEBUGFS)),
        (
            MASKED,
            3,
            set(),
            Found(tids=frozenset({11, 77}), evidence=NAMES),
            Found(tids=frozenset({11}), evidence=NAMES),
        ),
        (qemu(), 0, set(), NOTHING, NOTHING),
        ({}, 2, set(), Found(tids=BOTH, evidence=NAMES), NOTHING),
    ],
)
def test_vcpus_are_those_that_ran_a_guest_else_as_many_as_there_should_be(
    threads: dict[int, Thread], expected: int | None, told: set[int], known: Found, found: Found
) -> None:
    assert identify(threads, MAIN, expected, told=told, known=known) == found
