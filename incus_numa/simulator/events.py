"""Lifecycle events to websocket listeners: no replay, no order if so chosen, and listeners that are let down.

Called by `incus` to send and by `server` to attach connections.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from urllib.parse import quote, quote_plus

import msgspec
from aiohttp import web

from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.options import SimulatorOptions

QUEUE_LENGTH = 10_000
"""A listener that is this many events behind is dropped, as the server does."""


PING_S = 10.0
"""An idle connection is pinged this often."""


@dataclass(kw_only=True, eq=False)
class Listener:
    """One connection. `project` None means all. A mute one stays open, but gets nothing any more, not even a pong."""

    websocket: web.WebSocketResponse
    project: str | None
    transport: asyncio.Transport
    queue: asyncio.Queue[str] = field(default_factory=lambda: asyncio.Queue(QUEUE_LENGTH))
    mute: bool = False


class EventHub:
    """All listeners of one server."""

    def __init__(self, options: SimulatorOptions, random: Random, *, location: str) -> None:
        self.sent: list[tuple[str, InstanceKey]] = []
        self._listeners: set[Listener] = set()
        self._jitter_s = options.event_jitter_s
        self._names = options.names_in_events
        self._random = random
        self.location = location

    @property
    def listener_count(self) -> int:
        """How many connections get events."""
        return sum(not listener.mute for listener in self._listeners)

    def send(self, action: str, key: InstanceKey, *, location: str | None = None, old_name: str | None = None) -> None:
        """Send an event to everyone who listens now; `location` is the member that it comes from, None for this one."""
        self.sent.append((action, key))
        project = "" if key.project == "default" else f"?project={quote_plus(key.project)}"
        metadata: dict[str, object] = {"action": action, "source": f"/1.0/instances/{key.name}{project}"}
        if self._names:
            metadata |= {"name": key.name, "project": key.project}
        if old_name is not None:
            metadata["context"] = {"old_name": old_name}
        self._send(key.project, self._render(metadata, key.project, location))

    def send_about_member(self, action: str, member: str, *, location: str | None = None) -> None:
        """Send an event about a cluster member."""
        metadata: dict[str, object] = {"action": action, "source": f"/1.0/cluster/members/{member}"}
        if self._names:
            metadata["name"] = member
        self._send("default", self._render(metadata, "default", location))

    def send_about_project(self, action: str, project: str) -> None:
        """Send an event about a project."""
        metadata: dict[str, object] = {"action": action, "source": f"/1.0/projects/{quote(project, safe='')}"}
        if self._names:
            metadata["name"] = project
        self._send(project, self._render(metadata, project, None))

    async def serve(self, listener: Listener) -> None:
        """Write a listener's events until its connection ends."""
        self._listeners.add(listener)
        writer = asyncio.create_task(self._write(listener), name="event listener")
        try:
            async for _ in listener.websocket:
                pass
        finally:
            self._listeners.discard(listener)
            writer.cancel()

    def drop_all(self) -> None:
        """Cut every listener's connection without a word."""
        for listener in tuple(self._listeners):
            listener.transport.abort()

    def mute_all(self) -> None:
        """Leave every connection open, but never send anything on it again."""
        for listener in self._listeners:
            listener.mute = True
            listener.transport.pause_reading()

    def _send(self, project: str, text: str) -> None:
        """With jitter, events overtake each other."""
        if self._jitter_s:
            delay_s = self._random.uniform(0, self._jitter_s)
            asyncio.get_running_loop().call_later(delay_s, self._deliver, project, text)
        else:
            self._deliver(project, text)

    def _deliver(self, project: str, text: str) -> None:
        for listener in tuple(self._listeners):
            if listener.mute or listener.project not in (None, project):
                continue
            try:
                listener.queue.put_nowait(text)
            except asyncio.QueueFull:
                listener.transport.abort()

    async def _write(self, listener: Listener) -> None:
        with suppress(ConnectionError):
            while True:
                try:
                    text = await asyncio.wait_for(listener.queue.get(), PING_S)
                except TimeoutError:
                    if not listener.mute:
                        await listener.websocket.ping()
                else:
                    await listener.websocket.send_str(text)

    def _render(self, metadata: dict[str, object], project: str, location: str | None) -> str:
        event = {
            "type": "lifecycle",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "metadata": metadata,
            "location": location or self.location,
            "project": project,
        }
        return msgspec.json.encode(event).decode()
