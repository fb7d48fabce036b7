"""`incus-numa rebalance`: one pass now."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from incus_numa.applier.protocol import describe_change
from incus_numa.cli import output
from incus_numa.cli.findings import NO_CGROUP
from incus_numa.cli.fitting import load_for_host, warn_of_unused
from incus_numa.cli.main import EXIT_FAILED, EXIT_REFUSED
from incus_numa.cli.options import common_with, formatted, start_logging
from incus_numa.cli.wiring import connect
from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Outcome, PassReport
from incus_numa.settings import Settings

COLUMNS = ("project", "instance", "step", "result", "reason", "detail")


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done and why, and change nothing.")
@click.option("--project", default=None, help="Only instances of this project.")
@click.option("--max-moves", type=click.IntRange(min=0), default=None, help="Move at most this many placed instances.")
@formatted
@common_with("error")
def command(
    *,
    config_file: Path | None,
    log_level: str,
    output_format: str,
    dry_run: bool,
    project: str | None,
    max_moves: int | None,
) -> int:
    """Bring every managed instance to its nodes, and print what was done and why.

    Example: incus-numa rebalance --dry-run
    """
    start_logging(log_level)
    settings = load_for_host(config_file)
    warn_of_unused(settings)
    report, troubles = asyncio.run(_rebalance(settings, dry_run=dry_run, project=project, max_moves=max_moves))
    found = rows(report)
    empty = "nothing to do" if project is None else f"nothing to do in project {project}"
    output.emit(output_format, found, found, lambda: _print(found, empty), columns=COLUMNS)
    for problem in (*report.problems, *report.plan.warnings):
        click.echo(f"Warning: {problem}", err=True)
    for trouble in troubles:
        click.echo(f"Error: {trouble}", err=True)
    return EXIT_FAILED if troubles else _exit_code(report)


def _print(found: list[output.Row], empty: str) -> None:
    """For people: every instance with its reason, then its steps."""
    if not found:
        click.echo(empty, err=True)
    about = None
    for row in found:
        key = InstanceKey(row["project"], row["instance"])
        if row["step"] is None:
            output.write(f"{key}: refused, left as it is ({row['reason']}): {row['detail']}")
            continue
        if key != about:
            output.write(f"{key}: {row['reason']}")
        about = key
        detail = f": {row['detail']}" if row["detail"] else ""
        output.write(f"  {row['result']:9} {row['step']}{detail}")


async def _rebalance(
    settings: Settings, *, dry_run: bool, project: str | None, max_moves: int | None
) -> tuple[PassReport, list[str]]:
    """What the pass did, and a sentence for each instance that it did not bring to its place without a step failing."""
    async with connect(settings) as session:
        lacking = () if dry_run else session.cgroups.check()
        if lacking:
            # Else the server's record would be written where the CPUs cannot be.
            raise ReportError("; ".join(lacking))
        reconciler = session.reconciler(dry_run=dry_run)
        report = await reconciler.pass_over_everything(project=project, max_moves=max_moves)
        told = {one.step.key for one in report.results if one.outcome not in (Outcome.DONE, Outcome.FORBIDDEN)}
        troubles = []
        for key in (one.key for one in report.plan.placements):
            seen = session.world.get(key)
            if seen is not None and seen.observed.cpus is None:
                troubles.append(f"{key}: {NO_CGROUP}")
            elif key not in told and not dry_run and reconciler.has_drifted(key):
                troubles.append(f"{key} is not where it belongs: the server was busy with it or wrote, too; try again")
        return report, troubles


def rows(report: PassReport) -> list[output.Row]:
    """One row per step and per refusal; an instance that is right already has none."""
    reasons = {placement.key: placement.reason for placement in report.plan.placements}
    found: list[dict[str, Any]] = [
        {
            "project": result.step.key.project,
            "instance": result.step.key.name,
            "step": describe_change(result.step),
            "result": result.outcome.value,
            "reason": reasons.get(result.step.key, ""),
            "detail": result.detail or None,
        }
        for result in report.results
    ]
    found += [
        {
            "project": one.key.project,
            "instance": one.key.name,
            "step": None,
            "result": "refused",
            "reason": one.reason.value,
            "detail": one.detail,
        }
        for one in report.plan.rejections
    ]
    return found


def _exit_code(report: PassReport) -> int:
    outcomes = {result.outcome for result in report.results}
    if Outcome.FAILED in outcomes:
        return EXIT_FAILED
    return EXIT_REFUSED if report.plan.rejections or Outcome.FORBIDDEN in outcomes else 0
