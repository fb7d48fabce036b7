"""Who is in the way of exclusive CPUs (`user.numa.exclusive=true`). Pure; the reconciler, `check` and `explain` ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.plan import Placement, Plan
from incus_numa.model.snapshot import Observed

_NAMED = 5
"""So many instances are named in a sentence, the others are counted."""


def crowding(placements: Mapping[InstanceKey, Placement], instances: Iterable[Instance]) -> frozenset[InstanceKey]:
    """Those to plan anew so that exclusive CPUs are their owners' alone; empty when they are.

    Whoever has an owner's CPUs leaves. From pinned instances, managed or not, the owner leaves; of two owners the one
    with the later name.
    """
    owners = {key: one.cpus.mask for key, one in placements.items() if one.exclusive}
    if not owners:
        return frozenset()
    owned = reduce(or_, owners.values())
    found: set[InstanceKey] = set()
    for instance in instances:
        key, pinned, placement = instance.key, instance.demand.pinned_cpus, placements.get(instance.key)
        cpus = pinned if pinned is not None else placement.cpus if placement is not None else None
        if cpus is None or not cpus.mask & owned:
            continue
        others = {owner for owner, mask in owners.items() if owner != key and mask & cpus.mask}
        if pinned is not None:
            found |= others
        elif key in owners:
            found |= {max(key, other) for other in others}
        elif others:
            found.add(key)
    return frozenset(found)


def strangers(
    owner: Placement, seen: Iterable[tuple[Instance, Observed]], refused: Iterable[InstanceKey]
) -> str | None:
    """The sentence about those that may run on an owner's CPUs as nobody here places them, None when nobody may.

    They are the unmanaged and the refused ones that the server does not keep on other CPUs or nodes.
    """
    left = frozenset(refused)
    found: dict[str, list[InstanceKey]] = {"unmanaged": [], "refused": []}
    for instance, observed in seen:
        if instance.key != owner.key and (not instance.managed or instance.key in left):
            pinned, nodes, has = instance.demand.pinned_cpus, observed.given, observed.cpus or CpuSet()
            anywhere = pinned is None and (nodes is None or nodes & owner.nodes)
            if anywhere or (has if pinned is None else pinned) & owner.cpus:
                found["refused" if instance.managed else "unmanaged"].append(instance.key)
    told = [f"{kind} instance{_s(keys)} {_names(keys)}" for kind, keys in found.items() if keys]
    if not told:
        return None
    return f"CPUs {owner.cpus} of {owner.key} are exclusive, but {' and '.join(told)} may run on them"


def _names(keys: list[InstanceKey]) -> str:
    names = [str(key) for key in sorted(keys)]
    more = len(names) - _NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_NAMED])} and {more} more"


def _s(keys: list[InstanceKey]) -> str:
    return "s" if len(keys) != 1 else ""


def joined(plan: Plan, later: Plan) -> Plan:
    """Both plans as one; the later decision about an instance counts."""
    placed = {one.key: one for one in (*plan.placements, *later.placements)}
    refused = {one.key: one for one in (*plan.rejections, *later.rejections)}
    for key in {one.key for one in later.placements}:
        refused.pop(key, None)
    for key in {one.key for one in later.rejections}:
        placed.pop(key, None)
    return Plan(
        placements=tuple(placed[key] for key in sorted(placed)),
        rejections=tuple(refused[key] for key in sorted(refused)),
        node_load=later.node_load or plan.node_load,
        warnings=tuple(dict.fromkeys((*plan.warnings, *later.warnings))),
    )
