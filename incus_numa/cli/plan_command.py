"""`incus-numa plan`: decides offline, from files; touches nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from incus_numa.cli import inputs, output, summary
from incus_numa.cli.fitting import warn_of_unused
from incus_numa.cli.in_force import load_deciding
from incus_numa.cli.inputs import Input
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import FILE, deciding, formatted, named, on_machine, start_logging, with_settings
from incus_numa.cpuset import NodeSet
from incus_numa.errors import ConfigError
from incus_numa.model.instance import MemoryMode
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan
from incus_numa.model.rebalance import Decision, History, Move
from incus_numa.model.snapshot import NOTHING, Decided, Snapshot
from incus_numa.policy import document as plan_document
from incus_numa.policy import planner, reservations
from incus_numa.policy.rebalance import decision as rebalancing
from incus_numa.settings import Settings
from incus_numa.topology import document as machine_document

HELD = "`held` in --format json"

COLUMNS = ("instance", "nodes", "cpus", "mems", "moved", "reason")


@click.command()
@on_machine
@click.option("--instances", "instances_file", metavar="FILE", type=FILE, required=True, help="List of instances.")
@click.option("--rebalance", is_flag=True, help="Also move what pays by measured load (load_cpus).")
@with_settings
@formatted
@deciding
def command(
    *,
    config_file: Path | None,
    log_level: str,
    output_format: str,
    machine_file: Path,
    instances_file: Path,
    rebalance: bool,
    settings_file: Path | None,
) -> int:
    """Decide where instances belong on a machine, both given as JSON files.

    One of the files may be "-" for standard input.

    Example: incus-numa plan --machine m.json --instances i.json -f json
    """
    start_logging(log_level)
    inputs.check_stdin({"--machine": machine_file, "--instances": instances_file})
    machine_input = inputs.open_input(machine_file)
    settings = load_deciding(settings_file or config_file, lambda _: _machine_if_good(machine_input))
    warn_of_unused(settings)
    memory = MemoryMode(settings.placement.memory)
    machine, snapshot = read_documents(machine_input, inputs.open_input(instances_file), memory)
    snapshot = replace(snapshot, machine=reservations.reserve(machine, settings.memory))
    started = time.perf_counter()
    plan = planner.plan(snapshot, settings.placement)
    decision = None
    if rebalance:
        plan, decision = move(plan, snapshot, settings)
    elapsed_ms = (time.perf_counter() - started) * 1000
    data = plan_document.render_plan(plan, elapsed_ms)
    if decision is not None:
        data |= plan_document.render_decision(decision) | {"why": summary.summarize(decision, HELD)}
    output.emit(output_format, data, rows(plan), lambda: print_plan(plan, decision), columns=COLUMNS)
    for warning in (*machine.warnings, *plan.warnings):
        click.echo(f"Warning: {warning}", err=True)
    return EXIT_REFUSED if plan.rejections else 0


def move(plan: Plan, snapshot: Snapshot, settings: Settings) -> tuple[Plan, Decision]:
    """The plan with the moves by measured load that pay once it is carried out, and why those.

    The load need not have been uneven for any time, and nobody was moved before. Where no load is known there is no
    load of nodes.
    """
    decision = rebalancing.decide(
        _carried_out(plan, snapshot), History(), 0.0, settings.placement, settings.rebalance, forced=True
    )
    moved = {one.key: one for one in decision.plan.placements}
    joined = replace(plan, placements=tuple(moved.get(one.key, one) for one in plan.placements))
    after = planner.plan(_carried_out(joined, snapshot), settings.placement, only=frozenset())
    warnings = (*plan.warnings, *decision.plan.warnings)
    if not snapshot.load.cpus_by_instance:
        decision = replace(decision, node_load={}, why="no instance has load_cpus: nothing moves by load")
    return replace(joined, node_load=after.node_load, warnings=warnings), decision


def _carried_out(plan: Plan, snapshot: Snapshot) -> Snapshot:
    """What is there when a plan is carried out, but for memory: that is where it was."""
    now = dict(snapshot.observed)
    for one in plan.placements:
        before = now.get(one.key, NOTHING)
        now[one.key] = replace(
            before,
            nodes=one.nodes,
            cpus=one.cpus,
            mems=one.mems or NodeSet(),
            decided=Decided(nodes=one.nodes, cpus=one.cpus),
        )
    return replace(snapshot, observed=now)


def _machine_if_good(machine: Input) -> Machine | None:
    """The machine; None if it cannot be read, which `read_documents` tells with what is wrong beside it."""
    try:
        return machine_document.parse_machine(machine.read())
    except ConfigError:
        return None


def read_documents(machine_input: Input, instances: Input, memory: MemoryMode) -> tuple[Machine, Snapshot]:
    """Both files. Raises ConfigError with every problem of both, as far as one can be read without the other."""
    try:
        machine = machine_document.parse_machine(machine_input.read())
    except ConfigError as error:
        problems = named(machine_input.name, error).problems
        try:
            instances.read()
        except ConfigError as other:
            problems += named(instances.name, other).problems
        raise ConfigError(problems) from error
    try:
        return machine, plan_document.parse_snapshot(instances.read(), machine, memory)
    except ConfigError as error:
        raise named(instances.name, error) from error


def rows(plan: Plan) -> list[output.Row]:
    """Placements and rejections as rows."""
    placed = [
        {
            "instance": str(one.key),
            "nodes": str(one.nodes),
            "cpus": str(one.cpus),
            "mems": None if one.mems is None else str(one.mems),
            "moved": "yes" if one.moved else None,
            "reason": one.reason,
        }
        for one in plan.placements
    ]
    refused = [
        {"instance": str(one.key), "nodes": None, "cpus": None, "mems": None, "moved": None}
        | {"reason": f"refused ({one.reason.value}): {one.detail}"}
        for one in plan.rejections
    ]
    return placed + refused


def print_plan(plan: Plan, decision: Decision | None = None) -> None:
    """Placements, rejections, node load and moves by load; the column for moves only if anything moves."""
    columns = [name for name in COLUMNS if name != "moved" or any(one.moved for one in plan.placements)]
    output.print_table([{name: row[name] for name in columns} for row in rows(plan)], empty="no managed instance")
    if plan.node_load:
        output.write("")
        measured = {} if decision is None else decision.node_load
        output.print_table(
            [
                {"node": node, "load": load} | ({} if decision is None else {"measured before": measured.get(node)})
                for node, load in sorted(plan.node_load.items())
            ]
        )
    if decision is not None and decision.moves:
        output.write("")
        output.print_table([move_row(one) for one in decision.moves])
    if decision is not None:
        evenness = summary.tell_evenness(decision)
        output.write("\n" + "\n".join(filter(None, (evenness, summary.summarize(decision, HELD)))))


def move_row(move: Move) -> output.Row:
    """A move with its gain and price."""
    return {
        "move": str(move.key),
        "from": str(move.before),
        "to": str(move.after),
        "with": None if move.with_key is None else str(move.with_key),
        "busy CPUs": move.load_cpus,
        "memory": output.show_bytes(move.size_bytes),
        "gain": move.gain,
        "price": move.price,
    }
