"""What the daemon knows, in place of a look of one's own: for `list` and `explain`, which show the same either way,
for `check`, and for the picture of `topology`.

The daemon is asked where it watches the server that the settings lead to and measures load. Wherever it does not
answer, or not well, the command looks itself, by the policy that the daemon goes by, so nothing here fails.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from incus_numa.cli.asking import ask
from incus_numa.errors import GoneError, IncusNumaError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.server import sockets
from incus_numa.settings import Settings, Tables, salvage_over
from incus_numa.topology import document

log = logging.getLogger(__name__)

TELL_S = 5.0
"""After so long it is quicker to look."""

NODE_COLUMNS = ("node", "cpus", "load", "memory_bytes", "free_bytes", "measured_load")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Everything that runs, and the nodes, as rows. `problems` are sentences for people."""

    instances: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Everything about one instance, and the machine that it is on."""

    facts: dict[str, Any]
    machine: Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Steered:
    """The policy that the daemon goes by: `effective` tables, `changes` of them over those of its `file`, and why
    others that were set are not in force.
    """

    file: str
    effective: Tables
    changes: Tables
    left_out: tuple[str, ...]

    def list_keys(self) -> tuple[str, ...]:
        """Keys that were set, such as `placement.smt`."""
        return tuple(f"{name}.{key}" for name, table in self.changes.items() for key in table)


async def ask_policy(settings: Settings) -> Steered | None:
    """The policy of the daemon that watches the server of these settings; None where none tells."""
    try:
        if await _find_daemon(settings) is None:
            return None
        policy = await get(settings, "/v1/policy")
        left_out = tuple(f"left out of the policy that was set: {one['why']}" for one in policy["left_out"])
        tables = [{name: dict(table) for name, table in policy[part].items()} for part in ("effective", "changes")]
        return Steered(file=str(policy["file"]), effective=tables[0], changes=tables[1], left_out=left_out)
    except (IncusNumaError, LookupError, TypeError, ValueError, AttributeError) as error:
        _log_failure(settings, error)
        return None


async def follow_daemon(settings: Settings) -> Settings:
    """Settings with the policy of the daemon, where one tells: a look of one's own shows what that one would do."""
    told = await ask_policy(settings)
    return settings if told is None else salvage_over(settings, told.effective, lambda _: ()).settings


async def ask_listing(settings: Settings) -> Listing | None:
    """What the daemon lists; None where the command has to look itself."""
    try:
        status = await _find_status(settings)
        if status is None:
            return None
        instances = await get(settings, "/v1/instances")
        nodes = [{name: one[name] for name in NODE_COLUMNS} for one in await get(settings, "/v1/nodes")]
        problems = (*status["problems"], *status["warnings"])
        is_measured = any(one["measured_load"] is not None for one in nodes)
        # The load of nodes is known before that of instances, which takes two samples.
        is_measured &= not instances or any(one["load_cpus"] is not None for one in instances)
    except (IncusNumaError, LookupError, TypeError) as error:
        _log_failure(settings, error)
        return None
    if not is_measured:
        log.debug("looking here: the daemon has measured no load yet")
        return None
    return Listing(instances=instances, nodes=nodes, problems=problems)


async def ask_explanation(settings: Settings, key: InstanceKey) -> Explanation | None:
    """What the daemon says about one instance; None where the command has to look itself.

    That is so for an instance that does not run, too: only the server can tell why.
    """
    try:
        if await _find_status(settings) is None:
            return None
        facts = await get(settings, f"/v1/instances/{quote(key.name, safe='')}?project={quote(key.project, safe='')}")
        machine = document.parse_machine(msgspec.json.encode(await get(settings, "/v1/topology")))
        is_measured = facts["load"] is not None and facts["load"]["used_cpus"] is not None
    except (IncusNumaError, LookupError, TypeError) as error:
        _log_failure(settings, error)
        return None
    if not is_measured:
        log.debug("looking here: the daemon has measured no load of %s yet", key)
        return None
    return Explanation(facts=facts, machine=machine)


async def ask_seats(settings: Settings, machine: Machine) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
    """Nodes and instances as the daemon knows them; None where there is no daemon, or one of another machine."""
    try:
        if await ask(settings, "GET", "/v1/status", within_s=TELL_S) is None:
            return None
        told = await get(settings, "/v1/topology")
        if [(one["id"], one["cpus"]) for one in told["nodes"]] != [(one.id, str(one.cpus)) for one in machine.nodes]:
            log.debug("the daemon is that of another machine")
            return None
        return await get(settings, "/v1/nodes"), await get(settings, "/v1/instances")
    except (IncusNumaError, LookupError, TypeError) as error:
        _log_failure(settings, error)
        return None


async def _find_status(settings: Settings) -> dict[str, Any] | None:
    """The status of the daemon that can tell what a look of one's own would; None if there is none."""
    status = await _find_daemon(settings)
    if status is None:
        return None
    if not status["server"]["connected"] or not status["rebalancing"]:
        log.debug("looking here: the daemon has lost the server, or measures no load (rebalance.enabled)")
        return None
    log.debug("asking the daemon at %s", settings.api.socket)
    return status


async def _find_daemon(settings: Settings) -> dict[str, Any] | None:
    """The status of the daemon that watches the server of these settings; None if there is none."""
    status: dict[str, Any] | None = await ask(settings, "GET", "/v1/status", within_s=TELL_S)
    if status is None:
        return None
    server = status["server"]
    if _is_same(settings, server["socket"], server["product"]):
        return status
    log.debug("looking here: the daemon watches another server, at %s", server["socket"])
    return None


def _is_same(settings: Settings, socket: str, product: str | None) -> bool:
    """Whether the settings lead to the server that the daemon watches. Raises UnreachableError."""
    wanted = sockets.parse_product(settings.server.product)
    if wanted is not None and wanted.value != product:
        return False
    found = sockets.find_socket(settings.server.socket, os.environ, product=wanted)
    return os.path.realpath(found.path) == os.path.realpath(socket)


async def get(settings: Settings, path: str) -> Any:
    """What the daemon has at a path. Raises GoneError if it has ended meanwhile."""
    found = await ask(settings, "GET", path, within_s=TELL_S)
    if found is None:
        raise GoneError("the daemon has ended")
    return found


def _log_failure(settings: Settings, error: Exception) -> None:
    log.debug("looking here: the daemon at %s does not tell: %r", settings.api.socket, error)
