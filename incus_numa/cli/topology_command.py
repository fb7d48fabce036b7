"""`incus-numa topology`: the machine as incus-numa sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from incus_numa.cli import fitting, output
from incus_numa.cli.options import DEFAULT_CONFIG, common, formatted_with, load_settings, named, start_logging
from incus_numa.cli.told import ask_seats
from incus_numa.cli.tree import render_tree
from incus_numa.cpuset import NodeSet
from incus_numa.errors import ConfigError
from incus_numa.facts.picture import render_picture
from incus_numa.model.machine import Machine, Node
from incus_numa.settings import Settings
from incus_numa.topology import document, sysfs

WIDEST_MATRIX = 16
"""Up to so many nodes the table of distances fits into 80 columns."""


@click.command()
@click.option(
    "--sysfs",
    "snapshot",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="A directory that holds a snapshot's sys/ and proc/, instead of this host.",
)
@formatted_with("tree", "svg")
@common
def command(config_file: Path | None, log_level: str, output_format: str, snapshot: Path | None) -> None:
    """Show nodes, CPUs, memory and distances of the machine.

    As svg it is a picture, with the instances that the daemon knows of.

    Example: incus-numa topology --format json > machine.json
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    missing = fitting.list_missing_trees(settings.host).get("sysfs")
    if snapshot is None and missing is not None:
        raise named(config_file or Path(DEFAULT_CONFIG), ConfigError((missing,)))
    if snapshot is None:
        machine = sysfs.read_machine(Path(settings.host.sysfs), Path(settings.host.procfs), name=_host_name())
    else:
        machine = read_snapshot(snapshot)
    if output_format == "tree":
        output.write(render_tree(machine))
    elif output_format == "svg":
        output.write(_draw(machine, settings if snapshot is None else None))
    else:
        _show(machine, output_format)


def _draw(machine: Machine, settings: Settings | None) -> str:
    """A picture of the machine; without `settings` no daemon is asked who is on it."""
    known = None if settings is None else asyncio.run(ask_seats(settings, machine))
    return render_picture(machine, *(known or ())).rstrip("\n")


def _show(machine: Machine, output_format: str) -> None:
    output.emit(output_format, document.render_machine(machine), node_rows(machine), lambda: _tables(machine))
    for warning in machine.warnings if output_format in ("table", "csv") else ():
        click.echo(f"Warning: {warning}", err=True)


def read_snapshot(folder: Path) -> Machine:
    """The machine whose `sys/` and `proc/` a folder holds. Raises ConfigError if it holds neither."""
    if not folder.is_dir():
        raise ConfigError((f"{folder}: no such directory; expected one that holds sys/ and proc/ of a machine",))
    if not (folder / "sys").is_dir() and not (folder / "proc").is_dir():
        raise ConfigError((f"{folder}: expected a directory that holds sys/ and proc/ of a machine",))
    return sysfs.read_machine(folder / "sys", folder / "proc", name=folder.name)


def _host_name() -> str:
    import platform

    return platform.node()


def node_rows(machine: Machine) -> list[output.Row]:
    """One row per node, with numbers as they are."""
    return [
        {
            "node": node.id,
            "cpus": str(node.cpus),
            "cores": len({cpu.core for cpu in machine.cpus_by_node[node.id]}),
            "isolated": str(node.cpus & machine.isolated),
            "memory_bytes": node.memory_bytes,
            "free_bytes": node.free_bytes,
        }
        for node in machine.nodes
    ]


def _tables(machine: Machine) -> None:
    columns = ("node", "cpus", "cores", "isolated")
    output.print_table(
        [
            {name: row[name] for name in columns}
            | {"memory": output.show_bytes(row["memory_bytes"]), "free": output.show_bytes(row["free_bytes"])}
            for row in node_rows(machine)
        ],
        empty="no node found",
    )
    if len(machine.nodes) > 1 and any(node.distances for node in machine.nodes):
        output.write("")
        output.print_table(_distance_rows(machine))


def _distance_rows(machine: Machine) -> list[output.Row]:
    """The table of distances; where it would be too wide, the nodes at each distance."""
    if len(machine.nodes) <= WIDEST_MATRIX:
        return [
            {"distance": node.id} | {str(other.id): node.distances.get(other.id) for other in machine.nodes}
            for node in machine.nodes
        ]
    return [{"node": node.id, "distance: nodes": _grouped(node)} for node in machine.nodes]


def _grouped(node: Node) -> str:
    distances = sorted(set(node.distances.values()))
    return "  ".join(
        f"{distance}: {NodeSet(other for other, there in node.distances.items() if there == distance)}"
        for distance in distances
    )
