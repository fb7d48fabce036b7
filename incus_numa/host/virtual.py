"""Virtual machines as the kernel shows them: QEMU processes, their threads and their memory.

Called by `daemon.observe`, the applier and `check`. A virtual machine has no cgroup of its own, so its vCPU threads get
their CPUs one by one, and what we decided for it is kept in a file that is about this run of its process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from incus_numa.cpuset import CpuSet
from incus_numa.errors import GoneError, ReportError
from incus_numa.host import threads, vcpus
from incus_numa.host.guest_memory import GuestMemory, VmMemory
from incus_numa.host.marks import Marks
from incus_numa.host.pinning import Pinning, is_even, union
from incus_numa.host.threads import Affinity, Thread, VhostThreads, affinity
from incus_numa.host.vcpus import Found
from incus_numa.model.snapshot import Decided

MOST_KNOWN = 64
"""Of so many processes is remembered what is known, without a look at which have ended."""

_ENDED = {"Z", "X", "x"}


@dataclass(frozen=True, slots=True)
class Process:
    """One run of a process: `started`, in ticks since boot, tells it from a later one that has its id."""

    pid: int
    started: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VmState:
    """Threads of a virtual machine by id, with the online CPUs that each may run on; none whose CPUs nobody may set.

    `vcpus` is empty when none were identified; `evidence` says in a word for people what told them, empty then, too.
    """

    vcpus: Mapping[int, CpuSet]
    others: Mapping[int, CpuSet]
    decided: Decided | None
    evidence: str

    @property
    def cpus(self) -> CpuSet | None:
        """All CPUs that some vCPU may run on; None when no vCPU was identified."""
        return union(self.vcpus) if self.vcpus else None

    @property
    def is_even(self) -> bool:
        """Whether all vCPUs have the same CPUs, or each has its own."""
        return is_even(self.vcpus)

    @property
    def around(self) -> CpuSet | None:
        """All CPUs that some other thread may run on; None without any."""
        return union(self.others) if self.others else None


class VirtualMachines:
    """Reads and sets threads of QEMU processes below `procfs`.

    May be called from several threads at once for different processes.
    """

    def __init__(self, procfs: Path, sysfs: Path, marks: Path) -> None:
        """`marks` is a folder for what was decided, such as /run/incus-numa/vms; it is made when needed."""
        self._procfs = str(procfs)
        self._kvm = f"{sysfs}/kernel/debug/kvm"
        self._online = f"{sysfs}/devices/system/cpu/online"
        self._affinity: Affinity = affinity(procfs)
        self._vhost = VhostThreads(self._procfs)
        self.guests = GuestMemory(self._procfs)
        self._marks = Marks(marks, lambda pid, started: self.is_live(Process(pid, started)))
        self._known: dict[Process, Found] = {}
        self._most_known = MOST_KNOWN

    def find(self, pid: int) -> Process | None:
        """The process that has an id now; None if there is none."""
        try:
            stat = threads.parse_stat(threads.read_file(f"{self._procfs}/{pid}/stat"))
        except ReportError:
            return None
        return None if stat is None or stat.state in _ENDED else Process(pid, stat.started)

    def is_live(self, process: Process) -> bool:
        """Whether a process still runs."""
        return self.find(process.pid) == process

    def folder(self, process: Process) -> Path:
        """Where the kernel shows the process."""
        return Path(self._procfs, str(process.pid))

    def read(self, process: Process, vcpus: int | None) -> VmState:
        """The threads of a process that should have so many vCPUs (None: not known). Raises GoneError, ReportError."""
        found, others = self._look(process, vcpus)
        self._require(process)
        return VmState(
            vcpus={tid: one.cpus for tid, one in others.items() if tid in found.tids},
            others={tid: one.cpus for tid, one in others.items() if tid not in found.tids},
            decided=self.read_mark(process),
            evidence=found.evidence,
        )

    def pin(self, process: Process, vcpus: int | None, cpus: CpuSet, around: CpuSet) -> None:
        """Let vCPU threads run on `cpus`, all others on `around`, and verify; all are others when none is identified.

        Raises GoneError, ReportError; RetryError if it was not so in the end.
        """
        pinning = Pinning(
            self._affinity, name=f"process {process.pid}", online=self._read_online(), cgroup=self._cgroup(process.pid)
        )

        def look() -> tuple[frozenset[int], Mapping[int, Thread]]:
            found, seen = self._look(process, vcpus)
            self._require(process)
            return found.tids, seen

        pinning.pin(look, cpus, around)

    def mark(self, process: Process, decided: Decided) -> None:
        """Keep a decision for as long as the process runs."""
        self._marks.write(process.pid, process.started, decided)

    def unmark(self, process: Process) -> None:
        """Forget a decision; nothing happens when there is none."""
        self._marks.remove(process.pid, process.started)

    def read_mark(self, process: Process) -> Decided | None:
        """The decision that is kept for a process, None without one."""
        return self._marks.read(process.pid, process.started)

    def memory(self, process: Process, *, fresh: bool = False) -> VmMemory:
        """Where its memory is and comes from; a minute old, or older where it is large, unless `fresh`.

        To read it anew the kernel walks all pages, which takes about 25 ms for each GiB in small ones.
        """
        return self.guests.read(process.pid, process.started, fresh=fresh)

    def _look(self, process: Process, expected: int | None) -> tuple[Found, dict[int, Thread]]:
        """The vCPU threads, and all threads of the process and for it. Raises GoneError, ReportError."""
        own = threads.read_threads(f"{self._procfs}/{process.pid}")
        if not own:
            raise GoneError(f"process {process.pid} has ended")
        # They say nothing about where others are or belong, and none of them runs a guest.
        own = {tid: one for tid, one in own.items() if not one.is_fixed}
        known = self._known.get(process, Found())
        ran = sum(1 for one in own.values() if one.guest_ticks)
        is_told = ran and (expected is None or ran >= expected)
        told = frozenset() if is_told else self._told(process.pid)
        found = Found()
        if ran or told or self._is_qemu(process.pid, own):
            found = vcpus.identify(own, process.pid, expected, told=told, known=known)
        if found != known:
            self._keep(process, found)
        return found, self._online_part({**own, **self._vhost.read(process.pid)})

    def _online_part(self, seen: Mapping[int, Thread]) -> dict[int, Thread]:
        """The threads with those of their CPUs that are online. Raises ReportError.

        A mask keeps CPUs that go offline. Where it has no other, the kernel forgets it when the thread is next woken
        up, which may run on all CPUs of its cpuset from then on (select_fallback_rq() in kernel/sched/core.c).
        """
        online = self._read_online()
        return {tid: replace(one, cpus=one.cpus & online or online) for tid, one in seen.items()}

    def _keep(self, process: Process, found: Found) -> None:
        """Remember it, and forget processes that have ended whenever twice as many are known as did not then."""
        if len(self._known) >= self._most_known:
            self._known = {one: kept for one, kept in tuple(self._known.items()) if self.is_live(one)}
            self._most_known = max(MOST_KNOWN, 2 * len(self._known))
        self._known[process] = found

    def _told(self, pid: int) -> frozenset[int]:
        """Ids of the threads that KVM has last seen run each vCPU: `PID-FD/vcpuN/pid`, since Linux 5.18."""
        found = set()
        try:
            for machine in threads.list_folder(self._kvm):
                if machine.partition("-")[0] == str(pid):
                    for name in threads.list_folder(f"{self._kvm}/{machine}"):
                        text = threads.read_file(f"{self._kvm}/{machine}/{name}/pid") if name[:4] == "vcpu" else b""
                        if text.strip().isdigit():
                            found.add(int(text))
        except ReportError:
            # Nobody but root may look there, and not even root on a locked down kernel.
            return frozenset()
        return frozenset(found)

    def _is_qemu(self, pid: int, own: Mapping[int, Thread]) -> bool:
        """Whether names and CPUs of threads may be trusted to mean what they mean in QEMU."""
        main = own.get(pid)
        if main is not None and main.name.startswith("qemu"):
            return True
        try:
            return Path(self._procfs, str(pid), "exe").readlink().name.startswith("qemu")
        except OSError:
            return False

    def _require(self, process: Process) -> None:
        if not self.is_live(process):
            raise GoneError(f"process {process.pid} has ended")

    def _read_online(self) -> CpuSet:
        """CPUs that are online. Raises ReportError."""
        try:
            online = CpuSet.parse(threads.read_file(self._online).decode("ascii", "replace"))
        except ValueError as error:
            raise ReportError(f"{self._online}: {error}") from error
        if not online:
            raise ReportError(f"{self._online} names no CPU")
        return online

    def _cgroup(self, pid: int) -> str:
        """The cgroup of a process that may limit its CPUs; empty when it is not known."""
        for line in threads.read_file(f"{self._procfs}/{pid}/cgroup").decode("utf-8", "replace").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0" or "cpuset" in controllers.split(","):
                return path
        return ""
