"""Where `top` gets what it shows: from the daemon, or where none tells, from looks of its own, one after the other."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from incus_numa.cli import told
from incus_numa.cli.asking import ask
from incus_numa.cli.moving import SMOOTHED
from incus_numa.cli.options import LOOK_S
from incus_numa.cli.top_view import MOST_EVENTS, Row, View
from incus_numa.cli.wiring import Session, connect
from incus_numa.daemon.journal import Journal
from incus_numa.daemon.measuring import Measuring
from incus_numa.errors import IncusNumaError, UnreachableError
from incus_numa.facts import load
from incus_numa.facts.rows import instance_rows, node_rows
from incus_numa.facts.survey import Survey, answer, make_survey
from incus_numa.facts.words import rounded
from incus_numa.policy.desk import open_desk
from incus_numa.policy.rebalance import measured as node_loads
from incus_numa.settings import Settings

SEE = "see `systemctl status incus-numa`"

MOVES = f"/v1/moves?limit={MOST_EVENTS}"


class Source:
    """Asks the daemon each time anew, so that one that starts or ends meanwhile is noticed.

    A connection to the server is kept from one look to the next, and closed when the daemon tells.
    """

    def __init__(self, settings: Settings, interval_s: float) -> None:
        self._settings = settings
        self._interval_s = interval_s
        self._stack = AsyncExitStack()
        self._look: Look | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def take(self) -> View:
        """What is so now. Raises UnreachableError and ReportError where neither daemon nor server tells."""
        found = await _ask(self._settings)
        if isinstance(found, View):
            await self._close()
            return found
        try:
            is_gone = found == _absent(self._settings) and self._settings.api.enabled
            return replace(await self._look_here(), absent=found, hint=SEE if is_gone else "")
        except UnreachableError as error:
            await self._close()
            raise UnreachableError(f"{found}; {error}") from error
        except IncusNumaError:
            await self._close()
            raise

    async def _look_here(self) -> View:
        if self._look is None:
            session = await self._stack.enter_async_context(connect(self._settings))
            self._look = Look(session, min(LOOK_S, self._interval_s))
        return await self._look.take()

    async def _close(self) -> None:
        self._look = None
        await self._stack.aclose()


async def _ask(settings: Settings) -> View | str:
    """What the daemon knows, or why it does not tell, in words."""
    try:
        status = await ask(settings, "GET", "/v1/status", within_s=told.TELL_S)
        if status is None:
            return _absent(settings)
        nodes = [{name: one[name] for name in told.NODE_COLUMNS} for one in await told.get(settings, "/v1/nodes")]
        instances, moves = await told.get(settings, "/v1/instances"), await told.get(settings, MOVES)
        known = {name: status[name] for name in ("server", "instances", "imbalance", "moving")}
    except IncusNumaError as error:
        return str(error)
    except (LookupError, TypeError):
        return f"what answers at {settings.api.socket} is no API of incus-numa: correct api.socket"
    return View(at=_now(), status=known, nodes=nodes, instances=instances, moves=moves)


def _absent(settings: Settings) -> str:
    return f"no daemon answers at {settings.api.socket}" if settings.api.enabled else "the daemon has no API"


class Look:
    """Looks at everything that runs, again and again; the load is that since the look before.

    The first one takes `first_s`, as load is known of two looks only.
    """

    def __init__(self, session: Session, first_s: float) -> None:
        self._session = session
        self._first_s = first_s
        self._measuring = Measuring(session.world, session.settings.host, first_s * SMOOTHED)
        self._journal = Journal(Path(session.settings.rebalance.journal))

    async def take(self) -> View:
        """What is so now. Raises UnreachableError, ReportError and RetryError."""
        world, placement = self._session.world, self._session.settings.placement
        await world.look_at_everything()
        if self._measuring.rates is None:
            await self._measuring.watch(self._first_s, lambda _: None)
        else:
            await self._measuring.take()
        snapshot = world.snapshot()
        found = make_survey(world, snapshot, world.all_seen(), answer(snapshot, placement, self._measuring.rates))
        records = self._journal.read()[: -MOST_EVENTS - 1 : -1]
        return View(
            at=_now(),
            status=self._status(found),
            nodes=self._nodes(found),
            instances=instance_rows(found),
            moves=[
                {"project": one.move.key.project, "name": one.move.key.name} | load.show_move(one) for one in records
            ],
        )

    def _status(self, found: Survey) -> Row:
        """The keys of the daemon's status that are shown."""
        info, states = self._session.info, [found.state(one) for one in found.seen]
        instances = sorted(found.snapshot.instances, key=lambda one: one.key)
        desk = open_desk(found.snapshot, self._session.settings.placement, instances)
        return {
            "server": {
                "product": info.product.value,
                "version": info.version,
                "member": info.member,
                "socket": str(self._session.found.path),
                "connected": True,
            },
            "instances": {
                "running": len(states),
                "managed": sum(state != "unmanaged" for state in states),
                "differ": states.count("differs"),
                "refused": len(found.plan.rejections),
            },
            "imbalance": rounded(node_loads.measure(desk).imbalance),
            "moving": False,
        }

    def _nodes(self, found: Survey) -> list[dict[str, Any]]:
        """Rows of the nodes, with the memory that is free now: the machine is read again only where it has changed."""
        rates = self._measuring.rates
        free = {} if rates is None else {node: one.free_bytes for node, one in rates.nodes.items()}
        rows = node_rows(found)
        return [row | {"free_bytes": now} if (now := free.get(row["node"])) is not None else row for row in rows]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
