"""Moves memory of running instances from node to node in short slices. Called by the applier.

Writing `cpuset.mems` moves everything in one call of the kernel that nothing can pace or stop; here each call has about
20 ms of work. Only anonymous and shared memory moves; pages of files stay where they are.
"""

from __future__ import annotations

import errno
import time
from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from incus_numa.cpuset import NodeSet
from incus_numa.errors import GoneError, ReportError
from incus_numa.host.mappings import Area, parse_areas
from incus_numa.host.owners import Owner, find_owner
from incus_numa.host.pagemap import Pagemap
from incus_numa.host.syscalls import UNKNOWN, LibcCalls, PageCalls
from incus_numa.model.plan import MovePages
from incus_numa.quantities import render_bytes

SLICE_S = 0.02
"""How long the work of one slice is meant to take."""

LEAST_PAGES, MOST_PAGES = 512, 1 << 18
"""Pages in a slice: the first one has the least. With fewer, what each call costs by itself would be most of it."""

ROUNDS = 5
"""How often all processes are looked at: while memory moves, they go on to use it."""

LITTLE_BYTES = 1 << 20
"""A round that moved less was the last one: what it left cannot be moved."""

COUNTED_BYTES = 512 << 20
"""Processes with more memory are not asked for `numa_maps`, which the kernel makes in one go while it locks the
process's mappings: it takes about 100 ns for each page."""

_PROC = Path("/proc")


class NoPages:
    """A PageMover that moves nothing, for trees of files that only look like a kernel."""

    def move(self, group: Path, step: MovePages) -> Iterator[int]:
        """No slices."""
        return iter(())


def page_mover(procfs: Path) -> Pages | NoPages:
    """What moves memory on this host. Process ids of any other tree than /proc could be real ones of somebody else."""
    return Pages(procfs, LibcCalls()) if procfs == _PROC else NoPages()


class SliceSize:
    """How many pages the next slice should have to take SLICE_S."""

    def __init__(self) -> None:
        self.pages = LEAST_PAGES

    def learn(self, pages: int, took_s: float) -> None:
        """Fit it to what the last slice took, if that had enough pages to tell. At most twice as many as before."""
        fitting = round(pages * SLICE_S / max(took_s, 1e-6))
        if took_s > SLICE_S or pages * 2 > self.pages:
            self.pages = max(LEAST_PAGES, min(fitting, self.pages * 2, MOST_PAGES))


class Pages:
    """A PageMover by move_pages(2)."""

    def __init__(self, procfs: Path, calls: PageCalls) -> None:
        """`procfs` must be that of the kernel that `calls` are made to."""
        self._procfs = procfs
        self._calls = calls

    def move(self, group: Path, step: MovePages) -> Iterator[int]:
        """Each item is one slice: the bytes that it moved. Raises GoneError, ReportError.

        `group` is a cgroup, or a process's folder in `/proc`.
        """
        work = _Work(step)
        owner = find_owner(self._procfs, group)
        for number in range(ROUNDS):
            before, work.left_bytes = work.moved_bytes, 0
            for pid in owner.list():
                try:
                    yield from self._move_process(owner, pid, work)
                except OSError as error:
                    _pass_over(error, pid, work)
            # What was busy for a moment gets a second chance.
            if work.moved_bytes - before < LITTLE_BYTES and (number or not work.left_bytes):
                break
        if not owner.is_there():
            raise GoneError(f"{group} no longer exists")
        if work.refusal and not work.moved_bytes:
            raise ReportError(work.refusal)

    def _move_process(self, owner: Owner, pid: int, work: _Work) -> Iterator[int]:
        """Slices of one process. Raises OSError."""
        calls = self._calls
        with closing(Pagemap(f"{self._procfs}/{pid}/pagemap", calls.page_bytes, calls.large_bytes)) as pagemap:
            areas = self._read_areas(pid, pagemap, work.sources)
            # The id may have been given to another process since the group was read. From here on the open file tells.
            if not areas or not owner.has(pid):
                return
            yield 0
            walk = _Walk(pagemap, areas)
            while not walk.is_over and pagemap.is_alive():
                yield self._slice(pid, walk, work)

    def _slice(self, pid: int, walk: _Walk, work: _Work) -> int:
        """One slice of work: the bytes that moved."""
        began = time.perf_counter()
        batch = self._next_batch(pid, walk, work, until=began + SLICE_S / 2)
        if not batch.addresses:
            return 0
        target = work.next_target()
        left = batch
        try:
            left = batch.elsewhere(self._push(pid, batch.addresses, target), target)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            work.drop_target(target)
        if left.addresses:
            left = left.on(self._calls.query(pid, left.addresses), work.sources)
        moved = batch.size_bytes - left.size_bytes
        work.moved_bytes += moved
        work.left_bytes += left.size_bytes
        work.size.learn(batch.size_bytes // self._calls.page_bytes, time.perf_counter() - began)
        return moved

    def _next_batch(self, pid: int, walk: _Walk, work: _Work, *, until: float) -> _Batch:
        """The next pages on the sources; without any when there are none, or none was found until then."""
        while True:
            small, large = walk.collect(work.size.pages, self._calls, until=until)
            batch = _Batch(addresses=large + small, large=len(large), calls=self._calls)
            if batch.addresses:
                batch = batch.on(self._calls.query(pid, batch.addresses), work.sources)
            if batch.addresses or walk.is_over or time.perf_counter() > until:
                return batch

    def _push(self, pid: int, addresses: array[int], target: int) -> array[int]:
        """Move the pages of one slice, in as many calls as it takes to try each: the status of every page."""
        statuses = array("i")
        while len(statuses) < len(addresses):
            rest = addresses[len(statuses) :]
            answers = self._calls.move(pid, rest, target)
            tried = count_tried(rest, answers, self._calls.large_bytes)
            statuses += answers[:tried]
        return statuses

    def _read_areas(self, pid: int, pagemap: Pagemap, sources: NodeSet) -> tuple[Area, ...]:
        """Where a process can have pages to move. Raises OSError."""
        resident = int(self._read(pid, "statm").split()[1]) * self._calls.page_bytes
        is_counted = not pagemap.can_scan or resident <= COUNTED_BYTES
        numa_maps = self._read(pid, "numa_maps") if is_counted else None
        return parse_areas(self._read(pid, "maps"), numa_maps, sources)

    def _read(self, pid: int, name: str) -> str:
        # Names of files in a container are any bytes.
        return (self._procfs / str(pid) / name).read_text(errors="surrogateescape")


class _Walk:
    """Goes through the areas of a process, of which there is at least one."""

    def __init__(self, pagemap: Pagemap, areas: tuple[Area, ...]) -> None:
        self._pagemap = pagemap
        self._areas = list(reversed(areas))
        self._at = areas[0].start

    @property
    def is_over(self) -> bool:
        return not self._areas

    def collect(self, most: int, calls: PageCalls, *, until: float) -> tuple[array[int], array[int]]:
        """The next pages, small and large: about `most` in small ones, or what is found until then."""
        small, large = array("Q"), array("Q")
        share = calls.large_bytes // calls.page_bytes
        while self._areas and (missing := most - len(small) - len(large) * share) > 0:
            area = self._areas[-1]
            found = self._pagemap.look(area, self._at, missing)
            small += found.small
            large += found.large
            is_stuck = found.end <= self._at
            self._at = found.end
            if is_stuck or self._at >= area.end:
                self._areas.pop()
                self._at = max(self._at, self._areas[-1].start) if self._areas else self._at
            if time.perf_counter() > until:
                break
        return small, large


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Pages that move together; the first `large` of them are large ones."""

    addresses: array[int]
    large: int
    calls: PageCalls

    @property
    def size_bytes(self) -> int:
        return self.large * self.calls.large_bytes + (len(self.addresses) - self.large) * self.calls.page_bytes

    def on(self, statuses: array[int], nodes: NodeSet) -> _Batch:
        """Those that are on certain nodes."""
        wanted = frozenset(nodes)
        return self._keep([status in wanted for status in statuses])

    def elsewhere(self, statuses: array[int], node: int) -> _Batch:
        """Those that are not, or not known to be, on a node."""
        return self._keep([status != node for status in statuses])

    def _keep(self, flags: list[bool]) -> _Batch:
        kept = array("Q", [address for address, flag in zip(self.addresses, flags, strict=True) if flag])
        return _Batch(addresses=kept, large=sum(flags[: self.large]), calls=self.calls)


class _Work:
    """What a move has done so far."""

    def __init__(self, step: MovePages) -> None:
        self.sources = step.sources
        self.size = SliceSize()
        self.moved_bytes = 0
        self.left_bytes = 0
        self.refusal = ""
        self._targets = list(step.targets)
        self._all = step.targets

    def next_target(self) -> int:
        """The node of the next slice: each in turn, so that memory is spread evenly."""
        target = self._targets.pop(0)
        self._targets.append(target)
        return target

    def drop_target(self, target: int) -> None:
        """Send nothing more to a node. Raises ReportError when it was the last one."""
        self._targets.remove(target)
        if not self._targets:
            told = f"node{'s' if len(self._all) > 1 else ''} {self._all}"
            raise ReportError(f"{told} cannot take more memory: full after {render_bytes(self.moved_bytes)}")


def count_tried(addresses: array[int], statuses: array[int], large_bytes: int) -> int:
    """How many of the pages were tried, 1 at least.

    The kernel collects pages, and moves what it has when it meets one that cannot be collected, whose status it tells
    first. If a collected one does not move, it stops there and tells no status from the first collected one on but
    that. Parts of a large page are such: the first stands for all.
    """
    known = next((at for at in range(len(statuses) - 1, -1, -1) if statuses[at] != UNKNOWN), None)
    if not known or statuses[known - 1] != UNKNOWN:
        return len(statuses)
    tried = known + 1
    if known < 2 or statuses[known - 2] != UNKNOWN:
        # One page alone did not move: the rest of it would not either.
        block = addresses[known - 1] // large_bytes
        while tried < len(addresses) and addresses[tried] // large_bytes == block:
            tried += 1
    return tried


def _pass_over(error: OSError, pid: int, work: _Work) -> None:
    """What an error means for one process. Raises ReportError when it means the same for all of them."""
    match error.errno:
        case errno.ENOENT | errno.ESRCH:
            return
        case errno.EPERM:
            raise _not_permitted(error, pid) from error
        case errno.EACCES if error.filename is not None:
            raise _not_permitted(error, pid) from error
        case errno.ENOSYS:
            raise ReportError("this kernel cannot move memory: it has no move_pages (CONFIG_MIGRATION)") from error
        case errno.EACCES:
            work.refusal = f"process {pid} may not have memory on all of the nodes: its own cpuset is narrower"
        case _:
            work.refusal = f"cannot move memory of process {pid}: {error.strerror}"


def _not_permitted(error: OSError, pid: int) -> ReportError:
    return ReportError(
        f"cannot move memory of process {pid}: {error.strerror}; run as root (CAP_SYS_NICE, CAP_SYS_PTRACE)"
    )
