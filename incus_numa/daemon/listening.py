"""What the server's events mean: where to look again, and when to compare cpusets. Two tasks of the service.

In a cluster every member hears of every member's instances; only a few of the others' events say something about this
one: an instance may have moved to here, and of a live migration nothing else is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from enum import Enum

from tenacity import AsyncRetrying, retry_if_exception_type, wait_exponential, wait_random

from incus_numa.daemon.reconciler import Reconciler
from incus_numa.daemon.triggers import Triggers, Verification
from incus_numa.errors import IncusNumaError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import StreamOpened
from incus_numa.server.protocol import Connected, Disconnected, Event, Server, is_elsewhere

log = logging.getLogger(__name__)

STARTS = frozenset({"instance-started", "instance-restarted", "instance-resumed"})
UPDATED = "instance-updated"
MIGRATED = "instance-migrated"
RELEVANT = STARTS | {
    UPDATED,
    MIGRATED,
    "instance-stopped",
    "instance-shutdown",
    "instance-paused",
    "instance-deleted",
    "instance-renamed",
    "instance-restored",
}
SHUFFLING = STARTS | {MIGRATED, "instance-stopped", "instance-shutdown", "instance-deleted"}
"""Events after which the server rewrites the cpusets of all containers, sooner or later."""

CLUSTER = frozenset({"cluster-enabled", "cluster-disabled"})
PROJECT_UPDATED = "project-updated"
"""The keys of a project were changed, which may forbid what was allowed, or allow what was forbidden."""

_MEMBER = "cluster-member-"
"""What begins so says that members came, went, were renamed, evacuated or restored."""

LATER_S = (0.2, 1.0, 3.0, 10.0)
"""When to look again after a migration: the server sends its event before it names the new location."""

STARTING_S = 5.0
"""When to look at everything once more after a connection: an instance whose start was told before it, and that the
listing after it did not show running yet, is heard of no more."""

GREET_FIRST_S, GREET_MOST_S = 0.1, 10.0
"""How long to wait before the server is asked again who it is, at first and at most."""

_GREETED = "the server's description was read"

SWEEP_REST_S = 0.002
"""Pause after a verification of all cpusets, for each of them: keeps it to about a twentieth of a core."""


class Meaning(Enum):
    """What an event says to one member."""

    NOTHING = "nothing"
    STARTED = "started"
    EDITED = "edited"
    CHANGED = "changed"
    MIGRATED = "migrated"
    CLUSTER_CHANGED = "cluster-changed"
    PROJECT_CHANGED = "project-changed"


def meaning_of(event: Event, member: str | None) -> Meaning:
    """What an event says to the member of this name, None outside a cluster."""
    if event.action in CLUSTER or event.action.startswith(_MEMBER):
        return Meaning.CLUSTER_CHANGED
    if event.action == PROJECT_UPDATED:
        # A project is every member's, whichever of them changed it.
        return Meaning.PROJECT_CHANGED
    if event.key is None or event.action not in RELEVANT:
        return Meaning.NOTHING
    if event.action == MIGRATED:
        return Meaning.MIGRATED
    if is_elsewhere(event.location, member):
        return Meaning.NOTHING
    if event.action in STARTS:
        return Meaning.STARTED
    return Meaning.EDITED if event.action == UPDATED else Meaning.CHANGED


class Listening:
    """Follows the event stream of one server. `connected` says whether it was heard of yet, `heard` whether it is now.

    `ready` is set from then on: before it is known which member of a cluster this is, and which key the server keeps
    nodes in, nothing may be placed.
    """

    def __init__(self, server: Server, reconciler: Reconciler, triggers: Triggers, verify_s: Sequence[float]) -> None:
        self.ready = asyncio.Event()
        self.heard = False
        self._greeting: asyncio.Task[None] | None = None
        self._server = server
        self._reconciler = reconciler
        self._world = reconciler.world
        self._triggers = triggers
        self._verification = Verification(verify_s)
        self._wake = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether the server was heard of yet."""
        return self.ready.is_set()

    def use(self, verify_s: Sequence[float]) -> None:
        """Compare cpusets after other delays from now on."""
        self._verification.delays_s = tuple(sorted(verify_s))

    def expect_shuffle(self) -> None:
        """Compare all cpusets soon, and again later: the server rewrites them, or is about to."""
        self._verification.happened(asyncio.get_running_loop().time())
        self._wake.set()

    async def follow(self) -> None:
        """Events become hints. After every connection everything is looked at, as events may have been missed."""
        async with asyncio.TaskGroup() as group:
            async for event in self._server.watch_events():
                if isinstance(event, Connected):
                    await self._begin(group)
                elif isinstance(event, Disconnected):
                    self.heard = False
                else:
                    await self._take(event, group)

    async def verify(self) -> None:
        """Read the cpusets of all managed instances some time after an event that makes the server rewrite them."""
        loop = asyncio.get_running_loop()
        while True:
            due = self._verification.next_due()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else max(0.0, due - loop.time())):
                    await self._wake.wait()
            if self._verification.take(loop.time()):
                managed = self._world.managed()
                self._triggers.look_at_cgroups(managed)
                await asyncio.sleep(len(managed) * SWEEP_REST_S)

    async def _take(self, event: Event, group: asyncio.TaskGroup) -> None:
        meaning = meaning_of(event, self._world.member)
        if meaning is Meaning.CLUSTER_CHANGED:
            # This member's name, or whether it is one at all, may be what has changed.
            await self._greet(group)
            self._look_at_everything()
        if meaning is Meaning.PROJECT_CHANGED:
            self._take_project(event.project)
        if event.key is None or meaning in (Meaning.NOTHING, Meaning.CLUSTER_CHANGED, Meaning.PROJECT_CHANGED):
            return
        if meaning is Meaning.EDITED:
            self._take_edit(event.key)
            return
        if event.action in SHUFFLING:
            self.expect_shuffle()
        self._triggers.look_at(event.key, starting=meaning is Meaning.STARTED)
        if meaning is Meaning.MIGRATED:
            for delay_s in LATER_S:
                asyncio.get_running_loop().call_later(delay_s, self._look_at_migrated, event.key)

    def _take_edit(self, key: InstanceKey) -> None:
        own = self._reconciler.is_own_update(key)
        if not own or self._world.record_moves_cpus:
            self.expect_shuffle()
        if not own:
            self._triggers.look_at_edited(key)

    def _take_project(self, project: str | None) -> None:
        """What a project forbade may be allowed now; of an event that names none, all of them."""
        self._reconciler.forget_project(project)
        for key in self._world.managed():
            if project in (None, key.project):
                self._triggers.look_at_edited(key)

    def _look_at_migrated(self, key: InstanceKey) -> None:
        self._triggers.look_at(key, starting=False)

    def _look_at_everything(self) -> None:
        self._triggers.look_at_everything()
        self.expect_shuffle()

    async def _begin(self, group: asyncio.TaskGroup) -> None:
        """A new connection: nothing else is taken before the server has once said who it is."""
        self._reconciler.notices.tell(StreamOpened(again=self.connected))
        await (self._greet(group) if self.connected else self._greet_until_done())
        self._reconciler.forget_own_updates()
        self.ready.set()
        self.heard = True
        self._look_at_everything()
        asyncio.get_running_loop().call_later(STARTING_S, self._triggers.look_at_everything)

    async def _greet(self, group: asyncio.TaskGroup) -> None:
        """Ask who the server is now. If it does not say, what was known stays, and it is asked again meanwhile."""
        is_told = self._end_greeting()
        try:
            await self._ask()
        except IncusNumaError as error:
            if not is_told:
                log.warning("%s", _not_greeted(error, "what was known of it stays"))
            self._greeting = group.create_task(self._greet_again(), name="greeting")
        else:
            if is_told:
                log.info(_GREETED)

    async def _greet_again(self) -> None:
        await self._greet_until_done(is_told=True)
        self._look_at_everything()

    async def _greet_until_done(self, *, is_told: bool = False) -> None:
        """Ask again and again who the server is; what keeps it from saying so is told once."""
        pace = wait_exponential(multiplier=GREET_FIRST_S, max=GREET_MOST_S) + wait_random(0, GREET_FIRST_S)
        async for attempt in AsyncRetrying(retry=retry_if_exception_type(IncusNumaError), wait=pace):
            with attempt:
                try:
                    await self._ask()
                except IncusNumaError as error:
                    if not is_told:
                        is_told = True
                        log.warning("%s", _not_greeted(error, "nothing is placed until then"))
                    raise
        if is_told:
            log.info(_GREETED)

    async def _ask(self) -> None:
        await self._world.greet(await self._server.get_info())

    def _end_greeting(self) -> bool:
        """Ask no longer beside the stream; says whether that was going on."""
        greeting, self._greeting = self._greeting, None
        return greeting is not None and greeting.cancel()


def _not_greeted(error: IncusNumaError, meanwhile: str) -> str:
    return f"the server's description was not read, trying again until it is; {meanwhile}: {error}"
