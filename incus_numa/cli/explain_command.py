"""`incus-numa explain NAME`: why an instance is where it is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click

from incus_numa.cli import load_facts, output, vm_facts
from incus_numa.cli.completing import complete_instance, complete_project
from incus_numa.cli.in_force import load_shown
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import deciding, formatted, look_s, start_logging, windowed
from incus_numa.cli.survey import survey, whereabouts
from incus_numa.cli.told import Explanation, ask_explanation, follow_daemon
from incus_numa.cpuset import NodeSet
from incus_numa.daemon.journal import Journal
from incus_numa.errors import ReportError
from incus_numa.facts import instance, load
from incus_numa.facts.words import count, show_nodes
from incus_numa.model.instance import InstanceKey, MemoryMode
from incus_numa.model.machine import Machine
from incus_numa.policy import memory
from incus_numa.quantities import render_bytes
from incus_numa.settings import Settings

MOSTLY = 0.5
"""From this part on memory counts as being where its instance is."""


@click.command()
@click.argument("name", shell_complete=complete_instance)
@click.option(
    "--project", default="default", show_default=True, shell_complete=complete_project, help="The instance's project."
)
@windowed
@formatted
@deciding
def command(
    *, config_file: Path | None, log_level: str, output_format: str, name: str, project: str, window: float | None
) -> int:
    """Tell what an instance needs, what it has, what was decided and why, and whether its load would move it.

    Example: incus-numa explain db
    """
    start_logging(log_level)
    settings = load_shown(config_file)
    found = asyncio.run(_find(settings, InstanceKey(project, name), window))
    output.emit(output_format, found.facts, [found.facts], lambda: _print(found.facts, found.machine))
    return EXIT_REFUSED if found.facts["state"].startswith("refused") else 0


async def _find(settings: Settings, key: InstanceKey, window: float | None) -> Explanation:
    """What the daemon knows, or what is seen here. Raises UnreachableError, and ReportError where it does not run."""
    told = None if window is not None else await ask_explanation(settings, key)
    if told is not None:
        return told
    settings = await follow_daemon(settings)
    found = await survey(settings, look_s(settings, window), key.project)
    seen = found.get(key)
    if seen is None:
        raise ReportError(await whereabouts(settings, key))
    journal, now_s = Journal(Path(settings.rebalance.journal)), time.time()
    verdict = load.judge(found, seen, journal.last_moves(now_s), now_s, settings)
    facts = instance.explain(found, seen, settings)
    facts |= load.list_facts(found, seen, journal.read(), verdict, settings.rebalance)
    return Explanation(facts=facts, machine=found.machine)


def _print(facts: dict[str, Any], machine: Machine) -> None:
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
        lines.append(("memory", ", ".join(amounts) + _binding_hint(facts, machine)))
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
        lines.append(("placement", f"a pass would change {changes}" if changes else _staying(facts)))
    lines += load_facts.lines(facts)
    output.write("\n".join(output.fold(f"{name:13} {text}", 14) for name, text in lines))


def _needs(facts: dict[str, Any]) -> str:
    vcpus = "any number of CPUs" if facts["vcpus"] is None else count(facts["vcpus"], "vCPU")
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
            note = f"on {show_nodes(device['nodes'])}" + (f" ({note})" if note else "")
        lines.append(("device", f"{device['name']}, {device['hardware']}: {note}"))
    return lines


def _where_anew(facts: dict[str, Any]) -> str:
    anew = facts["placed_anew"]
    if anew["nodes"] is None:
        return str(anew["why"])
    if facts["decision"] and anew["nodes"] == facts["decision"]["nodes"]:
        return f"it would go to the same nodes: {anew['why']}"
    return f"it would go to {show_nodes(anew['nodes'])}: {anew['why']}"


def _staying(facts: dict[str, Any]) -> str:
    """That a pass leaves it, and what would not where it would be elsewhere if it were new."""
    anew, decision = facts["placed_anew"], facts["decision"]
    if not anew or not decision or anew["nodes"] in (None, decision["nodes"]):
        return "a pass changes nothing"
    return (
        "a pass changes nothing, as what runs is moved by load alone; a restart places it anew, and so does taking "
        "away the key that opts it in (limits.cpu.nodes) and giving it back"
    )


def _has(facts: dict[str, Any]) -> str:
    mems = f"memory bound to {show_nodes(facts['has_mems'])}" if facts["has_mems"] else "memory not bound"
    nodes = show_nodes(facts["has_nodes"]) if facts["has_nodes"] else "no nodes known"
    return nodes if facts["vm"] else f"{nodes}, CPUs {facts['has_cpus'] or 'not limited'}, {mems}"


def _binding_hint(facts: dict[str, Any], machine: Machine) -> str:
    """What would bind memory that is mostly elsewhere to the nodes that were decided; empty where it is bound."""
    locality, decision = facts["locality"], facts["decision"]
    if facts["vm"] or not decision or decision["mems"] or facts["memory_binding"] == MemoryMode.NONE.value:
        return ""
    nodes = memory.mems_for(machine, NodeSet.parse(decision["nodes"]), MemoryMode.BIND)
    if locality is None or locality >= MOSTLY or nodes is None or machine.memory_nodes <= nodes:
        return ""
    return f"; user.numa.memory=bind would bind it to {show_nodes(nodes)}"


def _decided(facts: dict[str, Any]) -> str:
    decision = facts["decision"]
    mems = "memory not bound"
    if decision["mems"]:
        mems = f"memory {'belongs on' if facts['vm'] else 'bound to'} {show_nodes(decision['mems'])}"
    distance = decision["mean_distance"]
    apart = "" if distance is None else f"; mean distance of its nodes {distance:.2f}"
    return f"{show_nodes(decision['nodes'])}, CPUs {decision['cpus']}, {mems}{apart}"


def _loads(loads: dict[str, float | None]) -> str:
    return ", ".join(f"{node}: {'unknown' if load is None else f'{load:.2f}'}" for node, load in loads.items())
