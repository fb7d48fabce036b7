"""The simulated server's behaviour: instances, their locks, events and configuration, bad habits included.

Called by `server` for requests and by `simulator` for the driver's methods. The CPU scheduler is in `balancer`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random

from incus_numa import quantities
from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator import choices, refusals, virtual
from incus_numa.simulator.balancer import Balancer
from incus_numa.simulator.cards import Card
from incus_numa.simulator.choices import ServerPanicError
from incus_numa.simulator.events import EventHub
from incus_numa.simulator.groups import PAGE
from incus_numa.simulator.kernel import Kernel
from incus_numa.simulator.measure import Measurements
from incus_numa.simulator.options import SimulatorOptions, Span
from incus_numa.simulator.records import Record
from incus_numa.simulator.refusals import ApiError
from incus_numa.simulator.virtual import VirtualMachine

NOT_FOUND = "Instance not found"
FIRST_PID = 10_000


class Incus:
    """All instances of one server, and what can be done to them. Errors are ApiError, or ServerPanicError."""

    def __init__(self, kernel: Kernel, options: SimulatorOptions, measurements: Measurements) -> None:
        self.kernel = kernel
        self.options = options
        self.measurements = measurements
        self.random = Random(options.seed)  # noqa: S311  A seeded simulation, nothing secret.
        self.location = options.member or "none"
        self.projects: dict[str, dict[str, str]] = {"default": {}}
        self.projects |= {name: dict(config) for name, config in options.projects.items()}
        self.profiles: dict[str, dict[str, str]] = {"default": {}}
        self.profiles |= {name: dict(config) for name, config in options.profiles.items()}
        self.records: dict[InstanceKey, Record] = {}
        self.cards: list[Card] = []
        self.hub = EventHub(options, self.random, location=self.location)
        self.balancer = Balancer(kernel, self.records, options, measurements, self.random)
        self.on_panic: Callable[[], None] = lambda: None
        self._nodes_named: dict[InstanceKey, NodeSet] = {}
        self._instances_by_node: Counter[int] = Counter()
        self._next_pid = FIRST_PID
        self._process = 0

    def get(self, key: InstanceKey) -> Record:
        """The instance. Raises ApiError 404."""
        record = self.records.get(key)
        if record is None:
            raise ApiError(404, NOT_FOUND)
        return record

    def create(
        self,
        key: InstanceKey,
        kind: InstanceType,
        config: Mapping[str, str],
        profiles: tuple[str, ...],
        *,
        location: str | None = None,
    ) -> Record:
        """A new, stopped instance, here unless another member is named. What the server wrote before may be in it."""
        if key.project not in self.projects:
            raise ApiError(404, "Project not found")
        if key in self.records:
            raise ApiError(409, f'Instance "{key.name}" already exists')
        refusals.check_project(self.projects[key.project], key, kind, config, {})
        self._check(config)
        record = Record(
            key=key, type=kind, config=dict(config), profiles=profiles, profile_config=self._merged(profiles),
            location=location or self.location,
        )  # fmt: skip
        self.adopt(record)
        self.send("instance-created", key)
        return record

    def adopt(self, record: Record) -> None:
        """Know an instance from now on."""
        self.records[record.key] = record
        self.update(record)

    def forget(self, key: InstanceKey) -> None:
        """Know an instance no more."""
        del self.records[key]
        self._name_nodes(key, NodeSet())
        self.balancer.forget(key)
        self.kernel.work.set_want(key, 0)

    def delete(self, key: InstanceKey) -> None:
        """Forget a stopped instance."""
        record = self.free(key, "delete")
        if record.pid:
            raise ApiError(400, "Instance is running")
        self.send("instance-deleted", key)
        self.forget(key)

    async def start(self, key: InstanceKey) -> None:
        """Start: choose nodes anew, boot, tell everybody, and only then release the lock."""
        record = self.free(key, "start")
        if record.pid:
            raise ApiError(400, "The instance is already running")
        self.lock(record, "start")
        await self.boot(record, "instance-started")

    async def restart(self, key: InstanceKey) -> None:
        """Stop and start under one lock. Only `instance-restarted` is sent."""
        record = self.free(key, "restart")
        if not record.pid:
            raise ApiError(400, "The instance is not running")
        self.lock(record, "restart")
        self.end(record)
        await self.boot(record, "instance-restarted")

    async def stop(self, key: InstanceKey) -> None:
        """Stop: the cgroup goes away, the chosen nodes stay in the configuration and keep being counted."""
        record = self.free(key, "stop")
        if not record.pid:
            raise ApiError(400, "The instance is already stopped")
        self.lock(record, "stop")
        self.end(record)
        self.send("instance-stopped", key)
        await self.wait(self.options.lock_release_s)
        self.release(record)

    def crash(self, key: InstanceKey) -> None:
        """The instance's init dies by itself."""
        record = self.get(key)
        if not record.pid:
            raise ApiError(400, "The instance is not running")
        self.end(record)
        self.send("instance-shutdown", key)

    def patch(self, key: InstanceKey, changes: Mapping[str, str], if_match: str | None) -> None:
        """Change keys of one instance; an empty value removes the key. The checks come in the server's order."""
        record = self.get(key)
        if if_match is not None and if_match.strip('"') != record.etag():
            raise ApiError(412, f"ETag doesn't match: {record.etag()} vs {if_match.strip(chr(34))}")
        refusals.check_project(self.projects[key.project], key, record.type, changes, record.config)
        if record.lock is not None:
            raise ApiError(
                500,
                f'Failed to create instance update operation: Instance is busy running a "{record.lock}" operation',
            )
        self._check(changes)
        before = record.expanded
        config = {name: value for name, value in {**record.config, **changes}.items() if value}
        if record.type is InstanceType.VIRTUAL_MACHINE and record.pid:
            virtual.check_live(before, {**record.profile_config, **config}, self.kernel.machine)
            config["volatile.vm.needs_reset"] = "true"
        record.config = config
        self.update(record)
        self.measurements.mark(key, "patch", ",".join(f"{name}={value}" for name, value in changes.items()))
        self.send("instance-updated", key)
        self._balance_if_limits_changed(record, before)

    def set_work(self, key: InstanceKey, cpus: float) -> None:
        """An instance wants so many CPUs from now on, and after every start, until it is deleted."""
        self.get(key)
        try:
            self.kernel.work.set_want(key, cpus)
        except ValueError as exc:
            raise ApiError(400, str(exc)) from exc

    def expand(self, record: Record) -> None:
        """The instance's own keys or profiles changed."""
        record.profile_config = self._merged(record.profiles)
        self.update(record)

    def set_profile(self, name: str, config: Mapping[str, str]) -> None:
        """Edit a profile: one `instance-updated` for every instance that uses it."""
        self.profiles[name] = dict(config)
        for record in tuple(self.records.values()):
            if name in record.profiles:
                before = record.expanded
                self.expand(record)
                self.send("instance-updated", record.key)
                self._balance_if_limits_changed(record, before)

    def end_process(self) -> None:
        """The process ended: its operations do not go on and hold no locks. The instances run on."""
        self._process += 1
        for record in self.records.values():
            self.release(record)

    def free(self, key: InstanceKey, action: str) -> Record:
        """The instance, if no operation holds it. Raises ApiError."""
        record = self.get(key)
        if record.lock is not None:
            raise ApiError(
                500,
                f'Failed to create instance {action} operation: Instance is busy running a "{record.lock}" operation',
            )
        return record

    def is_here(self, record: Record) -> bool:
        """Whether the instance is on this member, which alone has its processes."""
        return record.location == self.location

    def arrive(self, record: Record) -> None:
        """Choose nodes and run, without a word: all that is heard of what was live-migrated to here.

        Raises ServerPanicError and ValueError.
        """
        if self.is_here(record):
            self._choose_nodes(record)
            self._run(record)
            return
        record.pid = self._next_pid
        self._next_pid += 1
        self.update(record)

    async def boot(self, record: Record, action: str) -> None:
        """What a locked instance's start is made of, sent as `action`."""
        try:
            self.arrive(record)
        except ServerPanicError:
            self.update(record)
            self.release(record)
            self.on_panic()
            raise
        except ValueError as exc:
            self.update(record)
            self.release(record)
            raise ApiError(500, f"Failed to start instance: {exc}") from exc
        await self.wait(self.options.start_s)
        if self.is_here(record):
            self.balancer.trigger()
        self.send(action, record.key)
        await self.wait(self.options.lock_release_s)
        self.release(record)
        if self.options.late_volatile_s is not None:
            delay_s = self.random.uniform(*self.options.late_volatile_s)
            asyncio.get_running_loop().call_later(delay_s, self._write_late, record)

    def _choose_nodes(self, record: Record) -> None:
        if record.expanded.get("limits.cpu.nodes") != "balanced":
            return
        self._name_nodes(record.key, NodeSet())
        limit = record.expanded.get("limits.cpu", "")
        if record.type is InstanceType.VIRTUAL_MACHINE and limit:
            limit = str(virtual.count_vcpus(limit))
        nodes = choices.choose_nodes(
            self.kernel.machine, limit, self._instances_by_node, options=self.options, random=self.random
        )
        record.config["volatile.cpu.nodes"] = str(nodes)

    def _run(self, record: Record) -> None:
        """The instance's processes come to be."""
        record.memory_bytes = self._memory(record)
        if record.type is InstanceType.CONTAINER:
            self.kernel.create(record.key, self._next_pid, self._lay_pages(record.memory_bytes))
            threads = 1
        else:
            threads = self._run_vm(record)
        record.pid = self._next_pid
        self._next_pid += threads
        record.config["volatile.last_state.power"] = "RUNNING"
        self.update(record)

    def _run_vm(self, record: Record) -> int:
        """QEMU comes to be: how many threads it has."""
        host = self.kernel.machine
        shape = virtual.choose_shape(record.expanded, host)
        pages = self._lay_pages(record.memory_bytes, shape.bound)
        machine = VirtualMachine(
            self.kernel.procfs, self._next_pid, shape, machine=host, pages=pages, evidence=self.options.vm_evidence
        )
        self.kernel.create_vm(record.key, machine)
        return machine.last_id - self._next_pid + 1

    def _follow_vm(self, record: Record) -> None:
        """CPU hotplug of a running virtual machine, when its configuration says another number now."""
        machine = self.kernel.machines.get(record.key)
        limit = record.expanded.get("limits.cpu", "") or "1"
        room = len(self.kernel.machine.cpus)
        if machine is not None and limit.isdecimal() and machine.vcpus != int(limit) <= room:
            shape = virtual.choose_shape(record.expanded, self.kernel.machine)
            machine.set_vcpus(shape.vcpus, self._next_pid, shape.masks[0] if shape.masks else None)
            self._next_pid = max(self._next_pid, machine.last_id + 1)

    def end(self, record: Record) -> None:
        """The instance's processes are gone."""
        self.kernel.remove(record.key, record.pid)
        record.pid, record.frozen = 0, False
        record.config["volatile.last_state.power"] = "STOPPED"
        self.update(record)
        if record.type is InstanceType.CONTAINER and self.is_here(record):
            self.balancer.trigger()

    def _write_late(self, record: Record) -> None:
        if self.records.get(record.key) is record and record.pid:
            record.config["volatile.last_state.ready"] = "false"
            self.update(record)
            self.measurements.mark(record.key, "late-volatile")

    def _balance_if_limits_changed(self, record: Record, before: Mapping[str, str]) -> None:
        after = record.expanded
        if before.get("limits.cpu") != after.get("limits.cpu"):
            self._follow_vm(record)
        live = record.pid and record.type is InstanceType.CONTAINER and self.is_here(record)
        if live and any(before.get(name) != after.get(name) for name in ("limits.cpu", "limits.cpu.nodes")):
            self.balancer.trigger()

    def update(self, record: Record) -> None:
        """Everything that depends on the record's configuration is stale."""
        record.changed()
        self.balancer.forget(record.key)
        if not self.is_here(record):
            self._name_nodes(record.key, NodeSet())
            return
        wanted = record.expanded.get("limits.cpu.nodes", "")
        text = record.config.get("volatile.cpu.nodes", "") if wanted == "balanced" else wanted
        try:
            self._name_nodes(record.key, NodeSet.parse(text))
        except ValueError:
            # The server's validation lets through what its parser does not understand, such as `3-1`.
            self._name_nodes(record.key, NodeSet())

    def _name_nodes(self, key: InstanceKey, nodes: NodeSet) -> None:
        """Count an instance, running or not, on the nodes it names, and no longer on those it named before."""
        self._instances_by_node.subtract(self._nodes_named.pop(key, ()))
        if nodes:
            self._nodes_named[key] = nodes
            self._instances_by_node.update(nodes)

    def _check(self, config: Mapping[str, str]) -> None:
        refusals.check_config(self.options, config)

    def _merged(self, profiles: tuple[str, ...]) -> dict[str, str]:
        merged: dict[str, str] = {}
        for profile in profiles:
            if profile not in self.profiles:
                raise ApiError(404, f'Profile "{profile}" not found')
            merged |= self.profiles[profile]
        return merged

    def _memory(self, record: Record) -> int:
        limit = record.expanded.get("limits.memory", "")
        if not limit:
            return self.options.default_memory_bytes
        if limit.endswith("%"):
            return int(quantities.parse_percent(limit) * self.kernel.machine.memory_bytes) // 4
        return quantities.parse_bytes(limit) // 4

    def _lay_pages(self, size: int, bound: NodeSet | None = None) -> dict[int, int]:
        """Bytes per node, anywhere or where they are bound: most on one random node, the rest on another."""
        pages = dict.fromkeys(self.kernel.machine.memory_nodes, 0)
        if not pages:
            return pages
        home, other = (self.random.choice(tuple(bound or pages)) for _ in range(2))
        stray = size // 4 // PAGE * PAGE
        pages[home] += size - stray
        pages[other] += stray
        return pages

    def lock(self, record: Record, action: str) -> None:
        """Hold the instance for an operation."""
        record.lock = action
        record.changed()
        self.measurements.mark(record.key, "locked", action)

    def release(self, record: Record) -> None:
        """The operation ended; nothing happens if none held the instance."""
        if record.lock is not None:
            self.measurements.mark(record.key, "released", record.lock)
            record.lock = None
            record.changed()

    def send(self, action: str, key: InstanceKey, *, old_name: str | None = None) -> None:
        """Send an event, as from the member that has the instance."""
        self.measurements.mark(key, action)
        record = self.records.get(key)
        self.hub.send(action, key, location=None if record is None else record.location, old_name=old_name)

    async def wait(self, span: Span) -> None:
        """Let time pass. Raises ApiError if the server's process ended meanwhile, and with it the operation."""
        process = self._process
        await asyncio.sleep(self.random.uniform(*span))
        if process != self._process:
            raise ApiError(500, "The server's process ended")
