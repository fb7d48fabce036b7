"""Reads `plan --instances` and writes `plan --format json` (formats: docs/commands.md).

Pure: text to values and values to plain JSON. Called by the `plan` command.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from incus_numa import jsontext, quantities
from incus_numa.cpuset import MAX_ID, CpuSet, NodeSet
from incus_numa.errors import ConfigError
from incus_numa.model.instance import (
    GROUP_NAME,
    GROUP_RULE,
    Demand,
    Instance,
    InstanceKey,
    InstanceType,
    MemoryMode,
    Policy,
)
from incus_numa.model.load import Load
from incus_numa.model.machine import CoreKind, Machine
from incus_numa.model.plan import Plan, Proof
from incus_numa.model.rebalance import Decision
from incus_numa.model.snapshot import Decided, Observed, Snapshot

Name = Annotated[str, msgspec.Meta(min_length=1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=quantities.MAX_BYTES)]
NodeId = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ID)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=quantities.MAX_BYTES)]
Ids = TypeVar("Ids", CpuSet, NodeSet)
CORES = {"any": None} | {kind.value: kind for kind in CoreKind}


class _Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: Name
    project: Name = "default"
    type: InstanceType = InstanceType.CONTAINER
    managed: bool = True
    vcpus: Positive | None = None
    memory_bytes: Bytes | None = None
    policy: Policy = Policy.BALANCED
    memory: MemoryMode | None = None
    group: str | None = None
    avoid: list[str] = msgspec.field(default_factory=list)
    device_nodes: list[int] = msgspec.field(default_factory=list)
    load_cpus: Annotated[float, msgspec.Meta(ge=0, le=1 << 20)] | None = None
    nodes: str | None = None
    cpus: str | None = None
    pinned_cpus: str | None = None
    movable: bool = True
    cores: str | None = None
    exclusive: bool = False
    hugepages: dict[PageSize, Bytes] = msgspec.field(default_factory=dict)
    memory_by_node: dict[NodeId, Bytes] | None = None


def parse_snapshot(text: bytes, machine: Machine, memory: MemoryMode) -> Snapshot:
    """The instances document, on a machine; `memory` is used where an instance does not say.

    Raises ConfigError with every problem at once.
    """
    fault = jsontext.find_fault(text)
    if fault is not None:
        raise ConfigError((f"instances: {fault}",))
    try:
        raws = msgspec.json.decode(text, type=list[msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise ConfigError((f"instances: expected a JSON list of instances: {error}",)) from error
    problems: list[str] = []
    named: set[InstanceKey] = set()
    instances: dict[InstanceKey, Instance] = {}
    observed: dict[InstanceKey, Observed] = {}
    load: dict[InstanceKey, float] = {}
    for index, raw in enumerate(raws):
        try:
            entry = msgspec.json.decode(raw, type=_Entry)
            key = InstanceKey(entry.project, entry.name)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            problems.append(f"instances[{index}]{_whose(raw)}: {error}")
            continue
        mistakes = _check_entry(entry, machine)
        if key in named:
            mistakes.insert(0, "is there twice; names must be unique in a project")
        named.add(key)
        if mistakes:
            problems += [f"instances[{index}] ({key}): {mistake}" for mistake in mistakes]
            continue
        instances[key] = _instance(entry, key, memory)
        observed[key] = _observed(entry, machine)
        if entry.load_cpus is not None:
            load[key] = entry.load_cpus
    if problems:
        raise ConfigError(tuple(problems))
    return Snapshot(
        machine=machine, instances=tuple(instances.values()), observed=observed, load=Load(cpus_by_instance=load)
    )


def render_plan(plan: Plan, elapsed_ms: float) -> dict[str, Any]:
    """The plan as plain JSON; sets are in kernel list format, `mems` is null when memory is not bound."""
    return {
        "placements": [
            {
                "project": one.key.project,
                "name": one.key.name,
                "nodes": str(one.nodes),
                "cpus": str(one.cpus),
                "mems": None if one.mems is None else str(one.mems),
                "moved": one.moved,
                "reason": one.reason,
                "exclusive": one.exclusive,
                "proof": None if one.proof is None else _render_proof(one.proof),
            }
            for one in plan.placements
        ],
        "rejections": [
            {"project": one.key.project, "name": one.key.name, "reason": one.reason.value, "detail": one.detail}
            for one in plan.rejections
        ],
        "node_load": render_load(plan.node_load),
        "elapsed_ms": round(elapsed_ms, 3),
        "warnings": list(plan.warnings),
    }


def render_decision(decision: Decision) -> dict[str, Any]:
    """Moves by measured load as plain JSON, and what they were decided from."""
    return {
        "moves": [
            {
                "project": one.key.project,
                "name": one.key.name,
                "from": str(one.before),
                "to": str(one.after),
                "gain": round(one.gain, 6),
                "price": round(one.price, 6),
                "load_cpus": round(one.load_cpus, 6),
                "size_bytes": one.size_bytes,
                "with": None if one.with_key is None else {"project": one.with_key.project, "name": one.with_key.name},
                "reason": one.reason,
            }
            for one in decision.moves
        ],
        "held": [
            {"project": one.key.project, "name": one.key.name, "hold": one.hold.value, "detail": one.detail}
            for one in decision.held
        ],
        "imbalance": _rounded(decision.imbalance),
        "expected": _rounded(decision.expected),
        "measured_load": render_load(decision.node_load),
        "why": decision.why,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _render_proof(proof: Proof) -> dict[str, float | int]:
    return {"cost": round(proof.cost, 6), "bound": round(proof.bound, 6), "least_nodes": proof.least_width}


def render_load(load: Mapping[int, float]) -> dict[str, float]:
    """Load by node id, as JSON wants its keys, ordered by id."""
    return {str(node): round(load[node], 6) for node in sorted(load)}


def _whose(raw: msgspec.Raw) -> str:
    """Whose entry this is, in brackets, as far as a bad entry says; empty if it does not."""
    try:
        keys = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        name = msgspec.json.decode(keys.get("name", b""), type=str)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""
    try:
        project = msgspec.json.decode(keys.get("project", b""), type=str)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        project = "default"
    if not name or not project:
        return f" ({project!r}/{name!r})"
    return f" ({InstanceKey(project, name)})"


def _check_entry(entry: _Entry, machine: Machine) -> list[str]:
    """What an entry says that cannot be, on this machine or at all."""
    known = NodeSet(machine.node_by_id)
    problems = []
    strange = sorted(set(entry.device_nodes).difference(known))
    if strange:
        problems.append(f"device_nodes {strange[:9]} are no nodes of the machine: expected some of {known}")
    problems += _check_ids("nodes", entry.nodes, known, "nodes")
    holding = NodeSet(entry.memory_by_node or ())
    if holding - known:
        problems.append(f"memory_by_node {holding - known} are no nodes of the machine: expected some of {known}")
    # What it has may have gone offline since: then it is given others.
    problems += _check_ids("cpus", entry.cpus, None, "CPUs")
    problems += _check_ids("pinned_cpus", entry.pinned_cpus, machine.online, "online CPUs")
    named = (("group", entry.group or ""), *(("avoid", name) for name in entry.avoid))
    for key, name in ((key, text.strip()) for key, text in named):
        if name and not GROUP_NAME.fullmatch(name):
            problems.append(f"{key} {name[:40]!r}: expected {GROUP_RULE}")
    if entry.cores is not None and entry.cores not in CORES:
        problems.append(f"cores {entry.cores[:40]!r}: expected one of {', '.join(CORES)}")
    for size, amount in sorted(entry.hugepages.items()):
        problem = quantities.check_hugepages(size, amount)
        problems += [f"hugepages: {problem}"] if problem else []
    return problems


def _check_ids(key: str, text: str | None, known: Ids | None, what: str) -> list[str]:
    """What is wrong with a list of ids of nodes or CPUs, of which only those that are `known` are there, if given."""
    try:
        if known is None:
            CpuSet.parse(text or "")
            return []
        strange = type(known).parse(text or "") - known
    except ValueError as error:
        return [f"{key}: {error}"]
    return [f"{key} {strange} are no {what} of the machine: expected some of {known}"] if strange else []


def _instance(entry: _Entry, key: InstanceKey, memory: MemoryMode) -> Instance:
    pinned = _set(CpuSet, entry.pinned_cpus)
    return Instance(
        key=key,
        type=entry.type,
        managed=entry.managed,
        demand=Demand(
            vcpus=entry.vcpus,
            weight=float(entry.vcpus or len(pinned or ()) or 1),
            memory_bytes=entry.memory_bytes,
            pinned_cpus=pinned,
            hugepages={size: amount for size, amount in entry.hugepages.items() if amount},
            cores=CORES.get(entry.cores or "any"),
            exclusive=entry.exclusive,
        ),
        policy=entry.policy,
        memory=entry.memory or memory,
        group=(entry.group or "").strip() or None,
        avoid=tuple(dict.fromkeys(name.strip() for name in entry.avoid if name.strip())),
        device_nodes=NodeSet(entry.device_nodes),
        movable=entry.movable,
    )


def _observed(entry: _Entry, machine: Machine) -> Observed:
    nodes, cpus = _set(NodeSet, entry.nodes), _set(CpuSet, entry.cpus)
    if nodes is None and cpus is not None:
        nodes = machine.nodes_of(cpus) or None
    decided = Decided(nodes=nodes, cpus=cpus) if nodes is not None and entry.managed else None
    return Observed(nodes=nodes, cpus=cpus, decided=decided, memory=entry.memory_by_node)


def _set(kind: Any, text: str | None) -> Any:
    return (kind.parse(text) or None) if text is not None else None
