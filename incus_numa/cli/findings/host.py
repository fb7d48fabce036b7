"""What is wrong with the host: cgroups, permission, what the kernel cannot do, memory that is kept for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from incus_numa.cli.findings.finding import Finding, Kind, note, warning
from incus_numa.facts.words import count
from incus_numa.host.features import Capability, KernelFeatures
from incus_numa.model.machine import Machine
from incus_numa.model.snapshot import Observed
from incus_numa.policy import reservations
from incus_numa.settings import Settings, list_unused

HOST, SETTINGS, DAEMON = "host", "settings", "daemon"

ENDED = "where it is enabled, `systemctl status incus-numa` and `journalctl -u incus-numa` say why it ended"

_NEEDED_FOR = {
    Capability.NICE: "threads of virtual machines cannot be placed, and memory cannot be moved in slices",
    Capability.TRACE: "memory cannot be moved in slices",
    Capability.ADMIN: "what was decided for a container is forgotten when the daemon restarts",
}


def check_host(
    machine: Machine, features: KernelFeatures, cgroup_problems: Iterable[str], *, is_root: bool
) -> list[Finding]:
    """The host: cgroups, permission, nodes, what sysfs does not tell."""
    found = [_split(Kind.CGROUPS, problem) for problem in cgroup_problems]
    found += _check_permission(features, is_root=is_root)
    if features.has_nodes is False:
        text = "the kernel shows no NUMA nodes (CONFIG_NUMA): all is taken as one node, CPUs are placed, memory is not"
        found.append(note(Kind.NO_NUMA, HOST, text, "boot a kernel with CONFIG_NUMA, if the machine has nodes"))
    elif len(machine.nodes) < 2:
        found.append(note(Kind.NO_NUMA, HOST, "there is one node only: CPUs are placed, memory is not bound"))
    if len(machine.nodes) > 1:
        found += _check_features(features)
    told = () if features.has_nodes is not False else ("no NUMA information",)
    warnings = (one for one in machine.warnings if not one.startswith(told or "\0"))
    return found + [note(Kind.HARDWARE, HOST, one) for one in warnings]


def check_memory(settings: Settings, machine: Machine) -> list[Finding]:
    """Memory that is to be kept for the host: what does not fit the machine, and what is set and ignored."""
    misfits = reservations.check_reservations(settings.memory, machine)
    do = "correct [memory]: the daemon does not start with that"
    found = [warning(Kind.RESERVATION, SETTINGS, misfit, do) for misfit in misfits]
    return found + [note(Kind.UNUSED_SETTING, SETTINGS, unused) for unused in list_unused(settings)]


def check_settings(problems: Iterable[str]) -> list[Finding]:
    """Settings that cannot work here, a sentence each with what is expected."""
    do = "correct the configuration, or what `incus-numa policy get` shows as set"
    return [warning(Kind.BAD_SETTING, SETTINGS, problem, do) for problem in problems]


def check_usable(machine: Machine) -> list[Finding]:
    """Whether the machine has a CPU for instances at all, whatever is set."""
    if not machine.online or machine.online - machine.isolated:
        return []
    text = f"every CPU that is online is isolated ({machine.online}): instances are refused (no-cpus)"
    return [warning(Kind.NO_USABLE_CPU, HOST, text, "leave CPUs out of isolcpus, or of the isolated partition")]


def check_policy(left_out: Iterable[str]) -> list[Finding]:
    """What was set while the daemon runs and is not in force, a sentence each."""
    do = "set it anew (`incus-numa policy set`), or go back to the file (--reset)"
    return [warning(Kind.BAD_SETTING, SETTINGS, problem, do) for problem in left_out]


def check_daemon(pid: str | None, placeable: Iterable[Observed]) -> list[Finding]:
    """Whether somebody looks after what runs, is managed and can be placed. `pid` is None where no daemon runs."""
    running = list(placeable)
    if pid is not None:
        return []
    start = "systemctl enable --now incus-numa"
    if not running:
        text = "no daemon runs: instances that ask for it will not be placed when they start"
        return [note(Kind.NO_DAEMON, DAEMON, text, f"{start}; {ENDED}")]
    if all(one.decided is not None for one in running):
        text = "no daemon runs: instances are placed when `incus-numa rebalance` is called, and the server may undo it"
        return [note(Kind.NO_DAEMON, DAEMON, text, f"{start}, or incus-numa-rebalance.timer; {ENDED}")]
    waiting = sum(one.decided is None for one in running)
    text = f"no daemon runs: {waiting} of {len(running)} managed instances that run have not been placed"
    return [warning(Kind.NO_DAEMON, DAEMON, text, f"{start}; {ENDED}")]


def check_balancing(features: KernelFeatures, machine: Machine, running: Iterable[Observed]) -> list[Finding]:
    """Whether the kernel's own NUMA balancing works on instances whose memory is bound."""
    bound = sum(_is_bound(one, machine) for one in running)
    if not features.numa_balancing or not bound or len(machine.nodes) < 2:
        return []
    text = (
        f"the kernel's NUMA balancing is on, and costs {count(bound, 'instance')} with bound memory page faults for "
        "nothing"
    )
    do = "sysctl kernel.numa_balancing=0, unless instances whose memory is not bound gain more by it"
    return [note(Kind.NUMA_BALANCING, HOST, text, do)]


def _check_permission(features: KernelFeatures, *, is_root: bool) -> list[Finding]:
    if not is_root:
        text = (
            "not root: `daemon` and `rebalance` cannot set CPUs and memory of instances; `plan` and `topology` work, "
            "`list`, `explain` and `check` do with access to the server's socket"
        )
        return [warning(Kind.PERMISSION, HOST, text, "run as root")]
    found = []
    for capability in sorted(features.missing, key=lambda one: one.value):
        text = f"root without {capability.value}: {_NEEDED_FOR[capability]}"
        do = "run where root has it: not in a container, and not with a smaller CapabilityBoundingSet"
        found.append(warning(Kind.PERMISSION, HOST, text, do))
    return found


def _check_features(features: KernelFeatures) -> list[Finding]:
    found = []
    if features.no_page_moves is not None:
        text = (
            f"memory cannot be moved in slices ({features.no_page_moves}): it is moved at once when its binding is "
            "narrowed, which stalls the instance meanwhile"
        )
        found.append(note(Kind.PAGE_MOVES, HOST, text, "boot a kernel with CONFIG_MIGRATION"))
    if features.pressure is False:
        text = "the kernel keeps no pressure figures (PSI): load is what instances use, and not what they wait for"
        found.append(note(Kind.PRESSURE, HOST, text, "boot with psi=1, or a kernel with CONFIG_PSI"))
    if features.keeps_marks is False:
        text = (
            "cgroups keep no extended attributes: what was decided is forgotten when the daemon restarts, and each "
            "instance may be placed anew then"
        )
        found.append(note(Kind.DECISIONS_NOT_KEPT, HOST, text))
    return found


def _is_bound(observed: Observed, machine: Machine) -> bool:
    """Whether memory may not be everywhere: the cpuset of a container, or what the server bound of a guest."""
    mems = observed.mems if observed.mems is not None else observed.bound
    return bool(mems) and mems is not None and not machine.memory_nodes <= mems


def _split(kind: Kind, problem: str) -> Finding:
    """A sentence that ends with what to do."""
    text, _, do = problem.rpartition("; ")
    if not text:
        text, _, do = problem.rpartition(": ")
    return warning(kind, HOST, text or problem, do if text else "")
