"""Server JSON becomes values, and whatever else comes becomes one clear error."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.errors import ReportError
from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server import decode
from incus_numa.server.protocol import Event, Listing, Product, ServerInfo, ServerInstance

LIFECYCLE = {
    "type": "lifecycle",
    "timestamp": "2026-11-22T01:51:28Z",
    "location": "none",
    "project": "default",
    "metadata": {
        "action": "instance-started",
        "name": "c2",
        "project": "default",
        "requestor": {"username": "root"},
        "source": "/1.0/instances/c2",
    },
}


def answer(metadata: Any) -> bytes:
    return json.dumps(
        {"type": "sync", "status": "Success", "status_code": 200, "error": "", "metadata": metadata}
    ).encode()


def instance(name: str = "c1", **changes: Any) -> dict[str, Any]:
    """An instance as Incus 6.0.4 sends it, without the fields nobody reads."""
    return {
        "architecture": "x86_64",
        "config": {"limits.cpu": "2", "volatile.cpu.nodes": "0"},
        "expanded_config": {"limits.cpu": "2", "volatile.cpu.nodes": "0", "limits.cpu.nodes": "balanced"},
        "name": name,
        "status": "Running",
        "status_code": 103,
        "location": "none",
        "type": "container",
        "project": "default",
        "state": {"status": "Running", "pid": 903, "memory": {"usage": 593920, "total": 4017924000}, "network": {}},
        "snapshots": None,
    } | changes


def test_info_names_product_version_and_extensions() -> None:
    body = answer(
        {
            "api_extensions": ["etag", "numa_cpu_balanced"],
            "environment": {
                "server": "incus",
                "server_version": "6.0.4",
                "server_clustered": False,
                "server_name": "numalab",
            },
        }
    )
    assert decode.decode_info(body) == ServerInfo(
        product=Product.INCUS, version="6.0.4", extensions=frozenset({"etag", "numa_cpu_balanced"}), member=None
    )


def test_member_is_named_in_a_cluster_only() -> None:
    environment = {"server": "lxd", "server_version": "5.0.2", "server_clustered": True, "server_name": "m1"}
    info = decode.decode_info(answer({"environment": environment}))
    assert (info.product, info.member) == (Product.LXD, "m1")


def test_unknown_server_is_reported() -> None:
    body = answer({"environment": {"server": "podman", "server_version": "5"}})
    with pytest.raises(ReportError, match=r"GET /1\.0: expected environment.server to be incus or lxd, got 'podman'"):
        decode.decode_info(body)


def test_instance_carries_state_and_etag() -> None:
    assert decode.decode_instance(answer(instance(location="m1")), "e1") == ServerInstance(
        key=InstanceKey("default", "c1"),
        type=InstanceType.CONTAINER,
        running=True,
        config={"limits.cpu": "2", "volatile.cpu.nodes": "0", "limits.cpu.nodes": "balanced"},
        own={"limits.cpu": "2", "volatile.cpu.nodes": "0"},
        pid=903,
        location="m1",
        etag="e1",
        memory_usage=593920,
    )


@pytest.mark.parametrize(
    ("status", "running"),
    [("Running", True), ("Ready", True), ("Frozen", True), ("Stopped", False), ("Error", False), ("Starting", False)],
)
def test_running_follows_the_status(status: str, running: bool) -> None:
    assert decode.decode_instance(answer(instance(status=status)), None).running is running


@pytest.mark.parametrize(("pid", "expected"), [(903, 903), (0, None), (-1, None)])
def test_pid_is_known_while_it_runs(pid: int, expected: int | None) -> None:
    assert decode.decode_pid(answer({"pid": pid, "memory": {"usage": 1}, "network": {}})) == expected


@pytest.mark.parametrize("state", [None, {"pid": 0, "memory": {"usage": 0}}, {"pid": -1, "memory": None}])
def test_stopped_instance_has_no_pid_and_no_usage(state: Any) -> None:
    stopped = decode.decode_instance(answer(instance(status="Stopped", state=state)), None)
    assert (stopped.running, stopped.pid, stopped.memory_usage) == (False, None, None)


def test_instance_without_any_key_is_read() -> None:
    read = decode.decode_instance(answer(instance(config=None, expanded_config=None)), None)
    assert (read.config, read.own) == ({}, {})


@pytest.mark.parametrize(
    "broken",
    [
        {"name": "bad"},
        instance("bad", type="unikernel"),
        instance("bad", expanded_config={"limits.cpu": 4}),
        instance("bad", expanded_config=[]),
        {key: value for key, value in instance("bad").items() if key != "status"},
        instance("bad", state={"pid": "903"}),
    ],
)
def test_broken_instance_is_named_and_hides_no_other(broken: dict[str, Any]) -> None:
    listing = decode.decode_instances(answer([instance("c1"), broken, instance("c3")]))
    assert [one.key.name for one in listing.instances] == ["c1", "c3"]
    assert len(listing.problems) == 1
    assert listing.problems[0].startswith("GET /1.0/instances: instance bad cannot be read: ")


@pytest.mark.parametrize("broken", [None, 7, "text", [], {}])
def test_nameless_instance_hides_no_other(broken: Any) -> None:
    listing = decode.decode_instances(answer([broken, instance("c3")]))
    assert [one.key.name for one in listing.instances] == ["c3"]
    assert listing.problems[0].startswith("GET /1.0/instances: instance without a name cannot be read: ")


def test_empty_listing_is_empty() -> None:
    assert decode.decode_instances(answer([])) == Listing()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>502 Bad Gateway</body></html>",
        b"[]",
        b"{}",
        b'{"type":"sync"}',
        b'{"type":"sync","metadata":',
        b'{"type":"sync","metadata":"text"}',
        b'{"type":"sync","metadata":null}',
        b'{"type":"async","metadata":[]}',
        b'{"type":"error","error":"something broke","metadata":null}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
@pytest.mark.parametrize(
    ("read", "request_name"),
    [
        (decode.decode_info, "GET /1.0"),
        (decode.decode_instances, "GET /1.0/instances"),
        (lambda body: decode.decode_instance(body, None), "GET /1.0/instances/NAME"),
        (decode.decode_pid, "GET /1.0/instances/NAME/state"),
    ],
)
def test_anything_else_is_reported_with_request_and_excerpt(body: bytes, read: Any, request_name: str) -> None:
    with pytest.raises(ReportError) as error:
        read(body)
    text = str(error.value)
    assert text.startswith(f"{request_name}: expected ")
    assert len(text) < 400


def test_html_is_shown_in_the_error() -> None:
    with pytest.raises(ReportError, match="502 Bad Gateway"):
        decode.decode_instances(b"<html>\n<body>502 Bad Gateway</body></html>")


def test_answer_to_a_change_needs_no_metadata() -> None:
    decode.decode_done(b'{"type":"sync","status_code":200}', "PATCH x")
    with pytest.raises(ReportError, match="PATCH x: expected the server's standard answer"):
        decode.decode_done(b"<html>", "PATCH x")


def test_event_names_action_and_instance() -> None:
    assert decode.decode_event(json.dumps(LIFECYCLE)) == Event(
        action="instance-started", key=InstanceKey("default", "c2"), location=None
    )


@pytest.mark.parametrize(
    ("source", "project", "key"),
    [
        ("/1.0/instances/c2?project=web", "", InstanceKey("web", "c2")),
        ("/1.0/instances/c2", "web", InstanceKey("web", "c2")),
        ("/1.0/containers/c2", "", InstanceKey("default", "c2")),
        ("/1.0/instances/c2/snapshots/s0", "", InstanceKey("default", "c2")),
        ("/1.0/projects/web", "web", None),
        ("http://[", "", None),
        ("", "", None),
    ],
)
def test_event_source_names_the_instance(source: str, project: str, key: InstanceKey | None) -> None:
    metadata = {"action": "instance-updated", "source": source, "project": project}
    event = decode.decode_event(json.dumps({"type": "lifecycle", "location": "m2", "metadata": metadata}))
    assert event is not None
    assert replace(event, project=None) == Event(action="instance-updated", key=key, location="m2")


@pytest.mark.parametrize(
    ("source", "project"),
    [
        ("/1.0/projects/web", "web"),
        ("/1.0/projects/a%26b%20c", "a&b c"),
        ("/1.0/projects/web?x=1", "web"),
        ("/1.0/projects/", None),
        ("/1.0/projects", None),
        ("/1.0/instances/c2?project=web", None),
        ("", None),
    ],
)
def test_event_about_a_project_names_it(source: str, project: str | None) -> None:
    metadata = {"action": "project-updated", "source": source, "project": "default"}
    event = decode.decode_event(json.dumps({"type": "lifecycle", "project": "default", "metadata": metadata}))
    assert event is not None
    assert event.project == project


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '{"type":"logging","metadata":{}}', '{"type":"lifecycle","metadata":[]}', "[" * 100_000],
)
def test_message_that_is_no_lifecycle_event_is_none(text: str) -> None:
    assert decode.decode_event(text) is None


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_message_raises(message: bytes | str) -> None:
    decode.decode_event(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(instance())), JSON, max_size=6))
def test_any_value_in_an_instance_hides_no_other(changes: dict[str, Any]) -> None:
    listing = decode.decode_instances(answer([instance("c1"), instance("x") | changes, instance("c3")]))
    assert len(listing.instances) + len(listing.problems) == 3
    assert [one.key.name for one in (listing.instances[0], listing.instances[-1])] == ["c1", "c3"]
