"""Commands that measure load: what `list`, `explain`, `rebalance` and `plan --rebalance` say and do about it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cli.moving import Watching
from incus_numa.cli.options import load_settings
from incus_numa.cli.wiring import connect
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon.journal import Journal
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Placement
from incus_numa.model.rebalance import Move, MoveRecord
from incus_numa.quantities import render_bytes
from incus_numa.settings import RebalanceSettings
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.topology import document
from tests import builders
from tests.commands import Result, config_file, is_clean, run, run_beside, write_config
from tests.contract import simulated
from tests.contract.simulated import Host

MACHINE = document.render_machine(builders.machine())


def plan(folder: Path, instances: list[dict[str, Any]], *words: str) -> Result:
    (folder / "m.json").write_text(json.dumps(MACHINE))
    (folder / "i.json").write_text(json.dumps(instances))
    return run("plan", "--machine", folder / "m.json", "--instances", folder / "i.json", *words)


def busy(name: str, nodes: str, cpus: str, load_cpus: float | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "vcpus": 2, "nodes": nodes, "cpus": cpus, "load_cpus": load_cpus, **more}


# Offline

TWO_ON_ONE = [busy("a", "0", "0-1", 2.0), busy("b", "0", "2-3", 2.0), busy("c", "1", "4-5", 0.1)]


def test_plan_moves_what_pays_and_says_why(tmp_path: Path) -> None:
    result = plan(tmp_path, TWO_ON_ONE, "--rebalance", "-f", "json")
    assert (result.code, result.err) == (0, "")
    (move,) = result.data["moves"]
    assert move.keys() == {
        *("project", "name", "from", "to", "gain", "price", "load_cpus", "size_bytes", "with", "reason")
    }
    assert (move["name"], move["from"], move["load_cpus"], move["with"]) == ("a", "0", 2.0, None)
    assert move["gain"] > move["price"] > 0
    (moved,) = [one for one in result.data["placements"] if one["moved"]]
    assert (moved["name"], moved["nodes"], moved["reason"]) == ("a", move["to"], move["reason"])
    assert {one["name"] for one in result.data["placements"]} == {"a", "b", "c"}
    assert result.data["imbalance"] > result.data["expected"] >= 1
    assert result.data["measured_load"] == {"0": 1.0, "1": 0.025, "2": 0.0, "3": 0.0}
    assert result.data["node_load"][move["to"]] == 0.5


def test_plan_without_it_moves_nothing_by_load(tmp_path: Path) -> None:
    result = plan(tmp_path, TWO_ON_ONE, "-f", "json")
    assert not result.data.keys() & {"moves", "imbalance", "expected", "measured_load"}
    assert [one["moved"] for one in result.data["placements"]] == [False] * 3


def test_plan_moves_on_top_of_its_placements(tmp_path: Path) -> None:
    """One that is new counts where it was just placed."""
    both = [*TWO_ON_ONE, {"name": "new", "vcpus": 2, "load_cpus": 2.0}]
    placements = {one["name"]: one["nodes"] for one in plan(tmp_path, both, "-f", "json").data["placements"]}
    found = plan(tmp_path, both, "--rebalance", "-f", "json").data
    (move,) = found["moves"]
    assert move["name"] in ("a", "b")
    assert move["to"] != placements["new"]
    assert found["measured_load"][placements["new"]] >= 0.5


def test_plan_of_even_or_unknown_load_moves_nobody(tmp_path: Path) -> None:
    even = [busy(name, str(node), f"{4 * node}-{4 * node + 1}", 1.0) for node, name in enumerate("abcd")]
    unknown = [{**one, "load_cpus": None} for one in TWO_ON_ONE]
    for instances, imbalance in ((even, 1.0), (unknown, None), ([], None)):
        found = plan(tmp_path, instances, "--rebalance", "-f", "json").data
        assert (found["moves"], found["imbalance"], found["expected"]) == ([], imbalance, imbalance)


def test_plan_counts_the_memory_that_follows(tmp_path: Path) -> None:
    heavy = [
        busy("a", "0", "0-1", 2.0, memory_bytes=4 << 30, memory_by_node={"0": 3 << 30}),
        busy("b", "0", "2-3", 2.0, memory_bytes=4 << 30, memory_by_node={"0": 1 << 30}),
    ]
    (move,) = plan(tmp_path, heavy, "--rebalance", "-f", "json").data["moves"]
    assert (move["name"], move["size_bytes"]) == ("b", 1 << 30)


def test_plan_takes_the_limits_of_settings(tmp_path: Path) -> None:
    file = config_file(tmp_path, "[rebalance]\nmove_price = 900.0\n")
    found = plan(tmp_path, TWO_ON_ONE, "--rebalance", "--settings", str(file), "-f", "json").data
    assert found["moves"] == []
    assert {(one["name"], one["hold"]) for one in found["held"]} == {("a", "price"), ("b", "price")}


def test_plan_shows_moves_as_a_table(tmp_path: Path) -> None:
    lines = plan(tmp_path, TWO_ON_ONE, "--rebalance").out.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("MOVE")] == [["MOVE", "FROM", "TO"]]
    assert lines[-2] == "highest over mean load: 3.90 before, 1.95 after"
    assert "1 move gains" in lines[-1]


def test_plan_says_why_nothing_moves(tmp_path: Path) -> None:
    fixed = [{**one, "movable": False} for one in TWO_ON_ONE]
    why = "nothing moves: 2 instances stay, by not-movable; see `held` in --format json"
    assert plan(tmp_path, fixed, "--rebalance").out.splitlines()[-1].endswith(why)
    assert plan(tmp_path, fixed, "--rebalance", "-f", "json").data["why"].endswith(why)


def test_plan_shows_no_load_where_none_is_known(tmp_path: Path) -> None:
    unknown = [{**one, "load_cpus": None} for one in TWO_ON_ONE]
    lines = plan(tmp_path, unknown, "--rebalance").out.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("NODE"))
    assert [line.split()[-1] for line in lines[first + 1 : first + 5]] == ["-"] * 4
    assert lines[-1] == "no instance has load_cpus: nothing moves by load"
    assert plan(tmp_path, unknown, "--rebalance", "-f", "json").data["measured_load"] == {}
    idle = [{**one, "load_cpus": 0.0} for one in TWO_ON_ONE]
    assert set(plan(tmp_path, idle, "--rebalance", "-f", "json").data["measured_load"].values()) == {0.0}


def test_what_is_beyond_the_budget_names_its_node_once(tmp_path: Path) -> None:
    crowd = [busy(name, "0", f"{cpu}", 2.0) for cpu, name in enumerate("abcd")]
    file = config_file(tmp_path, "[rebalance]\nmax_moves = 1\n")
    held = plan(tmp_path, crowd, "--rebalance", "--settings", str(file), "-f", "json").data["held"]
    assert {one["hold"] for one in held} == {"budget"}
    assert [one["detail"].count("to node") for one in held] == [1] * 3


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ({"9": 1}, "(db): memory_by_node 9 are no nodes of the machine: expected some of 0-3"),
        ({"x": 1}, "memory_by_node"),
        ({"0": -1}, "memory_by_node"),
        ({"99999999": 1}, "memory_by_node"),
        ([1], "memory_by_node"),
    ],
)
def test_memory_that_cannot_be_is_2(tmp_path: Path, memory: object, says: str) -> None:
    result = plan(tmp_path, [{"name": "db", "memory_by_node": memory}])
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert is_clean(result)


# With a server

OPTIONS = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)
QUICK = RebalanceSettings(window_s=0.5)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with simulated.host(OPTIONS, builders.machine()) as running_host:
        yield running_host


async def two_busy_on_one_node(host: Host, settings: RebalanceSettings = QUICK) -> tuple[Path, dict[str, InstanceKey]]:
    """The configuration, and `web` and `db`, which were put together and are busy now, and `idle` elsewhere."""
    keys = {}
    for name in ("web", "db", "idle"):
        group = {"user.numa.group": "g"} if name != "idle" else {}
        wants = {"limits.cpu": "2", "limits.memory": "1GiB", "limits.cpu.nodes": "balanced", **group}
        keys[name] = host.simulator.create(name, wants)
        await host.simulator.start(keys[name])
    config = write_config(host.simulator, settings)
    assert (await run_beside("rebalance", "--window", "0", "--config", config)).code == 0
    assert host.nodes(keys["web"]) == host.nodes(keys["db"]) != host.nodes(keys["idle"])
    for name in ("web", "db"):
        host.simulator.set_config(keys[name], {"user.numa.group": ""})
        host.simulator.set_work(keys[name], 2.0)
    return config, keys


def seats(host: Host, keys: dict[str, InstanceKey]) -> dict[str, str]:
    return {name: str(host.nodes(key)) for name, key in keys.items()}


def sampled(result: Result) -> bool:
    return "sampling" in result.err


async def test_rebalance_moves_one_of_two_that_are_busy_and_notes_it(host: Host) -> None:
    config, keys = await two_busy_on_one_node(host)
    before = seats(host, keys)
    result = await run_beside("rebalance", "--config", config, "-f", "json")
    after = seats(host, keys)
    assert (result.code, is_clean(result)) == (0, True)
    assert "sampling 3 instances for 0.5 s\n" in result.err
    (moved,) = [name for name in keys if before[name] != after[name]]
    assert moved in ("web", "db")
    assert {row["instance"] for row in result.data} == {moved}
    assert all(row["gain"] > row["price"] > 0 for row in result.data)
    (noted,) = Journal(config.parent / "moves.jsonl").read()
    assert (noted.move.key, str(noted.move.before), str(noted.move.after), noted.result) == (
        keys[moved],
        before[moved],
        after[moved],
        "moved",
    )
    assert {row["reason"] for row in result.data} == {noted.move.reason}
    # The clock of a simulated kernel is coarse, so that the other one may seem busier now than it is.
    assert (await run_beside("rebalance", "--config", config, "-f", "json")).code == 0
    assert seats(host, keys)[moved] == after[moved]


async def test_explain_tells_what_would_move_and_what_was_moved(host: Host) -> None:
    config, keys = await two_busy_on_one_node(host)
    before = seats(host, keys)
    explain = ("explain", "web", "--window", "0.5", "--config", config, "-f", "json")
    first = (await run_beside(*explain)).data
    assert first["load"]["used_cpus"] > 1
    assert first["locality"] == 1.0
    assert first["rebalancer"]["measured_load"].keys() == {before["web"]}
    assert first["rebalancer"]["says"].startswith("may move to node")
    assert first["rebalancer"]["considered"][0]["gain"] > first["rebalancer"]["considered"][0]["price"]
    assert first["last_moves"] == []
    assert (await run_beside("rebalance", "--max-moves", "1", "--config", config)).code == 0
    (moved,) = [name for name, seat in seats(host, keys).items() if before[name] != seat]
    again = (await run_beside("explain", moved, *explain[2:])).data
    assert again["rebalancer"]["hold"] == "cool-down"
    (move,) = again["last_moves"]
    assert (move["from"], move["to"], move["result"]) == (before[moved], seats(host, keys)[moved], "moved")
    assert datetime.fromisoformat(move["at"]).timestamp() == pytest.approx(time.time(), abs=60)
    people = (await run_beside("explain", moved, "--config", config)).out
    assert [line.split()[0] for line in people.splitlines() if line.startswith("last move")] == ["last"]


async def test_explain_without_a_window_measures_nothing(host: Host) -> None:
    config, _ = await two_busy_on_one_node(host)
    found = (await run_beside("explain", "web", "--window", "0", "--config", config, "-f", "json")).data
    assert (found["load"], found["rebalancer"], found["locality"]) == (None, None, 1.0)


async def test_a_dry_run_shows_gain_and_price_and_changes_nothing(host: Host) -> None:
    config, keys = await two_busy_on_one_node(host)
    before = seats(host, keys)
    result = await run_beside("rebalance", "--dry-run", "--config", config, "-f", "json")
    assert (result.code, {row["result"] for row in result.data}) == (0, {"would do"})
    assert all(row["gain"] > row["price"] > 0 for row in result.data)
    assert seats(host, keys) == before
    assert not (config.parent / "moves.jsonl").exists()


async def test_steps_that_are_no_moves_have_neither_gain_nor_price(host: Host) -> None:
    key = host.simulator.create("new", {"limits.cpu": "1", "limits.memory": "1GiB", "limits.cpu.nodes": "balanced"})
    await host.simulator.start(key)
    result = await run_beside("rebalance", "--config", write_config(host.simulator), "-f", "json")
    assert {(row["gain"], row["price"]) for row in result.data} == {(None, None)}


@pytest.mark.parametrize(
    ("settings", "words", "samples"),
    [
        (QUICK, (), True),
        (QUICK, ("--window", "0"), False),
        (QUICK, ("--max-moves", "0"), False),
        (QUICK, ("--project", "ci"), False),
        (replace(QUICK, enabled=False), (), False),
        (replace(QUICK, enabled=False), ("--window", "0.4"), True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(getattr(value, "enabled", value)),
)
async def test_load_is_measured_only_where_something_may_move(
    host: Host, settings: RebalanceSettings, words: tuple[str, ...], samples: bool
) -> None:
    host.simulator.set_project("ci", {})
    config, keys = await two_busy_on_one_node(host, settings)
    before = seats(host, keys)
    result = await run_beside("rebalance", "--config", config, *words)
    assert (result.code, sampled(result), seats(host, keys) != before) == (0, samples, samples)
    assert ("--max-moves 0 forbids moves" in result.err) is (words == ("--max-moves", "0"))
    assert ("highest over mean load: " in result.out) is samples


async def test_one_limit_counts_both_kinds_of_moves(host: Host) -> None:
    config, keys = await two_busy_on_one_node(host)
    before = seats(host, keys)
    # They no longer fit on one node, so that the pass itself moves one of them.
    for name in ("web", "db"):
        host.simulator.set_config(keys[name], {"limits.memory": "20GiB"})
    result = await run_beside("rebalance", "--max-moves", "1", "--config", config, "-f", "json")
    assert (result.code, sampled(result)) == (0, False)
    assert "--max-moves 1 was used up by what had to be placed anew" in result.err
    assert {(row["gain"], row["price"]) for row in result.data} == {(None, None)}
    assert sum(before[name] != seat for name, seat in seats(host, keys).items()) == 1


async def test_an_instance_that_was_moved_lately_stays_for_the_cool_down(host: Host) -> None:
    config, keys = await two_busy_on_one_node(host)
    before = seats(host, keys)
    journal = Journal(config.parent / "moves.jsonl")
    for name in ("web", "db"):
        move = Move(key=keys[name], before=NodeSet([3]), after=NodeSet([0]), gain=1.0, price=0.1, load_cpus=1.0)
        journal.append(MoveRecord(at_s=time.time() - 60, move=move, result="moved"))
    assert (await run_beside("rebalance", "--config", config)).code == 0
    assert seats(host, keys) == before
    journal.append(MoveRecord(at_s=time.time() + 3600, move=move, result="moved"))
    (config.parent / "moves.jsonl").unlink()
    assert (await run_beside("rebalance", "--config", config)).code == 0
    assert seats(host, keys) != before


async def test_list_shows_load_of_instances_and_nodes(host: Host) -> None:
    config, keys = await two_busy_on_one_node(host)
    home = int(seats(host, keys)["web"])
    data = (await run_beside("list", "--window", "0.5", "--config", config, "-f", "json")).data
    load = {row["name"]: row["load_cpus"] for row in data["instances"]}
    assert load["idle"] == 0
    assert 1 < load["web"] <= 3
    assert load["web"] == pytest.approx(load["db"], rel=0.2)
    nodes = {row["node"]: row["measured_load"] for row in data["nodes"]}
    assert nodes[home] == pytest.approx((load["web"] + load["db"]) / 4, rel=0.1)
    assert [nodes[node] for node in nodes if node != home] == [0, 0, 0]


async def test_list_without_a_window_shows_where_memory_is_and_no_load(host: Host) -> None:
    key = host.simulator.create("new", {"limits.memory": "1GiB", "limits.cpu": "8", "limits.cpu.nodes": "balanced"})
    await host.simulator.start(key)
    host.simulator.set_config(key, {"volatile.cpu.nodes": "1-2"})
    result = await run_beside("list", "--window", "0", "--config", write_config(host.simulator), "-f", "json")
    fields = [word.split("=") for word in host.path(key, "memory.numa_stat").read_text().splitlines()[0].split()[1:]]
    memory = {name: int(size) for name, size in fields}
    (row,) = result.data["instances"]
    assert row["locality"] == pytest.approx((memory["N1"] + memory["N2"]) / sum(memory.values()), abs=1e-4)
    assert 0 < row["locality"] < 1
    assert row["load_cpus"] is None
    assert {node["measured_load"] for node in result.data["nodes"]} == {None}
    assert result.err == ""


async def test_on_a_terminal_there_is_a_bar_and_the_data_are_alone_all_the_same(host: Host) -> None:
    config, _ = await two_busy_on_one_node(host)
    master, terminal = os.openpty()
    words = ("list", "--window", "0.5", "-f", "json", "--config", str(config))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "incus_numa", *words, stdout=subprocess.PIPE, stderr=terminal, env={"TERM": "xterm"}
    )
    out, _ = await process.communicate()
    os.close(terminal)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert process.returncode == 0
    assert len(json.loads(out)["instances"]) == 3
    assert "sampling 3 instances for 0.5 s" in shown
    assert "%" in shown


async def test_memory_that_follows_is_told_line_by_line(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    config, keys = await two_busy_on_one_node(host)
    web = keys["web"]
    async with connect(load_settings(config)) as session:
        await session.world.look_at_everything()
        seen = session.world.get(web)
        assert seen is not None
        assert seen.observed.cpus
        (home,) = host.nodes(web)
        size = sum((seen.observed.memory or {}).values())
        placement = Placement(key=web, nodes=NodeSet([3]), cpus=CpuSet([12]), mems=NodeSet([3]))
        with Watching(session, {web: placement}) as watch:
            assert [watch(web, size // 2), watch(web, size), watch(keys["idle"], 1)] == [True] * 3
        with suppress(asyncio.CancelledError), Watching(session, {web: placement}) as watch:
            watch(web, 1)
            raise asyncio.CancelledError
    line = f"web: {render_bytes(size)} of memory follow from node {home} to node 3 ... "
    assert capsys.readouterr().err.splitlines() == [f"{line}done", f"{line}stopped"]
