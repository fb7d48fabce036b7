"""`incus-numa daemon`: the service."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from pathlib import Path

import click

from incus_numa import __version__
from incus_numa.cli import running
from incus_numa.cli.fitting import load_for_host, read_host
from incus_numa.cli.options import DEFAULT_CONFIG, common_with, load_settings, start_logging
from incus_numa.cli.wiring import live_applier, make_world
from incus_numa.daemon.notices import Notices
from incus_numa.daemon.notify import Notifier
from incus_numa.daemon.overrides import Overrides
from incus_numa.daemon.reconciler import Reconciler
from incus_numa.daemon.service import Service
from incus_numa.errors import ConfigError, UnreachableError
from incus_numa.facts.live import LiveHost, Origin
from incus_numa.policy.reservations import check_reservations
from incus_numa.server import sockets
from incus_numa.server.http_server import HttpServer
from incus_numa.settings import Settings, list_unused
from incus_numa.web.metrics import Metrics
from incus_numa.web.serving import Stage, serving

log = logging.getLogger(__name__)

SEARCH_S = 5.0
"""How often the server's socket is looked for while there is none."""


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
    notifier = Notifier(os.environ)
    path, settings = await _wait_for_socket(settings, config_file, notifier)
    overrides = Overrides(Path(settings.api.policy_file))
    settings = _with_policy(settings, overrides)
    notices, metrics = Notices(), Metrics()
    notices.watch(metrics.take)
    server = HttpServer(path, settings.server.timeout_s, notices.tell)
    world = make_world(server, settings)
    for problem in (*list_unused(settings), *world.cgroups.check()):
        log.warning("%s", problem)
    if len(world.machine.nodes) < 2:
        log.warning("this host has one node: CPUs are still placed, memory is not bound")
    log.info(
        "incus-numa %s: %d nodes, %d CPUs, server %s",
        __version__,
        len(world.machine.nodes),
        len(world.machine.online),
        path,
    )

    def read_file() -> Settings:
        return load_settings(config_file)

    service = Service(
        server,
        Reconciler(world, live_applier(world, settings), notices),
        settings,
        load_settings=lambda: overrides.put_over(read_file(), lambda found: world.check_memory(found.memory)),
        notifier=notifier,
    )
    origin = Origin(file=str(config_file or DEFAULT_CONFIG), load=read_file, overrides=overrides, socket=path)
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


def _with_policy(settings: Settings, overrides: Overrides) -> Settings:
    """Settings with the policy over them that the API was given; without it if that is bad."""

    def find_misfits(found: Settings) -> tuple[str, ...]:
        return () if found.memory.policy == "none" else check_reservations(found.memory, read_host(found))

    try:
        found = overrides.put_over(settings, find_misfits)
    except ConfigError as error:
        log.error("the policy that the API was given is left out: %s", "; ".join(error.problems))
        return settings
    if overrides.kept:
        told = ", ".join(f"{name}.{one}" for name, table in overrides.kept.items() for one in table)
        log.info("over the configuration file, as the API was told: %s", told)
    return found


async def _wait_for_socket(settings: Settings, config_file: Path | None, notifier: Notifier) -> tuple[str, Settings]:
    """The server's socket, waited for: at boot the server may come after us. SIGHUP reads the settings again."""
    reload = asyncio.Event()
    with contextlib.suppress(ValueError, RuntimeError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.set)
    said = ""
    while True:
        try:
            product = sockets.parse_product(settings.server.product)
            found = sockets.find_socket(settings.server.socket, os.environ, product=product)
        except UnreachableError as error:
            if said != str(error):
                said = str(error)
                log.warning("%s; looking again every %g s", error, SEARCH_S)
                notifier.ready()
                notifier.status("waiting for a server")
        else:
            choice = sockets.explain_choice(found)
            if choice is not None:
                log.info("%s", choice)
            return found.path, settings
        notifier.alive()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEARCH_S):
                await reload.wait()
        if reload.is_set():
            reload.clear()
            settings = _reloaded(settings, config_file)


def _reloaded(settings: Settings, config_file: Path | None) -> Settings:
    """The settings as the file has them now; those we have if it is bad."""
    try:
        return load_for_host(config_file)
    except ConfigError as error:
        log.error("settings not reloaded, the old ones stay: %s", "; ".join(error.problems))
        return settings
