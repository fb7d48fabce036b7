"""Puts the parts together for a command: server, world, applier, reconciler."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from incus_numa.applier.dry_run import DryRunApplier
from incus_numa.applier.live import LiveApplier
from incus_numa.applier.protocol import Applier
from incus_numa.daemon.observe import World
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.host import legacy_cgroup
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.pages import page_mover
from incus_numa.host.virtual import VirtualMachines
from incus_numa.server import sockets
from incus_numa.server.protocol import Server, ServerInfo
from incus_numa.server.sockets import FoundSocket
from incus_numa.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A connected server and what looks at it."""

    server: Server
    info: ServerInfo
    found: FoundSocket
    cgroups: CgroupFiles
    world: World
    settings: Settings

    def reconciler(self, *, dry_run: bool) -> Reconciler:
        """A reconciler that changes things, or only says what it would change."""
        applier: Applier = DryRunApplier() if dry_run else live_applier(self.world, self.settings)
        return Reconciler(self.world, applier)


def cgroup_files(settings: Settings) -> CgroupFiles:
    """The cgroup files that the settings name."""
    return legacy_cgroup.cgroup_files(Path(settings.host.cgroup), Path(settings.host.procfs))


def virtual_machines(settings: Settings) -> VirtualMachines:
    """The QEMU processes that the settings name."""
    marks = Path(settings.daemon.run_dir) / "vms"
    return VirtualMachines(Path(settings.host.procfs), Path(settings.host.sysfs), marks)


def make_world(server: Server, settings: Settings) -> World:
    """What looks at the host that the settings name, and at the server's instances."""
    return World(
        server,
        cgroup_files(settings),
        virtual_machines(settings),
        host=settings.host,
        placement=settings.placement,
        memory=settings.memory,
    )


def live_applier(world: World, settings: Settings) -> LiveApplier:
    """What changes things as the settings say."""
    return LiveApplier(
        world.server,
        world.cgroups,
        world.vms,
        write_timeout_s=settings.daemon.write_timeout_s,
        pages=page_mover(Path(settings.host.procfs)),
        bytes_per_second=settings.rebalance.bytes_per_second,
    )


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Session]:
    """A session for one command, over pylxd. Raises UnreachableError."""
    from incus_numa.server.pylxd_server import PylxdServer

    product = sockets.parse_product(settings.server.product)
    found = sockets.find_socket(settings.server.socket, os.environ, product=product)
    server = PylxdServer(found.path, settings.server.timeout_s)
    try:
        info = await server.get_info()
        sockets.check_product(info, product, found.path)
        world = make_world(server, settings)
        await world.greet(info)
        yield Session(server=server, info=info, found=found, cgroups=world.cgroups, world=world, settings=settings)
    finally:
        await server.close()
