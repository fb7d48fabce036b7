"""`incus-numa list`: placements and load now."""

from __future__ import annotations

import asyncio
from fnmatch import fnmatchcase
from pathlib import Path

import click

from incus_numa.cli import output
from incus_numa.cli.completing import complete_instance, complete_project
from incus_numa.cli.in_force import load_shown
from incus_numa.cli.options import deciding, formatted, look_s, start_logging, windowed
from incus_numa.cli.survey import survey
from incus_numa.cli.told import Listing, ask_listing, follow_daemon
from incus_numa.facts.rows import instance_rows, node_rows
from incus_numa.settings import Settings

COLUMNS = (
    *("project", "name", "type", "vcpus", "memory_bytes", "nodes", "cpus", "mems", "state", "group", "exclusive"),
    *("load_cpus", "locality"),
)


@click.command(name="list")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete_instance)
@click.option("--project", default=None, shell_complete=complete_project, help="Only instances of this project.")
@windowed
@formatted
@deciding
def command(
    *,
    config_file: Path | None,
    log_level: str,
    output_format: str,
    names: tuple[str, ...],
    project: str | None,
    window: float | None,
) -> None:
    """List running instances with their nodes, CPUs, memory nodes and load, and the load of every node.

    With names, only those instances; a name may have * and ?, quoted from the
    shell.

    Example: incus-numa list db 'web*'
    """
    start_logging(log_level)
    settings = load_shown(config_file)
    found = asyncio.run(_find(settings, project, window))
    here = [row for row in found.instances if project in (None, row["project"])]
    rows = [row for row in here if not names or any(fnmatchcase(row["name"], name) for name in names)]
    data = {"instances": rows, "nodes": found.nodes}
    output.emit(output_format, data, rows, lambda: _tables(found, rows), columns=COLUMNS)
    if not here and (output_format == "table" or project is not None):
        click.echo(_nobody(found, project), err=True)
    for name in names if here else ():
        if not any(fnmatchcase(row["name"], name) for row in here):
            click.echo(f"no instance that runs is called {name}", err=True)
    for problem in found.problems:
        click.echo(f"Warning: {problem}", err=True)


async def _find(settings: Settings, project: str | None, window: float | None) -> Listing:
    """What the daemon knows, or what is seen here. Raises UnreachableError, and ReportError for no such project."""
    told = None if window is not None else await ask_listing(settings)
    # Only the server knows whether there is a project in which nothing runs.
    if told is not None and (project is None or any(row["project"] == project for row in told.instances)):
        return told
    settings = await follow_daemon(settings)
    found = await survey(settings, look_s(settings, window), project)
    return Listing(
        instances=instance_rows(found),
        nodes=node_rows(found),
        problems=(*found.problems, *found.plan.warnings),
    )


def _nobody(found: Listing, project: str | None) -> str:
    """Why no instance is listed, as a sentence."""
    projects = ", ".join(sorted({row["project"] for row in found.instances}))
    if project is None or not projects:
        return "no instance runs"
    return f"no instance runs in project {project}, but in {projects}"


def _tables(found: Listing, rows: list[output.Row]) -> None:
    """Instances and nodes; the headers are short, so that both fit into 80 columns."""
    shown = [
        row
        | {"memory": output.show_bytes(row["memory_bytes"]), "vm": "yes" if row["type"] != "container" else None}
        | {"busy": row["load_cpus"], "local": output.show_part(row["locality"])}
        for row in rows
    ]
    columns = ["name", "vcpus", "memory", "nodes", "cpus", "mems", "state"]
    columns += [name for name in ("group", "exclusive") if any(row[name] for row in rows)]
    columns += [name for name in ("busy", "local") if any(row[name] is not None for row in shown)]
    if any(row["project"] != "default" for row in rows):
        columns.insert(0, "project")
    if any(row["vm"] for row in shown):
        columns.insert(columns.index("vcpus"), "vm")
    if shown:
        output.print_table([{name: row[name] for name in columns} for row in shown])
        output.write("")
    is_measured = any(row["measured_load"] is not None for row in found.nodes)
    output.print_table(
        [
            {"node": row["node"], "cpus": row["cpus"], "load": row["load"]}
            | ({"measured": row["measured_load"]} if is_measured else {})
            | {"memory": output.show_bytes(row["memory_bytes"]), "free": output.show_bytes(row["free_bytes"])}
            for row in found.nodes
        ]
    )
