"""Everything known about one instance's place, as facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from incus_numa.applier.protocol import describe_change
from incus_numa.cpuset import NodeSet
from incus_numa.daemon import owners
from incus_numa.daemon.seen import Seen, bound_nodes
from incus_numa.facts import virtual
from incus_numa.facts.survey import Survey
from incus_numa.facts.words import count, show_nodes
from incus_numa.model.devices import Device
from incus_numa.model.instance import Instance, Policy
from incus_numa.model.plan import Placement, Proof, Rejection, WriteMems
from incus_numa.policy import planner, scoring
from incus_numa.policy.steps import really_bound
from incus_numa.quantities import render_bytes
from incus_numa.settings import PlacementSettings, Settings


def explain(found: Survey, seen: Seen, settings: Settings) -> dict[str, Any]:
    """Everything known about one instance's place, as plain values in the order they are told."""
    instance, observed = seen.instance, seen.observed
    answer = found.answer(instance.key)
    anew = place_anew(found, seen, settings.placement)
    searched = answer if anew is None else anew
    memory = found.memory_by_node(seen)
    demand = instance.demand
    return {
        "instance": instance.key.name,
        "project": instance.key.project,
        "type": instance.type.value,
        "managed": instance.managed,
        "policy": instance.policy.value,
        "memory_binding": instance.memory.value,
        "vcpus": demand.vcpus,
        "pinned_cpus": str(demand.pinned_cpus) if demand.pinned_cpus else None,
        "memory_bytes": demand.memory_bytes,
        "hugepages": {str(size): amount for size, amount in sorted(demand.hugepages.items())} or None,
        "cores": demand.cores.value if demand.cores is not None else None,
        "exclusive": demand.exclusive,
        "group": instance.group,
        "avoid": list(instance.avoid),
        "device_nodes": str(instance.device_nodes) if instance.device_nodes else None,
        "devices": [_device(one) for one in instance.devices],
        "has_nodes": str(found.nodes_of(seen)) or None,
        "has_cpus": str(observed.cpus) if observed.cpus else None,
        "has_mems": str(really_bound(observed.mems, found.machine.memory_nodes)) or None,
        "vm": virtual.explain(seen, found.machine, settings.placement),
        "memory_by_node": None if memory is None else {str(node): size for node, size in memory.items() if size},
        "state": found.state(seen),
        "decision": _decision(found, answer),
        "why": _why(answer, instance) + ("" if anew is None else _drawn(found, seen, answer)) + _astray(found, seen),
        "placed_anew": _anew(anew),
        "proof": _proof(searched) if isinstance(searched, Placement) else None,
        "shared_with": _shared_with(found, answer),
        "a_pass_would": [describe_change(step) for step in found.steps.get(instance.key, ())],
    }


def _device(device: Device) -> dict[str, Any]:
    nodes = str(device.nodes) if device.nodes else None
    return {"name": device.name, "hardware": device.what, "nodes": nodes, "note": device.note}


def place_anew(found: Survey, seen: Seen, settings: PlacementSettings) -> Placement | Rejection | None:
    """Where an instance that keeps what it has would go if it were new now; None for any other instance."""
    instance, key, answer = seen.instance, seen.instance.key, found.answer(seen.instance.key)
    kept = isinstance(answer, Placement) and answer.proof is None and seen.observed.decided is not None
    if not kept or instance.demand.pinned_cpus is not None or instance.policy is Policy.NONE:
        return None
    left = {one.key for one in found.plan.rejections}
    snapshot = replace(
        found.snapshot,
        instances=tuple(
            _new(found, seen) if one.key == key else _sharing(one) if one.key in left else one
            for one in found.snapshot.instances
        ),
        observed={one: what for one, what in found.snapshot.observed.items() if one != key},
    )
    plan = planner.plan(snapshot, settings, only=frozenset((key,)))
    answers: tuple[Placement | Rejection, ...] = (*plan.placements, *plan.rejections)
    return next((one for one in answers if one.key == key), None)


def _new(found: Survey, seen: Seen) -> Instance:
    """The instance as it would be planned if it were new."""
    return replace(seen.instance, bound_nodes=bound_nodes(seen, found.machine))


def _drawn(found: Survey, seen: Seen, answer: Placement | Rejection | None) -> str:
    """What the nodes that its memory is bound to mean to one that keeps others, as the end of a sentence."""
    bound = bound_nodes(seen, found.machine)
    if not bound or not isinstance(answer, Placement) or bound & answer.nodes:
        return ""
    return (
        f"; the server bound its memory to {show_nodes(bound)}, which is weighed against load when nodes are first "
        "chosen, and moves nobody later"
    )


def _astray(found: Survey, seen: Seen) -> str:
    """Memory that is not where it is bound and that no pass would move, as the end of a sentence."""
    bound = really_bound(seen.observed.mems, found.machine.memory_nodes)
    away = {node: size for node, size in (found.memory_by_node(seen) or {}).items() if size and node not in bound}
    if not bound or not away or any(isinstance(one, WriteMems) for one in found.steps.get(seen.instance.key, ())):
        return ""
    return (
        f"; {render_bytes(sum(away.values()))} on {show_nodes(NodeSet(away))} did not follow when memory was bound to "
        f"{show_nodes(bound)} (pages in use just then, or locked) and stays there until it is freed"
    )


def _sharing(instance: Instance) -> Instance:
    """A refused instance as others see it: whatever CPUs it has are not its own."""
    return replace(instance, demand=replace(instance.demand, exclusive=False))


def _anew(anew: Placement | Rejection | None) -> dict[str, Any] | None:
    if anew is None:
        return None
    if isinstance(anew, Rejection):
        return {"nodes": None, "cpus": None, "why": f"it would be refused ({anew.reason.value}): {anew.detail}"}
    return {"nodes": str(anew.nodes), "cpus": str(anew.cpus), "why": anew.reason}


def _proof(placement: Placement) -> dict[str, Any] | None:
    """What the search for nodes proved; None where nodes were not searched for."""
    proof = placement.proof
    if proof is None:
        return None
    width = len(placement.nodes)
    complete = proof.bound >= proof.cost and proof.least_width >= width
    return {"complete": complete, "cost": proof.cost, "bound": proof.bound, "least_nodes": proof.least_width} | {
        "text": _proved(proof, width)
    }


def _proved(proof: Proof, width: int) -> str:
    sets = f"sets of {count(width, 'node')}"
    if proof.bound < proof.cost:
        best = f"the search was cut: this set costs {proof.cost:.4g}, none of the {sets} less than {proof.bound:.4g}"
    else:
        best = f"best of all {sets}"
    if width == 1:
        return best
    if proof.least_width >= width:
        return f"{best}; fewer nodes do not hold it"
    return f"{best}; the search was cut: fewer than {count(proof.least_width, 'node')} do not hold it, so many may"


def _shared_with(found: Survey, answer: Placement | Rejection | None) -> str | None:
    """Who may run on its exclusive CPUs, as a sentence."""
    if not isinstance(answer, Placement) or not answer.exclusive:
        return None
    seen = ((one.instance, one.observed) for one in found.seen)
    return owners.strangers(answer, seen, (one.key for one in found.plan.rejections))


def _decision(found: Survey, answer: Placement | Rejection | None) -> dict[str, Any] | None:
    if not isinstance(answer, Placement):
        return None
    return {
        "nodes": str(answer.nodes),
        "cpus": str(answer.cpus),
        "mems": None if answer.mems is None else str(answer.mems),
        "mean_distance": scoring.mean_distance(found.machine, answer.nodes),
        "node_load": {str(node): found.load_now.get(node) for node in answer.nodes},
    }


def _why(answer: Placement | Rejection | None, instance: Instance) -> str:
    if isinstance(answer, Placement):
        return answer.reason
    if isinstance(answer, Rejection):
        return f"refused, left as it is ({answer.reason.value}): {answer.detail}"
    return "not managed: set limits.cpu.nodes=balanced (LXD: user.limits.cpu.nodes=balanced) to have it placed"
