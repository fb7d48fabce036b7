"""`incus-numa rebalance`: one pass now, then moves by measured load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from incus_numa.applier.protocol import describe_change
from incus_numa.cli import in_force, moving, output, summary
from incus_numa.cli.completing import complete_project
from incus_numa.cli.findings.placed import NO_CGROUP
from incus_numa.cli.fitting import read_host, warn_of_unused
from incus_numa.cli.main import EXIT_FAILED, EXIT_REFUSED
from incus_numa.cli.moving import Watching
from incus_numa.cli.options import IN_FORCE_MEANING, Window, common_with, formatted, start_logging
from incus_numa.cli.survey import check_project
from incus_numa.cli.wiring import Session, connect
from incus_numa.daemon.balancing import Balancing
from incus_numa.daemon.journal import Journal
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.plan import Outcome, Placement, Plan, Rejection, StepResult
from incus_numa.model.rebalance import Decision, Move
from incus_numa.settings import Settings

EXPLAIN = "`incus-numa explain NAME`"

COLUMNS = ("project", "instance", "step", "result", "reason", "detail", "gain", "price")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What was asked for. `window_s` is None where nothing is to be moved by load."""

    dry_run: bool
    project: str | None
    max_moves: int | None
    window_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What was done and why: `rows` to be printed, `troubles` that make it a failure, `notes` that do not.

    `evenness` is a line about the load before and after, None where nothing was moved by it.
    """

    rows: tuple[output.Row, ...]
    outcomes: frozenset[Outcome]
    is_refused: bool
    troubles: tuple[str, ...]
    notes: tuple[str, ...]
    evenness: str | None


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done and why, and change nothing.")
@click.option("--project", default=None, shell_complete=complete_project, help="Only instances of this project.")
@click.option("--max-moves", type=click.IntRange(min=0), default=None, help="Move at most this many placed instances.")
@click.option(
    "--window",
    type=Window(),
    metavar="SECONDS",
    default=None,
    help="Measure load for so long, then move what pays; 0: move nothing by load.",
)
@formatted
@common_with("error", IN_FORCE_MEANING)
def command(
    *,
    config_file: Path | None,
    log_level: str,
    output_format: str,
    dry_run: bool,
    project: str | None,
    max_moves: int | None,
    window: float | None,
) -> int:
    """Bring every managed instance to its nodes, then move what pays by measured load.

    Prints what was done and why.

    Example: incus-numa rebalance --dry-run
    """
    start_logging(log_level)
    settings = in_force.load_deciding(config_file, read_host)
    warn_of_unused(settings)
    window_s = _window(settings, window)
    request = Request(dry_run=dry_run, project=project, max_moves=max_moves, window_s=window_s)
    done = asyncio.run(_rebalance(settings, request))
    empty = "nothing to do" if project is None else f"nothing to do in project {project}"
    output.emit(output_format, list(done.rows), done.rows, lambda: _print(done, empty), columns=COLUMNS)
    for note in done.notes:
        click.echo(note, err=True)
    for trouble in done.troubles:
        click.echo(f"Error: {trouble}", err=True)
    if done.troubles or Outcome.FAILED in done.outcomes:
        return EXIT_FAILED
    return EXIT_REFUSED if done.is_refused or Outcome.FORBIDDEN in done.outcomes else 0


def _window(settings: Settings, asked: float | None) -> float | None:
    """How long to measure, None for not at all."""
    if asked == 0 or (asked is None and not settings.rebalance.enabled):
        return None
    return settings.rebalance.window_s if asked is None else asked


def _print(done: Done, empty: str) -> None:
    """For people: every instance with its reason, then its steps, and what they do to the load."""
    about = None
    for row in done.rows:
        key = InstanceKey(row["project"], row["instance"])
        if row["step"] is None:
            output.write(f"{key}: refused, left as it is ({row['reason']}): {row['detail']}")
        else:
            if (key, row["reason"]) != about:
                output.write(f"{key}: {row['reason']}")
            detail = f": {row['detail']}" if row["detail"] else ""
            output.write(f"  {row['result']:9} {row['step']}{detail}")
        about = (key, row["reason"])
    if about is None:
        click.echo(empty, err=True)
    if done.evenness is not None:
        output.write(done.evenness)


async def _rebalance(settings: Settings, request: Request) -> Done:
    """Place what is not placed, then move by load."""
    async with connect(settings) as session:
        await check_project(session.server, request.project)
        lacking = () if request.dry_run else session.cgroups.check()
        if lacking:
            # Else the server's record would be written where the CPUs cannot be.
            raise ReportError("; ".join(lacking))
        reconciler = session.reconciler(dry_run=request.dry_run)
        report = await reconciler.pass_over_everything(project=request.project, max_moves=request.max_moves)
        plan = report.plan
        results = report.results + await _follow(session, reconciler, plan)
        decision, moved = await _by_load(session, reconciler, request, plan)
        placements = {one.key: one for one in (*plan.placements, *decision.plan.placements)}
        everything = (*results, *moved)
        warnings = (f"Warning: {one}" for one in (*report.problems, *plan.warnings, *decision.plan.warnings))
        return Done(
            rows=(*rows(plan, results), *rows(decision.plan, moved, decision.moves), *refusals(plan.rejections)),
            outcomes=frozenset(one.outcome for one in everything),
            is_refused=bool(plan.rejections),
            troubles=tuple(_troubles(session, reconciler, placements, everything, dry_run=request.dry_run)),
            notes=(*warnings, *filter(None, (_forbidden(request, plan), summary.summarize(decision, EXPLAIN)))),
            evenness=summary.tell_evenness(decision),
        )


async def _follow(session: Session, reconciler: Reconciler, plan: Plan) -> tuple[StepResult, ...]:
    """Wait for memory that follows to where the pass has placed its instances."""
    results: tuple[StepResult, ...] = ()
    with Watching(session, {one.key: one for one in plan.placements}) as watch:
        for key in reconciler.waiting():
            results += await reconciler.follow(key, partial(watch, key))
    return results


async def _by_load(
    session: Session, reconciler: Reconciler, request: Request, plan: Plan
) -> tuple[Decision, tuple[StepResult, ...]]:
    """Measure, decide and move; an empty decision where that was not asked for or nothing could be moved."""
    limits = session.settings.rebalance
    allowed = limits.max_moves if request.max_moves is None else request.max_moves
    most = allowed - _moved(plan)
    managed = frozenset(key for key in session.world.managed() if request.project in (None, key.project))
    if request.window_s is None or most < 1 or not managed or len(session.world.machine.nodes) < 2:
        return Decision(), ()
    measuring = await moving.measure(session, request.window_s, plain=True)
    balancing = Balancing(reconciler, measuring, Journal(Path(limits.journal)), limits)
    decision = balancing.decide(only=managed, forced=True, max_moves=most)
    with Watching(session, {one.key: one for one in decision.plan.placements}) as watch:
        made = await balancing.carry_out(decision, watch)
    return decision, made.results


def _moved(plan: Plan) -> int:
    """How many placed instances the pass moves."""
    return sum(one.moved for one in plan.placements)


def _forbidden(request: Request, plan: Plan) -> str | None:
    """That `--max-moves` leaves no move by load, as a sentence; None where it does, or none was asked for."""
    if request.window_s is None or request.max_moves is None or request.max_moves > _moved(plan):
        return None
    used = "forbids moves" if request.max_moves == 0 else "was used up by what had to be placed anew"
    return f"--max-moves {request.max_moves} {used}: load was not measured, nothing moves by it"


def _troubles(
    session: Session,
    reconciler: Reconciler,
    placements: Mapping[InstanceKey, Placement],
    results: Iterable[StepResult],
    *,
    dry_run: bool,
) -> Iterable[str]:
    """A sentence for each instance that was not brought to its place without a step failing."""
    told = {one.step.key for one in results if one.outcome not in (Outcome.DONE, Outcome.FORBIDDEN)}
    for key in placements:
        seen = session.world.get(key)
        if seen is not None and seen.problem is not None:
            is_container = seen.instance.type is InstanceType.CONTAINER
            yield f"{key}: {NO_CGROUP if is_container else seen.problem}"
        elif key not in told and not dry_run and reconciler.has_drifted(key):
            yield f"{key} is not where it belongs: the server was busy with it or wrote, too; try again"


def rows(plan: Plan, results: Iterable[StepResult], moves: Iterable[Move] = ()) -> list[output.Row]:
    """One row per step, those of one instance together; an instance that is right already has none.

    Those of a move by load have its gain and price.
    """
    reasons = {placement.key: placement.reason for placement in plan.placements}
    worth = {one.key: (round(one.gain, 6), round(one.price, 6)) for one in moves}
    steps: dict[InstanceKey, list[StepResult]] = {}
    for result in results:
        steps.setdefault(result.step.key, []).append(result)
    return [
        {
            "project": key.project,
            "instance": key.name,
            "step": describe_change(result.step),
            "result": result.outcome.value,
            "reason": reasons.get(key, ""),
            "detail": result.detail or None,
            "gain": worth.get(key, (None, None))[0],
            "price": worth.get(key, (None, None))[1],
        }
        for key, own in steps.items()
        for result in own
    ]


def refusals(rejections: Iterable[Rejection]) -> list[output.Row]:
    """One row per refusal."""
    return [
        {
            "project": one.key.project,
            "instance": one.key.name,
            "step": None,
            "result": "refused",
            "reason": one.reason.value,
            "detail": one.detail,
            "gain": None,
            "price": None,
        }
        for one in rejections
    ]
