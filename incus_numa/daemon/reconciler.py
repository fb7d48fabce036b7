"""Passes: observe, decide on the whole snapshot, apply the difference. Called by the service and by `rebalance`.

Passes over single instances may overlap: deciding happens without a pause between reading what is known and noting the
decision, so each sees what the others decided (`decisions`). Steps of one instance are never applied by two passes at a
time (`settling`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from incus_numa.applier.protocol import Applier, Progress
from incus_numa.daemon import owners
from incus_numa.daemon.decisions import Decisions
from incus_numa.daemon.moves import Moves
from incus_numa.daemon.notices import Notices
from incus_numa.daemon.observe import World
from incus_numa.daemon.said import Said
from incus_numa.daemon.settling import GIVE_UP_S, Settling, all_of
from incus_numa.errors import RetryError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Refused
from incus_numa.model.plan import Outcome, PassReport, Plan, Reason, StepResult
from incus_numa.model.snapshot import Snapshot
from incus_numa.server.retrying import retrying

log = logging.getLogger(__name__)


class Reconciler:
    """Brings instances to their placements, one pass at a time."""

    def __init__(self, world: World, applier: Applier, notices: Notices | None = None) -> None:
        self.world = world
        self.notices = notices or Notices()
        self._said = Said()
        self._decisions = Decisions(world)
        self._settling = Settling(world, applier, self._decisions, self._said, self.notices)
        self._told_owners: set[InstanceKey] = set()
        self._leaving: set[InstanceKey] = set()
        self.refused: dict[InstanceKey, Reason] = {}

    @property
    def rejected(self) -> frozenset[InstanceKey]:
        """Those that are refused."""
        return frozenset(self.refused)

    async def pass_over_everything(self, *, project: str | None = None, max_moves: int | None = None) -> PassReport:
        """Look at all instances and bring every managed one to its placement.

        With `project` only those of one project, with `max_moves` no more moves of placed instances than that. What
        goes wrong with one instance is in the report and stops no other. Raises UnreachableError.
        """
        await self.world.look_at_everything()
        wanted = [key for key in self.world.managed() if project in (None, key.project)]
        idle = frozenset(key for key in wanted if not self._settling.lock(key).locked())
        plan = self._decisions.decide(idle, Moves(max_moves))
        results = await self.settle(plan)
        for key in self.world.released():
            if project in (None, key.project):
                async with self._settling.lock(key):
                    results += await self._settling.let_go(key)
        self._forget_gone()
        await self._say_unreadable(plan)
        self._watch_rejections(plan, everything=True)
        self._said.forget(self._at_rest(results))
        self._say_strangers()
        # This pass has planned everybody with what is free now.
        self._decisions.take_freed()
        skipped = tuple(key for key in wanted if key not in idle)
        return PassReport(plan=plan, results=results, problems=self.world.problems, skipped=skipped)

    async def pass_over(self, key: InstanceKey, *, starting: bool = False) -> PassReport:
        """Look at one instance and bring it to its placement.

        With `starting` an instance that is not seen running yet is looked at again for a while: the server sends
        the event of a start before it shows it.
        """
        async with self._settling.lock(key):
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
        results = await self._settling.settle_all(
            self._decisions.placements[one] for one in late if one in self._decisions.placements
        )
        results += await self._leave_owners(report.plan)
        self._say_strangers()
        return replace(report, results=report.results + results)

    async def reassert(self, keys: Iterable[InstanceKey]) -> PassReport:
        """Write the cpusets of instances again that were seen to have drifted. Asks the server nothing."""
        return PassReport(results=await self._settling.reassert(keys))

    def accept(self, plan: Plan, snapshot: Snapshot) -> Plan:
        """Take a plan that was decided from this snapshot as decided; nothing of one that breaks a promise."""
        return self._decisions.note(plan, snapshot)

    async def settle(self, plan: Plan) -> tuple[StepResult, ...]:
        """Carry out an accepted plan, all but memory (see `follow`). Raises UnreachableError."""
        results = await self._settling.settle_all(plan.placements)
        return results + await self._leave_owners(plan)

    async def _leave_owners(self, settled: Plan) -> tuple[StepResult, ...]:
        """Where CPUs became exclusive, virtual machines leave them that this plan, settled already, is not about.

        Their vCPUs are not there, or they would be planned anew, but other threads of theirs may be.
        """
        if not self._decisions.take_claimed():
            return ()
        done = {one.key for one in settled.placements}
        left = [one for key, one in self._decisions.placements.items() if key not in done and self._is_vm(key)]
        return await self._settling.settle_all(left)

    def _is_vm(self, key: InstanceKey) -> bool:
        seen = self.world.get(key)
        return seen is not None and seen.process is not None

    def waiting(self) -> tuple[InstanceKey, ...]:
        """Instances whose memory is to follow to where they are."""
        return self._settling.waiting()

    async def follow(self, key: InstanceKey, progress: Progress) -> tuple[StepResult, ...]:
        """Let the memory of an instance follow, then bind it; nothing if none has to. Raises UnreachableError."""
        return await self._settling.follow(key, progress)

    def uncounted(self) -> tuple[InstanceKey, ...]:
        """Instances whose memory was bound at once, and what that moved was not counted yet."""
        return self._settling.carried.due()

    async def count_carried(self, key: InstanceKey) -> int:
        """The bytes that binding an instance's memory has moved; waits until the kernel shows it."""
        return await self._settling.carried.count(key)

    async def release(self, key: InstanceKey) -> tuple[StepResult, ...]:
        """Hand an instance back that was seen: all online CPUs, memory anywhere, no decision of ours."""
        async with self._settling.lock(key):
            return await self._settling.release(key)

    def has_drifted(self, key: InstanceKey, *, memory: bool = True) -> bool:
        """Whether the cgroup differs from the placement. Reads the cgroup, without `memory` only its CPUs."""
        return self._settling.has_drifted(key, memory=memory)

    def was_decided_by_another(self, key: InstanceKey) -> bool:
        """Whether a command has moved the instance, which is then looked at anew and stays there."""
        return self._settling.was_decided_by_another(key)

    def is_own_update(self, key: InstanceKey) -> bool:
        """Whether an `instance-updated` event is the echo of our own write. Each write has one echo."""
        return self._settling.is_own_update(key)

    def is_placed(self, key: InstanceKey) -> bool:
        """Whether the instance has a placement of ours."""
        return key in self._decisions.placements

    def take_held(self) -> frozenset[InstanceKey]:
        """Those that were not put right since this was asked, as a pass was at work on them: to be compared again."""
        return self._settling.take_held()

    def take_unready(self) -> frozenset[InstanceKey]:
        """Those not compared since this was asked, as a pass was about to bring them there: to be compared after it."""
        return self._settling.take_unready()

    def take_freed(self) -> bool:
        """Whether exclusive CPUs became usable since this was asked: those that have too few may get them now."""
        return self._decisions.take_freed()

    def forget_own_updates(self) -> None:
        """The event stream was cut: echoes of our writes were lost, and what comes now is someone else's."""
        self._settling.forget_own_updates()

    def forget_refusals(self) -> None:
        """Try again what the server refused, and say again what is wrong: settings may have changed."""
        self._settling.forget_refusals()
        self._said.forget_all()

    def forget_project(self, project: str | None) -> None:
        """Try again what the server refused in a project, None for all of them: it may be allowed now."""
        self._settling.forget_refusals(project)

    async def _pass_over_once(self, key: InstanceKey, *, starting: bool) -> PassReport:
        seen = await self.world.look_at(key)
        if seen is None:
            self._forget_gone()
            if starting:
                raise RetryError("it was started, but the server does not show it running yet")
            return PassReport()
        if not seen.instance.managed:
            results = await self._settling.let_go(key)
            plan = self._decisions.make_room(Plan(), Moves())
        else:
            results, plan = (), self._decisions.decide(frozenset((key,)), Moves())
        self._watch_rejections(plan, everything=False)
        return PassReport(plan=plan, results=results + await self._settle_beside(plan, key))

    async def _settle_beside(self, plan: Plan, key: InstanceKey) -> tuple[StepResult, ...]:
        """Apply the placement of the instance whose lock is held, and of those that have to leave for it.

        Those that another pass works on wait for the end of this one: waiting for their locks here could be mutual.
        """
        others = [one for one in plan.placements if one.key != key]
        free = [one for one in others if not self._settling.lock(one.key).locked()]
        self._leaving.update(one.key for one in others if one not in free)
        own = [self._settling.settle(one) for one in plan.placements if one.key == key]
        return await all_of([*own, self._settling.settle_all(free)])

    def _at_rest(self, results: Iterable[StepResult]) -> frozenset[InstanceKey]:
        """Those of which something was said and that have all that was decided, without a step that failed just now."""
        failed = {one.step.key for one in results if one.outcome is not Outcome.DONE} | self.rejected
        return frozenset(key for key in self._said.told() if key not in failed and self._has_all(key))

    def _has_all(self, key: InstanceKey) -> bool:
        placement, seen = self._decisions.get(key), self.world.get(key)
        if placement is None or seen is None or seen.problem is not None:
            return False
        return not self.world.diff(placement, seen)

    async def _say_unreadable(self, plan: Plan) -> None:
        """Say whose cgroup could not be read; one that is just going away is looked at once more and not told."""
        for key in (one.key for one in plan.placements):
            seen = self.world.get(key)
            if seen is None or seen.problem is None:
                continue
            line = f"CPUs and memory not set, only the server's record: {seen.problem}"
            if not self._said.knows(key, line) and await self.world.look_at(key) is not None:
                self._said.once(key, line)

    def _watch_rejections(self, plan: Plan, *, everything: bool) -> None:
        judged = {placement.key for placement in plan.placements}
        # They were refused and are not any more: should they be refused again, that is news.
        self._said.forget(judged & self.rejected)
        before = self.refused
        self.refused = {} if everything else {key: why for key, why in before.items() if key not in judged}
        for rejection in plan.rejections:
            self.refused[rejection.key] = rejection.reason
            if before.get(rejection.key) is not rejection.reason:
                self.notices.tell(Refused(rejection=rejection))
            self._said.once(
                rejection.key, f"refused, left as it is: reason={rejection.reason.value}: {rejection.detail}"
            )
        for warning in plan.warnings:
            log.debug("%s", warning)

    def _say_strangers(self) -> None:
        """Say once for each owner of exclusive CPUs who may run on them all the same."""
        exclusive = {key: one for key, one in self._decisions.placements.items() if one.exclusive}
        self._told_owners &= exclusive.keys()
        for key in sorted(exclusive.keys() - self._told_owners):
            seen = ((one.instance, one.observed) for one in self.world.all_seen())
            line = owners.strangers(exclusive[key], seen, self.rejected)
            if line is not None:
                self._told_owners.add(key)
                log.warning("instance=%s %s", key, line)

    def _forget_gone(self) -> None:
        managed = set(self.world.managed())
        for key in [key for key in self._decisions.placements if key not in managed]:
            self._decisions.drop(key)
        self.refused = {key: why for key, why in self.refused.items() if key in managed}
        self._settling.forget_gone(managed)
        self._said.forget({key for key in self._said.told() if self.world.get(key) is None})
