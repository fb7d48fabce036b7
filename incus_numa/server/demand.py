"""What an instance's configuration means for placing it: whether it is managed, and its demand. Pure.

Key formats: doc/reference/instance_options.md of Incus; our own keys are in the README. Called by the daemon and the
one-shot commands for every instance a server lists. Garbage in a key never raises: it becomes the problem of that
one instance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from math import prod
from typing import TypeVar

from incus_numa import quantities
from incus_numa.cpuset import MAX_ID, CpuSet, NodeSet
from incus_numa.model.devices import NOTHING_FOUND, Device, Found
from incus_numa.model.instance import GROUP_NAME, GROUP_RULE, Demand, Instance, InstanceType, MemoryMode, Policy
from incus_numa.model.machine import CoreKind, Machine
from incus_numa.server import devices
from incus_numa.server.protocol import ServerInfo, ServerInstance
from incus_numa.settings import PlacementSettings

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

LIMIT_NODES = "limits.cpu.nodes"
OPT_IN_NODES = "user.limits.cpu.nodes"
VOLATILE_NODES = "volatile.cpu.nodes"
BALANCED = "balanced"
BALANCED_EXTENSION = "numa_cpu_balanced"
"""The API extension that brings `balanced` with its record."""
AUTO, IGNORE = "auto", "ignore"

OWN_PREFIX = "user.numa."
_OWN_KEYS = tuple(
    OWN_PREFIX + name for name in ("policy", "memory", "group", "avoid", "movable", "cores", "exclusive", "devices")
)
_HUGEPAGES = {
    "limits.hugepages.64KB": 64 << 10,
    "limits.hugepages.1MB": 1 << 20,
    "limits.hugepages.2MB": 2 << 20,
    "limits.hugepages.1GB": 1 << 30,
}
_USUAL_PAGE_BYTES = 2 << 20
_VM_MEMORY_BYTES = 1 << 30
_MAX_TEXT = 4096
_COUNT = re.compile(r"[0-9]{1,64}")
_TOPOLOGY = re.compile(r"(sockets|cores|threads)\s*=\s*([0-9]{1,6})")
_PERCENT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*%")
_SLICE = re.compile(r"([0-9]{1,9})\s*(?:ms)?\s*/\s*([0-9]{1,9})\s*(?:ms)?")
# The words of the server's own booleans (shared/util/value.go: IsTrue, IsFalse).
_BOOLEANS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


class _Keys:
    """Reads keys of one configuration; a bad value gives the default and is remembered as a problem."""

    def __init__(self, config: Mapping[str, str]) -> None:
        self.config = config
        self.problems: list[tuple[str, str]] = []

    def read(self, key: str, parse: Callable[[str], T], *, default: T) -> T:
        """The key's value, parsed; the default when it is unset, empty or bad."""
        text = self.config.get(key, "").strip()
        if not text:
            return default
        try:
            if len(text) > _MAX_TEXT:
                raise ValueError(f"{len(text)} characters are too long, expected at most {_MAX_TEXT}")
            return parse(text)
        except ValueError as error:
            self.problems.append((key, str(error)))
            return default


def nodes_key(info: ServerInfo) -> str | None:
    """The key that the decision is written to, which the server then follows; None where it has none.

    Asked for by API extension: with `balanced` came its record; before that, and on LXD, nodes can be named.
    """
    if BALANCED_EXTENSION in info.extensions:
        return VOLATILE_NODES
    return LIMIT_NODES if "numa_cpu_placement" in info.extensions else None


def record_key(instance: ServerInstance, servers: str | None) -> str | None:
    """The key for the record of one instance: the `servers`, unless this instance names its nodes itself.

    Where an opted-in instance has a list in `limits.cpu.nodes`, that is what any server follows. It reads that of a
    virtual machine at the next start only, so there it is no record.
    """
    key = LIMIT_NODES if has_opted_in(instance) and _named_nodes(instance) else servers
    return None if key == LIMIT_NODES and instance.type is InstanceType.VIRTUAL_MACHINE else key


def has_opted_in(instance: ServerInstance) -> bool:
    """Whether it is managed whatever is in `limits.cpu.nodes`."""
    return instance.config.get(OPT_IN_NODES, "").strip() == BALANCED


def asks_for_place(instance: ServerInstance) -> bool:
    """Whether it is managed by a key that says so; one with a bad value is managed, too, but never placed."""
    return has_opted_in(instance) or instance.config.get(LIMIT_NODES, "").strip() == BALANCED


def nodes_from(instance: ServerInstance) -> NodeSet | None:
    """The nodes that the server follows, by its configuration; None when that names none or cannot be read.

    A record is followed only where no list of nodes is in its way.
    """
    text = _named_nodes(instance) or instance.config.get(VOLATILE_NODES, "").strip()
    try:
        return parse_nodes(text) if text else None
    except ValueError:
        return None


def follows_nodes(instance: ServerInstance) -> bool:
    """Whether the server keeps the instance on `nodes_from`: a record counts only beside `limits.cpu.nodes=balanced`.

    Once that is unset the record stays as it is, whatever happens to the CPUs.
    """
    return bool(instance.config.get(LIMIT_NODES, "").strip())


def _named_nodes(instance: ServerInstance) -> str:
    """The list in `limits.cpu.nodes`; empty where there is none."""
    named = instance.config.get(LIMIT_NODES, "").strip()
    return "" if named == BALANCED else named


def instance_from(
    raw: ServerInstance, machine: Machine, settings: PlacementSettings, found: Found = NOTHING_FOUND
) -> Instance:
    """The instance as the planner sees it. Never raises: the bad keys of a managed one are its `problems`.

    An unmanaged instance only counts as load, so a bad key of its own counts as unset. A value of the opt-in keys
    that means nothing makes the instance managed with a problem: it is left alone, and the typing error is told.
    `found` is what there is of its devices on the host (see `server.devices`).
    """
    instance, problems = _read(raw, machine, settings, found)
    return replace(instance, problems=problems) if instance.managed and problems else instance


def list_bad_own_keys(
    raw: ServerInstance, machine: Machine, settings: PlacementSettings
) -> tuple[tuple[str, str], ...]:
    """Bad keys `user.numa.*` of an instance, managed or not, and what is wrong with each."""
    _, problems = _read(raw, machine, settings, NOTHING_FOUND)
    return tuple(one for one in problems if one[0].startswith(OWN_PREFIX))


def _read(
    raw: ServerInstance, machine: Machine, settings: PlacementSettings, found: Found
) -> tuple[Instance, tuple[tuple[str, str], ...]]:
    """The instance and the problems with its keys, managed or not."""
    keys = _Keys(raw.config)
    limited = keys.read(LIMIT_NODES, _parse_limit_nodes, default=False)
    opted_in = keys.read(OPT_IN_NODES, _parse_opt_in, default=False)
    managed = limited or opted_in or bool(keys.problems)
    demand = _demand(keys, raw, machine)
    keys.read(VOLATILE_NODES, parse_nodes, default=NodeSet())
    for key in sorted(raw.config):
        if key.startswith(OWN_PREFIX) and key not in _OWN_KEYS:
            keys.problems.append((key, f"unknown key, expected one of {', '.join(_OWN_KEYS)}"))
    group: str | None = None
    own_devices = _devices(keys, raw, machine, settings, found)
    policy = keys.read(OWN_PREFIX + "policy", _choice(Policy), default=Policy.BALANCED)
    memory = keys.read(OWN_PREFIX + "memory", _choice(MemoryMode), default=MemoryMode(settings.memory))
    stays = settings.vm_memory == "keep" or memory is MemoryMode.NONE
    instance = Instance(
        key=raw.key,
        type=raw.type,
        managed=managed,
        demand=demand,
        policy=policy,
        memory=memory,
        group=keys.read(OWN_PREFIX + "group", _parse_group, default=group),
        avoid=keys.read(OWN_PREFIX + "avoid", _parse_groups, default=()),
        device_nodes=devices.nodes_of(own_devices),
        movable=keys.read(OWN_PREFIX + "movable", _parse_boolean, default=True),
        memory_stays=raw.type is InstanceType.VIRTUAL_MACHINE and stays,
        devices=own_devices,
    )
    return instance, tuple(keys.problems)


def parse_nodes(text: str) -> NodeSet:
    """Node ids in the server's list format. Raises ValueError, saying what is expected."""
    nodes = _parse_ids(NodeSet, text)
    if not nodes:
        raise ValueError(f"bad node list {_short(text)}: expected node ids such as 0-1,3")
    return nodes


def parse_cpu_limit(text: str) -> int | CpuSet:
    """`limits.cpu`: a number of vCPUs (`4`, `sockets=2,cores=4,threads=2`), or CPUs to pin to (`0-3,8`, `1-1`).

    Raises ValueError, saying what is expected.
    """
    if _COUNT.fullmatch(text):
        return _checked_count(int(text), text)
    if "=" in text:
        return _parse_topology(text)
    if text.startswith((",", "-")) or text.endswith((",", "-")):
        raise ValueError(f"bad CPU list {_short(text)}: expected no separator at its ends")
    return _parse_ids(CpuSet, text)


def parse_allowance(text: str, vcpus: int, most: float) -> float:
    """CPUs that `limits.cpu.allowance` leaves: a share of the vCPUs (`50%`) or a time slice (`25ms/100ms`).

    A slice is CPU time over all vCPUs, so it is a number of CPUs, `most` at most. Raises ValueError.
    """
    percent = _PERCENT.fullmatch(text)
    if percent and float(percent[1]) > 0:
        return vcpus * min(1.0, float(percent[1]) / 100)
    part = _SLICE.fullmatch(text)
    if part and int(part[1]) > 0 and int(part[2]) > 0:
        return min(most, int(part[1]) / int(part[2]))
    raise ValueError(f"bad CPU allowance {_short(text)}: expected for example 50% or 25ms/100ms, more than 0")


def parse_memory_limit(text: str, total_bytes: int) -> int | None:
    """`limits.memory` in bytes; None for a percentage of an unknown total. Raises ValueError."""
    if text.endswith("%"):
        fraction = quantities.parse_percent(text[:40])
        if fraction == 0:
            raise ValueError(f"bad memory limit {_short(text)}: expected more than 0%")
        return int(total_bytes * fraction) or None
    size = quantities.parse_bytes(text[:40])
    if not 0 < size <= quantities.MAX_BYTES:
        raise ValueError(f"bad memory limit {_short(text)}: expected more than 0 and less than 8 EiB")
    return size


def _demand(keys: _Keys, raw: ServerInstance, machine: Machine) -> Demand:
    virtual = raw.type is InstanceType.VIRTUAL_MACHINE
    unset: int | CpuSet | None = 1 if virtual else None
    limit = keys.read("limits.cpu", parse_cpu_limit, default=unset)
    pinned = limit if isinstance(limit, CpuSet) else None
    vcpus = len(limit) if isinstance(limit, CpuSet) else limit
    count = vcpus or 1
    most = float(vcpus or max(1, len(machine.online)))
    weight = keys.read("limits.cpu.allowance", lambda text: parse_allowance(text, count, most), default=float(count))
    memory = keys.read(
        "limits.memory",
        lambda text: parse_memory_limit(text, machine.memory_bytes),
        default=_VM_MEMORY_BYTES if virtual else None,
    )
    demand = Demand(
        vcpus=vcpus,
        # The server applies an allowance to containers only.
        weight=float(count) if virtual else weight,
        memory_bytes=memory or raw.memory_usage,
        memory_is_usage=memory is None and raw.memory_usage is not None,
        pinned_cpus=pinned,
        hugepages={} if virtual else _read_hugepages(keys),
        cores=keys.read(OWN_PREFIX + "cores", _parse_cores, default=None),
        exclusive=keys.read(OWN_PREFIX + "exclusive", _parse_boolean, default=False),
    )
    if virtual and keys.read("limits.memory.hugepages", _parse_boolean, default=False):
        return _in_hugepages(demand, machine)
    return demand


def _devices(
    keys: _Keys, raw: ServerInstance, machine: Machine, settings: PlacementSettings, found: Found
) -> tuple[Device, ...]:
    key = OWN_PREFIX + "devices"
    count = keys.read(key, _parse_devices, default=True)
    return devices.locate(raw, found, machine, settings) if count else devices.ignore(raw, f"{key}={IGNORE}")


def _read_hugepages(keys: _Keys) -> dict[int, int]:
    """Page size to bytes. The server's keys are limits of the cgroup, which the kernel rounds down to whole pages."""
    found = {}
    for key, size in _HUGEPAGES.items():
        amount = keys.read(key, _parse_hugepages, default=0) // size * size
        if amount:
            found[size] = amount
    return found


def _in_hugepages(demand: Demand, machine: Machine) -> Demand:
    """A virtual machine whose whole memory is huge pages of the host's default size, and so none of it ordinary.

    The host's default size is that of its only huge pages, else the usual one.
    """
    sizes = {size for node in machine.nodes for size in node.hugepages}
    size = sizes.pop() if len(sizes) == 1 else _USUAL_PAGE_BYTES
    return replace(demand, memory_bytes=0, hugepages={size: -(-(demand.memory_bytes or 0) // size) * size})


def _parse_hugepages(text: str) -> int:
    size = quantities.parse_bytes(text[:40])
    if size > quantities.MAX_BYTES:
        raise ValueError(f"bad amount {_short(text)}: expected less than 8 EiB")
    return size


def _parse_cores(text: str) -> CoreKind | None:
    """The kind of cores; None for any. Raises ValueError."""
    return None if text == "any" else _choice(CoreKind, "any")(text)


def _parse_devices(text: str) -> bool:
    """Whether devices draw the instance to their nodes. Raises ValueError."""
    if text not in (AUTO, IGNORE):
        raise ValueError(f"bad value {_short(text)}: expected {AUTO} or {IGNORE}")
    return text == AUTO


def _parse_topology(text: str) -> int:
    counts: dict[str, int] = {}
    for element in text.split(","):
        match = _TOPOLOGY.fullmatch(element.strip())
        if match is None or match[1] in counts:
            raise ValueError(f"bad CPU topology {_short(text)}: expected sockets=N,cores=N,threads=N")
        counts[match[1]] = int(match[2])
    return _checked_count(prod(counts.values()), text)


def _checked_count(count: int, text: str) -> int:
    if count < 1:
        raise ValueError(f"bad number of vCPUs {_short(text)}: expected 1 or more, or a CPU list such as 0-3,8")
    return min(count, MAX_ID)


S = TypeVar("S", CpuSet, NodeSet)


def _parse_ids(kind: type[S], text: str) -> S:
    try:
        return kind.parse(text)
    except ValueError as error:
        raise ValueError(f"{str(error)[:120]}, expected ids such as 4 or 0-3,8") from error


def _parse_limit_nodes(text: str) -> bool:
    """Whether the server is told to balance; a list of nodes is the user's own choice. Raises ValueError."""
    if text == BALANCED:
        return True
    try:
        parse_nodes(text)
    except ValueError:
        raise ValueError(f"bad value {_short(text)}: expected balanced or node ids such as 0-1,3") from None
    return False


def _parse_opt_in(text: str) -> bool:
    if text != BALANCED:
        raise ValueError(f"bad value {_short(text)}: expected balanced")
    return True


def _choice(kind: type[E], *others: str) -> Callable[[str], E]:
    def parse(text: str) -> E:
        for member in kind:
            if member.value == text:
                return member
        names = (*others, *(one.value for one in kind))
        raise ValueError(f"bad value {_short(text)}: expected one of {', '.join(names)}")

    return parse


def _parse_group(text: str) -> str:
    if not GROUP_NAME.fullmatch(text):
        raise ValueError(f"bad group name {_short(text)}: expected {GROUP_RULE}")
    return text


def _parse_groups(text: str) -> tuple[str, ...]:
    names = (name.strip() for name in text.split(","))
    return tuple(dict.fromkeys(_parse_group(name) for name in names if name))


def _parse_boolean(text: str) -> bool:
    value = _BOOLEANS.get(text.lower())
    if value is None:
        raise ValueError(f"bad value {_short(text)}: expected true or false")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
