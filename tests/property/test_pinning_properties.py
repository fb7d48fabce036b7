"""Whatever threads appear and vanish while a process is pinned: in the end each is where it belongs."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet
from incus_numa.errors import ReportError, RetryError
from incus_numa.host.pinning import ROUNDS, Pinning, is_even
from incus_numa.host.threads import Thread

ONLINE = CpuSet(range(8))
CPUS, AROUND = CpuSet.parse("2-3"), CpuSet.parse("0-3")
LONG = 40


@dataclass(kw_only=True)
class Qemu:
    """Threads whose makers have offspring when they are set, and some of which end before that.

    `births` and `deaths` are used up, one for each thread that is set: which thread makes one, and whether that is a
    vCPU; and which one ends.
    """

    vcpus: set[int]
    threads: dict[int, Thread]
    births: list[tuple[int, bool] | None] = field(default_factory=list)
    deaths: list[int | None] = field(default_factory=list)
    limit: CpuSet = ONLINE
    refuses: str | None = None
    """Threads of this name cannot be set."""

    def look(self) -> tuple[set[int], Mapping[int, Thread]]:
        return self.vcpus & self.threads.keys(), dict(self.threads)

    def set_cpus(self, tid: int, thread: Thread, cpus: CpuSet) -> None:
        self._live()
        if tid not in self.threads:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        if not cpus & self.limit or thread.name == self.refuses:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.threads[tid] = replace(self.threads[tid], cpus=cpus & self.limit)

    def _live(self) -> None:
        birth = self.births.pop() if self.births else None
        if birth is not None:
            maker = sorted(self.threads)[birth[0] % len(self.threads)]
            tid = max(self.threads) + 1
            self.threads[tid] = self.threads[maker]
            if birth[1]:
                self.vcpus.add(tid)
        death = self.deaths.pop() if self.deaths else None
        if death is not None and len(self.threads) > 1:
            del self.threads[sorted(self.threads)[1:][death % (len(self.threads) - 1)]]


def thread(cpus: CpuSet = ONLINE, name: str = "qemu") -> Thread:
    return Thread(name=name, guest_ticks=0, cpus=cpus, folder="")


def pinning(qemu: Qemu) -> Pinning:
    return Pinning(qemu, name="process 1", online=ONLINE, cgroup="/system.slice/incus.service")


sets = st.sets(st.integers(0, 7), min_size=1).map(CpuSet)
births = st.lists(st.none() | st.tuples(st.integers(0, 20), st.booleans()), max_size=5)
deaths = st.lists(st.none() | st.integers(0, 20), max_size=8)


@given(st.lists(st.tuples(sets, st.booleans()), min_size=1, max_size=8), births, deaths, sets, sets)
def test_every_thread_is_in_the_end_on_its_cpus_or_around(
    made: list[tuple[CpuSet, bool]],
    births: list[tuple[int, bool] | None],
    deaths: list[int | None],
    cpus: CpuSet,
    around: CpuSet,
) -> None:
    threads = {tid: thread(has) for tid, (has, _) in enumerate(made, start=1)}
    vcpus = {tid for tid, (_, is_vcpu) in enumerate(made, start=1) if is_vcpu}
    # As long as births do not go on for ever, they come to an end in the rounds that there are.
    qemu = Qemu(vcpus=vcpus, threads=threads, births=births, deaths=deaths)
    pinning(qemu).pin(qemu.look, cpus, around)
    left = {tid: one.cpus for tid, one in qemu.threads.items()}
    own = {tid: has for tid, has in left.items() if tid in qemu.vcpus}
    assert {has for tid, has in left.items() if tid not in qemu.vcpus} <= {around}
    assert CpuSet.from_mask(reduce(or_, (has.mask for has in own.values()), 0)) == (cpus if own else CpuSet())
    assert is_even(own)


def test_thread_that_is_born_on_every_change_is_given_up_for_now() -> None:
    qemu = Qemu(vcpus=set(), threads={1: thread(), 2: thread()}, births=[(LONG, False)] * LONG)
    qemu.threads[2] = thread(CPUS)

    def look() -> tuple[set[int], Mapping[int, Thread]]:
        # Its maker is always the one that is not where it belongs.
        qemu.threads[max(qemu.threads) + 1] = thread()
        return qemu.look()

    with pytest.raises(RetryError, match="threads of process 1 are not where they were put"):
        pinning(qemu).pin(look, CPUS, AROUND)


def test_vcpus_come_last() -> None:
    order: list[int] = []

    class Recording:
        def set_cpus(self, tid: int, thread: Thread, cpus: CpuSet) -> None:
            order.append(tid)
            qemu.set_cpus(tid, thread, cpus)

    qemu = Qemu(vcpus={2, 3}, threads={tid: thread() for tid in range(1, 6)})
    Pinning(Recording(), name="process 1", online=ONLINE, cgroup="").pin(qemu.look, CPUS, AROUND)
    assert order == [1, 4, 5, 2, 3]


def test_nothing_is_set_where_all_is_right() -> None:
    qemu = Qemu(vcpus={2}, threads={1: thread(AROUND), 2: thread(CPUS)}, deaths=[0])
    pinning(qemu).pin(qemu.look, CPUS, AROUND)
    assert qemu.deaths == [0]


def test_cpuset_that_leaves_fewer_cpus_is_said_and_named() -> None:
    qemu = Qemu(vcpus=set(), threads={1: thread()}, limit=CpuSet.parse("0-1"))
    with pytest.raises(
        ReportError,
        match=r"may run on CPUs 0-1 only, not on all of 0-3: .* /system.slice/incus.service; see AllowedCPUs=",
    ):
        pinning(qemu).pin(qemu.look, CPUS, AROUND)


def test_cpuset_that_leaves_none_is_said() -> None:
    qemu = Qemu(vcpus={1}, threads={1: thread()}, limit=CpuSet.parse("0-1"))
    told = (
        "cannot put thread 'qemu' of process 1 on CPUs 2-3: none is both online and allowed by the cpuset of its "
        "cgroup /system.slice/incus.service; see AllowedCPUs= of its unit"
    )
    with pytest.raises(ReportError, match=f"^{told}$"):
        pinning(qemu).pin(qemu.look, CPUS, AROUND)


def test_somebody_else_who_puts_threads_elsewhere_is_tried_again_later() -> None:
    qemu = Qemu(vcpus=set(), threads={1: thread()})
    looks = 0

    def look() -> tuple[set[int], Mapping[int, Thread]]:
        nonlocal looks
        looks += 1
        qemu.threads[1] = thread()
        return qemu.look()

    with pytest.raises(RetryError, match=r"\('qemu'\)"):
        pinning(qemu).pin(look, CPUS, AROUND)
    assert looks == ROUNDS


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EPERM, "run as root"), (errno.EACCES, "run as root"), (errno.EIO, "")]
)
def test_refusal_of_the_kernel_is_said(number: int, hint: str) -> None:
    class Refusing:
        def set_cpus(self, tid: int, thread: Thread, cpus: CpuSet) -> None:
            raise OSError(number, os.strerror(number))

    qemu = Qemu(vcpus=set(), threads={1: thread()})
    with pytest.raises(ReportError, match=f"{os.strerror(number)}.*{hint}"):
        Pinning(Refusing(), name="process 1", online=ONLINE, cgroup="").pin(qemu.look, CPUS, AROUND)


def refusing(first: int, count: int = 1) -> Qemu:
    """A QEMU with two vCPUs and, with ids from `first` on, workers that nobody can set."""
    workers = {tid: thread(name="worker") for tid in range(first, first + count)}
    return Qemu(vcpus={20, 21}, threads={10: thread(), 20: thread(), 21: thread(), **workers}, refuses="worker")


def refusal(qemu: Qemu) -> str:
    with pytest.raises(ReportError) as caught:
        pinning(qemu).pin(qemu.look, CPUS, AROUND)
    return str(caught.value)


def test_thread_that_cannot_be_set_keeps_no_other_from_it() -> None:
    qemu = refusing(12)
    refusal(qemu)
    assert {tid: one.cpus for tid, one in qemu.threads.items()} == {10: AROUND, 20: CPUS, 21: CPUS, 12: ONLINE}


def test_refusal_has_the_same_text_whichever_thread_it_is_and_no_untrue_hint() -> None:
    assert {refusal(refusing(first, count)) for first, count in ((12, 1), (5, 3), (40, 2))} == {
        "cannot put thread 'worker' of process 1 on CPUs 0-3: the kernel lets nobody set this thread, others of the "
        "process run there; it stays where it is"
    }


def test_thread_that_cannot_be_set_and_ends_meanwhile_is_nothing_to_tell() -> None:
    qemu = refusing(12)
    looks = 0

    def look() -> tuple[set[int], Mapping[int, Thread]]:
        nonlocal looks
        looks += 1
        if looks == 2:
            del qemu.threads[12]
        return qemu.look()

    pinning(qemu).pin(look, CPUS, AROUND)
    assert {tid: one.cpus for tid, one in qemu.threads.items()} == {10: AROUND, 20: CPUS, 21: CPUS}


def test_narrowed_thread_keeps_those_after_it_from_nothing() -> None:
    qemu = Qemu(vcpus={3}, threads={1: thread(), 3: thread()}, limit=CpuSet.parse("2-3"))
    assert "'qemu' of process 1 may run on CPUs 2-3 only, not on all of 0-3" in refusal(qemu)
    assert qemu.threads[3].cpus == CPUS


def test_cpus_of_which_none_is_online_are_not_blamed_on_a_cpuset() -> None:
    qemu = Qemu(vcpus={1}, threads={1: thread()})
    with pytest.raises(ReportError, match="cannot put thread 'qemu' of process 1 on CPUs 9: none of them is online; "):
        pinning(qemu).pin(qemu.look, CpuSet([9]), AROUND)
