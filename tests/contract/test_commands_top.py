"""`top`, live on a terminal and so many looks elsewhere, beside a daemon."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import re
from datetime import datetime, timedelta

import pytest
import yaml

from incus_numa.cli.told import NODE_COLUMNS
from tests.commands import run, run_beside
from tests.contract.api_rig import api
from tests.contract.asking_rig import config_beside
from tests.contract.daemon_rig import Rig, rig
from tests.contract.terminal import COLOUR, PATIENCE_S, terminal


async def _first(r: Rig) -> None:
    await r.present("web", 2)
    await r.present("db", 4)


async def test_it_is_live_on_a_terminal_until_it_is_interrupted() -> None:
    async with rig() as r, api(r) as served:
        await _first(r)
        with terminal("top", "--interval", "0.2", "--config", config_beside(r, served)) as shown:
            await shown.wait_for("NODE", "INSTANCE", "web", "db")
            await r.present("late", 1)
            await shown.wait_for("late: started on node")
            code = await shown.interrupted()
    assert code == 130
    assert COLOUR.search(shown.text)
    # The alternate screen was left, and the cursor is there again.
    assert shown.text.rindex("\x1b[?1049l") > shown.text.rindex("\x1b[?1049h")
    assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l")
    assert "Traceback" not in shown.text


async def test_a_daemon_that_ends_meanwhile_is_waited_for() -> None:
    async with rig() as r:
        await _first(r)
        async with api(r) as served:
            config = config_beside(r, served)
            with terminal("top", "--interval", "0.2", "--config", config) as shown:
                await shown.wait_for("web")
                os.rename(served.settings.socket, f"{served.settings.socket}.away")
                await shown.wait_for("no daemon answers")
                os.rename(f"{served.settings.socket}.away", served.settings.socket)
                before = len(shown.text)
                await r.present("late", 1)
                while "late" not in shown.text[before:]:
                    await shown.wait_for("late")
                code = await shown.interrupted()
    assert code == 130


@pytest.mark.parametrize("words", [(), ("--once",)])
async def test_without_a_terminal_it_is_shown_once_as_plain_text(words: tuple[str, ...]) -> None:
    async with rig() as r, api(r) as served:
        await _first(r)
        result = await run_beside("top", *words, "--config", config_beside(r, served))
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert re.match(r"incus 6.0.4; 2 running, 2 managed, \d differ, 0 refused", lines[0])
    assert [line.split()[0] for line in lines if "░" in line or "█" in line] == ["0", "1", "2", "3"]
    assert sorted(line.split()[0] for line in lines if line.startswith(("web ", "db "))) == ["db", "web"]
    assert "\x1b" not in result.out


async def test_once_is_plain_lines_on_a_terminal_too() -> None:
    async with rig() as r, api(r) as served:
        await _first(r)
        with terminal("top", "--once", "--config", config_beside(r, served)) as shown:
            await shown.wait_for("INSTANCE", "web", "db")
            assert await asyncio.to_thread(shown.process.wait, PATIENCE_S) == 0
    assert "\x1b[?1049h" not in shown.text


async def test_no_color_means_no_colours() -> None:
    async with rig() as r, api(r) as served:
        await _first(r)
        with terminal("top", "--interval", "0.2", "--config", config_beside(r, served), NO_COLOR="1") as shown:
            await shown.wait_for("INSTANCE", "web")
            await shown.interrupted()
        with terminal("top", "--config", config_beside(r, served), TERM="dumb") as dumb:
            await dumb.wait_for("INSTANCE", "web")
    assert "█" in shown.text or "░" in shown.text
    assert not COLOUR.search(shown.text)
    assert "\x1b" not in dumb.text


FORMATS = ("table", "json", "yaml", "csv")


async def test_data_has_what_the_daemon_tells_and_more_looks_follow_each_other() -> None:
    async with rig() as r, api(r) as served:
        await _first(r)
        config = config_beside(r, served)
        told = {path: await served.unix.get(f"/v1/{path}") for path in ("status", "nodes", "instances", "moves")}
        looks = {one: await run_beside("top", "-f", one, "--config", config) for one in FORMATS}
        more = ("--count", "2", "--interval", "0.2", "--config", config)
        twice = {one: await run_beside("top", "-f", one, *more) for one in FORMATS}
    assert {(one.code, one.err) for one in (*looks.values(), *twice.values())} == {(0, "")}
    known = looks["json"].data
    assert datetime.fromisoformat(known.pop("at")).utcoffset() == timedelta(0)
    assert known == {
        "daemon": True,
        "status": {name: told["status"][name] for name in ("server", "instances", "imbalance", "moving")},
        "nodes": [{name: one[name] for name in NODE_COLUMNS} for one in told["nodes"]],
        "instances": told["instances"],
        "moves": told["moves"],
    }
    assert yaml.safe_load(looks["yaml"].out).keys() == looks["json"].data.keys()
    assert [one["name"] for one in csv.DictReader(io.StringIO(looks["csv"].out))] == ["db", "web"]
    assert [looks["table"].out.count("NODE  "), twice["table"].out.count("\n\nincus 6.0.4;")] == [1, 1]
    assert len(re.findall(r"^{", twice["json"].out, re.MULTILINE)) == 2
    assert len(list(yaml.safe_load_all(twice["yaml"].out))) == 2
    assert [one["name"] for one in csv.DictReader(io.StringIO(twice["csv"].out))] == ["db", "web"] * 2


async def test_a_number_of_looks_is_plain_lines_on_a_terminal_too() -> None:
    async with rig() as r, api(r) as served:
        await _first(r)
        with terminal("top", "-n", "2", "--interval", "0.2", "--config", config_beside(r, served)) as shown:
            await shown.wait_for("INSTANCE", "web", "db")
            assert await asyncio.to_thread(shown.process.wait, PATIENCE_S) == 0
    assert "\x1b[?1049h" not in shown.text


@pytest.mark.parametrize("words", [("--count", "0"), ("--once", "--count", "1"), ("-f", "svg")])
def test_wrong_usage_is_2(words: tuple[str, ...]) -> None:
    result = run("top", *words)
    assert (result.code, result.out) == (2, "")
    assert words[0].strip("-") in result.err


@pytest.mark.parametrize("interval", ["0", "0.1", "-1", "nan", "long"])
def test_an_interval_that_makes_no_sense_is_2(interval: str) -> None:
    result = run("top", "--interval", interval)
    assert (result.code, result.out) == (2, "")
    assert "--interval" in result.err
