"""What the daemon knows, in place of a look of one's own: for `list` and `explain`, which show the same either way,
and for the picture of `topology`.

The daemon is asked where it watches the server that the settings lead to and measures load. Wherever it does not
answer, or not well, the command looks itself, so nothing here fails.
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
from incus_numa.settings import Settings
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
    is_measured: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Everything about one instance, and the machine that it is on."""

    facts: dict[str, Any]
    machine: Machine


async def ask_listing(settings: Settings) -> Listing | None:
    """What the daemon lists; None where the command has to look itself."""
    try:
        status = await _find_status(settings)
        if status is None:
            return None
        instances = await _get(settings, "/v1/instances")
        nodes = [{name: one[name] for name in NODE_COLUMNS} for one in await _get(settings, "/v1/nodes")]
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
    return Listing(instances=instances, nodes=nodes, problems=problems, is_measured=True)


async def ask_explanation(settings: Settings, key: InstanceKey) -> Explanation | None:
    """What the daemon says about one instance; None where the command has to look itself.

    That is so for an instance that does not run, too: only the server can tell why.
    """
    try:
        if await _find_status(settings) is None:
            return None
        facts = await _get(settings, f"/v1/instances/{quote(key.name, safe='')}?project={quote(key.project, safe='')}")
        machine = document.parse_machine(msgspec.json.encode(await _get(settings, "/v1/topology")))
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
        told = await _get(settings, "/v1/topology")
        if [(one["id"], one["cpus"]) for one in told["nodes"]] != [(one.id, str(one.cpus)) for one in machine.nodes]:
            log.debug("the daemon is that of another machine")
            return None
        return await _get(settings, "/v1/nodes"), await _get(settings, "/v1/instances")
    except (IncusNumaError, LookupError, TypeError) as error:
        _log_failure(settings, error)
        return None


async def _find_status(settings: Settings) -> dict[str, Any] | None:
    """The status of the daemon that can tell what a look of one's own would; None if there is none."""
    status: dict[str, Any] | None = await ask(settings, "GET", "/v1/status", within_s=TELL_S)
    if status is None:
        return None
    server = status["server"]
    if not _is_same(settings, server["socket"], server["product"]):
        log.debug("looking here: the daemon watches another server, at %s", server["socket"])
        return None
    if not server["connected"] or not status["rebalancing"]:
        log.debug("looking here: the daemon has lost the server, or measures no load (rebalance.enabled)")
        return None
    log.debug("asking the daemon at %s", settings.api.socket)
    return status


def _is_same(settings: Settings, socket: str, product: str | None) -> bool:
    """Whether the settings lead to the server that the daemon watches. Raises UnreachableError."""
    wanted = sockets.parse_product(settings.server.product)
    if wanted is not None and wanted.value != product:
        return False
    found = sockets.find_socket(settings.server.socket, os.environ, product=wanted)
    return os.path.realpath(found.path) == os.path.realpath(socket)


async def _get(settings: Settings, path: str) -> Any:
    """What there is at a path. Raises GoneError if the daemon has ended meanwhile."""
    found = await ask(settings, "GET", path, within_s=TELL_S)
    if found is None:
        raise GoneError("it has ended")
    return found


def _log_failure(settings: Settings, error: Exception) -> None:
    log.debug("looking here: the daemon at %s does not tell: %r", settings.api.socket, error)
