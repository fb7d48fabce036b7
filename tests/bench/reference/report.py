"""Runs all cases, in as many processes as there are CPUs, and prints the ratios, the worst cases by name."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

from tests.bench.reference import batch, online
from tests.bench.reference.cases import make_case

Found = TypeVar("Found")

SHARES = (("few", 0.45), ("many", 0.35), ("real", 0.2))
"""Parts of the cases on machines of 2 to 10 nodes, of 12 to 32, and on real ones."""

WORST = 5


def main(arguments: Sequence[str] = ()) -> None:
    """Run the parts that were named, or all."""
    options = _parse(arguments)
    names = options.only or [
        f"{kind}:{options.seed + index}" for kind, share in SHARES for index in range(round(options.cases * share))
    ]
    if "batch" in options.parts:
        _batch(names, options)
    if "online" in options.parts:
        _online(names, options)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reference", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["batch", "online"], help="batch, online; both if none is named")
    parser.add_argument("--cases", type=int, default=360, help="machines with a mix each (360)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (0)")
    parser.add_argument("--arrivals", type=int, default=40, help="arrivals on each machine (40)")
    parser.add_argument("--time-limit", type=float, default=3.0, help="seconds of the solver for one case (3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (one for each CPU)")
    parser.add_argument("--only", nargs="*", metavar="KIND:SEED", help="just these cases, such as few:17")
    parser.add_argument("--worst", type=int, default=WORST, help="how many of the worst are printed (5)")
    return parser.parse_args(arguments)


def _batch(names: list[str], options: argparse.Namespace) -> None:
    began = time.perf_counter()
    found = _each(partial(judge_batch, time_limit_s=options.time_limit), names, options.jobs)
    print(f"batch plans of {len(found)} machines and mixes, {time.perf_counter() - began:.0f} s")
    free = [one for one in found if not one.interacts]
    proven, bounded = ([one for one in free if one.exact is exact] for exact in (True, False))
    worst = options.worst
    _line("highest load over the optimum", [(one.ratio, f"{one.words}; {one.note}") for one in proven], worst)
    _line("highest load over a bound of it", [(one.ratio, f"{one.words}; {one.note}") for one in bounded], worst)
    same = [one for one in proven if one.rules]
    print("  on those of these mixes that have no memory limits:")
    _line("  this plan", [(one.ratio, "") for one in same], 0)
    for index, (name, _) in enumerate(same[0].rules if same else ()):
        _line(f"  {name}", [(one.rules[index][1], "") for one in same], 0)
    _line("mean distance over the best", [(ratio, one.words) for one in found for ratio in one.near], worst)
    print(f"  wide placements with more sets than are looked at: {sum(one.far_skipped for one in found)}")
    tight = [one for one in found if one.interacts]
    print(f"  refused or wider than alone, so not compared: {len(tight)}; all could have been as narrow in:")
    for one in tight:
        if one.possible is not False:
            print(f"    {'yes' if one.possible else 'unknown'}: {one.words}; {one.note}")
    times = [(one.plan_s, one.words) for one in found]
    slowest, words = max(times)
    print(f"  planning took {sum(seconds for seconds, _ in times):.1f} s in all, most {slowest:.2f} s: {words}")


def _online(names: list[str], options: argparse.Namespace) -> None:
    began = time.perf_counter()
    found = [seen for one in _each(partial(judge_online, count=options.arrivals), names, options.jobs) for seen in one]
    print(f"{len(found)} arrivals on {len(names)} machines, {time.perf_counter() - began:.0f} s")
    worst = options.worst
    for exact, what in ((True, "the optimum"), (False, "a bound of it")):
        loads = [(one.load, one.words) for one in found if one.load is not None and one.exact is exact]
        _line(f"highest load over {what}", loads, worst)
    _line(
        "mean distance over the best", [(one.distance, one.words) for one in found if one.distance is not None], worst
    )
    print(f"  wide placements with more sets than are looked at: {sum(one.skipped for one in found)}")
    known = [one for one in found if one.width is not None]
    wrong = [one for one in known if one.width != one.nodes]
    print(
        f"  narrowest width: {len(known) - len(wrong)} of {len(known)} as the optimum, refusals among them: "
        f"{sum(not one.nodes for one in known)}; not known: {len(found) - len(known)}"
    )
    for one in wrong[:worst]:
        print(f"    {one.nodes or 'refused'} for {one.width}: {one.words}")


def judge_batch(name: str, *, time_limit_s: float) -> batch.Judged:
    """One case's plan."""
    return batch.judge(make_case(name), time_limit_s)


def judge_online(name: str, *, count: int) -> list[online.Seen]:
    """One machine's arrivals."""
    return online.judge(make_case(name), count)


def _each(work: Callable[[str], Found], names: list[str], jobs: int) -> list[Found]:
    if jobs < 2:
        return [work(name) for name in names]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(work, names))


def _line(what: str, ratios: Iterable[tuple[float, str]], worst: int) -> None:
    ordered = sorted(ratios)
    if not ordered:
        print(f"  {what}: none")
        return
    values = [ratio for ratio, _ in ordered]
    parts = ", ".join(f"{name} {_nearest(values, part):.3f}" for name, part in PARTS)
    print(f"  {what} ({len(values)}): {parts}, worst {values[-1]:.3f}")
    for ratio, words in reversed(ordered[-worst:] if worst else []):
        if ratio > 1 + 1e-6:
            print(f"    {ratio:.3f} {words}")


PARTS = (("median", 0.5), ("p90", 0.9), ("p99", 0.99))


def _nearest(values: Sequence[float], part: float) -> float:
    return values[min(len(values) - 1, int(part * len(values)))]
