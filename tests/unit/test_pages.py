"""What moves, what stays and how it ends: over a fake kernel, and with the calls of the kernel that runs the tests."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import NodeSet
from incus_numa.errors import GoneError, ReportError
from incus_numa.host.mappings import Area
from incus_numa.host.owners import list_processes
from incus_numa.host.pagemap import Pagemap
from incus_numa.host.pages import LEAST_PAGES, NoPages, Pages, SliceSize, count_tried, page_mover
from incus_numa.host.syscalls import UNKNOWN, LibcCalls, PageCalls, system_call_number
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.model.plan import MovePages
from incus_numa.simulator import groups
from incus_numa.simulator.kernel import Kernel
from incus_numa.simulator.pages import SimulatedPages
from tests import builders
from tests.virtual import qemu_host

PAGE, LARGE = 4096, 8 * 4096
KEY = InstanceKey("default", "c1")
PID = 4242


def step(sources: str = "0", targets: str = "1") -> MovePages:
    return MovePages(key=KEY, sources=NodeSet.parse(sources), targets=NodeSet.parse(targets), size_bytes=1 << 30)


@dataclass(kw_only=True)
class FakeCalls:
    """A kernel's answers as mm/migrate.c gives them. Pages and large pages by number, `nodes` by page.

    What is `stuck` does not move for as many tries, `room` is how many pages a node can still take (else any number).
    """

    nodes: dict[int, dict[int, int]] = field(default_factory=dict)
    large: set[int] = field(default_factory=set)
    stuck: dict[int, int] = field(default_factory=dict)
    room: dict[int, int] = field(default_factory=dict)
    errors: dict[int, int] = field(default_factory=dict)
    page_bytes: int = PAGE
    large_bytes: int = LARGE

    def query(self, pid: int, addresses: array[int]) -> array[int]:
        self._check(pid)
        return array("i", [self.nodes[pid].get(address // PAGE, -errno.ENOENT) for address in addresses])

    def move(self, pid: int, addresses: array[int], node: int) -> array[int]:
        self._check(pid)
        statuses = array("i", [UNKNOWN]) * len(addresses)
        batch: dict[int, None] = {}
        for place, address in enumerate(addresses):
            page = self._first(address // PAGE)
            if page not in batch and self.nodes[pid].get(page) not in {None, node}:
                batch[page] = None
                continue
            statuses[place] = -errno.EBUSY if page in batch else self.nodes[pid].get(page, -errno.ENOENT)
            if not self._migrate(pid, batch, node):
                return statuses
            for before in range(place - len(batch), place):
                statuses[before] = node
            batch = {}
        if self._migrate(pid, batch, node):
            for before in range(len(addresses) - len(batch), len(addresses)):
                statuses[before] = node
        return statuses

    def _check(self, pid: int) -> None:
        if pid in self.errors:
            raise OSError(self.errors[pid], os.strerror(self.errors[pid]))

    def _first(self, page: int) -> int:
        """The page that stands for this one: the first of its large page."""
        return page // 8 * 8 if page // 8 in self.large else page

    def _migrate(self, pid: int, batch: dict[int, None], node: int) -> bool:
        """Whether all of a batch has moved."""
        moved = True
        for page in batch:
            if self.stuck.get(page, 0):
                self.stuck[page] -= 1
                moved = False
                continue
            members = range(page, page + 8) if page // 8 in self.large else (page,)
            if self.room.get(node, 1 << 30) < len(members):
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            self.room[node] = self.room.get(node, 1 << 30) - len(members)
            self.nodes[pid].update(dict.fromkeys(members, node))
        return moved


@dataclass(frozen=True)
class Host:
    """Trees with one payload group, and the kernel whose files they are."""

    folder: Path
    calls: FakeCalls

    @property
    def group(self) -> Path:
        return self.folder / "lxc.payload.c1"

    @property
    def procfs(self) -> Path:
        return self.folder / "proc"

    def add(self, pid: int, nodes: Mapping[int, int], *, below: str = "init.scope", cgroup: str | None = None) -> None:
        """A process with anonymous pages, given by number with their nodes, and one page of a file."""
        self.calls.nodes[pid] = dict(nodes)
        inside = self.group / below
        inside.mkdir(parents=True, exist_ok=True)
        (self.group / "cgroup.procs").touch()
        with (inside / "cgroup.procs").open("a") as procs:
            procs.write(f"{pid}\n")
        last = max(nodes, default=0) + 1
        counts = " ".join(f"N{node}={sum(one == node for one in nodes.values())}" for node in sorted({*nodes.values()}))
        files = {
            "cgroup": f"0::{cgroup or f'/lxc.payload.c1/{below}'}\n",
            "statm": "999 9 0 0 0 0 0\n",
            "maps": f"{0:08x}-{last * PAGE:08x} rw-p 00000000 00:00 0\n",
            "numa_maps": f"{0:08x} default anon={len(nodes)} dirty=1 {counts} kernelpagesize_kB=4\n",
        }
        process = self.procfs / str(pid)
        process.mkdir(parents=True)
        for name, text in files.items():
            (process / name).write_text(text)
        with (process / "pagemap").open("wb") as pagemap:
            for page in range(last):
                pagemap.write((1 << 63 if page in nodes else 0).to_bytes(8, "little"))

    def move(self, wanted: MovePages | None = None) -> list[int]:
        """The bytes of each slice that moved any."""
        return [size for size in Pages(self.procfs, self.calls).move(self.group, wanted or step()) if size]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, FakeCalls())


def test_all_memory_on_the_sources_moves_and_nothing_else(host: Host) -> None:
    host.add(PID, {1: 0, 2: 2, 3: 0, 4: 1})
    assert host.move() == [2 * PAGE]
    assert host.calls.nodes[PID] == {1: 1, 2: 2, 3: 1, 4: 1}


def test_every_process_of_the_group_is_looked_at(host: Host) -> None:
    host.add(PID, {1: 0})
    host.add(PID + 1, {1: 0}, below="system.slice/db.service")
    assert host.move() == [PAGE, PAGE]
    assert host.calls.nodes == {PID: {1: 1}, PID + 1: {1: 1}}


def test_memory_is_spread_evenly_over_the_targets(host: Host) -> None:
    host.add(PID, dict.fromkeys(range(8 * LEAST_PAGES), 0))
    sizes = host.move(step(targets="1-2"))
    found = [*host.calls.nodes[PID].values()]
    assert sum(sizes) == len(found) * PAGE
    assert {*found} == {1, 2}
    assert min(found.count(1), found.count(2)) > 0


def test_first_slice_is_small_and_the_next_ones_at_most_double(host: Host) -> None:
    host.add(PID, dict.fromkeys(range(16 * LEAST_PAGES), 0))
    sizes = [size // PAGE for size in host.move()]
    assert sizes[0] == LEAST_PAGES
    assert all(after <= before * 2 for before, after in pairwise(sizes))


def test_page_that_is_busy_once_moves_in_the_next_round(host: Host) -> None:
    host.add(PID, {1: 0, 2: 0, 3: 0})
    host.calls.stuck[2] = 1
    assert sum(host.move()) == 3 * PAGE
    assert host.calls.nodes[PID] == {1: 1, 2: 1, 3: 1}


def test_pages_that_never_move_are_given_up_and_keep_no_others(host: Host) -> None:
    host.add(PID, dict.fromkeys(range(40), 0))
    host.calls.large = {0, 2, 3}
    host.calls.stuck = {16: 99, 8: 99}
    assert sum(host.move()) == (40 - 8 - 1) * PAGE
    left = [page for page, node in host.calls.nodes[PID].items() if node == 0]
    assert left == [8, *range(16, 24)]


def test_group_without_memory_on_the_sources_has_nothing_to_move(host: Host) -> None:
    host.add(PID, {1: 1})
    assert host.move() == []


def test_process_that_is_in_another_group_by_now_is_left_alone(host: Host) -> None:
    host.add(PID, {1: 0}, cgroup="/lxc.payload.c10/init.scope")
    host.add(PID + 1, {1: 0}, cgroup="/user.slice/lxc.payload.c1/x")
    assert host.move() == []
    assert host.calls.nodes == {PID: {1: 0}, PID + 1: {1: 0}}


def test_process_that_is_gone_does_not_keep_the_others(host: Host) -> None:
    host.add(PID, {1: 0})
    host.add(PID + 1, {1: 0})
    host.add(PID + 2, {1: 0})
    host.calls.errors[PID] = errno.ESRCH
    (host.procfs / str(PID + 1) / "pagemap").unlink()
    assert host.move() == [PAGE]
    assert host.calls.nodes[PID + 2] == {1: 1}


def test_process_outside_our_namespace_of_ids_is_not_taken_for_ourselves(host: Host) -> None:
    host.add(PID, {1: 0})
    (host.group / "cgroup.procs").write_text("0\n")
    assert list_processes(host.group) == (PID,)


def test_group_that_is_gone_is_told(host: Host) -> None:
    with pytest.raises(GoneError):
        host.move()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_what_no_process_allows_is_reported(host: Host, number: int) -> None:
    host.add(PID, {1: 0})
    host.calls.errors[PID] = number
    with pytest.raises(ReportError, match={errno.EPERM: "run as root", errno.ENOSYS: "CONFIG_MIGRATION"}[number]):
        host.move()


def test_process_with_a_narrower_cpuset_is_reported_only_when_nothing_moves(host: Host) -> None:
    host.add(PID, {1: 0})
    host.calls.errors[PID] = errno.EACCES
    with pytest.raises(ReportError, match="cpuset is narrower"):
        host.move()
    host.add(PID + 1, {1: 0})
    assert host.move() == [PAGE]


def test_full_node_is_told_by_its_number(host: Host) -> None:
    host.add(PID, dict.fromkeys(range(10), 0))
    host.calls.room = {1: 4}
    with pytest.raises(ReportError, match="node 1 cannot take more memory"):
        host.move()


def test_other_targets_take_what_a_full_node_does_not(host: Host) -> None:
    host.add(PID, dict.fromkeys(range(10), 0))
    host.calls.room = {1: 4}
    assert sum(host.move(step(targets="1-2"))) == 10 * PAGE
    assert sorted(host.calls.nodes[PID].values()) == [1] * 4 + [2] * 6


@given(
    nodes=st.dictionaries(st.integers(0, 63), st.integers(0, 2), max_size=64),
    large=st.sets(st.integers(0, 7)),
    stuck=st.sets(st.integers(0, 63)),
)
def test_everything_that_can_move_is_moved_and_counted_once(
    tmp_path_factory: pytest.TempPathFactory, nodes: dict[int, int], large: set[int], stuck: set[int]
) -> None:
    host = Host(tmp_path_factory.mktemp("host"), FakeCalls())
    for block in large:
        nodes |= dict.fromkeys(range(block * 8, block * 8 + 8), nodes.get(block * 8, 0))
    host.calls.large = large
    host.calls.stuck = {host.calls._first(page): 99 for page in stuck}
    host.add(PID, nodes)
    moved = sum(host.move()) // PAGE
    after = host.calls.nodes[PID]
    free = {page for page, node in nodes.items() if node == 0 and host.calls._first(page) not in host.calls.stuck}
    assert after == {page: 1 if page in free else node for page, node in nodes.items()}
    assert moved == len(free)


U = UNKNOWN


@pytest.mark.parametrize(
    ("pages", "statuses", "tried"),
    [
        ([1, 2, 3], [1, 1, 1], 3),
        ([1, 2, 3], [U, U, U], 3),
        ([1, 2, 3], [1, U, U], 3),
        ([1, 2, 3, 4], [U, U, -errno.EBUSY, U], 3),
        ([7, 8, 9, 10, 16, 17], [1, U, -errno.EBUSY, U, U, U], 4),
        ([8, 9, 10, 16, 17], [U, -errno.EBUSY, U, U, U], 3),
    ],
)
def test_pages_that_were_tried_are_told_from_those_after_a_stop(
    pages: list[int], statuses: list[int], tried: int
) -> None:
    assert count_tried(array("Q", [page * PAGE for page in pages]), array("i", statuses), LARGE) == tried


def _stat(pid: int, started: int) -> str:
    return groups.render_stat(pid, "qemu-system-x86", started=started)


def test_memory_of_one_process_moves_and_of_no_other(host: Host) -> None:
    host.add(PID, {3: 0, 4: 0, 5: 1})
    host.add(PID + 1, {3: 0})
    (host.procfs / str(PID) / "stat").write_text(_stat(PID, 70))
    moved = [*Pages(host.procfs, host.calls).move(host.procfs / str(PID), step())]
    assert sum(moved) == 2 * PAGE
    assert host.calls.nodes == {PID: {3: 1, 4: 1, 5: 1}, PID + 1: {3: 0}}


def test_process_that_is_another_by_now_is_left_alone(host: Host) -> None:
    host.add(PID, dict.fromkeys(range(2 * LEAST_PAGES), 0))
    stat = host.procfs / str(PID) / "stat"
    stat.write_text(_stat(PID, 70))
    slices = Pages(host.procfs, host.calls).move(host.procfs / str(PID), step())
    assert next(slices) == 0
    stat.write_text(_stat(PID, 71))
    with pytest.raises(GoneError):
        list(slices)


def test_process_that_has_ended_has_no_memory_to_move(host: Host) -> None:
    with pytest.raises(GoneError, match="process 9 has ended"):
        list(Pages(host.procfs, host.calls).move(host.procfs / "9", step()))


def test_group_is_found_in_the_cpuset_hierarchy_too(host: Host) -> None:
    host.add(PID, {3: 0})
    (host.procfs / str(PID) / "cgroup").write_text(
        "5:memory:/lxc.payload.c1\n4:cpu,cpuset:/lxc.payload.c1/init.scope\n0::/system.slice/lxd.service\n"
    )
    host.add(PID + 1, {3: 0})
    (host.procfs / str(PID + 1) / "cgroup").write_text("5:memory:/lxc.payload.c1\n4:cpuset:/other\n0::/\n")
    assert host.move() == [PAGE]
    assert host.calls.nodes == {PID: {3: 1}, PID + 1: {3: 0}}


def test_memory_is_moved_on_the_running_kernel_only() -> None:
    assert isinstance(page_mover(Path("/proc")), Pages)
    other = page_mover(Path("/tmp/simulated/proc"))
    assert isinstance(other, NoPages)
    assert list(other.move(Path("/tmp/simulated/group"), step())) == []


def test_unknown_machine_is_named() -> None:
    with pytest.raises(ReportError, match="sparc64"):
        system_call_number("sparc64")
    assert system_call_number("aarch64") == 239


def test_error_of_the_kernel_is_raised() -> None:
    with pytest.raises(OSError, match=r".+"):
        # No kernel gives out ids as high as this.
        LibcCalls().query(1 << 30, array("Q", [0]))


HOLD = """
import mmap, sys
private = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
private.madvise({advice})
shared = mmap.mmap(-1, 1 << 20)
for memory in (private, shared):
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at] = 1
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["MADV_NOHUGEPAGE", "MADV_HUGEPAGE"])
def holder(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process of ours that holds 9 MiB."""
    script = HOLD.format(advice=f"mmap.{request.param}")
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.communicate(b"")


@pytest.fixture
def real(tmp_path: Path, holder: int) -> Host:
    """A group whose only process is the holder, with the files that the kernel has for it."""
    host = Host(tmp_path, FakeCalls())
    host.add(holder, {})
    for name in ("maps", "numa_maps", "pagemap", "statm"):
        path = host.procfs / str(holder) / name
        path.unlink()
        path.symlink_to(f"/proc/{holder}/{name}")
    return host


def _permitted(pid: int) -> LibcCalls:
    """The kernel's calls, where moving a page of another process is allowed and there is a node 0."""
    calls = LibcCalls()
    try:
        calls.move(pid, array("Q", [0]), 0)
    except (OSError, ReportError) as error:
        pytest.skip(f"memory cannot be moved here: {error}")
    if not Path(f"/proc/{pid}/numa_maps").exists():
        pytest.skip("this kernel has no numa_maps")
    return calls


def test_memory_of_a_real_process_is_found_and_taken_by_the_kernel(real: Host, holder: int) -> None:
    calls = _permitted(holder)
    slices = Pages(real.procfs, calls).move(real.group, step("0", "0"))
    # Moving to where it is never ends by itself, and one look at everything is enough.
    found = 0
    while found < 9 << 20:
        found += next(slices)
    assert found >= 9 << 20


def test_pages_of_a_real_process_are_found_the_same_way_by_either_means(holder: int) -> None:
    calls = _permitted(holder)
    with Path(f"/proc/{holder}/maps").open() as maps:
        line = next(line for line in maps if line.endswith(" 0 \n") and _size(line) >= 8 << 20)
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    area = Area(start=start, end=end)
    assert _found(holder, calls, area, scans=True) == _found(holder, calls, area, scans=False)


def _size(line: str) -> int:
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    return end - start


def _found(pid: int, calls: PageCalls, area: Area, *, scans: bool) -> set[int]:
    pagemap = Pagemap(f"/proc/{pid}/pagemap", calls.page_bytes, calls.large_bytes)
    pagemap.can_scan = pagemap.can_scan and scans
    found: set[int] = set()
    at = area.start
    while at < area.end:
        look = pagemap.look(area, at, 100)
        found.update(look.small)
        for first in look.large:
            found.update(range(first, first + calls.large_bytes, mmap.PAGESIZE))
        at = look.end
    pagemap.close()
    return found


def _simulated(tmp_path: Path, machine: Machine) -> Kernel:
    kernel = Kernel(machine, tmp_path, watches=False, tick_s=None, on_write=lambda *_: None)
    kernel.boot()
    return kernel


def test_simulated_memory_follows_in_slices(tmp_path: Path) -> None:
    kernel = _simulated(tmp_path, builders.machine())
    kernel.create(KEY, PID, {0: 40 << 20, 1: 1 << 20, 2: 0, 3: 0})
    group = kernel.groups[KEY]
    assert [*SimulatedPages(kernel).move(group.path, step(targets="2-3"))] == [16 << 20, 16 << 20, 8 << 20]
    assert group.pages == {0: 0, 1: 1 << 20, 2: 24 << 20, 3: 16 << 20}
    anon = (group.path / "memory.numa_stat").read_text().splitlines()[0]
    assert anon.split()[1] == "N0=0"


def test_simulated_memory_of_a_virtual_machine_follows_and_stays_bound_where_it_was(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, bound="0")
    kernel = _simulated(tmp_path / "other", builders.machine())
    kernel.create_vm(KEY, host.qemu)
    assert [*SimulatedPages(kernel).move(host.vms.folder(host.process), step())] == [3 << 20]
    memory = host.vms.memory(host.process)
    assert (memory.by_node, memory.bound) == ({1: 4 << 20}, NodeSet([0]))


def test_simulated_group_that_goes_away_ends_the_move(tmp_path: Path) -> None:
    kernel = _simulated(tmp_path, builders.machine())
    kernel.create(KEY, PID, {0: 40 << 20, 1: 0})
    slices = SimulatedPages(kernel).move(kernel.groups[KEY].path, step())
    next(slices)
    kernel.remove(KEY, PID)
    with pytest.raises(GoneError):
        next(slices)


def test_slices_grow_while_they_are_short_and_shrink_when_one_was_long() -> None:
    size = SliceSize()
    assert size.pages == LEAST_PAGES
    size.learn(LEAST_PAGES, 0.001)
    assert size.pages == 2 * LEAST_PAGES
    size.learn(2 * LEAST_PAGES, 1.0)
    assert size.pages == LEAST_PAGES
