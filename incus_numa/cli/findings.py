"""What `check` finds wrong with a host, a server and its instances. Pure: values in, sentences out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from incus_numa.cli.output import show_nodes
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon import owners
from incus_numa.model.instance import Instance, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan, Reason
from incus_numa.model.snapshot import Observed
from incus_numa.policy import reservations
from incus_numa.server import demand, quirks
from incus_numa.server.protocol import Product, ServerInfo, ServerInstance
from incus_numa.settings import Settings, list_unused

NO_CGROUP = (
    "its cgroup was not found or cannot be read, so its CPUs and memory cannot be set: expected a folder "
    "lxc.payload.NAME with cpuset.cpus in the cgroup v2 hierarchy; is host.cgroup right?"
)


class Severity(Enum):
    """How bad it is: the server or an instance is in danger; something will not work; good to know."""

    DANGER = "danger"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing found: what it is about, what is wrong and what to do."""

    severity: Severity
    about: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """CPUs and nodes as the server counts them when it balances: isolated and offline CPUs, too."""

    cpus: int
    nodes: int


def check_host(machine: Machine, cgroup_problems: Iterable[str], *, is_root: bool) -> list[Finding]:
    """The host: cgroups, permission, nodes, what sysfs does not tell."""
    found = [Finding(severity=Severity.WARNING, about="host", text=problem) for problem in cgroup_problems]
    if not is_root:
        text = (
            "not root: `daemon` and `rebalance` cannot set CPUs and memory of containers; `plan` and `topology` work, "
            "`list`, `explain` and `check` do with access to the server's socket"
        )
        found.append(Finding(severity=Severity.WARNING, about="host", text=text))
    if len(machine.nodes) < 2:
        text = "no NUMA: there is one node only; CPUs are placed, memory is not bound"
        found.append(Finding(severity=Severity.NOTE, about="host", text=text))
    found += [Finding(severity=Severity.NOTE, about="host", text=warning) for warning in machine.warnings]
    return found


def check_memory(settings: Settings, machine: Machine) -> list[Finding]:
    """Memory that is to be kept for the host: what does not fit the machine, and what is set and ignored."""
    misfits = reservations.check_reservations(settings.memory, machine)
    found = [
        Finding(severity=Severity.WARNING, about="settings", text=f"{misfit}; the daemon does not start with that")
        for misfit in misfits
    ]
    return found + [Finding(severity=Severity.NOTE, about="settings", text=unused) for unused in list_unused(settings)]


def check_instance(
    raw: ServerInstance, instance: Instance, info: ServerInfo, machine: Machine, capacity: Capacity
) -> list[Finding]:
    """One instance's keys, running or not."""
    about = str(raw.key)
    found = []
    crash = _crash(raw, info, capacity)
    if crash is not None:
        found.append(Finding(severity=Severity.DANGER, about=about, text=crash))
    if instance.problem is not None:
        key, what = instance.problem
        text = f"{key}: {what}; it is left alone until that is corrected"
        found.append(Finding(severity=Severity.WARNING, about=about, text=text))
    if raw.running and raw.type is InstanceType.CONTAINER and _limit(raw) is None:
        text = "the server cannot read its limits.cpu, and so places the CPUs of no container any more: correct it"
        found.append(Finding(severity=Severity.DANGER, about=about, text=text))
    strange = (demand.nodes_from(raw) or NodeSet()) - NodeSet(machine.node_by_id)
    if strange:
        text = f"its configuration names {show_nodes(strange)}, which this machine does not have"
        found.append(Finding(severity=Severity.WARNING, about=about, text=text))
    return found


def check_placed(instance: Instance, observed: Observed, actual: CpuSet | None, machine: Machine) -> list[Finding]:
    """A running container: is its cgroup there, and does the server's record of nodes tell the truth about its CPUs."""
    recorded = observed.nodes
    if not instance.managed:
        return []
    if observed.cpus is None:
        return [Finding(severity=Severity.WARNING, about=str(instance.key), text=NO_CGROUP)]
    nodes = machine.nodes_of(actual or CpuSet())
    if not actual or not recorded or nodes == recorded:
        return []
    text = (
        f"the server's record is not true: it says {show_nodes(recorded)}, but its CPUs {actual} are on "
        f"{show_nodes(nodes)}; `incus-numa rebalance` makes both agree"
    )
    return [Finding(severity=Severity.WARNING, about=str(instance.key), text=text)]


def check_plan(plan: Plan) -> list[Finding]:
    """Running instances that a pass refuses, but those with a bad key, which were told already."""
    return [
        Finding(severity=Severity.WARNING, about=str(one.key), text=f"refused ({one.reason.value}): {one.detail}")
        for one in plan.rejections
        if one.reason is not Reason.BAD_KEY
    ]


def check_exclusive(plan: Plan, seen: Iterable[tuple[Instance, Observed]]) -> list[Finding]:
    """Owners of exclusive CPUs that others may run on all the same, as the server lets them."""
    known, refused = tuple(seen), [one.key for one in plan.rejections]
    found = []
    for owner in (one for one in plan.placements if one.exclusive):
        text = owners.strangers(owner, known, refused)
        if text is not None:
            found.append(Finding(severity=Severity.WARNING, about=str(owner.key), text=text))
    return found


def _crash(raw: ServerInstance, info: ServerInfo, capacity: Capacity) -> str | None:
    """Why starting the instance would make this server panic, whatever else is wrong with its keys."""
    asks = raw.config.get(demand.LIMIT_NODES, "").strip() == demand.BALANCED
    limit = _limit(raw)
    if info.product is not Product.INCUS or not asks or limit is None or not quirks.panics_on_wide_balanced(info):
        return None
    vcpus = len(limit) if isinstance(limit, CpuSet) else limit
    picked = quirks.nodes_picked(vcpus, capacity.cpus, capacity.nodes)
    if picked <= capacity.nodes:
        return None
    most = max(1, capacity.cpus // max(1, capacity.nodes)) * capacity.nodes
    return (
        f"starting it would crash this server ({info.product.value} {info.version}): with limits.cpu={vcpus} and "
        f"{demand.LIMIT_NODES}=balanced it picks {picked} nodes of {capacity.nodes}; lower limits.cpu to {most} or "
        f"less, or unset {demand.LIMIT_NODES} and set {demand.OPT_IN_NODES}=balanced, which only incus-numa reads"
    )


def _limit(raw: ServerInstance) -> int | CpuSet | None:
    """`limits.cpu`, 1 when unset, None when it cannot be read."""
    text = raw.config.get("limits.cpu", "").strip()
    if text.isdecimal():
        # Too many for us to place is still a number to the server.
        return int(text[:18])
    try:
        return demand.parse_cpu_limit(text) if text else 1
    except ValueError:
        return None
