"""`incus-numa rebalance`: one pass now."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from incus_numa.applier.protocol import describe_change
from incus_numa.cli import output
from incus_numa.cli.main import EXIT_FAILED, EXIT_REFUSED
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.cli.wiring import connect
from incus_numa.model.plan import Outcome, PassReport
from incus_numa.settings import Settings

COLUMNS = ("project", "instance", "step", "result", "reason")


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done and why, and change nothing.")
@click.option("--project", default=None, help="Only instances of this project.")
@click.option("--max-moves", type=click.IntRange(min=0), default=None, help="Move at most this many placed instances.")
@formatted
@common
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
    settings = load_settings(config_file)
    report = asyncio.run(_rebalance(settings, dry_run=dry_run, project=project, max_moves=max_moves))
    found = rows(report)
    empty = "nothing to do" if project is None else f"nothing to do in project {project}"
    output.emit(output_format, found, found, lambda: _print(found, empty), columns=COLUMNS)
    for problem in (*report.problems, *report.plan.warnings):
        click.echo(f"Warning: {problem}", err=True)
    return _exit_code(report)


def _print(found: list[output.Row], empty: str) -> None:
    """The table, without the project where all instances are of the default one."""
    columns = COLUMNS if any(row["project"] != "default" for row in found) else COLUMNS[1:]
    output.print_table([{name: row[name] for name in columns} for row in found], empty=empty)


async def _rebalance(settings: Settings, *, dry_run: bool, project: str | None, max_moves: int | None) -> PassReport:
    async with connect(settings) as session:
        return await session.reconciler(dry_run=dry_run).pass_over_everything(project=project, max_moves=max_moves)


def rows(report: PassReport) -> list[output.Row]:
    """One row per step and per refusal; an instance that is right already has none."""
    reasons = {placement.key: placement.reason for placement in report.plan.placements}
    found: list[dict[str, Any]] = [
        {
            "project": result.step.key.project,
            "instance": result.step.key.name,
            "step": describe_change(result.step),
            "result": result.outcome.value,
            "reason": result.detail or reasons.get(result.step.key, ""),
        }
        for result in report.results
    ]
    found += [
        {
            "project": one.key.project,
            "instance": one.key.name,
            "step": None,
            "result": "refused",
            "reason": f"{one.reason.value}: {one.detail}",
        }
        for one in report.plan.rejections
    ]
    return found


def _exit_code(report: PassReport) -> int:
    outcomes = {result.outcome for result in report.results}
    if Outcome.FAILED in outcomes:
        return EXIT_FAILED
    return EXIT_REFUSED if report.plan.rejections or Outcome.FORBIDDEN in outcomes else 0
