"""What says "look again": events, timers, changed files, signals. Called by the service.

A trigger only names what to look at; hints about the same thing that come before it is looked at are one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from incus_numa.model.instance import InstanceKey

MANY = 64
"""With more changed instances waiting than this, one look at everything is cheaper for the server. Starts do not
count: a listing may not show them running yet."""

FEW = 8
"""More edits than this in a second belong together: a profile that many instances use, or a script."""

GATHER_S = 0.02
"""How long one edit waits for others to come with it: the server sends those of a profile one after the other."""

QUIET_S, HOLD_S = 0.1, 1.0
"""While edits keep coming, they wait until none has come for so long, but never longer than that."""

_BURST_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What to look at now: `instances` with whether they are starting, `drifted` with whether memory may have, too."""

    everything: bool = False
    instances: tuple[tuple[InstanceKey, bool], ...] = ()
    drifted: tuple[tuple[InstanceKey, bool], ...] = ()


_NOTHING = Work()


class Triggers:
    """Collects hints until someone has time for them."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._everything = False
        self._instances: dict[InstanceKey, bool] = {}
        self._drifted: dict[InstanceKey, bool] = {}
        self._edits = Edits()

    def look_at_everything(self) -> None:
        """Look at all instances."""
        self._everything = True
        self._wake.set()

    def look_at(self, key: InstanceKey, *, starting: bool) -> None:
        """Look at one instance, on the server and in the kernel."""
        self._instances[key] = starting or self._instances.get(key, False)
        self._wake.set()

    def look_at_edited(self, key: InstanceKey) -> None:
        """Look at an instance whose keys were changed, together with others whose keys are changed now."""
        self._edits.add(key, asyncio.get_running_loop().time())
        self._wake.set()

    def look_at_cgroup(self, key: InstanceKey, *, memory: bool = True) -> None:
        """Look at one instance's cgroup; without `memory` only its CPUs may have changed."""
        self._drifted[key] = memory or self._drifted.get(key, False)
        self._wake.set()

    def look_at_cgroups(self, keys: Sequence[InstanceKey]) -> None:
        """Look at several instances' cgroups."""
        self._drifted.update(dict.fromkeys(keys, True))
        self._wake.set()

    async def next(self) -> Work:
        """Wait for hints and take all that are due."""
        while True:
            work = self._take(asyncio.get_running_loop().time())
            if work != _NOTHING:
                return work
            await self._wait()

    async def _wait(self) -> None:
        due = self._edits.due()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        self._wake.clear()

    def _take(self, now: float) -> Work:
        for key in self._edits.take(now):
            self._instances.setdefault(key, False)
        starts = tuple(hint for hint in self._instances.items() if hint[1])
        many = len(self._instances) - len(starts) > MANY
        work = Work(
            everything=self._everything or many,
            instances=starts if many else tuple(self._instances.items()),
            drifted=tuple(self._drifted.items()),
        )
        self._everything = False
        self._instances.clear()
        self._drifted.clear()
        return work


class Edits:
    """Instances whose keys were changed, held back for a moment, so that those edited together are looked at together.

    A single edit waits for `GATHER_S`. Times are the caller's, in seconds.
    """

    def __init__(self) -> None:
        self._held: dict[InstanceKey, None] = {}
        self._first = self._last = float("-inf")
        self._recent: deque[float] = deque(maxlen=FEW + 1)

    def add(self, key: InstanceKey, now: float) -> None:
        """An instance was edited."""
        if not self._held:
            self._first = now
        self._held[key] = None
        self._last = now
        self._recent.append(now)

    def due(self) -> float | None:
        """When to look at those that are held, None when there are none."""
        if not self._held:
            return None
        if len(self._recent) <= FEW or self._last - self._recent[0] > _BURST_S:
            return self._first + GATHER_S
        return min(self._first + HOLD_S, self._last + QUIET_S)

    def take(self, now: float) -> tuple[InstanceKey, ...]:
        """Those that are due, which are no longer held."""
        due = self.due()
        if due is None or due > now:
            return ()
        taken = tuple(self._held)
        self._held.clear()
        return taken


class Verification:
    """When to read the cpusets again after an event that makes the server rewrite them, late and unannounced."""

    def __init__(self, delays_s: Sequence[float]) -> None:
        self.delays_s = tuple(sorted(delays_s))
        self._last_event = float("-inf")
        self._due: dict[float, float] = {}

    def happened(self, now: float) -> None:
        """An event came: every delay that is not waiting already starts now."""
        self._last_event = now
        for delay in self.delays_s:
            self._due.setdefault(delay, now + delay)

    def next_due(self) -> float | None:
        """When to verify next, None when nothing is waiting."""
        return min(self._due.values(), default=None)

    def take(self, now: float) -> bool:
        """Whether a verification is due; later events that have not had the full delay wait for another one."""
        due = [delay for delay, when in self._due.items() if when <= now]
        for delay in due:
            later = self._last_event + delay
            if later > now:
                self._due[delay] = later
            else:
                del self._due[delay]
        return bool(due)
