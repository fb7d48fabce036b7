"""`incus-numa demo`: the daemon against the built-in simulator, on the machine of incus#1605. No Incus, no root."""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from incus_numa.cli import output, running
from incus_numa.cli.daemon_command import run_with_api
from incus_numa.cli.options import common, formatted, load_settings, start_logging
from incus_numa.cli.wiring import live_applier, make_world
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon.notices import Notices
from incus_numa.daemon.notify import Notifier
from incus_numa.daemon.overrides import Overrides
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.daemon.service import Service
from incus_numa.errors import ReportError
from incus_numa.facts.live import Origin
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.policy.scoring import mean_distance
from incus_numa.server.http_server import HttpServer
from incus_numa.settings import ApiSettings, HostSettings, RebalanceSettings, ServerSettings, Settings, render_settings
from incus_numa.simulator import scenario, trees
from incus_numa.simulator.numa_balancing import NumaBalancing
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.simulator import Simulator
from incus_numa.web.metrics import Metrics

log = logging.getLogger(__name__)

SETTLE_S, LOOK_S = 5.0, 0.05
PROGRAM, LOOPBACK = "incus-numa", "127.0.0.1"
BALANCED_BYTES = 1 << 30
"""What the simulated kernel's NUMA balancing moves in a second for each instance."""

BRISK = RebalanceSettings(interval_s=1.0, time_constant_s=5.0, hold_s=15.0, window_s=2.0)
"""Who looks at a demo does not wait for minutes until load is known and moves something."""

CONFIG, API_SOCKET = "config.toml", "api.sock"
LONGEST_FOLDER = 107 - len("/unix.socket")
"""The kernel takes no longer path for a Unix socket (unix(7))."""


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
@click.option("--keep", is_flag=True, help="Leave it running under load, to look at it by commands and the dashboard.")
@formatted
@common
def command(config_file: Path | None, log_level: str, output_format: str, *, keep: bool) -> None:
    """Show what the server's own rule does on a 24-node host, and what incus-numa does.

    It needs neither Incus nor root. With --config, its [placement] and [daemon] are used.

    Example: incus-numa demo --keep
    """
    start_logging(log_level)
    settings = Settings(rebalance=BRISK) if config_file is None else load_settings(config_file)
    try:
        scratch = tempfile.TemporaryDirectory(prefix="incus-numa-demo-", dir=trees.scratch_root())
    except OSError as error:
        raise ReportError(f"no temporary folder can be made ({error}): set TMPDIR to one that is writable") from error
    with scratch as folder:
        if len(folder) > LONGEST_FOLDER:
            raise ReportError(f"the path {folder} is too long for a socket: set TMPDIR to a shorter one")
        asyncio.run(_demo(Path(folder), settings, output_format, keep=keep))


async def _demo(folder: Path, settings: Settings, output_format: str, *, keep: bool) -> None:
    machine = scenario.machine()
    keys = [InstanceKey("default", name) for name, _, _ in scenario.INSTANCES]
    # With JSON and the like the standard output is for the data alone.
    say = partial(click.echo, err=output_format != "table")
    say(
        f"A simulated host like that of incus#1605: {len(machine.nodes)} nodes of 16 threads,\n{len(keys)} containers "
        f"with {sum(vcpus for _, vcpus, _ in scenario.INSTANCES)} vCPUs on {len(machine.cpus)} CPUs.\n"
    )
    options = SimulatorOptions(lock_release_s=(0.002, 0.01), balance_delay_s=(0.0, 0.02), balance_s=0.005)
    async with Simulator(machine, folder, options) as simulator:
        before = await _by_server(simulator, keys)
        settings = _settings(settings, simulator, folder, has_dashboard=keep)
        with running.locked(settings.daemon):
            metrics, overrides = Metrics(), Overrides(Path(settings.api.policy_file))
            service, reconciler = _service(settings, overrides, metrics)
            origin = Origin(
                file=str(folder / CONFIG),
                load=lambda: settings,
                overrides=overrides,
                find_socket=lambda: settings.server.socket,
            )
            task = asyncio.create_task(run_with_api(service, origin, metrics), name="service")
            for key in keys:
                await simulator.start(key)
            await simulator.balanced()
            await _settled(reconciler, keys)
            _show(output_format, machine, before, _seats(simulator))
            if keep:
                # The service reloads on SIGHUP; here it is the terminal that was closed.
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.stop)
                working = asyncio.create_task(_work(simulator), name="work")
                say(_invitation(folder, settings))
                await task
                working.cancel()
            service.stop()
            await task


async def _work(simulator: Simulator) -> None:
    """Have the instances work, until it is cancelled; memory follows their threads as on a usual kernel."""
    for name, cpus in scenario.WORK.items():
        simulator.set_work(InstanceKey("default", name), cpus)
    await NumaBalancing(simulator.kernel, BALANCED_BYTES).run()


async def _by_server(simulator: Simulator, keys: Sequence[InstanceKey]) -> list[Seat]:
    """Where the server's own rule puts the instances, which are stopped again."""
    for name, vcpus, gib in scenario.INSTANCES:
        limits = {"limits.cpu": str(vcpus), "limits.memory": f"{gib}GiB", "limits.cpu.nodes": "balanced"}
        simulator.create(name, limits)
    for key in keys:
        await simulator.start(key)
    await simulator.balanced()
    seats = _seats(simulator)
    for key in keys:
        await simulator.stop(key)
    return seats


def _settings(settings: Settings, simulator: Simulator, folder: Path, *, has_dashboard: bool) -> Settings:
    """Settings that lead every command to the simulator, also as a file; the dashboard is served on a free port."""
    listen = f"{LOOPBACK}:{_free_port()}" if has_dashboard else ""
    settings = replace(
        settings,
        server=ServerSettings(socket=str(simulator.socket_path)),
        host=HostSettings(sysfs=str(simulator.sysfs), procfs=str(simulator.procfs), cgroup=str(simulator.cgroup)),
        daemon=replace(settings.daemon, run_dir=str(folder)),
        rebalance=replace(settings.rebalance, journal=str(folder / "moves.jsonl")),
        api=ApiSettings(socket=str(folder / API_SOCKET), policy_file=str(folder / "policy.json"), listen=listen),
    )
    (folder / CONFIG).write_text(render_settings(settings))
    return settings


def _service(settings: Settings, overrides: Overrides, metrics: Metrics) -> tuple[Service, Reconciler]:
    notices = Notices()
    notices.watch(metrics.take)
    server = HttpServer(settings.server.socket, settings.server.timeout_s, notices.tell)
    world = make_world(server, settings)
    applier = live_applier(world, settings)
    reconciler = Reconciler(world, applier, notices)
    service = Service(
        server,
        reconciler,
        settings,
        load_settings=lambda: overrides.put_over(settings, world.find_misfits),
        notifier=Notifier({}),
    )
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


def _show(output_format: str, machine: Machine, before: list[Seat], after: list[Seat]) -> None:
    """Both placements, instance by instance and node by node."""
    instances = [
        {
            "name": old.name,
            "vcpus": old.vcpus,
            "server": {"nodes": str(old.nodes), "mean_distance": mean_distance(machine, old.nodes)},
            "incus_numa": {
                "nodes": str(new.nodes),
                "mean_distance": mean_distance(machine, new.nodes),
                "mems": new.mems or None,
            },
        }
        for old, new in zip(before, after, strict=True)
    ]
    old_load, new_load = _loads(machine, before), _loads(machine, after)
    nodes = [{"node": node, "server": old_load[node], "incus_numa": new_load[node]} for node in old_load]
    summary = {"server": _summary(machine, before), "incus_numa": _summary(machine, after)}
    data = {"instances": instances, "nodes": nodes, "summary": summary}
    output.emit(output_format, data, instances, lambda: _tables(instances, nodes, summary, len(after)))


def _tables(instances: list[output.Row], nodes: list[output.Row], summary: dict[str, Any], count: int) -> None:
    output.print_table(
        [
            {
                "instance": row["name"],
                "vcpus": row["vcpus"],
                "server's rule": row["server"]["nodes"],
                "distance ": row["server"]["mean_distance"],
                "incus-numa": row["incus_numa"]["nodes"],
                "distance": row["incus_numa"]["mean_distance"],
                "memory bound": row["incus_numa"]["mems"],
            }
            for row in instances
        ],
        title="Nodes of every instance, and the mean distance between them",
    )
    output.write("")
    output.print_table(
        [
            {"node": row["node"], "server's rule": row["server"], "": _bar(row["server"])}
            | {"incus-numa": row["incus_numa"], " ": _bar(row["incus_numa"])}
            for row in nodes
        ],
        title="Load of every node: committed vCPUs over CPUs",
    )
    output.write("")
    ours = summary["incus_numa"]
    rows = [
        {
            "": name.replace("_", " "),
            "server's rule": _said(value, name, count),
            "incus-numa": _said(ours[name], name, count),
        }
        for name, value in summary["server"].items()
    ]
    output.print_table(rows)


def _summary(machine: Machine, seats: list[Seat]) -> dict[str, Any]:
    loads = _loads(machine, seats).values()
    return {
        "busiest_node": round(max(loads), 4),
        "idle_nodes": sum(load == 0 for load in loads),
        "memory_bound": sum(bool(seat.mems) for seat in seats),
        "record_is_true": sum(NodeSet.parse(seat.recorded) == seat.nodes for seat in seats),
    }


def _said(value: float, name: str, count: int) -> str:
    if name in ("memory_bound", "record_is_true"):
        return f"{value} of {count}"
    return f"{value:.2f}" if name == "busiest_node" else str(value)


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


def _free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.create_server((LOOPBACK, 0)) as one:
        return int(one.getsockname()[1])


def _invitation(folder: Path, settings: Settings) -> str:
    """What to look with: each command as it works from here."""
    words = ("list", "top", "explain db1", "check", "rebalance --dry-run", "policy set placement.smt=pack")
    lines = [f"  {_program()} {one} --config {folder / CONFIG}" for one in words]
    return "\n".join(
        (
            "\nStill running, with instances that work: load is known after some seconds, and moves what is uneven.",
            f"The dashboard is at http://{settings.api.listen}/ . In another terminal:",
            *lines,
            f"  curl --unix-socket {folder / API_SOCKET} http://localhost/v1/status",
            "Ctrl-C ends it.",
        )
    )


def _program() -> str:
    """How this program is called from a shell: by its name where that leads to it, else by its path."""
    own = Path(sys.argv[0])
    if own.name != PROGRAM:
        return f"{shlex.quote(sys.executable)} -m incus_numa"
    found = shutil.which(PROGRAM) if own.exists() else None
    return PROGRAM if found is not None and Path(found).samefile(own) else shlex.quote(str(own.absolute()))
