"""Load as facts: measured use, where memory is, whether an instance would move, and its last moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from incus_numa.daemon.seen import Seen
from incus_numa.facts.survey import Survey
from incus_numa.facts.words import rounded, show_nodes
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import History, MoveRecord
from incus_numa.policy.rebalance import explain as rebalance
from incus_numa.policy.rebalance.explain import Verdict
from incus_numa.settings import RebalanceSettings, Settings

LAST_MOVES = 5
"""So many moves of an instance are told, the newest."""


def judge(
    found: Survey, seen: Seen, moved_at_s: Mapping[InstanceKey, float], now_s: float, settings: Settings
) -> Verdict | None:
    """What the rebalancer says about an instance; None where nothing was measured or it is not managed.

    `moved_at_s` is when instances were last moved, on the clock of `now_s`.
    """
    if found.measured is None or not seen.instance.managed:
        return None
    history = History(moved_at_s=moved_at_s)
    snapshot, limits = found.measured.snapshot, settings.rebalance
    try:
        return rebalance.explain(snapshot, history, now_s, settings.placement, limits, seen.instance.key)
    except KeyError:
        # It has ended while the load was measured.
        return None


def list_facts(
    found: Survey, seen: Seen, records: Sequence[MoveRecord], verdict: Verdict | None, limits: RebalanceSettings
) -> dict[str, Any]:
    """Load, locality, the rebalancer's view and last moves as plain values; None where that is not known."""
    rates = found.rates(seen.instance.key)
    return {
        "load": None
        if rates is None
        else {
            "used_cpus": rounded(rates.used_cpus),
            "wanted_cpus": rounded(rates.wanted_cpus),
            "waiting": rounded(rates.waiting),
            "stalled": rounded(rates.stalled),
            "throttled": rounded(rates.throttled),
        },
        "locality": rounded(found.locality(seen)),
        "rebalancer": None if verdict is None else _rebalancer(verdict, limits),
        "last_moves": list_moves(records, seen.instance.key),
    }


def _rebalancer(verdict: Verdict, limits: RebalanceSettings) -> dict[str, Any]:
    held = verdict.held
    return {
        "measured_load": {str(node): rounded(load) for node, load in sorted(verdict.node_load.items())},
        "mean": rounded(verdict.mean),
        "target": rounded(verdict.target),
        "imbalance": rounded(verdict.imbalance),
        "hold": None if held is None else held.hold.value,
        "says": _says(verdict, limits),
        "would": verdict.would,
        "considered": [
            {
                "nodes": str(one.nodes),
                "gain": rounded(one.gain),
                "price": rounded(one.price),
                "hold": None if one.hold is None else one.hold.value,
                "detail": one.detail or None,
            }
            for one in verdict.options
        ],
    }


def _says(verdict: Verdict, limits: RebalanceSettings) -> str:
    """Whether it would move, and what decides that, in a sentence."""
    off = "" if limits.enabled else "; moves by load are switched off (rebalance.enabled)"
    if verdict.held is not None:
        return f"stays ({verdict.held.hold.value}): {verdict.held.detail}{off}"
    if verdict.load_cpus is None:
        return f"stays: its load is unknown{off}"
    if verdict.is_even:
        return f"stays: load is even enough, {_unevenness(verdict)}{off}"
    best = next((one for one in verdict.options if one.hold is None), None)
    highest = max(verdict.node_load.values(), default=0.0)
    if highest <= verdict.target:
        return f"stays: its nodes are loaded {highest:.2f}, no more than the {verdict.target:.2f} aimed at{off}"
    if best is None:
        return f"stays: nothing that was considered pays, {_unevenness(verdict)}{off}"
    return (
        f"may move to {show_nodes(best.nodes)}, which gains {best.gain:.3f} and costs {best.price:.3f}, unless "
        f"moves of others bring more{off}"
    )


def _unevenness(verdict: Verdict) -> str:
    if verdict.imbalance is None:
        return "as no node is known to be busy"
    return f"the highest being {verdict.imbalance:.2f} times the mean of {verdict.mean:.2f}"


def list_moves(records: Sequence[MoveRecord], key: InstanceKey) -> list[dict[str, Any]]:
    """The last moves of an instance, newest first; times are in UTC."""
    own = [one for one in records if one.move.key == key]
    return [show_move(one) for one in own[: -LAST_MOVES - 1 : -1]]


def show_move(one: MoveRecord) -> dict[str, Any]:
    """A line of the journal."""
    return {
        "at": _utc(one.at_s),
        "from": str(one.move.before),
        "to": str(one.move.after),
        "result": one.result,
        "gain": rounded(one.move.gain),
        "price": rounded(one.move.price),
        "moved_bytes": one.moved_bytes,
        "took_s": one.took_s,
        "reason": one.move.reason,
    }


def _utc(at_s: float) -> str | None:
    """A time of the journal, None if its number is none."""
    try:
        return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return None
