"""A random walk through everything that happens to instances: it always ends with all of them where they belong.

Each step is what an administrator, the cluster or fate does, and most come before the daemon is done with the one
before. What the server refuses does not happen. No resync helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.members import OTHER
from incus_numa.simulator.records import Record
from incus_numa.simulator.refusals import ApiError
from tests.contract.daemon_rig import BALANCED, QUICK, Rig, eventually, rig

HERE = "here"
HOST = replace(
    QUICK,
    member=HERE,
    panics=False,
    projects={"web": {}, "closed": {"restricted": "true"}},
    profiles={"numa": {"limits.cpu.nodes": BALANCED}, "plain": {}},
    lock_release_s=(0.0, 0.01),
    event_jitter_s=0.005,
)
PROJECTS = ("default", "web", "closed")
COUNTS = ("1", "2", "3", "4", "6", "16", "40", "")
PINS = ("4-5", "3-4", "0-15", "9-9")
NONSENSE: Mapping[str, str] = {"user.numa.policy": "perhaps"}
PAUSES_S = (0.0, 0.0, 0.003, 0.03, 0.15)


class Step(NamedTuple):
    """What happens, to which instance (the number counts round), in which of its variants, and for how long to wait."""

    what: str
    which: int
    how: int
    pause_s: float


@dataclass
class Walk:
    """A host, and what was made on it so far."""

    r: Rig
    made: int = 0

    async def take(self, step: Step) -> None:
        """Let one thing happen; what the server refuses does not."""
        records = [*self.r.simulator.incus.records.values()]
        with contextlib.suppress(ApiError):
            if step.what in OF_THE_HOST:
                await OF_THE_HOST[step.what](self, step.how)
            elif records:
                await OF_ONE[step.what](self, records[step.which % len(records)], step.how)
        await asyncio.sleep(step.pause_s)

    def new_name(self) -> str:
        self.made += 1
        return f"c{self.made}"


async def create(walk: Walk, how: int) -> None:
    managed = how % 4 != 3
    config = {"limits.cpu": COUNTS[how % len(COUNTS)]} | ({"limits.cpu.nodes": BALANCED} if managed else {})
    config = {key: value for key, value in config.items() if value}
    # The names of those that are never managed say so, for `touched_strangers`.
    name = walk.new_name() if managed else f"stranger{walk.new_name()}"
    profiles = ("default", "numa" if managed and how % 3 == 0 else "plain")
    kind = InstanceType.VIRTUAL_MACHINE if how % 5 == 4 else InstanceType.CONTAINER
    key = walk.r.simulator.create(name, config, PROJECTS[how % 3], kind, profiles)
    await walk.r.simulator.start(key)


async def start(walk: Walk, record: Record, how: int) -> None:
    lifecycle = walk.r.simulator.lifecycle
    await (lifecycle.start_stateful(record.key) if record.stateful else walk.r.simulator.start(record.key))


async def stop(walk: Walk, record: Record, how: int) -> None:
    lifecycle = walk.r.simulator.lifecycle
    await (lifecycle.stop_stateful(record.key) if how % 2 else walk.r.simulator.stop(record.key))


async def restart(walk: Walk, record: Record, how: int) -> None:
    await walk.r.simulator.restart(record.key)


async def crash(walk: Walk, record: Record, how: int) -> None:
    walk.r.simulator.crash(record.key)


async def delete(walk: Walk, record: Record, how: int) -> None:
    if record.pid:
        await walk.r.simulator.stop(record.key)
    walk.r.simulator.delete(record.key)


async def rename(walk: Walk, record: Record, how: int) -> None:
    was_running = record.pid != 0
    if was_running:
        await walk.r.simulator.stop(record.key)
    stranger = is_stranger(record.key)
    key = walk.r.simulator.lifecycle.rename(record.key, f"{'stranger' if stranger else 'n'}{how}")
    if was_running:
        await walk.r.simulator.start(key)


async def move(walk: Walk, record: Record, how: int) -> None:
    was_running = record.pid != 0
    if was_running:
        await walk.r.simulator.stop(record.key)
    key = walk.r.simulator.lifecycle.move(record.key, PROJECTS[how % 3])
    if was_running:
        await walk.r.simulator.start(key)


async def copy(walk: Walk, record: Record, how: int) -> None:
    name = f"stranger{walk.new_name()}" if is_stranger(record.key) else walk.new_name()
    await walk.r.simulator.start(walk.r.simulator.lifecycle.copy(record.key, name, PROJECTS[how % 3]))


async def snapshot(walk: Walk, record: Record, how: int) -> None:
    walk.r.simulator.lifecycle.snapshot(record.key, "before")


async def restore(walk: Walk, record: Record, how: int) -> None:
    await walk.r.simulator.lifecycle.restore(record.key, "before")


async def pause(walk: Walk, record: Record, how: int) -> None:
    lifecycle = walk.r.simulator.lifecycle
    (lifecycle.resume if record.frozen else lifecycle.pause)(record.key)


async def limit(walk: Walk, record: Record, how: int) -> None:
    walk.r.simulator.set_config(record.key, {"limits.cpu": COUNTS[how % len(COUNTS)]})


async def pin(walk: Walk, record: Record, how: int) -> None:
    # A server refuses to change the pins of a running virtual machine.
    if record.type is InstanceType.CONTAINER or not record.pid:
        walk.r.simulator.set_config(record.key, {"limits.cpu": PINS[how % len(PINS)]})


async def opt(walk: Walk, record: Record, how: int) -> None:
    key = "user.limits.cpu.nodes" if how % 4 > 1 else "limits.cpu.nodes"
    if not is_stranger(record.key):
        walk.r.simulator.set_config(record.key, {key: BALANCED if how % 2 else ""})


async def ask_nonsense(walk: Walk, record: Record, how: int) -> None:
    walk.r.simulator.set_config(record.key, NONSENSE if how % 2 else dict.fromkeys(NONSENSE, ""))


async def make_stateful(walk: Walk, record: Record, how: int) -> None:
    walk.r.simulator.set_config(record.key, {"migration.stateful": "true"})


async def edit_profile(walk: Walk, how: int) -> None:
    config = {"limits.cpu.nodes": BALANCED} if how % 3 else {}
    walk.r.simulator.set_profile("numa", config | ({"limits.cpu": COUNTS[how % 6]} if how % 2 else {}))


async def migrate(walk: Walk, record: Record, how: int) -> None:
    location = OTHER if walk.r.simulator.incus.is_here(record) else HERE
    await walk.r.simulator.members.migrate(record.key, location, live=record.pid != 0)


async def evacuate(walk: Walk, how: int) -> None:
    members, live = walk.r.simulator.members, how % 2 == 1
    await members.evacuate(live=live, moves=how % 3 > 0)
    if how % 4:
        await members.restore(live=live)


async def meddle(walk: Walk, record: Record, how: int) -> None:
    if walk.r.has_group(record.key) and not is_stranger(record.key):
        walk.r.simulator.kernel.set_cpus(record.key, CpuSet([how % 16]))


async def balance(walk: Walk, how: int) -> None:
    walk.r.simulator.trigger_balance()


async def cut(walk: Walk, how: int) -> None:
    walk.r.simulator.drop_listeners()


async def restart_server(walk: Walk, how: int) -> None:
    await walk.r.simulator.restart_server()


async def restart_daemon(walk: Walk, how: int) -> None:
    await walk.r.stop_daemon()
    walk.r.start_daemon()


OF_THE_HOST: Mapping[str, Callable[[Walk, int], Awaitable[None]]] = {
    "create": create,
    "edit profile": edit_profile,
    "evacuate": evacuate,
    "balance": balance,
    "cut": cut,
    "restart server": restart_server,
    "restart daemon": restart_daemon,
}
OF_ONE: Mapping[str, Callable[[Walk, Record, int], Awaitable[None]]] = {
    "start": start,
    "stop": stop,
    "restart": restart,
    "crash": crash,
    "delete": delete,
    "rename": rename,
    "move": move,
    "copy": copy,
    "snapshot": snapshot,
    "restore": restore,
    "pause": pause,
    "limit": limit,
    "pin": pin,
    "opt": opt,
    "ask nonsense": ask_nonsense,
    "make stateful": make_stateful,
    "migrate": migrate,
    "meddle": meddle,
}

_STEPS = st.builds(
    Step,
    # What makes instances comes more often: a walk without any shows nothing.
    what=st.sampled_from([*OF_THE_HOST, *OF_ONE, "create", "create", "create", "start", "limit", "opt"]),
    which=st.integers(0, 11),
    how=st.integers(0, 23),
    pause_s=st.sampled_from(PAUSES_S),
)


def is_stranger(key: InstanceKey) -> bool:
    """Whether an instance never asks to be managed."""
    return key.name.startswith("stranger")


def is_managed(record: Record) -> bool:
    keys = ("limits.cpu.nodes", "user.limits.cpu.nodes")
    return any(record.expanded.get(key) == BALANCED for key in keys)


def asks_nonsense(record: Record) -> bool:
    return any(record.expanded.get(key) == value for key, value in NONSENSE.items())


def is_refused(r: Rig, record: Record) -> bool:
    """Whether it was said why an instance that asks for nonsense is not placed."""
    return bool(r.log.saying(f"instance={record.key} ", "reason=bad-key"))


def is_right(r: Rig, record: Record) -> bool:
    """Whether a running instance is where a daemon would have it."""
    if record.type is InstanceType.VIRTUAL_MACHINE:
        return is_right_machine(r, record)
    if not r.has_group(record.key):
        return False
    seat = r.seat(record.key)
    nodes = r.simulator.machine.nodes_of(seat.cpus)
    bound = nodes if len(nodes) == 1 else NodeSet()
    return seat.mems == bound and has_right_cpus(r, record, seat.cpus)


def is_right_machine(r: Rig, record: Record) -> bool:
    """The same for a virtual machine: all its vCPU threads on the same CPUs, the others on the nodes of those."""
    machine, threads = r.simulator.machine, r.simulator.vm_threads(record.key)
    cpus = CpuSet(cpu for one in threads.vcpus.values() for cpu in one)
    around = CpuSet(cpu for node in machine.nodes_of(cpus) for cpu in machine.node_by_id[node].cpus)
    pinned = not record.expanded.get("limits.cpu", "1").isdecimal()
    return (
        (pinned or set(threads.vcpus.values()) == {cpus})
        and set(threads.others.values()) == {around}
        and has_right_cpus(r, record, cpus)
    )


def has_right_cpus(r: Rig, record: Record, cpus: CpuSet) -> bool:
    """Whether an instance has as many as it asks for, evenly, and the server's record says where they are."""
    machine, limits = r.simulator.machine, record.expanded.get("limits.cpu", "")
    nodes = machine.nodes_of(cpus)
    if not nodes:
        return False
    if record.key.project != "closed" and NodeSet.parse(record.config.get("volatile.cpu.nodes", "")) != nodes:
        return False
    if limits and not limits.isdecimal():
        return cpus == CpuSet.parse(limits)
    counts = [len(cpus & machine.node_by_id[node].cpus) for node in nodes]
    whole = sum(len(machine.node_by_id[node].cpus) for node in nodes)
    unlimited = whole if record.type is InstanceType.CONTAINER else 1
    wanted = min(int(limits), 16) if limits else unlimited
    return sum(counts) == wanted and max(counts) - min(counts) <= 1


def unsettled(r: Rig) -> list[str]:
    """The managed instances that run here and are neither placed nor refused, with what they have."""
    return [
        f"{record.key} {record.expanded} {what_it_has(r, record)}"
        for record in r.simulator.incus.records.values()
        if record.pid and r.simulator.incus.is_here(record) and is_managed(record)
        if not is_right(r, record)
        if not (asks_nonsense(record) and is_refused(r, record))
    ]


def what_it_has(r: Rig, record: Record) -> object:
    if record.type is InstanceType.VIRTUAL_MACHINE:
        return r.simulator.vm_threads(record.key)
    return r.seat(record.key) if r.has_group(record.key) else "no cgroup"


def touched_strangers(r: Rig) -> list[InstanceKey]:
    """Those that never asked for anything and were written to."""
    r.simulator.settle()
    measured = r.simulator.measurements
    keys = [key for key in {*measured.marks, *measured.calls_by_instance} if is_stranger(key)]
    return [key for key in keys if r.writes(key) or r.calls("PATCH instance", key)]


async def walk_and_look(steps: list[Step]) -> None:
    async with rig(HOST) as r:
        walk = Walk(r)
        for step in steps:
            await walk.take(step)
        for _ in range(2):
            await settled(r)
            await r.simulator.balanced()
            await heard(r)
        await settled(r)
        assert touched_strangers(r) == []


async def heard(r: Rig) -> None:
    """Return when the daemon has heard of an edit; one that was made while it was not connected is made again."""
    key = InstanceKey("default", "sentinel")
    if key not in r.simulator.incus.records:
        r.simulator.create(key.name)
    before, made = r.calls("GET instance", key), itertools.count()

    def is_heard() -> bool:
        with contextlib.suppress(ApiError):
            r.simulator.set_config(key, {"user.count": str(next(made))})
        return r.calls("GET instance", key) > before

    await eventually(is_heard)


async def settled(r: Rig) -> None:
    """Return when nobody is left to be placed; says who is if that takes too long."""
    try:
        await eventually(lambda: not unsettled(r))
    except AssertionError:
        raise AssertionError(unsettled(r)) from None


@given(st.lists(_STEPS, min_size=8, max_size=30))
@settings(max_examples=8, phases=(Phase.explicit, Phase.generate))
def test_every_walk_ends_with_all_managed_instances_placed_or_refused(steps: list[Step]) -> None:
    asyncio.run(walk_and_look(steps))
