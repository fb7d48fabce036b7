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
"""What is there now: which ids are vCPU threads, and by id all threads whose CPUs somebody may set."""


class Pinning:
    """Sets threads of one process; `name`, `online` CPUs and its `cgroup` are what messages and comparisons need."""

    def __init__(self, affinity: Affinity, *, name: str, online: CpuSet, cgroup: str) -> None:
        self._affinity = affinity
        self._name = name
        self._online = online
        self._cgroup = cgroup

    def pin(self, look: Look, cpus: CpuSet, around: CpuSet) -> None:
        """Let vCPU threads run on `cpus` and all others on `around`, until a look shows nothing else.

        A thread that cannot be set keeps no other from it. Raises ReportError, with the same text whenever the same is
        wrong; RetryError if it was not so after some rounds; and what `look` raises.
        """
        asked: dict[int, CpuSet] = {}
        refused: dict[int, OSError] = {}
        for _ in range(ROUNDS):
            vcpus, seen = look()
            wrong = self._wrong(vcpus, seen, cpus, around)
            stuck = {
                tid
                for tid, to in wrong.items()
                if asked.get(tid) == to and (tid in refused or seen[tid].cpus & self._online <= to)
            }
            if wrong.keys() == stuck:
                break
            # A thread that is made meanwhile has the CPUs of its maker, which is hardly ever a vCPU.
            for tid in sorted(wrong.keys() - stuck, key=lambda one: (one in vcpus, one)):
                self._set(tid, seen[tid], wrong[tid], refused)
                asked[tid] = wrong[tid]
        if stuck:
            # Threads come and go: whatever their ids are, the same one is named.
            tid = min(stuck, key=lambda one: (one not in vcpus, seen[one].name, one not in refused))
            raise self._failure(tid, seen, wrong[tid], refused.get(tid))
        if wrong:
            names = ", ".join(sorted({repr(seen[tid].name) for tid in wrong}))
            raise RetryError(
                f"threads of {self._name} are not where they were put: new ones appear, or somebody else puts them "
                f"elsewhere ({names})"
            )

    def _wrong(self, vcpus: Set[int], seen: Mapping[int, Thread], cpus: CpuSet, around: CpuSet) -> Mapping[int, CpuSet]:
        """Where the threads belong that are elsewhere."""
        wanted = {tid: cpus if tid in vcpus else around for tid in seen}
        own = {tid: seen[tid].cpus for tid in vcpus if tid in seen}
        if is_even(own) and union(own) & self._online == cpus & self._online:
            # The server gives each vCPU of an explicit list a CPU of its own, which is better still.
            wanted |= own
        return {tid: to for tid, to in wanted.items() if not self._is_there(seen[tid], to)}

    def _is_there(self, thread: Thread, cpus: CpuSet) -> bool:
        return thread.cpus & self._online == cpus & self._online

    def _set(self, tid: int, thread: Thread, cpus: CpuSet, refused: dict[int, OSError]) -> None:
        """Set one thread, or note why that is `refused`; one that has ended is neither."""
        refused.pop(tid, None)
        try:
            self._affinity.set_cpus(tid, thread, cpus)
        except OSError as error:
            if error.errno not in GONE:
                refused[tid] = error

    def _failure(self, tid: int, seen: Mapping[int, Thread], cpus: CpuSet, error: OSError | None) -> ReportError:
        """Why a thread is not on all of these CPUs; without an error the kernel took fewer than were asked for."""
        thread = seen[tid]
        if error is None:
            failure = ReportError(
                f"thread {thread.name!r} of {self._name} may run on CPUs {thread.cpus} only, not on all of {cpus}: the "
                f"others are not allowed by the cpuset {self._where()}"
            )
        else:
            is_taken = any(self._is_there(other, cpus) for other in seen.values())
            hint = self._hint(error, cpus, is_taken=is_taken)
            failure = ReportError(f"cannot put thread {thread.name!r} of {self._name} on CPUs {cpus or 'none'}: {hint}")
        failure.__cause__ = error
        return failure

    def _hint(self, error: OSError, cpus: CpuSet, *, is_taken: bool) -> str:
        """What a refusal means; `is_taken` says that another thread was let run on these CPUs."""
        if error.errno in {errno.EPERM, errno.EACCES}:
            return f"{error.strerror}; run as root (CAP_SYS_NICE)"
        if error.errno != errno.EINVAL:
            return f"{error.strerror}"
        if not cpus & self._online:
            return "none of them is online; they are chosen anew when the host has been looked at again"
        if is_taken:
            return "the kernel lets nobody set this thread, others of the process run there; it stays where it is"
        return f"none is both online and allowed by the cpuset {self._where()}"

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
