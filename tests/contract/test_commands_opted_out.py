"""What commands say of instances whose record of nodes the server does not follow, and of keys without effect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.options import SimulatorOptions
from tests.commands import run_beside, write_config
from tests.contract import simulated
from tests.contract.simulated import Host

BALANCED = {"limits.cpu.nodes": "balanced"}
SMALL = {"limits.cpu": "2", "limits.memory": "1GiB"}


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with simulated.host(SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)) as one:
        yield one


async def started(host: Host, name: str, cpus: str, record: str, **keys: str) -> InstanceKey:
    """A container that has these CPUs, and a record that says otherwise."""
    key = host.simulator.create(name, SMALL | {name.replace("_", "."): value for name, value in keys.items()})
    await host.simulator.start(key)
    host.simulator.set_config(key, {"volatile.cpu.nodes": record})
    host.path(key, "cpuset.cpus").write_text(f"{cpus}\n")
    host.path(key, "memory.numa_stat").write_text("anon N0=0 N1=100 N2=300 N3=0\n")
    host.simulator.settle()
    return key


async def listed(host: Host) -> dict[str, Any]:
    config = write_config(host.simulator)
    return dict((await run_beside("list", "--window", "0", "-f", "json", "--config", config)).data)


async def test_what_opted_out_is_where_its_cpus_are(host: Host) -> None:
    await started(host, "out", "4-5", "3")
    config = write_config(host.simulator)
    data = await listed(host)
    (row,) = data["instances"]
    assert (row["state"], row["nodes"], row["locality"]) == ("unmanaged", "1", 0.25)
    assert {node["node"]: node["load"] for node in data["nodes"]} == {0: 0, 1: 0.5, 2: 0, 3: 0}
    explained = (await run_beside("explain", "out", "--window", "0", "-f", "json", "--config", config)).data
    assert (explained["has_nodes"], explained["locality"]) == ("1", 0.25)


async def test_a_list_of_nodes_is_followed_and_counts_whoever_wrote_it(host: Host) -> None:
    await started(host, "named", "8-9", "3", limits_cpu_nodes="2")
    (row,) = (await listed(host))["instances"]
    assert (row["state"], row["nodes"], row["locality"]) == ("unmanaged", "2", 0.75)


async def test_a_record_that_the_server_does_not_follow_is_no_choice_of_nodes(host: Host) -> None:
    """Two nodes are idle: what the server chose would be kept, what is only left of an earlier start is not."""
    for name in ("a", "b"):
        await started(host, name, {"a": "0-3", "b": "4-7"}[name], {"a": "0", "b": "1"}[name], limits_cpu="4")
    key = await started(host, "left", "0-15", "3", user_limits_cpu_nodes="balanced")
    config = write_config(host.simulator)
    result = await run_beside("rebalance", "-f", "json", "--config", config)
    assert (result.code, str(host.nodes(key))) == (0, "2")
    chosen = await started(host, "chosen", "0-15", "3", limits_cpu_nodes="balanced")
    assert (await run_beside("rebalance", "--config", config)).code == 0
    assert str(host.nodes(chosen)) == "3"


async def test_the_record_of_what_opted_out_is_not_judged(host: Host) -> None:
    key = await started(host, "out", "4-5", "9")
    result = await run_beside("check", "-f", "json", "--config", write_config(host.simulator))
    host.simulator.set_config(key, {"volatile.cpu.nodes": "0"})
    assert [one for one in result.data if one["about"] == "out"] == []


async def test_a_wide_placement_with_few_cpus_is_no_finding(host: Host) -> None:
    """2 CPUs and 80 GiB on nodes of 32 GiB: three nodes hold it, and two of them have its CPUs."""
    key = host.simulator.create("wide", {"limits.cpu": "2", "limits.memory": "80GiB", **BALANCED})
    await host.simulator.start(key)
    config = write_config(host.simulator)
    assert (await run_beside("rebalance", "--config", config)).code == 0
    assert (len(host.nodes(key)), len(host.cpus(key))) == (3, 2)
    check = await run_beside("check", "-f", "json", "--config", config)
    assert [one["code"] for one in check.data if one["about"] == "wide"] == []


async def test_memory_of_a_wide_placement_that_is_elsewhere_could_be_bound(host: Host) -> None:
    key = host.simulator.create("wide", {"limits.cpu": "8", "limits.memory": "1GiB", **BALANCED})
    await host.simulator.start(key)
    config = write_config(host.simulator)
    assert (await run_beside("rebalance", "--config", config)).code == 0
    here, away = min(host.nodes(key)), min(set(range(4)) - set(host.nodes(key)))
    hint = f"; user.numa.memory=bind would bind it to nodes {host.nodes(key)}"
    for share, is_told in ((49, True), (50, False)):
        host.path(key, "memory.numa_stat").write_text(f"anon N{here}={share << 20} N{away}={(100 - share) << 20}\n")
        assert (hint in (await explained(host, "wide"))["memory"]) == is_told
    host.path(key, "memory.numa_stat").write_text(f"anon N{here}=0 N{away}={100 << 20}\n")
    for keys in ({"user.numa.memory": "bind"}, {"user.numa.memory": "none"}):
        host.simulator.set_config(key, keys)
        assert "user.numa.memory=bind" not in (await explained(host, "wide"))["memory"]


async def explained(host: Host, name: str) -> dict[str, str]:
    """The lines of `explain`, by their first word."""
    out = (await run_beside("explain", name, "--window", "0", "--config", write_config(host.simulator))).out
    return {line[:13].strip(): line[14:] for line in out.splitlines()}


async def test_every_bad_key_is_a_line_of_check_and_all_are_in_the_refusal(host: Host) -> None:
    bad = {"user.numa.policy": "sideways", "user.numa.movable": "perhaps"}
    key = host.simulator.create("typo", {**SMALL, **BALANCED, **bad})
    await host.simulator.start(key)
    config = write_config(host.simulator)
    found = (await run_beside("check", "-f", "json", "--config", config)).data
    assert [(one["about"], one["finding"].split(":")[0]) for one in found if one["code"] == "bad-key"] == [
        ("typo", "user.numa.movable"),
        ("typo", "user.numa.policy"),
    ]
    (stale,) = [one["do"] for one in found if one["code"] == "record-untrue"]
    assert stale == "correct its keys first, then `incus-numa rebalance` makes both agree"
    (refused,) = (await run_beside("rebalance", "-f", "json", "--config", config)).data
    assert refused["detail"] == (
        "user.numa.policy: bad value 'sideways': expected one of balanced, none, best-effort, restricted, "
        "single-numa-node; user.numa.movable: bad value 'perhaps': expected true or false"
    )


async def test_keys_without_effect_are_notes_of_check(host: Host) -> None:
    host.simulator.create("web", {**SMALL, **BALANCED, "user.numa.group": "web"})
    host.simulator.create("lonely", {**SMALL, **BALANCED, "user.numa.avoid": "web,db"})
    host.simulator.create("out", {**SMALL, "user.numa.memory": "bind", "user.numa.cores": "fast"})
    result = await run_beside("check", "-f", "json", "--config", write_config(host.simulator))
    told = [(one["severity"], one["code"], one["about"]) for one in result.data]
    assert [one for one in told if one[2] in ("web", "lonely", "out")] == [
        ("note", "unused-key", "lonely"),
        ("note", "bad-key", "out"),
        ("note", "unused-key", "out"),
    ]


async def test_a_line_of_check_ends_with_its_code(host: Host) -> None:
    host.simulator.create("out", {**SMALL, "user.numa.memory": "bind"})
    config = write_config(host.simulator)
    lines = (await run_beside("check", "--config", config)).out.splitlines()
    codes = [one["code"] for one in (await run_beside("check", "-f", "json", "--config", config)).data]
    assert [line.rpartition(" ")[2] for line in lines] == [f"[{code}]" for code in codes]
