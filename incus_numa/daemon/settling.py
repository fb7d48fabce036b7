"""Brings instances to where they were decided to be, one step after the other. Used by the reconciler.

Steps of one instance are never applied by two passes at a time: each instance has a lock. Memory that follows in
slices can take minutes, so nobody holds the lock meanwhile: what has to be done at once is done before, and the binding
is narrowed under the lock again when the memory is there. If the instance was given another place meanwhile, the rest
of its memory is not moved to the old one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from weakref import WeakValueDictionary

from incus_numa.applier.protocol import Applier, Progress, Target
from incus_numa.cpuset import NodeSet
from incus_numa.daemon.carried import Carried
from incus_numa.daemon.decisions import Decisions, decided_of
from incus_numa.daemon.notices import Notices
from incus_numa.daemon.observe import World
from incus_numa.daemon.recording import Recording
from incus_numa.daemon.said import Said
from incus_numa.daemon.seen import Seen
from incus_numa.errors import ReportError, RetryError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import CpusetCorrected, MemoryFollowed, StepTaken
from incus_numa.model.plan import (
    MovePages,
    Outcome,
    PatchNodes,
    PinThreads,
    Placement,
    Step,
    StepResult,
    WriteCpus,
    WriteMems,
)
from incus_numa.model.snapshot import Decided
from incus_numa.policy import steps
from incus_numa.server.retrying import retrying

PARALLEL_INSTANCES = 16
"""Instances worked on at a time in one pass over everything."""

GIVE_UP_S = 5.0
"""How long a busy server or a start that is not visible yet is tried again within one pass."""

_OWN_EVENT_S = 2.0

Place = tuple[NodeSet, NodeSet | None]
"""Nodes and memory nodes: what memory that follows is moved to."""


class Settling:
    """Applies decisions. What goes wrong with one instance is told and stops no other."""

    def __init__(self, world: World, applier: Applier, decisions: Decisions, said: Said, notices: Notices) -> None:
        self._world = world
        self._applier = applier
        self._decisions = decisions
        self._said = said
        self._notices = notices
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[InstanceKey, asyncio.Lock] = WeakValueDictionary()
        self._recording = Recording(world)
        self.carried = Carried(world, notices)
        self._held: set[InstanceKey] = set()
        self._unready: set[InstanceKey] = set()
        self._own_updates: dict[InstanceKey, float] = {}
        self._waiting: dict[InstanceKey, Placement] = {}
        self._followed: dict[InstanceKey, Place] = {}

    def lock(self, key: InstanceKey) -> asyncio.Lock:
        """The lock of an instance."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    def todo(self, placement: Placement, seen: Seen) -> tuple[Step, ...]:
        """The steps that lead an instance to its placement, but those that were found not to be possible."""
        found = self._world.diff(placement, seen)
        followed = self._has_followed(placement)
        forbidden = not self._recording.may_write(seen, placement.nodes)
        return tuple(
            step
            for step in found
            if not (forbidden and isinstance(step, PatchNodes)) and not (followed and isinstance(step, MovePages))
        )

    def _has_followed(self, placement: Placement) -> bool:
        """Whether memory has followed to this place already; one that comes back later follows anew."""
        if self._followed.get(placement.key) == _place(placement):
            return True
        self._followed.pop(placement.key, None)
        return False

    async def settle_all(self, placements: Iterable[Placement]) -> tuple[StepResult, ...]:
        """Apply many placements, several at a time, each when its instance's lock is free."""
        gate = asyncio.Semaphore(PARALLEL_INSTANCES)

        async def settle(placement: Placement) -> tuple[StepResult, ...]:
            async with gate:
                return await self._settle_in_turn(placement)

        return await all_of([settle(placement) for placement in placements])

    async def _settle_in_turn(self, placement: Placement) -> tuple[StepResult, ...]:
        key = placement.key
        seen = self._world.get(key)
        if seen is None or not (self.todo(placement, seen) or _lacks_mark(seen, decided_of(placement))):
            return ()
        async with self.lock(key):
            try:
                return await retrying(lambda: self.settle(placement), give_up_after_s=GIVE_UP_S)
            except (RetryError, ReportError) as error:
                self._said.once(key, f"not placed: {error}; the next pass tries again")
                return ()

    async def settle(self, placement: Placement) -> tuple[StepResult, ...]:
        """Apply what is still to do, unless a later decision replaced this one. The instance's lock is held."""
        key = placement.key
        seen = self._world.get(key)
        if seen is None or self._decisions.get(key) is not placement:
            return ()
        decided = decided_of(placement)
        todo = self.todo(placement, seen)
        if seen.etag is None and any(isinstance(step, PatchNodes) for step in todo):
            seen = await self._world.look_at(key)
            now = self._decisions.get(key)
            if now is not placement:
                # Somebody who needs its CPUs decided about it meanwhile, and will settle that.
                if now is not None:
                    self._world.decide(key, decided_of(now))
                return ()
            self._world.decide(key, decided)
            todo = self.todo(placement, seen) if seen is not None else ()
        if seen is None or not seen.instance.managed or not (todo or _lacks_mark(seen, decided)):
            return ()
        if any(isinstance(step, PatchNodes) for step in todo):
            self._own_updates[key] = time.monotonic() + _OWN_EVENT_S
        target = self._target(seen, mark=None if seen.marked == decided else decided)
        due = self._now(placement, todo)
        results = await self.carried.watch(due, self._applier.apply(target, due))
        self._world.note_mark(key, decided)
        self._take_in(key, results)
        busy = [result.detail for result in results if result.outcome is Outcome.BUSY]
        if busy:
            raise RetryError(busy[0])
        if any(result.outcome is Outcome.FORBIDDEN for result in results) and self._recording.key_of(seen) is not None:
            raise RetryError("the record goes to another key")
        return results

    def _now(self, placement: Placement, todo: tuple[Step, ...]) -> tuple[Step, ...]:
        """The steps to apply now; memory that has to follow first is noted for `follow`."""
        now = steps.at_once(todo)
        if now == todo or not self._applier.paces:
            return todo
        self._waiting.setdefault(placement.key, placement)
        if _place(self._waiting[placement.key]) != _place(placement):
            self._waiting[placement.key] = placement
        return now

    def waiting(self) -> tuple[InstanceKey, ...]:
        """Instances whose memory is to follow, in the order in which that was found."""
        return tuple(self._waiting)

    async def follow(self, key: InstanceKey, progress: Progress) -> tuple[StepResult, ...]:
        """Let the memory of an instance follow to its place, then bind it there; nothing if none has to.

        Stops when the instance is given another place, or `progress` says so. Raises UnreachableError.
        """
        placement = self._waiting.pop(key, None)
        await self._world.look_at_memory(key)
        seen = self._world.get(key)
        if placement is None or seen is None or not self._is_still(placement):
            return ()
        found = self._world.diff(placement, seen)
        step = next((step for step in found if isinstance(step, MovePages)), None)
        results: tuple[StepResult, ...] = ()
        if step is not None:
            result = await self._move_pages(placement, self._target(seen, mark=None), step, progress)
            results = (result,)
            self._take_in(key, results)
            await self._world.look_at_memory(key)
            if result.outcome in (Outcome.CUT, Outcome.GONE):
                return results
        # What could not be moved in slices is moved by the kernel when the binding is narrowed.
        self._followed[key] = _place(placement)
        now = self._decisions.get(key)
        return results if now is None else results + await self._settle_in_turn(now)

    async def _move_pages(
        self, placement: Placement, target: Target, step: MovePages, progress: Progress
    ) -> StepResult:
        """Let memory follow as long as that is its place."""
        began, moved_bytes = time.monotonic(), 0

        def go_on(moved: int) -> bool:
            nonlocal moved_bytes
            moved_bytes = moved
            return self._is_still(placement) and progress(moved)

        try:
            return await self._applier.move_pages(target, step, go_on)
        finally:
            if moved_bytes:
                took_s = time.monotonic() - began
                self._notices.tell(MemoryFollowed(key=placement.key, moved_bytes=moved_bytes, took_s=took_s))

    def _is_still(self, placement: Placement) -> bool:
        now = self._decisions.get(placement.key)
        return now is not None and _place(now) == _place(placement)

    async def reassert(self, keys: Iterable[InstanceKey]) -> tuple[StepResult, ...]:
        """Write the cpusets of instances again that were seen to have drifted. Asks the server nothing.

        The server rewrites all cpusets at once, so they are put right together, in one go per step. When one is
        rewritten once more at the same time, that is one more drift, which will be seen as well.
        """
        work: list[tuple[Target, tuple[Step, ...]]] = []
        for key in keys:
            placement, seen = self._decisions.get(key), self._world.get(key)
            if placement is None or seen is None:
                continue
            if self.lock(key).locked():
                self._held.add(key)
                continue
            # The record waits for a pass; CPUs and memory are right without it.
            now = self._now(placement, self.todo(placement, seen))
            todo = tuple(step for step in now if not isinstance(step, PatchNodes))
            if todo:
                work.append((self._target(seen, mark=None), todo))
        async with AsyncExitStack() as held:
            for target, _ in work:
                await held.enter_async_context(self.lock(target.key))
            # Whoever held a lock meanwhile may have decided anew: then its own steps put things right.
            work = [(target, todo) for target, todo in work if self._wants(target.key, todo)]
            results = await self._applier.apply_together(work)
            for result in results:
                self._take_in(result.step.key, (result,))
        for key in dict.fromkeys(one.step.key for one in results if one.outcome is Outcome.DONE):
            self._notices.tell(CpusetCorrected(key=key))
        return results

    def _wants(self, key: InstanceKey, todo: tuple[Step, ...]) -> bool:
        """Whether these steps are still among those that lead the instance to its placement."""
        placement, seen = self._decisions.get(key), self._world.get(key)
        return placement is not None and seen is not None and set(todo) <= set(self.todo(placement, seen))

    def has_drifted(self, key: InstanceKey, *, memory: bool = True) -> bool:
        """Whether the cgroup differs from the placement. Reads the cgroup, without `memory` only its CPUs.

        Memory that is about to follow has not drifted.
        """
        placement = self._decisions.get(key)
        seen = self._world.look_at_cgroup(key, memory=memory)
        if placement is None or seen is None:
            return False
        if _lacks_mark(seen, decided_of(placement)):
            # What was decided just now is carried out by whoever decided it, the record first.
            self._unready.add(key)
            return False
        return bool(self._now(placement, self.todo(placement, seen)))

    def was_decided_by_another(self, key: InstanceKey) -> bool:
        """Whether the mark on the cgroup is not our decision: a command has moved the instance. Reads the cgroup.

        Without the mark it had, it is the cgroup of another instance of that name, or of one that was started again.
        """
        placement, seen = self._decisions.get(key), self._world.get(key)
        if placement is None or seen is None:
            return False
        marked = self._world.read_mark(seen)
        return marked != seen.marked if marked is None else marked not in (decided_of(placement), seen.marked)

    def take_unready(self) -> frozenset[InstanceKey]:
        """Those not compared since this was asked, as they were not where they were decided to be yet."""
        unready, self._unready = frozenset(self._unready), set()
        return unready

    def take_held(self) -> frozenset[InstanceKey]:
        """Those that were not put right since this was asked, as a pass was at work on them: to be compared again."""
        held, self._held = frozenset(self._held), set()
        return held

    async def let_go(self, key: InstanceKey) -> tuple[StepResult, ...]:
        """Unbind the memory of an instance that is no longer managed: the server spreads its CPUs as before."""
        self._decisions.drop(key)
        self._followed.pop(key, None)
        seen = self._world.get(key)
        if seen is None or seen.instance.managed or seen.marked is None:
            return ()
        # The server would not touch the threads of a virtual machine before its next start.
        wide = self._widening(seen) if seen.process is not None else ()
        # What is bound elsewhere is not ours; in the middle of a move the nodes that are left are still there.
        return await self._release(seen, unbind=bool((seen.observed.mems or NodeSet()) & seen.marked.nodes), first=wide)

    async def release(self, key: InstanceKey) -> tuple[StepResult, ...]:
        """Hand an instance back, managed or not: all online CPUs, memory anywhere, no decision. Its lock is held."""
        self._decisions.drop(key)
        seen = self._world.get(key)
        if seen is None or seen.marked is None:
            return ()
        is_bound = bool(steps.really_bound(seen.observed.mems, self._world.machine.memory_nodes))
        return await self._release(seen, unbind=is_bound, first=self._widening(seen))

    def _widening(self, seen: Seen) -> tuple[Step, ...]:
        """The step that gives an instance all online CPUs; none where it has them."""
        key, online, has = seen.instance.key, self._world.machine.online, seen.observed.cpus
        if seen.process is None:
            return (WriteCpus(key=key, cpus=online, before=has),) if has and has != online else ()
        around = seen.observed.around
        return (PinThreads(key=key, cpus=online, around=online, before=has),) if {has, around} - {online, None} else ()

    async def _release(self, seen: Seen, *, unbind: bool, first: tuple[Step, ...]) -> tuple[StepResult, ...]:
        key, bound = seen.instance.key, seen.observed.mems
        last = (WriteMems(key=key, mems=self._world.machine.memory_nodes, before=bound),) if unbind else ()
        record: tuple[Step, ...] = ()
        if self._recording.is_followed(seen) and seen.marked is not None and seen.observed.nodes == seen.marked.nodes:
            # This server keeps the instance on the nodes that its record names, whoever wrote it.
            record = (PatchNodes(key=key, nodes=NodeSet(), before=seen.observed.nodes),)
            self._own_updates[key] = time.monotonic() + _OWN_EVENT_S
        results = await self._applier.release(self._target(seen, mark=None), (*record, *first, *last))
        if all(result.outcome is Outcome.DONE for result in results):
            self._world.note_released(key)
        self._take_in(key, results)
        return results

    def _target(self, seen: Seen, *, mark: Decided | None) -> Target:
        return Target(
            key=seen.instance.key,
            group=seen.group,
            nodes_key=self._recording.key_of(seen) or "",
            etag=seen.etag,
            mark=mark,
            process=seen.process,
            vcpus=seen.instance.demand.vcpus,
        )

    def _take_in(self, key: InstanceKey, results: Iterable[StepResult]) -> None:
        """Remember what the steps changed, and say once what could not be done."""
        for result in results:
            self._notices.tell(StepTaken(result=result))
            seen = self._world.get(key)
            if result.outcome is Outcome.DONE:
                if isinstance(result.step, PatchNodes) and seen is not None:
                    self._recording.note_written(seen, result.step.nodes)
                self._world.note_done(result.step)
            elif isinstance(result.step, PatchNodes):
                self._own_updates.pop(key, None)
                self._world.forget_etag(key)
            if result.outcome is Outcome.FORBIDDEN:
                self._said.once(key, result.detail if seen is None else self._recording.refuse(seen, result.detail))
            elif result.outcome is Outcome.FAILED:
                self._said.once(key, f"step failed: {result.detail}")
        if any(result.outcome is not Outcome.DONE for result in results):
            self._world.look_at_cgroup(key)

    def is_own_update(self, key: InstanceKey) -> bool:
        """Whether an `instance-updated` event is the echo of our own write. Each write has one echo."""
        return self._own_updates.pop(key, 0.0) > time.monotonic()

    def forget_own_updates(self) -> None:
        """The event stream was cut: echoes of our writes were lost, and what comes now is someone else's."""
        self._own_updates.clear()

    def forget_refusals(self, project: str | None = None) -> None:
        """Try again what the server refused, in one project or everywhere."""
        self._recording.forget(project)

    def forget_gone(self, managed: set[InstanceKey]) -> None:
        """Keep only what is about these instances."""
        self._recording.keep(managed)
        self.carried.keep(managed)
        self._own_updates = {key: until for key, until in self._own_updates.items() if key in managed}
        self._waiting = {key: one for key, one in self._waiting.items() if key in managed}
        self._followed = {key: one for key, one in self._followed.items() if key in managed}


def _lacks_mark(seen: Seen, decided: Decided) -> bool:
    """Whether the decision is not on the cgroup yet: another daemon would take what is there as the server's."""
    return (seen.group is not None or seen.process is not None) and seen.marked != decided


def _place(placement: Placement) -> Place:
    return placement.nodes, placement.mems


async def all_of(work: Iterable[Awaitable[tuple[StepResult, ...]]]) -> tuple[StepResult, ...]:
    """The results of all, when all have ended. Raises the first error."""
    # Not a task group: that would wrap the one error that matters here, a server that is gone.
    done = await asyncio.gather(*work, return_exceptions=True)
    for failed in done:
        if isinstance(failed, BaseException):
            raise failed
    return tuple(result for results in done if not isinstance(results, BaseException) for result in results)
