"""The suite of the Server protocol on simulated servers: every personality, over both adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_asyncio

from incus_numa.model.instance import InstanceKey
from incus_numa.server import demand
from incus_numa.server.http_server import HttpServer
from incus_numa.server.protocol import Server
from incus_numa.server.pylxd_server import PylxdServer
from incus_numa.simulator import refusals, trees
from incus_numa.simulator.options import BALANCED_NODES, CHOSEN_NODES, SimulatorOptions
from incus_numa.simulator.personalities import LIMITED, PERSONALITIES, RESTRICTED
from incus_numa.simulator.simulator import Simulator
from tests import builders
from tests.server_suite import NOTE, OWN, PROFILED, ServerCase, ServerSuite

pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD, RESTRICTING, LIMITING = "a_b&c=%41 d+é?#", "closed", "limited"
"""Projects; real servers refuse some of these characters in a name, but not always the same ones."""

RUNNING, STOPPED = InstanceKey("default", "c1"), InstanceKey("default", "c2")
TWIN, CLOSED, LIMITED_ONE = InstanceKey(ODD, "c1"), InstanceKey(RESTRICTING, "c3"), InstanceKey(LIMITING, "c4")

SERVERS = {
    **PERSONALITIES,
    "incus-7-member": replace(PERSONALITIES["incus-7"], member="first"),
}


def render_options(one: SimulatorOptions) -> SimulatorOptions:
    """A server that takes no time, with the projects and the profile of the suite."""
    return replace(
        one,
        lock_release_s=(0.0, 0.0),
        balances=False,
        watches=False,
        tick_s=None,
        projects={**one.projects, ODD: {}, RESTRICTING: RESTRICTED, LIMITING: LIMITED},
        profiles={"default": PROFILED},
    )


@pytest_asyncio.fixture(params=SERVERS, scope="module", loop_scope="module")
async def simulator(request: pytest.FixtureRequest) -> AsyncIterator[Simulator]:
    with TemporaryDirectory(dir=trees.scratch_root()) as folder:
        async with Simulator(builders.machine(), Path(folder), render_options(SERVERS[request.param])) as one:
            yield one
            assert one.problems() == ()


@pytest_asyncio.fixture(params=[HttpServer, PylxdServer], scope="module", loop_scope="module")
async def case(request: pytest.FixtureRequest, simulator: Simulator) -> AsyncIterator[ServerCase]:
    server: Server = request.param(str(simulator.socket_path), timeout_s=10)
    options = simulator.options
    await populate(simulator)

    async def switch(action: str) -> None:
        await (simulator.start(STOPPED) if action == "start" else simulator.stop(STOPPED))

    yield ServerCase(
        server=server,
        product=options.product,
        version=options.version,
        has_balanced=BALANCED_NODES in options.offered,
        has_nodes=CHOSEN_NODES in options.offered,
        takes_node_zero=not options.refuses_node_zero,
        strict=refusals.is_restricted(simulator.incus.projects["default"], simulator.incus.get(RUNNING).type),
        cpus={node.id: node.cpus for node in simulator.machine.nodes},
        running=RUNNING,
        twin=TWIN,
        stopped=STOPPED,
        closed=CLOSED,
        switch=switch,
        member=options.member,
    )
    await server.close()


async def populate(simulator: Simulator) -> None:
    """The instances of the suite, if they are not there yet."""
    if RUNNING in simulator.incus.records:
        return
    for key in (RUNNING, TWIN, STOPPED, CLOSED, LIMITED_ONE):
        simulator.create(key.name, OWN, key.project)
    for key in (RUNNING, TWIN):
        await simulator.start(key)


class TestServers(ServerSuite):
    """All of it."""


async def test_a_project_with_any_limit_is_as_strict_as_a_restricted_one(case: ServerCase) -> None:
    await ServerSuite().check_change(replace(case, closed=LIMITED_ONE), LIMITED_ONE, demand.VOLATILE_NODES, "1")


async def test_event_of_a_change_is_sent_before_it_is_answered(case: ServerCase, simulator: Simulator) -> None:
    await case.server.patch_config(case.running, {NOTE: "x"}, None)
    assert simulator.incus.hub.sent[-1] == ("instance-updated", RUNNING)
