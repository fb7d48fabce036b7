"""A small server on a Unix socket that answers like Incus, or as badly as a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from incus_numa.model.instance import InstanceKey

KEY = InstanceKey("web", "c1")
CHANGES = {"volatile.cpu.nodes": "0-1"}
INFO = {"api_extensions": ["etag"], "environment": {"server": "incus", "server_version": "6.0.4"}}
INSTANCE = {
    "name": "c1",
    "project": "web",
    "type": "container",
    "status": "Running",
    "location": "none",
    "config": {"limits.cpu": "2"},
    "expanded_config": {"limits.cpu": "2", "limits.cpu.nodes": "balanced"},
}
EVENT = {
    "type": "lifecycle",
    "location": "none",
    "project": "web",
    "metadata": {"action": "instance-started", "source": "/1.0/instances/c1?project=web"},
}


def sync(metadata: Any, **headers: str) -> web.Response:
    body = {"type": "sync", "status": "Success", "status_code": 200, "error": "", "metadata": metadata}
    return web.json_response(body, headers=headers)


def refused(status: int, message: str) -> web.Response:
    body = {"type": "error", "status": "", "status_code": 0, "error_code": status, "error": message, "metadata": None}
    return web.json_response(body, status=status)


def html() -> web.Response:
    return web.Response(text="<html><body>Welcome to nginx</body></html>", content_type="text/html")


class SmallServer:
    """Answers like Incus; `answers` replaces the answer to a request, `cut` drops the connection instead."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "s")
        self.answers: dict[str, Callable[[], web.StreamResponse]] = {}
        self.patches: list[tuple[str | None, str, Any]] = []
        self.cut: set[str] = set()
        self.queries: list[str] = []
        self.listeners: list[web.WebSocketResponse] = []
        app = web.Application()
        app.router.add_get("/1.0/events", self.listen)
        app.router.add_route("*", "/{path:.*}", self.answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start(self) -> None:
        await self.runner.setup()
        await web.UnixSite(self.runner, self.path).start()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(request.path_qs)
        name = f"{request.method} {request.path}"
        if name in self.cut and isinstance(request.transport, asyncio.Transport):
            request.transport.abort()
        if name in self.answers:
            return self.answers[name]()
        if request.method == "PATCH":
            self.patches.append((request.headers.get("If-Match"), request.path_qs, await request.json()))
            return sync({})
        answers: dict[str, Callable[[], web.Response]] = {
            "/1.0": lambda: sync(INFO),
            "/1.0/instances": lambda: sync([INSTANCE, {"name": "broken"}]),
            "/1.0/instances/c1": lambda: sync(INSTANCE, ETag="e1"),
            "/1.0/instances/c1/state": lambda: sync({"pid": 42}),
            "/1.0/resources": lambda: sync({"cpu": {"total": 8}}),
        }
        return answers.get(request.path, lambda: refused(404, "not found"))()

    async def listen(self, request: web.Request) -> web.WebSocketResponse:
        self.queries.append(request.path_qs)
        listener = web.WebSocketResponse()
        await listener.prepare(request)
        self.listeners.append(listener)
        await listener.send_str(json.dumps(EVENT))
        async for _ in listener:
            pass
        return listener
