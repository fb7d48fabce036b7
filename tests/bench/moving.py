"""Moves by measured load against never moving, Incus' rule and numad's daemon, on real traces with use that changes.

Every trace of ../shared on the machines of `traces`. The traces tell no CPU use: that is made up from the instances'
names (see `replay.loads`), and is the same for every steward. `python -m tests.bench.moving WORD ...` replays the
traces whose names contain one of these words; without any, all but the two largest, which take longer than all others.

`bound` is what no choice of nodes could be below as long as everybody has as few nodes as possible: the mean load, and
the load that one instance alone makes on its nodes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from incus_numa.model.machine import Machine
from incus_numa.replay import ground, moving, stewards
from incus_numa.replay.ground import Ground
from incus_numa.replay.moving import Happening, Kind, MoveOutcome
from incus_numa.settings import RebalanceSettings
from tests.bench import traces

LIMITS = RebalanceSettings()
GIB = 1 << 30
MANY, RARE_S = 10_000, 300.0
"""A trace of so many instances is looked at this rarely: passes over a thousand of them take their time."""

HEADS = ("max/mean", "weighted", "worst", "load", "nodes", "moves", "per day", "GiB", "CPU s")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One steward on one trace and machine."""

    name: str
    outcome: MoveOutcome
    cpu_s: float


def main(words: Sequence[str] = ()) -> None:
    """Replay, print one table for each machine and trace, and where ours is not the best."""
    chosen = [path for path in traces.TRACES if any(word in path.stem for word in words)] or traces.TRACES[:-2]
    if not chosen or not traces.EIGHT.exists():
        print("../shared/data is not there: nothing to replay")
        return
    print(
        "max/mean: time-averaged highest over mean measured load of a node; weighted: each moment counts by its load;"
    )
    print("moves: other nodes than before; GiB: of memory that followed; nodes: of an instance, averaged over time")
    tables = [_print(machine, path) for machine in traces.machines() for path in chosen]
    _conclude(tables)


def run(name: str, here: Ground, happenings: Sequence[Happening], every_s: float = moving.EVERY_S) -> Run:
    """What a steward makes of it."""
    began = time.process_time()
    one = stewards.steward(name, here, traces.SETTINGS, LIMITS)
    outcome = moving.replay_moves(here, happenings, one, every_s=every_s)
    return Run(name=name, outcome=outcome, cpu_s=time.process_time() - began)


def bound(here: Ground, happenings: Sequence[Happening]) -> tuple[float, float]:
    """What the two averages cannot be below. All nodes of the ground are alike."""
    alone: dict[str, float] = {}
    use: dict[str, float] = {}
    seconds = ratios = peaks = means = before_s = 0.0
    for at_s, moment in groupby(happenings, key=lambda one: one.at_s):
        mean = math.fsum(use.values()) / here.total_cpus
        if mean:
            passed, peak = at_s - before_s, max(mean, *alone.values())
            seconds, ratios = seconds + passed, ratios + peak / mean * passed
            peaks, means = peaks + peak * passed, means + mean * passed
        before_s = at_s
        for one in moment:
            if one.kind is Kind.DEPARTS:
                del use[one.stay.name], alone[one.stay.name]
            elif one.kind is not Kind.RESTARTS and (one.kind is Kind.ARRIVES or one.stay.name in use):
                width = -(-here.weight(one.stay) // here.most_cpus)
                use[one.stay.name] = min(one.cpus, here.total_cpus)
                alone[one.stay.name] = use[one.stay.name] / (width * here.most_cpus)
    return ratios / seconds, peaks / means


@dataclass(frozen=True, kw_only=True)
class _Table:
    title: str
    runs: Sequence[Run]


def _print(machine: Machine, path: Path) -> _Table:
    trace = traces.read_trace(path)
    scaled = traces.fitted(machine, trace)
    here, happenings = ground.survey(scaled, traces.SETTINGS), moving.list_happenings(trace)
    days = (happenings[-1].at_s - happenings[0].at_s) / 86400
    every_s = moving.EVERY_S if len(trace) < MANY else RARE_S
    print(f"\n{path.stem}, {len(trace)} instances, {days:.1f} days; {scaled.name}; looks every {every_s:g} s")
    print(f"{'':16}" + "".join(f"{head:>9}" for head in HEADS), flush=True)
    runs = []
    for name in stewards.NAMES:
        found = run(name, here, happenings, every_s)
        one = found.outcome
        print(
            f"{name:16}{one.mean_imbalance or 0:9.3f}{one.weighted_imbalance or 0:9.3f}{one.worst_imbalance or 0:9.2f}"
            f"{one.mean_load or 0:9.3f}{one.nodes_per_instance or 0:9.2f}{one.moves:9}{one.moves / days:9.1f}"
            f"{one.moved_bytes / GIB:9.0f}{found.cpu_s:9.1f}",
            flush=True,
        )
        runs.append(found)
    mean, weighted = bound(here, happenings)
    print(f"{'bound':16}{mean:9.3f}{weighted:9.3f}", flush=True)
    return _Table(title=f"{path.stem} on {len(scaled.nodes)} nodes", runs=runs)


def _conclude(tables: Sequence[_Table]) -> None:
    """Where another steward is more even than ours, or one that moves at all moves less."""
    print(f"\nours is {stewards.REBALANCED}; never moving and Incus' rule without restarts move nobody by nature")
    for what in ("mean_imbalance", "weighted_imbalance", "moves", "moved_bytes"):
        found = []
        for table in tables:
            values = {one.name: getattr(one.outcome, what) or 0 for one in table.runs}
            ours = values.pop(stewards.REBALANCED)
            rivals = [name for name in values if what.endswith("imbalance") or name not in stewards.STILL]
            found += [(table.title, name, values[name], ours) for name in rivals if values[name] < ours]
        worse = {title for title, *_ in found}
        print(f"{what}: ours is the least in {len(tables) - len(worse)} of {len(tables)}")
        for title, name, value, ours in found:
            print(f"  {title}: {name} has {_short(value)}, ours {_short(ours)}")


def _short(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value / GIB:.0f} GiB" if value >= GIB else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
