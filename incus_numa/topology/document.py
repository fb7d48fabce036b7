"""The machine document: what `topology --format json` prints and `plan --machine` reads.

One format for a machine seen, a machine stored and a machine written by hand. Called by the command line, the
simulator and tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from incus_numa import jsontext, quantities
from incus_numa.cpuset import MAX_ID, CpuSet
from incus_numa.errors import ConfigError
from incus_numa.model.machine import LOCAL_DISTANCE, CoreKind, Cpu, Machine, Node
from incus_numa.quantities import MAX_BYTES

_Id = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ID)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)]
_PageSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_BYTES)]
_Distance = Annotated[int, msgspec.Meta(ge=1, lt=10**9)]


class _Outline(msgspec.Struct):
    """The document with its entries still undecoded, so that one wrong entry does not hide the others."""

    nodes: list[msgspec.Raw]
    name: str = ""
    cpus: list[msgspec.Raw] | None = None
    online: str | None = None
    isolated: str = ""
    offline: str = ""
    warnings: list[str] = []


class _NodeEntry(msgspec.Struct):
    id: _Id
    cpus: str = ""
    memory_bytes: _Bytes | None = None
    free_bytes: _Bytes | None = None
    distances: dict[_Id, _Distance] = {}
    hugepages: dict[_PageSize, _Bytes] = {}


class _CpuEntry(msgspec.Struct):
    id: _Id
    core: _Id
    node: _Id | None = None
    socket: Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES)] | None = None
    l3: _Id | None = None
    kind: CoreKind | None = None


def render_machine(machine: Machine) -> dict[str, Any]:
    """The machine as plain JSON values in the documented order: sets as kernel lists, unknown numbers as None.

    `offline`, `hugepages` of a node and `kind` of a CPU are there only where there is something to tell.
    """
    return {
        "name": machine.name,
        "nodes": [_render_node(node) for node in machine.nodes],
        "cpus": [_render_cpu(cpu) for cpu in machine.cpus],
        "online": str(machine.online),
        "isolated": str(machine.isolated),
        **({"offline": str(machine.offline)} if machine.offline else {}),
        "warnings": list(machine.warnings),
    }


def _render_node(node: Node) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        "id": node.id,
        "cpus": str(node.cpus),
        "memory_bytes": node.memory_bytes,
        "free_bytes": node.free_bytes,
        "distances": {str(other): node.distances[other] for other in sorted(node.distances)},
    }
    if node.hugepages:
        rendered["hugepages"] = {str(size): node.hugepages[size] for size in sorted(node.hugepages)}
    return rendered


def _render_cpu(cpu: Cpu) -> dict[str, Any]:
    rendered: dict[str, Any] = {"id": cpu.id, "node": cpu.node, "socket": cpu.socket, "core": cpu.core, "l3": cpu.l3}
    if cpu.kind is not None:
        rendered["kind"] = cpu.kind.value
    return rendered


def parse_machine(text: str | bytes) -> Machine:
    """Read a machine document, the inverse of `render_machine`.

    Without `cpus` every online CPU is its own core and its L3 is unknown; without `online` all listed CPUs
    are online. `core` and `l3` may be any number that the sharing CPUs have in common. Raises ConfigError
    with every problem found.
    """
    fault = jsontext.find_fault(text)
    if fault is not None:
        raise ConfigError((f"machine document: {fault}",))
    try:
        outline = msgspec.json.decode(text, type=_Outline)
    except msgspec.MsgspecError as exc:
        raise ConfigError((f"machine document: {exc}",)) from exc
    problems: list[str] = []
    nodes = _decode_nodes(outline.nodes, problems)
    entries = _decode_cpus(outline.cpus, problems)
    isolated = _decode_set(outline.isolated, "isolated", problems)
    offline = _decode_set(outline.offline, "offline", problems)
    online = None if outline.online is None else _decode_set(outline.online, "online", problems)
    cpus = _derive_cpus(nodes, online) if entries is None else _name_groups(entries)
    if online is None:
        online = CpuSet(cpu.id for cpu in cpus)
    # Entries that could not be decoded would make the others look wrong.
    contradictions = [] if problems else _check_cpus(cpus, nodes) + _check_nodes(nodes, cpus, online)
    contradictions += _check_offline(online, offline)
    problems += _check_unique("node", nodes) + _check_unique("cpu", cpus) + _check_cores(entries or ())
    problems += contradictions
    if problems:
        raise ConfigError(tuple(f"machine document: {problem}" for problem in problems))
    return Machine(
        name=outline.name,
        nodes=nodes,
        cpus=cpus,
        online=online,
        isolated=isolated,
        offline=offline,
        warnings=tuple(outline.warnings),
    )


def _decode_set(text: str, where: str, problems: list[str]) -> CpuSet:
    try:
        return CpuSet.parse(text)
    except ValueError as exc:
        problems.append(f"{where}: {exc}")
        return CpuSet()


def _decode_nodes(raws: list[msgspec.Raw], problems: list[str]) -> tuple[Node, ...]:
    nodes = []
    for position, raw in enumerate(raws):
        try:
            entry = msgspec.json.decode(raw, type=_NodeEntry)
        except msgspec.MsgspecError as exc:
            problems.append(f"nodes[{position}]: {exc}")
            continue
        nodes.append(
            Node(
                id=entry.id,
                cpus=_decode_set(entry.cpus, f"cpus of node {entry.id}", problems),
                memory_bytes=entry.memory_bytes,
                free_bytes=entry.free_bytes,
                distances=entry.distances,
                hugepages={size: amount for size, amount in entry.hugepages.items() if amount},
            )
        )
    return tuple(sorted(nodes, key=lambda node: node.id))


def _decode_cpus(raws: list[msgspec.Raw] | None, problems: list[str]) -> tuple[_CpuEntry, ...] | None:
    if raws is None:
        return None
    decoder = msgspec.json.Decoder(_CpuEntry)
    entries = []
    for position, raw in enumerate(raws):
        try:
            entries.append(decoder.decode(raw))
        except msgspec.MsgspecError as exc:
            problems.append(f"cpus[{position}]: {exc}")
    return tuple(sorted(entries, key=lambda entry: entry.id))


def _derive_cpus(nodes: tuple[Node, ...], online: CpuSet | None) -> tuple[Cpu, ...]:
    """The CPUs of a document that lists none: as much as its nodes tell."""
    home: dict[int, int] = {}
    for node in nodes:
        for cpu in node.cpus:
            home.setdefault(cpu, node.id)
    everything = CpuSet(home) if online is None else online
    return tuple(Cpu(id=cpu, node=home.get(cpu), socket=None, core=cpu, l3=None) for cpu in everything)


def _name_groups(entries: tuple[_CpuEntry, ...]) -> tuple[Cpu, ...]:
    """Name every core and L3 by its lowest CPU id, whatever the document called it. Needs ascending ids."""
    cores: dict[int, int] = {}
    caches: dict[int, int] = {}
    return tuple(
        Cpu(
            id=entry.id,
            node=entry.node,
            socket=entry.socket,
            core=cores.setdefault(entry.core, entry.id),
            l3=None if entry.l3 is None else caches.setdefault(entry.l3, entry.id),
            kind=entry.kind,
        )
        for entry in entries
    )


def _check_unique(noun: str, values: Iterable[Node | Cpu]) -> list[str]:
    counts = Counter(value.id for value in values)
    return [f"{noun} {one} appears {count} times" for one, count in sorted(counts.items()) if count > 1]


def _check_cores(entries: Iterable[_CpuEntry]) -> list[str]:
    """Core numbers that are counted per socket would merge cores, so a core in two sockets is a mistake."""
    sockets: dict[int, set[int]] = {}
    for entry in entries:
        if entry.socket is not None:
            sockets.setdefault(entry.core, set()).add(entry.socket)
    return [
        f"core {core} is in sockets {', '.join(map(str, sorted(found)))}: name it by its lowest cpu id"
        for core, found in sorted(sockets.items())
        if len(found) > 1
    ]


def _check_cpus(cpus: tuple[Cpu, ...], nodes: tuple[Node, ...]) -> list[str]:
    """A CPU's node and the nodes' lists must tell the same."""
    by_id = {node.id: node for node in nodes}
    owned = CpuSet()
    for node in nodes:
        owned |= node.cpus
    problems = []
    for cpu in cpus:
        if cpu.node is None:
            if cpu.id in owned:
                problems.append(f"cpu {cpu.id} has no node, but a node lists it")
        elif cpu.node not in by_id:
            problems.append(f"cpu {cpu.id} is in node {cpu.node}, which is not in nodes")
        elif cpu.id not in by_id[cpu.node].cpus:
            problems.append(f"cpu {cpu.id} is in node {cpu.node}, which does not list it")
    return problems


def _check_nodes(nodes: tuple[Node, ...], cpus: tuple[Cpu, ...], online: CpuSet) -> list[str]:
    listed = CpuSet(cpu.id for cpu in cpus)
    problems = []
    for node in nodes:
        if not node.cpus <= online:
            problems.append(f"node {node.id} lists cpus {node.cpus - online}, which are not online")
        elif not node.cpus <= listed:
            problems.append(f"node {node.id} lists cpus {node.cpus - listed}, which are not in cpus")
    if listed - online:
        problems.append(f"cpus {listed - online} are not in online")
    if online - listed:
        problems.append(f"online cpus {online - listed} are not in cpus")
    return problems + _check_overlaps(nodes) + _check_distances(nodes) + _check_hugepages(nodes)


def _check_offline(online: CpuSet, offline: CpuSet) -> list[str]:
    both = online & offline
    return [f"cpus {both} are in online and in offline"] if both else []


def _check_overlaps(nodes: tuple[Node, ...]) -> list[str]:
    """A kernel with broken tables shows a CPU in several nodes; a machine that is planned for cannot have one."""
    homes: dict[int, set[int]] = {}
    for node in nodes:
        for cpu in node.cpus:
            homes.setdefault(cpu, set()).add(node.id)
    shared: dict[tuple[int, ...], list[int]] = {}
    for cpu, found in sorted(homes.items()):
        if len(found) > 1:
            shared.setdefault(tuple(sorted(found)), []).append(cpu)
    return [
        f"{'cpu' if len(cpus) == 1 else 'cpus'} {CpuSet(cpus)} {'is' if len(cpus) == 1 else 'are'} in nodes"
        f" {', '.join(map(str, several))}: a cpu belongs to one node"
        for several, cpus in shared.items()
    ]


def _check_distances(nodes: tuple[Node, ...]) -> list[str]:
    """Distances lead to nodes that exist, and the distance of a node to itself is the unit of all others."""
    known = {node.id for node in nodes}
    problems = []
    for node in nodes:
        problems += [
            f"node {node.id} has a distance to node {other}, which is not in nodes"
            for other in sorted(node.distances)
            if other not in known
        ]
        own = node.distances.get(node.id)
        if node.distances and own is None:
            problems.append(f"node {node.id} has distances but none to itself: expected {LOCAL_DISTANCE}")
        elif own not in (None, LOCAL_DISTANCE):
            problems.append(f"node {node.id} has the distance {own} to itself: expected {LOCAL_DISTANCE}")
    return problems


def _check_hugepages(nodes: tuple[Node, ...]) -> list[str]:
    """Huge pages are whole pages of sizes that there are, and part of their node's memory."""
    problems = []
    for node in nodes:
        for size, amount in sorted(node.hugepages.items()):
            problem = quantities.check_hugepages(size, amount)
            problems += [f"hugepages of node {node.id}: {problem}"] if problem else []
        total = sum(node.hugepages.values())
        if node.memory_bytes is not None and total > node.memory_bytes:
            problems.append(f"node {node.id} has {total} bytes in huge pages, but {node.memory_bytes} bytes of memory")
    return problems
