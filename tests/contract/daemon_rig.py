"""A daemon on a simulated host, all in one event loop: for the tests of what it does through its public doors."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tenacity.wait import wait_fixed

from incus_numa.applier.live import LiveApplier
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon.notify import Notifier
from incus_numa.daemon.observe import World
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.daemon.service import Service
from incus_numa.host import legacy_cgroup
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.virtual import VirtualMachines
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.server import events
from incus_numa.server.http_server import HttpServer
from incus_numa.server.protocol import Heard, ServerInfo, ServerInstance
from incus_numa.settings import DaemonSettings, HostSettings, ServerSettings, Settings
from incus_numa.simulator import trees
from incus_numa.simulator.groups import group_name
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.pages import SimulatedPages
from incus_numa.simulator.simulator import Simulator
from tests import builders

QUICK = SimulatorOptions(lock_release_s=(0.0, 0.005), balance_delay_s=(0.0, 0.005), balance_s=0.0)
EVENTS_ONLY = DaemonSettings(resync_s=3600.0, verify_s=(0.1, 0.4))
"""No resync, so that a test of events does not pass by it."""
INOTIFY_ONLY = DaemonSettings(resync_s=3600.0, verify_s=(3600.0,))
BUSY = DaemonSettings(resync_s=0.1, verify_s=(0.1,))
"""Looks at everything again and again."""
BALANCED = "balanced"

_PATIENCE_S = 20.0
_LOOK_S = 0.003

Meddling = Callable[[InstanceKey], Awaitable[None]]


async def _leave_alone(key: InstanceKey) -> None:
    """What happens to an instance between two calls of the daemon when a test has nothing in mind."""


async def _answer() -> None:
    """What happens before the server is asked who it is when a test has nothing in mind."""


class MeddledServer(HttpServer):
    """The real adapter, with room for something to happen between two calls of the daemon."""

    def __init__(self, socket: str, *, heartbeat_s: float) -> None:
        super().__init__(socket)
        self._path = socket
        self._heartbeat_s = heartbeat_s
        self.before_info: Callable[[], Awaitable[None]] = _answer
        self.after_get: Meddling = _leave_alone
        self.before_patch: Meddling = _leave_alone
        self.after_patch: Meddling = _leave_alone

    async def get_info(self) -> ServerInfo:
        await self.before_info()
        return await super().get_info()

    async def get_instance(self, key: InstanceKey) -> ServerInstance:
        found = await super().get_instance(key)
        await self.after_get(key)
        return found

    async def patch_config(self, key: InstanceKey, changes: Mapping[str, str], etag: str | None) -> None:
        await self.before_patch(key)
        await super().patch_config(key, changes, etag)
        await self.after_patch(key)

    def watch_events(self) -> AsyncIterator[Heard]:
        return events.watch_events(self._path, heartbeat_s=self._heartbeat_s, pace=wait_fixed(0.02))


class Log(logging.Handler):
    """Everything that was logged while the rig ran."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, level: int = logging.WARNING) -> list[str]:
        """What our own code said at this level or above."""
        return [
            record.getMessage()
            for record in self.records
            if record.levelno >= level and record.name.startswith("incus_numa")
        ]

    def saying(self, *words: str, level: int = logging.WARNING) -> list[str]:
        """Those of our lines that have all the words."""
        return [line for line in self.lines(level) if all(word in line for word in words)]

    def bugs(self) -> list[str]:
        """Tracebacks, plans that broke a promise, and what asyncio complains about."""
        return [
            f"{record.name}: {record.getMessage()} {record.exc_info or ''}"
            for record in self.records
            if record.exc_info or record.name == "asyncio" or "plan not applied" in record.getMessage()
            if record.levelno >= logging.WARNING and not _is_cut_off(record)
        ]


def _is_cut_off(record: logging.LogRecord) -> bool:
    """Whether the simulated server could not answer somebody whose connection it has just cut."""
    error = record.exc_info[1] if record.exc_info else None
    return record.name == "aiohttp.server" and isinstance(error, ConnectionError)


_COUNT = itertools.count()
"""What changes of the instance that is changed only to see when its event has come."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where the kernel has an instance, and where the server's record says that it is."""

    cpus: CpuSet
    mems: NodeSet
    record: NodeSet


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """One life of the daemon."""

    service: Service
    server: MeddledServer
    running: asyncio.Task[None]

    async def stop(self) -> None:
        """As SIGTERM does; returns when it has ended."""
        self.service.stop()
        async with asyncio.timeout(_PATIENCE_S):
            await self.running


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How a rig's daemon is set up."""

    settings: Settings = field(default_factory=lambda: Settings(daemon=EVENTS_ONLY))
    heartbeat_s: float = 10.0
    environ: Mapping[str, str] | None = None


class Rig:
    """A simulated host, what was logged on it, and the daemon that runs on it."""

    def __init__(self, simulator: Simulator, wish: Wish) -> None:
        self.simulator = simulator
        self.log = Log()
        self.settings = replace(
            wish.settings,
            server=ServerSettings(socket=str(simulator.socket_path)),
            host=HostSettings(sysfs=str(simulator.sysfs), procfs=str(simulator.procfs), cgroup=str(simulator.cgroup)),
        )
        self.journal = simulator.sysfs.parent / "moves.jsonl"
        self.settings = replace(self.settings, rebalance=replace(self.settings.rebalance, journal=str(self.journal)))
        self.load_settings: Callable[[], Settings] = lambda: self.settings
        self._wish = wish
        self._cgroups = self._cgroup_files()
        self._daemon: Daemon | None = None

    @property
    def daemon(self) -> Daemon:
        """The daemon that runs now."""
        assert self._daemon is not None
        return self._daemon

    def start_daemon(self) -> Daemon:
        """A daemon that knows nothing but what is on the host."""
        if keeps_attributes(self.simulator.cgroup):
            self._cgroups = self._cgroup_files()
        server = MeddledServer(self.settings.server.socket, heartbeat_s=self._wish.heartbeat_s)
        settings = self.settings
        vms = VirtualMachines(self.simulator.procfs, self.simulator.sysfs, self.simulator.sysfs.parent / "vms")
        world = World(
            server, self._cgroups, vms, host=settings.host, placement=settings.placement, memory=settings.memory
        )
        applier = LiveApplier(
            server,
            self._cgroups,
            vms,
            write_timeout_s=self.settings.daemon.write_timeout_s,
            pages=SimulatedPages(self.simulator.kernel),
            bytes_per_second=self.settings.rebalance.bytes_per_second,
        )
        service = Service(
            server,
            Reconciler(world, applier),
            self.settings,
            load_settings=lambda: self.load_settings(),
            notifier=Notifier(self._wish.environ or {}),
        )
        running = asyncio.create_task(service.run(), name="daemon")
        self._daemon = Daemon(service=service, server=server, running=running)
        return self._daemon

    async def stop_daemon(self) -> None:
        """End the daemon, if one runs."""
        if self._daemon is not None:
            daemon, self._daemon = self._daemon, None
            await daemon.stop()

    async def listening(self) -> None:
        """Return when the daemon gets events and has looked at everything once."""
        await eventually(lambda: self.simulator.incus.hub.listener_count == 1 and self.calls("GET instances") > 0)

    def managed(self, name: str, cpu: int | str | None = None, project: str = "default", **config: str) -> InstanceKey:
        """A stopped container that the daemon is to place."""
        limits = {} if cpu is None else {"limits.cpu": str(cpu)}
        keys = {name.replace("_", "."): value for name, value in config.items()}
        return self.simulator.create(name, {**limits, "limits.cpu.nodes": BALANCED, **keys}, project)

    async def start(self, *keys: InstanceKey) -> None:
        """Start instances at once; returns when the locks are released."""
        await asyncio.gather(*(self.simulator.start(key) for key in keys))

    async def placed(self, *keys: InstanceKey) -> None:
        """Return when the server's scheduler is at rest and every instance is where a daemon would have it."""
        await eventually(lambda: all(self.is_placed(key) for key in keys))
        await self.simulator.balanced()
        await eventually(lambda: all(self.is_placed(key) for key in keys))

    async def at_rest(self, *keys: InstanceKey) -> None:
        """Return when all those that run have the CPUs that were last decided for them, as their cgroups keep them."""
        await eventually(lambda: all(self._has_what_was_decided(key) for key in keys))

    def _has_what_was_decided(self, key: InstanceKey) -> bool:
        if not self.has_group(key):
            return True
        state = self._cgroups.read(self.path(key, "cpuset.cpus").parent)
        return state.decided is None or state.decided.cpus in (None, state.cpus)

    async def present(self, name: str, cpu: int | str | None = None, **config: str) -> InstanceKey:
        """A container that was started and placed; others, whose CPUs its start shuffled, have theirs again."""
        key = self.managed(name, cpu, **config)
        await self.start(key)
        await self.placed(key)
        await self.at_rest(*self.simulator.kernel.groups)
        return key

    def is_placed(self, key: InstanceKey) -> bool:
        """Whether CPUs, memory and record agree: evenly, on as few nodes as possible, memory with a single node."""
        if not self.has_group(key):
            return False
        seat, machine = self.seat(key), self.simulator.machine
        nodes = machine.nodes_of(seat.cpus)
        if not nodes:
            return False
        counts = [len(seat.cpus & machine.node_by_id[node].cpus) for node in nodes]
        limit = self.simulator.incus.get(key).expanded.get("limits.cpu", "")
        wanted = int(limit) if limit else sum(len(machine.node_by_id[node].cpus) for node in nodes)
        bound = nodes if len(nodes) == 1 else NodeSet()
        return (
            len(seat.cpus) == min(wanted, len(self.simulator.kernel.online))
            and max(counts) - min(counts) <= 1
            and (seat.record, seat.mems) == (nodes, bound)
        )

    def seat(self, key: InstanceKey) -> Seat:
        """What the kernel and the server's record say of a running container."""
        record = self.simulator.incus.get(key).config
        mems = NodeSet.parse(_read(self.path(key, "cpuset.mems")))
        return Seat(
            cpus=CpuSet.parse(_read(self.path(key, "cpuset.cpus"))),
            # Bound to every node is not bound: what unbinding leaves behind.
            mems=NodeSet() if mems == self.simulator.machine.memory_nodes else mems,
            record=NodeSet.parse(record.get("volatile.cpu.nodes", "")),
        )

    def nodes(self, key: InstanceKey) -> NodeSet:
        """The nodes of a container's CPUs."""
        return self.simulator.machine.nodes_of(self.seat(key).cpus)

    def path(self, key: InstanceKey, file: str) -> Path:
        """A file of the payload cgroup."""
        return self.simulator.payloads / group_name(key) / file

    def has_group(self, key: InstanceKey) -> bool:
        """Whether the container has a cgroup."""
        return self.path(key, "cpuset.cpus").exists()

    def writes(self, *keys: InstanceKey) -> list[tuple[InstanceKey, str, str]]:
        """What anyone but the server wrote: cpusets and, through the API, the record of the nodes."""
        self.simulator.settle()
        return [
            (key, mark.what, mark.value)
            for key in keys
            for mark in self.simulator.measurements.marks.get(key, ())
            if mark.what.startswith("cpuset.") or mark.value.startswith("volatile.cpu.nodes=")
        ]

    def touched(self, *keys: InstanceKey) -> dict[InstanceKey, tuple[int, int, int]]:
        """What changes with every write, of an equal value as well: times of both cpuset files, number of PATCHes."""
        return {
            key: (
                self.path(key, "cpuset.cpus").stat().st_mtime_ns,
                self.path(key, "cpuset.mems").stat().st_mtime_ns,
                self.calls("PATCH instance", key),
            )
            for key in keys
        }

    def calls(self, call: str, key: InstanceKey | None = None) -> int:
        """Requests so far, of all or about one instance."""
        measured = self.simulator.measurements
        return (measured.calls if key is None else measured.calls_by_instance.get(key, Counter()))[call]

    async def passes(self, count: int) -> None:
        """Return when so many looks at everything have begun and ended. Needs a short `resync_s`."""
        before = self.calls("GET instances")
        # The listing of the next pass says that the one before has ended.
        await eventually(lambda: self.calls("GET instances") > before + count)

    async def events_taken(self) -> None:
        """Return when the daemon has taken every event sent so far, which it does in order, and done what they ask."""
        key = InstanceKey("default", "sentinel")
        if key not in self.simulator.incus.records:
            self.simulator.create(key.name)
        before = self.calls("GET instance", key)
        self.simulator.set_config(key, {"user.count": str(next(_COUNT))})
        await eventually(lambda: self.calls("GET instance", key) > before)
        await eventually(lambda: not any(task.get_name().startswith("pass ") for task in asyncio.all_tasks()))

    def _cgroup_files(self) -> CgroupFiles:
        return legacy_cgroup.cgroup_files(self.simulator.cgroup, self.simulator.procfs, self.simulator.write)


@asynccontextmanager
async def rig(
    options: SimulatorOptions = QUICK, machine: Machine | None = None, wish: Wish | None = None, *, run: bool = True
) -> AsyncIterator[Rig]:
    """A simulated host with a daemon that listens, unless it is not to `run` yet.

    At the end the daemon is stopped, and neither an impossible state nor a bug may have shown.
    """
    with TemporaryDirectory(dir=trees.scratch_root()) as folder:
        async with Simulator(machine or builders.machine(), Path(folder), options) as simulator:
            one = Rig(simulator, wish or Wish())
            root = logging.getLogger()
            before = logging.getLogger("incus_numa").level
            root.addHandler(one.log)
            logging.getLogger("incus_numa").setLevel(logging.DEBUG)
            try:
                if run:
                    one.start_daemon()
                    await one.listening()
                yield one
                await one.stop_daemon()
                problems, bugs = simulator.problems(), one.log.bugs()
                assert not problems, problems
                assert not bugs, bugs
            finally:
                await one.stop_daemon()
                root.removeHandler(one.log)
                logging.getLogger("incus_numa").setLevel(before)


async def eventually(condition: Callable[[], object]) -> None:
    """Let others work until the condition holds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_S
    while not condition():
        assert loop.time() < deadline, "it never happened"
        await asyncio.sleep(_LOOK_S)


def _read(path: Path) -> str:
    """What a file of a cgroup says. An empty one is just being written: the kernel ends each with a line end."""
    while not (text := path.read_text()):
        time.sleep(_LOOK_S)
    return text


def keeps_attributes(folder: Path) -> bool:
    """Whether what is marked on a cgroup outlives the daemon here: needs root and a file system that can."""
    try:
        os.setxattr(folder, "trusted.incus_numa_test", b"")
        os.removexattr(folder, "trusted.incus_numa_test")
    except OSError:
        return False
    return True
