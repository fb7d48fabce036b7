"""Steps of one instance: in order, each verified, and what ends them and what does not."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from incus_numa.applier.dry_run import DryRunApplier
from incus_numa.applier.live import LiveApplier
from incus_numa.applier.protocol import PageMover, Target
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import ForbiddenKeyError, GoneError, IncusNumaError, ReportError, RetryError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.pages import NoPages
from incus_numa.host.virtual import VirtualMachines
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import MovePages, Outcome, PatchNodes, Step, StepResult, WriteCpus, WriteMems
from incus_numa.model.snapshot import Decided
from incus_numa.server.protocol import Heard as StreamItem
from incus_numa.server.protocol import Listing, Project, ServerInfo, ServerInstance

KEY = InstanceKey("default", "c1")
PATCH = PatchNodes(key=KEY, nodes=NodeSet([1]), before=None)
CPUS = WriteCpus(key=KEY, cpus=CpuSet([4, 5]), before=None)
MEMS = WriteMems(key=KEY, mems=NodeSet([1]), before=None)
MIB = 1 << 20
MOVE = MovePages(key=KEY, sources=NodeSet([0]), targets=NodeSet([1]), size_bytes=300 * MIB)
ALL: tuple[Step, ...] = (PATCH, CPUS, MEMS)
DECIDED = Decided(nodes=NodeSet([1]), cpus=CpuSet([4, 5]))


class OneAnswer:
    """A Server that only takes changes, or answers each with the same error."""

    def __init__(self, error: IncusNumaError | None = None) -> None:
        self.changes: list[tuple[InstanceKey, Mapping[str, str], str | None]] = []
        self._error = error

    async def patch_config(self, key: InstanceKey, changes: Mapping[str, str], etag: str | None) -> None:
        if self._error is not None:
            raise self._error
        self.changes.append((key, changes, etag))

    async def get_info(self) -> ServerInfo:
        raise NotImplementedError

    async def list_instances(self) -> Listing:
        raise NotImplementedError

    async def get_instance(self, key: InstanceKey) -> ServerInstance:
        raise NotImplementedError

    async def get_pid(self, key: InstanceKey) -> int | None:
        raise NotImplementedError

    async def list_projects(self) -> tuple[Project, ...]:
        raise NotImplementedError

    async def get_resources(self) -> bytes:
        raise NotImplementedError

    def watch_events(self) -> AsyncIterator[StreamItem]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def group(tmp_path: Path) -> Path:
    folder = tmp_path / "lxc.payload.c1"
    folder.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        (folder / name).write_text("\n")
    (folder / "cpuset.mems.effective").write_text("0-3\n")
    return folder


def _target(group: Path | None, mark: Decided | None = DECIDED) -> Target:
    return Target(key=KEY, group=group, nodes_key="volatile.cpu.nodes", etag="tag", mark=mark)


def _live(server: OneAnswer, files: CgroupFiles, pages: PageMover | None = None, *, pace: int = 1 << 40) -> LiveApplier:
    vms = VirtualMachines(Path("/nowhere"), Path("/nowhere"), Path("/nowhere"))
    return LiveApplier(server, files, vms, write_timeout_s=30.0, pages=pages or NoPages(), bytes_per_second=pace)


def _applier(tmp_path: Path, server: OneAnswer) -> LiveApplier:
    return _live(server, CgroupFiles(tmp_path, tmp_path))


def _mover(tmp_path: Path, pages: PageMover, *, pace: int = 1 << 40) -> LiveApplier:
    return _live(OneAnswer(), CgroupFiles(tmp_path, tmp_path), pages, pace=pace)


def _texts(group: Path) -> tuple[str, str]:
    return (group / "cpuset.cpus").read_text().strip(), (group / "cpuset.mems").read_text().strip()


def _outcomes(results: tuple[StepResult, ...]) -> list[tuple[Step, Outcome]]:
    return [(result.step, result.outcome) for result in results]


async def test_all_steps_are_carried_out(tmp_path: Path, group: Path) -> None:
    server = OneAnswer()
    results = await _applier(tmp_path, server).apply(_target(group), ALL)
    assert _outcomes(results) == [(step, Outcome.DONE) for step in ALL]
    assert server.changes == [(KEY, {"volatile.cpu.nodes": "1"}, "tag")]
    assert _texts(group) == ("4-5", "1")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RetryError("busy"), Outcome.BUSY),
        (GoneError("not found"), Outcome.GONE),
        (ReportError("internal"), Outcome.FAILED),
    ],
)
async def test_record_that_is_refused_does_not_keep_the_cgroup_wrong(
    tmp_path: Path, group: Path, error: IncusNumaError, outcome: Outcome
) -> None:
    results = await _applier(tmp_path, OneAnswer(error)).apply(_target(group), ALL)
    assert results[0] == StepResult(step=PATCH, outcome=outcome, detail=str(error))
    assert [result.outcome for result in results[1:]] == [Outcome.DONE, Outcome.DONE]
    assert _texts(group) == ("4-5", "1")


async def test_forbidden_record_does_not_end_the_steps(tmp_path: Path, group: Path) -> None:
    results = await _applier(tmp_path, OneAnswer(ForbiddenKeyError("no"))).apply(_target(group), ALL)
    assert _outcomes(results) == [(PATCH, Outcome.FORBIDDEN), (CPUS, Outcome.DONE), (MEMS, Outcome.DONE)]
    assert _texts(group) == ("4-5", "1")


async def test_cpus_that_cannot_be_written_leave_memory_alone(tmp_path: Path, group: Path) -> None:
    (group / "cpuset.cpus").unlink()
    (group / "cpuset.cpus").symlink_to("/dev/full")
    results = await _applier(tmp_path, OneAnswer()).apply(_target(group), ALL)
    assert _outcomes(results) == [(PATCH, Outcome.DONE), (CPUS, Outcome.FAILED)]
    assert (group / "cpuset.mems").read_text() == "\n"


async def test_cgroup_that_is_gone_ends_the_steps_before_the_record_is_written(tmp_path: Path) -> None:
    server = OneAnswer()
    results = await _applier(tmp_path, server).apply(_target(tmp_path / "lxc.payload.gone"), ALL)
    assert _outcomes(results) == [(PATCH, Outcome.GONE)]
    assert server.changes == []


async def test_record_is_written_without_a_cgroup(tmp_path: Path) -> None:
    server = OneAnswer()
    results = await _applier(tmp_path, server).apply(_target(None), (PATCH,))
    assert _outcomes(results) == [(PATCH, Outcome.DONE)]


async def test_decision_is_on_the_cgroup_before_anything_is_written(tmp_path: Path, group: Path) -> None:
    files = CgroupFiles(tmp_path, tmp_path)
    await _live(OneAnswer(RetryError("busy")), files).apply(_target(group), ALL)
    assert files.read(group).decided == DECIDED


async def test_decision_that_is_there_already_is_not_written_again(tmp_path: Path, group: Path) -> None:
    files = CgroupFiles(tmp_path, tmp_path)
    await _live(OneAnswer(), files).apply(_target(group, mark=None), ALL)
    assert files.read(group).decided is None


async def test_release_carries_out_the_steps_and_forgets_the_decision(tmp_path: Path, group: Path) -> None:
    files = CgroupFiles(tmp_path, tmp_path)
    applier = _live(OneAnswer(), files)
    (tmp_path / "cpuset.mems.effective").write_text("0-3\n")
    await applier.apply(_target(group), ALL)
    unbind = WriteMems(key=KEY, mems=NodeSet(), before=NodeSet([1]))
    assert _outcomes(await applier.release(_target(group, mark=None), (unbind,))) == [(unbind, Outcome.DONE)]
    assert _texts(group) == ("4-5", "0-3")
    assert files.read(group).decided is None


async def test_release_that_fails_keeps_the_decision_for_the_next_try(tmp_path: Path, group: Path) -> None:
    files = CgroupFiles(tmp_path, tmp_path)
    applier = _live(OneAnswer(RetryError("busy")), files)
    files.mark(group, DECIDED)
    await applier.release(_target(group, mark=None), (PATCH,))
    assert files.read(group).decided == DECIDED


async def test_dry_run_changes_nothing(group: Path) -> None:
    applier = DryRunApplier()
    for results in (await applier.apply(_target(group), ALL), await applier.release(_target(group), ALL)):
        assert _outcomes(results) == [(step, Outcome.WOULD_DO) for step in ALL]
    assert _texts(group) == ("", "")


class Slices:
    """A PageMover that moves so many bytes per slice, and ends with an error if there is one."""

    def __init__(self, *sizes: int, error: IncusNumaError | None = None) -> None:
        self.taken: list[int] = []
        self._sizes = sizes
        self._error = error

    def move(self, group: Path, step: MovePages) -> Iterator[int]:
        for size in self._sizes:
            self.taken.append(size)
            yield size
        if self._error is not None:
            raise self._error


class HeldSlices:
    """A PageMover whose slices end when they are let go; `most` is how many were under way at a time."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.under_way = self.most = self.done = 0

    def move(self, group: Path, step: MovePages) -> Iterator[int]:
        for _ in range(2):
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            self.go.acquire()
            self.under_way -= 1
            self.done += 1
            yield MIB


class Heard(list[int]):
    """Progress that goes on."""

    def __call__(self, moved: int) -> bool:
        self.append(moved)
        return True


async def _until(condition: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 20
    while not condition():
        assert loop.time() < deadline, "it never happened"
        await asyncio.sleep(0.001)


async def test_memory_follows_slice_by_slice_and_says_how_far_it_is(
    tmp_path: Path, group: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "incus_numa")
    said = Heard()
    result = await _mover(tmp_path, Slices(100 * MIB, 0, 200 * MIB)).move_pages(_target(group), MOVE, said)
    assert said == [100 * MIB, 100 * MIB, 300 * MIB]
    assert (result.step, result.outcome) == (MOVE, Outcome.DONE)
    assert result.detail.startswith("300 MiB in ")
    assert "longest slice" in result.detail
    assert caplog.messages == [f"instance=c1 memory=300 MiB from=0 to=1 done: {result.detail}"]


@pytest.mark.parametrize(("goes_on", "detail"), [(True, "nothing had to move"), (False, "nothing was moved")])
async def test_memory_that_did_not_move_is_told_as_such(
    tmp_path: Path, group: Path, goes_on: bool, detail: str
) -> None:
    result = await _mover(tmp_path, Slices(0)).move_pages(_target(group), MOVE, lambda _: goes_on)
    assert result.detail == detail


async def test_memory_stops_when_told_to(tmp_path: Path, group: Path) -> None:
    slices = Slices(MIB, MIB, MIB)
    result = await _mover(tmp_path, slices).move_pages(_target(group), MOVE, lambda moved: moved < 2 * MIB)
    assert result.outcome is Outcome.CUT
    assert result.detail.startswith("2 MiB in ")
    assert slices.taken == [MIB, MIB]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(GoneError("group no longer exists"), Outcome.GONE), (ReportError("run as root"), Outcome.FAILED)],
)
async def test_memory_that_cannot_move_is_told_with_what_has(
    tmp_path: Path, group: Path, error: IncusNumaError, outcome: Outcome
) -> None:
    result = await _mover(tmp_path, Slices(MIB, error=error)).move_pages(_target(group), MOVE, Heard())
    assert result.outcome is outcome
    assert result.detail.startswith(f"{error}; 1 MiB in ")


async def test_move_of_nothing_says_nothing(tmp_path: Path, group: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "incus_numa")
    result = await _mover(tmp_path, Slices(0, 0)).move_pages(_target(group), MOVE, Heard())
    assert result.outcome is Outcome.DONE
    assert caplog.messages == []


async def test_instance_without_a_cgroup_has_no_memory_to_follow(tmp_path: Path) -> None:
    result = await _mover(tmp_path, Slices(MIB)).move_pages(_target(None), MOVE, Heard())
    assert result.outcome is Outcome.GONE


async def test_cancellation_interrupts_the_wait_between_slices(
    tmp_path: Path, group: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "incus_numa")
    slices, said = Slices(1024 * MIB, 1024 * MIB), Heard()
    applier = _mover(tmp_path, slices, pace=MIB)
    moving = asyncio.create_task(applier.move_pages(_target(group), MOVE, said))
    await _until(lambda: said)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert slices.taken == [1024 * MIB]
    assert [message.split(":")[0] for message in caplog.messages] == ["instance=c1 memory=300 MiB from=0 to=1 cut"]


async def test_cancellation_waits_for_the_slice_under_way_and_takes_no_other(tmp_path: Path, group: Path) -> None:
    slices = HeldSlices()
    moving = asyncio.create_task(_mover(tmp_path, slices).move_pages(_target(group), MOVE, Heard()))
    await _until(lambda: slices.under_way)
    moving.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not moving.done()
    slices.go.release(2)
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert (slices.done, slices.under_way) == (1, 0)


async def test_memory_of_one_instance_follows_at_a_time(tmp_path: Path, group: Path) -> None:
    slices = HeldSlices()
    applier = _mover(tmp_path, slices)
    moves = [asyncio.create_task(applier.move_pages(_target(group), MOVE, Heard())) for _ in range(3)]
    await _until(lambda: slices.under_way)
    slices.go.release(6)
    results = await asyncio.gather(*moves)
    assert [result.outcome for result in results] == [Outcome.DONE] * 3
    assert (slices.most, slices.done) == (1, 6)


async def test_slice_that_does_not_end_fails_the_move(tmp_path: Path, group: Path) -> None:
    slices = HeldSlices()
    applier = _mover(tmp_path, slices)
    applier.write_timeout_s = 0.01
    result = await applier.move_pages(_target(group), MOVE, Heard())
    slices.go.release(2)
    assert result.outcome is Outcome.FAILED
    assert "a slice was not finished" in result.detail


async def test_memory_is_not_moved_along_with_other_steps(tmp_path: Path, group: Path) -> None:
    applier = _mover(tmp_path, Slices(MIB))
    with pytest.raises(ValueError, match="move_pages"):
        await applier.apply(_target(group), (PATCH, MOVE))
    with pytest.raises(ValueError, match="move_pages"):
        await applier.apply_together([(_target(group), (CPUS, MOVE))])
    assert _texts(group) == ("", "")
