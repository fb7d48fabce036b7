"""The machine document: its exact shape, what may be left out, and every problem found at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.errors import ConfigError
from incus_numa.model.machine import CoreKind, Cpu, Machine, Node
from incus_numa.topology import document
from tests.builders import GIB, MACHINES, load_machine, machine

BROKEN = MACHINES / "overlapping-nodes.json"
"""What `topology` prints of a machine whose kernel gives CPUs to several nodes."""

SMALL: dict[str, Any] = {
    "name": "small",
    "nodes": [
        {"id": 0, "cpus": "0-1", "memory_bytes": GIB, "free_bytes": None, "distances": {"0": 10, "4": 20}},
        {"id": 4, "cpus": "", "memory_bytes": None, "free_bytes": None, "distances": {}},
    ],
    "cpus": [
        {"id": 0, "node": 0, "socket": 0, "core": 0, "l3": 0},
        {"id": 1, "node": 0, "socket": 0, "core": 0, "l3": 0},
        {"id": 5, "node": None, "socket": None, "core": 5, "l3": None},
    ],
    "online": "0-1,5",
    "isolated": "5,7",
    "warnings": ["CPU 5 belongs to no node"],
}


def changed(**changes: Any) -> str:
    return json.dumps({key: value for key, value in (SMALL | changes).items() if value is not ...})


def problems_of(text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        document.parse_machine(text)
    assert all(problem.startswith("machine document: ") for problem in caught.value.problems)
    return [problem.removeprefix("machine document: ") for problem in caught.value.problems]


def test_document_is_read_into_values() -> None:
    assert document.parse_machine(json.dumps(SMALL)) == Machine(
        name="small",
        nodes=(
            Node(id=0, cpus=CpuSet((0, 1)), memory_bytes=GIB, free_bytes=None, distances={0: 10, 4: 20}),
            Node(id=4, cpus=CpuSet()),
        ),
        cpus=(
            Cpu(id=0, node=0, socket=0, core=0, l3=0),
            Cpu(id=1, node=0, socket=0, core=0, l3=0),
            Cpu(id=5, node=None, socket=None, core=5, l3=None),
        ),
        online=CpuSet((0, 1, 5)),
        isolated=CpuSet((5, 7)),
        warnings=("CPU 5 belongs to no node",),
    )


def test_document_is_rendered_in_the_documented_order() -> None:
    rendered = document.render_machine(document.parse_machine(json.dumps(SMALL)))
    assert json.dumps(rendered) == json.dumps(SMALL)


def test_offline_cpus_are_told_where_there_are_any() -> None:
    read = document.parse_machine(changed(offline="2-4,6"))
    assert read.offline == CpuSet.parse("2-4,6")
    assert document.render_machine(read) == SMALL | {"offline": "2-4,6"}
    assert list(document.render_machine(read))[-3:] == ["isolated", "offline", "warnings"]


def test_order_of_entries_does_not_matter() -> None:
    shuffled = changed(nodes=SMALL["nodes"][::-1], cpus=SMALL["cpus"][::-1])
    assert document.parse_machine(shuffled) == document.parse_machine(json.dumps(SMALL))


def test_unknown_fields_are_ignored() -> None:
    assert document.parse_machine(changed(comment="mine")) == document.parse_machine(json.dumps(SMALL))


@pytest.mark.parametrize("cpus", [None, ...])
def test_without_cpus_every_cpu_is_its_own_core(cpus: Any) -> None:
    nodes = [{"id": 0, "cpus": "0-1"}, {"id": 1, "cpus": "2"}]
    read = document.parse_machine(changed(nodes=nodes, cpus=cpus, online="0-2,9"))
    assert read.cpus == (
        Cpu(id=0, node=0, socket=None, core=0, l3=None),
        Cpu(id=1, node=0, socket=None, core=1, l3=None),
        Cpu(id=2, node=1, socket=None, core=2, l3=None),
        Cpu(id=9, node=None, socket=None, core=9, l3=None),
    )


def test_smallest_document_is_a_list_of_nodes() -> None:
    assert document.parse_machine(b'{"nodes": [{"id": 3, "cpus": "0-1"}]}') == Machine(
        nodes=(Node(id=3, cpus=CpuSet((0, 1))),),
        cpus=tuple(Cpu(id=cpu, node=3, socket=None, core=cpu, l3=None) for cpu in range(2)),
        online=CpuSet((0, 1)),
    )


def test_without_online_all_listed_cpus_are() -> None:
    assert document.parse_machine(changed(online=...)).online == CpuSet((0, 1, 5))


def test_cores_and_caches_are_named_by_their_lowest_cpu() -> None:
    cpus = [{"id": cpu, "node": 0, "socket": 0, "core": 70 + cpu % 2, "l3": 9} for cpu in range(4)]
    read = document.parse_machine(changed(nodes=[{"id": 0, "cpus": "0-3"}], cpus=cpus, online="0-3"))
    assert [(cpu.core, cpu.l3) for cpu in read.cpus] == [(0, 0), (1, 0), (0, 0), (1, 0)]


def test_cpus_in_several_nodes_are_refused_with_their_nodes() -> None:
    text = b'{"nodes": [{"id": 2, "cpus": "0-1"}, {"id": 1, "cpus": "1-3"}, {"id": 7, "cpus": "2-3"}]}'
    assert problems_of(text) == [
        "cpu 1 is in nodes 1, 2: a cpu belongs to one node",
        "cpus 2-3 are in nodes 1, 7: a cpu belongs to one node",
    ]


def test_a_machine_with_broken_tables_is_no_machine_to_plan_for() -> None:
    assert problems_of(BROKEN.read_bytes()) == [
        "cpus 16-19 are in nodes 4, 5: a cpu belongs to one node",
        "cpus 20-23 are in nodes 3, 4, 5: a cpu belongs to one node",
    ]


def test_huge_pages_and_kinds_of_cores_are_told_where_there_are_any() -> None:
    pages = {"2097152": 1 << 21, "1073741824": 0}
    nodes = [SMALL["nodes"][0] | {"hugepages": pages}, SMALL["nodes"][1] | {"hugepages": {}}]
    cpus = [
        SMALL["cpus"][0] | {"kind": "performance"},
        SMALL["cpus"][1] | {"kind": "performance"},
        SMALL["cpus"][2] | {"kind": "efficiency"},
    ]
    read = document.parse_machine(changed(nodes=nodes, cpus=cpus))
    assert [node.hugepages for node in read.nodes] == [{1 << 21: 1 << 21}, {}]
    assert [cpu.kind for cpu in read.cpus] == [CoreKind.PERFORMANCE, CoreKind.PERFORMANCE, CoreKind.EFFICIENCY]
    rendered = document.render_machine(read)
    assert rendered["cpus"] == cpus
    assert rendered["nodes"] == [SMALL["nodes"][0] | {"hugepages": {"2097152": 1 << 21}}, SMALL["nodes"][1]]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"nodes": [*SMALL["nodes"], {"id": 4}]}, "node 4 appears 2 times"),
        ({"cpus": [*SMALL["cpus"], SMALL["cpus"][2]]}, "cpu 5 appears 2 times"),
        ({"online": "0-1,5,8"}, "online cpus 8 are not in cpus"),
        ({"online": "0-1"}, "cpus 5 are not in online"),
        ({"offline": "1-3"}, "cpus 1 are in online and in offline"),
        ({"offline": "0-x"}, "offline: bad cpuset element '0-x' in '0-x'"),
        ({"online": "0-x"}, "online: bad cpuset element '0-x' in '0-x'"),
        ({"isolated": "^1"}, "isolated: bad cpuset element '^1' in '^1'"),
        ({"nodes": [SMALL["nodes"][0]]}, "node 0 has a distance to node 4, which is not in nodes"),
        (
            {"nodes": [{"id": 0, "cpus": "0-1"}, {"id": 4, "cpus": "x"}]},
            "cpus of node 4: bad cpuset element 'x' in 'x'",
        ),
        ({"nodes": [{"id": 0, "cpus": "0-1,6"}]}, "node 0 lists cpus 6, which are not online"),
        ({"nodes": [{"id": 0, "cpus": "0-1,5"}]}, "cpu 5 has no node, but a node lists it"),
        ({"nodes": [{"id": 0, "cpus": "0"}]}, "cpu 1 is in node 0, which does not list it"),
        ({"nodes": [{"id": -1}]}, "nodes[0]: Expected `int` >= 0 - at `$.id`"),
        ({"nodes": [{"id": 0, "memory_bytes": -1}]}, "nodes[0]: Expected `int` >= 0 - at `$.memory_bytes`"),
        ({"nodes": [{"id": 0, "distances": {"0": 0}}]}, "nodes[0]: Expected `int` >= 1 - at `$.distances[...]`"),
        ({"nodes": [{"cpus": "0"}]}, "nodes[0]: Object missing required field `id`"),
        ({"nodes": 3}, "Expected `array`, got `int` - at `$.nodes`"),
        ({"nodes": ...}, "Object missing required field `nodes`"),
        (
            {"nodes": [SMALL["nodes"][0] | {"distances": {"4": 20}}, SMALL["nodes"][1]]},
            "node 0 has distances but none to itself: expected 10",
        ),
        (
            {"nodes": [SMALL["nodes"][0] | {"distances": {"0": 20}}]},
            "node 0 has the distance 20 to itself: expected 10",
        ),
        (
            {"nodes": [SMALL["nodes"][0] | {"distances": {"0": 10**9}}]},
            "nodes[0]: Expected `int` <= 999999999 - at `$.distances[...]`",
        ),
        (
            {"nodes": [{"id": 0, "memory_bytes": 1 << 63}]},
            "nodes[0]: Expected `int` <= 9223372036854775807 - at `$.memory_bytes`",
        ),
        (
            {"nodes": [{"id": 0, "cpus": "0-1", "hugepages": {"2000000": 2000000}}]},
            "hugepages of node 0: 2000000 is no page size: expected bytes, a power of two such as 2097152",
        ),
        (
            {"nodes": [{"id": 0, "cpus": "0-1", "hugepages": {"2097152": 5}}]},
            "hugepages of node 0: 5 bytes are no whole number of pages of 2097152 bytes",
        ),
        (
            {"nodes": [{"id": 0, "cpus": "0-1", "memory_bytes": 4096, "hugepages": {"4096": 8192}}]},
            "node 0 has 8192 bytes in huge pages, but 4096 bytes of memory",
        ),
        (
            {"nodes": [{"id": 0, "hugepages": {"2097152": -1}}]},
            "nodes[0]: Expected `int` >= 0 - at `$.hugepages[...]`",
        ),
        (
            {"cpus": [SMALL["cpus"][0] | {"kind": "fast"}, *SMALL["cpus"][1:]]},
            "cpus[0]: Invalid enum value 'fast' - at `$.kind`",
        ),
        ({"cpus": [{"id": 0}]}, "cpus[0]: Object missing required field `core`"),
        ({"cpus": [{"id": 70000, "core": 0}]}, "cpus[0]: Expected `int` <= 65535 - at `$.id`"),
    ],
)
def test_mistake_is_one_problem_that_names_it(changes: dict[str, Any], problem: str) -> None:
    assert problems_of(changed(**changes)) == [problem]


def test_cpu_of_an_unlisted_node_is_named() -> None:
    nodes = [{"id": 4, "cpus": "0-1"}]
    assert problems_of(changed(nodes=nodes)) == [
        "cpu 0 is in node 0, which is not in nodes",
        "cpu 1 is in node 0, which is not in nodes",
    ]


def test_core_numbers_counted_per_socket_are_refused() -> None:
    cpus = [{"id": cpu, "node": 0, "socket": cpu, "core": 0} for cpu in range(2)]
    found = problems_of(changed(nodes=[{"id": 0, "cpus": "0-1"}], cpus=cpus, online="0-1"))
    assert found == ["core 0 is in sockets 0, 1: name it by its lowest cpu id"]


def test_all_problems_are_told_at_once() -> None:
    nodes = [{"id": 0, "cpus": "0-1"}, {"id": 0, "cpus": "z"}, {"id": 1, "free_bytes": -4}]
    cpus = [{"id": 0, "core": 0, "node": 0}, {"id": 0, "core": 0, "node": 0}, {"id": "one"}]
    assert problems_of(changed(nodes=nodes, cpus=cpus, online="?", isolated="!")) == [
        "cpus of node 0: bad cpuset element 'z' in 'z'",
        "nodes[2]: Expected `int` >= 0 - at `$.free_bytes`",
        "cpus[2]: Expected `int`, got `str` - at `$.id`",
        "isolated: bad cpuset element '!' in '!'",
        "online: bad cpuset element '?' in '?'",
        "node 0 appears 2 times",
        "cpu 0 appears 2 times",
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", b"\xff\xfe", '"x"', "[" * 100_000, "\ud800", b'{"name":"\xff"}']
)
def test_what_is_no_document_is_one_problem(text: str | bytes) -> None:
    assert len(problems_of(text)) == 1


@pytest.mark.parametrize("path", sorted(set(MACHINES.glob("*.json")) - {BROKEN}), ids=lambda path: path.stem)
def test_stored_machines_are_canonical(path: Path) -> None:
    read = load_machine(path.stem)
    assert read.name == path.stem
    assert document.render_machine(read) == json.loads(path.read_bytes())


def test_incus_1605_is_24_nodes_of_8_cores_in_two_sockets() -> None:
    host = load_machine("incus1605")
    assert [len(node.cpus) for node in host.nodes] == [16] * 24
    assert (len({cpu.core for cpu in host.cpus}), len({cpu.l3 for cpu in host.cpus})) == (192, 24)
    assert {node.id: {cpu.socket for cpu in host.cpus if cpu.node == node.id} for node in host.nodes} == {
        node: {node // 12} for node in range(24)
    }
    assert sorted({distance for node in host.nodes for distance in node.distances.values()}) == [10, 11, 12, 32]


def test_built_machine_is_valid() -> None:
    built = machine(nodes=3, cpus_per_node=6, threads=2, isolated="2")
    assert document.parse_machine(json.dumps(document.render_machine(built))) == built
