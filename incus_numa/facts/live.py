"""The running service as the API sees it: facts about what the daemon has seen, and the few things it can be told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from incus_numa import __version__
from incus_numa.applier.protocol import describe_change
from incus_numa.daemon.notices import Watcher
from incus_numa.daemon.overrides import Overrides
from incus_numa.daemon.service import Service
from incus_numa.errors import GoneError, ReportError, UnreachableError
from incus_numa.facts import instance, load, rows
from incus_numa.facts.cpu_busy import CpuBusy
from incus_numa.facts.gauges import take_gauges
from incus_numa.facts.history import RecentLoads
from incus_numa.facts.looks import Look, Looks
from incus_numa.facts.steering import Steering
from incus_numa.facts.survey import Survey
from incus_numa.facts.words import rounded
from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import Notice, PassEnded, Scope
from incus_numa.policy import document as plans
from incus_numa.server import projects
from incus_numa.settings import Settings
from incus_numa.topology import document as machines
from incus_numa.web.protocol import Document, Gauges, Written, write

GAUGES_FRESH_S = 1.0
"""For how long gauges are shown again: they may be asked for a hundred times a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the service was started with: the configuration file, what reads it, and what is over it.

    `find_socket` gives that of the server, nothing while there is none.
    """

    file: str
    load: Callable[[], Settings]
    overrides: Overrides
    find_socket: Callable[[], str]


class LiveHost:
    """A web.protocol.Host. One event loop uses it."""

    def __init__(self, service: Service, origin: Origin) -> None:
        self._service = service
        self._reconciler = service.reconciler
        self._world = service.reconciler.world
        self._origin = origin
        self._began = datetime.now(UTC)
        self._looks = Looks(service)
        self._gauges: tuple[float, Gauges] | None = None
        self._steering = Steering(service, origin.overrides, file=origin.file, load=origin.load)
        self._busy = CpuBusy(Path(service.settings.host.procfs))
        self._history = RecentLoads()
        self.watch(self._note_load)

    async def status(self) -> Document:
        """Who serves what, and how it goes."""
        found, info = await self._looks.ask("status", _counts), self._world.info
        return found | {
            "version": __version__,
            "started_at": self._began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "server": {
                "product": None if info is None else info.product.value,
                "version": None if info is None else info.version,
                "member": self._world.member,
                "socket": self._origin.find_socket(),
                "connected": self._service.connected,
            },
            "rebalancing": self._service.settings.rebalance.enabled,
            "moving": self._service.balancing.is_moving,
            "policy_source": self._steering.source,
            "problems": [*found["problems"], *self._steering.problems],
        }

    async def topology(self) -> Document:
        """The machine."""
        return await self._looks.ask("topology", lambda look: machines.render_machine(look.survey.machine))

    async def nodes(self) -> Written:
        """Every node with who is on it, and how busy its CPUs are."""
        return await self._looks.ask("nodes", self._render_nodes)

    def _render_nodes(self, look: Look) -> Written:
        survey, busy = look.survey, self._busy.read()
        by_node: dict[int, list[Document]] = {node.id: [] for node in survey.machine.nodes}
        for one in survey.seen:
            for node_id in survey.nodes_of(one):
                by_node[node_id].append({"project": one.instance.key.project, "name": one.instance.key.name})
        return write(
            [
                row
                | {
                    "cpu_busy": {str(cpu): rounded(busy[cpu]) for cpu in node.cpus if cpu in busy},
                    "instances": by_node[node.id],
                }
                for row, node in zip(rows.node_rows(survey), survey.machine.nodes, strict=True)
            ]
        )

    async def instances(self, project: str | None = None) -> Written:
        """Everything that runs. Raises UnreachableError while nothing is known of it."""
        self._check_heard()
        found = await self._looks.ask("rows", _list_rows)
        if project is None:
            return await self._looks.ask("instances", lambda _: write(found))
        return write([row for row in found if row["project"] == project])

    async def instance(self, key: InstanceKey) -> Written | None:
        """Everything about one instance. Raises UnreachableError while nothing is known of any."""
        self._check_heard()
        return await self._looks.ask(("instance", key), lambda look: self._explain(look.survey, key))

    def _explain(self, survey: Survey, key: InstanceKey) -> Written | None:
        seen, settings = survey.get(key), self._service.settings
        if seen is None:
            return None
        journal, now_s = self._service.balancing.journal, time.time()
        verdict = load.judge(survey, seen, journal.last_moves(now_s), now_s, settings)
        known = instance.explain(survey, seen, settings)
        return write(known | load.list_facts(survey, seen, journal.read(), verdict, settings.rebalance))

    async def plan(self) -> Written:
        """What a pass would do now. Raises UnreachableError while nothing is known that one could place."""
        self._check_heard()
        return await self._looks.ask("plan", self._render_plan)

    def _render_plan(self, look: Look) -> Written:
        placed = plans.render_plan(look.survey.plan, look.took_s * 1000)
        steps = {str(key): [describe_change(one) for one in own] for key, own in look.survey.steps.items() if own}
        decision = self._service.balancing.preview(look.survey.snapshot, self._service.settings.rebalance)
        return write(placed | {"steps": steps, "by_load": plans.render_decision(decision)})

    async def moves(self, limit: int) -> list[Document]:
        """The journal, newest first."""
        records = await self._looks.ask("journal", lambda _: self._service.balancing.journal.read())
        newest = records[: -limit - 1 : -1]
        return [{"project": one.move.key.project, "name": one.move.key.name} | load.show_move(one) for one in newest]

    async def history(self) -> Document:
        """Measured load over the last hour."""
        return self._history.show(time.time())

    async def policy(self) -> Document:
        """What is in force, and where it comes from."""
        return self._steering.show()

    async def set_policy(self, tables: Mapping[str, Any], only_if: Set[str] | None = None) -> Document:
        """Have these tables over those of the file. Raises ConfigError, ChangedError and ReportError."""
        found = await self._steering.set(tables, only_if)
        self._forget()
        return found

    async def reset_policy(self, only_if: Set[str] | None = None) -> Document:
        """Go back to the file. Raises ConfigError, ChangedError and ReportError."""
        found = await self._steering.reset(only_if)
        self._forget()
        return found

    async def rebalance(self, *, dry_run: bool, max_moves: int | None = None, project: str | None = None) -> Document:
        """One pass by load now. Raises UnreachableError, RetryError, ReportError, and GoneError for no such project."""
        balancing, limits = self._service.balancing, self._service.settings.rebalance
        if not self._service.connected:
            raise UnreachableError("the server does not answer; try again when it does")
        if unknown := await projects.explain_unknown(self._world.server, project):
            raise GoneError(unknown)
        if balancing.rates is None:
            raise ReportError("no load was measured yet: set rebalance.enabled, or use `incus-numa rebalance`")
        if max_moves is not None:
            limits = replace(limits, max_moves=min(limits.max_moves, max_moves))
        only = frozenset(key for key in self._world.managed() if project in (None, key.project))
        if dry_run:
            decision = await self._looks.work(partial(balancing.preview, self._world.snapshot(), limits, only))
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

    def _check_heard(self) -> None:
        """That no instance runs here would only look so before the server was ever heard of."""
        if self._world.info is None:
            raise UnreachableError("the server was not heard of yet, so nothing is known of instances: is it running?")

    def _forget(self) -> None:
        self._looks.forget()
        self._gauges = None

    def _note_load(self, notice: Notice) -> None:
        """Keep the load of the nodes for its history, as seldom as that wants it."""
        now_s = time.time()
        if isinstance(notice, PassEnded) and notice.scope is Scope.LOAD and self._history.is_due(now_s):
            loads = {node: one.load for node, one in self.gauges().nodes.items() if one.load is not None}
            self._history.note(now_s, loads)


def _counts(look: Look) -> Document:
    """What a survey says of everything, in numbers."""
    survey = look.survey
    states = [survey.state(one) for one in survey.seen]
    return {
        "nodes": len(survey.machine.nodes),
        "cpus": len(survey.machine.online),
        "instances": {
            "running": len(states),
            "managed": sum(state != "unmanaged" for state in states),
            "differ": states.count("differs"),
            "refused": len(survey.plan.rejections),
        },
        "imbalance": None if survey.measured is None else rounded(survey.measured.imbalance),
        "problems": list(survey.problems),
        "warnings": list(survey.plan.warnings),
    }


def _list_rows(look: Look) -> list[Document]:
    return rows.instance_rows(look.survey)
