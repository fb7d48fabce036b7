"""Remote control of a simulator in a process of its own: `/simulator/...` on the server's socket.

Benchmarks use it, so that driving and measuring are not counted as requests of the program under test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.refusals import ApiError

if TYPE_CHECKING:
    from incus_numa.simulator.simulator import Simulator


def add_routes(app: web.Application, simulator: Simulator) -> None:
    """Add the control routes to the server's application."""
    control = _Control(simulator)
    app.router.add_get("/simulator/measurements", control.get_measurements)
    app.router.add_delete("/simulator/measurements", control.clear_measurements)
    app.router.add_get("/simulator/problems", control.get_problems)
    app.router.add_post("/simulator/{verb}", control.post_verb)


class _Control:
    """Handlers. Answers are plain JSON; refusals have the server's envelope."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def get_measurements(self, request: web.Request) -> web.Response:
        """Calls and marks. Instances are named `project/name`."""
        measured = self._simulator.measurements
        return _answer(
            {
                "calls": measured.calls,
                "calls_by_instance": {
                    f"{key.project}/{key.name}": calls for key, calls in measured.calls_by_instance.items()
                },
                "marks": {f"{key.project}/{key.name}": tuple(marks) for key, marks in measured.marks.items()},
                "balance_passes": self._simulator.incus.balancer.passes,
                "listeners": self._simulator.incus.hub.listener_count,
                "refused_writes": [(str(key), file, text) for key, file, text in self._simulator.kernel.refused],
            }
        )

    async def clear_measurements(self, request: web.Request) -> web.Response:
        """Start to measure anew."""
        self._simulator.measurements.clear()
        return _answer({})

    async def get_problems(self, request: web.Request) -> web.Response:
        """What is impossible in the state now."""
        return _answer(self._simulator.problems())

    async def post_verb(self, request: web.Request) -> web.Response:
        """Do what the driver's method of this name does; the body has the arguments."""
        body: dict[str, Any] = msgspec.json.decode(await request.read() or b"{}")
        await self._do(request.match_info["verb"], body)
        return _answer({})

    async def _do(self, verb: str, body: dict[str, Any]) -> None:
        simulator = self._simulator
        key = InstanceKey(body.get("project", "default"), body.get("name", ""))
        at_once: dict[str, Callable[[], object]] = {
            "create": lambda: simulator.create(
                key.name,
                body.get("config"),
                key.project,
                InstanceType(body.get("type", "container")),
                tuple(body.get("profiles", ("default",))),
            ),
            "crash": lambda: simulator.crash(key),
            "delete": lambda: simulator.delete(key),
            "set_config": lambda: simulator.set_config(key, body["config"]),
            "set_profile": lambda: simulator.set_profile(body["profile"], body["config"]),
            "set_work": lambda: simulator.set_work(key, body["cpus"]),
            "advance": lambda: simulator.advance(body["seconds"]),
            "trigger_balance": simulator.trigger_balance,
            "drop_listeners": simulator.drop_listeners,
            "mute_listeners": simulator.mute_listeners,
            "offline_cpu": lambda: simulator.offline_cpu(body["cpu"]),
            "online_cpu": lambda: simulator.online_cpu(body["cpu"]),
        }
        lasting: dict[str, Callable[[], Awaitable[None]]] = {
            "start": lambda: simulator.start(key),
            "stop": lambda: simulator.stop(key),
            "restart": lambda: simulator.restart(key),
            "balanced": simulator.balanced,
        }
        if verb in at_once:
            at_once[verb]()
        elif verb in lasting:
            await lasting[verb]()
        else:
            raise ApiError(404, f"unknown verb {verb!r}")


def _answer(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
