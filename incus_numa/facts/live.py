"""The running service as the API sees it: facts about what the daemon has seen, and the few things it can be told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from incus_numa import __version__
from incus_numa.applier.protocol import describe_change
from incus_numa.daemon import overrides
from incus_numa.daemon.notices import Watcher
from incus_numa.daemon.overrides import Overrides
from incus_numa.daemon.seen import Seen
from incus_numa.daemon.service import Service
from incus_numa.errors import ConfigError, ReportError, UnreachableError
from incus_numa.facts import instance, load, rows
from incus_numa.facts.cpu_busy import CpuBusy
from incus_numa.facts.gauges import take_gauges
from incus_numa.facts.history import RecentLoads
from incus_numa.facts.survey import Survey, answer, make_survey
from incus_numa.facts.words import rounded
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Notice, PassEnded, Scope
from incus_numa.policy import document as plans
from incus_numa.settings import LIVE_TABLES, RESTART_KEYS, Settings, settings_as_dict
from incus_numa.topology import document as machines
from incus_numa.web.protocol import Document, Gauges

FRESH_S = 0.5
"""For how long a survey is shown again: planning for everybody costs too much to do it for each who asks."""

RESTS = 4.0
"""... and for so many times as long as it took, so that those who ask again and again take a fifth of a CPU at most."""

GAUGES_FRESH_S = 1.0
"""For how long gauges are shown again: they may be asked for a hundred times a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the service was started with: the configuration file, what reads it, and what is over it."""

    file: str
    load: Callable[[], Settings]
    overrides: Overrides
    socket: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """A survey, how long it took to plan for it, and until when it is shown again (monotonic clock)."""

    survey: Survey
    took_s: float
    fresh_until_s: float


class LiveHost:
    """A web.protocol.Host. One event loop uses it."""

    def __init__(self, service: Service, origin: Origin) -> None:
        self._service = service
        self._reconciler = service.reconciler
        self._world = service.reconciler.world
        self._origin = origin
        self._began = datetime.now(UTC)
        self._look: Look | None = None
        self._gauges: tuple[float, Gauges] | None = None
        self._turn = 0
        self._looking, self._changing = asyncio.Lock(), asyncio.Lock()
        self._busy, self._reading = CpuBusy(Path(service.settings.host.procfs)), asyncio.Lock()
        self._history = RecentLoads()
        self.watch(self._note_load)

    async def status(self) -> Document:
        """Who serves what, and how it goes."""
        survey, info = (await self._take_look()).survey, self._world.info
        states = await asyncio.to_thread(lambda: [survey.state(one) for one in survey.seen])
        return {
            "version": __version__,
            "started_at": self._began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "server": {
                "product": None if info is None else info.product.value,
                "version": None if info is None else info.version,
                "member": self._world.member,
                "socket": self._origin.socket,
                "connected": self._service.connected,
            },
            "nodes": len(survey.machine.nodes),
            "cpus": len(survey.machine.online),
            "instances": {
                "running": len(states),
                "managed": sum(state != "unmanaged" for state in states),
                "differ": states.count("differs"),
                "refused": len(survey.plan.rejections),
            },
            "imbalance": rounded(self._service.balancing.decision.imbalance),
            "rebalancing": self._service.settings.rebalance.enabled,
            "moving": self._service.balancing.is_moving,
            "policy_source": "api" if self._tables() else "file",
            "problems": list(survey.problems),
            "warnings": list(survey.plan.warnings),
        }

    async def topology(self) -> Document:
        """The machine."""
        return machines.render_machine(self._world.machine)

    async def nodes(self) -> list[Document]:
        """Every node with who is on it, and how busy its CPUs are."""
        survey = (await self._take_look()).survey
        async with self._reading:
            busy = await asyncio.to_thread(self._busy.read)
        return [
            row
            | {
                "cpu_busy": {str(cpu): rounded(busy[cpu]) for cpu in node.cpus if cpu in busy},
                "instances": [
                    {"project": one.instance.key.project, "name": one.instance.key.name}
                    for one in survey.seen
                    if node.id in survey.nodes_of(one)
                ],
            }
            for row, node in zip(rows.node_rows(survey), survey.machine.nodes, strict=True)
        ]

    async def instances(self, project: str | None = None) -> list[Document]:
        """Everything that runs."""
        survey = (await self._take_look()).survey
        return await asyncio.to_thread(rows.instance_rows, survey, project)

    async def instance(self, key: InstanceKey) -> Document | None:
        """Everything about one instance."""
        survey, settings = (await self._take_look()).survey, self._service.settings
        seen = survey.get(key)
        return None if seen is None else await asyncio.to_thread(self._explain, survey, seen, settings)

    def _explain(self, survey: Survey, seen: Seen, settings: Settings) -> Document:
        journal, now_s = self._service.balancing.journal, time.time()
        verdict = load.judge(survey, seen, journal.last_moves(now_s), now_s, settings)
        known = instance.explain(survey, seen, settings)
        return known | load.list_facts(survey, seen, journal.read(), verdict, settings.rebalance)

    async def plan(self) -> Document:
        """What a pass would do now."""
        look = await self._take_look()
        placed = plans.render_plan(look.survey.plan, look.took_s * 1000)
        steps = {str(key): [describe_change(one) for one in own] for key, own in look.survey.steps.items() if own}
        decision = await self._service.balancing.preview(self._service.settings.rebalance)
        return placed | {"steps": steps, "by_load": plans.render_decision(decision)}

    async def moves(self, limit: int) -> list[Document]:
        """The journal, newest first."""
        records = await asyncio.to_thread(self._service.balancing.journal.read)
        newest = records[: -limit - 1 : -1]
        return [{"project": one.move.key.project, "name": one.move.key.name} | load.show_move(one) for one in newest]

    async def history(self) -> Document:
        """Measured load over the last hour."""
        return self._history.show(time.time())

    async def policy(self) -> Document:
        """What is in force, and where it comes from."""
        whole, changes = settings_as_dict(self._service.settings), self._tables()
        meanings = {
            f"{table.name}.{one.name}": one.metadata["meaning"]
            for table in fields(Settings)
            if table.name in LIVE_TABLES
            for one in fields(getattr(self._service.settings, table.name))
        }
        return {
            "source": "api" if changes else "file",
            "file": self._origin.file,
            "changes": changes,
            "effective": {name: whole[name] for name in LIVE_TABLES},
            "meanings": meanings,
            "fixed": sorted(f"{name}.{key}" for name, key in RESTART_KEYS),
        }

    async def set_policy(self, tables: Mapping[str, Any]) -> Document:
        """Have these tables over those of the file. Raises ConfigError and ReportError; nothing has changed then."""
        async with self._changing:
            settings = overrides.apply(self._origin.load(), tables)
            self._service.check(settings)
            try:
                await asyncio.to_thread(self._origin.overrides.write, tables)
            except OSError as error:
                raise ReportError(f"the policy cannot be kept, so it was not set: {error}") from error
            self._use(settings, tables)
        return await self.policy()

    def _use(self, settings: Settings, tables: Mapping[str, Any]) -> None:
        """Work by what is kept now, over the file as it is now: it may have changed while that was written."""
        try:
            self._service.use(overrides.apply(self._origin.load(), tables))
        except ConfigError:
            self._service.use(settings)
        self._forget()

    async def reset_policy(self) -> Document:
        """Go back to the file. Raises ConfigError and ReportError; nothing has changed then."""
        async with self._changing:
            settings = self._origin.load()
            self._service.check(settings)
            try:
                await asyncio.to_thread(self._origin.overrides.clear)
            except OSError as error:
                raise ReportError(f"the policy cannot be removed, so it stays: {error}") from error
            self._use(settings, {})
        return await self.policy()

    async def rebalance(self, *, dry_run: bool, max_moves: int | None = None, project: str | None = None) -> Document:
        """One pass by load now. Raises UnreachableError, RetryError and ReportError."""
        balancing, limits = self._service.balancing, self._service.settings.rebalance
        if not self._service.connected:
            raise UnreachableError("the server does not answer; try again when it does")
        if balancing.rates is None:
            raise ReportError("no load was measured yet: set rebalance.enabled, or use `incus-numa rebalance`")
        if max_moves is not None:
            limits = replace(limits, max_moves=min(limits.max_moves, max_moves))
        only = frozenset(key for key in self._world.managed() if project in (None, key.project))
        if dry_run:
            decision = await balancing.preview(limits, only=only)
        else:
            decision = balancing.make(only, max_moves)
            self._forget()
        return {"dry_run": dry_run} | plans.render_decision(decision)

    def gauges(self) -> Gauges:
        """What metrics show of the present."""
        now = time.monotonic()
        if self._gauges is None or now - self._gauges[0] > GAUGES_FRESH_S:
            self._gauges = now, take_gauges(self._service)
        return self._gauges[1]

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every notice from now on; returns what ends that."""
        return self._reconciler.notices.watch(watcher)

    async def _take_look(self) -> Look:
        async with self._looking:
            while self._look is None or self._look.fresh_until_s < time.monotonic():
                turn, placement, began = self._turn, self._service.settings.placement, time.monotonic()
                snapshot, seen = self._world.snapshot(), self._world.all_seen()
                rates = self._service.balancing.rates
                found = await asyncio.to_thread(answer, snapshot, placement, rates)
                now = time.monotonic()
                look = Look(
                    survey=make_survey(self._world, snapshot, seen, found),
                    took_s=now - began,
                    fresh_until_s=now + max(FRESH_S, RESTS * (now - began)),
                )
                # What was planned by settings that are no longer in force is not shown.
                if turn == self._turn:
                    self._look = look
            return self._look

    def _forget(self) -> None:
        self._turn += 1
        self._look = self._gauges = None

    def _note_load(self, notice: Notice) -> None:
        """Keep the load of the nodes for its history, as seldom as that wants it."""
        now_s = time.time()
        if isinstance(notice, PassEnded) and notice.scope is Scope.LOAD and self._history.is_due(now_s):
            loads = {node: one.load for node, one in self.gauges().nodes.items() if one.load is not None}
            self._history.note(now_s, loads)

    def _tables(self) -> dict[str, Any]:
        return {name: dict(table) for name, table in self._origin.overrides.kept.items() if table}
