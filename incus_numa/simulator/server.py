"""The HTTP side: Incus' API routes over `incus`. Called by `simulator`, which puts it on a unix socket.

Answers have Incus' envelopes: `sync`, `async` (an operation) and `error`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from aiohttp import web

from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.events import Listener
from incus_numa.simulator.incus import Incus
from incus_numa.simulator.lifecycle import Lifecycle
from incus_numa.simulator.refusals import ApiError
from incus_numa.simulator.resources import render_resources

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_KINDS = {
    "/1.0": "server",
    "/1.0/instances": "instances",
    "/1.0/instances/{name}": "instance",
    "/1.0/instances/{name}/state": "state",
    "/1.0/resources": "resources",
    "/1.0/projects": "projects",
    "/1.0/events": "events",
}


def sync(metadata: bytes = b"null", *, status: int = 200, etag: str | None = None) -> web.Response:
    """The envelope of a finished request around encoded metadata."""
    body = b'{"type":"sync","status":"Success","status_code":200,"operation":"","error_code":0,"error":"","metadata":'
    headers = {} if etag is None else {"ETag": f'"{etag}"'}
    return web.Response(body=body + metadata + b"}", status=status, content_type="application/json", headers=headers)


def refuse(error: ApiError) -> web.Response:
    """The envelope of a refusal."""
    value = {"type": "error", "status": "", "status_code": 0, "operation": "", "error_code": error.status}
    value |= {"error": error.message, "metadata": None}
    return web.Response(body=msgspec.json.encode(value), status=error.status, content_type="application/json")


def create_app(incus: Incus) -> web.Application:
    """The API as an aiohttp application."""
    api = _Api(incus)
    app = web.Application(middlewares=[api.around])
    app.router.add_get("/", api.get_root)
    app.router.add_get("/1.0", api.get_server)
    app.router.add_get("/1.0/resources", api.get_resources)
    app.router.add_get("/1.0/projects", api.list_projects)
    app.router.add_get("/1.0/events", api.get_events)
    app.router.add_get("/1.0/instances", api.list_instances)
    app.router.add_post("/1.0/instances", api.post_instance)
    app.router.add_get("/1.0/instances/{name}", api.get_instance)
    app.router.add_post("/1.0/instances/{name}", api.post_instance_name)
    app.router.add_patch("/1.0/instances/{name}", api.patch_instance)
    app.router.add_delete("/1.0/instances/{name}", api.delete_instance)
    app.router.add_get("/1.0/instances/{name}/state", api.get_state)
    app.router.add_put("/1.0/instances/{name}/state", api.put_state)
    app.router.add_get("/1.0/operations/{id}", api.get_operation)
    app.router.add_get("/1.0/operations/{id}/wait", api.wait_operation)
    return app


class _Api:
    """Handlers. Each one parses its request, asks `incus` and wraps the answer."""

    def __init__(self, incus: Incus) -> None:
        self._incus = incus
        self._lifecycle = Lifecycle(incus)
        self._operations: dict[str, asyncio.Task[None]] = {}
        self._server: bytes | None = None

    @web.middleware
    async def around(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Count the request, be slow if asked to, and wrap errors."""
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else request.path
        key = _key(request) if path.startswith("/1.0/instances/{name}") else None
        if path.startswith("/1.0"):
            self._incus.measurements.count(f"{request.method} {_KINDS.get(path, 'operation')}", key)
        if self._incus.options.per_request_delay_s:
            await asyncio.sleep(self._incus.options.per_request_delay_s)
        try:
            return await handler(request)
        except ApiError as error:
            return refuse(error)
        except web.HTTPNotFound:
            return refuse(ApiError(404, "not found"))

    async def get_root(self, request: web.Request) -> web.Response:
        """Which versions of the API there are."""
        return sync(b'["/1.0"]')

    async def get_server(self, request: web.Request) -> web.Response:
        """Who answers, and what it can do."""
        options = self._incus.options
        value = {
            "config": {},
            "api_extensions": sorted(options.offered),
            "api_status": "stable",
            "api_version": "1.0",
            "auth": "trusted",
            "public": False,
            "auth_methods": ["tls"],
            "auth_user_name": "root",
            "auth_user_method": "unix",
            "environment": {
                "addresses": [],
                "architectures": ["x86_64", "i686"],
                "certificate": "",
                "certificate_fingerprint": "",
                "driver": "lxc | qemu",
                "driver_version": "6.0.4 | 10.0.2",
                "firewall": "nftables",
                "kernel": "Linux",
                "kernel_architecture": "x86_64",
                "kernel_version": "6.12.0",
                "os_name": "Debian GNU/Linux",
                "os_version": "13",
                "project": "default",
                "server": options.product.value,
                "server_clustered": options.member is not None,
                "server_event_mode": "full-mesh",
                "server_name": options.member or "simulated",
                "server_pid": 1,
                "server_version": options.version,
                "storage": "dir",
                "storage_version": "1",
            },
        }
        return sync(msgspec.json.encode(value))

    async def get_resources(self, request: web.Request) -> web.Response:
        """The hardware."""
        kernel = self._incus.kernel
        return sync(msgspec.json.encode(render_resources(kernel.machine, kernel.online, self._incus.cards)))

    async def list_projects(self, request: web.Request) -> web.Response:
        """Names, or with recursion the configurations, of all projects."""
        projects = self._incus.projects
        if _recursion(request):
            return sync(
                msgspec.json.encode(
                    [
                        {"name": name, "description": "", "config": config, "used_by": []}
                        for name, config in projects.items()
                    ]
                )
            )
        return sync(msgspec.json.encode([f"/1.0/projects/{name}" for name in projects]))

    async def list_instances(self, request: web.Request) -> web.Response:
        """Instances of one project or of all: addresses, instances, or instances with their state."""
        everywhere = request.query.get("all-projects") == "true"
        project = request.query.get("project", "default")
        records = [record for key, record in self._incus.records.items() if everywhere or key.project == project]
        depth = _recursion(request)
        if depth:
            return sync(b"[" + b",".join(record.encode(full=depth > 1) for record in records) + b"]")
        return sync(msgspec.json.encode([_address(record.key) for record in records]))

    async def post_instance(self, request: web.Request) -> web.Response:
        """Create an instance; an operation, although it is done at once."""
        body = await _json(request)
        key = InstanceKey(request.query.get("project", "default"), str(body.get("name", "")))
        kind = InstanceType(body.get("type") or "container")
        profiles = body.get("profiles")
        config = body.get("config") or {}
        self._incus.create(key, kind, config, ("default",) if profiles is None else tuple(profiles))
        return self._operation(asyncio.sleep(0), "Creating instance")

    async def get_instance(self, request: web.Request) -> web.Response:
        """One instance, with its state if asked for, and its ETag."""
        record = self._incus.get(_key(request))
        return sync(record.encode(full=_recursion(request) > 0), etag=record.etag())

    async def patch_instance(self, request: web.Request) -> web.Response:
        """Change some keys."""
        body = await _json(request)
        changes = body.get("config") or {}
        if not isinstance(changes, dict) or not all(isinstance(value, str) for value in changes.values()):
            raise ApiError(400, "json: cannot unmarshal config into Go struct field of type string")
        self._incus.patch(_key(request), changes, request.headers.get("If-Match"))
        return sync()

    async def post_instance_name(self, request: web.Request) -> web.Response:
        """Rename an instance, or move it to another project."""
        body = await _json(request)
        key = _key(request)
        if body.get("migration") and body.get("project"):
            self._lifecycle.move(key, str(body["project"]))
        else:
            self._lifecycle.rename(key, str(body.get("name", "")))
        return self._operation(asyncio.sleep(0), "Renaming instance")

    async def delete_instance(self, request: web.Request) -> web.Response:
        """Delete a stopped instance."""
        self._incus.delete(_key(request))
        return self._operation(asyncio.sleep(0), "Deleting instance")

    async def get_state(self, request: web.Request) -> web.Response:
        """What runs now."""
        return sync(msgspec.json.encode(self._incus.get(_key(request)).state()))

    async def put_state(self, request: web.Request) -> web.Response:
        """Start, stop, restart, freeze or unfreeze, in the background."""
        body = await _json(request)
        key = _key(request)
        self._incus.get(key)
        action = self._actions(stateful=body.get("stateful") is True).get(body.get("action", ""))
        if action is None:
            raise ApiError(400, f"Unknown action: {body.get('action')!r}")
        return self._operation(action(key), f"{body['action'].title()}ing instance")

    def _actions(self, *, stateful: bool) -> Mapping[str, Callable[[InstanceKey], Coroutine[Any, Any, None]]]:
        async def freeze(key: InstanceKey) -> None:
            self._lifecycle.pause(key)

        async def unfreeze(key: InstanceKey) -> None:
            self._lifecycle.resume(key)

        return {
            "start": self._lifecycle.start_stateful if stateful else self._incus.start,
            "stop": self._lifecycle.stop_stateful if stateful else self._incus.stop,
            "restart": self._incus.restart,
            "freeze": freeze,
            "unfreeze": unfreeze,
        }

    async def get_operation(self, request: web.Request) -> web.Response:
        """How far an operation is."""
        return sync(msgspec.json.encode(self._show(request.match_info["id"])))

    async def wait_operation(self, request: web.Request) -> web.Response:
        """The operation, when it has ended."""
        number = request.match_info["id"]
        self._show(number)
        await asyncio.wait((self._operations[number],))
        return sync(msgspec.json.encode(self._show(number)))

    async def get_events(self, request: web.Request) -> web.StreamResponse:
        """Lifecycle events until the connection ends. Without `all-projects` those of one project only."""
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        project = None if request.query.get("all-projects") == "true" else request.query.get("project", "default")
        transport = request.transport
        if transport is not None and "lifecycle" in request.query.get("type", "lifecycle").split(","):
            await self._incus.hub.serve(Listener(websocket=websocket, project=project, transport=transport))
        return websocket

    def _operation(self, work: Coroutine[Any, Any, None], description: str) -> web.Response:
        number = str(uuid4())
        task = asyncio.create_task(work, name=description)
        # Operations end in a result that the client asks for, or not: reading it here keeps it from being logged.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._operations[number] = task
        value = {
            "type": "async",
            "status": "Operation created",
            "status_code": 100,
            "operation": f"/1.0/operations/{number}",
            "error_code": 0,
            "error": "",
            "metadata": {**self._show(number), "description": description},
        }
        return web.Response(
            body=msgspec.json.encode(value),
            status=202,
            content_type="application/json",
            headers={"Location": f"/1.0/operations/{number}"},
        )

    def _show(self, number: str) -> dict[str, Any]:
        task = self._operations.get(number)
        if task is None:
            raise ApiError(404, "Operation not found")
        status, code, problem = "Running", 103, ""
        if task.done():
            error = task.exception()
            problem = error.message if isinstance(error, ApiError) else str(error or "")
            status, code = ("Failure", 400) if error else ("Success", 200)
        return {
            "id": number,
            "class": "task",
            "description": "",
            "created_at": "2026-08-01T10:00:00Z",
            "updated_at": "2026-08-01T10:00:00Z",
            "status": status,
            "status_code": code,
            "resources": {},
            "metadata": None,
            "may_cancel": False,
            "err": problem,
            "location": self._incus.location,
        }


def _key(request: web.Request) -> InstanceKey:
    return InstanceKey(request.query.get("project", "default"), request.match_info["name"])


def _address(key: InstanceKey) -> str:
    return f"/1.0/instances/{key.name}" + ("" if key.project == "default" else f"?project={key.project}")


def _recursion(request: web.Request) -> int:
    text = request.query.get("recursion", "0")
    return int(text) if text.isdecimal() else 0


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(await request.read())
    except msgspec.DecodeError as exc:
        raise ApiError(400, str(exc)) from exc
    if not isinstance(value, dict):
        raise ApiError(400, "json: cannot unmarshal into Go value")
    return value
