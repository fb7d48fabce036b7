"""What is wrong with instances that run: where they are, and whether the server's record tells the truth. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from incus_numa.cli.findings.finding import Finding, Kind, warning
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon import owners
from incus_numa.facts.words import count, show_nodes
from incus_numa.model.instance import Instance, MemoryMode
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Placement, Plan, Reason, Rejection
from incus_numa.model.snapshot import Decided, Observed
from incus_numa.policy.ledger import usable_cpus
from incus_numa.policy.steps import PACED_BYTES
from incus_numa.quantities import render_bytes
from incus_numa.settings import PlacementSettings

NO_CGROUP = (
    "its cgroup was not found or cannot be read, so its CPUs and memory cannot be set: expected a folder "
    "lxc.payload.NAME with cpuset.cpus in the cgroup hierarchy; is host.cgroup right?"
)

_TELLING = 10
"""A part of a guest's memory that is smaller than one of so many is not worth a word."""

SEVERAL = 2
"""Of fewer instances it is enough that each is told."""

_OF_THEIR_KEYS = {Reason.BAD_KEY.value, Reason.BAD_PIN.value}
"""Whoever is refused so has itself to blame, and not the settings."""

_EXPLAINED = {
    Reason.BAD_KEY: (Kind.BAD_KEY, Kind.LIMIT_UNREADABLE),
    Reason.BAD_PIN: (Kind.PIN_MISSING,),
    Reason.NO_MEMORY: (Kind.MEMORY_LIMIT,),
}
"""What has been said already about an instance that is refused for such a reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """One running instance: `actual` are the CPUs that its cgroup leaves it, None for a virtual machine or unknown.

    `is_forbidden` says that nobody may write its record. `answer` is what a pass would decide about it, None where it
    is not managed.
    """

    instance: Instance
    observed: Observed
    actual: CpuSet | None = None
    is_forbidden: bool = False
    answer: Placement | Rejection | None = None


def check_container(one: Running, machine: Machine) -> list[Finding]:
    """A running container: is its cgroup there, and does the server's record of nodes tell the truth about its CPUs."""
    if not one.instance.managed:
        return []
    if one.observed.cpus is None:
        text, _, do = NO_CGROUP.rpartition("; ")
        return [warning(Kind.NO_CGROUP, str(one.instance.key), text, do)]
    return [] if one.is_forbidden else _check_record(one, one.actual or CpuSet(), machine)


def check_vm(one: Running, machine: Machine, settings: PlacementSettings) -> list[Finding]:
    """A running virtual machine: are its vCPU threads where they belong, and its memory with them."""
    instance, observed = one.instance, one.observed
    if not instance.managed:
        return []
    if observed.cpus is None:
        text = (
            "its vCPU threads were not identified among those of QEMU, so none is placed: they have run no guest code "
            "yet, and neither KVM's debugfs nor their names tell"
        )
        do = "wait until the guest has booted; or mount debugfs on /sys/kernel/debug"
        return [warning(Kind.VM_THREADS_UNKNOWN, str(instance.key), text, do)]
    found = _check_floating(one, observed.cpus, machine)
    keeps_record = settings.vm_record == "never" or one.is_forbidden
    if not found and not keeps_record:
        found = _check_record(one, observed.cpus, machine)
    return found + _check_memory(one, machine, settings)


def check_plan(plan: Plan, told: Mapping[str, Set[Kind]]) -> list[Finding]:
    """Running instances that a pass refuses, but those of which `told` says that the cause was told already."""
    return [
        warning(
            Kind.REFUSED,
            str(one.key),
            f"refused ({one.reason.value}): {one.detail}; it is left as it is",
            f"see `incus-numa explain {one.key.name}`",
        )
        for one in plan.rejections
        if not told.get(str(one.key), frozenset()) & set(_EXPLAINED.get(one.reason, ()))
    ]


def check_nobody_placed(plan: Plan) -> list[Finding]:
    """Whether all of several running instances are refused, which is rarely meant."""
    refused = Counter(one.reason.value for one in plan.rejections)
    if plan.placements or refused.total() < SEVERAL or refused.keys() <= _OF_THEIR_KEYS:
        return []
    reasons = ", ".join(f"{number} by {reason}" for reason, number in sorted(refused.items()))
    text = f"none of the {refused.total()} managed instances that run can be placed: {reasons}"
    do = "what is set leaves them nothing, or the host is too small: look at `incus-numa policy get`"
    return [warning(Kind.NOBODY_PLACED, "settings", text, do)]


def check_few_cpus(running: Iterable[Instance], machine: Machine, settings: PlacementSettings) -> list[Finding]:
    """Managed instances that would have as many CPUs as they ask for if the settings kept none of them back."""
    usable = sum(map(len, usable_cpus(machine, CpuSet.parse(settings.reserved_cpus)).values()))
    unkept = sum(map(len, usable_cpus(machine, CpuSet()).values()))
    short = [one for one in running if one.managed and usable < (one.demand.vcpus or 0) <= unkept]
    if not short or not usable:
        return []
    text = (
        f"placement.reserved_cpus leaves {count(usable, 'CPU')} of {unkept} to instances, and "
        f"{len(short)} of those that run and are managed ask for more"
    )
    return [warning(Kind.FEW_CPUS, "settings", text, "reserve fewer (`incus-numa policy get` shows what is set)")]


def check_exclusive(plan: Plan, seen: Iterable[tuple[Instance, Observed]]) -> list[Finding]:
    """Owners of exclusive CPUs that others may run on all the same, as the server lets them."""
    known, refused = tuple(seen), [one.key for one in plan.rejections]
    found = []
    for owner in (one for one in plan.placements if one.exclusive):
        text = owners.strangers(owner, known, refused)
        if text is not None:
            do = "let incus-numa place the others, or give them CPUs or nodes of their own"
            found.append(warning(Kind.NOT_EXCLUSIVE, str(owner.key), text, do))
    return found


def _check_record(one: Running, cpus: CpuSet, machine: Machine) -> list[Finding]:
    recorded, nodes = one.observed.nodes, machine.nodes_of(cpus)
    if not cpus or not recorded or nodes == recorded or not recorded <= NodeSet(machine.node_by_id):
        return []
    if _is_as_decided(one, recorded, cpus, nodes):
        return []
    text = (
        f"the server's record is not true: it says {show_nodes(recorded)}, but its CPUs {cpus} are on "
        f"{show_nodes(nodes)}"
    )
    if one.observed.followed:
        text += ", and the server moves it there when it next rewrites CPUs"
    do = _once_placed(one, "`incus-numa rebalance` makes both agree")
    return [warning(Kind.RECORD_UNTRUE, str(one.instance.key), text, do)]


def _is_as_decided(one: Running, recorded: NodeSet, cpus: CpuSet, nodes: NodeSet) -> bool:
    """Whether CPUs on other nodes than the record's are meant: one that is wide for its memory has CPUs on some only.

    Where it is not known what was decided, what a pass decides counts.
    """
    decided: Decided | Placement | None = one.observed.decided
    if decided is None and isinstance(one.answer, Placement):
        decided = one.answer
    if decided is None or decided.nodes != recorded:
        return False
    return cpus == decided.cpus or (nodes <= recorded and len(cpus) < len(recorded))


def _once_placed(one: Running, do: str) -> str:
    """What to do, where a pass does it; of a refused instance a pass leaves everything."""
    if not isinstance(one.answer, Rejection):
        return do
    if one.answer.reason is Reason.BAD_KEY:
        return f"correct its keys first, then {do}"
    return f"a pass leaves it, as it is refused ({one.answer.reason.value}): when it can be placed, {do}"


def _check_floating(one: Running, cpus: CpuSet, machine: Machine) -> list[Finding]:
    home = _home(one, machine)
    pinned = one.instance.demand.pinned_cpus
    allowed = pinned if pinned is not None else machine.cpus_of(home)
    if allowed and cpus <= allowed:
        return []
    nodes = machine.nodes_of(cpus)
    if pinned is None and (not home <= nodes or (not home and len(nodes) < 2)):
        # All of it is elsewhere: the record is not true, and nothing floats.
        return []
    belong = f"CPUs {pinned}" if pinned is not None else show_nodes(home) if home else "the nodes of one placement"
    text = (
        f"its vCPUs float: they may run on CPUs {cpus} ({show_nodes(nodes)}), and belong on {belong}; the server "
        "leaves those of machines with one vCPU or an explicit topology so"
    )
    do = _once_placed(one, "`incus-numa rebalance` places them")
    return [warning(Kind.VM_FLOATING, str(one.instance.key), text, do)]


def _check_memory(one: Running, machine: Machine, settings: PlacementSettings) -> list[Finding]:
    """Memory on other nodes than the vCPUs, and memory that will be there as the server bound it at start."""
    observed, home = one.observed, _home(one, machine) & machine.memory_nodes
    if not home or one.instance.memory is MemoryMode.NONE:
        return []
    by_node = observed.memory or {}
    total, away = sum(by_node.values()), NodeSet(node for node, size in by_node.items() if size and node not in home)
    outside = sum(by_node[node] for node in away)
    is_bound_away = bool(observed.bound) and observed.bound is not None and not observed.bound <= home
    is_much = outside >= PACED_BYTES and outside * _TELLING >= total
    if not is_much and not is_bound_away:
        return []
    parts = []
    if is_much:
        parts.append(f"{render_bytes(outside)} of its {render_bytes(total)} are on {show_nodes(away)}")
    if is_bound_away and observed.bound is not None:
        parts.append(
            f"the server bound it to {show_nodes(observed.bound)} at start, where all that the guest touches later is"
        )
    text = f"its memory is not with its vCPUs on {show_nodes(home)}: {'; '.join(parts)}"
    do = "restart it, and its memory is allocated anew"
    if is_much and settings.vm_memory == "keep":
        do = f'set placement.vm_memory = "migrate" to move what is there, or {do}'
    return [warning(Kind.VM_MEMORY, str(one.instance.key), text, do)]


def _home(one: Running, machine: Machine) -> NodeSet:
    """The nodes that a virtual machine belongs on: those we decided, else those that the server recorded."""
    return (one.observed.home or NodeSet()) & NodeSet(machine.node_by_id)
