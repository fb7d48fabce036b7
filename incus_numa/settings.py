"""The configuration: one frozen type per TOML table, with defaults, meaning and limits beside each key. Pure.

`parse_settings` turns the text of `/etc/incus-numa/config.toml` into Settings or raises ConfigError with every
problem at once. `render_settings` writes every key with its meaning, which is how `examples/config.toml` is made.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import toml

from incus_numa.cpuset import CpuSet
from incus_numa.errors import ConfigError

Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=86400)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1000)]


def key(default: Any, meaning: str) -> Any:
    """A settings key with its default and the sentence that `config show` and the example print."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """How to reach Incus or LXD."""

    socket: str = key("", "Unix socket of the server; empty: the first one found of Incus, then LXD.")
    timeout_s: Seconds = key(30.0, "How long one request may take, in seconds (0.1 to 86400).")


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSettings:
    """Where the kernel's trees are. Other values than the defaults serve tests and the simulator."""

    sysfs: str = key("/sys", "Mount point of sysfs.")
    procfs: str = key("/proc", "Mount point of procfs.")
    cgroup: str = key("/sys/fs/cgroup", "Mount point of the cgroup v2 hierarchy.")


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
    load_weight: Weight = key(1.0, "Weight of the resulting load of the chosen nodes (0 to 1000).")
    distance_weight: Weight = key(
        0.1, "Weight of the mean distance between the chosen nodes, local distance being 1 (0 to 1000)."
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All tables of the configuration file."""

    server: ServerSettings = field(default_factory=ServerSettings)
    host: HostSettings = field(default_factory=HostSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)


def parse_settings(text: str) -> Settings:
    """Settings from TOML. Raises ConfigError naming every wrong key, its value and what is expected."""
    try:
        # The toml library takes `[1, 2` for `[1]` and leaks its own errors, so it only writes.
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise ConfigError((f"not TOML: {error}",)) from error
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
    # Wrong keys have their defaults here, so that the rest is checked, too, and everything is told at once.
    settings = Settings(**values)
    problems.extend(check_settings(settings))
    if problems:
        raise ConfigError(tuple(problems))
    return settings


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
    return tuple(problems)


def settings_as_dict(settings: Settings) -> dict[str, dict[str, Any]]:
    """Plain tables, for `config show` and for writing a file."""
    return {
        table.name: {
            one.name: _plain(getattr(getattr(settings, table.name), one.name))
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
            lines.append(
                toml.dumps({one.name: _plain(getattr(value, one.name))}).strip().replace("[ ", "[").replace(",]", "]")
            )
        lines.append("")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _table(name: str, kind: Any, table: dict[str, Any], problems: list[str]) -> Any:
    """The table's value from its valid keys; every invalid key is added to the problems."""
    hints = get_type_hints(kind, include_extras=True)
    values = {}
    for one, raw in table.items():
        if one not in hints:
            problems.append(f"{name}.{one}: unknown key; expected one of {', '.join(hints)}")
            continue
        try:
            values[one] = msgspec.convert(raw, hints[one])
        except (msgspec.ValidationError, OverflowError) as error:
            choices = get_args(hints[one]) if get_origin(hints[one]) is Literal else ()
            told = f"expected one of {', '.join(choices)}" if choices else str(error).replace("`", "")
            problems.append(f"{name}.{one} = {raw!r}: {told}")
    return kind(**values)
