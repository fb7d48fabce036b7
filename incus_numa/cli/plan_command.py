"""`incus-numa plan`: decides offline, from files; touches nothing."""

from __future__ import annotations

import time
from pathlib import Path

import click

from incus_numa.cli import output
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.errors import ConfigError
from incus_numa.model.instance import MemoryMode
from incus_numa.model.plan import Plan
from incus_numa.policy import document as plan_document
from incus_numa.policy import planner
from incus_numa.topology import document as machine_document


@click.command()
@click.option("--machine", "machine_file", type=click.Path(path_type=Path), required=True, help="Machine document.")
@click.option("--instances", "instances_file", type=click.Path(path_type=Path), required=True, help="Instances.")
@click.option("--rebalance", is_flag=True, help="Also move what pays (not in this version).")
@click.option("--settings", "settings_file", type=click.Path(path_type=Path), default=None, help="Configuration file.")
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

    Example: incus-numa plan --machine machine.json --instances instances.json -f json
    """
    start_logging(log_level)
    if rebalance:
        raise click.UsageError("--rebalance is not there yet: moving by measured load comes in a later version")
    settings = load_settings(settings_file or config_file)
    machine = machine_document.parse_machine(_read(machine_file))
    snapshot = plan_document.parse_snapshot(_read(instances_file), machine, MemoryMode(settings.placement.memory))
    started = time.perf_counter()
    plan = planner.plan(snapshot, settings.placement)
    elapsed_ms = (time.perf_counter() - started) * 1000
    output.emit(output_format, plan_document.render_plan(plan, elapsed_ms), rows(plan), lambda: print_plan(plan))
    for warning in plan.warnings:
        click.echo(f"Warning: {warning}", err=True)
    return EXIT_REFUSED if plan.rejections else 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError((f"{path}: not readable: {error.strerror}",)) from error


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
    """Placements, rejections and node load as tables."""
    output.print_table(rows(plan), empty="no managed instance")
    output.print_table([{"node": node, "load": load} for node, load in sorted(plan.node_load.items())])
