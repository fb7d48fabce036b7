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

    async def _try(self, target: Target, step: Step) -> StepResult:
        try:
            await self._apply_one(target, step)
        except GoneError as error:
            return StepResult(step=step, outcome=Outcome.GONE, detail=str(error))
        except RetryError as error:
            return StepResult(step=step, outcome=Outcome.BUSY, detail=str(error))
        except ForbiddenKeyError as error:
            # The cgroup can be set all the same, so the steps that follow are still tried.
            return StepResult(step=step, outcome=Outcome.FORBIDDEN, detail=str(error))
        except ReportError as error:
            return StepResult(step=step, outcome=Outcome.FAILED, detail=str(error))
        except TimeoutError:
            detail = f"not finished after {self.write_timeout_s:g} s; the kernel goes on by itself"
            return StepResult(step=step, outcome=Outcome.FAILED, detail=detail)
        return StepResult(step=step, outcome=Outcome.DONE)

    async def _apply_one(self, target: Target, step: Step) -> None:
        match step:
            case PatchNodes():
                await self._server.patch_config(target.key, {target.nodes_key: str(step.nodes)}, target.etag)
            case WriteCpus():
                if target.group is not None:
                    await self._in_thread(partial(self._cgroups.write_cpus, target.group, step.cpus))
            case WriteMems():
                if target.group is not None:
                    async with self._memory_writes:
                        await self._in_thread(partial(self._cgroups.write_mems, target.group, step.mems))
            case _:
                assert_never(step)

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
