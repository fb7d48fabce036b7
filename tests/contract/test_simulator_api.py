"""The simulated API answers in the shapes that clients of Incus and LXD rely on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pylxd

from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.server.protocol import Product
from tests.contract.simulated import LOCKED, QUICK, host


async def test_server_tells_its_product_and_extensions() -> None:
    async with host() as h:
        answer = await h.call("GET", "/1.0")
        assert answer.body["type"] == "sync"
        assert answer.metadata["auth"] == "trusted"
        assert answer.metadata["environment"]["server"] == "incus"
        assert {"numa_cpu_placement", "numa_cpu_balanced", "container_full"} <= set(answer.metadata["api_extensions"])


async def test_lxd_has_no_balanced_extension() -> None:
    async with host(replace(QUICK, product=Product.LXD)) as h:
        answer = await h.call("GET", "/1.0")
        assert answer.metadata["environment"]["server"] == "lxd"
        assert "numa_cpu_balanced" not in answer.metadata["api_extensions"]


async def test_instance_with_recursion_has_state_and_the_same_etag() -> None:
    async with host() as h:
        key = h.simulator.create("c1", {"limits.cpu": "2"})
        await h.simulator.start(key)
        plain = await h.call("GET", "/1.0/instances/c1")
        full = await h.call("GET", "/1.0/instances/c1", recursion="1")
        assert "state" not in plain.metadata
        assert full.metadata["state"]["pid"] == h.simulator.incus.get(key).pid
        assert full.metadata["state"]["memory"]["usage"] == 64 << 20
        assert plain.etag == full.etag
        assert plain.etag is not None


async def test_listing_without_all_projects_shows_one_project() -> None:
    async with host(replace(QUICK, projects={"web": {}})) as h:
        h.simulator.create("c1")
        h.simulator.create("c2", project="web")
        default = await h.call("GET", "/1.0/instances", recursion="1")
        web = await h.call("GET", "/1.0/instances", recursion="2", project="web")
        everything = await h.call("GET", "/1.0/instances", all_projects="true")
        assert [one["name"] for one in default.metadata] == ["c1"]
        assert [one["name"] for one in web.metadata] == ["c2"]
        assert everything.metadata == ["/1.0/instances/c1", "/1.0/instances/c2?project=web"]


async def test_profiles_are_part_of_the_expanded_config_only() -> None:
    async with host(replace(QUICK, profiles={"numa": {"limits.cpu.nodes": "balanced"}})) as h:
        h.simulator.create("c1", {"limits.cpu": "2"}, profiles=("default", "numa"))
        answer = await h.call("GET", "/1.0/instances/c1")
        assert "limits.cpu.nodes" not in answer.metadata["config"]
        assert answer.metadata["expanded_config"] == {"limits.cpu": "2", "limits.cpu.nodes": "balanced"}


async def test_unknown_instance_is_404_with_the_error_envelope() -> None:
    async with host() as h:
        answer = await h.call("GET", "/1.0/instances/nothing")
        assert answer.status == 404
        assert answer.body["type"] == "error"
        assert answer.body["error"] == "Instance not found"
        assert answer.body["error_code"] == 404


async def test_life_of_an_instance_through_the_api() -> None:
    async with host() as h:
        body = {"name": "c1", "type": "container", "config": {"limits.cpu": "2"}}
        assert (await h.call("POST", "/1.0/instances", json=body)).status == 202
        started = await h.call("PUT", "/1.0/instances/c1/state", json={"action": "start"})
        assert started.status == 202
        assert started.body["type"] == "async"
        ended = await h.call("GET", f"{started.body['operation']}/wait")
        assert ended.metadata["status_code"] == 200
        assert (await h.call("GET", "/1.0/instances/c1/state")).metadata["status"] == "Running"
        stopped = await h.call("PUT", "/1.0/instances/c1/state", json={"action": "stop"})
        await h.call("GET", f"{stopped.body['operation']}/wait")
        assert (await h.call("DELETE", "/1.0/instances/c1")).status == 202
        assert (await h.call("GET", "/1.0/instances")).metadata == []


async def test_operation_that_fails_says_why() -> None:
    async with host() as h:
        h.simulator.create("c1")
        operation = (await h.call("PUT", "/1.0/instances/c1/state", json={"action": "stop"})).body["operation"]
        ended = await h.call("GET", f"{operation}/wait")
        assert ended.metadata["status_code"] == 400
        assert ended.metadata["err"] == "The instance is already stopped"


async def test_resources_name_nodes_of_threads_and_memory() -> None:
    async with host() as h:
        resources = (await h.call("GET", "/1.0/resources")).metadata
        threads = {
            thread["id"]: thread["numa_node"]
            for socket in resources["cpu"]["sockets"]
            for core in socket["cores"]
            for thread in core["threads"]
        }
        assert threads == {cpu.id: cpu.node for cpu in h.simulator.machine.cpus}
        assert [node["numa_node"] for node in resources["memory"]["nodes"]] == [0, 1, 2, 3]
        assert resources["cpu"]["total"] == 16


async def test_pylxd_connects_lists_and_patches() -> None:
    async with host() as h:
        key = h.simulator.create("c1", {"limits.cpu": "2", "limits.cpu.nodes": "balanced"})
        await h.simulator.start(key)

        def use_pylxd() -> list[Any]:
            client = pylxd.Client(endpoint=str(h.simulator.socket_path))
            assert client.trusted
            listed = client.api.instances.get(params={"recursion": 2, "all-projects": "true"}).json()["metadata"]
            instance = client.api.instances["c1"]
            etag = instance.get(params={"recursion": 1}).headers["ETag"]
            config = {"config": {"volatile.cpu.nodes": "3"}}
            instance.patch(json=config, headers={"If-Match": etag}, params={"project": "default"})
            client.api.session.close()
            return [one["name"] for one in listed]

        assert await asyncio.to_thread(use_pylxd) == ["c1"]
        assert str(h.nodes(key)) == "3"


async def test_requests_are_counted_by_kind_and_instance() -> None:
    async with host() as h:
        key = h.simulator.create("c1")
        await h.call("GET", "/1.0/instances", recursion="2")
        await h.call("GET", "/1.0/instances/c1", recursion="1")
        await h.call("PATCH", "/1.0/instances/c1", json={"config": {"user.a": "1"}})
        await h.call("POST", "/simulator/start", json={"name": "c1"})
        measured = h.simulator.measurements
        assert measured.calls == {"GET instances": 1, "GET instance": 1, "PATCH instance": 1}
        assert measured.calls_by_instance == {key: {"GET instance": 1, "PATCH instance": 1}}


async def test_marks_tell_the_order_of_a_start() -> None:
    async with host(replace(QUICK, balances=False)) as h:
        key = h.simulator.create("c1")
        await h.simulator.start(key)
        assert [mark.what for mark in h.simulator.measurements.marks[key]] == [
            "instance-created",
            "locked",
            "instance-started",
            "released",
        ]


async def test_measurements_can_be_read_from_another_process() -> None:
    async with host() as h:
        body = {"name": "c1", "config": {"limits.cpu": "1"}}
        await h.call("POST", "/simulator/create", json=body)
        await h.call("POST", "/simulator/start", json={"name": "c1"})
        await h.call("POST", "/simulator/balanced")
        async with h.session.get("http://incus/simulator/measurements") as response:
            measured = await response.json()
        assert "balance" in [what for _, what, _ in measured["marks"]["default/c1"]]
        assert measured["calls"] == {}


async def test_virtual_machine_has_a_process_and_no_cgroup() -> None:
    async with host() as h:
        key = h.simulator.create("vm1", {"limits.cpu": "3"}, kind=InstanceType.VIRTUAL_MACHINE)
        await h.simulator.start(key)
        pid = (await h.call("GET", "/1.0/instances/vm1/state")).metadata["pid"]
        tasks = sorted(path.name for path in (h.simulator.procfs / str(pid) / "task").iterdir())
        threads = h.simulator.vm_threads(key)
        assert tasks == [str(tid) for tid in sorted({*threads.vcpus, *threads.others})]
        assert (len(threads.vcpus), pid in threads.others) == (3, True)
        assert not h.path(key, "").exists()


async def test_locked_instance_is_not_found_under_another_project() -> None:
    async with host(replace(LOCKED, projects={"web": {}})) as h:
        h.simulator.create("c1", project="web")
        assert (await h.call("GET", "/1.0/instances/c1")).status == 404
        assert (await h.call("GET", "/1.0/instances/c1", project="web")).metadata["project"] == "web"
        assert InstanceKey("web", "c1") in h.simulator.incus.records
