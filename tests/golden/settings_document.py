"""Writes docs/settings.md from the types of the settings and from what the reader of keys says about bad values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from incus_numa.model.instance import GROUP_RULE, InstanceKey, InstanceType
from incus_numa.server import demand
from incus_numa.server.protocol import ServerInstance
from incus_numa.settings import LIVE_TABLES, PlacementSettings, Settings, settings_as_dict
from tests import builders

HEAD = """\
# Settings and keys

Everything that can be set: on an instance, and for a host. This file is made from the code (`make golden`), so it is
complete. What follows from a value is in [decisions.md](decisions.md) and [commands.md](commands.md).

## Keys of an instance

Set with `incus config set` or `lxc config set`, on the instance or in a profile. They hold at once, for running
instances, too; nothing has to be restarted. A bad value refuses this one instance, which then stays as it is. An empty
value is an unset key.
"""
OPT_INS = (
    ("limits.cpu.nodes", "`balanced`; node ids, which are respected", "on Incus: `balanced` has it placed"),
    (
        "user.limits.cpu.nodes",
        "`balanced`",
        "on LXD, and on Incus where `limits.cpu.nodes` is to be something else: has it placed",
    ),
)
SERVERS_KEYS = {
    "`limits.cpu`": "number of vCPUs, `sockets=2,cores=4,threads=2`, or a list of CPUs, to which the instance is then"
    " pinned; unset: all CPUs of its node, of a virtual machine 1",
    "`limits.cpu.allowance`": "scales the weight of a container: `50%`, `25ms/100ms`",
    "`limits.memory`": "bytes or a part of the host's memory: what its nodes must hold; unset: what it uses when it is"
    " first placed, of a virtual machine 1 GiB",
    "`limits.hugepages.64KB`, `.1MB`, `.2MB`, `.1GB`": "huge pages of a container, which its nodes must hold",
    "`limits.memory.hugepages`": "of a virtual machine: its whole memory is huge pages",
}
FILE = """
## Settings of a host

In `/etc/incus-numa/config.toml`, which need not be there; `--config FILE` names another one. `incus-numa config show`
prints what is in force as such a file, `incus-numa config check` tells every mistake at once. After a change:
`systemctl reload incus-numa`, or `systemctl restart incus-numa` where *takes effect* says so. What says *API* can be
set by that, too ([api.md](api.md)), and is then in force at once.
"""
EFFECT = {(True, True): "reload, API", (True, False): "restart", (False, True): "reload"}


@dataclass(frozen=True, kw_only=True)
class OwnKey:
    """One of our keys: its default, and what it is for; `values` where the reader does not list them."""

    default: str
    meaning: str
    values: str | None = None


OWN_KEYS = {
    "policy": OwnKey(
        default="`balanced`",
        meaning="how nodes are chosen, and when the instance is refused ([policies](design.md#policies))",
    ),
    "memory": OwnKey(
        default="`placement.memory`",
        meaning="to what its memory is bound: `local` to its node where it has one, `bind` to all of its nodes, `none`",
    ),
    "group": OwnKey(
        default="unset",
        meaning="members of a group are placed on the same or the nearest nodes",
        values=f"a name: {GROUP_RULE}",
    ),
    "avoid": OwnKey(
        default="unset",
        meaning="groups to keep apart from, which holds both ways; may be its own group",
        values="names of groups, with commas",
    ),
    "movable": OwnKey(
        default="`true`",
        meaning="whether it is moved by load, and narrowed when fewer nodes are enough",
        values="`true`, `false`",
    ),
    "cores": OwnKey(default="`any`", meaning="the kind of cores to use first, where the machine has two"),
    "exclusive": OwnKey(
        default="`false`",
        meaning="whether no other placed instance has its CPUs; needs a number in `limits.cpu`",
        values="`true`, `false`",
    ),
    "devices": OwnKey(
        default="`auto`", meaning="whether its devices draw it to their nodes ([devices.md](devices.md))"
    ),
}
"""Without the `user.numa.` in front, in the order of the document."""


def complaints(config: dict[str, str]) -> dict[str, str]:
    """What the reader of instance keys says about bad ones: key to sentence."""
    raw = ServerInstance(
        key=InstanceKey("default", "one"), type=InstanceType.CONTAINER, running=True, config=config, own=config
    )
    return dict(demand.list_bad_own_keys(raw, builders.machine(), PlacementSettings()))


def known_keys() -> tuple[str, ...]:
    """All keys `user.numa.*` that there are."""
    return tuple(re.findall(r"user\.numa\.\w+", complaints({"user.numa.": "x"})["user.numa."]))


def render() -> str:
    """The document."""
    lines = [HEAD, *_own_keys(), "", *_servers_keys(), FILE.rstrip("\n")]
    defaults = settings_as_dict(Settings())
    for table in fields(Settings):
        lines += ["", *_table(table.name, defaults[table.name])]
    return "\n".join(lines) + "\n"


def _own_keys() -> Iterator[str]:
    yield "| key | values | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for name, values, meaning in OPT_INS:
        yield f"| `{name}` | {values} | unset | {meaning} |"
    for name, one in OWN_KEYS.items():
        values = one.values or _listed(complaints({f"user.numa.{name}": "?"})[f"user.numa.{name}"])
        yield f"| `user.numa.{name}` | {values} | {one.default} | {one.meaning} |"


def _servers_keys() -> Iterator[str]:
    yield "Of the server's own keys these count:\n"
    yield "| key | as |"
    yield "| --- | --- |"
    for name, meaning in SERVERS_KEYS.items():
        yield f"| {name} | {meaning} |"


def _listed(complaint: str) -> str:
    """The values that a sentence such as `bad value 'x': expected one of a, b or c` tells."""
    words = complaint.rpartition("expected ")[2].removeprefix("one of ")
    return ", ".join(f"`{word}`" for word in re.split(r", | or ", words))


def _table(name: str, defaults: dict[str, Any]) -> Iterator[str]:
    kind = get_type_hints(Settings)[name]
    yield f"### `[{name}]`\n"
    yield f"{kind.__doc__.splitlines()[0]}\n"
    yield "| key | default | values | takes effect | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    hints = get_type_hints(kind, include_extras=True)
    for one in fields(kind):
        needs_restart = one.metadata["restart"]
        effect = "restart" if needs_restart else EFFECT[name in LIVE_TABLES, not needs_restart]
        values = _values(name, one.name, hints[one.name])
        # The sentence is for a file without such columns.
        meaning = one.metadata["meaning"].removesuffix(" (restart)").replace(f" ({values})", "")
        cells = (
            f"`{one.name}`",
            f"`{_toml(defaults[one.name])}`",
            values,
            effect,
            meaning,
        )
        yield f"| {' | '.join(cells)} |"


def _toml(value: Any) -> str:
    """A default as the file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "{}" if value == {} else str(value)


def _values(table: str, name: str, hint: Any) -> str:
    """What a type allows, in words."""
    if (table, name) in AMOUNTS:
        return AMOUNTS[table, name]
    if get_origin(hint) is tuple:
        return f"list: {_values(table, '', get_args(hint)[0])}"
    if get_origin(hint) is Literal:
        return ", ".join(f'`"{one}"`' for one in get_args(hint))
    if get_origin(hint) is Annotated:
        limits = next(one for one in get_args(hint) if isinstance(one, msgspec.Meta))
        return f"{limits.ge:g} to {limits.le:g}"
    return {bool: "`true`, `false`", str: "text"}[hint]


AMOUNTS = {
    ("memory", "reserved_total"): "amount of memory",
    ("memory", "reserved"): "node ids with amounts of memory",
    ("rebalance", "max_bytes"): "amount of memory",
    ("rebalance", "bytes_per_second"): "amount of memory, `1MiB` or more",
    ("placement", "reserved_cpus"): "CPU list such as `0-3,8`",
    ("api", "listen"): "address and port",
}
"""What the type alone does not tell."""
