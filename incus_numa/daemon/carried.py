"""Counts the memory that the kernel moves by itself when memory is bound. Used by `settling`, asked by `balancing`.

A write of `cpuset.mems` does not say what it moved, and the kernel brings `memory.numa_stat` up to date every 2 s, or
when many pages have changed. So where memory was is noted before, and where it is then is read some time later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.notices import Notices
from incus_numa.daemon.observe import World
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import MemoryFollowed
from incus_numa.model.plan import Outcome, Step, StepResult, WriteMems

SHOWN_S = 3.0
"""After so long at most `memory.numa_stat` shows what a write has moved: the kernel's period, and some more."""

_FIRST_LOOK_S, _LONGEST_PAUSE_S = 0.02, 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Binding:
    """A write that is to bind memory, and where memory (bytes by node) was before it."""

    step: WriteMems
    before: Mapping[int, int]
    at_s: float


class Carried:
    """What became of the memory of instances that were bound, one binding for each."""

    def __init__(self, world: World, notices: Notices) -> None:
        self._world = world
        self._notices = notices
        self._due: dict[InstanceKey, Binding] = {}

    async def watch(
        self, todo: Sequence[Step], work: Coroutine[Any, Any, tuple[StepResult, ...]]
    ) -> tuple[StepResult, ...]:
        """Let `work` carry out these steps of one instance. If it binds memory, what that moved can be counted then."""
        binding = await self._look(todo)
        results = await work
        if binding is not None and any(one.step == binding.step and one.outcome is Outcome.DONE for one in results):
            self._due[binding.step.key] = binding
        return results

    async def _look(self, todo: Sequence[Step]) -> Binding | None:
        """Where memory is before the last binding of these steps; None where it moves nothing."""
        step = next((one for one in reversed(todo) if isinstance(one, WriteMems)), None)
        if step is None or (step.before and step.before <= step.mems):
            return None
        before = await self._memory(step.key)
        return Binding(step=step, before=before, at_s=time.monotonic()) if _away(before, step.mems) else None

    def due(self) -> tuple[InstanceKey, ...]:
        """Those whose memory was bound, and what that moved was not counted yet."""
        return tuple(self._due)

    async def count(self, key: InstanceKey) -> int:
        """The bytes that binding an instance has moved, told once; waits until the kernel shows it. 0 without one."""
        binding, pause_s = self._due.get(key), _FIRST_LOOK_S
        if binding is None:
            return 0
        while _away(now := await self._memory(key), binding.step.mems):
            if time.monotonic() - binding.at_s > SHOWN_S:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        if self._due.get(key) is binding:
            del self._due[key]
        moved = count_moved(binding.before, now, binding.step.mems)
        if moved:
            took_s = time.monotonic() - binding.at_s
            self._notices.tell(MemoryFollowed(key=key, moved_bytes=moved, took_s=took_s))
        return moved

    def keep(self, managed: set[InstanceKey]) -> None:
        """Keep only what is about these instances."""
        self._due = {key: one for key, one in self._due.items() if key in managed}

    async def _memory(self, key: InstanceKey) -> Mapping[int, int]:
        """Memory in bytes by node; empty when unknown."""
        await self._world.look_at_memory(key)
        seen = self._world.get(key)
        return {} if seen is None or seen.observed.memory is None else seen.observed.memory


def count_moved(before: Mapping[int, int], now: Mapping[int, int], mems: NodeSet) -> int:
    """What is no longer elsewhere and came to these nodes: neither what was freed meanwhile nor what is new there."""
    left = _away(before, mems) - _away(now, mems)
    came = sum(now.values()) - sum(before.values()) + left
    return max(0, min(left, came))


def _away(memory: Mapping[int, int], mems: NodeSet) -> int:
    return sum(size for node, size in memory.items() if node not in mems)
