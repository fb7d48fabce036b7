"""What metrics show of a service that has placed, refused and left alone what runs."""

from __future__ import annotations

import re
from dataclasses import replace

from incus_numa.facts.gauges import take_gauges
from incus_numa.model.instance import InstanceKey
from incus_numa.model.load import Load
from incus_numa.settings import (
    DaemonSettings,
    MemorySettings,
    PlacementSettings,
    RebalanceSettings,
    Reservation,
    Settings,
)
from incus_numa.web.metrics import Metrics
from incus_numa.web.protocol import Gauges, InstanceGauges, NodeGauges
from tests import builders
from tests.builders import GIB
from tests.contract.daemon_rig import BUSY, QUICK, Rig, Wish, eventually, rig
from tests.exported import samples

RARELY = DaemonSettings(resync_s=3600.0, verify_s=(0.2,))
QUIET = RebalanceSettings(enabled=False)
SWIFT = RebalanceSettings(interval_s=0.1, time_constant_s=0.1, hold_s=3600.0)


def wish(rebalance: RebalanceSettings = QUIET, **tables: object) -> Wish:
    return Wish(settings=replace(Settings(daemon=RARELY, rebalance=rebalance), **tables))  # type: ignore[arg-type]


def gauges(r: Rig) -> Gauges:
    return take_gauges(r.daemon.service)


async def test_nodes_have_what_is_committed_to_them_and_nothing_that_was_not_measured() -> None:
    machine = builders.machine(nodes=2, cpus_per_node=4, memory_bytes=32 * GIB)
    kept = MemorySettings(
        policy="static", reserved_total=3 * GIB, reserved=(Reservation(0, GIB), Reservation(1, 2 * GIB))
    )
    async with rig(machine=machine, wish=wish(memory=kept, placement=PlacementSettings(reserved_cpus="0"))) as r:
        one = await r.present("one", 2, limits_memory="8GiB")
        wide = await r.present("wide", 6, limits_memory="4GiB")
        await eventually(lambda: len(gauges(r).instances) == 2)
        home = r.nodes(one).lowest()
        found = gauges(r)
        free = {node.id: node.free_bytes for node in r.daemon.service.reconciler.world.machine.nodes}
        usable = {0: 3, 1: 4}
        assert found.nodes == {
            node: NodeGauges(
                cpus=4,
                usable_cpus=usable[node],
                # The wide one has six vCPUs on seven CPUs, and its memory by the equal memory of both nodes.
                committed_vcpus=6 * usable[node] / 7 + 2 * (node == home),
                load=None,
                memory_bytes=32 * GIB,
                free_bytes=free[node],
                committed_bytes=2 * GIB + 8 * GIB * (node == home),
                reserved_bytes=(1 + node) * GIB,
            )
            for node in (0, 1)
        }
        assert [(one.key, one.nodes, one.load_cpus) for one in found.instances] == [(one, 1, None), (wide, 2, None)]
        assert found.imbalance is None
        assert found.connected


async def test_states_and_refusals_of_what_runs() -> None:
    async with rig(wish=wish()) as r:
        await r.present("good", 2)
        bad = r.managed("typo", 2, user_numa_policy="sideways")
        large = r.managed("large", 2, limits_memory="900GiB")
        loose = r.simulator.create("loose", {"limits.cpu": "2"})
        await r.start(bad, large, loose)
        await eventually(lambda: r.daemon.service.reconciler.rejected == {bad, large})
        await r.events_taken()
        found = gauges(r)
        assert found.states == {"placed": 1, "differs": 0, "refused": 2, "unmanaged": 1}
        assert found.refused == {"bad-key": 1, "no-memory": 1}
        assert [one.key.name for one in found.instances] == ["good", "large", "typo"]


async def test_an_instance_that_has_other_cpus_than_decided_differs() -> None:
    async with rig(wish=wish()) as r:
        key = await r.present("c1", 2)
        daemon = r.daemon
        await r.stop_daemon()
        assert take_gauges(daemon.service).states["placed"] == 1
        r.path(key, "cpuset.cpus").write_text("0-15\n")
        daemon.service.reconciler.world.look_at_cgroup(key)
        assert take_gauges(daemon.service).states == {"placed": 0, "differs": 1, "refused": 0, "unmanaged": 0}


async def test_an_instance_that_nothing_was_decided_for_yet_differs() -> None:
    async with rig(wish=wish()) as r:
        daemon = r.daemon
        await r.stop_daemon()
        key = r.managed("late", 2)
        await r.start(key)
        await daemon.service.reconciler.world.look_at(key)
        assert take_gauges(daemon.service).states == {"placed": 0, "differs": 1, "refused": 0, "unmanaged": 0}
        await daemon.server.close()


async def test_an_instance_without_a_record_is_on_the_nodes_of_its_cpus() -> None:
    async with rig(replace(QUICK, balances=False), machine=builders.machine(nodes=4), wish=wish(), run=False) as r:
        key = r.managed("c1", 2)
        await r.start(key)
        r.simulator.set_config(key, {"volatile.cpu.nodes": "", "user.numa.policy": "sideways"})
        r.path(key, "cpuset.cpus").write_text("3-8\n")
        r.start_daemon()
        await eventually(lambda: gauges(r).states["refused"])
        assert [one.nodes for one in gauges(r).instances] == [3]


async def test_an_instance_whose_cpus_cannot_be_read_differs() -> None:
    async with rig(replace(QUICK, balances=False), wish=wish(daemon=BUSY), run=False) as r:
        bad, good = r.managed("bad", 2), r.managed("good", 2)
        await r.start(bad, good)
        for file in ("cpuset.cpus", "cpuset.mems"):
            r.path(bad, file).unlink()
        r.start_daemon()
        await r.placed(good)
        await r.passes(3)
        daemon = r.daemon
        await r.stop_daemon()
        assert daemon.service.reconciler.is_placed(bad)
        assert take_gauges(daemon.service).states == {"placed": 1, "differs": 1, "refused": 0, "unmanaged": 0}
        r.simulator.crash(bad)


async def test_locality_is_the_part_of_memory_on_the_nodes_of_the_instance() -> None:
    async with rig(wish=wish()) as r:
        keys = [await r.present(name, 2) for name in ("empty", "unread", "apart")]
        daemon = r.daemon
        await r.stop_daemon()
        homes = [r.nodes(key).lowest() for key in keys]
        apart = {homes[2]: GIB, (homes[2] + 1) % 4: 3 * GIB}
        daemon.service.reconciler.world.note_load(Load(), {keys[0]: {homes[0]: 0}, keys[1]: {}, keys[2]: apart})
        found = take_gauges(daemon.service).instances
        assert {one.key.name: one.locality for one in found} == {"empty": None, "unread": None, "apart": 0.25}


async def test_what_is_refused_is_no_longer_told_once_it_has_stopped() -> None:
    async with rig(wish=wish()) as r:
        key = r.managed("typo", 2, user_numa_policy="sideways")
        await r.start(key)
        await eventually(lambda: gauges(r).refused == {"bad-key": 1})
        await r.simulator.stop(key)
        await r.events_taken()
        assert (gauges(r).refused, gauges(r).states["refused"]) == ({}, 0)


async def test_measured_load_and_where_memory_is() -> None:
    machine = builders.machine(nodes=2, cpus_per_node=4, memory_bytes=32 * GIB)
    async with rig(machine=machine, wish=wish(SWIFT)) as r:
        key = await r.present("busy", 2, limits_memory="8GiB")
        home = r.nodes(key).lowest()
        r.simulator.set_work(key, 2.0)

        def settled() -> bool:
            (own,) = gauges(r).instances
            return own.load_cpus is not None and round(own.load_cpus, 1) == 2.0

        await eventually(settled)
        found = gauges(r)
        assert {node: round(one.load or 0.0, 1) for node, one in found.nodes.items()} == {home: 0.5, 1 - home: 0.0}
        assert round(found.imbalance or 0.0, 1) == 2.0
        (own,) = found.instances
        free = r.simulator.sysfs / "devices/system/node/node0/meminfo"
        free.write_text(re.sub(r"MemFree: +\d+", "MemFree: 4096", free.read_text()))
        await eventually(lambda: gauges(r).nodes[0].free_bytes == 4096 << 10)
        assert own == InstanceGauges(key=InstanceKey("default", "busy"), nodes=1, load_cpus=own.load_cpus, locality=1.0)


async def test_what_a_service_does_is_counted() -> None:
    async with rig(replace(QUICK, balances=False), wish=wish()) as r:
        metrics = Metrics()
        r.daemon.service.reconciler.notices.watch(metrics.take)
        bad = r.managed("typo", 2, user_numa_policy="sideways")
        await r.start(bad)
        key = await r.present("c1", 2)
        r.path(key, "cpuset.cpus").write_text("0-15\n")
        await eventually(lambda: samples(metrics)["cpuset_corrections_total"])
        r.daemon.service.reload()
        await eventually(lambda: samples(metrics)["passes_total{result=ok,scope=everything}"])
        found = samples(metrics)
        counted = {name: found[name] for name in ("start_placed_seconds_count", "settings_changes_total")}
        assert counted == {"start_placed_seconds_count": 1, "settings_changes_total": 1}
        assert found["rejections_total{reason=bad-key}"] == 1
        assert found["steps_total{kind=write-cpus,result=done}"] >= 1
