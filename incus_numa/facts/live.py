"""The running service as the API sees it: facts about what the daemon has seen, and the few things it can be told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from incus_numa import __version__
from incus_numa.applier.protocol import describe_change
from incus_numa.daemon import overrides
from incus_numa.daemon.notices import Watcher
from incus_numa.daemon.overrides import Overrides
from incus_numa.daemon.service import Service
from incus_numa.errors import ReportError
from incus_numa.facts import instance, load, rows
from incus_numa.facts.gauges import take_gauges
from incus_numa.facts.survey import Survey, answer, make_survey, take_measured
from incus_numa.facts.words import rounded
from incus_numa.model.instance import InstanceKey
from incus_numa.policy import document as plans
from incus_numa.settings import Settings, settings_as_dict
from incus_numa.topology import document as machines
from incus_numa.web.protocol import Document, Gauges

FRESH_S = 1.0
"""For how long a survey is shown again: planning for everybody costs too much to do it for each who asks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the service was started with: the configuration file, what reads it, and what is over it."""

    file: str
    load: Callable[[], Settings]
    overrides: Overrides
    socket: str


class LiveHost:
    """A web.protocol.Host. One event loop uses it."""

    def __init__(self, service: Service, origin: Origin) -> None:
        self._service = service
        self._reconciler = service.reconciler
        self._world = service.reconciler.world
        self._origin = origin
        self._began = datetime.now(UTC)
        self._survey: tuple[float, Survey] | None = None
        self._gauges: tuple[float, Gauges] | None = None
        self._looking = asyncio.Lock()
        self._changing = asyncio.Lock()

    async def status(self) -> Document:
        """Who serves what, and how it goes."""
        survey, info = await self._look(), self._world.info
        states = [survey.state(one) for one in survey.seen]
        return {
            "version": __version__,
            "started_at": _utc(self._began.timestamp()),
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
        """Every node with who is on it."""
        survey = await self._look()
        found = []
        for row in rows.node_rows(survey):
            on = [one for one in survey.seen if row["node"] in (one.observed.home or ())]
            found.append(
                row
                | {"instances": [{"project": one.instance.key.project, "name": one.instance.key.name} for one in on]}
            )
        return found

    async def instances(self, project: str | None = None) -> list[Document]:
        """Everything that runs."""
        return rows.instance_rows(await self._look(), project)

    async def instance(self, key: InstanceKey) -> Document | None:
        """Everything about one instance."""
        survey, settings = await self._look(), self._service.settings
        seen = survey.get(key)
        if seen is None:
            return None
        journal, now_s = self._service.balancing.journal, time.time()
        verdict = load.judge(survey, seen, journal.last_moves(now_s), now_s, settings)
        known = instance.explain(survey, seen, settings)
        return known | load.list_facts(survey, seen, journal.read(), verdict, settings.rebalance)

    async def plan(self) -> Document:
        """What a pass would do now."""
        began, survey = time.monotonic(), await self._look()
        placed = plans.render_plan(survey.plan, (time.monotonic() - began) * 1000)
        steps = {str(key): [describe_change(one) for one in own] for key, own in survey.steps.items() if own}
        decision = self._service.balancing.preview(self._service.settings.rebalance)
        return placed | {"steps": steps, "by_load": plans.render_decision(decision)}

    async def moves(self, limit: int) -> list[Document]:
        """The journal, newest first."""
        records = await asyncio.to_thread(self._service.balancing.journal.read)
        newest = records[: -limit - 1 : -1]
        return [{"project": one.move.key.project, "name": one.move.key.name} | load.show_move(one) for one in newest]

    async def policy(self) -> Document:
        """What is in force, and where it comes from."""
        whole, changes = settings_as_dict(self._service.settings), self._tables()
        meanings = {
            f"{table.name}.{one.name}": one.metadata["meaning"]
            for table in fields(Settings)
            if table.name in overrides.TABLES
            for one in fields(getattr(self._service.settings, table.name))
        }
        return {
            "source": "api" if changes else "file",
            "file": self._origin.file,
            "changes": changes,
            "effective": {name: whole[name] for name in overrides.TABLES},
            "meanings": meanings,
            "fixed": sorted(f"{name}.{key}" for name, key in overrides.FIXED),
        }

    async def set_policy(self, tables: Mapping[str, Any]) -> Document:
        """Have these tables over those of the file. Raises ConfigError."""
        async with self._changing:
            settings = overrides.apply(self._origin.load(), tables)
            before = self._service.settings
            self._service.use(settings)
            try:
                await asyncio.to_thread(self._origin.overrides.write, tables)
            except OSError as error:
                self._service.use(before)
                raise ReportError(f"the policy cannot be kept, so it was not set: {error}") from error
            self._forget()
        return await self.policy()

    async def reset_policy(self) -> Document:
        """Go back to the file. Raises ConfigError."""
        async with self._changing:
            self._service.use(self._origin.load())
            try:
                self._origin.overrides.clear()
            except OSError as error:
                raise ReportError(f"the policy is back only until a restart: {error}") from error
            self._forget()
        return await self.policy()

    async def rebalance(self, *, dry_run: bool, max_moves: int | None = None, project: str | None = None) -> Document:
        """One pass by load now. Raises RetryError and ReportError."""
        balancing, limits = self._service.balancing, self._service.settings.rebalance
        if balancing.rates is None:
            raise ReportError("no load was measured yet: set rebalance.enabled, or use `incus-numa rebalance`")
        if max_moves is not None:
            limits = replace(limits, max_moves=min(limits.max_moves, max_moves))
        only = frozenset(key for key in self._world.managed() if project in (None, key.project))
        if dry_run:
            decision = balancing.preview(limits, only=only)
        else:
            decision = balancing.decide(only=only, forced=True, max_moves=max_moves)
            balancing.begin(decision)
            self._forget()
        return {"dry_run": dry_run} | plans.render_decision(decision)

    def gauges(self) -> Gauges:
        """What metrics show of the present."""
        now = time.monotonic()
        if self._gauges is None or now - self._gauges[0] > FRESH_S:
            self._gauges = now, take_gauges(self._service)
        return self._gauges[1]

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every notice from now on; returns what ends that."""
        return self._reconciler.notices.watch(watcher)

    async def _look(self) -> Survey:
        async with self._looking:
            now = time.monotonic()
            if self._survey is None or now - self._survey[0] > FRESH_S:
                settings, snapshot = self._service.settings.placement, self._world.snapshot()
                plan, load_now = await asyncio.to_thread(answer, snapshot, settings)
                measured = take_measured(self._world, settings, self._service.balancing.rates)
                self._survey = time.monotonic(), make_survey(self._world, snapshot, plan, load_now, measured)
            return self._survey[1]

    def _forget(self) -> None:
        self._survey = self._gauges = None

    def _tables(self) -> dict[str, Any]:
        return {name: dict(table) for name, table in self._origin.overrides.kept.items()}


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
