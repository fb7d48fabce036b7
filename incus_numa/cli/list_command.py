"""`incus-numa list`: placements and load now."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from incus_numa.cli import output
from incus_numa.cli.options import common, formatted, load_settings, look_s, start_logging, windowed
from incus_numa.cli.survey import survey
from incus_numa.facts.rows import instance_rows, node_rows
from incus_numa.facts.survey import Survey

COLUMNS = (
    *("project", "name", "type", "vcpus", "memory_bytes", "nodes", "cpus", "mems", "state", "group", "exclusive"),
    *("load_cpus", "locality"),
)


@click.command(name="list")
@click.option("--project", default=None, help="Only instances of this project.")
@windowed
@formatted
@common
def command(
    *, config_file: Path | None, log_level: str, output_format: str, project: str | None, window: float | None
) -> None:
    """List running instances with their nodes, CPUs, memory nodes and load, and the load of every node.

    Example: incus-numa list --format json
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    found = asyncio.run(survey(settings, look_s(settings, window), project))
    rows = instance_rows(found, project)
    data = {"instances": rows, "nodes": node_rows(found)}
    output.emit(output_format, data, rows, lambda: _tables(found, rows), columns=COLUMNS)
    if not rows and (output_format == "table" or project is not None):
        click.echo(_nobody(found, project), err=True)
    for problem in (*found.problems, *found.plan.warnings):
        click.echo(f"Warning: {problem}", err=True)


def _nobody(found: Survey, project: str | None) -> str:
    """Why no instance is listed, as a sentence."""
    projects = ", ".join(sorted({seen.instance.key.project for seen in found.seen}))
    if project is None or not projects:
        return "no instance runs"
    return f"no instance runs in project {project}, but in {projects}"


def _tables(found: Survey, rows: list[output.Row]) -> None:
    """Instances and nodes; the headers are short, so that both fit into 80 columns."""
    shown = [
        row
        | {"memory": output.show_bytes(row["memory_bytes"])}
        | {"busy": row["load_cpus"], "local": output.show_part(row["locality"])}
        for row in rows
    ]
    columns = ["name", "vcpus", "memory", "nodes", "cpus", "mems", "state"]
    columns += [name for name in ("group", "exclusive") if any(row[name] for row in rows)]
    columns += [name for name in ("busy", "local") if any(row[name] is not None for row in shown)]
    if any(row["project"] != "default" for row in rows):
        columns.insert(0, "project")
    if any(row["type"] != "container" for row in rows):
        columns.insert(columns.index("vcpus"), "type")
    if shown:
        output.print_table([{name: row[name] for name in columns} for row in shown])
        output.write("")
    output.print_table(
        [
            {"node": row["node"], "cpus": row["cpus"], "load": row["load"]}
            | ({} if found.measured is None else {"measured": row["measured_load"]})
            | {"memory": output.show_bytes(row["memory_bytes"]), "free": output.show_bytes(row["free_bytes"])}
            for row in node_rows(found)
        ]
    )
