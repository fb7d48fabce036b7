"""What the server's JSON says, as values. Pure; called by both adapters and by the event stream.

Formats: doc/rest-api.yaml of Incus and of LXD. Only the fields we use are decoded, which keeps a listing of 500
instances at a few milliseconds. Whatever cannot be read becomes a ReportError that names the request.
"""

from __future__ import annotations

import re
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server.protocol import Event, Listing, Product, Project, ServerInfo, ServerInstance

T = TypeVar("T")

INFO_REQUEST = "GET /1.0"
LIST_REQUEST = "GET /1.0/instances"
INSTANCE_REQUEST = "GET /1.0/instances/NAME"
PATCH_REQUEST = "PATCH /1.0/instances/NAME"
STATE_REQUEST = "GET /1.0/instances/NAME/state"
PROJECTS_REQUEST = "GET /1.0/projects"
RESOURCES_REQUEST = "GET /1.0/resources"

# A frozen instance keeps its processes, its memory and its cgroup; "Ready" is a running instance whose guest said so.
_RUNNING = frozenset({"Running", "Ready", "Frozen"})
_SOURCE = re.compile(r"/1\.0/(?:instances|containers|virtual-machines)/([^/]+)")
_PROJECT_SOURCE = re.compile(r"/1\.0/projects/([^/]+)")


class _Envelope(msgspec.Struct):
    """What every answer is wrapped in; `metadata` is kept as JSON."""

    type: str
    metadata: msgspec.Raw = msgspec.Raw()
    error: str = ""


class _Environment(msgspec.Struct):
    server: str
    server_version: str
    server_clustered: bool = False
    server_name: str = ""


class _Info(msgspec.Struct):
    environment: _Environment
    api_extensions: frozenset[str] = frozenset()


class _Memory(msgspec.Struct):
    usage: int = 0


class _State(msgspec.Struct):
    pid: int = 0
    memory: _Memory | None = None


class _Instance(msgspec.Struct):
    name: str
    type: InstanceType
    status: str
    expanded_config: dict[str, str] | None
    config: dict[str, str] | None = None
    expanded_devices: dict[str, dict[str, str]] | None = None
    project: str = "default"
    location: str = ""
    state: _State | None = None


class _Name(msgspec.Struct):
    name: str
    project: str = "default"


class _Project(msgspec.Struct):
    name: str
    config: dict[str, str] | None = None


class _Lifecycle(msgspec.Struct):
    action: str
    source: str = ""
    project: str = ""


class _Event(msgspec.Struct):
    type: str
    metadata: msgspec.Raw
    location: str = ""
    project: str = ""


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_INFO = msgspec.json.Decoder(_Info)
_LISTING = msgspec.json.Decoder(list[msgspec.Raw])
_INSTANCE = msgspec.json.Decoder(_Instance)
_STATE = msgspec.json.Decoder(_State)
_NAME = msgspec.json.Decoder(_Name)
_PROJECTS = msgspec.json.Decoder(list[_Project])
_EVENT = msgspec.json.Decoder(_Event)
_LIFECYCLE = msgspec.json.Decoder(_Lifecycle)


def decode_metadata(body: bytes, request: str) -> bytes:
    """The `metadata` of an answer, as JSON. Raises ReportError naming the request if it is no such answer."""
    envelope = _decode(_ENVELOPE, body, request, "the server's standard answer in JSON")
    if envelope.type != "sync" or not bytes(envelope.metadata):
        what = envelope.error or f"an answer of type {envelope.type!r}"
        raise ReportError(f"{request}: expected a sync answer with metadata, got {what}: {_excerpt(body)}")
    return bytes(envelope.metadata)


def decode_done(body: bytes, request: str) -> None:
    """Check that an answer without content says that it worked. Raises ReportError naming the request."""
    envelope = _decode(_ENVELOPE, body, request, "the server's standard answer in JSON")
    if envelope.type != "sync":
        raise ReportError(f"{request}: expected a sync answer, got type {envelope.type!r}: {_excerpt(body)}")


def decode_error(body: bytes) -> str:
    """The server's own message in an error answer, or a short excerpt of whatever came instead."""
    try:
        return _ENVELOPE.decode(body).error or _excerpt(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _excerpt(body)


def decode_info(body: bytes) -> ServerInfo:
    """Who answers, from `GET /1.0`. Raises ReportError."""
    info = _decode(_INFO, decode_metadata(body, INFO_REQUEST), INFO_REQUEST, "a description of the server")
    environment = info.environment
    try:
        product = Product(environment.server)
    except ValueError:
        raise ReportError(
            f"{INFO_REQUEST}: expected environment.server to be incus or lxd, got {environment.server[:40]!r}"
        ) from None
    return ServerInfo(
        product=product,
        version=environment.server_version,
        extensions=info.api_extensions,
        member=environment.server_name or None if environment.server_clustered else None,
    )


def decode_instances(body: bytes) -> Listing:
    """All instances of a listing with recursion. A broken one becomes a problem; a broken listing a ReportError."""
    metadata = decode_metadata(body, LIST_REQUEST)
    instances, problems = [], []
    for raw in _decode(_LISTING, metadata, LIST_REQUEST, "a list of instances"):
        try:
            instances.append(_instance(_INSTANCE.decode(raw), None))
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            problems.append(f"{LIST_REQUEST}: instance {_label(raw)} cannot be read: {error}: {_excerpt(bytes(raw))}")
    return Listing(instances=tuple(instances), problems=tuple(problems))


def decode_instance(body: bytes, etag: str | None) -> ServerInstance:
    """One instance from `GET /1.0/instances/NAME`, with its state where the server sent that. Raises ReportError."""
    metadata = decode_metadata(body, INSTANCE_REQUEST)
    return _instance(_decode(_INSTANCE, metadata, INSTANCE_REQUEST, "an instance"), etag)


def decode_pid(body: bytes) -> int | None:
    """The pid from `GET /1.0/instances/NAME/state`, None when it does not run. Raises ReportError."""
    state = _decode(_STATE, decode_metadata(body, STATE_REQUEST), STATE_REQUEST, "an instance's state")
    return state.pid if state.pid > 0 else None


def decode_projects(body: bytes) -> tuple[Project, ...]:
    """The projects of a listing with recursion. Raises ReportError."""
    metadata = decode_metadata(body, PROJECTS_REQUEST)
    found = _decode(_PROJECTS, metadata, PROJECTS_REQUEST, "a list of projects")
    return tuple(Project(name=one.name, config=one.config or {}) for one in found)


def decode_event(text: bytes | str) -> Event | None:
    """A lifecycle event; None for any other message. It has a key only if it is about an instance."""
    try:
        event = _EVENT.decode(text)
        if event.type != "lifecycle":
            return None
        lifecycle = _LIFECYCLE.decode(event.metadata)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return Event(
        action=lifecycle.action,
        key=_event_key(lifecycle.source, lifecycle.project or event.project),
        location=_member(event.location),
        project=_event_project(lifecycle.source),
    )


def _event_key(source: str, project: str) -> InstanceKey | None:
    """The instance an event is about: the name is in the source, which every server version sends."""
    try:
        parts = urlsplit(source)
    except ValueError:
        return None
    match = _SOURCE.match(parts.path)
    if match is None:
        return None
    named = parse_qs(parts.query).get("project", ["default"])[0]
    return InstanceKey(project or named, unquote(match[1]))


def _event_project(source: str) -> str | None:
    """The project that an event is about as such, not the one that an instance is in."""
    match = _PROJECT_SOURCE.match(source.partition("?")[0])
    return None if match is None else unquote(match[1])


def _instance(raw: _Instance, etag: str | None) -> ServerInstance:
    state = raw.state or _State()
    usage = state.memory.usage if state.memory else 0
    return ServerInstance(
        key=InstanceKey(raw.project or "default", raw.name),
        type=raw.type,
        running=raw.status in _RUNNING,
        config=raw.expanded_config or {},
        own=raw.config or {},
        devices=raw.expanded_devices or {},
        pid=state.pid if state.pid > 0 else None,
        location=_member(raw.location),
        etag=etag,
        memory_usage=usage if usage > 0 else None,
    )


def _member(location: str) -> str | None:
    """The cluster member's name; the server says `none` outside a cluster."""
    return location if location not in ("", "none") else None


def _label(raw: msgspec.Raw) -> str:
    """What to call an instance that cannot be read."""
    try:
        named = _NAME.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return "without a name"
    return str(InstanceKey(named.project, named.name))


def _decode(decoder: msgspec.json.Decoder[T], body: bytes, request: str, expected: str) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ReportError(f"{request}: expected {expected}, got {_excerpt(body)} ({error})") from error


def _excerpt(body: bytes) -> str:
    """The beginning of an answer on one line."""
    return repr(" ".join(body[:160].decode("utf-8", "replace").split())[:80])
