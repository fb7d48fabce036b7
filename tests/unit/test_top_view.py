"""What `top` shows fits the terminal, and is what matters most."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from incus_numa.cli.top_view import View, render_live, render_view, tell_event, tell_move

STATUS: dict[str, Any] = {
    "server": {"product": "incus", "version": "6.0.4", "connected": True},
    "instances": {"running": 100, "managed": 99, "differ": 2, "refused": 1},
    "imbalance": 1.25,
    "moving": False,
}


def node(number: int, load: float | None, committed: float = 0.5) -> dict[str, Any]:
    return {"node": number, "measured_load": load, "load": committed, "memory_bytes": 32 << 30, "free_bytes": 1 << 30}


def instance(name: str, busy: float | None, project: str = "default") -> dict[str, Any]:
    row = {"project": project, "name": name, "load_cpus": busy, "vcpus": 2, "nodes": "0", "locality": 0.5}
    return row | {"state": "placed"}


def shown(view: View, happened: Sequence[str] = (), *, width: int = 80, height: int = 24, **more: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, **({"force_terminal": False} | more))
    console.print(render_live(view, happened, width, height))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


EVENTS = tuple(f"event {number} {'x' * 100}" for number in range(6))


def view_of(nodes: Sequence[dict[str, Any]], instances: Sequence[dict[str, Any]] = (), **more: Any) -> View:
    return View(**{"at": "2026-11-22T18:47:34Z", "status": STATUS, "nodes": nodes, "instances": instances, **more})


def busy(nodes: int, instances: int) -> View:
    return view_of(
        [node(number, number / nodes) for number in range(nodes)],
        [instance(f"c{number}", float(number)) for number in range(instances)],
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 50), (40, 15), (200, 200)])
@pytest.mark.parametrize(("nodes", "instances"), [(1, 0), (4, 3), (64, 1000), (24, 2), (1, 400)])
def test_it_fits_the_terminal_whatever_there_is(width: int, height: int, nodes: int, instances: int) -> None:
    lines = shown(busy(nodes, instances), EVENTS, width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_where_not_all_fit_the_busiest_are_shown_nodes_by_number() -> None:
    lines = shown(busy(64, 100), EVENTS)
    nodes = [line.split()[0] for line in lines if "░" in line or "█" in line]
    names = [line.split()[0] for line in lines if line.startswith("c")]
    assert nodes == [str(number) for number in range(64 - len(nodes), 64)]
    assert names == [f"c{number}" for number in range(99, 99 - len(names), -1)]
    assert f"and {64 - len(nodes)} nodes less busy" in lines
    assert f"and {100 - len(names)} instances less busy" in lines
    assert len(nodes) >= 4
    assert len(names) >= 4


def test_everything_is_shown_where_there_is_room() -> None:
    view = view_of([node(0, None, 0.25), node(7, 2.0)], [instance("db", None, "ci")])
    assert shown(view) == [
        "incus 6.0.4; 100 running, 99 managed, 2 differ, 1 refused; imbalance 1.25",
        "",
        "NODE  BUSY                  MEASURED  LOAD  MEMORY  FREE",
        "   0  █████░░░░░░░░░░░░░░░         -  0.25  32 GiB  1 GiB",
        "   7  ████████████████████      2.00  0.50  32 GiB  1 GiB",
        "",
        "INSTANCE  BUSY  VCPUS  NODES  LOCAL  STATE",
        "ci/db        -      2  0        50%  placed",
    ]


def test_trouble_and_a_lost_server_are_told() -> None:
    status = STATUS | {"server": STATUS["server"] | {"connected": False}, "imbalance": None, "moving": True}
    lines = shown(view_of([node(0, 0.0)], status=status, absent="gone", trouble="no server answers"), width=120)
    assert lines[0].endswith("1 refused; moving; the server is lost")
    assert lines[1] == "no server answers"


def test_how_even_next_to_nothing_is_nobody_is_told() -> None:
    idle, working = shown(view_of([node(0, 0.09), node(1, None)])), shown(view_of([node(0, 0.1)]))
    assert idle[0].endswith("; imbalance -")
    assert working[0].endswith("; imbalance 1.25")


def test_what_is_long_is_told_in_full_and_all_of_it_fits() -> None:
    view = busy(64, 100)
    long = View(
        **{name: getattr(view, name) for name in ("at", "status", "nodes", "instances")},
        absent="no daemon answers at /run/incus-numa/api.sock",
        hint="see `systemctl status incus-numa`",
    )
    lines = shown(long, EVENTS)
    told = " ".join(lines[1:3])
    assert told == (
        "no daemon answers at /run/incus-numa/api.sock: top looks itself; see `systemctl status incus-numa`"
    )
    assert (len(lines) <= 24, lines[-1].startswith("event")) == (True, True)


def test_a_look_without_a_daemon_says_so() -> None:
    absent = view_of([node(0, 0.0)], absent="no daemon answers at /run/x")
    assert shown(absent)[1] == "no daemon answers at /run/x: top looks itself"
    assert (render_view(absent)["daemon"], render_view(view_of([]))["daemon"]) == (False, True)


def test_bars_have_colours_on_a_terminal_alone() -> None:
    view = view_of([node(0, 0.5), node(1, 1.5)])
    colours: dict[str, Any] = {"force_terminal": True, "color_system": "standard"}
    assert "\x1b[36m█" in "".join(shown(view, **colours, no_color=False))
    assert "\x1b[31m█" in "".join(shown(view, **colours, no_color=False))
    assert "\x1b[3" not in "".join(shown(view, **colours, no_color=True))
    assert "\x1b" not in "".join(shown(view))


def test_events_and_moves_are_told_as_lines() -> None:
    key = {"project": "ci", "name": "db"}
    move = key | {"at": None, "from": "0", "to": "1-2", "result": "moved"}
    assert tell_move(move) == "some time ci/db: from node 0 to nodes 1-2, moved"
    assert tell_event("move-made", move) == "ci/db: from node 0 to nodes 1-2, moved"
    assert tell_event("start-placed", key | {"nodes": "3", "cpus": "1", "took_s": 0.123}) == (
        "ci/db: started on node 3 after 0.12 s"
    )
    assert tell_event("refused", key | {"reason": "bad-key", "detail": "so"}) == "ci/db: refused (bad-key): so"
    assert tell_event("stream-opened", {"again": True}) == "the server's events are heard again"
    assert tell_event("memory-followed", key | {"moved_bytes": 1 << 30}) == "ci/db: 1 GiB of memory followed"
    assert tell_event("pass-ended", {}) is None
