"""`incus-numa demo`: the daemon against the built-in simulator, on the machine of incus#1605. No Incus, no root."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import toml

from incus_numa.applier.live import LiveApplier
from incus_numa.cli import output
from incus_numa.cli.options import common, start_logging
from incus_numa.cli.wiring import cgroup_files
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon.notify import Notifier
from incus_numa.daemon.observe import World
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.daemon.service import Service
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.policy.scoring import mean_distance
from incus_numa.server.http_server import HttpServer
from incus_numa.settings import HostSettings, ServerSettings, Settings, settings_as_dict
from incus_numa.simulator import scenario, trees
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.simulator import Simulator

log = logging.getLogger(__name__)

SETTLE_S, LOOK_S = 5.0, 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """Where the kernel has one instance."""

    name: str
    vcpus: int
    nodes: NodeSet
    cpus: CpuSet
    mems: str
    recorded: str


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running, to look at it with list, explain, check and rebalance.")
@common
def command(config_file: Path | None, log_level: str, *, keep: bool) -> None:
    """Show what the server's own rule does on a 24-node host, and what incus-numa does.

    Example: incus-numa demo --keep
    """
    start_logging("warning" if log_level == "info" else log_level)
    with tempfile.TemporaryDirectory(prefix="incus-numa-demo-", dir=trees.scratch_root()) as folder:
        try:
            asyncio.run(_demo(Path(folder), keep=keep))
        except KeyboardInterrupt:
            click.echo("stopped", err=True)


async def _demo(folder: Path, *, keep: bool) -> None:
    machine = scenario.machine()
    keys = [InstanceKey("default", name) for name, _, _ in scenario.INSTANCES]
    click.echo(
        f"A simulated host like that of incus#1605: {len(machine.nodes)} nodes of 16 threads, {len(keys)} containers "
        f"with {sum(vcpus for _, vcpus, _ in scenario.INSTANCES)} vCPUs on {len(machine.cpus)} CPUs.\n"
    )
    options = SimulatorOptions(lock_release_s=(0.002, 0.01), balance_delay_s=(0.0, 0.02), balance_s=0.005)
    async with Simulator(machine, folder, options) as simulator:
        for name, vcpus, gib in scenario.INSTANCES:
            limits = {"limits.cpu": str(vcpus), "limits.memory": f"{gib}GiB", "limits.cpu.nodes": "balanced"}
            simulator.create(name, limits)
        for key in keys:
            await simulator.start(key)
        await simulator.balanced()
        before = _seats(simulator)
        for key in keys:
            await simulator.stop(key)
        settings = _settings(simulator, folder)
        service, reconciler = _service(settings)
        running = asyncio.create_task(service.run(), name="service")
        for key in keys:
            await simulator.start(key)
        await simulator.balanced()
        await _settled(reconciler, keys)
        after = _seats(simulator)
        _compare(machine, before, after)
        if keep:
            _invite(folder)
            await running
        service.stop()
        await running


def _settings(simulator: Simulator, folder: Path) -> Settings:
    """Settings that lead every command to the simulator, also as a file."""
    settings = Settings(
        server=ServerSettings(socket=str(simulator.socket_path)),
        host=HostSettings(sysfs=str(simulator.sysfs), procfs=str(simulator.procfs), cgroup=str(simulator.cgroup)),
    )
    tables = settings_as_dict(settings)
    (folder / "config.toml").write_text(toml.dumps({name: tables[name] for name in ("server", "host")}))
    return settings


def _service(settings: Settings) -> tuple[Service, Reconciler]:
    server = HttpServer(settings.server.socket, settings.server.timeout_s)
    cgroups = cgroup_files(settings)
    world = World(server, cgroups, settings.host, settings.placement)
    reconciler = Reconciler(world, LiveApplier(server, cgroups, write_timeout_s=settings.daemon.write_timeout_s))
    service = Service(server, reconciler, settings, load_settings=lambda: settings, notifier=Notifier({}))
    return service, reconciler


async def _settled(reconciler: Reconciler, keys: Sequence[InstanceKey]) -> None:
    """Wait until every instance is where it should be; after SETTLE_S what is there is shown all the same."""
    for _ in range(round(SETTLE_S / LOOK_S)):
        if all(reconciler.is_placed(key) and not reconciler.has_drifted(key) for key in keys):
            return
        await asyncio.sleep(LOOK_S)
    log.warning("not every instance was placed in %g s", SETTLE_S)


def _seats(simulator: Simulator) -> list[Seat]:
    """What the kernel and the server's record say about every instance."""
    seats = []
    for name, vcpus, _ in scenario.INSTANCES:
        key = InstanceKey("default", name)
        group = simulator.cgroup / f"lxc.payload.{name}"
        cpus = CpuSet.parse((group / "cpuset.cpus").read_text())
        mems = (group / "cpuset.mems").read_text().strip()
        recorded = simulator.incus.records[key].config.get("volatile.cpu.nodes", "")
        nodes = simulator.machine.nodes_of(cpus)
        seats.append(Seat(name=name, vcpus=vcpus, nodes=nodes, cpus=cpus, mems=mems, recorded=recorded))
    return seats


def _compare(machine: Machine, before: list[Seat], after: list[Seat]) -> None:
    output.print_table(
        [
            {
                "instance": old.name,
                "vcpus": old.vcpus,
                "server's rule": str(old.nodes),
                "distance ": mean_distance(machine, old.nodes),
                "incus-numa": str(new.nodes),
                "distance": mean_distance(machine, new.nodes),
                "memory bound": new.mems or None,
            }
            for old, new in zip(before, after, strict=True)
        ],
        title="Nodes of every instance, and the mean distance between them",
    )
    old_load, new_load = _loads(machine, before), _loads(machine, after)
    output.print_table(
        [
            {
                "node": node,
                "server's rule": old_load[node],
                "": _bar(old_load[node]),
                "incus-numa": new_load[node],
                " ": _bar(new_load[node]),
            }
            for node in old_load
        ],
        title="Load of every node: committed vCPUs over CPUs",
    )
    click.echo(f"busiest node     server's rule {max(old_load.values()):.2f}, incus-numa {max(new_load.values()):.2f}")
    click.echo(f"idle nodes       server's rule {_idle(old_load)}, incus-numa {_idle(new_load)}")
    click.echo(f"memory bound     server's rule {_bound(before)}, incus-numa {_bound(after)} of {len(after)} instances")
    click.echo(f"record is true   server's rule {_true(before)}, incus-numa {_true(after)} of {len(after)} instances")


def _loads(machine: Machine, seats: list[Seat]) -> dict[int, float]:
    """vCPUs over CPUs of each node, an instance's vCPUs spread evenly over the CPUs it has."""
    loads = {node.id: 0.0 for node in machine.nodes}
    for seat in seats:
        for node in machine.nodes:
            share = len(seat.cpus & node.cpus) / len(seat.cpus)
            loads[node.id] += seat.vcpus * share / len(node.cpus)
    return loads


def _bar(load: float) -> str:
    return "█" * round(load * 8)


def _idle(loads: dict[int, float]) -> int:
    return sum(load == 0 for load in loads.values())


def _bound(seats: list[Seat]) -> int:
    return sum(bool(seat.mems) for seat in seats)


def _true(seats: list[Seat]) -> int:
    return sum(NodeSet.parse(seat.recorded) == seat.nodes for seat in seats)


def _invite(folder: Path) -> None:
    config = folder / "config.toml"
    click.echo("\nStill running. In another terminal:")
    for words in ("list", "explain db1", "check", "rebalance --dry-run"):
        click.echo(f"  incus-numa {words} --config {config}")
    click.echo("Ctrl-C ends it.")
