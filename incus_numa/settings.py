"""The configuration: one frozen type per TOML table, with defaults, meaning and limits beside each key. Pure.

`parse_settings` turns the text of `/etc/incus-numa/config.toml` into Settings or raises ConfigError with every
problem at once. `render_settings` writes every key with its meaning, which is how `examples/config.toml` is made.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec
import toml

from incus_numa import quantities
from incus_numa.cpuset import MAX_ID, CpuSet
from incus_numa.errors import ConfigError

Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=86400)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1000)]
Margin = Annotated[float, msgspec.Meta(ge=0.01, le=10)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


LEAST_PACE = 1 << 20
"""Bytes per second below which memory would never arrive."""

_NODE_ID = re.compile(r"0|[1-9][0-9]{0,4}")


def key(default: Any, meaning: str) -> Any:
    """A settings key with its default and the sentence that `config show` and the example print."""
    return field(default=default, metadata={"meaning": meaning})


class Reservation(NamedTuple):
    """Memory of one node that is kept for the host."""

    node: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How to reach Incus or LXD."""

    product: Literal["auto", "incus", "lxd"] = key(
        "auto", 'Which server is meant where both are installed; "auto": Incus if there is one, else LXD.'
    )
    socket: str = key("", "Unix socket of the server; empty: where the server usually has it.")
    timeout_s: Seconds = key(30.0, "How long one request may take, in seconds (0.1 to 86400).")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSettings:
    """Where the kernel's trees are. Other values than the defaults serve tests and the simulator."""

    sysfs: str = key("/sys", "Mount point of sysfs.")
    procfs: str = key("/proc", "Mount point of procfs.")
    cgroup: str = key(
        "/sys/fs/cgroup", "Mount point of the cgroup v2 hierarchy, or of the folder with the cgroup v1 hierarchies."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementSettings:
    """How nodes and CPUs are chosen."""

    smt: Literal["spread", "pack"] = key(
        "spread", 'How threads of a core are used: "spread" takes idle cores first, "pack" fills cores.'
    )
    memory: Literal["local", "bind", "none"] = key(
        "local",
        'Memory binding where user.numa.memory is not set: "local" binds one-node placements, "bind" all, "none" none.',
    )
    reserved_cpus: str = key("", "CPUs kept for the host, in kernel list format; never given to an instance.")
    vm_memory: Literal["keep", "migrate"] = key(
        "keep",
        'Memory that a VM has on other nodes than its placement: "keep" leaves it there, "migrate" moves it; what the '
        "guest touches later still comes from where the server bound it at start.",
    )
    vm_record: Literal["once", "never"] = key(
        "once",
        'Whether volatile.cpu.nodes of a running VM is written, "once" for each placement; the server then restarts '
        "QEMU at the guest's next reboot.",
    )
    restricted_record: Literal["none", "limits"] = key(
        "none",
        'Where a project forbids volatile.cpu.nodes: "none" sets CPUs and memory only, "limits" also writes the nodes '
        "to limits.cpu.nodes, in the place of balanced.",
    )
    load_weight: Weight = key(1.0, "Weight of the resulting load of the chosen nodes (0 to 1000).")
    distance_weight: Weight = key(
        0.1, "Weight of the mean distance between the chosen nodes, local distance being 1 (0 to 1000)."
    )
    device_weight: Weight = key(2.0, "Weight of the mean distance to the nodes of the instance's devices (0 to 1000).")
    group_weight: Weight = key(2.0, "Weight of the mean distance to members of the same user.numa.group (0 to 1000).")
    avoid_weight: Weight = key(
        3.0, "Weight of sharing nodes with instances that are kept apart by user.numa.avoid (0 to 1000)."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySettings:
    """What is kept of the nodes' memory for the host. Amounts are 8GiB, 8G, 500M, 8500Mi or bytes.

    `reserved` is ordered by node.
    """

    policy: Literal["none", "static"] = key(
        "none", '"none": nothing is kept and the reservations are ignored; "static": they are, and must be right.'
    )
    reserved_total: int = key(
        0, 'What is kept for the host in all; with "static" the reservations of the nodes must add up to it.'
    )
    reserved: tuple[Reservation, ...] = key(
        (), 'What is kept of each node: node id to amount, such as {"0" = "2GiB", "1" = "1GiB"}.'
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonSettings:
    """When the daemon looks."""

    resync_s: Seconds = key(60.0, "Everything is looked at again this often, in seconds (0.1 to 86400).")
    verify_s: tuple[Seconds, ...] = key(
        (0.5, 2.0, 10.0), "After a start, stop or change the cpusets are read again after these seconds."
    )
    write_timeout_s: Seconds = key(
        30.0, "How long a write of cpuset.mems, which moves memory, is waited for, in seconds (0.1 to 86400)."
    )
    run_dir: str = key(
        "/run/incus-numa", "Where the daemon's lock is: there can be one daemon for each such directory."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RebalanceSettings:
    """When running instances are moved by their measured load, and how fast."""

    enabled: bool = key(
        default=True, meaning="Whether the daemon and the timer move running instances by measured load."
    )
    interval_s: Seconds = key(10.0, "The daemon samples and decides this often, in seconds (0.1 to 86400).")
    time_constant_s: Seconds = key(
        30.0, "Rates are smoothed with this time constant, in seconds (0.1 to 86400): older use counts less and less."
    )
    margin: Margin = key(
        0.1, "Act when the highest load of a node is above the mean by more than this part of it (0.01 to 10)."
    )
    hold_s: Seconds = key(30.0, "... and has been for so long, in seconds (0.1 to 86400).")
    cooldown_s: Seconds = key(600.0, "An instance that was moved stays for so long, in seconds (0.1 to 86400).")
    max_moves: Count = key(10, "Move at most so many instances at a time (1 to 10000).")
    max_bytes: int = key(
        16 << 30, "Move at most so much memory at a time, or one larger instance: 16GiB, 500M or bytes."
    )
    move_price: Weight = key(
        0.01,
        "What any move costs; it must gain more: one busy CPU on a node less loaded by 0.005 gains this (0 to 1000).",
    )
    gib_price: Weight = key(
        0.005, "... and in addition for each GiB that follows, times the distance over the local one (0 to 1000)."
    )
    bytes_per_second: int = key(1 << 30, "Memory follows no faster than this: 1GiB, 500M or bytes.")
    window_s: Seconds = key(10.0, "`incus-numa rebalance` samples for so long, in seconds (0.1 to 86400).")
    journal: str = key("/var/lib/incus-numa/moves.jsonl", "Where moves are noted; may be deleted at any time.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiSettings:
    """The API of the daemon, with metrics and dashboard."""

    enabled: bool = key(default=True, meaning="Whether the daemon has an API at all.")
    socket: str = key("/run/incus-numa/api.sock", "Unix socket of the API; who may open it may read and write.")
    group: str = key(
        "", "Group that may open the socket beside root; empty: incus-admin or lxd, whichever there is first."
    )
    listen: str = key(
        "",
        'Address and port for TCP, such as "127.0.0.1:9714" or "[::1]:9714"; empty: no TCP.',
    )
    token_file: str = key(
        "", "File with a token, which writes over TCP need, and everything on another address than loopback."
    )
    tls_certificate: str = key("", "PEM file with the certificate for TCP; needed on other addresses than loopback.")
    tls_key: str = key("", "PEM file with the key of the certificate; empty: it is in the same file.")
    hosts: tuple[str, ...] = key((), "Names under which TCP is reached, beside localhost and the address listened on.")
    max_clients: Count = key(64, "So many requests are worked on at a time (1 to 10000); others must come again.")
    policy_file: str = key(
        "/var/lib/incus-numa/policy.json", "Where a policy that was set by the API is kept; deleting it ends that."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSettings:
    """What the API's /metrics shows."""

    max_instances: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = key(
        1000, "Metrics of single instances are shown of so many at most (0 to 100000), in the order of their names."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All tables of the configuration file."""

    server: ServerSettings = field(default_factory=ServerSettings)
    host: HostSettings = field(default_factory=HostSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    rebalance: RebalanceSettings = field(default_factory=RebalanceSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)


def parse_settings(text: str) -> Settings:
    """Settings from TOML. Raises ConfigError naming every wrong key, its value and what is expected."""
    settings, problems = salvage_settings(text)
    if problems:
        raise ConfigError(problems)
    return settings


def salvage_settings(text: str) -> tuple[Settings, tuple[str, ...]]:
    """What can be read of a file, and every problem: for those who have more to check and tell everything at once.

    Wrong keys have their defaults. Raises ConfigError if it is not TOML.
    """
    try:
        # The toml library takes `[1, 2` for `[1]` and leaks its own errors, so it only writes.
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise ConfigError((f"not TOML: {error}",)) from error
    return read_tables(tables)


def read_tables(tables: Mapping[str, Any]) -> tuple[Settings, tuple[str, ...]]:
    """The same from tables, such as JSON has them. Wrong keys have their defaults; every problem is told."""
    problems: list[str] = []
    known = get_type_hints(Settings)
    values: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in known:
            problems.append(f"[{name}]: unknown table; expected one of {', '.join(known)}")
        elif not isinstance(table, dict):
            problems.append(f"{name} = {table!r}: expected a table [{name}]")
        else:
            values[name] = _table(name, known[name], table, problems)
    settings = Settings(**values)
    # Sums of which a part could not be read would only look wrong.
    is_whole = not any(problem.startswith("memory") for problem in problems)
    problems.extend(check_settings(settings if is_whole else replace(settings, memory=MemorySettings())))
    return settings, tuple(problems)


def check_settings(settings: Settings) -> tuple[str, ...]:
    """Problems that a type cannot express, one sentence each; empty when there are none."""
    problems = []
    try:
        CpuSet.parse(settings.placement.reserved_cpus)
    except ValueError as error:
        problems.append(f"placement.reserved_cpus: {error}; expected a kernel list such as 0-3,8")
    for name in ("sysfs", "procfs", "cgroup"):
        path = getattr(settings.host, name)
        if not path.startswith("/"):
            problems.append(f"host.{name} = {path!r}: expected an absolute path")
    if settings.server.socket and not settings.server.socket.startswith("/"):
        problems.append(f"server.socket = {settings.server.socket!r}: expected an absolute path or nothing")
    if not settings.daemon.run_dir.startswith("/"):
        problems.append(f"daemon.run_dir = {settings.daemon.run_dir!r}: expected an absolute path")
    if not settings.rebalance.journal.startswith("/"):
        problems.append(f"rebalance.journal = {settings.rebalance.journal!r}: expected an absolute path")
    problems += _check_api(settings.api)
    if settings.rebalance.bytes_per_second < LEAST_PACE:
        told = quantities.render_exactly(settings.rebalance.bytes_per_second)
        problems.append(f"rebalance.bytes_per_second = {told!r}: expected 1MiB or more")
    return (*problems, *_check_memory(settings.memory))


def parse_listen(text: str) -> tuple[str, int]:
    """Address and port of `127.0.0.1:9714` or `[::1]:9714`. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)|(localhost)):([0-9]{1,5})", text)
    try:
        if found is None or not 0 < int(found[4]) < 1 << 16:
            raise ValueError(text)
        return str(ipaddress.ip_address("127.0.0.1" if found[3] else found[1] or found[2])), int(found[4])
    except ValueError:
        raise ValueError("expected an address and a port such as 127.0.0.1:9714 or [::1]:9714") from None


def _check_api(api: ApiSettings) -> list[str]:
    """Paths, and whether what is reachable from outside is protected."""
    problems = []
    for name in ("socket", "token_file", "tls_certificate", "tls_key", "policy_file"):
        path = getattr(api, name)
        if not path.startswith("/") and (path or name in ("socket", "policy_file")):
            problems.append(f"api.{name} = {path!r}: expected an absolute path")
    if api.tls_key and not api.tls_certificate:
        problems.append("api.tls_key: expected api.tls_certificate with it")
    if not api.listen:
        return problems
    try:
        address, _ = parse_listen(api.listen)
    except ValueError as error:
        return [*problems, f"api.listen = {api.listen!r}: {error}"]
    missing = [f"api.{name}" for name in ("token_file", "tls_certificate") if not getattr(api, name)]
    if missing and not ipaddress.ip_address(address).is_loopback:
        told = " and ".join(missing)
        problems.append(f"api.listen = {api.listen!r}: can be reached from outside; set {told}, or use 127.0.0.1")
    return problems


def list_unused(settings: Settings) -> tuple[str, ...]:
    """What is set but has no effect, one sentence each: not wrong, but perhaps not what was meant."""
    memory = settings.memory
    if memory.policy == "static" or not (memory.reserved_total or memory.reserved):
        return ()
    names = [name for name in ("reserved_total", "reserved") if getattr(memory, name)]
    told = " and ".join(f"memory.{name}" for name in names)
    return (f'{told}: ignored, because memory.policy is "none"; set memory.policy = "static" to keep memory',)


def _check_memory(memory: MemorySettings) -> tuple[str, ...]:
    """Whether static reservations are there and add up."""
    total, found = memory.reserved_total, sum(one.size_bytes for one in memory.reserved)
    if memory.policy == "none" or (found == total and found > 0):
        return ()
    if not found and not total:
        text = 'expected reservations: set memory.reserved_total and memory.reserved, or memory.policy = "none"'
        return (f"memory.policy = 'static': {text}",)
    off = f"{quantities.render_both(abs(found - total))} too {'much' if found > total else 'little'}"
    return (
        f"memory.reserved adds up to {quantities.render_both(found)}, which is {off}: expected the sum to be"
        f" memory.reserved_total = {quantities.render_both(total)}, or memory.reserved_total to be"
        f" {quantities.render_both(found)}",
    )


def settings_as_dict(settings: Settings) -> dict[str, dict[str, Any]]:
    """Plain tables, for `config show` and for writing a file."""
    return {
        table.name: {
            one.name: _plain(one.name, getattr(getattr(settings, table.name), one.name))
            for one in fields(getattr(settings, table.name))
        }
        for table in fields(settings)
    }


def render_settings(settings: Settings) -> str:
    """The settings as a commented TOML file that parses to the same settings."""
    lines = []
    for table in fields(settings):
        value = getattr(settings, table.name)
        lines.append(f"# {(type(value).__doc__ or '').splitlines()[0]}\n[{table.name}]")
        for one in fields(value):
            lines.append(f"# {one.metadata['meaning']}")
            lines.append(_assignment(one.name, _plain(one.name, getattr(value, one.name))))
        lines.append("")
    return "\n".join(lines)


def _plain(name: str, value: Any) -> Any:
    """A value as TOML and JSON have it; amounts of memory as people write them."""
    if name in ("reserved_total", "max_bytes", "bytes_per_second"):
        return quantities.render_exactly(value)
    if name == "reserved":
        return {str(one.node): quantities.render_exactly(one.size_bytes) for one in value}
    return list(value) if isinstance(value, tuple) else value


def _assignment(name: str, value: Any) -> str:
    """`name = value` on one line."""
    if isinstance(value, dict):
        # The toml library would begin a new table with it.
        inner = ", ".join(f'"{one}" = "{amount}"' for one, amount in value.items())
        return f"{name} = {{{inner}}}"
    return str(toml.dumps({name: value})).strip().replace("[ ", "[").replace(",]", "]")


def _table(name: str, kind: Any, table: dict[str, Any], problems: list[str]) -> Any:
    """The table's value from its valid keys; every invalid key is added to the problems."""
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for one, raw in table.items():
        if one not in hints:
            problems.append(f"{name}.{one}: unknown key; expected one of {', '.join(hints)}")
            continue
        if (name, one) in _AMOUNTS:
            values[one] = _AMOUNTS[name, one](f"{name}.{one}", raw, problems)
            continue
        try:
            values[one] = msgspec.convert(raw, hints[one])
        except (msgspec.ValidationError, OverflowError) as error:
            choices = get_args(hints[one]) if get_origin(hints[one]) is Literal else ()
            told = f"expected one of {', '.join(choices)}" if choices else str(error).replace("`", "")
            problems.append(f"{name}.{one} = {raw!r}: {told}")
    return kind(**values)


def _amount(name: str, raw: object, problems: list[str]) -> int:
    try:
        return quantities.parse_memory(raw)
    except ValueError as error:
        problems.append(f"{name} = {_short(raw)}: {error}")
        return 0


def _reservations(name: str, raw: object, problems: list[str]) -> tuple[Reservation, ...]:
    """The reservations that can be read; every other one is added to the problems."""
    if not isinstance(raw, Mapping):
        problems.append(f'{name} = {_short(raw)}: expected a table of node id to amount, such as {{"0" = "2GiB"}}')
        return ()
    found = []
    for node, amount in raw.items():
        if not _NODE_ID.fullmatch(node) or int(node) >= MAX_ID:
            problems.append(f"{name}: bad node id {_short(node)}: expected a number from 0 to {MAX_ID - 1}")
            continue
        before = len(problems)
        size = _amount(f"{name}.{node}", amount, problems)
        if len(problems) == before:
            found.append(Reservation(int(node), size))
    return tuple(sorted(found))


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python does not write out integers of thousands of digits.
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


_AMOUNTS: Mapping[tuple[str, str], Callable[[str, object, list[str]], Any]] = {
    ("memory", "reserved_total"): _amount,
    ("memory", "reserved"): _reservations,
    ("rebalance", "max_bytes"): _amount,
    ("rebalance", "bytes_per_second"): _amount,
}
