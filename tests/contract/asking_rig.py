"""Commands beside a daemon that serves its API, and beside something that answers in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from incus_numa.settings import ApiSettings, Settings, render_settings
from tests.contract.api_rig import Api
from tests.contract.daemon_rig import Rig


def settings_beside(r: Rig, served: Api) -> Settings:
    """The settings of the rig's daemon and of its API, as in the file that both it and commands read."""
    run_dir = str(r.simulator.socket_path.parent / "run")
    return replace(r.settings, api=served.settings, daemon=replace(r.settings.daemon, run_dir=run_dir))


def saying(text: str) -> Callable[[web.Request], web.StreamResponse]:
    """An answer with this text."""
    return lambda _: web.Response(text=text)


def config_beside(r: Rig, served: Api) -> Path:
    """The same as a configuration file."""
    path = r.simulator.socket_path.parent / "commands.toml"
    path.write_text(render_settings(settings_beside(r, served)))
    return path


def api_config(folder: Path, socket: Path | str, *, enabled: bool = True) -> Path:
    """A configuration file that names the API's socket, and a server that is not there."""
    path = folder / "config.toml"
    api = ApiSettings(socket=str(socket), enabled=enabled)
    settings = replace(Settings(api=api), server=replace(Settings().server, socket=str(folder / "none.socket")))
    path.write_text(render_settings(settings))
    return path


@asynccontextmanager
async def answering(
    path: Path, answer: Callable[[web.Request], web.StreamResponse], after_s: float = 0.0
) -> AsyncIterator[None]:
    """Something at a unix socket that answers every request like this, after so long."""

    async def handle(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(after_s)
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        yield
    finally:
        await runner.cleanup()
