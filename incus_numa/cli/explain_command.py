"""`incus-numa explain NAME`: why an instance is where it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from incus_numa.applier.protocol import describe_change
from incus_numa.cli import output
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.cli.survey import Survey, survey, whereabouts
from incus_numa.cli.wiring import cgroup_files
from incus_numa.daemon.observe import Seen
from incus_numa.errors import ReportError
from incus_numa.model.instance import Instance, InstanceKey, InstanceType
from incus_numa.model.plan import Placement, Rejection
from incus_numa.policy import scoring, steps
from incus_numa.quantities import render_bytes
from incus_numa.settings import Settings


@click.command()
@click.argument("name")
@click.option("--project", default="default", show_default=True, help="The instance's project.")
@formatted
@common
def command(config_file: Path | None, log_level: str, output_format: str, name: str, project: str) -> int:
    """Tell what an instance needs, what it has, what was decided and why.

    Example: incus-numa explain db
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    found = asyncio.run(survey(settings))
    key = InstanceKey(project, name)
    seen = found.get(key)
    if seen is None:
        raise ReportError(asyncio.run(whereabouts(settings, key)))
    facts = explain(found, seen, settings)
    output.emit(output_format, facts, [facts], lambda: _print(facts))
    return EXIT_REFUSED if isinstance(found.answer(key), Rejection) else 0


def explain(found: Survey, seen: Seen, settings: Settings) -> dict[str, Any]:
    """Everything known about one instance's place, as plain values in the order they are told."""
    instance, observed = seen.instance, seen.observed
    answer = found.answer(instance.key)
    memory = cgroup_files(settings).memory_by_node(seen.group) if seen.group is not None else None
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
        "has_nodes": str(observed.nodes) if observed.nodes else None,
        "has_cpus": str(observed.cpus) if observed.cpus else None,
        "has_mems": str(observed.mems) if observed.mems else None,
        "memory_by_node": None if memory is None else {str(node): size for node, size in memory.items() if size},
        "state": found.state(seen),
        "decision": _decision(found, answer),
        "why": _why(answer, instance),
        "a_pass_would": [describe_change(step) for step in steps.diff_one(answer, observed, found.machine.memory_nodes)]
        if isinstance(answer, Placement)
        else [],
    }


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
    if instance.type is InstanceType.VIRTUAL_MACHINE:
        return "not managed: this version counts virtual machines as load and does not place them"
    return "not managed: set limits.cpu.nodes=balanced (LXD: user.limits.cpu.nodes=balanced) to have it placed"


def _print(facts: dict[str, Any]) -> None:
    """The same for people: one line for each question."""
    project = "" if facts["project"] == "default" else f" in project {facts['project']}"
    lines = [("instance", f"{facts['instance']} ({facts['type']}{project})"), ("state", facts["state"])]
    lines += [("needs", _needs(facts)), ("has", _has(facts))]
    if facts["memory_by_node"]:
        amounts = (f"{render_bytes(size)} on node {node}" for node, size in facts["memory_by_node"].items())
        lines.append(("memory", ", ".join(amounts)))
    if facts["decision"]:
        lines += [("decision", _decided(facts["decision"])), ("node load", _loads(facts["decision"]["node_load"]))]
    lines.append(("why", facts["why"]))
    if facts["managed"]:
        lines.append(("a pass would", "; ".join(facts["a_pass_would"]) or "change nothing"))
    output.write("\n".join(f"{name:13} {text}" for name, text in lines))


def _needs(facts: dict[str, Any]) -> str:
    vcpus = "any number of CPUs" if facts["vcpus"] is None else _count(facts["vcpus"], "vCPU")
    pinned = f" pinned to {facts['pinned_cpus']}" if facts["pinned_cpus"] else ""
    memory = "unknown memory" if facts["memory_bytes"] is None else render_bytes(facts["memory_bytes"])
    return f"{vcpus}{pinned}, {memory}; policy {facts['policy']}, memory binding {facts['memory_binding']}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _has(facts: dict[str, Any]) -> str:
    mems = f"memory bound to {output.show_nodes(facts['has_mems'])}" if facts["has_mems"] else "memory not bound"
    nodes = output.show_nodes(facts["has_nodes"]) if facts["has_nodes"] else "no nodes recorded"
    return f"{nodes}, CPUs {facts['has_cpus'] or 'not limited'}, {mems}"


def _decided(decision: dict[str, Any]) -> str:
    mems = f"memory bound to {output.show_nodes(decision['mems'])}" if decision["mems"] else "memory not bound"
    distance = decision["mean_distance"]
    apart = "" if distance is None else f"; mean distance of its nodes {distance:.2f}"
    return f"{output.show_nodes(decision['nodes'])}, CPUs {decision['cpus']}, {mems}{apart}"


def _loads(loads: dict[str, float | None]) -> str:
    return ", ".join(f"{node}: {'unknown' if load is None else f'{load:.2f}'}" for node, load in loads.items())
