"""The API of a daemon on a simulated host, and clients of it: for the tests of what can be asked and by whom."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from incus_numa.daemon.overrides import Overrides
from incus_numa.errors import ConfigError
from incus_numa.facts.live import LiveHost, Origin
from incus_numa.settings import ApiSettings, Settings
from incus_numa.web.limits import DEFAULT, Limits
from incus_numa.web.metrics import Metrics
from incus_numa.web.serving import Stage, serving
from tests.contract.daemon_rig import Rig

TOKEN = "a-token-that-nobody-guesses"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Client:
    """Somebody who asks, over the unix socket or TCP."""

    session: aiohttp.ClientSession
    base: str

    async def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        """One request; a `body` is sent as JSON, as text where it is one. `_` in names of headers stands for `-`."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and "Content-Type" not in sent:
            sent |= JSON
        data = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
        async with self.session.request(method, self.base + path, data=data, headers=sent) as response:
            return Answer(status=response.status, headers=response.headers, body=await response.read())

    async def get(self, path: str) -> Any:
        """What is told, which must be there."""
        found = await self.ask(path)
        assert found.status == 200, found
        return found.data


@asynccontextmanager
async def unix_client(path: str | Path) -> AsyncIterator[Client]:
    """A client of a unix socket."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session:
        yield Client(session=session, base="http://localhost")


@asynccontextmanager
async def tcp_client(address: str, scheme: str = "http", **more: Any) -> AsyncIterator[Client]:
    """A client of an address and port."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**more)) as session:
        yield Client(session=session, base=f"{scheme}://{address}")


def free_address(host: str = "127.0.0.1") -> str:
    """An address and port that nobody listens on."""
    with socket.create_server((host, 0)) as one:
        return f"{host}:{one.getsockname()[1]}"


def write_token(folder: Path, mode: int = 0o600) -> Path:
    """A token file."""
    path = folder / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(mode)
    return path


@dataclass(kw_only=True)
class File:
    """The configuration file: it has a rig's settings, or a `problem`."""

    rig: Rig
    problem: str = ""

    def load(self) -> Settings:
        """Read it. Raises ConfigError."""
        if self.problem:
            raise ConfigError((self.problem,))
        return self.rig.settings


@dataclass(frozen=True, kw_only=True)
class Api:
    """The API of a rig's daemon; `unix` asks it."""

    unix: Client
    settings: ApiSettings
    file: File
    policy_file: Path

    def socket_is_there(self) -> bool:
        """Whether the unix socket has its file."""
        return Path(self.settings.socket).is_socket()


@asynccontextmanager
async def api(r: Rig, settings: ApiSettings | None = None, limits: Limits = DEFAULT) -> AsyncIterator[Api]:
    """Serve the API of the rig's daemon, as `incus-numa daemon` does."""
    folder = r.simulator.socket_path.parent
    own = replace(settings or ApiSettings(), socket=str(folder / "api.sock"), policy_file=str(folder / "policy.json"))
    overrides, service, metrics = Overrides(Path(own.policy_file)), r.daemon.service, Metrics()
    service.reconciler.notices.watch(metrics.take)
    file = File(rig=r)
    r.load_settings = lambda: overrides.put_over(file.load(), service.find_misfits)
    name, path = str(folder / "config.toml"), r.settings.server.socket
    host = LiveHost(service, Origin(file=name, load=file.load, overrides=overrides, find_socket=lambda: path))
    async with (
        serving(Stage(host=host, exposition=metrics, settings=own, max_instances=lambda: 10, limits=limits)),
        unix_client(own.socket) as unix,
    ):
        yield Api(unix=unix, settings=own, file=file, policy_file=Path(own.policy_file))
