"""Changes the server's record and the kernel's cpusets. Used by the daemon and by `rebalance`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

from incus_numa.applier.protocol import Target, describe
from incus_numa.errors import ForbiddenKeyError, GoneError, ReportError, RetryError
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.model.plan import Outcome, PatchNodes, Step, StepResult, WriteCpus, WriteMems
from incus_numa.server.protocol import Server

log = logging.getLogger(__name__)

PARALLEL_MEMORY_WRITES = 2
"""Writes of cpuset.mems at a time: each may move much memory, which slows the whole host."""


class LiveApplier:
    """An Applier that changes things. One INFO line per applied step."""

    def __init__(self, server: Server, cgroups: CgroupFiles, *, write_timeout_s: float) -> None:
        self._server = server
        self._cgroups = cgroups
        self.write_timeout_s = write_timeout_s
        self._memory_writes = asyncio.Semaphore(PARALLEL_MEMORY_WRITES)

    async def apply(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Results of the steps that were tried; the decision is marked on the cgroup before anything is written."""
        results: list[StepResult] = []
        if target.group is not None and target.mark is not None:
            try:
                self._cgroups.mark(target.group, target.mark)
            except GoneError as error:
                return tuple(StepResult(step=step, outcome=Outcome.GONE, detail=str(error)) for step in steps[:1])
        for step in steps:
            result = await self._try(target, step)
            results.append(result)
            _log(result)
            if result.outcome in (Outcome.GONE, Outcome.FAILED, Outcome.BUSY):
                break
        return tuple(results)

    async def apply_together(self, work: Sequence[tuple[Target, Sequence[Step]]]) -> tuple[StepResult, ...]:
        """Results of all steps. CPUs are written in one thread; what moves memory takes its turn as always."""
        quick = [(target, step) for target, steps in work for step in steps if isinstance(step, WriteCpus)]
        slow = [(target, [step for step in steps if not isinstance(step, WriteCpus)]) for target, steps in work]
        results: list[StepResult] = []
        if quick:
            try:
                await self._in_thread(partial(self._write_all, quick, results))
            except TimeoutError:
                log.warning("cpusets of %d instances not written after %g s", len(quick), self.write_timeout_s)
            for result in results:
                _log(result)
        for target, steps in slow:
            results += await self.apply(target, steps) if steps else ()
        return tuple(results)

    def _write_all(self, writes: Sequence[tuple[Target, WriteCpus]], results: list[StepResult]) -> None:
        for target, step in writes:
            try:
                if target.group is not None:
                    self._cgroups.write_cpus(target.group, step.cpus)
                results.append(StepResult(step=step, outcome=Outcome.DONE))
            except (GoneError, RetryError, ReportError) as error:
                results.append(_failure(step, error))

    async def release(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Results of the steps; the mark goes away when all of them worked."""
        results = await self.apply(target, steps)
        if target.group is not None and all(result.outcome is Outcome.DONE for result in results):
            self._cgroups.unmark(target.group)
        return results

    async def _try(self, target: Target, step: Step) -> StepResult:
        try:
            await self._apply_one(target, step)
        except (GoneError, RetryError, ReportError) as error:
            return _failure(step, error)
        except TimeoutError:
            detail = f"not finished after {self.write_timeout_s:g} s; the kernel goes on by itself"
            return StepResult(step=step, outcome=Outcome.FAILED, detail=detail)
        return StepResult(step=step, outcome=Outcome.DONE)

    async def _apply_one(self, target: Target, step: Step) -> None:
        match step:
            case PatchNodes():
                await self._patch(target, step)
            case WriteCpus():
                if target.group is not None:
                    await self._in_thread(partial(self._cgroups.write_cpus, target.group, step.cpus))
            case WriteMems():
                if target.group is not None:
                    async with self._memory_writes:
                        await self._in_thread(partial(self._cgroups.write_mems, target.group, step.mems))
            case _:
                assert_never(step)

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


def _log(result: StepResult) -> None:
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
