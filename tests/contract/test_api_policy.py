"""The policy that is set over the API: checked on this machine, changed by several at once, kept by a file gone bad."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from incus_numa.settings import PlacementSettings
from tests.contract.api_rig import Answer, Api
from tests.contract.test_api import MEASURED, host, uneven

PACK = {"placement": {"smt": "pack"}}


def told(answer: Answer) -> list[str]:
    return [one["detail"] for one in answer.data["errors"]]


async def put(served: Api, tables: Any, **headers: str) -> Answer:
    return await served.unix.ask("/v1/policy", "PUT", tables, **headers)


async def test_cpus_that_the_machine_cannot_keep_back_are_refused_as_in_the_file() -> None:
    async with host() as (r, served):
        answer = await put(served, {"placement": {"reserved_cpus": "0-99", "smt": "sideways"}})
        assert (r.daemon.service.settings.placement, served.policy_file.exists()) == (PlacementSettings(), False)
    assert answer.status == 422
    assert told(answer) == [
        "placement.smt = 'sideways': expected one of spread, pack",
        "placement.reserved_cpus = '0-99': this machine has no CPUs 16-99, only 0-15",
        "placement.reserved_cpus = '0-99': that is every CPU that instances could have (0-15); leave some of them out",
    ]


async def test_a_file_that_keeps_back_every_cpu_is_not_reloaded() -> None:
    async with host() as (r, _):
        r.settings = replace(r.settings, placement=PlacementSettings(reserved_cpus="0-15", smt="pack"))
        r.daemon.service.reload()
        assert r.daemon.service.settings.placement == PlacementSettings()
        assert len(r.log.saying("settings not reloaded", "every CPU")) == 1


async def test_a_reload_takes_the_file_and_what_is_still_good_of_the_policy() -> None:
    async with host() as (r, served):
        await put(served, {"placement": {"smt": "pack"}, "rebalance": {"enabled": False}})
        served.policy_file.write_text(json.dumps({"placement": {"smt": "other"}, "rebalance": {"enabled": False}}))
        r.settings = replace(r.settings, placement=replace(r.settings.placement, memory="bind"))
        r.daemon.service.reload()
        found = await served.unix.get("/v1/policy")
        placement = r.daemon.service.settings.placement
    assert (placement.smt, placement.memory, found["changes"]) == ("spread", "bind", {"rebalance": {"enabled": False}})
    assert found["left_out"] == [
        {"key": "placement.smt", "why": "placement.smt = 'other': expected one of spread, pack"}
    ]


async def test_what_was_left_out_is_kept_until_a_policy_is_put_and_then_its_end_is_told() -> None:
    async with host() as (r, served):
        served.policy_file.write_text(json.dumps({"placement": {"smt": "other"}, "rebalance": {"margin": 1.0}}))
        r.daemon.service.reload()
        before = await served.unix.get("/v1/policy")
        done = await put(served, before["changes"] | {"placement": {"memory": "none"}})
        kept = json.loads(served.policy_file.read_text())
        after = await served.unix.get("/v1/policy")
    assert kept == {"placement": {"memory": "none"}, "rebalance": {"margin": 1.0}}
    assert done.data["warnings"] == [f"no longer kept, as it was not in force: {before['left_out'][0]['why']}"]
    assert (done.data["left_out"], after["left_out"], after["warnings"]) == ([], [], [])


async def test_every_mistake_is_told_at_once_and_unknown_tables_with_those_there_are() -> None:
    bad = {
        "placement": {"smt": "bogus"},
        "rebalance": {"margin": 99, "journal": "/x", "max_moves": "many"},
        "foo": {"bar": 1},
        "memory": None,
    }
    async with host() as (_, served):
        answer = await put(served, bad)
    assert (answer.status, sorted(told(answer))) == (
        422,
        [
            "[foo]: cannot be set here; expected one of placement, memory, rebalance",
            "memory: expected a table",
            "placement.smt = 'bogus': expected one of spread, pack",
            "rebalance.journal: can only be changed in the file, followed by a restart",
            "rebalance.margin = 99: expected 0.01 to 10",
            "rebalance.max_moves = 'many': expected a whole number from 1 to 10000",
        ],
    )


async def test_what_has_no_effect_is_told_to_who_sets_it() -> None:
    async with host() as (_, served):
        answer = await put(served, {"memory": {"reserved": {"0": "1GiB"}}})
        shown = await served.unix.get("/v1/policy")
    assert answer.data["warnings"] == shown["warnings"]
    assert ["memory.reserved: ignored" in one for one in answer.data["warnings"]] == [True]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_who_read_an_older_policy_does_not_undo_a_newer_one(method: str) -> None:
    body = {"rebalance": {"margin": 1.0}} if method == "PUT" else None
    async with host() as (_, served):
        read = await served.unix.ask("/v1/policy")
        await put(served, PACK)
        stale = await served.unix.ask("/v1/policy", method, body, If_Match=read.headers["ETag"])
        weak = await served.unix.ask("/v1/policy", method, body, If_Match=f"W/{(await tag(served))}")
        kept = json.loads(served.policy_file.read_text())
        fresh = await served.unix.ask("/v1/policy", method, body, If_Match=f'"other", {await tag(served)}')
        again = await served.unix.ask("/v1/policy", method, body, If_Match="*")
    assert read.headers["ETag"] == f'"{read.data["etag"]}"'
    assert [(one.status, one.data["type"]) for one in (stale, weak)] == [(412, "urn:incus-numa:changed")] * 2
    assert (kept, fresh.status, again.status) == (PACK, 200, 200)
    assert fresh.data["changes"] == (body or {})


async def tag(served: Api) -> str:
    return str((await served.unix.ask("/v1/policy")).headers["ETag"])


async def test_of_those_who_change_the_same_policy_at_once_one_does() -> None:
    async with host() as (_, served):
        read = await tag(served)
        tables = [{"rebalance": {"max_moves": 1 + one}} for one in range(5)]
        answers = await asyncio.gather(*(put(served, one, If_Match=read) for one in tables))
    assert sorted(one.status for one in answers) == [200, 412, 412, 412, 412]


async def test_a_rebalance_of_no_project_there_is_names_those_there_are() -> None:
    async with host(MEASURED) as (r, served):
        await uneven(r, served)
        answers = [
            await served.unix.ask("/v1/rebalance", "POST", {"project": "nope", "dry_run": dry}) for dry in (True, False)
        ]
    assert [(one.status, one.data["detail"]) for one in answers] == [
        (404, "there is no project 'nope', but default, other")
    ] * 2
