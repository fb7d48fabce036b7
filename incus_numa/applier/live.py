"""Changes the server's record, the kernel's cpusets and threads. Used by the daemon and by `rebalance`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from incus_numa.applier.protocol import PageMover, Progress, Target, describe
from incus_numa.errors import ForbiddenKeyError, GoneError, ReportError, RetryError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.virtual import VirtualMachines
from incus_numa.model.plan import (
    MovePages,
    Outcome,
    PatchNodes,
    PinThreads,
    Step,
    StepResult,
    WriteCpus,
    WriteMems,
)
from incus_numa.model.snapshot import Decided
from incus_numa.quantities import render_bytes
from incus_numa.server.protocol import Server

log = logging.getLogger(__name__)

PARALLEL_MEMORY_WRITES = 2
"""Writes of cpuset.mems at a time: each may move much memory, which slows the whole host."""

LONGEST_REST_S = 1.0
"""After so long at most it is asked whether to go on: at a low pace the rest after one slice takes minutes."""

PARALLEL_MOVES = 1
"""Instances whose memory follows at a time: together they would be no faster, and the limit is one for all."""


class LiveApplier:
    """An Applier that changes things. One INFO line per applied step."""

    paces = True

    def __init__(
        self,
        server: Server,
        cgroups: CgroupFiles,
        vms: VirtualMachines,
        *,
        write_timeout_s: float,
        pages: PageMover,
        bytes_per_second: int,
    ) -> None:
        self._server = server
        self._cgroups = cgroups
        self._vms = vms
        self._pages = pages
        self.write_timeout_s = write_timeout_s
        self.bytes_per_second = bytes_per_second
        self._memory_writes = asyncio.Semaphore(PARALLEL_MEMORY_WRITES)
        self._moves = asyncio.Semaphore(PARALLEL_MOVES)

    async def apply(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Results of the steps that were tried; the decision is marked before anything is written.

        The record and the kernel's side are written side by side; a step of the kernel's side that fails ends those
        after it. Raises ValueError for MovePages.
        """
        _refuse_memory(steps)
        if target.mark is not None:
            try:
                self._mark(target, target.mark)
            except GoneError as error:
                return tuple(StepResult(step=step, outcome=Outcome.GONE, detail=str(error)) for step in steps[:1])
        record = [step for step in steps if isinstance(step, PatchNodes)]
        rest = [step for step in steps if not isinstance(step, PatchNodes)]
        # Neither needs the other: a server that is busy for long must not keep the CPUs wrong.
        done = await asyncio.gather(
            self._patched(target, record), self._written([(target, rest)]), return_exceptions=True
        )
        # What failed is raised when both have ended: a write under way would outlive the instance's lock.
        results = tuple(_raised(done))
        for result in results:
            _log(result)
        return results

    async def apply_together(self, work: Sequence[tuple[Target, Sequence[Step]]]) -> tuple[StepResult, ...]:
        """Results of all steps, written in one thread. Raises ValueError for MovePages."""
        for _, steps in work:
            _refuse_memory(steps)
        results = await self._written(work)
        for result in results:
            _log(result)
        return tuple(results)

    async def release(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Results of the steps; the mark goes away when all of them worked."""
        results = await self.apply(target, steps)
        if all(result.outcome is Outcome.DONE for result in results):
            if target.group is not None:
                self._cgroups.unmark(target.group)
            if target.process is not None:
                self._vms.unmark(target.process)
        return results

    def _mark(self, target: Target, mark: Decided) -> None:
        """Keep a decision with what it is about. Raises GoneError."""
        if target.group is not None:
            self._cgroups.mark(target.group, mark)
        if target.process is not None:
            self._vms.mark(target.process, mark)

    async def move_pages(self, target: Target, step: MovePages, progress: Progress) -> StepResult:
        """Let memory follow slice by slice, as the protocol says. Cancellation ends it after the slice under way."""
        owner = target.group if target.process is None else self._vms.folder(target.process)
        if owner is None:
            return StepResult(step=step, outcome=Outcome.GONE, detail="no cgroup to find its processes by")
        async with self._moves:
            tally = _Tally()
            result = StepResult(step=step, outcome=Outcome.CUT)
            try:
                outcome = await self._follow(self._pages.move(owner, step), tally, progress)
                result = StepResult(step=step, outcome=outcome)
            except (GoneError, RetryError, ReportError) as error:
                result = _failure(step, error)
            except TimeoutError:
                detail = f"a slice was not finished after {self.write_timeout_s:g} s"
                result = StepResult(step=step, outcome=Outcome.FAILED, detail=detail)
            finally:
                result = replace(result, detail="; ".join(filter(None, (result.detail, tally.render(result.outcome)))))
                _log(result, level=logging.INFO if tally.moved_bytes else logging.DEBUG)
        return result

    async def _follow(self, slices: Iterator[int], tally: _Tally, progress: Progress) -> Outcome:
        """Take slice after slice, no faster than the settings say. Raises TimeoutError."""
        while (moved := await self._slice(slices, tally)) is not None:
            if not progress(tally.moved_bytes):
                return Outcome.CUT
            rest_s = moved / self.bytes_per_second - tally.last_s
            while rest_s > 0:
                await asyncio.sleep(min(rest_s, LONGEST_REST_S))
                rest_s -= LONGEST_REST_S
                if rest_s > 0 and not progress(tally.moved_bytes):
                    return Outcome.CUT
        return Outcome.DONE

    async def _slice(self, slices: Iterator[int], tally: _Tally) -> int | None:
        """The bytes of the next slice, None after the last one."""
        began = time.monotonic()
        work = asyncio.create_task(asyncio.to_thread(next, slices, None), name="slice of memory")
        # What it fails with is not reported as forgotten when nobody waits for it any more.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        try:
            # A thread cannot be cancelled: whoever cancels us waits for the slice, and then nothing is under way.
            done, _ = await asyncio.wait({work}, timeout=self.write_timeout_s)
        except asyncio.CancelledError:
            await asyncio.wait({work}, timeout=self.write_timeout_s)
            raise
        if not done:
            raise TimeoutError
        moved = work.result()
        if moved is not None:
            tally.add(moved, time.monotonic() - began)
        return moved

    async def _patched(self, target: Target, steps: Sequence[PatchNodes]) -> list[StepResult]:
        results = []
        for step in steps:
            try:
                await self._patch(target, step)
                results.append(StepResult(step=step, outcome=Outcome.DONE))
            except (GoneError, RetryError, ReportError) as error:
                results.append(_failure(step, error))
        return results

    async def _written(self, work: Sequence[tuple[Target, Sequence[Step]]]) -> list[StepResult]:
        """Write cgroups in one thread; writes that move memory wait for their turn and have a time limit."""
        if not any(steps for _, steps in work):
            return []
        results: list[StepResult] = []
        write = partial(self._write_all, work, results)
        try:
            if any(isinstance(step, WriteMems) for _, steps in work for step in steps):
                async with self._memory_writes:
                    await self._in_thread(write)
            else:
                await self._in_thread(write)
        except TimeoutError:
            detail = f"not finished after {self.write_timeout_s:g} s; the kernel goes on by itself"
            told = len(results)
            late = [step for _, steps in work for step in steps][told : told + 1]
            return results[:told] + [StepResult(step=step, outcome=Outcome.FAILED, detail=detail) for step in late]
        return results

    def _write_all(self, work: Sequence[tuple[Target, Sequence[Step]]], results: list[StepResult]) -> None:
        """Runs in a thread. A step that fails ends its instance's steps, and no other's."""
        for target, steps in work:
            for step in steps:
                result = self._write(target, step)
                results.append(result)
                if result.outcome is not Outcome.DONE:
                    break

    def _write(self, target: Target, step: Step) -> StepResult:
        try:
            if isinstance(step, WriteCpus) and target.group is not None:
                self._cgroups.write_cpus(target.group, step.cpus)
            elif isinstance(step, WriteMems) and target.group is not None:
                self._cgroups.write_mems(target.group, step.mems)
            elif isinstance(step, PinThreads) and target.process is not None:
                self._vms.pin(target.process, target.vcpus, step.cpus, step.around)
        except (GoneError, RetryError, ReportError) as error:
            return _failure(step, error)
        return StepResult(step=step, outcome=Outcome.DONE)

    async def _patch(self, target: Target, step: PatchNodes) -> None:
        """Write the record. Servers before Incus 6.0.3 and 6.8 refuse node "0" and take the range "0-0"."""
        changes = {target.nodes_key: str(step.nodes)}
        try:
            await self._server.patch_config(target.key, changes, target.etag)
        except ForbiddenKeyError:
            raise
        except ReportError:
            if len(step.nodes) != 1:
                raise
            changes = {target.nodes_key: f"{step.nodes}-{step.nodes}"}
            await self._server.patch_config(target.key, changes, target.etag)

    async def _in_thread(self, write: Callable[[], None]) -> None:
        async with asyncio.timeout(self.write_timeout_s):
            await asyncio.to_thread(write)


class _Tally:
    """What the slices of one move have come to."""

    def __init__(self) -> None:
        self.moved_bytes = 0
        self.last_s = 0.0
        self._longest_s = 0.0
        self._began_s = time.monotonic()

    def add(self, moved: int, took_s: float) -> None:
        """Count one slice."""
        self.moved_bytes += moved
        self.last_s = took_s
        self._longest_s = max(self._longest_s, took_s)

    def render(self, outcome: Outcome) -> str:
        """`300 MiB in 4.2 s, longest slice 23 ms`."""
        if not self.moved_bytes:
            return "nothing had to move" if outcome is Outcome.DONE else "nothing was moved"
        took_s = time.monotonic() - self._began_s
        return f"{render_bytes(self.moved_bytes)} in {took_s:.1f} s, longest slice {self._longest_s * 1000:.0f} ms"


def _raised(done: Iterable[list[StepResult] | BaseException]) -> Iterator[StepResult]:
    """All results. Raises the first error."""
    for one in done:
        if isinstance(one, BaseException):
            raise one
        yield from one


def _refuse_memory(steps: Sequence[Step]) -> None:
    if any(isinstance(step, MovePages) for step in steps):
        raise ValueError("memory follows by move_pages, not with the other steps")


def _log(result: StepResult, level: int | None = None) -> None:
    if level is None:
        level = logging.INFO if result.outcome is Outcome.DONE else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    log.log(
        level, "%s %s%s", describe(result.step), result.outcome.value, f": {result.detail}" if result.detail else ""
    )


def _failure(step: Step, error: GoneError | RetryError | ReportError) -> StepResult:
    """What an error means for an instance. Where the project forbids the record, the cgroup can be set all the same."""
    match error:
        case GoneError():
            outcome = Outcome.GONE
        case RetryError():
            outcome = Outcome.BUSY
        case ForbiddenKeyError():
            outcome = Outcome.FORBIDDEN
        case _:
            outcome = Outcome.FAILED
    return StepResult(step=step, outcome=outcome, detail=str(error))
