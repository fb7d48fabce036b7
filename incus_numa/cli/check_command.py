"""`incus-numa check`: what will not work here, and what would crash or confuse the server."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from incus_numa.cli import findings, output
from incus_numa.cli.findings import Capacity, Finding, Severity
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.cli.wiring import Session, cgroup_files, connect
from incus_numa.errors import ReportError, UnreachableError
from incus_numa.policy import planner
from incus_numa.server import demand
from incus_numa.server.protocol import ServerInfo, ServerInstance
from incus_numa.settings import Settings
from incus_numa.topology import resources, sysfs

COLUMNS = ("severity", "about", "finding")


@click.command()
@formatted
@common
def command(config_file: Path | None, log_level: str, output_format: str) -> int:
    """Check host, server and instances; exit 4 if anything but notes was found.

    Example: incus-numa check
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    machine = sysfs.read_machine(Path(settings.host.sysfs), Path(settings.host.procfs))
    found = findings.check_host(machine, cgroup_files(settings).check(), is_root=os.geteuid() == 0)
    found += findings.check_memory(settings, machine)
    unreachable: UnreachableError | None = None
    try:
        found += asyncio.run(_check_server(settings))
    except UnreachableError as error:
        unreachable = error
    found.sort(key=lambda one: list(Severity).index(one.severity))
    rows = [{"severity": one.severity.value, "about": one.about, "finding": one.text} for one in found]
    output.emit(output_format, rows, rows, lambda: _print(found), columns=COLUMNS)
    if unreachable is not None:
        raise unreachable
    if not found:
        click.echo("no problem found", err=True)
    return EXIT_REFUSED if any(one.severity is not Severity.NOTE for one in found) else 0


def _print(found: list[Finding]) -> None:
    if found:
        output.write("\n".join(f"{one.severity.value:8} {one.about}: {one.text}" for one in found))


async def _check_server(settings: Settings) -> list[Finding]:
    async with connect(settings) as session:
        listing = await session.server.list_instances()
        found = [Finding(severity=Severity.WARNING, about="server", text=problem) for problem in listing.problems]
        machine, capacity = session.world.machine, await _capacity(session)
        for raw in sorted((one for one in listing.instances if _is_here(one, session.info)), key=lambda one: one.key):
            instance = demand.instance_from(raw, machine, settings.placement)
            found += findings.check_instance(raw, instance, session.info, machine, capacity)
        return found + await _check_running(session)


def _is_here(raw: ServerInstance, info: ServerInfo) -> bool:
    """Whether an instance is on this machine: in a cluster the server lists those of all members."""
    return info.member is None or raw.location in (None, "", "none", info.member)


async def _check_running(session: Session) -> list[Finding]:
    await session.world.look_at_everything()
    found, everybody = [], []
    for seen in sorted(session.world.all_seen(), key=lambda one: one.instance.key):
        actual = session.cgroups.effective_cpus(seen.group) if seen.group is not None else None
        everybody.append((seen.instance, seen.observed))
        found += findings.check_placed(seen.instance, seen.observed, actual, session.world.machine)
    plan = planner.plan(session.world.snapshot(), session.settings.placement)
    return found + findings.check_plan(plan) + findings.check_exclusive(plan, everybody)


async def _capacity(session: Session) -> Capacity:
    """What the server counts by: its own list of threads, or where it gives none, all CPUs of the kernel."""
    try:
        cpus, nodes = resources.count_cpus(await session.server.get_resources())
    except ReportError:
        cpus = nodes = 0
    if cpus and nodes:
        return Capacity(cpus=cpus, nodes=nodes)
    machine = session.world.machine
    present = sysfs.read_present(Path(session.settings.host.sysfs)) or machine.online
    return Capacity(cpus=len(present), nodes=sum(bool(node.cpus) for node in machine.nodes))
