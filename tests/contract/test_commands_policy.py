"""`policy get` and `policy set` beside a daemon, without one, and beside what is none."""

from __future__ import annotations

import asyncio
import csv
import io
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from incus_numa.settings import RebalanceSettings, Settings, settings_as_dict
from tests.commands import config_file, is_clean, run, run_beside
from tests.contract.api_rig import api
from tests.contract.asking_rig import answering, api_config, config_beside
from tests.contract.daemon_rig import EVENTS_ONLY, Wish, rig

QUIET = Wish(settings=Settings(daemon=EVENTS_ONLY, rebalance=RebalanceSettings(enabled=False)))
GET, SET = ("policy", "get"), ("policy", "set", "placement.smt=pack")
COMMANDS = (GET, SET, ("policy", "set", "--reset"))


async def test_the_policy_is_shown_changed_and_taken_back() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        config = config_beside(r, served)
        first = await run_beside(*GET, "-f", "json", "--config", config)
        done = await run_beside("policy", "set", "placement.smt=pack", "rebalance.margin=1", "--config", config)
        more = await run_beside("policy", "set", "rebalance.max_bytes=5GiB", "--config", config)
        told = await served.unix.get("/v1/policy")
        shown = await run_beside(*GET, "-f", "csv", "--config", config)
        reset = await run_beside("policy", "set", "--reset", "--config", config)
        last = await served.unix.get("/v1/policy")
    effective = settings_as_dict(r.settings)
    assert (first.code, first.err, first.data["source"], first.data["changes"]) == (0, "", "file", {})
    assert first.data["effective"] == {name: effective[name] for name in ("placement", "memory", "rebalance")}
    assert (done.code, done.out, done.err) == (0, "", "placement.smt = pack\nrebalance.margin = 1.0\n")
    assert more.err == "rebalance.max_bytes = 5GiB\n"
    assert told["changes"] == {"placement": {"smt": "pack"}, "rebalance": {"margin": 1, "max_bytes": "5GiB"}}
    rows = {row["key"]: (row["value"], row["source"]) for row in csv.DictReader(io.StringIO(shown.out))}
    assert {key: value for key, (value, source) in rows.items() if source == "api"} == {
        "placement.smt": "pack",
        "rebalance.margin": "1.0",
        "rebalance.max_bytes": "5GiB",
    }
    assert rows["rebalance.enabled"] == ("false", "file")
    assert (reset.code, reset.err) == (0, f"the policy is that of {last['file']} again\n")
    assert (last["source"], last["changes"]) == ("file", {})


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("placement.reserved_cpus=0", "0"),
        ('placement.reserved_cpus="0-1"', "0-1"),
        ("placement.reserved_cpus=", ""),
        ("rebalance.enabled=true", True),
        ("rebalance.max_moves=3", 3),
        ('memory.reserved={"0" = "1GiB"}', {"0": "1GiB"}),
    ],
)
async def test_values_are_written_as_in_the_file_or_without_quotes(assignment: str, value: object) -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        result = await run_beside("policy", "set", assignment, "--config", config_beside(r, served))
        told = await served.unix.get("/v1/policy")
    table, _, key = assignment.partition("=")[0].partition(".")
    assert (result.code, told["changes"]) == (0, {table: {key: value}})


async def test_what_is_shown_can_be_set_again() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        config = config_beside(r, served)
        await run_beside("policy", "set", 'memory.reserved={"0" = "1GiB", "1" = "2GiB"}', "--config", config)
        shown = await run_beside(*GET, "-f", "csv", "--config", config)
        fixed = (await served.unix.get("/v1/policy"))["fixed"]
        rows = [row for row in csv.DictReader(io.StringIO(shown.out)) if row["key"] not in fixed]
        before = await served.unix.get("/v1/policy")
        words = [f"{row['key']}={row['value']}" for row in rows]
        again = await run_beside("policy", "set", *words, "--config", config)
        after = await served.unix.get("/v1/policy")
    assert (again.code, after["effective"]) == (0, before["effective"])


async def test_every_mistake_is_told_at_once_and_nothing_is_changed() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        words = ("placement.smt=sideways", "rebalance.margin=-1", "placement.nosuch=1")
        result = await run_beside("policy", "set", *words, "--config", config_beside(r, served))
        told = await served.unix.get("/v1/policy")
    assert (result.code, result.out, told["changes"]) == (2, "", {})
    lines = result.err.splitlines()
    assert len(lines) == 3
    for key in ("placement.smt", "rebalance.margin", "placement.nosuch"):
        assert sum(line.startswith("Error: ") and key in line for line in lines) == 1, key


async def test_a_table_that_cannot_be_set_is_2_and_named() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        result = await run_beside("policy", "set", "server.socket=/x", "--config", config_beside(r, served))
    assert (result.code, result.out) == (2, "")
    assert "server" in result.err
    assert is_clean(result)


async def test_the_table_fits_80_columns() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        result = await run_beside(*GET, "--config", config_beside(r, served))
    lines = result.out.splitlines()
    assert lines[0].split() == ["KEY", "VALUE", "SOURCE"]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_without_a_daemon_it_is_1_and_says_what_to_do(tmp_path: Path, words: tuple[str, ...]) -> None:
    nobody = run(*words, "--config", api_config(tmp_path, tmp_path / "api.sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
        died = run(*words, "--config", api_config(tmp_path, tmp_path / "dead.sock"))
    off = run(*words, "--config", api_config(tmp_path, tmp_path / "api.sock", enabled=False))
    assert [(one.code, one.out) for one in (nobody, died, off)] == [(1, "")] * 3
    for result, name in ((nobody, "api.sock"), (died, "dead.sock")):
        assert result.err.startswith(f"Error: no daemon answers at {tmp_path}/{name}: start it with `systemctl start")
    assert off.err == "Error: the daemon has no API: set api.enabled and restart it\n"


def problem(status: int, **more: object) -> web.Response:
    return web.json_response({"title": "No", "status": status, "detail": "it is so"} | more, status=status)


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (problem(403), 1, "the daemon refuses: it is so; be root or a member of the group incus-admin or lxd"),
        (problem(401), 1, "the daemon refuses: it is so; be root"),
        (problem(404), 1, "it is so"),
        (problem(409), 1, "it is so: try again"),
        (problem(422, errors=[{"detail": "one"}, {"detail": "two", "pointer": "#/a/b"}]), 2, "one\nError: a.b: two\n"),
        (problem(500), 1, "the daemon could not do it: it is so"),
        (problem(503), 1, "it is so: try again"),
        (problem(503, type="urn:incus-numa:server-unreachable"), 3, "it is so"),
        (web.Response(text="<html>"), 1, "is no API of incus-numa"),
        (web.Response(text="null"), 1, "is no API of incus-numa"),
        (web.Response(text="[]", status=400), 1, "is no API of incus-numa"),
        (web.Response(status=302, headers={"Location": "/"}), 1, "is no API of incus-numa"),
    ],
    ids=["403", "401", "404", "409", "422", "500", "503", "server", "html", "null", "list", "elsewhere"],
)
async def test_what_the_daemon_refuses_is_told_as_an_error_of_ours(
    tmp_path: Path, answer: web.Response, code: int, says: str
) -> None:
    async with answering(tmp_path / "s", lambda _: answer):
        result = await run_beside("policy", "set", "--reset", "--config", api_config(tmp_path, tmp_path / "s"))
    assert (result.code, result.out) == (code, "")
    assert says in result.err
    assert is_clean(result)


@pytest.mark.parametrize(
    "words", [("x",), ("placement=1",), ("placement.=1",), (".smt=pack",), (), ("a.b=1", "--reset")]
)
def test_wrong_usage_is_2(tmp_path: Path, words: tuple[str, ...]) -> None:
    result = run("policy", "set", *words, "--config", config_file(tmp_path, ""))
    assert (result.code, result.out) == (2, "")
    assert "TABLE.KEY=VALUE" in result.err


async def test_of_several_changes_at_once_none_is_lost() -> None:
    words = [f"rebalance.{key}={value}" for key, value in (("margin", 1.0), ("max_moves", 3), ("hold_s", 5.0))]
    words += ["placement.smt=pack", "placement.memory=none"]
    async with rig(wish=QUIET) as r, api(r) as served:
        config = config_beside(r, served)
        programs = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "incus_numa", "policy", "set", word, "--config", config, stderr=subprocess.PIPE
            )
            for word in words
        ]
        ends = [(await one.communicate())[1].decode() for one in programs]
        told = await served.unix.get("/v1/policy")
    assert [one.returncode for one in programs] == [0] * 5, ends
    assert told["changes"] == {
        "rebalance": {"margin": 1.0, "max_moves": 3, "hold_s": 5.0},
        "placement": {"smt": "pack", "memory": "none"},
    }


async def test_a_change_that_others_always_come_before_is_1_and_says_so(tmp_path: Path) -> None:
    policy = {"changes": {}, "effective": {"placement": {"smt": "spread"}}, "etag": "x", "fixed": []}

    def answer(request: web.Request) -> web.Response:
        stale = request.method == "PUT" and request.headers["If-Match"] == '"x"'
        return problem(412) if stale else web.json_response(policy)

    async with answering(tmp_path / "s", answer):
        result = await run_beside(*SET, "--config", api_config(tmp_path, tmp_path / "s"))
    assert (result.code, result.err) == (1, "Error: it is so\n")


async def test_single_values_are_printed_as_they_can_be_set() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        config = config_beside(r, served)
        keys = ("placement.smt", "rebalance.margin", "memory.reserved", "placement.reserved_cpus")
        plain = await run_beside(*GET, *keys, "--config", config)
        data = await run_beside(*GET, *keys, "-f", "json", "--config", config)
        rows = await run_beside(*GET, "placement.smt", "-f", "csv", "--config", config)
        wrong = await run_beside(*GET, "placement.nosuch", "foo.bar", "placement.smt", "--config", config)
    assert (plain.code, plain.out, plain.err) == (0, "spread\n0.1\n{}\n\n", "")
    assert data.data == dict(zip(keys, ("spread", 0.1, {}, ""), strict=True))
    assert rows.out.splitlines() == ["key,value,source", "placement.smt,spread,file"]
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith("Error: placement.nosuch: unknown key; expected one of placement.smt, placement.memory")
    assert wrong.err.endswith("Error: foo.bar: unknown key; expected a key of placement, memory, rebalance\n")


async def test_keys_that_need_a_restart_are_marked() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        shown = await run_beside(*GET, "-f", "csv", "--config", config_beside(r, served))
    sources = {row["key"]: row["source"] for row in csv.DictReader(io.StringIO(shown.out))}
    assert {key for key, source in sources.items() if source == "file (fixed)"} == {
        "rebalance.bytes_per_second",
        "rebalance.journal",
    }


async def test_single_keys_go_back_to_the_file() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        config = config_beside(r, served)
        await run_beside("policy", "set", "placement.smt=pack", "placement.memory=none", "--config", config)
        done = await run_beside("policy", "unset", "placement.smt", "rebalance.margin", "--config", config)
        told = await served.unix.get("/v1/policy")
        wrong = await run_beside("policy", "unset", "placement.memory", "placement.nosuch", "--config", config)
        last = await run_beside("policy", "unset", "placement.memory", "--config", config)
        end = await served.unix.get("/v1/policy")
    assert (done.code, done.out, done.err) == (0, "", "placement.smt = spread\nrebalance.margin = 0.1\n")
    assert told["changes"] == {"placement": {"memory": "none"}}
    assert (wrong.code, wrong.err.startswith("Error: placement.nosuch: unknown key")) == (2, True)
    assert (last.code, end["source"], served.policy_file.exists()) == (0, "file", False)


async def test_what_has_no_effect_and_what_is_left_out_is_told() -> None:
    async with rig(wish=QUIET) as r, api(r) as served:
        config = config_beside(r, served)
        void = await run_beside("policy", "set", "memory.reserved_total=1GiB", "--config", config)
        served.policy_file.write_text('{"placement": {"smt": "other", "memory": "none"}}')
        r.daemon.service.reload()
        shown = await run_beside(*GET, "placement.smt", "--config", config)
        done = await run_beside("policy", "set", "rebalance.margin=1", "--config", config)
        told = await served.unix.get("/v1/policy")
    assert (void.code, void.out) == (0, "")
    assert "\nWarning: memory.reserved_total: ignored, because memory.policy" in void.err
    why = "placement.smt = 'other': expected one of spread, pack\n"
    assert (shown.out, shown.err) == ("spread\n", f"Warning: not in force: {why}")
    assert (done.code, done.err) == (
        0,
        f"rebalance.margin = 1.0\nWarning: no longer kept, as it was not in force: {why}",
    )
    assert told["changes"] == {"placement": {"memory": "none"}, "rebalance": {"margin": 1}}


async def test_every_mistake_of_a_command_line_is_told_at_once() -> None:
    words = ("placement.smt=bogus", "rebalance.margin=99", "foo.bar=1", "rebalance.journal=/x")
    async with rig(wish=QUIET) as r, api(r) as served:
        result = await run_beside("policy", "set", *words, "--config", config_beside(r, served))
    assert (result.code, sorted(result.err.splitlines())) == (
        2,
        [
            "Error: [foo]: cannot be set here; expected one of placement, memory, rebalance",
            "Error: placement.smt = 'bogus': expected one of spread, pack",
            "Error: rebalance.journal: can only be changed in the file, followed by a restart",
            "Error: rebalance.margin = 99: expected 0.01 to 10",
        ],
    )
