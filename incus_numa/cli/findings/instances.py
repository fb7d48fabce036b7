"""What is wrong with an instance's keys, whether it runs or not. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from incus_numa.cli.findings.finding import Finding, Kind, danger, note, warning
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.facts.words import show_nodes
from incus_numa.model.instance import Instance, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.quantities import render_bytes
from incus_numa.server import demand, quirks
from incus_numa.server.protocol import Product, ServerInfo, ServerInstance

LIMIT_CPU, LIMIT_MEMORY = "limits.cpu", "limits.memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """CPUs and nodes as the server counts them when it balances: isolated and offline CPUs, too."""

    cpus: int
    nodes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """What instances are judged by: the server, the machine, and how the server counts it."""

    info: ServerInfo
    machine: Machine
    capacity: Capacity


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
    if instance.problem is not None and not (unreadable and instance.problem[0] == LIMIT_CPU):
        key, what = instance.problem
        text = f"{key}: {what}; it is left alone meanwhile"
        found.append(warning(Kind.BAD_KEY, about, text, f"correct or unset {key}"))
    found += _check_nodes(raw, ground.machine)
    pinned = instance.demand.pinned_cpus
    if pinned is not None:
        found += _check_pins(instance, pinned, ground.machine)
    elif crash is None:
        found += _check_count(instance, ground.machine)
    return found + _check_memory(instance, ground.machine)


def _check_nodes(raw: ServerInstance, machine: Machine) -> list[Finding]:
    """Nodes that the machine does not have: those that the user named, and of a running instance the record's."""
    found = []
    keys = (demand.LIMIT_NODES, demand.VOLATILE_NODES) if raw.running else (demand.LIMIT_NODES,)
    for key in keys:
        strange = _named(raw.config.get(key, "")) - NodeSet(machine.node_by_id)
        if strange:
            text = f"its configuration names {show_nodes(strange)}, which this machine does not have ({key})"
            do = f"correct {key}" if key == demand.LIMIT_NODES else "`incus-numa rebalance` writes it anew"
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
