"""The suite of the Server protocol on the real server of the host, through its forwarded socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from incus_numa.model.instance import InstanceKey
from incus_numa.server.http_server import HttpServer
from incus_numa.server.protocol import Product, Server
from incus_numa.server.pylxd_server import PylxdServer
from tests.lab.conftest import KIND
from tests.lab.host import INCUS
from tests.lab.lab import Lab
from tests.server_suite import OWN, PROFILED, ServerCase, ServerSuite

pytestmark = [pytest.mark.lab, pytest.mark.on("incus", "incus7", "lxd"), pytest.mark.asyncio(loop_scope="module")]

RUNNING, STOPPED = InstanceKey("default", "suite1"), InstanceKey("default", "suite2")
TWIN, CLOSED = InstanceKey("twin.p-1", "suite1"), InstanceKey("closed", "suite3")
BUILD = {"features.images": "false"}
ROOT = {"root": {"type": "disk", "path": "/", "pool": "default"}}
ADAPTERS = (HttpServer, PylxdServer) if KIND is INCUS else (HttpServer,)
"""The daemon uses the first; one server is enough to see that the other one answers alike."""


@pytest.fixture(scope="module", autouse=True)
def socket(lab: Lab, _clean: None) -> Iterator[Path]:
    """The server's socket, with all that the suite needs on the server."""
    for project, config in ((TWIN.project, BUILD), (CLOSED.project, {**BUILD, "restricted": "true"})):
        lab.api.request("POST", "/1.0/projects", {"name": project, "config": config})
    for project in ("default", TWIN.project, CLOSED.project):
        profile = {"config": PROFILED, "devices": ROOT}
        lab.api.request("PUT", f"/1.0/profiles/default?project={project}", profile)
    for key in (RUNNING, TWIN, STOPPED, CLOSED):
        lab.create(key.name, key.project, **OWN)
    for key in (RUNNING, TWIN):
        lab.start(key.name, key.project)
    lab.wait_quiet()
    yield lab.socket
    lab.api.request("PUT", "/1.0/profiles/default", {"config": {}, "devices": ROOT})


@pytest_asyncio.fixture(params=ADAPTERS, scope="module", loop_scope="module")
async def case(request: pytest.FixtureRequest, lab: Lab, socket: Path) -> AsyncIterator[ServerCase]:
    server: Server = request.param(str(socket), timeout_s=120)
    told = lab.api.get("/1.0")["environment"]
    product = Product(KIND.server)

    async def switch(action: str) -> None:
        body = {"action": action, "force": True, "timeout": 60}
        await asyncio.to_thread(lab.api.request, "PUT", f"/1.0/instances/{STOPPED.name}/state", body)

    yield ServerCase(
        server=server,
        product=product,
        version=told["server_version"],
        has_balanced=product is Product.INCUS,
        has_nodes=True,
        takes_node_zero=True,
        strict=False,
        cpus=lab.layout.cpus,
        running=RUNNING,
        twin=TWIN,
        stopped=STOPPED,
        closed=CLOSED,
        switch=switch,
        records=("0", "0-1"),
    )
    await server.close()


class TestServers(ServerSuite):
    """All of it."""
