"""What `top` shows: the nodes with their load, the busiest instances, what happened last. Values in, tables out."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from incus_numa.cli import output
from incus_numa.facts.words import count, show_name, show_nodes
from incus_numa.quantities import render_bytes

Row = Mapping[str, Any]

BAR = 20
MOST_INSTANCES = 10
"""So many of the busiest instances are in a snapshot."""

MOST_EVENTS = 6

TELLING_LOAD = 0.1
"""Where no node is loaded as much as this, nobody is interested in how evenly; so it is on the dashboard."""

FRAME = 8
"""Lines beside nodes, instances and events: headline, headers, how many are left out, and empty ones between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is known at a time (`at`, UTC): documents of the API, the last moves among them, the newest first.

    `absent` is why no daemon tells, with what to do where that is known in `hint`; `trouble` is why nothing newer is
    known. They are empty where that is not so.
    """

    at: str
    status: Row
    nodes: Sequence[Row]
    instances: Sequence[Row]
    moves: Sequence[Row] = ()
    absent: str = ""
    hint: str = ""
    trouble: str = ""

    @property
    def note(self) -> str:
        """That this is no look of the daemon's, as a sentence; empty where it is."""
        if not self.absent:
            return ""
        return f"{self.absent}: top looks itself" + (f"; {self.hint}" if self.hint else "")


def render_view(view: View) -> dict[str, Any]:
    """All of it as plain values."""
    parts = {"status": view.status, "nodes": view.nodes, "instances": view.instances, "moves": view.moves}
    return {"at": view.at, "daemon": not view.absent} | parts


def tell_move(move: Row) -> str:
    """A move of the journal as a line with its time."""
    at = move["at"]
    time = datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "some time"
    return f"{time} {show_name(move)}: {_moved(move)}"


def tell_event(kind: str, data: Row) -> str | None:
    """What happened as a line without its time; None for what happens all the time."""
    match kind:
        case "step-taken":
            return f"{show_name(data)}: {data['step']} {data['to']} {data['result']}"
        case "start-placed":
            return f"{show_name(data)}: started on {show_nodes(data['nodes'])} after {data['took_s']:.2f} s"
        case "refused":
            return f"{show_name(data)}: refused ({data['reason']}): {data['detail']}"
        case "cpuset-corrected":
            return f"{show_name(data)}: CPUs that somebody else had changed were set again"
        case "move-made":
            return f"{show_name(data)}: {_moved(data)}"
        case "memory-followed":
            return f"{show_name(data)}: {render_bytes(data['moved_bytes'])} of memory followed"
        case "stream-opened":
            return "the server's events are heard" + (" again" if data["again"] else "")
        case "settings-changed":
            return "other settings are in force"
        case _:
            return None


def _moved(move: Row) -> str:
    return f"from {show_nodes(move['from'])} to {show_nodes(move['to'])}, {move['result']}"


def print_snapshot(view: View) -> None:
    """All of it once, for those who read no terminal."""
    output.write(_headline(view))
    output.write("")
    output.print_table([_node_row(row) for row in view.nodes])
    if view.instances:
        output.write("")
        output.print_table([_instance_row(row) for row in _busiest(view)[:MOST_INSTANCES]])
    if view.moves:
        output.write("")
        output.write("\n".join(map(tell_move, view.moves)))


def render_live(view: View, happened: Sequence[str], width: int, height: int) -> Group:
    """As much of it as fits into a terminal of this size: of nodes and instances the busiest ones.

    `happened` are lines, the newest first.
    """
    told = textwrap.wrap(view.trouble or view.note, width)
    frame = FRAME + max(0, len(told) - 1)
    events = happened[: min(MOST_EVENTS, max(0, height - frame) // 3)]
    room = max(2, height - frame - len(events))
    instances = _busiest(view)
    most = max(room - len(instances), room // 2)
    nodes = sorted(sorted(view.nodes, key=_by_load)[:most], key=lambda row: int(row["node"]))
    shown = instances[: room - len(nodes)]
    parts: list[Any] = [_line(_headline(view), "bold"), Text("")]
    parts += [_nodes_table(nodes, width), *_left_out(len(view.nodes) - len(nodes), "node"), Text("")]
    if shown:
        parts += [_table([_instance_row(row) for row in shown]), *_left_out(len(instances) - len(shown), "instance")]
    parts += [Text(""), *(_line(text, "") for text in events)] if events else []
    if told:
        parts[1] = _line("\n".join(told), "bold red" if view.trouble else "yellow")
    return Group(*parts)


def _headline(view: View) -> str:
    status, server = view.status, view.status["server"]
    found = status["instances"]
    parts = [
        f"{server['product'] or 'server'} {server['version'] or ''}".strip(),
        f"{found['running']} running, {found['managed']} managed, {found['differ']} differ, {found['refused']} refused",
    ]
    if status["imbalance"] is not None:
        # Of next to nothing, the highest is many times the mean by chance.
        highest = max((row["measured_load"] or 0.0 for row in view.nodes), default=0.0)
        parts.append(f"imbalance {status['imbalance']:.2f}" if highest >= TELLING_LOAD else "imbalance -")
    if status["moving"]:
        parts.append("moving")
    if not server["connected"]:
        parts.append("the server is lost")
    return "; ".join(parts)


def _load(row: Row) -> float | None:
    """Measured load of a node, or what is committed where none was measured."""
    measured: float | None = row["measured_load"]
    committed: float | None = row["load"]
    return committed if measured is None else measured


def _by_load(row: Row) -> tuple[float, int]:
    return -(_load(row) or 0.0), row["node"]


def _busiest(view: View) -> list[Row]:
    return sorted(view.instances, key=lambda row: (-(row["load_cpus"] or 0.0), row["project"], row["name"]))


def _bar(load: float | None) -> str:
    full = round(min(1.0, load or 0.0) * BAR)
    return "█" * full + "░" * (BAR - full)


def _node_row(row: Row) -> output.Row:
    return {
        "node": row["node"],
        "busy": _bar(_load(row)),
        "measured": row["measured_load"],
        "load": row["load"],
        "memory": output.show_bytes(row["memory_bytes"]),
        "free": output.show_bytes(row["free_bytes"]),
    }


def _instance_row(row: Row) -> output.Row:
    return {
        "instance": show_name(row),
        "busy": row["load_cpus"],
        "vcpus": row["vcpus"],
        "nodes": row["nodes"],
        "local": output.show_part(row["locality"]),
        "state": row["state"],
    }


def _nodes_table(rows: Sequence[Row], width: int) -> Table:
    """Nodes with a bar that is red above a load of 1; without it where there is no room."""
    shown = [_node_row(row) for row in rows]
    if width < 3 * BAR:
        return _table([{name: value for name, value in row.items() if name != "busy"} for row in shown])
    table = _table(shown)
    for row, bar in zip(rows, table.columns[1].cells, strict=True):
        if isinstance(bar, Text):
            bar.stylize("red" if (_load(row) or 0.0) > 1 else "cyan")
    return table


def _table(rows: Sequence[output.Row]) -> Table:
    table: Table = output.make_table(rows, no_wrap=True)
    return table


def _left_out(number: int, noun: str) -> list[Any]:
    return [_line(f"and {count(number, noun)} less busy", "dim")] if number > 0 else []


def _line(text: str, style: str) -> Any:

    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
