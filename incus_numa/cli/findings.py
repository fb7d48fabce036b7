"""What `check` finds wrong with a host, a server and its instances. Pure: values in, sentences out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from incus_numa.cpuset import CpuSet
from incus_numa.daemon.observe import Seen
from incus_numa.model.instance import Instance
from incus_numa.model.machine import Machine
from incus_numa.server import demand, quirks
from incus_numa.server.protocol import Product, ServerInfo, ServerInstance


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


def check_host(machine: Machine, cgroup_problems: Iterable[str], *, is_root: bool) -> list[Finding]:
    """The host: cgroups, permission, nodes, what sysfs does not tell."""
    found = [Finding(severity=Severity.WARNING, about="host", text=problem) for problem in cgroup_problems]
    if not is_root:
        text = "not root: nothing can be applied; `plan`, `topology` and (with access to the socket) `list` work"
        found.append(Finding(severity=Severity.WARNING, about="host", text=text))
    if len(machine.nodes) < 2:
        text = "this host has one NUMA node: CPUs are placed, memory is not bound"
        found.append(Finding(severity=Severity.NOTE, about="host", text=text))
    found += [Finding(severity=Severity.NOTE, about="host", text=warning) for warning in machine.warnings]
    return found


def check_instance(raw: ServerInstance, instance: Instance, info: ServerInfo, machine: Machine) -> list[Finding]:
    """One instance's keys, running or not."""
    found = []
    about = str(raw.key)
    if instance.problem is not None:
        key, what = instance.problem
        text = f"{key}: {what}; it is refused until that is corrected"
        found.append(Finding(severity=Severity.WARNING, about=about, text=text))
    if instance.problem is None and _crashes(raw, instance, info, machine):
        picked = quirks.nodes_picked(instance.demand.vcpus or 1, len(machine.cpus), len(machine.nodes))
        text = (
            f"starting it would crash this server ({info.product.value} {info.version}): limits.cpu="
            f"{instance.demand.vcpus} with {demand.LIMIT_NODES}=balanced makes it pick {picked} "
            f"of {len(machine.nodes)} nodes; lower limits.cpu to at most {len(machine.cpus)}, "
            f"or unset {demand.LIMIT_NODES} and set {demand.OPT_IN_NODES}=balanced, which only incus-numa reads"
        )
        found.append(Finding(severity=Severity.DANGER, about=about, text=text))
    if instance.problem is not None and instance.problem[0] == "limits.cpu" and raw.running:
        text = "its limits.cpu stops the server's own CPU balancing for all containers"
        found.append(Finding(severity=Severity.WARNING, about=about, text=text))
    return found


def check_placed(seen: Seen, actual: CpuSet | None, machine: Machine) -> list[Finding]:
    """Whether the server's record of nodes tells the truth about the CPUs an instance really runs on."""
    if actual is None or not seen.observed.nodes or not seen.instance.managed:
        return []
    nodes = machine.nodes_of(actual)
    if nodes <= seen.observed.nodes:
        return []
    text = (
        f"{demand.VOLATILE_NODES} says nodes {seen.observed.nodes}, but its CPUs {actual} are on nodes {nodes}; "
        "`incus-numa rebalance` makes both agree"
    )
    return [Finding(severity=Severity.WARNING, about=str(seen.instance.key), text=text)]


def _crashes(raw: ServerInstance, instance: Instance, info: ServerInfo, machine: Machine) -> bool:
    asks = raw.config.get(demand.LIMIT_NODES, "").strip() == demand.BALANCED
    if info.product is not Product.INCUS or not asks or not quirks.panics_on_wide_balanced(info):
        return False
    vcpus = instance.demand.vcpus
    nodes = len(machine.nodes)
    return vcpus is not None and nodes > 0 and quirks.nodes_picked(vcpus, len(machine.cpus), nodes) > nodes
