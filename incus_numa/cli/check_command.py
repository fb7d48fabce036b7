"""`incus-numa check`: what will not work here, and what would crash or confuse the server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

import click

from incus_numa.cli import fitting, output, running
from incus_numa.cli.findings import host, instances, placed, server
from incus_numa.cli.findings.finding import Finding, Kind, Severity, in_order
from incus_numa.cli.findings.placed import Running
from incus_numa.cli.in_force import load_checked
from incus_numa.cli.main import EXIT_REFUSED
from incus_numa.cli.options import deciding, formatted, load_settings, start_logging
from incus_numa.cli.standing import take_ground
from incus_numa.cli.told import ask_policy
from incus_numa.cli.wiring import Session, cgroup_files, connect
from incus_numa.daemon.seen import Seen
from incus_numa.errors import GoneError, ReportError, UnreachableError
from incus_numa.host import features
from incus_numa.host.features import KernelFeatures
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.policy import planner, reservations
from incus_numa.server import demand
from incus_numa.server.protocol import Project, is_elsewhere
from incus_numa.settings import Settings, salvage_over
from incus_numa.topology import sysfs

COLUMNS = ("severity", "about", "finding", "code", "do")


@click.command()
@formatted
@deciding
def command(config_file: Path | None, log_level: str, output_format: str) -> int:
    """Check host, server and instances; exit 4 if anything but notes was found.

    Example: incus-numa check
    """
    start_logging(log_level)
    settings, left_out = _load(config_file)
    paths = settings.host
    kernel = features.read_features(Path(paths.sysfs), Path(paths.procfs), Path(paths.cgroup))
    missing = fitting.list_missing_trees(paths)
    collected = host.check_settings(missing.values()) + host.check_policy(left_out)
    unreachable: UnreachableError | None = None
    if "sysfs" not in missing:
        collected += _check_host(settings, kernel, missing)
        try:
            collected += asyncio.run(_check_server(settings, kernel))
        except UnreachableError as error:
            unreachable = error
    found = in_order(collected)
    rows = [_row(one) for one in found]
    output.emit(output_format, rows, rows, lambda: _print(found), columns=COLUMNS)
    if unreachable is not None:
        raise unreachable
    if not found:
        click.echo("no problem found", err=True)
    return EXIT_REFUSED if any(one.severity is not Severity.NOTE for one in found) else 0


def _load(config_file: Path | None) -> tuple[Settings, tuple[str, ...]]:
    """The settings in force, and what was set beside the file and is not in force: as the daemon tells, if one does.

    A file that is not the daemon's is checked by itself. Raises ConfigError.
    """
    settings = load_settings(config_file)
    told = asyncio.run(ask_policy(settings))
    if told is None or (config_file is not None and os.path.realpath(config_file) != os.path.realpath(told.file)):
        return load_checked(config_file)
    if told.changes:
        click.echo(f"Note: set by `policy set`, over {told.file}: {', '.join(told.list_keys())}", err=True)
    return salvage_over(settings, told.changes, lambda _: ()).settings, told.left_out


def _check_host(settings: Settings, kernel: KernelFeatures, missing: Container[str]) -> list[Finding]:
    """The host below its sysfs, and what is set about it; of other trees that are missing nothing is told again."""
    paths = settings.host
    machine = sysfs.read_machine(Path(paths.sysfs), Path(paths.procfs))
    cgroups = () if "cgroup" in missing else cgroup_files(settings).check()
    found = host.check_host(machine, kernel, cgroups, is_root=os.geteuid() == 0)
    reserved = reservations.check_reserved_cpus(settings.placement, machine, sysfs.read_present(Path(paths.sysfs)))
    found += host.check_settings(reserved) + host.check_memory(settings, machine)
    return found if reserved else found + host.check_usable(machine)


def _row(one: Finding) -> output.Row:
    values = (one.severity.value, one.about, one.text, one.kind.value, one.do)
    return dict(zip(COLUMNS, values, strict=True))


def _print(found: tuple[Finding, ...]) -> None:
    if found:
        lines = (f"{one.severity.value:8} {one.about}: {one} [{one.kind.value}]" for one in found)
        output.write("\n".join(output.fold(line, 9) for line in lines))


async def _check_server(settings: Settings, kernel: KernelFeatures) -> list[Finding]:
    async with connect(settings) as session:
        listing = await session.server.list_instances()
        others = filter(None, (session.found.passed_over,))
        found = server.check_server(session.info, listing.problems, others)
        here = {one.key: one for one in listing.instances if not is_elsewhere(one.location, session.info.member)}
        forbidden = server.find_forbidden(session.info, await _projects(session), here.values())
        found += server.check_projects(forbidden, here, settings.placement)
        machine, placement = session.world.machine, settings.placement
        meant = {key: demand.instance_from(raw, machine, placement) for key, raw in here.items()}
        ground = await take_ground(session, meant)
        for key, instance in meant.items():
            found += instances.check_instance(here[key], instance, ground)
            found += instances.check_unused(here[key], instance, ground, placement)
        return found + await _check_running(session, kernel, forbidden, found)


async def _projects(session: Session) -> tuple[Project, ...]:
    """All projects; none where the server does not tell."""
    try:
        return await session.server.list_projects()
    except (ReportError, GoneError):
        return ()


async def _check_running(
    session: Session, kernel: KernelFeatures, forbidden: frozenset[InstanceKey], so_far: list[Finding]
) -> list[Finding]:
    world, settings = session.world, session.settings
    await world.look_at_everything()
    plan = planner.plan(world.snapshot(), settings.placement)
    places = {place.key: place for place in plan.placements}
    answers = places | {one.key: one for one in plan.rejections}
    everybody = [
        replace(_running(session, seen, forbidden), answer=answers.get(seen.instance.key)) for seen in world.all_seen()
    ]
    placeable = [one.observed for one in everybody if one.instance.key in places]
    found = host.check_daemon(running.find_daemon(settings.daemon), placeable)
    found += host.check_balancing(kernel, world.machine, [one.observed for one in everybody])
    for one in everybody:
        found += _check_one(one, world.machine, settings)
    told: dict[str, set[Kind]] = {}
    for earlier in so_far:
        told.setdefault(earlier.about, set()).add(earlier.kind)
    found += placed.check_plan(plan, told)
    found += placed.check_nobody_placed(plan)
    found += placed.check_few_cpus([one.instance for one in everybody], world.machine, settings.placement)
    return found + placed.check_exclusive(plan, [(one.instance, one.observed) for one in everybody])


def _running(session: Session, seen: Seen, forbidden: frozenset[InstanceKey]) -> Running:
    actual = session.cgroups.effective_cpus(seen.group) if seen.group is not None else None
    is_forbidden = seen.instance.key in forbidden
    return Running(instance=seen.instance, observed=seen.observed, actual=actual, is_forbidden=is_forbidden)


def _check_one(one: Running, machine: Machine, settings: Settings) -> list[Finding]:
    if one.instance.type is InstanceType.CONTAINER:
        return placed.check_container(one, machine)
    return placed.check_vm(one, machine, settings.placement)
