"""What is wrong with the server and its projects. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from incus_numa.cli.findings.finding import Finding, Kind, note, warning
from incus_numa.facts.words import count
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server import demand
from incus_numa.server.protocol import Product, Project, ServerInfo, ServerInstance
from incus_numa.settings import PlacementSettings

SERVER = "server"

_NAMED = 5
"""So many instances are named in a sentence, the others are counted."""

_WORDS = {InstanceType.CONTAINER: "containers", InstanceType.VIRTUAL_MACHINE: "virtual-machines"}


def check_server(info: ServerInfo, problems: Iterable[str], others: Iterable[str]) -> list[Finding]:
    """The server itself. `problems` are what could not be read, `others` sockets of servers that are not looked at."""
    found = [
        warning(Kind.UNREADABLE_INSTANCE, SERVER, problem, "correct or delete it: it is neither placed nor counted")
        for problem in problems
    ]
    for socket in others:
        text = (
            f"another server is on this host ({socket}): its instances are neither placed nor counted as load, as "
            f"{info.product.value} {info.version} is looked after"
        )
        do = "set server.product to choose; CPUs that the other one's instances have belong in placement.reserved_cpus"
        found.append(warning(Kind.TWO_SERVERS, SERVER, text, do))
    return found + _check_balanced(info)


def _check_balanced(info: ServerInfo) -> list[Finding]:
    """An Incus from before `balanced`, which is managed as LXD is, if at all."""
    if info.product is not Product.INCUS or demand.BALANCED_EXTENSION in info.extensions:
        return []
    key = demand.nodes_key(info)
    text = f"this Incus {info.version} does not have {demand.BALANCED_EXTENSION}: it refuses limits.cpu.nodes=balanced"
    if key is None:
        text += ", and it keeps no nodes, so it rewrites CPUs to others and they are set again each time"
    else:
        text += f"; what was decided is kept in {key}"
    return [note(Kind.NO_BALANCED, SERVER, text, "opt in with user.limits.cpu.nodes=balanced, or upgrade Incus")]


def forbids_record(project: Project, kind: InstanceType) -> bool:
    """Whether a project keeps even root from writing volatile.cpu.nodes.

    Restricted projects do, and those with any limit, unless low-level keys are allowed: internal/server/project of
    Incus, `checkInstanceRestrictions` and its callers.
    """
    if project.config.get(f"restricted.{_WORDS[kind]}.lowlevel") == "allow":
        return False
    return project.config.get("restricted") == "true" or any(key.startswith("limits.") for key in project.config)


def find_forbidden(
    info: ServerInfo, projects: Iterable[Project], listed: Iterable[ServerInstance]
) -> frozenset[InstanceKey]:
    """Managed instances whose record the server will not let anybody write."""
    key, by_name = demand.nodes_key(info), {project.name: project for project in projects}
    return frozenset(
        one.key
        for one in listed
        if _is_managed(one) and demand.record_key(one, key) == demand.VOLATILE_NODES
        if one.key.project in by_name and forbids_record(by_name[one.key.project], one.type)
    )


def check_projects(
    forbidden: frozenset[InstanceKey], raw: Mapping[InstanceKey, ServerInstance], settings: PlacementSettings
) -> list[Finding]:
    """One finding for each project that forbids the record of managed instances."""
    by_project: dict[str, list[InstanceKey]] = {}
    for key in sorted(forbidden):
        # A virtual machine takes no list of nodes while it runs.
        can_have_limits = raw[key].type is InstanceType.CONTAINER and demand.has_opted_in(raw[key])
        if settings.restricted_record == "none" or not can_have_limits:
            by_project.setdefault(key.project, []).append(key)
    return [
        warning(Kind.RESTRICTED_PROJECT, f"project {project}", _restricted(keys), _how_to_allow(settings))
        for project, keys in by_project.items()
    ]


def _restricted(keys: list[InstanceKey]) -> str:
    names = [key.name for key in keys]
    shown = ", ".join(names[:_NAMED]) + (f" and {count(len(names) - _NAMED, 'other')}" if len(names) > _NAMED else "")
    return (
        f"it forbids volatile.cpu.nodes, so {shown} {'is' if len(keys) == 1 else 'are'} placed without the server "
        "knowing it: CPUs and memory are set, the server rewrites the CPUs to nodes of its own when an instance starts "
        "or stops, and they are set again"
    )


def _how_to_allow(settings: PlacementSettings) -> str:
    allow = "set restricted.containers.lowlevel=allow (and restricted.virtual-machines.lowlevel) on the project"
    if settings.restricted_record == "none":
        return f'{allow}, or placement.restricted_record = "limits"'
    return f"{allow}, or opt in with user.limits.cpu.nodes=balanced, which limits.cpu.nodes can then be written beside"


def _is_managed(raw: ServerInstance) -> bool:
    return demand.has_opted_in(raw) or raw.config.get(demand.LIMIT_NODES, "").strip() == demand.BALANCED
