"""`incus-numa daemon`: the service."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from pathlib import Path

import click

from incus_numa import __version__
from incus_numa.cli import running
from incus_numa.cli.fitting import check_on_machine, load_for_host, read_host
from incus_numa.cli.options import DEFAULT_CONFIG, common_with, load_settings, start_logging
from incus_numa.cli.wiring import live_applier, make_world
from incus_numa.daemon.notices import Notices
from incus_numa.daemon.notify import Notifier
from incus_numa.daemon.overrides import Overrides
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.daemon.service import Service
from incus_numa.facts.live import LiveHost, Origin
from incus_numa.server import sockets
from incus_numa.server.awaited import AwaitedServer
from incus_numa.server.sockets import FoundSocket
from incus_numa.settings import FindMisfits, Settings, list_unused
from incus_numa.web.metrics import Metrics
from incus_numa.web.serving import Stage, serving

log = logging.getLogger(__name__)


@click.command()
@common_with("info")
def command(config_file: Path | None, log_level: str) -> None:
    """Run the service: watch the server and keep every managed instance on its nodes.

    Example: incus-numa daemon --config /etc/incus-numa/config.toml
    """
    start_logging(log_level)
    settings = load_for_host(config_file)
    # What is known of a thousand instances is many small values that live long; by default the collector would walk
    # all of them several times a second while instances start.
    gc.set_threshold(50_000, 20, 100)
    with running.locked(settings.daemon):
        asyncio.run(serve(settings, config_file))


async def serve(settings: Settings, config_file: Path | None) -> None:
    """Run until SIGTERM or SIGINT."""
    overrides = Overrides(Path(settings.api.policy_file))
    settings = _with_policy(settings, overrides, lambda found: check_on_machine(found, read_host))
    notices, metrics = Notices(), Metrics()
    notices.watch(metrics.take)

    def find() -> FoundSocket:
        # Where the socket is may be corrected while there is none.
        now = service.settings.server
        return sockets.find_socket(now.socket, os.environ, product=sockets.parse_product(now.product))

    server = AwaitedServer(find, settings.server.timeout_s, notices.tell)
    world = make_world(server, settings)
    for problem in (*list_unused(settings), *world.cgroups.check()):
        log.warning("%s", problem)
    if len(world.machine.nodes) < 2:
        log.warning("this host has one node: CPUs are still placed, memory is not bound")
    log.info("incus-numa %s: %d nodes, %d CPUs", __version__, len(world.machine.nodes), len(world.machine.online))

    def read_file() -> Settings:
        return load_settings(config_file)

    service = Service(
        server,
        Reconciler(world, live_applier(world, settings), notices),
        settings,
        load_settings=lambda: _with_policy(read_file(), overrides, world.find_misfits),
        notifier=Notifier(os.environ),
    )
    origin = Origin(
        file=str(config_file or DEFAULT_CONFIG), load=read_file, overrides=overrides, find_socket=lambda: server.path
    )
    await run_with_api(service, origin, metrics)


async def run_with_api(service: Service, origin: Origin, metrics: Metrics) -> None:
    """Run a service until it is told to stop, and serve its API meanwhile."""
    stage = Stage(
        host=LiveHost(service, origin),
        exposition=metrics,
        settings=service.settings.api,
        max_instances=lambda: service.settings.metrics.max_instances,
    )
    async with serving(stage):
        await service.run()


def _with_policy(settings: Settings, overrides: Overrides, find_misfits: FindMisfits) -> Settings:
    """Settings with the policy over them that the API was given, without what is bad of it."""
    found = overrides.put_over(settings, find_misfits)
    for problem in overrides.list_left_out():
        log.error("%s", problem)
    if keys := overrides.list_keys():
        log.info("over the configuration file, as the API was told: %s", ", ".join(keys))
    return found
