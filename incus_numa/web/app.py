"""Answers requests: access, limits, then what the Host says. Called by `serving`, which puts it on sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import UNSET

from incus_numa.errors import IncusNumaError, ReportError
from incus_numa.model.instance import InstanceKey
from incus_numa.web import asked, pages, problems, scrapes, tags
from incus_numa.web.access import Access, Visit
from incus_numa.web.connections import harden
from incus_numa.web.limits import Gate, Limits
from incus_numa.web.openapi import make_document
from incus_numa.web.pages import Page
from incus_numa.web.peers import Members, read_peer
from incus_numa.web.problems import Problem, Refusal
from incus_numa.web.protocol import Exposition, Host
from incus_numa.web.routes import JSON, ROUTES
from incus_numa.web.scrapes import Scrapes
from incus_numa.web.stream import Broadcast, abort

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """What stands between the clients and the host: the rules, and how many may come at a time."""

    access: Access
    members: Members
    max_clients: int
    max_instances: Callable[[], int]
    limits: Limits


def create_app(host: Host, front: Front, exposition: Exposition, broadcast: Broadcast) -> web.Application:
    """The API as an aiohttp application."""
    api = Api(host, front, exposition, broadcast)
    app = web.Application(middlewares=[api.around], client_max_size=front.limits.body_bytes)
    app.on_response_prepare.append(_harden)
    for route in ROUTES:
        handler: Handler = getattr(api, route.name)
        if route.method == "GET":
            app.router.add_get(route.path, handler)
        else:
            app.router.add_route(route.method, route.path, handler)
    for path, page in pages.read_pages().items():
        app.router.add_get(path, _shower(page))
    return app


class GoneClientError(Exception):
    """The client of a request has closed its connection."""


class Api:
    """The handlers, one for each route of the table, and what is around each of them."""

    def __init__(self, host: Host, front: Front, exposition: Exposition, broadcast: Broadcast) -> None:
        self._host = host
        self._front = front
        self._limits = front.limits
        self._broadcast = broadcast
        self._document = msgspec.json.encode(make_document())
        self._scrapes = Scrapes(host.gauges, exposition, front.max_instances)
        # Whoever comes over TCP must not keep out those of the unix socket.
        kinds = (True, False)
        self._asking = {is_unix: Gate(front.max_clients, "requests are worked on") for is_unix in kinds}
        self._watching = {is_unix: Gate(front.limits.watching, "clients watch") for is_unix in kinds}

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request in and answer it, in time, whatever goes wrong."""
        try:
            watches = request.match_info.handler == self.get_events
            gates = self._watching if watches else self._asking
            with gates[_is_unix(request)].passing():
                return await self._answer(request, handler)
        except Refusal as refusal:
            return await self._send(request, problems.respond(refusal.problem, request.rel_url.raw_path))
        except GoneClientError:
            # Nobody is there to be answered, and nobody needs to hear of it.
            gone = web.Response(status=400)
            gone.force_close()
            return gone

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._front.access.check(await self._visit(request))
            response = await handler(request)
        except Refusal as refusal:
            response = problems.respond(refusal.problem, request.rel_url.raw_path)
        except web.HTTPException as error:
            response = problems.respond(problems.explain_http(error), request.rel_url.raw_path)
        except IncusNumaError as error:
            problem = problems.explain(error)
            log.log(logging.WARNING if problem.status == 500 else logging.DEBUG, "%s: %s", request.path, error)
            response = problems.respond(problem, request.rel_url.raw_path)
        except GoneClientError:
            raise
        except Exception:
            log.exception("a request failed by a bug; others are answered all the same")
            problem = Problem(status=500, detail="a bug of incus-numa: its log says more")
            response = problems.respond(problem, request.rel_url.raw_path)
        return await self._send(request, response)

    async def _visit(self, request: web.Request) -> Visit:
        connection = _socket(request)
        is_member = None
        if connection.family == socket.AF_UNIX:
            is_member = await self._front.members.admit(read_peer(connection))
        name = connection.getsockname() if is_member is None else ""
        headers = request.headers
        return Visit(
            method=request.method,
            is_member=is_member,
            address=name[0] if isinstance(name, tuple) else "",
            hosts=tuple(headers.getall("Host", ())),
            origin=headers.get("Origin"),
            authorization=headers.get("Authorization"),
            content_type=request.content_type.lower(),
            is_known=request.match_info.http_exception is None,
        )

    async def get_status(self, request: web.Request) -> web.StreamResponse:
        """Who serves what, and how it goes."""
        _query(request, asked.NoQuery)
        return _json(await self._host.status())

    async def get_topology(self, request: web.Request) -> web.StreamResponse:
        """The machine."""
        _query(request, asked.NoQuery)
        return _json(await self._host.topology())

    async def list_nodes(self, request: web.Request) -> web.StreamResponse:
        """Every node."""
        _query(request, asked.NoQuery)
        return _json(await self._host.nodes())

    async def list_instances(self, request: web.Request) -> web.StreamResponse:
        """Every running instance."""
        project = _query(request, asked.InstancesQuery).project
        return _json(await self._host.instances(None if project is UNSET else project))

    async def get_instance(self, request: web.Request) -> web.StreamResponse:
        """Everything about one instance."""
        key = InstanceKey(_query(request, asked.InstanceQuery).project, request.match_info["name"])
        found = await self._host.instance(key)
        if found is None:
            told = f"no instance {key.name!r} of project {key.project!r} runs here"
            raise Refusal(Problem(status=404, detail=told))
        return _json(found)

    async def get_plan(self, request: web.Request) -> web.StreamResponse:
        """What a pass would do now."""
        _query(request, asked.NoQuery)
        return _json(await self._host.plan())

    async def list_moves(self, request: web.Request) -> web.StreamResponse:
        """The journal."""
        return _json(await self._host.moves(_query(request, asked.MovesQuery).limit))

    async def get_history(self, request: web.Request) -> web.StreamResponse:
        """Load over the last hour."""
        _query(request, asked.NoQuery)
        return _json(await self._host.history())

    async def get_policy(self, request: web.Request) -> web.StreamResponse:
        """The policy in force."""
        _query(request, asked.NoQuery)
        found = await self._host.policy()
        response = _json(found)
        response.headers[tags.TAG] = tags.render_tag(found["etag"])
        # The dashboard does not offer what would be refused to everybody.
        may_change = _is_unix(request) or self._front.access.token is not None
        response.headers["Allow"] = "GET, HEAD, PUT, DELETE" if may_change else "GET, HEAD"
        return response

    async def put_policy(self, request: web.Request) -> web.StreamResponse:
        """Have other tables over the file's."""
        _query(request, asked.NoQuery)
        tables = await self._body(request, dict[str, Any])
        found = await self._host.set_policy(tables, _only_if(request))
        log.info("policy set by %s: %s", _who(request), ", ".join(tables) or "nothing over the file")
        return _json(found)

    async def delete_policy(self, request: web.Request) -> web.StreamResponse:
        """Go back to the file."""
        _query(request, asked.NoQuery)
        found = await self._host.reset_policy(_only_if(request))
        log.info("policy of the file taken up again by %s", _who(request))
        return _json(found)

    async def post_rebalance(self, request: web.Request) -> web.StreamResponse:
        """One pass by measured load."""
        _query(request, asked.NoQuery)
        wish = await self._body(request, asked.RebalanceRequest)
        try:
            found = await self._host.rebalance(dry_run=wish.dry_run, max_moves=wish.max_moves, project=wish.project)
        except ReportError as error:
            raise Refusal(Problem(status=409, detail=str(error), title="It cannot be done now")) from error
        if wish.dry_run or not found["moves"]:
            return _json(found)
        log.info("%d moves begun by %s", len(found["moves"]), _who(request))
        return _json(found, status=202)

    async def get_events(self, request: web.Request) -> web.StreamResponse:
        """What happens."""
        _query(request, asked.NoQuery)
        return await self._broadcast.send(request)

    async def get_openapi(self, request: web.Request) -> web.StreamResponse:
        """What there is."""
        _query(request, asked.NoQuery)
        return web.Response(body=self._document, content_type=JSON)

    async def get_metrics(self, request: web.Request) -> web.StreamResponse:
        """Metrics for Prometheus."""
        text = await self._scrapes.get(scrapes.wanted_form(request))
        return web.Response(body=text.body, headers=text.headers)

    async def _body(self, request: web.Request, kind: type[T]) -> T:
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal(Problem(status=415, detail="expected a body without Content-Encoding"))
        try:
            async with asyncio.timeout(self._limits.body_s):
                body = await request.read()
        except TimeoutError as error:
            told = f"the body did not come within {self._limits.body_s:g} s"
            raise Refusal(Problem(status=408, detail=told)) from error
        except ConnectionError as error:
            raise GoneClientError from error
        except web.RequestPayloadError as error:
            raise Refusal(Problem(status=400, detail="the body is cut off, or not as its headers say")) from error
        return asked.read_body(body, kind)

    async def _send(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        """Send an answer and wait until it is taken; who takes too long is cut off."""
        try:
            async with asyncio.timeout(self._limits.answer_s):
                await response.prepare(request)
                await response.write_eof()
                await request.writer.drain()
        except TimeoutError:
            log.debug("a client was cut off: it did not take its answer")
            abort(request)
        except ConnectionError:
            response.force_close()
        return response


async def _harden(_: web.Request, response: web.StreamResponse) -> None:
    harden(response)


def _shower(page: Page) -> Handler:
    async def show(request: web.Request) -> web.StreamResponse:
        return pages.show(page, request)

    return show


def _query(request: web.Request, kind: type[T]) -> T:
    query = request.rel_url.query
    return asked.read_query({name: query.getall(name) for name in query}, kind)


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(document), content_type=JSON)


def _only_if(request: web.Request) -> frozenset[str] | None:
    return tags.parse_match(request.headers.getall(tags.ONLY_IF, ()))


def _socket(request: web.Request) -> socket.socket:
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None:
        raise GoneClientError
    found: socket.socket = connection
    return found


def _is_unix(request: web.Request) -> bool:
    return _socket(request).family == socket.AF_UNIX


def _who(request: web.Request) -> str:
    """Who asks, for the log."""
    connection = _socket(request)
    if connection.family == socket.AF_UNIX:
        return f"user {read_peer(connection).uid} over the unix socket"
    return f"somebody with the token at {connection.getpeername()[0]}"
