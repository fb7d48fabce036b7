"""`incus-numa check` against a simulated host: what it finds about host, server, projects and instances."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.cli import running
from incus_numa.cpuset import CpuSet
from incus_numa.host import features
from incus_numa.model.instance import InstanceType
from incus_numa.settings import DaemonSettings
from incus_numa.simulator.options import SimulatorOptions, VmEvidence
from incus_numa.simulator.personalities import PERSONALITIES
from tests.commands import Result, is_clean, run_beside, write_config
from tests.contract import simulated
from tests.contract.daemon_rig import keeps_attributes
from tests.contract.simulated import Host
from tests.contract.terminal import PATIENCE_S, terminal

BALANCED = {"limits.cpu.nodes": "balanced"}
OPTED_IN = {"user.limits.cpu.nodes": "balanced"}
SMALL = {"limits.cpu": "2", "limits.memory": "1GiB"}


QUIET = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with simulated.host(QUIET) as one:
        yield one


async def check(host: Host) -> Result:
    result = await run_beside("check", "-f", "json", "--config", write_config(host.simulator))
    assert is_clean(result)
    return result


def told(result: Result) -> list[tuple[str, str, str]]:
    """Severity, code and about of what was found, but what only root is spared."""
    rows = [(one["severity"], one["code"], one["about"]) for one in result.data]
    return [row for row in rows if row[1] != "permission"]


async def test_a_host_on_which_nothing_is_managed_is_fine(host: Host) -> None:
    await host.simulator.start(host.simulator.create("c1", SMALL))
    result = await check(host)
    assert told(result) == [("note", "no-daemon", "daemon")]
    assert os.geteuid() != 0 or result.code == 0


async def test_what_runs_and_waits_for_a_daemon_is_a_warning_until_it_was_placed(host: Host) -> None:
    await host.simulator.start(host.simulator.create("c1", {**SMALL, **BALANCED}))
    before = await check(host)
    assert ("warning", "no-daemon", "daemon") in told(before)
    await run_beside("rebalance", "--config", write_config(host.simulator))
    after = await check(host)
    # Without extended attributes nobody knows what an earlier command decided.
    kept = ("note" if keeps_attributes(host.simulator.cgroup) else "warning", "no-daemon", "daemon")
    assert told(after) == [kept]


async def test_a_daemon_that_runs_is_seen(host: Host) -> None:
    with running.locked(DaemonSettings(run_dir=str(host.simulator.socket_path.parent / "run"))):
        assert told(await check(host)) == []


async def test_instances_are_told_of_whether_they_run_or_not_and_managed_or_not(host: Host) -> None:
    host.simulator.create("wide", {"limits.cpu": "17", **BALANCED})
    host.simulator.create("pinned", {"limits.cpu": "3,99"})
    host.simulator.create("large", {"limits.cpu": "2", "limits.memory": "900GiB"})
    assert told(await check(host)) == [
        ("danger", "would-crash", "wide"),
        ("warning", "pin-missing", "pinned"),
        ("note", "no-daemon", "daemon"),
        ("note", "memory-limit-too-large", "large"),
    ]


async def test_cpus_that_went_offline_and_cpus_in_a_partition_are_missing_and_isolated_for_pins(host: Host) -> None:
    host.simulator.create("c1", {"limits.cpu": "1-3"})
    host.simulator.offline_cpu(1)
    host.simulator.set_isolated(CpuSet([2]))
    assert [row for row in told(await check(host)) if row[2] == "c1"] == [
        ("warning", "pin-isolated", "c1"),
        ("warning", "pin-missing", "c1"),
    ]


async def test_a_refusal_is_told_with_its_cause_only(host: Host) -> None:
    keys = {"big": {"limits.cpu": "2", "limits.memory": "900GiB"}, "typo": {**SMALL, "user.numa.policy": "sideways"}}
    for name, config in keys.items():
        await host.simulator.start(host.simulator.create(name, {**config, **OPTED_IN}))
    about = [row for row in told(await check(host)) if row[2] in keys]
    assert about == [("warning", "memory-limit-too-large", "big"), ("warning", "bad-key", "typo")]


async def test_a_restricted_project_is_told_once_for_all_its_instances(host: Host) -> None:
    host.simulator.set_project("locked", {})
    for name in ("a", "b"):
        key = host.simulator.create(name, {**SMALL, **BALANCED}, project="locked")
        await host.simulator.start(key)
        host.simulator.set_config(key, {"volatile.cpu.nodes": "3"})
    host.simulator.create("c", SMALL, project="locked")
    host.simulator.set_project("locked", {"limits.instances": "9"})
    result = await check(host)
    assert [row for row in told(result) if "locked" in row[2]] == [("warning", "restricted-project", "project locked")]
    (one,) = [one for one in result.data if one["code"] == "restricted-project"]
    assert ("a, b are placed" in one["finding"], "lowlevel=allow" in one["do"]) == (True, True)


async def test_a_stale_record_of_what_runs_is_told_and_that_of_what_is_stopped_is_not(host: Host) -> None:
    keys = [host.simulator.create(name, {**SMALL, **BALANCED}) for name in ("runs", "stopped")]
    await host.simulator.start(keys[0])
    for key in keys:
        host.simulator.set_config(key, {"volatile.cpu.nodes": "9"})
    codes = {(code, about) for _, code, about in told(await check(host)) if code != "no-daemon"}
    for key in keys:
        host.simulator.set_config(key, {"volatile.cpu.nodes": "0"})
    assert codes == {("nodes-missing", "runs")}


async def test_numa_balancing_of_the_kernel_is_told_where_memory_is_bound(host: Host) -> None:
    file = host.simulator.procfs / "sys/kernel/numa_balancing"
    file.parent.mkdir(parents=True)
    file.write_text("1\n")
    key = host.simulator.create("c1", SMALL)
    await host.simulator.start(key)
    assert "numa-balancing" not in [code for _, code, _ in told(await check(host))]
    host.path(key, "cpuset.mems").write_text("1\n")
    host.simulator.settle()
    assert ("note", "numa-balancing", "host") in told(await check(host))


@pytest.mark.parametrize(
    ("evidence", "code"), [(VmEvidence.GUEST_TIME, "vm-floating"), (VmEvidence.NONE, "vm-threads-unknown")]
)
async def test_a_virtual_machine_whose_vcpus_float_or_are_not_known(evidence: VmEvidence, code: str) -> None:
    async with simulated.host(replace(QUIET, vm_evidence=evidence)) as host:
        key = host.simulator.create("vm", {"limits.cpu": "1", **BALANCED}, kind=InstanceType.VIRTUAL_MACHINE)
        await host.simulator.start(key)
        assert [row for row in told(await check(host)) if row[2] == "vm"] == [("warning", code, "vm")]


async def test_an_incus_without_balanced_is_told_how_to_opt_in() -> None:
    async with simulated.host(replace(PERSONALITIES["incus-without-balanced"], balances=False)) as host:
        assert ("note", "no-balanced", "server") in told(await check(host))


def test_our_own_kernel_can_be_asked() -> None:
    found = features.read_features(Path("/sys"), Path("/proc"), Path("/sys/fs/cgroup"))
    assert found.pressure is not None


async def test_explain_of_what_is_stopped_tells_what_check_finds(host: Host) -> None:
    host.simulator.create("fine", {**SMALL, **BALANCED})
    host.simulator.create("loose", SMALL)
    host.simulator.create("wide", {"limits.cpu": "17", "limits.memory": "900GiB", **BALANCED})
    config = write_config(host.simulator)
    fine, loose, wide = [await run_beside("explain", name, "--config", config) for name in ("fine", "loose", "wide")]
    found = [one for one in (await check(host)).data if one["code"] == "would-crash"]
    assert fine.err == "Error: fine does not run: it is placed when it starts\n"
    assert loose.err == "Error: loose does not run: it is not managed, and so not placed when it starts\n"
    (crash,) = [f"{one['finding']}; {one['do']}" for one in found]
    assert wide.err == f"Error: wide does not run, and `incus-numa check` finds danger: {crash} (1 more)\n"
    assert [one.code for one in (fine, loose, wide)] == [1, 1, 1]


async def test_a_host_whose_cpus_are_all_isolated_is_told(host: Host) -> None:
    host.simulator.set_isolated(CpuSet(range(64)))
    await host.simulator.start(host.simulator.create("c1", {**SMALL, **BALANCED}))
    codes = [one["code"] for one in (await check(host)).data]
    assert "no-usable-cpu" in codes


async def test_findings_fold_between_words_on_a_terminal(host: Host) -> None:
    host.simulator.create("wide", {"limits.cpu": "17", **BALANCED})
    config = write_config(host.simulator)
    whole = (await run_beside("check", "--config", config)).out.splitlines()
    with terminal("check", "--config", config) as shown:
        assert await asyncio.to_thread(shown.process.wait, PATIENCE_S) == 4
        await shown.wait_for("[no-daemon]")
    folded = shown.text.replace("\r", "").splitlines()
    assert max(map(len, folded)) <= 80 < max(map(len, whole))
    assert re.sub(r"\n {9}", " ", "\n".join(folded)).splitlines() == whole
