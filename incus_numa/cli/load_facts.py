"""What `explain` says about load, for people: measured use, where memory is, whether it would move, last moves."""

from __future__ import annotations

from typing import Any

from incus_numa.facts.words import show_nodes
from incus_numa.quantities import render_bytes


def lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people: one line for each question."""
    found = []
    if facts["load"]:
        found.append(("load", _load(facts["load"])))
    if facts["locality"] is not None:
        found.append(("locality", f"{facts['locality']:.0%} of its memory is on its nodes"))
    if facts["rebalancer"]:
        found += _view(facts["rebalancer"])
    return found + _moves(facts)


def _moves(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The last moves by load, and that it was brought elsewhere since, where that is so."""
    found = [("last move" if place == 0 else "", _move(one)) for place, one in enumerate(facts["last_moves"])]
    arrived = [one["to"] for one in facts["last_moves"] if one["result"] == "moved"]
    if arrived and facts.get("has_nodes") not in (None, arrived[0]):
        text = (
            f"it came to {show_nodes(facts['has_nodes'])} otherwise than by load: by a start, other keys or another "
            "policy, of which the log tells (`journalctl -u incus-numa`)"
        )
        found.insert(0, ("since then", text))
    return found


def _view(view: dict[str, Any]) -> list[tuple[str, str]]:
    found = [("by load", view["says"])]
    for place, one in enumerate(view["considered"]):
        result = f"no ({one['hold']}): {one['detail']}" if one["hold"] else "pays"
        # What is rounded to nothing must not be -0.000.
        gain = round(one["gain"], 3) + 0.0
        text = f"{show_nodes(one['nodes'])}, gain {gain:.3f}, price {one['price']:.3f}: {result}"
        found.append(("considered" if place == 0 else "", text))
    return found + ([("would move", view["would"])] if view["would"] else [])


def _load(load: dict[str, float | None]) -> str:
    if load["used_cpus"] is None:
        return "unknown"
    text = f"{load['used_cpus']:.2f} CPUs busy"
    if load["wanted_cpus"] is not None and f"{load['wanted_cpus']:.2f}" != f"{load['used_cpus']:.2f}":
        text += f", {load['wanted_cpus']:.2f} if nobody else wanted them"
    parts = (("waiting", "waiting for a CPU"), ("stalled", "for memory"), ("throttled", "throttled by its allowance"))
    shown = [f"{load[name]:.0%} of the time {what}" for name, what in parts if load[name]]
    return "; ".join([text, ", ".join(shown)] if shown else [text])


def _move(one: dict[str, Any]) -> str:
    memory = f"; {render_bytes(one['moved_bytes'])} followed" if one["moved_bytes"] else ""
    return (
        f"{one['at'] or 'some time'} from {show_nodes(one['from'])} to {show_nodes(one['to'])}, "
        f"{one['result']}: {one['reason']}{memory}"
    )
