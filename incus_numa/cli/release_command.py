"""`incus-numa release [NAME]`: hands instances back, so that nothing of ours is left on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from incus_numa.applier.protocol import describe_change
from incus_numa.cli import output, running
from incus_numa.cli.completing import complete_instance, complete_project
from incus_numa.cli.main import EXIT_FAILED
from incus_numa.cli.options import common_with, formatted, load_settings, start_logging
from incus_numa.cli.survey import check_project, tell_whereabouts
from incus_numa.cli.wiring import Session, connect
from incus_numa.daemon.seen import Seen
from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Outcome, StepResult
from incus_numa.settings import Settings

COLUMNS = ("project", "instance", "step", "result", "detail")

NAMED = 5
"""So many instances are named in a sentence, the others are counted."""

ASK = "unset limits.cpu.nodes (LXD: user.limits.cpu.nodes)"


@click.command()
@click.argument("name", required=False, shell_complete=complete_instance)
@click.option(
    "--project",
    default=None,
    shell_complete=complete_project,
    help="The instance's project; without NAME, only instances of this project.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@formatted
@common_with("error")
def command(
    *,
    config_file: Path | None,
    log_level: str,
    output_format: str,
    name: str | None,
    project: str | None,
    dry_run: bool,
) -> int:
    """Hand an instance back, or all: all CPUs, memory not bound, no decision kept.

    An instance that is managed is placed again by the next pass: while the daemon runs this is refused, but for
    --dry-run.

    Example: incus-numa release db
    """
    start_logging(log_level)
    settings = load_settings(config_file)
    key = None if name is None else InstanceKey(project or "default", name)
    released, results = asyncio.run(_release(settings, key, project, dry_run=dry_run))
    found = rows([one.instance.key for one in released], results, dry_run=dry_run)
    output.emit(output_format, found, found, lambda: _print(found), columns=COLUMNS)
    still = [one.instance.key for one in released if one.instance.managed]
    if still and not dry_run:
        text = f"{_names(still)} may be placed again by the next pass, being managed: to prevent that, {ASK}"
        click.echo(f"Note: {text}", err=True)
    return EXIT_FAILED if any(one.outcome in (Outcome.FAILED, Outcome.BUSY) for one in results) else 0


async def _release(
    settings: Settings, key: InstanceKey | None, project: str | None, *, dry_run: bool
) -> tuple[Sequence[Seen], Sequence[StepResult]]:
    """Who had something of ours, and what was done. Raises ReportError if it would be undone at once."""
    async with connect(settings) as session:
        await check_project(session.server, project)
        lacking = () if dry_run else session.cgroups.check()
        if lacking:
            raise ReportError("; ".join(lacking))
        await session.world.look_at_everything()
        if key is not None and session.world.get(key) is None:
            raise ReportError(await tell_whereabouts(session, key))
        ours = _ours(session, key, project)
        refusal = _refused_by_daemon(settings, [one.instance.key for one in ours if one.instance.managed])
        if refusal is not None and not dry_run:
            raise ReportError(refusal)
        if refusal is not None:
            click.echo(f"Note: this would be refused now: {refusal}", err=True)
        reconciler = session.reconciler(dry_run=dry_run)
        results: list[StepResult] = []
        for one in ours:
            results += await reconciler.release(one.instance.key)
        return ours, results


def _ours(session: Session, key: InstanceKey | None, project: str | None) -> list[Seen]:
    """Running instances that have something of ours, by key."""
    marked = (one for one in session.world.all_seen() if one.marked is not None)
    wanted = (one for one in marked if key in (None, one.instance.key) and project in (None, one.instance.key.project))
    return sorted(wanted, key=lambda one: one.instance.key)


def _refused_by_daemon(settings: Settings, managed: Sequence[InstanceKey]) -> str | None:
    """Why these are not released now, as a sentence that says what to do; None where no daemon runs."""
    daemon = running.find_daemon(settings.daemon) if managed else None
    if daemon is None:
        return None
    return (
        f"the daemon runs ({daemon}) and would place {_names(managed)} again at once: {ASK}, and it releases "
        "by itself, or stop the daemon first (systemctl stop incus-numa)"
    )


def rows(released: Sequence[InstanceKey], results: Sequence[StepResult], *, dry_run: bool) -> list[output.Row]:
    """One row per step, and one without a step for an instance that had only our mark left on it."""
    found: list[output.Row] = []
    for key in released:
        own = [one for one in results if one.step.key == key]
        name: output.Row = {"project": key.project, "instance": key.name}
        found += [
            name | {"step": describe_change(one.step), "result": one.outcome.value, "detail": one.detail or None}
            for one in own
        ]
        if not own:
            outcome = Outcome.WOULD_DO if dry_run else Outcome.DONE
            found.append(name | {"step": None, "result": outcome.value, "detail": None})
    return found


def _print(found: list[output.Row]) -> None:
    if not found:
        click.echo("nothing to release", err=True)
    about = None
    for row in found:
        key = InstanceKey(row["project"], row["instance"])
        if key != about:
            output.write(f"{key}: handed back")
        about = key
        detail = f": {row['detail']}" if row["detail"] else ""
        output.write(f"  {row['result']:9} {row['step'] or 'forget what was decided'}{detail}")


def _names(keys: Sequence[InstanceKey]) -> str:
    more = len(keys) - NAMED
    names = ", ".join(str(key) for key in keys[:NAMED])
    return f"{names} and {more} more" if more > 0 else names
