"""What the service sees, and what follows from it, made once for all who ask at about the same time.

Whoever asks must not hold up placing: everything that costs something is made by one thread of its own, one after the
other, and with rests between, so that readers take a part of one CPU at most, however many they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from incus_numa.daemon.service import Service
from incus_numa.facts.memory import read_free, with_free
from incus_numa.facts.survey import Answer, Survey, answer, make_survey
from incus_numa.model.machine import Machine
from incus_numa.model.sample import Rates
from incus_numa.model.snapshot import Snapshot
from incus_numa.settings import PlacementSettings
from incus_numa.web.workers import Workers

FRESH_S = 0.5
"""For how long a look is shown again: planning for everybody costs too much to do it for each who asks."""

RESTS = 4.0
"""... and for so many times as long as it took, so that looks take a fifth of a CPU at most."""

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class Look:
    """A survey, the seconds it took to plan for it, and until when it is shown again (monotonic clock).

    `made` has what was made of it, by what it is called.
    """

    survey: Survey
    took_s: float
    fresh_until_s: float
    made: dict[Hashable, Any] = field(default_factory=dict)


class Looks:
    """One event loop uses it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._world = service.reconciler.world
        self._workers = Workers("looks", 1)
        self._turn = asyncio.Lock()
        self._look: Look | None = None
        self._changes = 0
        self._rested_at_s = 0.0

    async def ask(self, what: Hashable, make: Callable[[Look], T]) -> T:
        """What `make` makes of a look, as it was made of the one that is still fresh if it was.

        `what` names it. It is made in a thread, so of values only.
        """
        async with self._turn:
            look = await self._take()
            if what not in look.made:
                look.made[what] = await self._work(partial(make, look))
            return cast(T, look.made[what])

    async def work(self, call: Callable[[], T]) -> T:
        """What a call returns that costs about as much as a look; it waits for its turn."""
        async with self._turn:
            return await self._work(call)

    def forget(self) -> None:
        """Look again before anything is shown: it was decided by settings that are no longer in force."""
        self._changes += 1
        self._look = None

    async def _take(self) -> Look:
        while self._look is None or self._look.fresh_until_s < time.monotonic():
            changes, settings, world = self._changes, self._service.settings, self._world
            snapshot, seen, rates = world.snapshot(), world.all_seen(), self._service.balancing.rates
            found, machine, took_s = await self._work(
                partial(_look_at, snapshot, settings.placement, rates, Path(settings.host.sysfs))
            )
            look = Look(
                survey=replace(make_survey(world, snapshot, seen, found), machine=machine),
                took_s=took_s,
                fresh_until_s=time.monotonic() + max(FRESH_S, RESTS * took_s),
            )
            if changes == self._changes:
                self._look = look
        return self._look

    async def _work(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        if self._rested_at_s > began:
            await asyncio.sleep(self._rested_at_s - began)
            began = time.monotonic()
        try:
            return await self._workers.run(call)
        finally:
            now = time.monotonic()
            self._rested_at_s = now + (now - began)


def _look_at(
    snapshot: Snapshot, placement: PlacementSettings, rates: Rates | None, sysfs: Path
) -> tuple[Answer, Machine, float]:
    """The answer to a snapshot, its machine with the memory that is free now, and the seconds it took."""
    began, machine = time.monotonic(), snapshot.machine
    free = with_free(machine, read_free(machine, rates, sysfs))
    return answer(snapshot, placement, rates), free, time.monotonic() - began
