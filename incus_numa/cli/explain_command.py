"""`incus-numa explain NAME`: why an instance is where it is."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from incus_numa.applier.protocol import describe_change
from incus_numa.cli import load_facts, output, vm_facts
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import common, formatted, load_settings, look_s, start_logging, windowed
from incus_numa.cli.survey import Survey, survey, whereabouts
from incus_numa.daemon import owners
from incus_numa.daemon.journal import Journal
from incus_numa.daemon.seen import Seen
from incus_numa.errors import ReportError
from incus_numa.model.devices import Device
from incus_numa.model.instance import Instance, InstanceKey, Policy
from incus_numa.model.plan import Placement, Proof, Rejection
from incus_numa.policy import planner, scoring
from incus_numa.quantities import render_bytes
from incus_numa.settings import PlacementSettings, Settings


@click.command()
@click.argument("name")
@click.option("--project", default="default", show_default=True, help="The instance's project.")
@windowed
@formatted
@common
def command(
    *, config_file: Path | None, log_level: str, output_format: str, name: str, project: str, window: float | None
) -> int:
    """Tell what an instance needs, what it has, what was decided and why, and whether its load would move it.

    Example: incus-numa explain db
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    found = asyncio.run(survey(settings, look_s(settings, window)))
    key = InstanceKey(project, name)
    seen = found.get(key)
    if seen is None:
        raise ReportError(asyncio.run(whereabouts(settings, key)))
    journal = Journal(Path(settings.rebalance.journal))
    facts = explain(found, seen, settings) | load_facts.list_facts(
        found, seen, journal.read(), load_facts.judge(found, seen, journal, settings), settings.rebalance
    )
    output.emit(output_format, facts, [facts], lambda: _print(facts))
    return EXIT_REFUSED if isinstance(found.answer(key), Rejection) else 0


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
        "has_nodes": str(observed.nodes) if observed.nodes else None,
        "has_cpus": str(observed.cpus) if observed.cpus else None,
        "has_mems": str(observed.mems) if observed.mems else None,
        "vm": vm_facts.explain(seen, found.machine, settings.placement),
        "memory_by_node": None if memory is None else {str(node): size for node, size in memory.items() if size},
        "state": found.state(seen),
        "decision": _decision(found, answer),
        "why": _why(answer, instance),
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
        instances=tuple(_sharing(one) if one.key in left else one for one in found.snapshot.instances),
        observed={one: what for one, what in found.snapshot.observed.items() if one != key},
    )
    plan = planner.plan(snapshot, settings, only=frozenset((key,)))
    answers: tuple[Placement | Rejection, ...] = (*plan.placements, *plan.rejections)
    return next((one for one in answers if one.key == key), None)


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
    sets = f"sets of {output.count(width, 'node')}"
    if proof.bound < proof.cost:
        best = f"the search was cut: this set costs {proof.cost:.4g}, none of the {sets} less than {proof.bound:.4g}"
    else:
        best = f"best of all {sets}"
    if width == 1:
        return best
    if proof.least_width >= width:
        return f"{best}; fewer nodes do not hold it"
    return (
        f"{best}; the search was cut: fewer than {output.count(proof.least_width, 'node')} do not hold it, so many may"
    )


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


def _print(facts: dict[str, Any]) -> None:
    """The same for people: one line for each question."""
    project = "" if facts["project"] == "default" else f" in project {facts['project']}"
    lines = [("instance", f"{facts['instance']} ({facts['type']}{project})"), ("state", facts["state"])]
    lines.append(("needs", _needs(facts)))
    lines += [
        (name, text)
        for name, text in (
            ("group", facts["group"]),
            ("avoids", ", ".join(facts["avoid"])),
        )
        if text
    ]
    lines += _devices(facts)
    lines.append(("has", _has(facts)))
    lines += vm_facts.lines(facts)
    if facts["memory_by_node"]:
        amounts = (f"{render_bytes(size)} on node {node}" for node, size in facts["memory_by_node"].items())
        lines.append(("memory", ", ".join(amounts)))
    if facts["decision"]:
        lines += [("decision", _decided(facts)), ("node load", _loads(facts["decision"]["node_load"]))]
    lines.append(("why", facts["why"]))
    if facts["placed_anew"]:
        lines.append(("placed anew", _where_anew(facts)))
    if facts["proof"]:
        lines.append(("proof", facts["proof"]["text"]))
    if facts["shared_with"]:
        lines.append(("beware", facts["shared_with"]))
    if facts["managed"]:
        changes = "; ".join(facts["a_pass_would"])
        lines.append(("placement", f"a pass would change {changes}" if changes else "a pass changes nothing"))
    lines += load_facts.lines(facts)
    output.write("\n".join(f"{name:13} {text}" for name, text in lines))


def _needs(facts: dict[str, Any]) -> str:
    vcpus = "any number of CPUs" if facts["vcpus"] is None else output.count(facts["vcpus"], "vCPU")
    pinned = f" pinned to {facts['pinned_cpus']}" if facts["pinned_cpus"] else ""
    own = " of its own" if facts["exclusive"] else ""
    cores = f" on {facts['cores']} cores" if facts["cores"] else ""
    memory = "unknown memory" if facts["memory_bytes"] is None else render_bytes(facts["memory_bytes"])
    for size, amount in (facts["hugepages"] or {}).items():
        memory += f", {render_bytes(amount)} of {render_bytes(int(size))} huge pages"
    rules = f"policy {facts['policy']}, memory binding {facts['memory_binding']}"
    return f"{vcpus}{own}{pinned}{cores}, {memory}; {rules}"


def _devices(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each device with its nodes, or why it has none."""
    lines = []
    for device in facts["devices"]:
        note = device["note"] or ""
        if device["nodes"]:
            note = f"on {output.show_nodes(device['nodes'])}" + (f" ({note})" if note else "")
        lines.append(("device", f"{device['name']}, {device['hardware']}: {note}"))
    return lines


def _where_anew(facts: dict[str, Any]) -> str:
    anew = facts["placed_anew"]
    if anew["nodes"] is None:
        return str(anew["why"])
    if facts["decision"] and anew["nodes"] == facts["decision"]["nodes"]:
        return f"it would go to the same nodes: {anew['why']}"
    return f"it would go to {output.show_nodes(anew['nodes'])}: {anew['why']}"


def _has(facts: dict[str, Any]) -> str:
    mems = f"memory bound to {output.show_nodes(facts['has_mems'])}" if facts["has_mems"] else "memory not bound"
    nodes = output.show_nodes(facts["has_nodes"]) if facts["has_nodes"] else "no nodes recorded"
    return nodes if facts["vm"] else f"{nodes}, CPUs {facts['has_cpus'] or 'not limited'}, {mems}"


def _decided(facts: dict[str, Any]) -> str:
    decision = facts["decision"]
    mems = "memory not bound"
    if decision["mems"]:
        mems = f"memory {'belongs on' if facts['vm'] else 'bound to'} {output.show_nodes(decision['mems'])}"
    distance = decision["mean_distance"]
    apart = "" if distance is None else f"; mean distance of its nodes {distance:.2f}"
    return f"{output.show_nodes(decision['nodes'])}, CPUs {decision['cpus']}, {mems}{apart}"


def _loads(loads: dict[str, float | None]) -> str:
    return ", ".join(f"{node}: {'unknown' if load is None else f'{load:.2f}'}" for node, load in loads.items())
