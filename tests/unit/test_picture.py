"""The picture of a machine: everything is in it, it is well-formed, and it refers to nothing outside."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.facts.picture import MOST_CHIPS, list_packages, render_picture
from incus_numa.model.machine import Machine, Node
from tests import builders

SVG = "{http://www.w3.org/2000/svg}"


def row(
    name: str, nodes: str | None, cpus: str | None, state: str = "placed", project: str = "default"
) -> dict[str, Any]:
    """An instance with a vCPU for each CPU that it has."""
    vcpus = len(CpuSet.parse(cpus)) if cpus else 1
    return {"project": project, "name": name, "nodes": nodes, "cpus": cpus, "state": state, "vcpus": vcpus}


def drawn(machine: Machine, *instances: dict[str, Any], loads: dict[int, float] | None = None) -> ElementTree.Element:
    nodes = [{"node": node, "load": load} for node, load in (loads or {}).items()]
    return ElementTree.fromstring(render_picture(machine, nodes, instances))


def classes_of_cpus(root: ElementTree.Element) -> dict[int, str]:
    found = {}
    for rect in root.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None and (text := re.match(r"CPU (\d+)", title.text or "")):
            found[int(text[1])] = rect.attrib["class"]
    return found


def titles_of_cpus(root: ElementTree.Element) -> list[str]:
    return [text for one in root.iter(f"{SVG}title") if (text := one.text or "").startswith("CPU ")]


def texts(root: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in root.iter(f"{SVG}text")]


def test_every_cpu_is_drawn_once_with_what_is_claimed_of_it() -> None:
    machine = builders.machine(nodes=2, cpus_per_node=4, isolated="7")
    root = drawn(machine, row("a", "0", "0-1"), row("b", "0", "1-2"), row("part", "1", "4-5") | {"vcpus": 1})
    found = classes_of_cpus(root)
    assert [found[cpu] for cpu in range(8)] == ["c2", "c3", "c2", "c0", "c1", "c1", "c0", "isolated"]
    assert titles_of_cpus(root) == [
        *("CPU 0: 1.00 vCPUs of 1 instance", "CPU 1: 2.00 vCPUs of 2 instances", "CPU 2: 1.00 vCPUs of 1 instance"),
        *("CPU 3: 0.00 vCPUs of 0 instances", "CPU 4: 0.50 vCPUs of 1 instance", "CPU 5: 0.50 vCPUs of 1 instance"),
        *("CPU 6: 0.00 vCPUs of 0 instances", "CPU 7: isolated, 0.00 vCPUs of 0 instances"),
    ]


def test_an_instance_without_a_list_of_cpus_counts_on_those_of_its_nodes() -> None:
    machine = builders.machine(nodes=3, cpus_per_node=4, isolated="4")
    root = drawn(machine, row("vm", "0-1,9", None) | {"vcpus": 7})
    assert list(classes_of_cpus(root).values()) == ["c2"] * 4 + ["isolated"] + ["c2"] * 3 + ["c0"] * 4


def test_an_instance_without_a_limit_claims_nothing_and_is_not_shown_where_it_may_run_everywhere() -> None:
    machine = builders.machine(nodes=2, cpus_per_node=2, isolated="3")
    idle = row("idle", None, "0-3", "unmanaged") | {"vcpus": None}
    full, near = row("full", "0", "0-1"), row("near", "0", "0-1") | {"vcpus": None}
    assert classes_of_cpus(drawn(machine, idle)) == {0: "c0", 1: "c0", 2: "c0", 3: "isolated"}
    assert classes_of_cpus(drawn(machine, idle, near)) == {0: "c1", 1: "c1", 2: "c0", 3: "isolated"}
    root = drawn(machine, idle, full, near)
    assert classes_of_cpus(root) == {0: "c2", 1: "c2", 2: "c0", 3: "isolated"}
    assert titles_of_cpus(root)[0] == "CPU 0: 1.00 vCPUs of 1 instance, 1 instance without limits.cpu"


def test_cpus_that_are_offline_are_drawn_apart() -> None:
    many = replace(builders.machine(nodes=1, cpus_per_node=2), offline=CpuSet(range(2, 200)))
    root = drawn(many)
    cells = [
        one for one in root.iter(f"{SVG}rect") if one.get("class") == "offline" and one.find(f"{SVG}title") is not None
    ]
    assert len({(one.attrib["x"], one.attrib["y"]) for one in cells}) == 198
    assert "offline, node unknown: CPUs 2-199" in texts(root)
    assert all(float(one.attrib["y"]) + 11 <= float(root.attrib["height"]) for one in cells)
    assert titles_of_cpus(root)[-1] == "CPU 199: offline"
    assert not [one for one in texts(drawn(builders.machine(nodes=1))) if "node unknown" in one]


def test_no_text_of_a_card_lies_on_another_or_leaves_the_card() -> None:
    odd = Node(id=1023, cpus=CpuSet(range(0, 192, 2)), memory_bytes=1055178752, free_bytes=833408205)
    machine = replace(builders.machine(nodes=1, cpus_per_node=192), nodes=(odd,))
    root = drawn(machine, loads={1023: 12.25})
    card = next(root.iter(f"{SVG}g"))
    width = float(card[0].attrib["width"])
    lines = Counter(one.attrib["y"] for one in card.iter(f"{SVG}text"))
    assert set(lines.values()) == {1}
    assert "794.8 MiB of 1006.3 MiB free" in texts(card)
    assert all(len(text) * 6 < width for text in texts(card))


def test_no_two_cpus_and_no_two_cards_lie_on_each_other() -> None:
    root = drawn(builders.machine(nodes=9, cpus_per_node=96, threads=4, nodes_per_socket=3))
    places = Counter(
        (one.attrib.get("x"), one.attrib.get("y"))
        for one in root.iter(f"{SVG}rect")
        if one.find(f"{SVG}title") is not None
    )
    assert set(places.values()) == {1}
    height = float(root.attrib["height"])
    for one in root.iter(f"{SVG}rect"):
        assert float(one.get("x", "0")) + float(one.attrib["width"]) <= 960
        assert float(one.get("y", "0")) + float(one.attrib["height"]) <= height


def test_an_instance_is_on_each_of_its_nodes_with_its_state() -> None:
    machine = builders.machine(nodes=3)
    root = drawn(
        machine, row("db", "0,2", "0,8"), row("x", "1", None, "refused: no-memory", "ci"), row("lost", None, None)
    )
    names = [one for one in texts(root) if one.startswith(("db", "ci/x"))]
    assert names == ["db on 0,2", "ci/x", "db on 0,2"]
    assert [one.attrib["class"] for one in root.iter(f"{SVG}rect") if one.get("rx") == "2"] == [
        "placed",
        "refused",
        "placed",
    ]
    assert "on no known node: lost" in texts(root)


def test_of_many_instances_on_a_node_the_number_is_told() -> None:
    many = [row(f"c{number}", "0", "0") for number in range(MOST_CHIPS + 3)]
    shown = texts(drawn(builders.machine(nodes=1), *many))
    assert shown[-1] == "and 3 more"
    assert len([one for one in shown if re.fullmatch(r"c\d+", one)]) == MOST_CHIPS


def test_loads_memory_and_what_is_unknown_are_told() -> None:
    machine = builders.machine(nodes=2)
    bare = replace(machine, nodes=(*machine.nodes, Node(id=5, cpus=CpuSet())))
    shown = texts(drawn(bare, loads={0: 0.5}))
    assert "CPUs 0-3, load 0.50" in shown
    assert "CPUs 4-7" in shown
    assert shown.count("24 GiB of 32 GiB free") == 2
    start = shown.index("memory without CPUs")
    assert shown[start : start + 5] == ["memory without CPUs", "node 5", "no CPUs", "memory unknown", "distances"]


def test_nodes_are_by_socket_and_those_without_cpus_last() -> None:
    machine = builders.machine(nodes=4, nodes_per_socket=2)
    bare = replace(machine, nodes=(Node(id=9, cpus=CpuSet()), *machine.nodes))
    found = [(one.heading, [node.id for node in one.nodes]) for one in list_packages(bare)]
    assert found == [("socket 0", [0, 1]), ("socket 1", [2, 3]), ("memory without CPUs", [9])]


def distances_of(root: ElementTree.Element) -> dict[tuple[int, int], str]:
    """Each pair of nodes with the distance that its cell tells."""
    found: dict[tuple[int, int], str] = {}
    for title in root.iter(f"{SVG}title"):
        if told := re.fullmatch(r"node (\d+) to nodes? ([0-9,-]+): (\w+)", title.text or ""):
            found |= {(int(told[1]), other): told[3] for other in NodeSet.parse(told[2])}
    return found


def expected_of(machine: Machine) -> dict[tuple[int, int], str]:
    return {
        (node.id, other.id): str(node.distances.get(other.id, "unknown"))
        for node in machine.nodes
        for other in machine.nodes
    }


@pytest.mark.parametrize("nodes", [2, 24, 42, 43, 64, 128])
def test_every_distance_is_in_the_map_with_its_number_where_there_is_room(nodes: int) -> None:
    machine = builders.machine(nodes=nodes, cpus_per_node=1, nodes_per_socket=max(1, nodes // 2))
    root = drawn(machine)
    assert distances_of(root) == expected_of(machine)
    shown = [one.text for one in root.iter(f"{SVG}text") if one.get("class") == "m"]
    numbers = [distance for distance in expected_of(machine).values() if nodes <= 42]
    assert shown == numbers
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.get("x", "0")) + float(rect.attrib["width"]) <= 960
        assert float(rect.get("y", "0")) + float(rect.attrib["height"]) <= float(root.attrib["height"])
    assert set(expected_of(machine).values()) <= set(texts(root))


def test_unknown_distances_are_told_and_one_way_ones_kept() -> None:
    machine = builders.machine(nodes=3)
    first, second, third = machine.nodes
    odd = (replace(first, distances={0: 10, 1: 16, 2: 254}), replace(second, distances={}), third)
    root = drawn(replace(machine, nodes=odd))
    assert distances_of(root) == expected_of(replace(machine, nodes=odd))
    assert [one.text for one in root.iter(f"{SVG}text") if one.get("class") == "m"][:6] == [
        *("10", "16", "254"),
        *("-", "-", "-"),
    ]


@pytest.mark.parametrize("nodes", [12, 64])
def test_the_farther_the_hotter_also_where_there_are_more_distances_than_colours(nodes: int) -> None:
    machine = builders.machine(nodes=nodes, cpus_per_node=1)
    row = {one.id: 10 + 3 * one.id for one in machine.nodes}
    root = drawn(replace(machine, nodes=(replace(machine.nodes[0], distances=row), *machine.nodes[1:])))
    cells = [one for one in root.iter(f"{SVG}rect") if one.get("class", "").startswith("h")]
    heats = [
        one.attrib["class"]
        for one in cells
        if one.find(f"{SVG}title") is not None and "node 0 to" in (one[0].text or "")
    ]
    assert heats == sorted(heats)
    assert all(float(one.attrib["x"]) < 940 for one in cells)
    assert (heats[0], heats[-1]) == ("h0", "h5")


def test_without_distances_and_of_too_many_nodes_there_is_no_map() -> None:
    bare = builders.machine(nodes=2)
    none = replace(bare, nodes=tuple(replace(one, distances={}) for one in bare.nodes))
    many = drawn(builders.machine(nodes=129, cpus_per_node=1))
    for root in (drawn(none), drawn(builders.machine(nodes=1))):
        assert "distances" not in texts(root)
    assert distances_of(many) == {}
    assert "not drawn, as there are 129 nodes: see incus-numa topology --format json" in texts(many)


def test_names_are_text_whatever_letters_they_have() -> None:
    name = '<script>"&\x00\x1b'
    root = drawn(replace(builders.machine(nodes=1), name=name), row(name, "0", "0", 'odd"<'))
    assert list(root.iter(f"{SVG}script")) == []
    assert '<script>"&' in texts(root)


def test_it_refers_to_nothing_outside_and_follows_light_and_dark() -> None:
    text = render_picture(builders.machine(), [], [row("a", "0", "0")])
    assert re.findall(r"\w+://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|href|<image|<script|<foreignObject", text)
    light, _, dark = text.partition("@media (prefers-color-scheme:dark)")
    used = {name for one in re.findall(r'class="([^"]+)"', text) for name in one.split()} - {"t", "p", "n", "e", "m"}
    for name in used:
        assert f".{name}{{" in light, name
        assert f".{name}{{" in dark.partition("</style>")[0], name
