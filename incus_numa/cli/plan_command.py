"""`incus-numa plan`: decides offline, from files; touches nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from incus_numa.cli import output
from incus_numa.cli.fitting import load_fitting, warn_of_unused
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import FILE, common, formatted, named, on_machine, read_input, start_logging, with_settings
from incus_numa.errors import ConfigError
from incus_numa.model.instance import MemoryMode
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import document as plan_document
from incus_numa.policy import planner, reservations
from incus_numa.topology import document as machine_document

COLUMNS = ("instance", "nodes", "cpus", "mems", "moved", "reason")


@click.command()
@on_machine
@click.option("--instances", "instances_file", metavar="FILE", type=FILE, required=True, help="List of instances.")
@click.option("--rebalance", is_flag=True, help="Also move what pays (not in this version).")
@with_settings
@formatted
@common
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

    Example: incus-numa plan --machine m.json --instances i.json -f json
    """
    start_logging(log_level)
    if rebalance:
        raise click.UsageError("--rebalance is not there yet: moving by measured load comes in a later version")
    settings = load_fitting(settings_file or config_file, lambda _: _machine_if_good(machine_file))
    warn_of_unused(settings)
    machine, snapshot = read_documents(machine_file, instances_file, MemoryMode(settings.placement.memory))
    snapshot = replace(snapshot, machine=reservations.reserve(machine, settings.memory))
    started = time.perf_counter()
    plan = planner.plan(snapshot, settings.placement)
    elapsed_ms = (time.perf_counter() - started) * 1000
    data = plan_document.render_plan(plan, elapsed_ms)
    output.emit(output_format, data, rows(plan), lambda: print_plan(plan), columns=COLUMNS)
    for warning in (*machine.warnings, *plan.warnings):
        click.echo(f"Warning: {warning}", err=True)
    return EXIT_REFUSED if plan.rejections else 0


def _machine_if_good(machine_file: Path) -> Machine | None:
    """The machine; None if it cannot be read, which `read_documents` tells with what is wrong beside it."""
    try:
        return machine_document.parse_machine(read_input(machine_file))
    except ConfigError:
        return None


def read_documents(machine_file: Path, instances_file: Path, memory: MemoryMode) -> tuple[Machine, Snapshot]:
    """Both files. Raises ConfigError with every problem of both, as far as one can be read without the other."""
    try:
        machine = machine_document.parse_machine(read_input(machine_file))
    except ConfigError as error:
        problems = named(machine_file, error).problems
        try:
            read_input(instances_file)
        except ConfigError as other:
            problems += named(instances_file, other).problems
        raise ConfigError(problems) from error
    try:
        return machine, plan_document.parse_snapshot(read_input(instances_file), machine, memory)
    except ConfigError as error:
        raise named(instances_file, error) from error


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


def print_plan(plan: Plan) -> None:
    """Placements, rejections and node load as tables; the column for moves only if anything moves."""
    columns = [name for name in COLUMNS if name != "moved" or any(one.moved for one in plan.placements)]
    output.print_table([{name: row[name] for name in columns} for row in rows(plan)], empty="no managed instance")
    if plan.node_load:
        output.write("")
        output.print_table([{"node": node, "load": load} for node, load in sorted(plan.node_load.items())])
