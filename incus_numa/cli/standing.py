"""What is known about instances by their keys, whether they run or not: for `check`, and for `explain` of one that does
not run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from incus_numa.cli.findings import instances
from incus_numa.cli.findings.finding import Severity, in_order
from incus_numa.cli.findings.instances import Capacity, Ground
from incus_numa.cli.wiring import Session
from incus_numa.errors import ReportError
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.server import demand
from incus_numa.server.protocol import ServerInstance, is_elsewhere
from incus_numa.topology import resources, sysfs


async def take_ground(session: Session, meant: Mapping[InstanceKey, Instance]) -> Ground:
    """What the instances of this server are judged by."""
    groups = frozenset(one.group for one in meant.values() if one.group is not None)
    capacity = await _capacity(session)
    return Ground(info=session.info, machine=session.world.machine, capacity=capacity, groups=groups)


async def tell_stopped(session: Session, raw: ServerInstance) -> str:
    """What becomes of an instance that does not run: with the worst that `check` finds about its keys, if anything.

    Raises UnreachableError.
    """
    about = f"{raw.key.name} does not run"
    if is_elsewhere(raw.location, session.info.member):
        return f"{about}: it belongs to cluster member {raw.location}, and is placed there when it starts"
    instance = demand.instance_from(raw, session.world.machine, session.settings.placement)
    ground = await take_ground(session, {raw.key: instance})
    found = in_order(instances.check_instance(raw, instance, ground))
    if not found or found[0].severity is Severity.NOTE:
        return f"{about}: it is {'' if instance.managed else 'not managed, and so not '}placed when it starts"
    more = "" if len(found) == 1 else f" ({len(found) - 1} more)"
    return f"{about}, and `incus-numa check` finds {found[0].severity.value}: {found[0]}{more}"


async def _capacity(session: Session) -> Capacity:
    """What the server counts by: its own list of threads, or where it gives none, all CPUs of the kernel."""
    try:
        cpus, nodes = resources.count_cpus(await session.server.get_resources())
    except ReportError:
        cpus = nodes = 0
    if cpus and nodes:
        return Capacity(cpus=cpus, nodes=nodes)
    machine = session.world.machine
    present = sysfs.read_present(Path(session.settings.host.sysfs)) or machine.online
    return Capacity(cpus=len(present), nodes=sum(bool(node.cpus) for node in machine.nodes))
