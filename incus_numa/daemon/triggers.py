"""What says "look again": events, timers, changed files, signals. Called by the service.

A trigger only names what to look at; hints about the same thing that come before it is looked at are one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from incus_numa.model.instance import InstanceKey
from incus_numa.server.protocol import Event

MANY = 64
"""With more changed instances waiting than this, one look at everything is cheaper for the server. Starts do not
count: a listing may not show them running yet."""

STARTS = frozenset({"instance-started", "instance-restarted", "instance-resumed"})
RELEVANT = STARTS | {
    "instance-stopped",
    "instance-shutdown",
    "instance-paused",
    "instance-deleted",
    "instance-updated",
    "instance-renamed",
    "instance-restored",
    "instance-migrated",
}
SHUFFLING = STARTS | {"instance-stopped", "instance-shutdown", "instance-updated", "instance-deleted"}
"""Events after which the server rewrites the cpusets of all containers, sooner or later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What to look at now: `instances` with whether they are starting, `drifted` with whether memory may have, too."""

    everything: bool = False
    instances: tuple[tuple[InstanceKey, bool], ...] = ()
    drifted: tuple[tuple[InstanceKey, bool], ...] = ()


class Triggers:
    """Collects hints until someone has time for them."""

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self._everything = False
        self._instances: dict[InstanceKey, bool] = {}
        self._drifted: dict[InstanceKey, bool] = {}

    def look_at_everything(self) -> None:
        """Look at all instances."""
        self._everything = True
        self._wake.set()

    def look_at(self, key: InstanceKey, *, starting: bool) -> None:
        """Look at one instance, on the server and in the kernel."""
        self._instances[key] = starting or self._instances.get(key, False)
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
        """Wait for hints and take all that have come."""
        await self._wake.wait()
        self._wake.clear()
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


def concerns(event: Event) -> bool:
    """Whether an event says something about where an instance is or should be."""
    return event.action in RELEVANT and event.key is not None
