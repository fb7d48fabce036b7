"""`incus-numa check`: what will not work here, and what would crash or confuse the server."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from incus_numa.cli import findings, output
from incus_numa.cli.findings import Finding, Severity
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.cli.wiring import Session, cgroup_files, connect
from incus_numa.errors import UnreachableError
from incus_numa.server import demand
from incus_numa.settings import Settings
from incus_numa.topology import sysfs


@click.command()
@formatted
@common
def command(config_file: Path | None, log_level: str, output_format: str) -> int:
    """Check host, server and instances; exit 4 if anything but notes was found.

    Example: incus-numa check
    """
    start_logging("warning" if log_level == "info" else log_level)
    settings = load_settings(config_file)
    machine = sysfs.read_machine(Path(settings.host.sysfs), Path(settings.host.procfs))
    found = findings.check_host(machine, cgroup_files(settings).check(), is_root=os.geteuid() == 0)
    unreachable: UnreachableError | None = None
    try:
        found += asyncio.run(_check_server(settings))
    except UnreachableError as error:
        unreachable = error
    rows = [{"severity": one.severity.value, "about": one.about, "finding": one.text} for one in found]
    output.emit(output_format, rows, rows, lambda: _print(found))
    if unreachable is not None:
        raise unreachable
    return EXIT_REFUSED if any(one.severity is not Severity.NOTE for one in found) else 0


def _print(found: list[Finding]) -> None:
    for one in sorted(found, key=lambda one: list(Severity).index(one.severity)):
        click.echo(f"{one.severity.value:8} {one.about}: {one.text}")
    if not found:
        click.echo("nothing to complain about", err=True)


async def _check_server(settings: Settings) -> list[Finding]:
    async with connect(settings) as session:
        listing = await session.server.list_instances()
        found = [Finding(severity=Severity.WARNING, about="server", text=problem) for problem in listing.problems]
        machine = session.world.machine
        for raw in sorted(listing.instances, key=lambda one: one.key):
            instance = demand.instance_from(raw, machine, settings.placement)
            found += findings.check_instance(raw, instance, session.info, machine)
        return found + await _check_running(session)


async def _check_running(session: Session) -> list[Finding]:
    await session.world.look_at_everything()
    found = []
    for seen in session.world.all_seen():
        actual = session.cgroups.effective_cpus(seen.group) if seen.group is not None else None
        found += findings.check_placed(seen, actual, session.world.machine)
    return found
