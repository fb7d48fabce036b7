"""What running instances make of the machine's time: the counters of the fake kernel, which grow while somebody works.

`kernel` says which instances run, the driver how much they want. Nothing is written, and no task runs, while nobody
wants anything. Averages over time stay 0 in the pressure files: only their totals grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.simulator import trees
from incus_numa.simulator.groups import Group
from incus_numa.simulator.sharing import Claim, Shares, share_time, waiting
from incus_numa.simulator.trees import CpuTime
from incus_numa.simulator.virtual import VirtualMachine


@dataclass(kw_only=True, slots=True)
class Worker:
    """A running instance: a container's payload cgroup, or a virtual machine. Seconds since it began."""

    group: Group | None = None
    machine: VirtualMachine | None = None
    used_s: float = 0.0
    some_s: float = 0.0
    full_s: float = 0.0


class Work:
    """Counters of all running instances and of the CPUs, below one `/proc` and one cgroup tree.

    Real time counts every `tick_s` seconds; with None only `advance` makes time pass.
    """

    def __init__(self, machine: Machine, procfs: Path, *, tick_s: float | None) -> None:
        self.online = self.open_cpus = CpuSet(cpu.id for cpu in machine.cpus)
        self.cpu_times = {cpu.id: CpuTime() for cpu in machine.cpus}
        self.workers: dict[InstanceKey, Worker] = {}
        self._machine = machine
        self._procfs = procfs
        self._tick_s = tick_s
        self._wants: dict[InstanceKey, float] = {}
        self._claims: dict[InstanceKey, Claim] = {}
        self._shares = Shares(by_instance={}, by_cpu={})
        self._seen_s = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether no time is counted, because nobody works."""
        return self._task is None

    async def halt(self) -> None:
        """Time stops."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def start(self, key: InstanceKey, worker: Worker) -> None:
        """An instance runs, and goes on wanting what it wanted before."""
        if key in self._wants:
            self._wake()
        self.workers[key] = worker

    def end(self, key: InstanceKey) -> None:
        """An instance's processes are gone, and their counters with them."""
        self.workers.pop(key, None)

    def set_want(self, key: InstanceKey, cpus: float) -> None:
        """From now on an instance, running or not, wants so many CPUs. Raises ValueError for what is no amount."""
        if not 0 <= cpus < float("inf"):
            raise ValueError(f"an instance cannot want {cpus} CPUs")
        if not cpus:
            self._wants.pop(key, None)
            return
        if key in self.workers:
            self._wake()
        self._wants[key] = cpus

    def set_machine(self, machine: Machine) -> None:
        """CPUs were plugged in or taken out."""
        self._machine = machine
        self.cpu_times = {cpu.id: self.cpu_times.get(cpu.id) or CpuTime() for cpu in machine.cpus}

    def set_online(self, online: CpuSet, open_cpus: CpuSet) -> None:
        """CPU hotplug: a CPU that is offline gives no time, and has no line in `/proc/stat`.

        Instances work on `open_cpus` only, those that no cpuset partition has for itself.
        """
        self.online, self.open_cpus = online, open_cpus
        self.write_cpu_times()

    def advance(self, seconds: float) -> None:
        """Let time pass, and write every counter that grew."""
        shares = self._share()
        for cpu in self.online:
            busy = min(1.0, shares.by_cpu.get(cpu, 0.0))
            self.cpu_times[cpu].busy_s += seconds * busy
            self.cpu_times[cpu].idle_s += seconds * (1 - busy)
        for key, got in shares.by_instance.items():
            worker = self.workers[key]
            some, full = waiting(self._claims[key], got)
            worker.used_s += seconds * got
            worker.some_s += seconds * some
            worker.full_s += seconds * full
            self._write(worker, waited=some > 0)
        self.write_cpu_times()

    def write_cpu_times(self) -> None:
        """Write `/proc/stat`."""
        trees.write_stat(self._procfs, self.cpu_times, self.online)

    def _share(self) -> Shares:
        claims = {key: self._claim(self.workers[key], self._wants[key]) for key in self.working()}
        if claims != self._claims:
            self._claims, self._shares = claims, share_time(claims)
        return self._shares

    def working(self) -> list[InstanceKey]:
        """Running instances that want CPU time."""
        return [key for key in self._wants if key in self.workers]

    def _claim(self, worker: Worker, wanted_cpus: float) -> Claim:
        cpus = self.open_cpus
        if worker.group is not None:
            cpus = worker.group.cpus & cpus or cpus
        if worker.machine is not None:
            cpus = worker.machine.read_cpus() & cpus or cpus
            wanted_cpus = min(wanted_cpus, worker.machine.vcpus)
        # The kernel moves no task to an isolated CPU by itself, so such CPUs count for those that have no other.
        return Claim(cpus=cpus - self._machine.isolated or cpus, wanted_cpus=wanted_cpus)

    def _write(self, worker: Worker, *, waited: bool) -> None:
        if worker.machine is not None:
            worker.machine.write_used(worker.used_s)
        if worker.group is not None:
            worker.group.write_counters(worker.used_s, (worker.some_s, worker.full_s) if waited else None)

    def _wake(self) -> None:
        """Begin to count real time, just before somebody works; what passed since the last tick was idle."""
        if self._tick_s is None or self._task is not None:
            return
        self._pass()
        self._task = asyncio.create_task(self._tick(self._tick_s), name="fake kernel's clock")

    async def _tick(self, tick_s: float) -> None:
        while True:
            await asyncio.sleep(tick_s)
            self._pass()
            if not self.working():
                self._task = None
                return

    def _pass(self) -> None:
        now_s = time.monotonic()
        self.advance(now_s - self._seen_s)
        self._seen_s = now_s
