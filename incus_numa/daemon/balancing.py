"""Moves running instances by their measured load: sample, decide, carry out. Used by the service and by `rebalance`.

Deciding is pure (policy.rebalance); here is what is remembered between two decisions, and the order in which a move is
carried out: CPUs of all movers first, as that is what relieves the loaded node, then memory, one instance at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from incus_numa.daemon.journal import Journal
from incus_numa.daemon.measuring import Measuring
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.errors import RetryError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import MoveHeld, MoveMade
from incus_numa.model.plan import Outcome, Plan, StepResult
from incus_numa.model.rebalance import Decision, History, Hold, Move, MoveRecord
from incus_numa.model.sample import Rates
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy.rebalance import decision as rebalance
from incus_numa.settings import RebalanceSettings

log = logging.getLogger(__name__)

Follow = Callable[[InstanceKey, int], bool]
"""Called while the memory of an instance follows, with the bytes that have; says whether to go on."""

Guard = Callable[[Coroutine[Any, Any, object]], Awaitable[None]]
"""Runs something and tells what went wrong with it, so that the next time finds us alive."""

_WORDS = {Outcome.DONE: "moved", Outcome.WOULD_DO: "would move", Outcome.CUT: "cancelled", Outcome.GONE: "gone"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What became of the moves of one decision, in their order."""

    records: tuple[MoveRecord, ...] = ()
    results: tuple[StepResult, ...] = ()


def _on(key: InstanceKey, moved: int) -> bool:
    """Memory follows to the end."""
    return True


class Balancing:
    """The moves of one host. `decision` is the last one, for those who explain it."""

    def __init__(
        self, reconciler: Reconciler, measuring: Measuring, journal: Journal, settings: RebalanceSettings
    ) -> None:
        self._reconciler = reconciler
        self._world = reconciler.world
        self._measuring = measuring
        self._journal = journal
        self._settings = settings
        self._history = History(moved_at_s=self._moved_before())
        self.decision = Decision()
        self._held: dict[InstanceKey, Hold] = {}
        self._changed, self._left = asyncio.Event(), asyncio.Event()
        self._moving: asyncio.Task[None] | None = None
        self._start: Callable[[Decision], None] | None = None

    @property
    def rates(self) -> Rates | None:
        """What was measured last, None when nothing was."""
        return self._measuring.rates

    @property
    def journal(self) -> Journal:
        """The moves that were made."""
        return self._journal

    @property
    def is_moving(self) -> bool:
        """Whether moves are under way."""
        return self._moving is not None and not self._moving.done()

    def preview(
        self, snapshot: Snapshot, limits: RebalanceSettings, only: frozenset[InstanceKey] | None = None
    ) -> Decision:
        """Who would move now, without waiting for the hold time. Nothing is changed: it may run in a thread."""
        return rebalance.decide(
            snapshot, self._history, time.monotonic(), self._world.placement, limits, only=only, forced=True
        )

    def make(self, only: frozenset[InstanceKey], max_moves: int | None) -> Decision:
        """Decide without waiting for the hold time, and do it in the background; gives what was decided.

        Raises RetryError while other moves are under way, and decides nothing then.
        """
        if self._start is None or self.is_moving:
            raise RetryError("moves are under way already; try again when they are done")
        decision = self.decide(only=only, forced=True, max_moves=max_moves)
        self._begin_moves(decision)
        return decision

    def _begin_moves(self, decision: Decision) -> None:
        if self._start is not None and decision.moves:
            self._start(decision)

    def use(self, settings: RebalanceSettings) -> None:
        """Decide by other settings from now on. The journal's place needs a restart."""
        self._settings = settings
        self._measuring.time_constant_s = smoothing_s(settings)
        self._changed.set()

    def decide(
        self,
        *,
        only: frozenset[InstanceKey] | None = None,
        forced: bool = False,
        max_moves: int | None = None,
    ) -> Decision:
        """Who moves now, from what was sampled last; `forced` does not wait for the hold time."""
        limits = self._settings
        if max_moves is not None:
            limits = replace(limits, max_moves=min(limits.max_moves, max_moves))
        snapshot = self._world.snapshot()
        self.decision = rebalance.decide(
            snapshot,
            self._history,
            time.monotonic(),
            self._world.placement,
            limits,
            only=only,
            forced=forced,
        )
        self._history = self.decision.history
        log.debug("%s", self.decision.why)
        return self.decision

    def carry_out(self, decision: Decision, follow: Follow = _on) -> Coroutine[Any, Any, Made]:
        """Do what was decided just now: everything planned from now on counts it, and it is done when awaited.

        That raises UnreachableError; what was not done then is seen by the next pass.
        """
        accepted = self._reconciler.accept(decision.plan, self._world.snapshot())
        moves = tuple(move for move in decision.moves if any(one.key == move.key for one in accepted.placements))
        return self._carry_out(moves, accepted, follow)

    async def _carry_out(self, moves: tuple[Move, ...], accepted: Plan, follow: Follow) -> Made:
        began = time.monotonic()
        records: list[MoveRecord] = []
        try:
            results = await self._reconciler.settle(accepted)
            for move in moves:
                moved = 0

                def count(size: int, key: InstanceKey = move.key) -> bool:
                    nonlocal moved
                    moved = size
                    return follow(key, size)

                results += await self._reconciler.follow(move.key, count)
                took_s = time.monotonic() - began
                moved += await self._reconciler.count_carried(move.key)
                own = [one.outcome for one in results if one.step.key == move.key]
                records.append(_record(move, self._word(move.key, own), moved, took_s))
                self._tell(records[-1])
        except BaseException:
            # Cancelled or without a server: CPUs have moved all the same, and memory follows in the next pass.
            for move in moves[len(records) :]:
                self._tell(_record(move, _WORDS[Outcome.CUT], 0, time.monotonic() - began))
            raise
        return Made(records=tuple(records), results=results)

    def _word(self, key: InstanceKey, outcomes: Iterable[Outcome]) -> str:
        """What became of a move. Its instance may have ended, or been handed back, before its memory's turn came."""
        if self._world.get(key) is None:
            return _WORDS[Outcome.GONE]
        done = _WORDS[Outcome.DONE if self._reconciler.is_placed(key) else Outcome.CUT]
        return next((_WORDS.get(one, "failed") for one in outcomes if one is not Outcome.DONE), done)

    def _tell(self, record: MoveRecord) -> None:
        """Note a move that was made in the journal and in the log."""
        if record.result != _WORDS[Outcome.WOULD_DO]:
            self._journal.append(record)
            move = record.move
            log.info("instance=%s %s from=%s to=%s: %s", move.key, record.result, move.before, move.after, move.reason)
            self._reconciler.notices.tell(MoveMade(record=record))

    def _tell_held(self, decision: Decision) -> None:
        """Tell who stays on a node that is too loaded, once for each reason."""
        held = {one.key: one.hold for one in decision.held}
        for one in decision.held:
            if self._held.get(one.key) is not one.hold:
                self._reconciler.notices.tell(MoveHeld(key=one.key, hold=one.hold, detail=one.detail))
        self._held = held

    async def follow_all(self, follow: Follow = _on) -> tuple[StepResult, ...]:
        """Let all memory follow that an earlier pass, or a crash, has left behind. Raises UnreachableError."""
        results: tuple[StepResult, ...] = ()
        for key in self._reconciler.waiting():
            results += await self._reconciler.follow(key, partial(follow, key))
        return results

    async def run(self, guard: Guard, is_ready: Callable[[], bool]) -> None:
        """Sample, decide and carry out at every interval, as long as the settings say so; never ends by itself.

        While moves are under way, sampling goes on and nothing is decided.
        """
        async with asyncio.TaskGroup() as group:
            self._start = partial(self._begin, group, guard)
            try:
                await self._sample(guard, is_ready)
            finally:
                # Nothing is begun any more that nobody would wait for.
                self._start = None

    async def _sample(self, guard: Guard, is_ready: Callable[[], bool]) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.interval_s):
                    await self._changed.wait()
            # What changed during the last look is not waited out.
            self._changed.clear()
            if not self._settings.enabled:
                self._measuring.forget()
            elif is_ready():
                await guard(self._look())

    async def _look(self) -> None:
        await self._measuring.take()
        if self.is_moving:
            return
        decision = self.decide()
        self._tell_held(decision)
        self._begin_moves(decision)

    def _begin(self, group: asyncio.TaskGroup, guard: Guard, decision: Decision) -> None:
        self._moving = group.create_task(self._make(self.carry_out(decision), guard), name="moves")

    async def _make(self, moves: Coroutine[Any, Any, Made], guard: Guard) -> None:
        await guard(moves)
        self._left.set()

    def look_for_left_memory(self) -> None:
        """A pass may have found memory that has to follow."""
        if self._reconciler.waiting() or self._reconciler.uncounted():
            self._left.set()

    async def follow_left_memory(self, guard: Guard) -> None:
        """Let memory follow that passes have found elsewhere; never ends by itself."""
        while True:
            await self._left.wait()
            self._left.clear()
            # Moves under way let their own memory follow, and tell when they are done.
            if not self.is_moving:
                if self._reconciler.waiting():
                    await guard(self.follow_all())
                for key in self._reconciler.uncounted():
                    # What moves made meanwhile have bound is theirs to count.
                    if not self.is_moving:
                        await self._reconciler.count_carried(key)

    def _moved_before(self) -> dict[InstanceKey, float]:
        """When instances were moved by an earlier life of the daemon, on this one's clock."""
        now, wall = time.monotonic(), time.time()
        return {key: now - max(0.0, wall - at_s) for key, at_s in self._journal.last_moves(wall).items()}


def smoothing_s(settings: RebalanceSettings) -> float:
    """The time constant, no shorter than makes sense for how often is sampled: else each sample would be a gap."""
    return max(settings.time_constant_s, settings.interval_s / 2)


def _record(move: Move, word: str, moved_bytes: int, took_s: float) -> MoveRecord:
    return MoveRecord(at_s=time.time(), move=move, result=word, moved_bytes=moved_bytes, took_s=round(took_s, 3))
