"""`incus-numa topology`: the machine as incus-numa sees it."""

from __future__ import annotations

from pathlib import Path

import click

from incus_numa.cli import output
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.errors import ConfigError
from incus_numa.model.machine import Machine
from incus_numa.quantities import render_bytes
from incus_numa.topology import document, sysfs


@click.command()
@click.option(
    "--sysfs",
    "snapshot",
    type=click.Path(path_type=Path),
    default=None,
    help="A directory that holds a snapshot's sys/ and proc/, instead of this host.",
)
@formatted
@common
def command(config_file: Path | None, log_level: str, output_format: str, snapshot: Path | None) -> None:
    """Show nodes, CPUs, memory and distances of the machine.

    Example: incus-numa topology --format json > machine.json
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    if snapshot is None:
        machine = sysfs.read_machine(Path(settings.host.sysfs), Path(settings.host.procfs), name=_host_name())
    else:
        if not (snapshot / "sys").is_dir() and not (snapshot / "proc").is_dir():
            raise ConfigError((f"{snapshot}: expected a directory that holds sys/ and proc/ of a machine",))
        machine = sysfs.read_machine(snapshot / "sys", snapshot / "proc", name=snapshot.name)
    output.emit(output_format, document.render_machine(machine), _rows(machine), lambda: _table(machine))
    for warning in machine.warnings if output_format in ("table", "csv") else ():
        click.echo(f"Warning: {warning}", err=True)


def _host_name() -> str:
    import platform

    return platform.node()


def _rows(machine: Machine) -> list[output.Row]:
    return [
        {
            "node": node.id,
            "cpus": str(node.cpus),
            "cores": len({machine.cpu_by_id[cpu].core for cpu in node.cpus if cpu in machine.cpu_by_id}),
            "isolated": str(node.cpus & machine.isolated),
            "memory": None if node.memory_bytes is None else render_bytes(node.memory_bytes),
            "free": None if node.free_bytes is None else render_bytes(node.free_bytes),
        }
        for node in machine.nodes
    ]


def _table(machine: Machine) -> None:
    output.print_table(_rows(machine), empty="no node found")
    if any(node.distances for node in machine.nodes):
        output.print_table(
            [
                {"distance": node.id} | {str(other.id): node.distances.get(other.id) for other in machine.nodes}
                for node in machine.nodes
            ]
        )
