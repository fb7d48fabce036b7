"""`incus-numa simulate`: replays a trace on a machine and compares policies; touches nothing but the chart's file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from incus_numa.cli import inputs, output
from incus_numa.cli.fitting import warn_of_unused
from incus_numa.cli.in_force import load_deciding
from incus_numa.cli.inputs import STDIN, Input
from incus_numa.cli.options import FILE, deciding, formatted, named, on_machine, start_logging, with_settings
from incus_numa.errors import ConfigError, ReportError
from incus_numa.model.machine import Machine
from incus_numa.policy import reservations
from incus_numa.replay import chart, ground, policies, replay, stays
from incus_numa.replay.chart import Panel
from incus_numa.replay.ground import Ground
from incus_numa.replay.history import LoadHistory
from incus_numa.replay.replay import Event, Outcome
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings, Settings
from incus_numa.topology import document as machine_document

DIGITS = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One policy's outcome, how long it took, and its loads over time if they are to be drawn."""

    policy: str
    outcome: Outcome
    elapsed_s: float
    history: LoadHistory | None


@click.command()
@on_machine
@click.option("--trace", "trace_file", metavar="FILE", type=FILE, required=True, help="Arrivals and departures, CSV.")
@click.option(
    "--policy",
    "names",
    metavar="NAME",
    type=click.Choice(policies.NAMES),
    multiple=True,
    help=f"Policy to replay, may be repeated: {', '.join(policies.NAMES)}. [default: {', '.join(policies.COMPARED)}]",
)
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Only the N instances that arrive first.")
@click.option("--chart", "chart_file", metavar="FILE", type=FILE, help="Draw the load of every node over time, as SVG.")
@with_settings
@formatted
@deciding
def command(
    *,
    config_file: Path | None,
    log_level: str,
    output_format: str,
    machine_file: Path,
    trace_file: Path,
    names: tuple[str, ...],
    limit: int | None,
    chart_file: Path | None,
    settings_file: Path | None,
) -> None:
    """Replay arrivals and departures on a machine, and compare policies.

    A trace is CSV with the columns id, arrival_s, departure_s (empty: it
    stays), vcpus and memory_bytes. One of the files may be "-" for standard
    input.

    Example: incus-numa simulate --machine m.json --trace t.csv -f json
    """
    start_logging(log_level)
    _check_chart(chart_file)
    inputs.check_stdin({"--machine": machine_file, "--trace": trace_file})
    machine_input = inputs.open_input(machine_file)
    settings = load_deciding(settings_file or config_file, lambda _: _machine_if_good(machine_input))
    warn_of_unused(settings)
    machine, trace = read_files(machine_input, inputs.open_input(trace_file), settings)
    trace = trace if limit is None else trace[:limit]
    runs = [
        run_policy(name, machine, trace, settings.placement, draws=chart_file is not None)
        for name in dict.fromkeys(names or policies.COMPARED)
    ]
    rows = [render_run(run) for run in runs]
    data = {
        "machine": machine.machine.name,
        "instances": len(trace),
        "policies": {row["policy"]: {name: value for name, value in row.items() if name != "policy"} for row in rows},
    }
    if chart_file is not None:
        title = f"{inputs.name_of(trace_file)} on {machine.machine.name or inputs.name_of(machine_file)}"
        _write_chart(chart_file, title, machine, runs)
    output.emit(output_format, data, rows, lambda: output.print_table([table_row(run) for run in runs]))
    for warning in machine.machine.warnings:
        click.echo(f"Warning: {warning}", err=True)


def read_files(machine: Input, trace: Input, settings: Settings) -> tuple[Ground, tuple[Stay, ...]]:
    """Machine, less what is kept for the host, and trace. Raises ConfigError with every problem of both."""
    found: list[Any] = []
    problems: list[str] = []
    readers: tuple[tuple[Input, Callable[[bytes], object]], ...] = (
        (machine, lambda raw: _ground(machine_document.parse_machine(raw), settings)),
        (trace, lambda raw: stays.parse_trace(_decode(raw))),
    )
    for one, parse in readers:
        try:
            found.append(parse(one.read()))
        except ConfigError as error:
            problems += named(one.name, error).problems
    if problems:
        raise ConfigError(tuple(problems))
    return found[0], found[1]


def _ground(machine: Machine, settings: Settings) -> Ground:
    return ground.survey(reservations.reserve(machine, settings.memory), settings.placement)


def _machine_if_good(machine: Input) -> Machine | None:
    """The machine; None if it cannot be read, which `read_files` tells with what is wrong beside it."""
    try:
        return machine_document.parse_machine(machine.read())
    except ConfigError:
        return None


def run_policy(name: str, machine: Ground, trace: Sequence[Stay], settings: PlacementSettings, *, draws: bool) -> Run:
    """Replay one policy; progress is shown on standard error if that is a terminal."""
    events = replay.list_events(trace)
    history = LoadHistory(len(machine.cpus), events[0].at_s, events[-1].at_s) if draws else None
    placer = policies.placer(name, machine, settings)
    with _progress(name, events) as watch:
        started = time.perf_counter()
        outcome = replay.replay(machine, events, placer, history=history, watch=watch)
        elapsed_s = time.perf_counter() - started
    return Run(policy=name, outcome=outcome, elapsed_s=elapsed_s, history=history)


def render_run(run: Run) -> output.Row:
    """One policy's figures, as documented; None where there was nothing to measure."""
    found = run.outcome
    return {
        "policy": run.policy,
        "max_over_mean_load": {
            "time_averaged": _rounded(found.mean_imbalance),
            "worst": _rounded(found.worst_imbalance),
        },
        "mean_load": _rounded(found.mean_load),
        "max_load": _rounded(found.highest_load),
        "mean_distance": _rounded(found.mean_distance),
        "multi_node_distance": _rounded(found.multi_node_distance),
        "nodes_per_instance": _rounded(found.nodes_per_instance),
        "moves": found.moves,
        "placed": found.placed,
        "rejected": len(found.rejected),
        "elapsed_s": round(run.elapsed_s, DIGITS),
    }


def table_row(run: Run) -> output.Row:
    """The figures that fit beside each other."""
    found = run.outcome
    return {
        "policy": run.policy,
        "max/mean": found.mean_imbalance,
        "worst": found.worst_imbalance,
        "distance": found.mean_distance,
        "nodes": found.nodes_per_instance,
        "moves": found.moves,
        "rejected": len(found.rejected),
        "seconds": run.elapsed_s,
    }


def _check_chart(path: Path | None) -> None:
    """Find out before the work is done that its result cannot be written."""
    if path is None:
        return
    if path == STDIN:
        raise click.UsageError("--chart needs a file: standard output is for the data")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ConfigError((f"--chart {path}: {what}",))


def _write_chart(path: Path, title: str, machine: Ground, runs: Sequence[Run]) -> None:
    panels = [
        Panel(name=run.policy, caption=_caption(run.outcome), history=run.history)
        for run in runs
        if run.history is not None
    ]
    try:
        path.write_text(chart.render_chart(title, list(machine.cpus), panels), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _caption(found: Outcome) -> str:
    if found.mean_imbalance is None:
        return f"nobody stayed, {len(found.rejected)} refused"
    distance = "unknown" if found.mean_distance is None else f"{found.mean_distance:.1f}"
    return (
        f"max over mean load {found.mean_imbalance:.2f} on average, mean distance {distance}, "
        f"{len(found.rejected)} of {found.placed + len(found.rejected)} refused"
    )


@contextmanager
def _progress(name: str, events: Sequence[Event]) -> Iterator[Callable[[], None]]:
    """A function to call after each event."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    steps = max(1, len(events) // 100)
    with click.progressbar(length=len(events), label=name, file=sys.stderr, update_min_steps=steps) as bar:
        yield lambda: bar.update(1)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError((f"line {line}: expected CSV in UTF-8: {error.reason} at byte {error.start}",)) from error


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
