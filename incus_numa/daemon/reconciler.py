"""Passes: observe, decide on the whole snapshot, apply the difference. Called by the service and by `rebalance`.

Passes over single instances may overlap: deciding happens without a pause between reading what is known and noting the
decision, so each sees what the others decided. Steps of one instance are never applied by two passes at a time.

When an instance gets exclusive CPUs, those that have some of them are planned again in the same decision, and their
CPUs are written beside its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from weakref import WeakValueDictionary

from incus_numa.applier.protocol import Applier, Target
from incus_numa.cpuset import NodeSet
from incus_numa.daemon import owners
from incus_numa.daemon.moves import Moves
from incus_numa.daemon.observe import World
from incus_numa.daemon.said import Said
from incus_numa.daemon.seen import Seen
from incus_numa.errors import ReportError, RetryError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Outcome, PassReport, PatchNodes, Placement, Plan, Step, StepResult, WriteMems
from incus_numa.model.snapshot import Decided
from incus_numa.policy import check, steps
from incus_numa.server.retrying import retrying

log = logging.getLogger(__name__)

PARALLEL_INSTANCES = 16
"""Instances worked on at a time in one pass over everything."""

GIVE_UP_S = 5.0
"""How long a busy server or a start that is not visible yet is tried again within one pass."""

MOST_ROUNDS = 4
"""How often those in the way of exclusive CPUs are planned again in one decision; the next pass goes on."""

_OWN_EVENT_S = 2.0


class Reconciler:
    """Brings instances to their placements, one pass at a time."""

    def __init__(self, world: World, applier: Applier) -> None:
        self.world = world
        self._applier = applier
        self._placements: dict[InstanceKey, Placement] = {}
        # A lock lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[InstanceKey, asyncio.Lock] = WeakValueDictionary()
        self._forbidden: set[InstanceKey] = set()
        self._held: set[InstanceKey] = set()
        self._own_updates: dict[InstanceKey, float] = {}
        self._said = Said()
        self._told_owners: set[InstanceKey] = set()
        self._leaving: set[InstanceKey] = set()
        self._freed = False
        self.rejected: frozenset[InstanceKey] = frozenset()

    async def pass_over_everything(self, *, project: str | None = None, max_moves: int | None = None) -> PassReport:
        """Look at all instances and bring every managed one to its placement.

        With `project` only those of one project, with `max_moves` no more moves of placed instances than that. What
        goes wrong with one instance is in the report and stops no other. Raises UnreachableError.
        """
        await self.world.look_at_everything()
        wanted = [key for key in self.world.managed() if project in (None, key.project)]
        idle = frozenset(key for key in wanted if not self._lock(key).locked())
        plan = self._decide(idle, Moves(max_moves))
        results = await self._settle_all(plan.placements)
        for key in self.world.released():
            if project in (None, key.project):
                async with self._lock(key):
                    results += await self._let_go(key)
        self._forget_gone()
        await self._say_unreadable(plan)
        self._watch_rejections(plan, everything=True)
        self._say_strangers()
        # This pass has planned everybody with what is free now.
        self._freed = False
        skipped = tuple(key for key in wanted if key not in idle)
        return PassReport(plan=plan, results=results, problems=self.world.problems, skipped=skipped)

    async def pass_over(self, key: InstanceKey, *, starting: bool = False) -> PassReport:
        """Look at one instance and bring it to its placement.

        With `starting` an instance that is not seen running yet is looked at again for a while: the server sends
        the event of a start before it shows it.
        """
        async with self._lock(key):
            try:
                report = await retrying(lambda: self._pass_over_once(key, starting=starting), give_up_after_s=GIVE_UP_S)
            except RetryError as error:
                if starting and self.world.get(key) is None:
                    log.debug("instance=%s does not run: %s", key, error)
                else:
                    self._said.once(key, f"not placed: {error}; the next pass tries again")
                report = PassReport(problems=(f"{key}: {error}",))
        # Without a lock of its own a pass may wait for others' locks.
        late, self._leaving = self._leaving, set()
        results = await self._settle_all(self._placements[one] for one in late if one in self._placements)
        self._say_strangers()
        return replace(report, results=report.results + results)

    async def reassert(self, keys: Iterable[InstanceKey]) -> PassReport:
        """Write the cpusets of instances again that were seen to have drifted. Asks the server nothing.

        The server rewrites all cpusets at once, so they are put right together, in one go per step. When one is
        rewritten once more at the same time, that is one more drift, which will be seen as well.
        """
        work: list[tuple[Target, tuple[Step, ...]]] = []
        for key in keys:
            placement, seen = self._placements.get(key), self.world.get(key)
            if placement is None or seen is None:
                continue
            if self._lock(key).locked():
                self._held.add(key)
                continue
            # The record waits for a pass; CPUs and memory are right without it.
            todo = tuple(step for step in self._steps(placement, seen) if not isinstance(step, PatchNodes))
            if todo:
                work.append((self._target(seen, mark=None), todo))
        async with AsyncExitStack() as held:
            for target, _ in work:
                await held.enter_async_context(self._lock(target.key))
            # Whoever held a lock meanwhile may have decided anew: then its own steps put things right.
            work = [(target, todo) for target, todo in work if self._wants(target.key, todo)]
            results = await self._applier.apply_together(work)
            for result in results:
                self._take_in(result.step.key, (result,))
        return PassReport(results=results)

    def _wants(self, key: InstanceKey, todo: tuple[Step, ...]) -> bool:
        """Whether these steps are still among those that lead the instance to its placement."""
        placement, seen = self._placements.get(key), self.world.get(key)
        return placement is not None and seen is not None and set(todo) <= set(self._steps(placement, seen))

    def has_drifted(self, key: InstanceKey, *, memory: bool = True) -> bool:
        """Whether the cgroup differs from the placement. Reads the cgroup, without `memory` only its CPUs."""
        placement = self._placements.get(key)
        seen = self.world.look_at_cgroup(key, memory=memory)
        return placement is not None and seen is not None and bool(self._steps(placement, seen))

    def is_own_update(self, key: InstanceKey) -> bool:
        """Whether an `instance-updated` event is the echo of our own write. Each write has one echo."""
        return self._own_updates.pop(key, 0.0) > time.monotonic()

    def is_placed(self, key: InstanceKey) -> bool:
        """Whether the instance has a placement of ours."""
        return key in self._placements

    def take_held(self) -> frozenset[InstanceKey]:
        """Those that were not put right since this was asked, as a pass was at work on them: to be compared again."""
        held, self._held = frozenset(self._held), set()
        return held

    def take_freed(self) -> bool:
        """Whether exclusive CPUs became usable since this was asked: those that have too few may get them now."""
        freed, self._freed = self._freed, False
        return freed

    def forget_own_updates(self) -> None:
        """The event stream was cut: echoes of our writes were lost, and what comes now is someone else's."""
        self._own_updates.clear()

    def forget_refusals(self) -> None:
        """Try again what the server refused, and say again what is wrong: settings may have changed."""
        self._forbidden.clear()
        self._said.lines.clear()

    async def _pass_over_once(self, key: InstanceKey, *, starting: bool) -> PassReport:
        seen = await self.world.look_at(key)
        if seen is None:
            self._forget_gone()
            if starting:
                raise RetryError("it was started, but the server does not show it running yet")
            return PassReport()
        if not seen.instance.managed:
            results = await self._let_go(key)
            plan = self._make_room(Plan(), Moves())
        else:
            results, plan = (), self._decide(frozenset((key,)), Moves())
        self._watch_rejections(plan, everything=False)
        return PassReport(plan=plan, results=results + await self._settle_beside(plan, key))

    async def _settle_beside(self, plan: Plan, key: InstanceKey) -> tuple[StepResult, ...]:
        """Apply the placement of the instance whose lock is held, and of those that have to leave for it.

        Those that another pass works on wait for the end of this one: waiting for their locks here could be mutual.
        """
        others = [one for one in plan.placements if one.key != key]
        free = [one for one in others if not self._lock(one.key).locked()]
        self._leaving.update(one.key for one in others if one not in free)
        own = [self._settle(one) for one in plan.placements if one.key == key]
        return await _all_of([*own, self._settle_all(free)])

    def _decide(self, keys: frozenset[InstanceKey], moves: Moves) -> Plan:
        """Plan for the keys and note the decisions, in one go; also for those in the way of exclusive CPUs."""
        return self._make_room(self._decide_once(keys, moves), moves)

    def _make_room(self, plan: Plan, moves: Moves) -> Plan:
        """The plan, and in it new decisions about those that have exclusive CPUs of others."""
        for _ in range(MOST_ROUNDS):
            crowding = self._crowding(moves)
            if not crowding:
                break
            plan = owners.joined(plan, self._decide_once(crowding, moves))
        return replace(plan, warnings=(*plan.warnings, *moves.warnings(self._crowding(moves)))) if moves.left else plan

    def _crowding(self, moves: Moves) -> frozenset[InstanceKey]:
        return owners.crowding(self._placements | moves.left, (seen.instance for seen in self.world.all_seen()))

    def _decide_once(self, keys: frozenset[InstanceKey], moves: Moves) -> Plan:
        plan, snapshot = moves.plan(self.world, keys)
        problems = check.check_plan(plan, snapshot, self.world.placement)
        if problems:
            # A plan that breaks a promise is a bug of ours; nothing of it is applied.
            log.error("plan not applied: %s", "; ".join(problems))
            return Plan(warnings=problems)
        for placement in plan.placements:
            before = self._placements.get(placement.key)
            if before is not None and before.exclusive:
                self._freed |= not (placement.exclusive and before.cpus <= placement.cpus)
            self._placements[placement.key] = placement
            self.world.share(placement.key, shared=False)
            self.world.decide(placement.key, _decided(placement))
        for rejection in plan.rejections:
            self._drop(rejection.key)
            self.world.share(rejection.key, shared=True)
        return plan

    def _drop(self, key: InstanceKey) -> None:
        before = self._placements.pop(key, None)
        self._freed |= before is not None and before.exclusive

    async def _say_unreadable(self, plan: Plan) -> None:
        """Say whose cgroup could not be read; one that is just going away is looked at once more and not told."""
        for key in (one.key for one in plan.placements):
            seen = self.world.get(key)
            if seen is None or seen.problem is None:
                continue
            line = f"CPUs and memory not set, only the server's record: {seen.problem}"
            if self._said.lines.get(key) != line and await self.world.look_at(key) is not None:
                self._said.once(key, line)

    async def _settle_all(self, placements: Iterable[Placement]) -> tuple[StepResult, ...]:
        gate = asyncio.Semaphore(PARALLEL_INSTANCES)

        async def settle(placement: Placement) -> tuple[StepResult, ...]:
            async with gate:
                return await self._settle_in_turn(placement)

        return await _all_of([settle(placement) for placement in placements])

    async def _settle_in_turn(self, placement: Placement) -> tuple[StepResult, ...]:
        key = placement.key
        seen = self.world.get(key)
        decided = _decided(placement)
        if seen is None or not (self._steps(placement, seen) or self._lacks_mark(seen, decided)):
            return ()
        async with self._lock(key):
            try:
                return await retrying(lambda: self._settle(placement), give_up_after_s=GIVE_UP_S)
            except (RetryError, ReportError) as error:
                self._said.once(key, f"not placed: {error}; the next pass tries again")
                return ()

    async def _settle(self, placement: Placement) -> tuple[StepResult, ...]:
        """Apply what is still to do, unless a later decision replaced this one."""
        key = placement.key
        seen = self.world.get(key)
        if seen is None or self._placements.get(key) is not placement:
            return ()
        decided = _decided(placement)
        todo = self._steps(placement, seen)
        if seen.etag is None and any(isinstance(step, PatchNodes) for step in todo):
            seen = await self.world.look_at(key)
            now = self._placements.get(key)
            if now is not placement:
                # Somebody who needs its CPUs decided about it meanwhile, and will settle that.
                if now is not None:
                    self.world.decide(key, _decided(now))
                return ()
            self.world.decide(key, decided)
            todo = self._steps(placement, seen) if seen is not None else ()
        if seen is None or not seen.instance.managed or not (todo or self._lacks_mark(seen, decided)):
            return ()
        if any(isinstance(step, PatchNodes) for step in todo):
            self._own_updates[key] = time.monotonic() + _OWN_EVENT_S
        target = self._target(seen, mark=None if seen.marked == decided else decided)
        results = await self._applier.apply(target, todo)
        self.world.note_mark(key, decided)
        self._take_in(key, results)
        busy = [result.detail for result in results if result.outcome is Outcome.BUSY]
        if busy:
            raise RetryError(busy[0])
        return results

    async def _let_go(self, key: InstanceKey) -> tuple[StepResult, ...]:
        """Unbind the memory of an instance that is no longer managed: the server spreads its CPUs as before."""
        self._drop(key)
        seen = self.world.get(key)
        if seen is None or seen.instance.managed or seen.marked is None:
            return ()
        bound = seen.observed.mems
        todo = (WriteMems(key=key, mems=NodeSet(), before=bound),) if bound and bound <= seen.marked.nodes else ()
        target = self._target(seen, mark=None)
        results = await self._applier.release(target, todo)
        if all(result.outcome is Outcome.DONE for result in results):
            self.world.note_released(key)
        self._take_in(key, results)
        return results

    def _target(self, seen: Seen, *, mark: Decided | None) -> Target:
        return Target(
            key=seen.instance.key, group=seen.group, nodes_key=self.world.nodes_key, etag=seen.etag, mark=mark
        )

    def _lacks_mark(self, seen: Seen, decided: Decided) -> bool:
        """Whether the decision is not on the cgroup yet: another daemon would take what is there as the server's."""
        return seen.group is not None and seen.marked != decided

    def _take_in(self, key: InstanceKey, results: Iterable[StepResult]) -> None:
        """Remember what the steps changed, and say once what could not be done."""
        for result in results:
            if result.outcome is Outcome.DONE:
                self.world.note_done(result.step)
            elif isinstance(result.step, PatchNodes):
                self._own_updates.pop(key, None)
                self.world.forget_etag(key)
            if result.outcome is Outcome.FORBIDDEN:
                self._forbidden.add(key)
                self._said.once(
                    key, f"its project forbids the server's record, only the cgroup is set: {result.detail}"
                )
            elif result.outcome is Outcome.FAILED:
                self._said.once(key, f"step failed: {result.detail}")
        if any(result.outcome is not Outcome.DONE for result in results):
            self.world.look_at_cgroup(key)

    def _steps(self, placement: Placement, seen: Seen) -> tuple[Step, ...]:
        todo = steps.diff_one(placement, seen.observed, self.world.machine.memory_nodes)
        if placement.key in self._forbidden:
            return tuple(step for step in todo if not isinstance(step, PatchNodes))
        return todo

    def _watch_rejections(self, plan: Plan, *, everything: bool) -> None:
        judged = {placement.key for placement in plan.placements}
        for key in judged & self.rejected:
            # It was refused and is not any more: should it be refused again, that is news.
            self._said.lines.pop(key, None)
        now = {rejection.key for rejection in plan.rejections}
        kept = frozenset() if everything else self.rejected - judged
        self.rejected = frozenset(kept | now)
        for rejection in plan.rejections:
            self._said.once(
                rejection.key, f"refused, left as it is: reason={rejection.reason.value}: {rejection.detail}"
            )
        for warning in plan.warnings:
            log.debug("%s", warning)

    def _say_strangers(self) -> None:
        """Say once for each owner of exclusive CPUs who may run on them all the same."""
        exclusive = {key: one for key, one in self._placements.items() if one.exclusive}
        self._told_owners &= exclusive.keys()
        for key in sorted(exclusive.keys() - self._told_owners):
            seen = ((one.instance, one.observed) for one in self.world.all_seen())
            line = owners.strangers(exclusive[key], seen, self.rejected)
            if line is not None:
                self._told_owners.add(key)
                log.warning("instance=%s %s", key, line)

    def _forget_gone(self) -> None:
        managed = set(self.world.managed())
        for key in [key for key in self._placements if key not in managed]:
            self._drop(key)
        self.rejected &= managed
        self._forbidden &= managed
        self._own_updates = {key: until for key, until in self._own_updates.items() if key in managed}
        for key in [key for key in self._said.lines if self.world.get(key) is None]:
            del self._said.lines[key]

    def _lock(self, key: InstanceKey) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


async def _all_of(work: Iterable[Awaitable[tuple[StepResult, ...]]]) -> tuple[StepResult, ...]:
    """The results of all, when all have ended. Raises the first error."""
    # Not a task group: that would wrap the one error that matters here, a server that is gone.
    done = await asyncio.gather(*work, return_exceptions=True)
    for failed in done:
        if isinstance(failed, BaseException):
            raise failed
    return tuple(result for results in done if not isinstance(results, BaseException) for result in results)


def _decided(placement: Placement) -> Decided:
    """What of a placement is kept for as long as the instance runs; memory follows from it."""
    return Decided(nodes=placement.nodes, cpus=placement.cpus)
