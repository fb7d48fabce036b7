"""`top` where no daemon tells: it looks itself, says so, and asks a daemon that comes meanwhile."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.daemon.journal import Journal
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import Move, MoveRecord
from incus_numa.settings import parse_settings, render_settings
from incus_numa.simulator.options import SimulatorOptions
from tests import builders
from tests.commands import is_clean, run, run_beside, write_config
from tests.contract import simulated
from tests.contract.api_rig import api
from tests.contract.asking_rig import answering, api_config, config_beside, saying
from tests.contract.daemon_rig import rig
from tests.contract.simulated import Host
from tests.contract.terminal import terminal

OPTIONS = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)
ITSELF = "top looks itself"
HINT = "see `systemctl status incus-numa`"


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    """Two managed instances, `web` busy on two CPUs, and one that nobody manages."""
    async with simulated.host(OPTIONS, builders.machine()) as running:
        for name, more in {"web": simulated_keys(), "db": simulated_keys(), "loose": {}}.items():
            await running.simulator.start(running.simulator.create(name, {"limits.cpu": "2", **more}))
        config = config_alone(running)
        assert (await run_beside("rebalance", "--window", "0", "--config", config)).code == 0
        running.simulator.set_work(InstanceKey("default", "web"), 2.0)
        yield running


def simulated_keys() -> dict[str, str]:
    return {"limits.memory": "1GiB", "limits.cpu.nodes": "balanced"}


def config_alone(host: Host) -> Path:
    """A configuration whose API nobody serves."""
    path = write_config(host.simulator)
    settings = parse_settings(path.read_text())
    socket = str(path.parent / "api.sock")
    path.write_text(render_settings(replace(settings, api=replace(settings.api, socket=socket))))
    return path


def without_load(data: dict[str, object]) -> list[object]:
    """Instances and nodes but for what is measured, which is another at each look, and for what counts it."""
    measured = ("load_cpus", "measured_load", "load")
    rows = [*data["instances"], *data["nodes"]]  # type: ignore[misc]
    return [{name: value for name, value in row.items() if name not in measured} for row in rows]


async def test_it_shows_what_list_shows_and_the_load_since_the_look_before(host: Host) -> None:
    config = config_alone(host)
    record = Move(
        key=InstanceKey("default", "db"),
        before=NodeSet((0,)),
        after=NodeSet((1,)),
        gain=1.0,
        price=0.1,
        load_cpus=1.0,
        size_bytes=0,
        reason="so",
    )
    Journal(config.parent / "moves.jsonl").append(MoveRecord(at_s=1.0, move=record, result="moved"))
    found = await run_beside("top", "-f", "json", "--config", config)
    listed = await run_beside("list", "-f", "json", "--config", config)
    plain = await run_beside("top", "--config", config)
    assert (found.code, found.err) == (0, f"Note: no daemon answers at {config.parent}/api.sock: {ITSELF}; {HINT}\n")
    assert without_load(found.data) == without_load(listed.data)
    assert found.data["daemon"] is False
    assert found.data["status"]["instances"] == {"running": 3, "managed": 2, "differ": 0, "refused": 0}
    busy = {row["name"]: row["load_cpus"] for row in found.data["instances"]}
    assert busy["web"] > 0.5
    assert busy["db"] == busy["loose"] == 0.0
    assert found.data["status"]["imbalance"] > 1
    (home,) = [row["nodes"] for row in found.data["instances"] if row["name"] == "web"]
    loaded = [row["node"] for row in found.data["nodes"] if row["measured_load"]]
    assert [str(node) for node in loaded] == [home]
    assert [(one["name"], one["from"], one["to"]) for one in found.data["moves"]] == [("db", "0", "1")]
    assert plain.out.splitlines()[-1].endswith("db: from node 0 to node 1, moved")


async def test_free_memory_is_that_of_each_look(host: Host) -> None:
    config = config_alone(host)
    meminfo = host.simulator.sysfs / "devices/system/node/node0/meminfo"
    with terminal("top", "--interval", "0.2", "--config", config) as shown:
        await shown.wait_for(ITSELF, "24 GiB")
        lines = meminfo.read_text().splitlines()
        kept = [line if "MemFree" not in line else "Node 0 MemFree: 7340032 kB" for line in lines]
        meminfo.write_text("\n".join(kept) + "\n")
        await shown.wait_for("7 GiB")
        assert await shown.interrupted() == 130


async def test_a_daemon_that_comes_and_goes_is_noticed() -> None:
    async with rig() as r:
        await r.present("web", 2)
        async with api(r) as served:
            config, away = config_beside(r, served), f"{served.settings.socket}.away"
            os.rename(served.settings.socket, away)
            with terminal("top", "--interval", "0.2", "--config", config) as shown:
                await shown.wait_for("web", f"no daemon answers at {served.settings.socket}"[:40])
                await r.present("alone", 1)
                await shown.wait_for("alone")
                assert "alone: started on node" not in shown.text
                os.rename(away, served.settings.socket)
                for number in range(20):
                    if "started on node" not in shown.text:
                        await r.present(f"late{number}", 1)
                        await shown.wait_for(f"late{number}")
                await shown.wait_for("started on node")
                os.rename(served.settings.socket, away)
                # What was written before does not count.
                shown.text = ""
                await shown.wait_for("no daemon answers")
                os.rename(away, served.settings.socket)
                code = await shown.interrupted()
    assert code == 130
    assert "Traceback" not in shown.text


async def test_a_server_that_goes_meanwhile_is_told_and_waited_for(host: Host) -> None:
    config, socket = config_alone(host), host.simulator.socket_path
    with terminal("top", "--interval", "0.2", "--config", config) as shown:
        await shown.wait_for("web", ITSELF)
        os.rename(socket, f"{socket}.away")
        await shown.wait_for("no daemon answers at", "; ")
        os.rename(f"{socket}.away", socket)
        key = host.simulator.create("late", {"limits.cpu": "1"})
        await host.simulator.start(key)
        await shown.wait_for("late")
        assert await shown.interrupted() == 130


async def test_where_what_answers_does_not_tell_it_looks_itself(host: Host) -> None:
    config = config_alone(host)
    for text in ("<html>", "{}", "[]", '{"server": null}'):
        async with answering(config.parent / "api.sock", saying(text)):
            result = await run_beside("top", "--config", config)
        assert result.code == 0, text
        assert result.err.startswith("Note: what answers at"), text
        assert result.err.endswith(f"{ITSELF}\n"), text


def test_without_a_server_either_it_is_3_and_tells_both(tmp_path: Path) -> None:
    result = run("top", "--config", api_config(tmp_path, tmp_path / "api.sock"))
    off = run("top", "--config", api_config(tmp_path, tmp_path / "api.sock", enabled=False))
    assert [(one.code, one.out, is_clean(one)) for one in (result, off)] == [(3, "", True)] * 2
    assert result.err.startswith(f"Error: no daemon answers at {tmp_path}/api.sock; ")
    assert off.err.startswith("Error: the daemon has no API; ")
    assert all(f"{tmp_path}/none.socket" in one.err for one in (result, off))
