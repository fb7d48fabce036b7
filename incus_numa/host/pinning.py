"""Brings all threads of a process to the CPUs that they belong on. Called by `virtual`."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Set

from incus_numa.cpuset import CpuSet
from incus_numa.errors import ReportError, RetryError
from incus_numa.host.threads import GONE, Affinity, Thread

ROUNDS = 8
"""So often threads are set and read back: new ones appear meanwhile, with the CPUs of those that made them."""

Look = Callable[[], tuple[Set[int], Mapping[int, Thread]]]
"""What is there now: which ids are vCPU threads, and all threads by id."""


class Pinning:
    """Sets threads of one process; `name`, `online` CPUs and its `cgroup` are what messages and comparisons need."""

    def __init__(self, affinity: Affinity, *, name: str, online: CpuSet, cgroup: str) -> None:
        self._affinity = affinity
        self._name = name
        self._online = online
        self._cgroup = cgroup

    def pin(self, look: Look, cpus: CpuSet, around: CpuSet) -> None:
        """Let vCPU threads run on `cpus` and all others on `around`, until a look shows nothing else.

        Raises ReportError; RetryError if it was not so after some rounds; and what `look` raises.
        """
        done: dict[int, CpuSet] = {}
        wrong: Mapping[int, CpuSet] = {}
        for _ in range(ROUNDS):
            vcpus, seen = look()
            wanted = {tid: cpus if tid in vcpus else around for tid in seen}
            own = {tid: seen[tid].cpus for tid in vcpus if tid in seen}
            if is_even(own) and union(own) == cpus:
                # The server gives each vCPU of an explicit list a CPU of its own, which is better still.
                wanted |= own
            wrong = {tid: to for tid, to in wanted.items() if seen[tid].cpus & self._online != to & self._online}
            if not wrong:
                return
            for tid, to in wrong.items():
                if done.get(tid) == to and seen[tid].cpus <= to:
                    raise self._narrowed(tid, seen[tid].cpus, to)
            # A thread that is made meanwhile has the CPUs of its maker, which is hardly ever a vCPU.
            for tid in sorted(wrong, key=lambda one: (one in vcpus, one)):
                self._set(tid, seen[tid], wrong[tid])
            done |= wrong
        raise RetryError(
            f"threads of {self._name} are not where they were put: new ones appear, or somebody else puts them "
            f"elsewhere ({', '.join(map(str, sorted(wrong)))})"
        )

    def _set(self, tid: int, thread: Thread, cpus: CpuSet) -> None:
        try:
            self._affinity.set_cpus(tid, thread, cpus)
        except OSError as error:
            if error.errno in GONE:
                return
            hint = error.strerror
            if error.errno == errno.EINVAL:
                hint = f"none is both online and allowed by the cpuset {self._where()}"
            elif error.errno in {errno.EPERM, errno.EACCES}:
                hint = f"{error.strerror}; run as root (CAP_SYS_NICE)"
            raise ReportError(f"cannot put thread {tid} of {self._name} on CPUs {cpus or 'none'}: {hint}") from error

    def _narrowed(self, tid: int, found: CpuSet, wanted: CpuSet) -> ReportError:
        """The kernel took fewer CPUs than were asked for."""
        return ReportError(
            f"thread {tid} of {self._name} may run on CPUs {found} only, not on all of {wanted}: the others are not "
            f"allowed by the cpuset {self._where()}"
        )

    def _where(self) -> str:
        return f"of its cgroup {self._cgroup or '(unknown)'}; see AllowedCPUs= of its unit"


def is_even(masks: Mapping[int, CpuSet]) -> bool:
    """Whether all threads have the same CPUs, or each has its own."""
    found = union(masks)
    return all(cpus == found for cpus in masks.values()) or sum(map(len, masks.values())) == len(found)


def union(masks: Mapping[int, CpuSet]) -> CpuSet:
    """All CPUs that some of the threads may run on."""
    found = CpuSet()
    for cpus in masks.values():
        found |= cpus
    return found
