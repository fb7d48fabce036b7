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
from incus_numa.host.cgroup import CgroupFiles
from incus_numa.host.pages import page_mover
from incus_numa.server.protocol import Server, ServerInfo
from incus_numa.server.sockets import find_socket
from incus_numa.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A connected server and what looks at it."""

    server: Server
    info: ServerInfo
    cgroups: CgroupFiles
    world: World
    settings: Settings

    def reconciler(self, *, dry_run: bool) -> Reconciler:
        """A reconciler that changes things, or only says what it would change."""
        applier: Applier = DryRunApplier() if dry_run else live_applier(self.server, self.cgroups, self.settings)
        return Reconciler(self.world, applier)


def cgroup_files(settings: Settings) -> CgroupFiles:
    """The cgroup files that the settings name."""
    return CgroupFiles(Path(settings.host.cgroup), Path(settings.host.procfs))


def live_applier(server: Server, cgroups: CgroupFiles, settings: Settings) -> LiveApplier:
    """What changes things as the settings say."""
    return LiveApplier(
        server,
        cgroups,
        write_timeout_s=settings.daemon.write_timeout_s,
        pages=page_mover(Path(settings.host.procfs)),
        bytes_per_second=settings.rebalance.bytes_per_second,
    )


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Session]:
    """A session for one command, over pylxd. Raises UnreachableError."""
    from incus_numa.server.pylxd_server import PylxdServer

    found = find_socket(settings.server.socket, os.environ)
    server = PylxdServer(found.path, settings.server.timeout_s)
    try:
        info = await server.get_info()
        cgroups = cgroup_files(settings)
        world = World(server, cgroups, settings.host, settings.placement, settings.memory)
        await world.greet(info)
        yield Session(server=server, info=info, cgroups=cgroups, world=world, settings=settings)
    finally:
        await server.close()
