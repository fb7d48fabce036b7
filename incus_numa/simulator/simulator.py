"""A whole simulated host: trees, fake kernel, server and socket, and the hands that drive it.

Used as an async context manager by tests, the demo and benchmarks; everything it writes is below one folder.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from incus_numa.cpuset import CpuSet
from incus_numa.host.cgroup import Write, write_lines
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.model.machine import Machine
from incus_numa.simulator import checker, control, hotplug, server
from incus_numa.simulator.devices import Devices
from incus_numa.simulator.incus import Incus
from incus_numa.simulator.kernel import Kernel
from incus_numa.simulator.lifecycle import Lifecycle
from incus_numa.simulator.measure import Measurements
from incus_numa.simulator.members import Members
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.virtual import VmThreads

DEFAULTS = SimulatorOptions()


class Simulator:
    """One host with one server on `socket_path`. The driver's methods are not counted as requests.

    What happens to an instance between its starts is in `lifecycle`, what other cluster members do in `members`, its
    hardware in `devices`.
    """

    def __init__(self, machine: Machine, directory: Path, options: SimulatorOptions = DEFAULTS) -> None:
        self.options = options
        self.measurements = Measurements()
        self.kernel = Kernel(
            machine,
            directory,
            watches=options.watches,
            tick_s=options.tick_s,
            on_write=self.measurements.mark,
            hierarchy=options.cgroup,
            born_inside=options.born_inside,
        )
        self.incus = Incus(self.kernel, options, self.measurements)
        self.incus.on_panic = self._panic
        self.devices = Devices(self.incus)
        self.lifecycle = Lifecycle(self.incus)
        self.members = Members(self.incus)
        self.socket_path = directory / "unix.socket"
        self.panicked = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._dying: asyncio.Task[None] | None = None

    @property
    def machine(self) -> Machine:
        """The machine with all that is plugged in now."""
        return self.kernel.machine

    @property
    def sysfs(self) -> Path:
        """What stands for `/sys`."""
        return self.kernel.sysfs

    @property
    def procfs(self) -> Path:
        """What stands for `/proc`."""
        return self.kernel.procfs

    @property
    def cgroup(self) -> Path:
        """What stands for `/sys/fs/cgroup`."""
        return self.kernel.cgroup

    @property
    def payloads(self) -> Path:
        """The folder with the payload cgroups: the one above, or the hierarchy of cpusets below it."""
        return self.kernel.payloads

    async def __aenter__(self) -> Self:
        self.kernel.boot()
        await self.start_server()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._dying is not None:
            self._dying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dying
        await self.stop_server()
        await self.kernel.halt()

    async def start_server(self) -> None:
        """The server's process comes up: it listens, and rewrites all cpusets once."""
        app = server.create_app(self.incus)
        control.add_routes(app, self)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket_path)).start()
        self.incus.balancer.start()
        self.incus.balancer.trigger()

    async def stop_server(self) -> None:
        """The server's process ends: connections are cut, its socket goes away, the instances run on."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        self.incus.end_process()
        await self.incus.balancer.halt()
        self.socket_path.unlink(missing_ok=True)
        for connection in runner.server.connections if runner.server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def restart_server(self) -> None:
        """The server's process ends and comes back."""
        await self.stop_server()
        await self.start_server()

    def create(
        self,
        name: str,
        config: Mapping[str, str] | None = None,
        project: str = "default",
        kind: InstanceType = InstanceType.CONTAINER,
        profiles: tuple[str, ...] = ("default",),
    ) -> InstanceKey:
        """A new, stopped instance."""
        key = InstanceKey(project, name)
        self.incus.create(key, kind, config or {}, profiles)
        return key

    async def start(self, key: InstanceKey) -> None:
        """Start an instance; returns when the start lock is released."""
        await self.incus.start(key)

    async def stop(self, key: InstanceKey) -> None:
        """Stop an instance; returns when the lock is released."""
        await self.incus.stop(key)

    async def restart(self, key: InstanceKey) -> None:
        """Restart an instance as through the API."""
        await self.incus.restart(key)

    def crash(self, key: InstanceKey) -> None:
        """The instance's init is killed."""
        self.incus.crash(key)

    def set_config(self, key: InstanceKey, changes: Mapping[str, str]) -> None:
        """Change an instance's keys as an administrator does, with the server's refusals."""
        self.incus.patch(key, changes, None)

    def set_work(self, key: InstanceKey, cpus: float) -> None:
        """The instance's tasks want so many CPUs from now on; 0, the default, is idle. Raises ApiError.

        What it gets depends on its CPUs and on who else works there; a VM uses no more than its vCPUs. Files show it
        from the next tick on.
        """
        self.incus.set_work(key, cpus)

    def advance(self, seconds: float) -> None:
        """Let time pass for those who work, without waiting. Real time counts too, unless `tick_s` is None."""
        self.kernel.work.advance(seconds)

    def delete(self, key: InstanceKey) -> None:
        """Delete a stopped instance."""
        self.incus.delete(key)

    def set_profile(self, name: str, config: Mapping[str, str]) -> None:
        """Create or edit a profile."""
        self.incus.set_profile(name, config)

    def set_project(self, name: str, config: Mapping[str, str]) -> None:
        """Create or edit a project, which every listener is told."""
        action = "project-updated" if name in self.incus.projects else "project-created"
        self.incus.projects[name] = dict(config)
        self.incus.hub.send_about_project(action, name)

    def drop_listeners(self) -> None:
        """Cut every event connection."""
        self.incus.hub.drop_all()

    def mute_listeners(self) -> None:
        """Half-close every event connection: it stays open and nothing comes any more."""
        self.incus.hub.mute_all()

    def trigger_balance(self) -> None:
        """Make the server's CPU scheduler run."""
        self.incus.balancer.trigger()

    def offline_cpu(self, cpu: int) -> None:
        """Take a CPU away: the kernel's sets follow, the server balances, no event is sent."""
        self._set_online(self.kernel.online - CpuSet([cpu]))

    def online_cpu(self, cpu: int) -> None:
        """Bring a CPU back."""
        self._set_online(self.kernel.online | CpuSet([cpu]))

    def smt_off(self) -> None:
        """Take the second threads of all cores away, as `/sys/devices/system/cpu/smt/control` does."""
        self._set_online(self.kernel.online - hotplug.second_threads(self.machine))

    def set_isolated(self, cpus: CpuSet) -> None:
        """Have these CPUs in an isolated cpuset partition from now on, and no others. No event is sent."""
        self.kernel.set_partition(cpus)
        self.incus.balancer.forget()

    def add_memory_node(self, size_bytes: int) -> None:
        """Plug in a node that has memory and no CPUs. No event is sent."""
        self.kernel.set_machine(hotplug.with_memory_node(self.machine, size_bytes))

    def resize_node(self, node: int, size_bytes: int) -> None:
        """Plug memory into a node, or take some away. No event is sent."""
        self.kernel.set_machine(hotplug.with_memory(self.machine, node, size_bytes))

    def remove_node(self, node: int) -> None:
        """Take a node away, with its CPUs and its memory. The server balances, no event is sent."""
        self.kernel.set_machine(hotplug.without_node(self.machine, node))
        self._set_online(self.kernel.online)

    async def balanced(self) -> None:
        """Return when the server's CPU scheduler has nothing left to do."""
        await self.incus.balancer.wait_idle()

    def settle(self) -> None:
        """Let the fake kernel take over everything that was written, without waiting for inotify."""
        self.kernel.settle()

    @property
    def write(self) -> Write:
        """How a program in this process writes to cgroups: the fake kernel misses no line where each of them counts.

        Elsewhere only the last one does, and whoever reads the file meanwhile sees no other.
        """
        return self.kernel.write if self.options.born_inside else lambda path, lines: write_lines(path, lines[-1:])

    def vm_threads(self, key: InstanceKey) -> VmThreads:
        """The threads of a running virtual machine, those of vCPUs told from others, and where each may run."""
        return self.kernel.machines[key].threads()

    def problems(self) -> tuple[str, ...]:
        """What a real host could not look like, one sentence each."""
        self.settle()
        here = [record for record in self.incus.records.values() if self.incus.is_here(record)]
        return checker.check_world(checker.read_world(self.kernel, here))

    def _set_online(self, online: CpuSet) -> None:
        self.kernel.set_online(online)
        self.incus.balancer.forget()
        self.incus.balancer.trigger()

    def _panic(self) -> None:
        self.panicked.set()
        self._dying = asyncio.create_task(self._die(), name="server panic")

    async def _die(self) -> None:
        await self.stop_server()
        if self.options.restart_after_panic_s is not None:
            await asyncio.sleep(self.options.restart_after_panic_s)
            await self.start_server()
