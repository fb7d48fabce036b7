"""`incus-numa explain NAME`: why an instance is where it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from incus_numa.applier.protocol import describe_change
from incus_numa.cli import output
from incus_numa.cli.main import EXIT_FAILED, EXIT_REFUSED
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.cli.survey import Survey, survey
from incus_numa.cli.wiring import cgroup_files
from incus_numa.daemon.observe import Seen
from incus_numa.model.instance import InstanceKey
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
    start_logging("warning" if log_level == "info" else log_level)
    settings = load_settings(config_file)
    found = asyncio.run(survey(settings))
    key = InstanceKey(project, name)
    seen = next((seen for seen in found.seen if seen.instance.key == key), None)
    if seen is None:
        click.echo(f"Error: no running instance {name!r} in project {project!r}; see `incus-numa list`", err=True)
        return EXIT_FAILED
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
        "why": _why(answer, managed=instance.managed),
        "a_pass_would": [describe_change(step) for step in steps.diff_one(answer, observed)]
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


def _why(answer: Placement | Rejection | None, *, managed: bool) -> str:
    if isinstance(answer, Placement):
        return answer.reason
    if isinstance(answer, Rejection):
        return f"refused, left as it is ({answer.reason.value}): {answer.detail}"
    if managed:
        return "not looked at"
    return "not managed: set limits.cpu.nodes=balanced (LXD: user.limits.cpu.nodes=balanced) to have it placed"


def _print(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}: {_shown(key, one, name)}" for key, one in value.items())
        elif isinstance(value, list):
            value = "; ".join(value) or "nothing"
        elif name == "memory_bytes" and value is not None:
            value = render_bytes(value)
        click.echo(f"{name.replace('_', ' '):16} {'-' if value is None else value}")


def _shown(key: str, value: Any, name: str) -> str:
    if name == "memory_by_node":
        return render_bytes(value)
    if isinstance(value, dict):
        return " ".join(f"{node}={load:.2f}" for node, load in value.items() if load is not None)
    return "-" if value is None else str(value)
