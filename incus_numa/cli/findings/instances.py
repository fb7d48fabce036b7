"""What is wrong with an instance's keys, whether it runs or not. Pure."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from incus_numa.cli.findings.finding import Finding, Kind, danger, note, warning
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.facts.words import show_nodes
from incus_numa.model.instance import Instance, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.quantities import render_bytes
from incus_numa.server import demand, quirks
from incus_numa.server.protocol import Product, ServerInfo, ServerInstance
from incus_numa.settings import PlacementSettings

LIMIT_CPU, LIMIT_MEMORY = "limits.cpu", "limits.memory"

TIES = ("user.numa.avoid", "user.numa.group")
"""Keys that count for where others are placed, even of an instance that is not placed itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """CPUs and nodes as the server counts them when it balances: isolated and offline CPUs, too."""

    cpus: int
    nodes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What instances are judged by: the server, the machine, and how the server counts it.

    `groups` are the names that some instance has in `user.numa.group`.
    """

    info: ServerInfo
    machine: Machine
    capacity: Capacity
    groups: Set[str] = frozenset()


def check_instance(raw: ServerInstance, instance: Instance, ground: Ground) -> list[Finding]:
    """One instance's keys, running or not. A record of nodes is judged only while it runs: a start writes it anew."""
    about = str(raw.key)
    found = []
    crash = _crash(raw, ground)
    if crash is not None:
        found.append(crash)
    unreadable = raw.running and raw.type is InstanceType.CONTAINER and _limit(raw) is None
    if unreadable:
        text = "the server cannot read its limits.cpu, and so places the CPUs of no container any more"
        found.append(danger(Kind.LIMIT_UNREADABLE, about, text, f"correct it: {_expected(raw)}"))
    for key, what in instance.problems:
        if not (unreadable and key == LIMIT_CPU):
            text = f"{key}: {what}; it is left alone meanwhile"
            found.append(warning(Kind.BAD_KEY, about, text, f"correct or unset {key}"))
    found += _check_nodes(raw, instance, ground.machine)
    pinned = instance.demand.pinned_cpus
    if pinned is not None:
        found += _check_pins(instance, pinned, ground.machine)
    elif crash is None:
        found += _check_count(instance, ground.machine)
    return found + _check_memory(instance, ground.machine)


def check_unused(raw: ServerInstance, instance: Instance, ground: Ground, settings: PlacementSettings) -> list[Finding]:
    """Keys of our own that do nothing where they are, and bad values where nobody is refused for them."""
    about = str(raw.key)
    if instance.managed:
        strangers = [name for name in instance.avoid if name not in ground.groups]
        text = f"user.numa.avoid names {', '.join(strangers)}, and no instance here has that in user.numa.group"
        return [note(Kind.UNUSED_KEY, about, f"{text}: there is nobody to avoid")] if strangers else []
    bad = demand.list_bad_own_keys(raw, ground.machine, settings)
    found = [
        note(Kind.BAD_KEY, about, f"{key}: {what}; it counts as unset, as the instance did not opt in")
        for key, what in bad
    ]
    own = (key for key, value in sorted(raw.config.items()) if key.startswith(demand.OWN_PREFIX) and value.strip())
    good = [key for key in own if key not in dict(bad)]
    ties = [key for key in good if key in TIES]
    void = [key for key in good if key not in TIES]
    parts = [f"{', '.join(void)} {_has(void)} no effect"] if void else []
    parts += [f"{', '.join(ties)} only {_counts(ties)} where others are placed"] if ties else []
    if parts:
        text = f"{', and '.join(parts)}: the instance did not opt in"
        found.append(note(Kind.UNUSED_KEY, about, text, f"set {_opt_in(ground.info)}, or unset what does nothing"))
    return found


def _opt_in(info: ServerInfo) -> str:
    has_balanced = demand.BALANCED_EXTENSION in info.extensions
    return f"{demand.LIMIT_NODES if has_balanced else demand.OPT_IN_NODES}={demand.BALANCED}"


def _check_nodes(raw: ServerInstance, instance: Instance, machine: Machine) -> list[Finding]:
    """Nodes that the machine does not have: those that the user named, and the record's where it is in force.

    The record of a stopped instance is written anew when it starts, and one that did not opt in is not kept on it.
    """
    found = []
    in_force = raw.running and instance.managed
    for key in (demand.LIMIT_NODES, demand.VOLATILE_NODES) if in_force else (demand.LIMIT_NODES,):
        strange = _named(raw.config.get(key, "")) - NodeSet(machine.node_by_id)
        if strange:
            text = f"its configuration names {show_nodes(strange)}, which this machine does not have ({key})"
            anew = "`incus-numa rebalance` writes it anew"
            if instance.problems:
                anew = f"correct its keys first, then {anew}"
            do = f"correct {key}" if key == demand.LIMIT_NODES else anew
            found.append(warning(Kind.NODES_MISSING, str(raw.key), text, do))
    return found


def _check_pins(instance: Instance, pinned: CpuSet, machine: Machine) -> list[Finding]:
    found = []
    about = str(instance.key)
    missing = pinned - machine.online
    if missing:
        left = pinned & machine.online
        text = f"limits.cpu names CPUs {missing}, which are offline or not there: " + (
            f"it has CPUs {left} only" if left else "none is left, so that it may run anywhere"
        )
        found.append(warning(Kind.PIN_MISSING, about, text, "correct limits.cpu, or bring these CPUs online"))
    isolated = pinned & machine.isolated
    if isolated and instance.type is InstanceType.CONTAINER:
        text = (
            f"limits.cpu names CPUs {isolated}, which are isolated: the server leaves them out when it places "
            "containers, and the kernel moves no thread between them by itself, so that several share one CPU"
        )
        found.append(warning(Kind.PIN_ISOLATED, about, text, "name other CPUs, or do not isolate these"))
    elif isolated:
        text = f"limits.cpu names CPUs {isolated}, which are isolated: its vCPUs have them, one thread on each"
        found.append(note(Kind.PIN_ISOLATED, about, text))
    return found


def _check_count(instance: Instance, machine: Machine) -> list[Finding]:
    vcpus, most = instance.demand.vcpus or 0, len(machine.online)
    if vcpus <= most:
        return []
    tell = warning if instance.managed else note
    text = f"limits.cpu asks for {vcpus} CPUs, and {most} are online: " + (
        "it has them all, on all nodes" if instance.type is InstanceType.CONTAINER else "its vCPUs share them"
    )
    return [tell(Kind.CPU_LIMIT, str(instance.key), text, f"set limits.cpu to {most} or less")]


def _check_memory(instance: Instance, machine: Machine) -> list[Finding]:
    size, total = instance.demand.memory_bytes, machine.memory_bytes
    known = all(node.memory_bytes is not None for node in machine.nodes)
    if size is None or instance.demand.memory_is_usage or not known or size <= total:
        return []
    tell = warning if instance.managed else note
    text = f"{LIMIT_MEMORY} is {render_bytes(size)}, and the machine has {render_bytes(total)}: " + (
        "it is not placed, as no nodes can hold it" if instance.managed else "the machine is full before the limit is"
    )
    return [tell(Kind.MEMORY_LIMIT, str(instance.key), text, "lower it to what it needs")]


def _crash(raw: ServerInstance, ground: Ground) -> Finding | None:
    """Why starting the instance would make this server panic, whatever else is wrong with its keys."""
    info, capacity = ground.info, ground.capacity
    asks = raw.config.get(demand.LIMIT_NODES, "").strip() == demand.BALANCED
    limit = _limit(raw)
    if info.product is not Product.INCUS or not asks or limit is None or not quirks.panics_on_wide_balanced(info):
        return None
    vcpus = len(limit) if isinstance(limit, CpuSet) else limit
    picked = quirks.nodes_picked(vcpus, capacity.cpus, capacity.nodes)
    if picked <= capacity.nodes:
        return None
    most = max(1, capacity.cpus // max(1, capacity.nodes)) * capacity.nodes
    text = (
        f"starting it would crash this server ({info.product.value} {info.version}): with limits.cpu={vcpus} and "
        f"{demand.LIMIT_NODES}=balanced it picks {picked} nodes of {capacity.nodes}"
    )
    do = (
        f"lower limits.cpu to {most} or less, or unset {demand.LIMIT_NODES} and set {demand.OPT_IN_NODES}=balanced, "
        "which only incus-numa reads"
    )
    return danger(Kind.WOULD_CRASH, str(raw.key), text, do)


def _limit(raw: ServerInstance) -> int | CpuSet | None:
    """`limits.cpu`, 1 when unset, None when it cannot be read."""
    text = raw.config.get(LIMIT_CPU, "").strip()
    if text.isdecimal():
        # Too many for us to place is still a number to the server.
        return int(text[:18])
    try:
        return demand.parse_cpu_limit(text) if text else 1
    except ValueError:
        return None


def _expected(raw: ServerInstance) -> str:
    try:
        demand.parse_cpu_limit(raw.config.get(LIMIT_CPU, "").strip())
    except ValueError as error:
        return str(error)
    return "a number of CPUs or a list of them"


def _named(text: str) -> NodeSet:
    """Nodes of a key; empty where it names none or cannot be read."""
    try:
        return demand.parse_nodes(text) if text and text.strip() != demand.BALANCED else NodeSet()
    except ValueError:
        return NodeSet()


def _has(keys: list[str]) -> str:
    return "has" if len(keys) == 1 else "have"


def _counts(keys: list[str]) -> str:
    return "counts for" if len(keys) == 1 else "count for"
