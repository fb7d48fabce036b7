"""The service: one group of tasks that turn triggers into passes. Called by `incus-numa daemon` and by `demo`.

Tasks: the event stream, the resync timer, the verification timer, the machine timer, inotify, the watchdog, the
dispatcher, which is the only one that starts passes, the balancer, which moves instances by their load, and one that
lets memory follow. Each ends when `stop` is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any

from incus_numa.daemon.balancing import Balancing, smoothing_s
from incus_numa.daemon.journal import Journal
from incus_numa.daemon.listening import Listening
from incus_numa.daemon.measuring import Measuring
from incus_numa.daemon.notify import Notifier
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.daemon.triggers import Triggers
from incus_numa.errors import ConfigError, IncusNumaError, UnreachableError
from incus_numa.host.watch import CpusetWatch
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import PassEnded, Scope, SettingsChanged, StartPlaced
from incus_numa.model.plan import Outcome
from incus_numa.server.protocol import Server
from incus_numa.settings import Settings, list_unused

log = logging.getLogger(__name__)

START_LEAD_S = 0.01
"""The event of a start comes before the server shows it: looking at once would only be answered "Stopped"."""

MACHINE_S = 5.0
"""How often the online CPUs and nodes are compared: the server sends no event when they change."""

STOP_S = 1.0
"""How long passes that are under way may still take when the service is stopped."""

TOGETHER = 10
"""Cpusets that are compared, and written where needed, in one go."""

REST_S = 0.005
"""Pause after each such go while instances are starting: a server that rewrites a thousand cpusets must not hold up
starts."""

UNDONE = frozenset({Outcome.FAILED, Outcome.BUSY, Outcome.GONE})
"""Steps that ended so have not brought an instance to its place."""

HELD_S = 0.05
"""When to compare a cpuset again that could not be put right because a pass was at work on its instance."""

MACHINE_FRESH_S = 0.2
"""For how long the machine is taken as unchanged after it was looked at."""


class Service:
    """Runs until `stop`. `load_settings` is called on SIGHUP and may raise ConfigError."""

    def __init__(
        self,
        server: Server,
        reconciler: Reconciler,
        settings: Settings,
        *,
        load_settings: Callable[[], Settings],
        notifier: Notifier,
    ) -> None:
        self._server = server
        self.reconciler = reconciler
        self._notices = reconciler.notices
        self._world = reconciler.world
        self._settings = settings
        self._in_force = _fixed(settings)
        self._load_settings = load_settings
        self._notifier = notifier
        self._triggers = Triggers()
        self._listening = Listening(server, reconciler, self._triggers, settings.daemon.verify_s)
        self._watch = CpusetWatch()
        self._stopping = asyncio.Event()
        self._reloaded = asyncio.Event()
        self._running: dict[InstanceKey, bool] = {}
        self._again: dict[InstanceKey, bool] = {}
        self._full_pass: asyncio.Task[None] | None = None
        self._full_again = False
        self._passes: set[asyncio.Task[None]] = set()
        self._problems: frozenset[str] = frozenset()
        self._drifted: dict[InstanceKey, bool] = {}
        self._drift_wake = asyncio.Event()
        self._skipped: set[InstanceKey] = set()
        self._machine_seen = float("-inf")
        measuring = Measuring(self._world, settings.host, smoothing_s(settings.rebalance))
        journal = Journal(Path(settings.rebalance.journal))
        self.balancing = Balancing(reconciler, measuring, journal, settings.rebalance)

    async def run(self) -> None:
        """Work until `stop` or SIGTERM. Instances keep what they have afterwards."""
        loop = asyncio.get_running_loop()
        for number, handler in ((signal.SIGTERM, self.stop), (signal.SIGINT, self.stop), (signal.SIGHUP, self.reload)):
            # Outside the main thread (the demo, tests) signals belong to someone else.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, handler)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work, name=name) for name, work in self._tasks(group).items()]
                self._notifier.ready()
                self._notifier.status("waiting for the server")
                await self._stopping.wait()
                self._notifier.stopping()
                for task in tasks:
                    task.cancel()
                await self._end_passes()
        finally:
            self._watch.close()
            await self._server.close()

    def stop(self) -> None:
        """End soon, finishing the writes that are under way."""
        self._stopping.set()

    async def _end_passes(self) -> None:
        """Wait for the writes that are under way, and cut what waits for the server: every prefix of steps is legal."""
        if self._passes:
            _, late = await asyncio.wait(self._passes, timeout=STOP_S)
            for task in late:
                task.cancel()

    def _begin(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = group.create_task(work, name=name)
        self._passes.add(task)
        task.add_done_callback(self._passes.discard)
        return task

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @property
    def connected(self) -> bool:
        """Whether the server's events are heard now."""
        return self._listening.heard

    def reload(self) -> None:
        """Read the settings again; bad ones are refused with the reason and the old ones stay."""
        self._notifier.reloading()
        try:
            self.use(self._load_settings())
        except ConfigError as error:
            log.error("settings not reloaded, the old ones stay: %s", "; ".join(error.problems))
        else:
            log.info("settings reloaded")
        self._notifier.ready()

    def find_misfits(self, settings: Settings) -> tuple[str, ...]:
        """What of settings this machine cannot keep, one sentence each."""
        return self._world.find_misfits(settings)

    def use(self, settings: Settings) -> None:
        """Work by other settings from now on. Raises ConfigError where they do not fit; the old ones stay then."""
        if misfits := self.find_misfits(settings):
            raise ConfigError(misfits)
        if changed := [key for key, value in _fixed(settings).items() if value != self._in_force[key]]:
            log.warning("changes of %s need a restart", ", ".join(changed))
        self._settings = settings
        self._reloaded.set()
        for unused in list_unused(settings):
            log.warning("%s", unused)
        self._world.use_placement(settings.placement)
        self._world.use_memory(settings.memory)
        self.balancing.use(settings.rebalance)
        self._listening.use(settings.daemon.verify_s)
        self.reconciler.forget_refusals()
        self._triggers.look_at_everything()
        self._notices.tell(SettingsChanged())

    def _tasks(self, group: asyncio.TaskGroup) -> dict[str, Coroutine[Any, Any, None]]:
        tasks = {
            "events": self._listening.follow(),
            "resync": self._resync(),
            "verify": self._listening.verify(),
            "machine": self._watch_machine(),
            "inotify": self._follow_cpusets(),
            "drift": self._put_right(group),
            "dispatch": self._dispatch(group),
            "balance": self.balancing.run(self._guarded, lambda: self._listening.connected),
            "memory": self.balancing.follow_left_memory(self._guarded),
        }
        if self._notifier.watchdog_s is not None:
            tasks["watchdog"] = self._keep_alive(self._notifier.watchdog_s / 2)
        return tasks

    async def _resync(self) -> None:
        while True:
            self._reloaded.clear()
            try:
                async with asyncio.timeout(self._settings.daemon.resync_s):
                    await self._reloaded.wait()
            except TimeoutError:
                if self._listening.connected:
                    self._triggers.look_at_everything()

    async def _watch_machine(self) -> None:
        while True:
            await asyncio.sleep(MACHINE_S)
            self._check_machine()

    def _check_machine(self) -> bool:
        """Whether CPUs or nodes changed; everything is looked at again then."""
        now = asyncio.get_running_loop().time()
        if now < self._machine_seen + MACHINE_FRESH_S:
            return False
        self._machine_seen = now
        if not self._world.read_machine():
            return False
        log.info("the machine changed: online CPUs are %s", self._world.machine.online)
        self._listening.expect_shuffle()
        self._triggers.look_at_everything()
        return True

    async def _follow_cpusets(self) -> None:
        async for key, memory in self._watch.changes():
            if key is None:
                self._triggers.look_at_cgroups(self._world.managed())
            else:
                self._triggers.look_at_cgroup(key, memory=memory)

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        # Whatever asks for a pass: before the server is known, others' instances would be taken as ours.
        await self._listening.ready.wait()
        while True:
            work = await self._triggers.next()
            if work.everything and self._full_pass is None:
                self._full_pass = self._begin(group, self._pass_over_everything(), "pass over everything")
            elif work.everything:
                self._full_again = True
            for key, starting in work.instances:
                if key in self._running:
                    self._again[key] = starting or self._again.get(key, False)
                else:
                    self._running[key] = starting
                    self._begin(group, self._pass_over(key, starting=starting), f"pass {key}")
            if work.drifted:
                for key, memory in work.drifted:
                    self._drifted[key] = memory or self._drifted.get(key, False)
                self._drift_wake.set()

    async def _pass_over_everything(self) -> None:
        """One at a time; single instances are looked at meanwhile all the same."""
        await self._guarded(self._look_over_everything(), Scope.EVERYTHING)
        self._full_pass = None
        if self._full_again:
            self._full_again = False
            self._triggers.look_at_everything()

    async def _look_over_everything(self) -> None:
        report = await self.reconciler.pass_over_everything()
        for problem in report.problems:
            if problem not in self._problems:
                log.warning("%s", problem)
        self._problems = frozenset(report.problems)
        for key in report.skipped:
            self._triggers.look_at(key, starting=False)
        for key in self._world.managed():
            self._watch_group(key)
        self._triggers.look_at_cgroups(tuple(self.reconciler.take_unready()))
        self._say_status()

    async def _pass_over(self, key: InstanceKey, *, starting: bool) -> None:
        try:
            await self._guarded(self._look_over(key, starting=starting), Scope.INSTANCE)
            if self.reconciler.take_freed():
                self._triggers.look_at_everything()
            self._watch_group(key)
            self._triggers.look_at_cgroups(tuple(self.reconciler.take_unready()))
            self._say_status()
        finally:
            del self._running[key]
            if key in self._skipped:
                self._skipped.discard(key)
                self._triggers.look_at_cgroup(key)
            again = self._again.pop(key, None)
            if again is not None:
                self._triggers.look_at(key, starting=again)

    async def _look_over(self, key: InstanceKey, *, starting: bool) -> None:
        began = time.monotonic()
        if starting:
            await asyncio.sleep(START_LEAD_S)
        report = await self.reconciler.pass_over(key, starting=starting)
        failed = [one for one in report.results if one.step.key == key and one.outcome in UNDONE]
        if starting and not report.problems and not failed:
            for one in report.plan.placements:
                if one.key == key:
                    took_s = time.monotonic() - began
                    self._notices.tell(StartPlaced(key=key, nodes=one.nodes, cpus=one.cpus, took_s=took_s))

    async def _put_right(self, group: asyncio.TaskGroup) -> None:
        """Compare cpusets that someone may have written with what was decided, and write them again where needed."""
        while True:
            await self._drift_wake.wait()
            self._drift_wake.clear()
            self._check_machine()
            while self._drifted:
                hints = list(itertools.islice(self._drifted.items(), TOGETHER))
                for key, _ in hints:
                    del self._drifted[key]
                # Those that a pass works on are compared when it is done.
                self._skipped.update(key for key, _ in hints if key in self._running)
                drifted = [
                    key
                    for key, memory in hints
                    if key not in self._running and self.reconciler.has_drifted(key, memory=memory)
                ]
                for key in [key for key in drifted if self.reconciler.was_decided_by_another(key)]:
                    self._triggers.look_at(key, starting=False)
                    drifted.remove(key)
                if drifted:
                    # A task of its own, which ends what it writes when the service is stopped meanwhile.
                    work = self._guarded(self.reconciler.reassert(drifted), Scope.CPUSETS)
                    await asyncio.wait({self._begin(group, work, "pass over drifted cpusets")})
                for key in self.reconciler.take_held():
                    # A pass over others works on it, whose writes may be older than what was seen.
                    asyncio.get_running_loop().call_later(HELD_S, self._triggers.look_at_cgroup, key)
                await asyncio.sleep(REST_S if self._running else 0)

    async def _guarded(self, work: Coroutine[Any, Any, object], scope: Scope = Scope.LOAD) -> None:
        """Run one pass. Whatever goes wrong in it, the service goes on and the next pass sees what is there."""
        began, problem = time.monotonic(), None
        try:
            await work
        except UnreachableError as error:
            problem = f"the server does not answer: {error}"
            log.warning("%s", problem)
            self._notifier.status(problem)
        except IncusNumaError as error:
            problem = str(error)
            log.warning("pass not finished: %s", error)
        except Exception as error:
            problem = f"a bug: {error!r}"
            log.exception("pass failed by a bug; the next pass starts from what it sees")
        self._notices.tell(PassEnded(scope=scope, took_s=time.monotonic() - began, error=problem))
        self.balancing.look_for_left_memory()

    def _watch_group(self, key: InstanceKey) -> None:
        seen = self._world.get(key)
        if seen is not None and seen.group is not None and seen.instance.managed:
            if self._watch.add(key, seen.group):
                # Whoever wrote it before it was watched was not seen.
                self._triggers.look_at_cgroup(key)
        else:
            self._watch.remove(key)

    def _say_status(self) -> None:
        if self._stopping.is_set():
            return
        managed, refused = len(self._world.managed()), len(self.reconciler.rejected)
        running, nodes = self._world.count(), len(self._world.machine.nodes)
        text = f"{managed} of {running} running instances managed on {nodes} nodes"
        self._notifier.status(text + (f", {refused} refused" if refused else ""))

    async def _keep_alive(self, interval_s: float) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(interval_s)


def _fixed(settings: Settings) -> dict[str, object]:
    """What cannot be changed while the service runs, by `table.key`."""
    return {
        f"{table.name}.{one.name}": getattr(getattr(settings, table.name), one.name)
        for table in fields(settings)
        for one in fields(getattr(settings, table.name))
        if one.metadata["restart"]
    }
