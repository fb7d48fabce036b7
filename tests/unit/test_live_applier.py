"""Steps of one instance: in order, each verified, and what ends them and what does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from incus_numa.applier.dry_run import DryRunApplier
from incus_numa.applier.live import LiveApplier
from incus_numa.applier.protocol import Target
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import ForbiddenKeyError, GoneError, IncusNumaError, ReportError, RetryError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Outcome, PatchNodes, Step, StepResult, WriteCpus, WriteMems
from incus_numa.model.snapshot import Decided
from incus_numa.server.protocol import Connected, Event, Listing, ServerInfo, ServerInstance

KEY = InstanceKey("default", "c1")
PATCH = PatchNodes(key=KEY, nodes=NodeSet([1]), before=None)
CPUS = WriteCpus(key=KEY, cpus=CpuSet([4, 5]), before=None)
MEMS = WriteMems(key=KEY, mems=NodeSet([1]), before=None)
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

    async def get_resources(self) -> bytes:
        raise NotImplementedError

    def watch_events(self) -> AsyncIterator[Event | Connected]:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


@pytest.fixture
def group(tmp_path: Path) -> Path:
    folder = tmp_path / "lxc.payload.c1"
    folder.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        (folder / name).write_text("\n")
    return folder


def _target(group: Path | None, mark: Decided | None = DECIDED) -> Target:
    return Target(key=KEY, group=group, nodes_key="volatile.cpu.nodes", etag="tag", mark=mark)


def _applier(tmp_path: Path, server: OneAnswer) -> LiveApplier:
    return LiveApplier(server, CgroupFiles(tmp_path, tmp_path), write_timeout_s=30.0)


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
    await LiveApplier(OneAnswer(RetryError("busy")), files, write_timeout_s=30.0).apply(_target(group), ALL)
    assert files.read(group).decided == DECIDED


async def test_decision_that_is_there_already_is_not_written_again(tmp_path: Path, group: Path) -> None:
    files = CgroupFiles(tmp_path, tmp_path)
    await LiveApplier(OneAnswer(), files, write_timeout_s=30.0).apply(_target(group, mark=None), ALL)
    assert files.read(group).decided is None


async def test_release_carries_out_the_steps_and_forgets_the_decision(tmp_path: Path, group: Path) -> None:
    files = CgroupFiles(tmp_path, tmp_path)
    applier = LiveApplier(OneAnswer(), files, write_timeout_s=30.0)
    (tmp_path / "cpuset.mems.effective").write_text("0-3\n")
    await applier.apply(_target(group), ALL)
    unbind = WriteMems(key=KEY, mems=NodeSet(), before=NodeSet([1]))
    assert _outcomes(await applier.release(_target(group, mark=None), (unbind,))) == [(unbind, Outcome.DONE)]
    assert _texts(group) == ("4-5", "0-3")
    assert files.read(group).decided is None


async def test_release_that_fails_keeps_the_decision_for_the_next_try(tmp_path: Path, group: Path) -> None:
    files = CgroupFiles(tmp_path, tmp_path)
    applier = LiveApplier(OneAnswer(RetryError("busy")), files, write_timeout_s=30.0)
    files.mark(group, DECIDED)
    await applier.release(_target(group, mark=None), (PATCH,))
    assert files.read(group).decided == DECIDED


async def test_dry_run_changes_nothing(group: Path) -> None:
    applier = DryRunApplier()
    for results in (await applier.apply(_target(group), ALL), await applier.release(_target(group), ALL)):
        assert _outcomes(results) == [(step, Outcome.WOULD_DO) for step in ALL]
    assert _texts(group) == ("", "")
